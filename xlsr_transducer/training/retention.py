"""Which checkpoints a training keeps: bounds on their number and on their bytes."""

from __future__ import annotations

import logging
from pathlib import Path

from xlsr_transducer.core.tensor_files import step_of
from xlsr_transducer.model.checkpoint import numbered_files

# Of each kind: the newest is resumed from, and --avg 1 of it needs the one before.
NEEDED = 2
GIGABYTE = 1e9


def remove_old(exp_dir: Path, step: int, counts: dict[str, int], gigabytes: float) -> None:
    """Removes the oldest ``epoch-N.pt`` and ``checkpoint-N.pt`` beyond what is kept.

    Files of later steps than ``step`` are another training's. The newest two of each kind stay.

    Args:
      counts: most files of each kind, ``epoch`` and ``checkpoint``; 0: no bound.
      gigabytes: most bytes of all of them together; 0: no bound.
    """
    old: list[tuple[int, Path]] = []  # that may go, with their steps
    kept_bytes = 0
    for stem, count in counts.items():
        files = [(step_of(path), n, path) for n, path in numbered_files(exp_dir, stem).items()]
        known = sorted((at, n, path) for at, n, path in files if at is not None and at <= step)
        excess = len(known) - count if count else 0
        for i, (at, _, path) in enumerate(known):
            if i < excess:
                path.unlink()
                continue
            kept_bytes += path.stat().st_size
            if i < len(known) - NEEDED:
                old.append((at, path))
    for _, path in sorted(old):
        if not gigabytes or kept_bytes <= gigabytes * GIGABYTE:
            break
        kept_bytes -= path.stat().st_size
        logging.info(f"{path} is removed: all take more than --keep-gigabytes {gigabytes:g}")
        path.unlink()
