"""Keeps exported files in a scratch folder until they are checked, then puts them in place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import replacing


@contextlib.contextmanager
def scratch_folder(out_dir: Path) -> Iterator[Path]:
    """A folder for unfinished files on the disk of ``out_dir``, removed at the end.

    Raises:
      UserError: a file cannot be written, as the disk is full or read-only, for example.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out_dir) as scratch:
            yield Path(scratch)
    except OSError as e:
        # Errors of other files name them; what is no error of the system is a defect.
        if e.errno is None or not str(e.filename or out_dir).startswith(str(out_dir)):
            raise
        raise UserError(
            f"{out_dir}: could not be written ({e.strerror}); files of earlier exports are intact"
        ) from e


def put_in_place(folder: Path, homes: dict[str, Path]) -> None:
    """Moves files out of ``folder``, all or none, each into its home, maybe on another disk.

    Raises:
      UserError: a file cannot be written; what was there before still is.
    """
    with replacing(*(home / name for name, home in homes.items())) as temporary:
        for name, target in zip(homes, temporary):
            try:
                os.replace(folder / name, target)
            except OSError as e:
                if e.errno != errno.EXDEV:
                    raise
                with open(folder / name, "rb") as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy)
