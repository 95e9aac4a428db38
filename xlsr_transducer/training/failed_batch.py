"""A failed batch: kept as plain tensors, with all that is needed to repeat it.

``python -m local.replay_batch FILE`` repeats it. A file holds the batch, step, epoch, chunk
settings and options of the loss, the random state before the forward, which parameters were
trained, which modules were in training mode and which layers left out, and the model's
configuration and weights; of a sharded training no weights, so that a checkpoint must be given.
One batch of XLS-R 300M is a file of 1.3 GB, so that only the first few of a run are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.core.errors import UserError, is_out_of_memory
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.core.tensor_files import load_verified, save_atomically
from xlsr_transducer.data.datamodule import Batch
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import model_content
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.model.transducer import LossOptions, Transducer, TransducerLosses
from xlsr_transducer.training.inf_check import InfCheck
from xlsr_transducer.training.lora import LoraLinear, load_lora_state, lora_state
from xlsr_transducer.training.sharding import gather, is_sharded

KIND = "failed batch 1"
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


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators on this process's devices."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Puts back what ``random_state`` took."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One forward and backward: everything but the weights."""

    batch: Batch
    step: int
    epoch: int
    chunk: ChunkSettings
    random: dict[str, Tensor]  # before the forward


class FailedBatches:
    """Keeps the failed batches of a training run in ``exp_dir/failed``."""

    def __init__(
        self,
        exp_dir: Path,
        model: Transducer,
        config: ModelConfig,
        tokenizer: Tokenizer,
        loss: LossOptions,
        autocast: torch.dtype | None,
        options: FailureOptions,
        rank: int = 0,
    ):
        self.folder = exp_dir / "failed"
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.loss, self.autocast, self.options, self.rank = loss, autocast, options, rank
        self.attempts: list[Attempt] = []  # of the current step
        self.has_failed = False  # the current step, so far
        self.in_a_row = 0  # steps that failed
        self.saved: list[Path] = []

    @contextlib.contextmanager
    def watch(
        self, batch: Batch, step: int, epoch: int, chunk: ChunkSettings
    ) -> Iterator[Attempt]:
        """Around forward and backward: an exception out of it saves the batch and goes on."""
        attempt = Attempt(batch, step, epoch, chunk, random_state())
        self.attempts.append(attempt)
        try:
            yield attempt
        except Exception as e:
            if is_out_of_memory(e):  # says how large a batch was, and nothing else
                raise
            reason = f"{type(e).__name__}: {e}"
            logging.error(f"step {step}: {reason}; batch {', '.join(batch.ids)}")
            self.save(attempt, reason)
            raise

    def check_losses(self, attempt: Attempt, losses: TransducerLosses) -> Tensor:
        """Which utterances count: (N,) bool. The others are named in the log.

        A batch fails if more than a few of its losses are not finite, or all of them.
        """
        is_finite = torch.stack([torch.isfinite(x) for x in losses]).all(0)
        finite = is_finite.tolist()
        bad = [i for i, ok in zip(attempt.batch.ids, finite) if not ok]
        if bad:
            logging.warning(
                f"step {attempt.step}: loss not finite, left out: {len(bad)} of {len(finite)} "
                f"utterances: {', '.join(bad)}"
            )
        if len(bad) > FEW or len(bad) == len(finite):
            self.has_failed = True
            self.save(attempt, f"loss not finite: {', '.join(bad)}")
        return is_finite

    def end_step(self, gradient_is_finite: bool, is_scaled: bool) -> None:
        """Behind the backward of a step's batches, and before the next step.

        Args:
          is_scaled: float16 with a loss scale, which an overflow lowers; so it is no failure.

        Raises:
          UserError: too many steps failed in a row.
        """
        attempts, self.attempts = self.attempts, []
        if attempts and not gradient_is_finite:
            names = ", ".join(name for a in attempts for name in a.batch.ids)
            logging.warning(f"step {attempts[-1].step}: gradient not finite, no update: {names}")
            if not is_scaled:
                self.save(attempts[-1], f"gradient not finite, in one of: {names}")
        self.has_failed |= not gradient_is_finite
        self.in_a_row = self.in_a_row + 1 if self.has_failed else 0
        self.has_failed = False
        if self.in_a_row >= self.options.max_failed_in_a_row:
            raise UserError(
                f"{self.in_a_row} steps in a row with losses or a gradient that are not finite: "
                f"go back to an earlier checkpoint with a lower rate; {self._advice()}"
            )

    def save(self, attempt: Attempt, reason: str) -> None:
        """Writes the batch, unless enough of them are kept; a full disk does not hide why."""
        path = self.folder / f"step-{attempt.step}-rank-{self.rank}.pt"
        if path in self.saved or len(self.saved) >= self.options.keep_failed_batches:
            return
        try:
            save_atomically(self._content(attempt, reason), path)
        except UserError as e:
            logging.error(f"the failed batch could not be kept: {e}")
            return
        self.saved.append(path)
        logging.error(self._advice())

    def _advice(self) -> str:
        if not self.saved:
            return "no failed batch was kept"
        return f"repeat it with: python -m local.replay_batch {self.saved[-1]} --inf-check 1"

    def _content(self, attempt: Attempt, reason: str) -> dict[str, Any]:
        # The processes would have to gather divided weights together, but one has failed.
        weights = {} if is_sharded(self.model) else gather(self.model.state_dict())
        names = [f.name for f in dataclasses.fields(Batch) if f.name != "place"]
        batch = {name: getattr(attempt.batch, name) for name in names}
        batch = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in batch.items()}
        return {
            **model_content(self.config, self.tokenizer, weights),
            "kind": KIND,
            "reason": reason,
            "batch": batch,
            "step": attempt.step,
            "epoch": attempt.epoch,
            "chunk": list(dataclasses.astuple(attempt.chunk)),
            "random": attempt.random,
            "loss": dataclasses.asdict(self.loss),
            "autocast": str(self.autocast).replace("torch.", "") if self.autocast else "",
            "lora": lora_state(self.model),
            "trained": [n for n, p in self.model.named_parameters() if p.requires_grad],
            "training": [n for n, m in self.model.named_modules() if m.training],
            "left_out": [
                n for n, m in self.model.named_modules() if getattr(m, "is_dropped", False)
            ],
        }


@dataclasses.dataclass(frozen=True)
class Replay:
    """What repeating a failed batch gave."""

    losses: TransducerLosses
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
    model = _model_of(content).to(device)
    if inf_check:
        InfCheck(model, gradients=content["autocast"] != "float16")
    batch = Batch(**content["batch"]).to(device)
    set_random_state(content["random"])
    with repeatable():
        return _forward_backward(model, batch, content)


def _model_of(content: dict[str, Any]) -> Transducer:
    """The model as it was before the failed forward."""
    model = build_model(ModelConfig.from_dict(content["config"]))
    model.load_state_dict(content["model"])
    for name, parts in content["lora"].items():
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(parent)
        lora = LoraLinear(getattr(layer, child), len(parts["lora_a"]), parts["alpha"])
        setattr(layer, child, lora)
    load_lora_state(model, content["lora"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in content["trained"])
    for name, module in model.named_modules():
        module.training = name in content["training"]
        if hasattr(module, "is_dropped"):
            module.is_dropped = name in content["left_out"]
    return model


def _forward_backward(model: Transducer, batch: Batch, content: dict[str, Any]) -> Replay:
    options = LossOptions(**content["loss"])
    chunk = ChunkSettings(*content["chunk"])
    dtype = getattr(torch, content["autocast"]) if content["autocast"] else None
    with torch.autocast(batch.inputs.device.type, dtype=dtype, enabled=dtype is not None):
        losses = model(
            batch.inputs, batch.input_lens, batch.tokens, batch.token_lens, options, chunk
        )
    is_finite = torch.stack([torch.isfinite(x) for x in losses]).all(0)
    total = options.weighted(losses, content["step"]).masked_fill(~is_finite, 0.0).sum()
    total = total / (batch.token_lens * is_finite).sum().clamp(min=1)
    total.backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(trained, float("inf"))
    return Replay(TransducerLosses(*[x.detach() for x in losses]), total.detach(), norm)
