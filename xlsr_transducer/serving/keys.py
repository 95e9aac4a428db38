"""Files of API keys, as the server and its client read them."""

from __future__ import annotations

from pathlib import Path

from xlsr_transducer.core.errors import UserError


def read_keys(path: Path | None) -> list[str]:
    """Returns the keys of a file, one a line; none without a file. Lines with # are comments.

    Raises:
      UserError: no such file, or no key in it.
    """
    if path is None:
        return []
    if not path.is_file():
        raise UserError(f"--api-key-file {path}: no such file")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise UserError(f"--api-key-file {path}: a key has other characters than ASCII's")
    if not keys:
        raise UserError(f"--api-key-file {path}: no key in it; write one a line")
    return keys
