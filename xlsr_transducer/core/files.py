"""Files written whole or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from xlsr_transducer.core.errors import UserError

UNFINISHED = ".tmp"  # ends the name of a file that is being written


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary names that become ``paths`` together when the block ends without an error.

    The folders are made. After an error, what was there before still is.

    Raises:
      UserError: a file cannot be written, as the disk is full or read-only, for example.
    """
    temporary = [path.with_name(path.name + UNFINISHED) for path in paths]
    with disk_errors_named(*paths, *temporary, shown=paths):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            for source, path in zip(temporary, paths):
                os.replace(source, path)
        finally:
            for source in temporary:
                source.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors_named(*paths: Path, shown: tuple[Path, ...] = ()) -> Iterator[None]:
    """Inside, files or what is in folders is written; an error of the disk is one that names them.

    Args:
      shown: the names for the message, if not ``paths``.

    Raises:
      UserError: something cannot be written, as the disk is full or read-only, for example.
    """
    try:
        yield
    except OSError as e:
        # Of other files, such as an input that is missing, the error names the file itself.
        if e.filename is not None and not any(_is_part(Path(e.filename), path) for path in paths):
            raise
        names = ", ".join(map(str, shown or paths))
        raise UserError(f"{names}: could not be written ({e.strerror or e})") from e


def _is_part(file: Path, of: Path) -> bool:
    """Returns whether ``file`` is ``of``, or a folder above it, or lies in it."""
    return file == of or file in of.parents or of in file.parents


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, as ``replacing`` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, as ``replacing`` does."""
    with replacing(path) as [temporary]:
        temporary.write_bytes(content)


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Inside, this process alone holds the lock file ``path``, which is made if need be.

    The system frees the lock when the process ends, however it ends.

    Raises:
      UserError: with ``message``; another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise UserError(message) from e
        yield


def is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock file ``path``; leaves no file."""
    if not path.is_file():
        return False
    with open(path) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return True
    return False


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process that asks for this works in the folder; waits until it may."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".index.lock", "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
