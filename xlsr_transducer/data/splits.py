"""Which splits a corpus has: ``manifests/splits.json``, written by prepare.sh."""

from __future__ import annotations

import json
from pathlib import Path

from xlsr_transducer.errors import UserError


def load_splits(data_dir: Path) -> dict[str, list[str]]:
    """``{"train": [...], "val": [...], "test": [...]}``, names of splits by role."""
    path = data_dir / "manifests" / "splits.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: run ./prepare.sh first, or give --data-dir")
    splits = json.loads(path.read_text(encoding="utf-8"))
    return {role: splits.get(role, []) for role in ("train", "val", "test")}
