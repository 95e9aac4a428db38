"""Training within the memory there is: what costs less of it, and what is done with too little."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable

import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.datamodule import Batch
from xlsr_transducer.model.speech_model import SpeechModel

ADVICE = (
    "lower --max-duration, bound --max-frames-tokens, or give --gradient-checkpointing 1, and "
    "resume with --resume auto"
)


class OutOfMemory(UserError):
    """A batch does not fit into the memory of one of several processes."""


@dataclasses.dataclass(frozen=True)
class MemoryOptions(Options):
    """Memory."""

    gradient_checkpointing: bool = option(
        False, "compute XLSR's layers again for their gradients: one more forward, less memory"
    )
    scan_for_oom_batches: bool | None = option(
        None, "try the largest batches before the first step (default: on a GPU)"
    )
    max_skipped_batches: int = option(
        10,
        "batches that do not fit into memory and are left out, before the training stops (of one "
        "process; several stop at the first)",
        at_least=0,
    )


def recompute_layers(model: SpeechModel, wanted: bool) -> None:
    """Whether XLSR's layers keep their input alone, and compute the rest again when needed."""
    xlsr = model.encoder.xlsr
    for layer in xlsr.encoder.layers.values() if xlsr.has_layers else ():
        layer.is_recomputed = wanted


def describe(batch: Batch) -> str:
    """``20 utterances, up to 14.2 s and 60 tokens long``."""
    longest = batch.seconds / max(int(batch.input_lens.sum()), 1) * int(batch.input_lens.max())
    return (
        f"{len(batch.ids)} utterances, up to {longest:.1f} s and "
        f"{int(batch.token_lens.max())} tokens long"
    )


def scan_for_oom(fits: Callable[[Batch], bool], batches: Iterable[Batch]) -> None:
    """Runs forward and backward of each batch by ``fits`` (see ``Stepper``).

    Raises:
      UserError: one does not fit into memory.
    """
    with torch.random.fork_rng(devices=[]):  # that of GPUs is seeded anew for each batch
        for batch in batches:
            if not batch.ids:
                continue
            if not fits(batch):
                raise UserError(
                    f"a batch of {describe(batch)}, does not fit into memory: {ADVICE} "
                    f"({', '.join(batch.ids[:5])} ...)"
                )
            logging.info(f"fits into memory: {describe(batch)}")
