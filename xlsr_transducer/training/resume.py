"""The checkpoint that a training resumes from, and the command that does it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import locked
from xlsr_transducer.core.options import flag_of
from xlsr_transducer.core.tensor_files import step_of
from xlsr_transducer.model.checkpoint import numbered_files, read_checkpoint
from xlsr_transducer.model.config import CHUNK_NAMES, ModelConfig, StreamingOptions
from xlsr_transducer.model.encoder_options import EncoderOptions

AUTO = "auto"
LOCK = "training.lock"
# Neither the shapes of the weights nor what the network computes when it is used depend on these.
FREE = {
    "encoder": {"dropout", "feature_dropout", "xlsr_dropout", "activation_dropout", "layerdrop",
                "time_mask_prob", "time_mask_length", "channel_mask_prob", "channel_mask_length",
                "mask_lengths"},
    "xlsr": {"hidden_dropout", "attention_dropout", "activation_dropout", "layerdrop"},
    "features": {"dtype", "extractor"},
}  # fmt: skip


def newest_checkpoint(exp_dir: Path) -> tuple[Path, dict] | None:
    """The intact ``epoch-N.pt`` or ``checkpoint-N.pt`` of most steps and its content; None if
    there is no file.

    Raises:
      UserError: there are files, but none can be resumed from.
    """
    checkpoints = numbered_files(exp_dir, "checkpoint").values()
    epochs = numbered_files(exp_dir, "epoch").values()  # of the same step, they know more
    found = [*checkpoints, *epochs]
    # Their checksums are not looked at yet: that takes as long as reading them.
    for path in sorted(found, key=lambda p: step_of(p) or 0)[::-1]:
        try:
            return path, read_resumable(path)
        except UserError as e:
            logging.warning(f"passed over: {e}")
    if found:
        raise UserError(
            f"{exp_dir}: none of its {len(found)} checkpoints can be resumed from, see the "
            "warnings above; remove them, or choose another --exp-dir, to start afresh"
        )
    return None


def sole_training(exp_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Inside, no other training may run in ``exp_dir``.

    Raises:
      UserError: one does.
    """
    message = f"--exp-dir {exp_dir}: another training is running in it; choose another folder"
    return locked(exp_dir / LOCK, message)


def require_unused(exp_dir: Path) -> None:
    """Raises UserError where a new training would mix its files with those of an older one."""
    found = {**numbered_files(exp_dir, "checkpoint"), **numbered_files(exp_dir, "epoch")}
    if found:
        raise UserError(
            f"--exp-dir {exp_dir}: holds checkpoints of a training already; resume it with "
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


def check_same_model(path: Path, saved: ModelConfig, now: ModelConfig) -> None:
    """Logs options of the model that have changed and may; they count from here on.

    Raises:
      UserError: options that decide the shapes or the meaning of the weights differ; names them.
    """
    wrong, changed = [], []
    for group in ("features", "xlsr", "encoder", "transducer", "streaming", "classifier"):
        before, after = _values(getattr(saved, group)), _values(getattr(now, group))
        for name in [n for n in before if n in after and before[n] != after[n]]:
            if (group, name) == ("features", "xlsr"):
                continue  # the place of XLSR, whose sha256 counts
            shown = f"{_flag(group, name)} {before[name]} and {after[name]}"
            (changed if name in FREE.get(group, ()) else wrong).append(shown)
    if saved.vocab_size != now.vocab_size:
        wrong.append(f"the BPE model's tokens {saved.vocab_size} and {now.vocab_size}")
    if saved.heads != now.heads:
        wrong.append(f"--heads {','.join(saved.heads)} and {','.join(now.heads)}")
    if wrong:
        raise UserError(
            f"{path}: was trained with other model options than the ones given: "
            f"{'; '.join(wrong)}; give those of the checkpoint, or start a new training from its "
            "weights with --init-from"
        )
    if changed:
        logging.info(f"other options than in {path}: {'; '.join(changed)}")


def _values(group: Any) -> dict[str, Any]:
    """The fields of a group of options; of streaming, the values that training draws from."""
    if isinstance(group, EncoderOptions):
        return {**dataclasses.asdict(group), "keep_layers": group.keep_layers or "all"}
    if not isinstance(group, StreamingOptions):
        return dataclasses.asdict(group)
    if not group.streaming:
        return {"streaming": False}
    shown = (",".join(map(str, values)) for values in group.choices())
    return {"streaming": True, **dict(zip(CHUNK_NAMES, shown))}


def _flag(group: str, name: str) -> str:
    """How a user knows a field: by its option, if it has one."""
    if group == "xlsr" or name == "sha256":
        return f"XLSR's {name}"
    if group == "features" and name not in ("cut", "normalize"):
        return f"the features' {name}"
    return flag_of(name)


def resume_command(argv: Sequence[str]) -> str:
    """Returns the command that resumes a training that was started with ``argv``."""
    words = list(argv) if "--resume" in argv else [*argv, "--resume", AUTO]
    if "WORLD_SIZE" in os.environ and "--world-size" not in argv:
        return f"the same torchrun command, ending in {shlex.join(words)}"
    return f"./train.sh {shlex.join(words)}"
