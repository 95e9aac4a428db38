"""What can be wrong with a manifest: a line that no one can use, or the whole file."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

from lhotse.cut import Cut

from xlsr_transducer.errors import UserError

# What lhotse raises for a file that is not JSON lines, or not of cuts, or not all there.
_DAMAGE = (EOFError, OSError, zlib.error, ValueError, KeyError, TypeError, AssertionError)


def flaw(cut: Cut, from_waveform: bool) -> str:
    """Why a cut can serve no purpose; empty if it can."""
    if not _is_positive(cut.duration):
        return f"the duration is {cut.duration}"
    if not _is_number(cut.start):
        return f"the start is {cut.start}"
    if not cut.supervisions or not isinstance(cut.supervisions[0].text, str):
        return "there is no text"
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
        raise UserError(
            f"{path}: damaged, or no manifest of cuts ({reason}); make it again with the command "
            "that made it"
        ) from e
