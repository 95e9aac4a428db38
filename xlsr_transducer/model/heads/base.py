"""The interface of a head, the losses of all heads, and their options.

Letters: N batch, T encoder frames, E width of the encoder, U tokens, D width
of XLSR.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Optional

from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.loss.backend import BACKENDS

HEADS = ("transducer", "ctc", "classifier")
CTC_BESIDE_TRANSDUCER = 0.2  # icefall's weight


class Losses(NamedTuple):
    """Per utterance, (N,) float32: negative log-probabilities in nats; zeros of a head that the
    model has not. The last two are the distance from a teacher, zeros without one: means over an
    utterance, times its tokens, so that their sums divide by tokens as those of the others do.

    Infinite where no path exists: CTC with fewer frames than tokens (and blanks between equal
    ones), the modified and constrained topologies with fewer frames than tokens.
    """

    simple: Tensor
    pruned: Tensor
    ctc: Tensor
    consistency: Tensor  # of the CTC head's two views of an utterance; zeros without them
    classifier: Tensor
    layers: Tensor  # see ``distillation.layer_distance``
    logits: Tensor  # see ``distillation.divergence``, over all heads that the teacher has too


class Guide(NamedTuple):
    """A teacher's head for a student's head of the same kind."""

    head: Head
    encoder_out: Tensor  # (N, T, E) float32, of the teacher


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """Heads and losses."""

    heads: str = option(
        "",
        "what reads the encoder: transducer, ctc, or both with a comma; or classifier "
        "(default: transducer, and ctc with --ctc-loss-scale)",
    )
    prune_range: int = option(5, "symbols per frame that the pruned loss looks at", at_least=1)
    lm_scale: float = option(
        0.25, "smoothing of the simple loss with decoder-only scores", at_least=0, at_most=1
    )
    am_scale: float = option(
        0.0, "smoothing of the simple loss with encoder-only scores", at_least=0, at_most=1
    )
    simple_loss_scale: float = option(0.5, "weight of the simple loss after warm-up", at_least=0)
    ctc_loss_scale: float | None = option(
        None,
        "weight of the CTC head's loss (default: 1 alone, 0.2 in --heads transducer,ctc, else 0: "
        "no such head)",
        at_least=0,
    )
    cr_ctc_scale: float = option(
        0.0,
        "weight of agreement of the CTC head on two views (CR-CTC), which doubles a batch",
        at_least=0,
    )
    warm_step: int | None = option(
        None,
        "steps over which the pruned loss takes over from the simple one (default: 15 % of the "
        "training's steps, 2,000 at most)",
        at_least=0,
    )
    rnnt_type: str = option("regular", "topology", ("regular", "modified", "constrained"))
    delay_penalty: float = option(0.0, "reward for emitting early, per frame", at_least=0)
    loss_backend: str = option("auto", "whose losses: k2's where it imports, or ours", BACKENDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_heads()
        if self.rnnt_type == "regular" and self.prune_range < 2:
            raise UserError(
                f"--prune-range {self.prune_range}: must be at least 2 with --rnnt-type regular"
            )
        if self.lm_scale + self.am_scale > 1:
            raise UserError(
                f"--lm-scale {self.lm_scale} and --am-scale {self.am_scale}: must be 1 at most "
                "together"
            )
        if self.cr_ctc_scale > 0 and "ctc" not in self.names:
            raise UserError(
                f"--cr-ctc-scale {self.cr_ctc_scale} needs the CTC head: give --ctc-loss-scale too"
            )

    def _choose_heads(self) -> None:
        """Fills in ``heads`` and ``ctc_loss_scale``, each of which follows from the other."""
        scale = self.ctc_loss_scale
        given = self.heads or ("transducer,ctc" if scale else "transducer")
        names = [name.strip() for name in given.split(",")]
        for name in names:
            if name not in HEADS:
                raise UserError(f"--heads {given}: {name!r} is none of {', '.join(HEADS)}")
        if "classifier" in names and len(set(names)) > 1:
            raise UserError(
                f"--heads {given}: a classifier stands alone, as its lists have labels where "
                "others have texts"
            )
        has_ctc = "ctc" in names
        if scale is None:
            scale = (CTC_BESIDE_TRANSDUCER if "transducer" in names else 1.0) if has_ctc else 0.0
        if has_ctc != (scale > 0):
            raise UserError(f"--heads {given} contradicts --ctc-loss-scale {scale}")
        object.__setattr__(self, "heads", ",".join(name for name in HEADS if name in names))
        object.__setattr__(self, "ctc_loss_scale", scale)

    @property
    def names(self) -> tuple[str, ...]:
        """The heads by name."""
        return tuple(self.heads.split(","))

    def scales(self, step: int) -> tuple[float, float]:
        """Weights of simple and pruned loss: from (1, 0.1) to (simple_loss_scale, 1)."""
        done = min(step / self.warm_step, 1.0) if self.warm_step else 1.0
        return 1.0 + done * (self.simple_loss_scale - 1.0), 0.1 + done * 0.9

    def weighted(self, losses: Losses, step: int) -> Tensor:
        """Returns the loss of each utterance that training lowers: (N,)."""
        simple_scale, pruned_scale = self.scales(step)
        return (
            losses.simple * simple_scale
            + losses.pruned * pruned_scale
            + losses.ctc * self.ctc_loss_scale
            + losses.consistency * self.cr_ctc_scale
            + losses.classifier
        )


class Head(nn.Module, ABC):
    """A network over encoder output that has losses of its own."""

    @abstractmethod
    def losses(
        self,
        encoder_out: Tensor,
        lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        options: LossOptions,
        guide: Guide | None = None,
    ) -> dict[str, Tensor]:
        """Returns the head's losses of each utterance, (N,), by their names in ``Losses``.

        Args:
          encoder_out: (N, T, E) float32, T >= U; lens: (N,) int64.
          y: (N, U) int64 tokens, 0 beyond y_lens (N,); U >= 1.
          guide: a teacher's head, which adds ``logits``: the mean divergence of the outputs.
        """

    @abstractmethod
    def describe(self) -> str:
        """Returns the head in a few words, for the log."""


class Lesson(NamedTuple):
    """What a teacher computes of a batch, without gradients."""

    layers: Sequence[Tensor]  # (N, T, D) for each layer of the student; empty: none is taught
    encoder_out: Tensor  # (N, T, E) float32
    heads: Mapping[str, Head]  # those that the student has too; empty: none is taught


Masks = tuple[Optional[Tensor], Optional[Tensor]]  # of frames (N, T), of channels (N, D)
Teach = Callable[[Tensor, Tensor, Masks], Lesson]  # of input, its lengths, and its masks
