"""A failed batch: kept as plain tensors, with all that is needed to repeat it.

``python -m local.replay_batch FILE`` repeats it. A file holds the batch and its place, the
options of the training, and the model's configuration and weights; of a sharded training no
weights, so that a checkpoint must be given. One batch of XLS-R 300M is a file of 1.3 GB, so that
only the first few of a run are kept.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.core.tensor_files import load_verified, save_atomically
from xlsr_transducer.data.datamodule import Batch
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import model_content
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.model.heads import Losses, LossOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.gradient import Objective, finite
from xlsr_transducer.training.inf_check import InfCheck
from xlsr_transducer.training.lora import load_lora_state, lora_state
from xlsr_transducer.training.optim import OptimOptions, prepare_lora
from xlsr_transducer.training.sharding import gather, is_sharded
from xlsr_transducer.training.teacher import Teacher
from xlsr_transducer.training.teacher_options import Scales

KIND = "failed batch 2"
FEW = 3  # utterances of a batch whose loss may not be finite before the batch counts as failed


@dataclasses.dataclass(frozen=True)
class FailureOptions(Options):
    """When something fails."""

    inf_check: bool = option(
        False, "name the first module whose output or gradient is not finite, and stop (slow)"
    )
    keep_failed_batches: int = option(
        3, "failed batches kept as exp/failed/*.pt, each with the weights of the model", at_least=0
    )
    max_failed_in_a_row: int = option(
        20,
        "steps in a row with losses or a gradient not finite, after which the training stops",
        at_least=1,
    )


class FailedBatches:
    """Keeps the failed batches of a training run in ``exp_dir/failed``."""

    def __init__(
        self,
        exp_dir: Path,
        model: SpeechModel,
        objective: Objective,
        tokenizer: Tokenizer,
        options: FailureOptions,
        rank: int = 0,
    ):
        self.folder, self.rank = exp_dir / "failed", rank
        self.model, self.objective, self.tokenizer = model, objective, tokenizer
        self.options = options
        self.has_failed = False  # the current step, so far
        self.in_a_row = 0  # steps that failed
        self.saved: list[Path] = []

    def name_losses(self, batch: Batch, is_finite: Tensor, epoch: int, step: int) -> None:
        """Names the utterances whose loss is not finite, as ``is_finite`` (N,) bool tells.

        A batch fails if they are more than a few, or all of it.
        """
        bad = [i for i, ok in zip(batch.ids, is_finite.tolist()) if not ok]
        if not bad:
            return
        logging.warning(
            f"step {step}: loss not finite, left out: {len(bad)} of {len(batch.ids)} "
            f"utterances: {', '.join(bad)}"
        )
        if len(bad) > FEW or len(bad) == len(batch.ids):
            self.has_failed = True
            self.keep(batch, epoch, step, f"loss not finite: {', '.join(bad)}")

    def end_step(
        self, batches: list[Batch], epoch: int, step: int, is_finite: bool, is_scaled: bool
    ) -> None:
        """Names the utterances of a step whose gradient is not finite, and counts such steps.

        Args:
          batches: of the step. is_scaled: float16 with a loss scale, which an overflow lowers; so
            it is no failure.

        Raises:
          UserError: too many steps failed in a row.
        """
        if batches and not is_finite:
            names = ", ".join(name for batch in batches for name in batch.ids)
            logging.warning(f"step {step}: gradient not finite, no update: {names}")
            if not is_scaled:
                self.keep(batches[-1], epoch, step, f"gradient not finite, in one of: {names}")
        self.in_a_row = self.in_a_row + 1 if self.has_failed or not is_finite else 0
        self.has_failed = False
        if self.in_a_row >= self.options.max_failed_in_a_row:
            raise UserError(
                f"{self.in_a_row} steps in a row with losses or a gradient that are not finite: "
                f"go back to an earlier checkpoint with a lower rate; {self._advice()}"
            )

    def keep(self, batch: Batch, epoch: int, step: int, reason: str) -> None:
        """Writes the batch, unless enough of them are kept; a full disk does not hide why."""
        path = self.folder / f"step-{step}-rank-{self.rank}.pt"
        if path in self.saved or len(self.saved) >= self.options.keep_failed_batches:
            return
        try:
            save_atomically(self._content(batch, epoch, step, reason), path)
        except UserError as e:
            logging.error(f"the failed batch could not be kept: {e}")
            return
        self.saved.append(path)
        logging.error(self._advice())

    def _advice(self) -> str:
        if not self.saved:
            return "no failed batch was kept"
        return f"repeat it with: python -m local.replay_batch {self.saved[-1]} --inf-check 1"

    def _content(self, batch: Batch, epoch: int, step: int, reason: str) -> dict[str, Any]:
        # The processes would have to gather divided weights together, but one has failed.
        weights = {} if is_sharded(self.model) else gather(self.model.state_dict())
        o = self.objective
        return {
            **model_content(o.config, self.tokenizer, weights),
            "kind": KIND,
            "reason": reason,
            "batch": {**vars(batch), "skipped": [], "place": None},
            "index": batch.place.index,
            "step": step,
            "epoch": epoch,
            "optim": dataclasses.asdict(o.optim),
            "loss": dataclasses.asdict(o.loss),
            "seed": o.seed,
            "autocast": str(o.autocast).replace("torch.", "") if o.autocast else "",
            "lora": lora_state(self.model),
            "teacher": o.teacher.content() if o.teacher else None,
        }


@dataclasses.dataclass(frozen=True)
class Replay:
    """The results of repeating a failed batch."""

    losses: Losses
    total: Tensor  # () per token, of the utterances whose loss is finite
    grad_norm: Tensor  # ()


def read_failed_batch(path: Path) -> dict[str, Any]:
    """Reads and checks what ``FailedBatches`` wrote.

    Raises:
      UserError: it is missing, damaged, or of another kind.
    """
    content = load_verified(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path}: not a failed batch of this version of the project")
    return content


def replay(content: dict[str, Any], device: torch.device, inf_check: bool = False) -> Replay:
    """Repeats the forward and backward of a failed batch: on a CPU to the same bits.

    Raises:
      UserError: what ``inf_check`` found.
      Exception: the one that the batch failed with, if it comes again.
    """
    objective, batch = objective_of(content), Batch(**content["batch"]).to(device)
    model = build_model(objective.config)
    model.load_state_dict(content["model"])
    prepare_lora(model, objective.optim)
    load_lora_state(model, content["lora"])
    model.to(device)
    if objective.teacher:
        given = content["teacher"]
        objective.teacher.take(ModelConfig.from_dict(given["config"]), given["model"], device)
    epoch, step = content["epoch"], content["step"]
    objective.prepare(model, step)
    if inf_check:
        InfCheck(model, gradients=objective.autocast != torch.float16)
    with repeatable():
        losses = objective.losses(model, batch, epoch, content["index"], step)
        is_finite = finite(losses)
        total = objective.weighted(losses, is_finite, step).sum()
        total.backward()
    tokens = (batch.token_lens * is_finite).sum().clamp(min=1)
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(trained, float("inf")) / tokens
    return Replay(Losses(*[x.detach() for x in losses]), total.detach() / tokens, norm)


def objective_of(content: dict[str, Any]) -> Objective:
    """Returns the objective of the training that a failed batch is of."""
    config, given = ModelConfig.from_dict(content["config"]), content.get("teacher")
    return Objective(
        config,
        OptimOptions(**content["optim"]),
        LossOptions(**content["loss"]),
        content["seed"],
        getattr(torch, content["autocast"]) if content["autocast"] else None,
        Teacher(Scales(*given["scales"]), config) if given else None,
    )
