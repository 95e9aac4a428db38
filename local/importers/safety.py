"""What corpora of others may ask for and do not get: programs are never run."""

from __future__ import annotations

import re
from pathlib import Path

from xlsr_transducer.core.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def refuse_command(command: str, file: Path, line: int) -> None:
    """Raises UserError: a corpus asks for a program to be run."""
    shown = " ".join(command.split())[:80]
    raise UserError(
        f"{file}, line {line}: asks for a program to be run ({shown}), which is never done: write "
        "the audio to files, and name these"
    )


def place_problem(path: str, file: Path, line: int) -> str:
    """Returns why a place of audio cannot be read; '' if it is a file's path.

    Raises:
      UserError: it is a pipe.
    """
    place = path.strip()
    if place.startswith("|") or place.endswith("|") or place.startswith("pipe:"):
        refuse_command(place, file, line)
    if _URL.match(place):
        return f"audio that is no file: {place}; download it first"
    return ""
