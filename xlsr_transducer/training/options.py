"""The options of a training beside those of model and data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.model.heads import LossOptions
from xlsr_transducer.training.failed_batch import FailureOptions
from xlsr_transducer.training.group_weights import GroupWeightOptions
from xlsr_transducer.training.memory import MemoryOptions
from xlsr_transducer.training.optim import OptimOptions
from xlsr_transducer.training.resume import AUTO
from xlsr_transducer.training.sharding import SHARDING
from xlsr_transducer.training.teacher_options import TeacherOptions

NUM_EPOCHS = 30


@dataclasses.dataclass(frozen=True)
class LoopOptions(Options):
    """Training run."""

    exp_dir: Path = option(Path("exp"), "where checkpoints, logs and curves go")
    num_epochs: int | None = option(
        None,
        "last epoch to train (default: 30; with --num-updates as many as that takes: 0)",
        at_least=0,
    )
    num_updates: int = option(
        0, "optimizer steps to train, in place of --num-epochs; 0: epochs decide", at_least=0
    )
    resume: str | None = option(
        None, "auto: continue from the newest intact checkpoint in --exp-dir, if any", (AUTO,)
    )
    start_epoch: int = option(
        1, "epoch to start with; above 1 it loads the epoch before", at_least=1
    )
    start_batch: int = option(
        0, "if above 0: load checkpoint-N.pt and continue after step N", at_least=0
    )
    save_every_n: int = option(
        4000, "steps between checkpoints within an epoch; 0: none", at_least=0
    )
    keep_last_k: int = option(30, "of those checkpoints, how many are kept; 0: all", at_least=0)
    keep_last_epochs: int = option(
        20,
        "of the epochs' checkpoints, how many are kept, one more than --avg needs; 0: all",
        at_least=0,
    )
    keep_gigabytes: float = option(
        60.0,
        "size of all these checkpoints in GB, beyond which the oldest are removed; 0: no bound",
        at_least=0,
    )
    valid_interval: int = option(
        0, "steps between validations within an epoch; 0: at its end only", at_least=0
    )
    best: str = option(
        "wer",
        "which validation is the best, whose weights are kept: that with the lowest WER of all, "
        "or of its worst language",
        choices=("wer", "worst-language"),
    )
    average_period: int = option(
        100, "steps between updates of the running mean of the weights; 0: no mean", at_least=0
    )
    log_interval: int = option(50, "steps between log lines; 0: none", at_least=0)
    seed: int = option(
        42, "seed of weights, order of data, dropout and chunk settings", at_least=0
    )
    use_fp16: bool = option(False, "float16 for the encoder, with loss scaling (GPU)")
    use_bf16: bool | None = option(
        None, "bfloat16 for the encoder (default: on a GPU that has it, unless --use-fp16)"
    )
    tensorboard: bool = option(True, "write tensorboard files")
    sharding: str = option(
        "none", "fsdp2: divide parameters and optimizer state among the processes", SHARDING
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_fp16 and self.use_bf16:
            raise UserError("--use-fp16 contradicts --use-bf16: give one")
        if self.num_epochs is None:
            object.__setattr__(self, "num_epochs", 0 if self.num_updates else NUM_EPOCHS)
        if self.num_epochs and self.num_updates:
            raise UserError(
                f"--num-epochs {self.num_epochs} contradicts --num-updates {self.num_updates}: "
                "give one, or 0 for the one that does not count"
            )
        if not self.num_epochs and not self.num_updates:
            raise UserError("--num-epochs 0 needs --num-updates, the steps to train")

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """The precision of the encoder's matrix products; None: float32."""
        if self.use_fp16:
            if device.type != "cuda":
                raise UserError("--use-fp16 1 needs a GPU; on a CPU there is --use-bf16 1")
            return torch.float16
        # From compute capability 8 on; PyTorch would emulate it, slowly, on older ones.
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        wants_bf16 = has_bf16 if self.use_bf16 is None else self.use_bf16
        return torch.bfloat16 if wants_bf16 else None


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The options of a training beside those of model and data."""

    loop: LoopOptions
    optim: OptimOptions
    loss: LossOptions
    failure: FailureOptions
    memory: MemoryOptions
    groups: GroupWeightOptions
    teacher: TeacherOptions
