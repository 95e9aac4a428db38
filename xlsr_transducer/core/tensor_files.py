"""Files of tensors: written whole or not at all, and verified when they are read.

A file is what ``torch.save`` writes, a zip archive, whose comment says

    xlsr-transducer step STEP sha256 HEX

with the hash of everything before HEX, so that no flipped bit and no missing byte goes unnoticed.
The comment alone tells the step, without reading the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from xlsr_transducer.core.compat import load_tensors
from xlsr_transducer.core.errors import UserError

SEAL = re.compile(rb"(xlsr-transducer step (\d+) sha256 )([0-9a-f]{64})$")
LONGEST_SEAL = 200  # bytes
# The end of a zip archive without a comment: signature, counts, and the comment's length, 0.
END_SIZE, END_SIGNATURE = 22, b"PK\x05\x06"
UNFINISHED = ".tmp"
BLOCK = 2**20


class _Writer:
    """What ``torch.save`` writes to: hashes what passes, and keeps the first error.

    PyTorch turns an exception out of ``write`` into an obscure one of its own, or dies of it.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.hash.update(data)
        try:
            if self.error is None:
                self.file.write(data)
        except OSError as e:
            self.error = e
        return len(data)

    def flush(self) -> None:
        pass


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Writes tensors and plain values to a temporary name on the same disk, then renames it.

    Raises:
      UserError: it cannot be written, as the disk is full; what was there before still is.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            _write(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as e:
        raise UserError(
            f"{path}: could not be written ({e.strerror or e}); the files saved before are intact"
        ) from e
    finally:
        temporary.unlink(missing_ok=True)


def _write(content: dict[str, Any], f: BinaryIO) -> None:
    writer = _Writer(f)
    torch.save(content, writer)
    if writer.error:
        raise writer.error
    seal = b"xlsr-transducer step %d sha256 " % content.get("step", 0)
    writer.write(seal)
    writer.write(writer.hash.hexdigest().encode())
    if writer.error:
        raise writer.error
    # The archive's last two bytes count the comment; the hash is of them as they were, 0.
    length = len(seal) + 64
    f.seek(-length - 2, os.SEEK_END)
    f.write(length.to_bytes(2, "little"))


def _sync_folder(folder: Path) -> None:
    """Makes the renaming last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
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
    with open(path, "rb") as f:
        seal = _read_seal(f)
    return int(seal.group(2)) if seal else None


def load_verified(path: Path) -> Any:
    """What ``save_atomically`` wrote.

    A file without a comment (of older versions, or of another program) is read unverified.

    Raises:
      UserError: it is missing, damaged, or unsafe.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as f:
        if not _is_intact(f):
            raise UserError(
                f"{path}: damaged, as its checksum does not fit: it is truncated, or has changed "
                "on the disk; use another one"
            )
    return load_tensors(path)


def _read_seal(f: BinaryIO) -> re.Match | None:
    f.seek(-min(LONGEST_SEAL, f.seek(0, os.SEEK_END)), os.SEEK_END)
    return SEAL.search(f.read())


def _is_intact(f: BinaryIO) -> bool:
    seal = _read_seal(f)
    size = f.seek(0, os.SEEK_END)
    if not seal:
        f.seek(0)
        if f.read(2) != END_SIGNATURE[:2]:
            return True  # not an archive: reading it tells more
        f.seek(-min(END_SIZE, size), os.SEEK_END)
        end = f.read()
        return end.startswith(END_SIGNATURE) and end.endswith(b"\0\0")
    length = len(seal.group(0))
    left = size - length - 2
    f.seek(0)
    digest = hashlib.sha256()
    while left > 0:
        block = f.read(min(BLOCK, left))
        digest.update(block)
        left -= len(block)
    counted = f.read(2) == length.to_bytes(2, "little")
    digest.update(b"\0\0" + seal.group(1))
    return counted and digest.hexdigest().encode() == seal.group(3)
