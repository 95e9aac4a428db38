"""The splits of a corpus: ``manifests/splits.json``, written by prepare.sh."""

from __future__ import annotations

import json
from pathlib import Path

from xlsr_transducer.core.errors import UserError


def load_splits(data_dir: Path) -> dict[str, list[str]]:
    """Returns ``{"train": [...], "val": [...], "test": [...]}``, names of splits by role.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = data_dir / "manifests" / "splits.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: run ./prepare.sh first, or give --data-dir")
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        found = {role: list(splits.get(role, [])) for role in ("train", "val", "test")}
    except (ValueError, AttributeError, TypeError) as e:
        raise UserError(
            f"{path} is damaged ({e}); make it again with ./prepare.sh --stage 1 --stop-stage 1 "
            f"--data-dir {data_dir} and your lists"
        ) from e
    if not all(isinstance(name, str) for names in found.values() for name in names):
        raise UserError(f"{path} is damaged: the splits of a role are a list of names")
    return found
