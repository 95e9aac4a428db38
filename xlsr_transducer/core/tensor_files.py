"""Files of tensors: written whole or not at all, and verified when they are read.

A file is what ``torch.save`` writes, a zip archive with a checksum of each of its parts. The
archive's comment, ``xlsr-transducer step STEP``, tells the step without reading the file.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from xlsr_transducer.core.compat import load_tensors
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import UNFINISHED, replacing

# Of a fixed length, so that a file without its last bytes is none. Older files have more.
COMMENT = b"xlsr-transducer step %012d"
PATTERN = re.compile(rb"xlsr-transducer step (\d{12}|\d+ sha256 [0-9a-f]{64})")


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Writes tensors and plain values to a temporary name on the same disk, then renames it.

    Raises:
      UserError: it cannot be written, as the disk is full; what was there before still is.
    """
    with replacing(path) as [temporary]:
        with open(temporary, "wb") as f:
            writer = _Writer(f)
            torch.save(content, writer)
        if writer.error:
            raise writer.error
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = COMMENT % content.get("step", 0)
        _sync(temporary)
    _sync(path.parent)


class _Writer:
    """The file that ``torch.save`` writes to: keeps the first error.

    PyTorch turns an exception out of ``write`` into an obscure one of its own, or dies of it.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            if self.error is None:
                self.file.write(data)
        except OSError as e:
            self.error = e
        return len(data)

    def flush(self) -> None:
        pass


def _sync(path: Path) -> None:
    """Makes a file, or the names in a folder, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed training left half written."""
    for path in folder.glob("*.pt" + UNFINISHED):
        path.unlink()


def step_of(path: Path) -> int | None:
    """The step of a checkpoint, by its comment; None if it has none, or is damaged there."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = PATTERN.fullmatch(archive.comment)
    except Exception:  # of many kinds, where an archive is damaged
        return None
    return int(found.group(1).split()[0]) if found else None


def load_verified(path: Path) -> Any:
    """Reads what ``save_atomically`` wrote.

    A file without a comment, of another program, is read too, if its checksums are right.

    Raises:
      UserError: it is missing, damaged, or unsafe.
    """
    require_intact(path)
    return load_tensors(path)


def require_intact(path: Path) -> None:
    """Reads a file whole and checks it.

    Raises:
      UserError: it is missing, or an archive whose checksums do not fit.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    if zipfile.is_zipfile(path) and not _is_intact(path):  # reading what is no archive tells more
        raise UserError(
            f"{path}: damaged, as its checksums do not fit: it is truncated, or has changed on "
            "the disk; use another one"
        )


def _is_intact(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            is_known = not archive.comment or PATTERN.fullmatch(archive.comment)
            return bool(is_known) and archive.testzip() is None
    except Exception:  # of many kinds, where an archive is damaged
        return False
