"""Files of JSON lines, plain or by gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from xlsr_transducer.core.errors import UserError

_SHOWN = 2000  # characters of a line in the table of rejected ones


def read_json_lines(path: Path) -> Iterator[tuple[int, dict | str, str]]:
    """Yields line number, the object or what is wrong with the line, and the line (its beginning).

    Raises:
      UserError: the file is damaged as a whole.
    """
    opened = gzip.open(path, "rb") if is_gzip(path) else open(path, "rb")
    try:
        with opened as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    shown = line.decode("utf-8", "replace").strip()[:_SHOWN]
                    yield number, _parse(line), shown
    except (EOFError, OSError, zlib.error) as e:
        raise UserError(f"{path}: damaged ({e})") from e


def is_gzip(path: Path) -> bool:
    """Returns whether a file is compressed by gzip."""
    with open(path, "rb") as f:
        return f.read(2) == b"\x1f\x8b"


def first_object(path: Path) -> dict | None:
    """Returns the first object of a file of JSON lines; None if it is no such file."""
    try:
        found = (one for _, one, _ in read_json_lines(path) if isinstance(one, dict))
        if not is_gzip(path):
            with open(path, "rb") as f:
                if not f.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                    return None
        return next(found, None)
    except UserError:
        return None


def _parse(line: bytes) -> dict | str:
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError) as e:
        return f"not JSON: {e}"
    return found if isinstance(found, dict) else "not JSON: no object"
