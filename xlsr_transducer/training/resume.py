"""Which checkpoint a training goes on from, and the command that makes it do so."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.errors import UserError
from xlsr_transducer.training.checkpoint import numbered_files, read_checkpoint
from xlsr_transducer.training.storage import step_of

AUTO = "auto"


def newest_checkpoint(exp_dir: Path) -> Path | None:
    """The intact ``epoch-N.pt`` or ``checkpoint-N.pt`` of most steps; None if there is no file.

    Raises:
      UserError: there are files, but none can be resumed from.
    """
    checkpoints = numbered_files(exp_dir, "checkpoint").values()
    epochs = numbered_files(exp_dir, "epoch").values()  # of the same step, they know more
    found = [*checkpoints, *epochs]
    # Their checksums are not looked at yet: that takes as long as reading them.
    for path in sorted(found, key=lambda p: step_of(p) or 0)[::-1]:
        try:
            read_resumable(path)
            return path
        except UserError as e:
            logging.warning(f"passed over: {e}")
    if found:
        raise UserError(
            f"{exp_dir}: none of its {len(found)} checkpoints can be resumed from, see the "
            "warnings above; remove them, or choose another --exp-dir, to start afresh"
        )
    return None


def require_unused(exp_dir: Path) -> None:
    """Raises UserError where a new training would mix its files with those of an older one."""
    found = {**numbered_files(exp_dir, "checkpoint"), **numbered_files(exp_dir, "epoch")}
    if found:
        raise UserError(
            f"--exp-dir {exp_dir}: holds checkpoints of a training already; go on with it by "
            f"--resume {AUTO}, remove the folder, or choose another one"
        )


def read_resumable(path: Path) -> dict:
    """A checkpoint that holds the state of a training too.

    Raises:
      UserError: it is damaged, or has no state, or one that this version does not know.
    """
    content = read_checkpoint(path)
    if content["format"] == 1 or "optimizer" not in content:
        raise UserError(
            f"{path}: holds no state of a training, or that of an older version; start from its "
            "weights with --init-from"
        )
    return content


def resume_command(argv: Sequence[str]) -> str:
    """The command that goes on with a training that was started with ``argv``."""
    words = list(argv) if "--resume" in argv else [*argv, "--resume", AUTO]
    if "WORLD_SIZE" in os.environ and "--world-size" not in argv:
        return f"the same torchrun command, ending in {shlex.join(words)}"
    return f"./train.sh {shlex.join(words)}"
