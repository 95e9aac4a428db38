"""Runs decoding commands and reads what they wrote."""

from __future__ import annotations

import json
from pathlib import Path


def run(command, corpus: Path, exp: Path, *more: str) -> int:
    return command.main(["--exp-dir", str(exp), "--data-dir", str(corpus), *more])


def tokens(folder: Path, set_name: str) -> dict[str, tuple[list[int], list[int]]]:
    """Tokens and their frames by utterance, from the newest file of a set."""
    path = max(folder.glob(f"tokens-{set_name}-*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
    records = map(json.loads, path.read_text().splitlines())
    return {r["id"]: (r["tokens"], r["frames"]) for r in records}
