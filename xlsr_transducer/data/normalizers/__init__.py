"""Normalisers of languages: figures and abbreviations become the words that are spoken.

A normaliser is a module with a function ``normalize(text: str, report: Report) -> str``. It gets
the text as the list has it, composed, with its case and punctuation, and returns it with these:
``--case`` and ``--punctuation`` are applied afterwards. It tells ``report`` each change.
"""

from __future__ import annotations

import hashlib
import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.normalizers import by_num2words, estonian
from xlsr_transducer.data.normalizers.report import Change, Report

__all__ = ["AUTO", "NONE", "Change", "Normalize", "Report", "load", "resolved"]

NONE, AUTO = "none", "auto"
_FILE = ".py"
Normalize = Callable[[str, Report], str]
_MODULES = {"et": estonian.normalize, "est": estonian.normalize, "ekk": estonian.normalize}


def load(name: str, language: str) -> Normalize | None:
    """Returns the normaliser of texts in a language; None for ``none``.

    Args:
      name: ``none``; ``auto``, that of the language; the code of a language, for all texts; or
        a file of Python, which is run.

    Raises:
      UserError: there is none for the language, or the file is missing or no normaliser.
    """
    if name == NONE:
        return None
    if name.endswith(_FILE):
        return _from_file(Path(name))
    code = language if name == AUTO else name
    found = _MODULES.get(code.replace("_", "-").split("-")[0])
    if found is None:
        found = by_num2words.normalizer(code)
    if found is None:
        known = ", ".join(["et", *by_num2words.languages()])
        of = f" (the language {code!r})" if name == AUTO else ""
        raise UserError(
            f"--normalizer {name}{of}: there is none but {known}; or give your own as FILE.py"
        )
    return found


def resolved(name: str) -> str:
    """Returns what the record of a corpus says of a normaliser: of a file also a digest, as the
    file may change.

    Raises:
      UserError: there is no such file.
    """
    if not name.endswith(_FILE):
        return name
    return f"{Path(name).name} {hashlib.sha256(_source(Path(name))).hexdigest()[:16]}"


def _source(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"--normalizer {path}: no such file")
    return path.read_bytes()


def _from_file(path: Path) -> Normalize:
    _source(path)
    spec = importlib.util.spec_from_file_location(f"normalizer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise UserError(f"--normalizer {_place(path, e)}: {type(e).__name__}: {e}") from e
    function = getattr(module, "normalize", None)
    if not callable(function):
        raise UserError(f"--normalizer {path}: it has no function normalize(text, report)")

    def checked(text: str, report: Report) -> str:
        try:
            found = function(text, report)
        except Exception as e:
            raise UserError(
                f"--normalizer {_place(path, e)}: {type(e).__name__}: {e}; the text: {text!r}"
            ) from e
        if not isinstance(found, str):
            raise UserError(f"--normalizer {path}: normalize returned {found!r}, not a text")
        return found

    return checked


def _place(path: Path, error: Exception) -> str:
    """Returns the line of the user's file where an error arose, as far as it is known."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == path.name]
    return f"{path}:{lines[-1]}" if lines else str(path)
