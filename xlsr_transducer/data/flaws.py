"""Flaws of a manifest: a line that cannot be used, or the whole file."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lhotse import MonoCut
from lhotse.cut import Cut

from xlsr_transducer.core.errors import UserError

# lhotse raises these for a file that is not JSON lines, not of cuts, or truncated.
_DAMAGE = (EOFError, OSError, zlib.error, ValueError, KeyError, TypeError, AssertionError)


class Unread(NamedTuple):
    """An utterance that cannot be used, and why."""

    id: str
    text: str  # its reference
    reason: str

    @classmethod
    def because(cls, name: str, text: str, error: UserError | OSError) -> Unread:
        """Of an utterance whose audio or features raised ``error`` when they were read."""
        reason = str(error)
        if isinstance(error, OSError) and error.filename:
            reason = f"{error.filename}: {error.strerror}"
        return cls(name, text, reason)

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


def flaw(cut: Cut, from_waveform: bool) -> str:
    """Returns why a cut can be neither trained on nor scored; empty if it can."""
    reason = input_flaw(cut, from_waveform)
    if reason:
        return reason
    if not cut.supervisions or not isinstance(cut.supervisions[0].text, str):
        return "there is no text"
    if len(cut.supervisions) > 1:
        return f"there are {len(cut.supervisions)} supervisions in place of one"
    return ""


def input_flaw(cut: Cut, from_waveform: bool) -> str:
    """Returns why a cut gives no input for the model; empty if it does."""
    if not isinstance(cut, MonoCut):
        return f"it is a {type(cut).__name__}, not a part of one recording"
    if not _is_positive(cut.duration):
        return f"the duration is {cut.duration}"
    if not _is_number(cut.start):
        return f"the start is {cut.start}"
    if from_waveform and not cut.has_recording:
        return "there is no recording"
    if not from_waveform and not cut.has_features:
        return "there are no features"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Inside, a manifest is read; one that cannot be is an error that names it.

    Raises:
      UserError: the file is truncated, or holds something else.
    """
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:160]
        raise UserError(f"{path}: damaged, or no manifest ({reason}); {_remedy(path)}") from e


def _remedy(path: Path) -> str:
    if path.parent.name == "manifests":
        stage = 2 if path.name.startswith("cuts_") else 1
        command = f"./prepare.sh --stage {stage} --stop-stage {stage}"
        return f"make it again with {command} --data-dir {path.parent.parent} and your lists"
    if (path.parent / "features.json").is_file():
        return "make it again with ./extract_features.sh, which keeps the arrays"
    return "make it again with the command that made it"
