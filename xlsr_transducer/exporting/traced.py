"""``encoder_jit_trace.pt``, ``decoder_jit_trace.pt``, ``joiner_jit_trace.pt``: whole utterances.

Where the encoder has to decide by the audio at hand (who sees whom in a batch, audio too short
for a frame) the trace calls scripted code, so that it holds for every shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Tuple

import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.scripted import OfflineEncoder, save
from xlsr_transducer.recognition.exported import Output, recognise
from xlsr_transducer.recognition.script_models import TraceOptions, load_traced
from xlsr_transducer.search import SearchOptions

FILES = tuple(f"{part}_jit_trace.pt" for part in ("encoder", "decoder", "joiner"))


class Encoder(nn.Module):
    """A scripted encoder as a trace calls it."""

    def __init__(self, scripted: torch.jit.ScriptModule):
        super().__init__()
        self.scripted = scripted

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, n) samples and lengths (N,) -> (N, T, E) and lengths (N,)."""
        return self.scripted(x, x_lens)


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``.

    Raises:
      UserError: the model has no transducer.
    """
    model = job.loaded.model
    if model.joiner is None:
        raise UserError(
            "--jit-trace 1 writes the three parts of a transducer, and this model has "
            f"{' and '.join(job.loaded.config.heads)} alone: use --jit 1"
        )
    encoder = Encoder(torch.jit.script(OfflineEncoder(model.encoder, job.chunk).eval()))
    y = torch.tensor([[-1] * (model.decoder.context_size - 1) + [model.decoder.blank_id]])
    encoder_out = torch.zeros(1, 1, model.encoder.output_dim)
    decoder_out = model.decoder(y, need_pad=False)
    # The last inputs have no effect: servers give them, and a trace must have room for them.
    parts = (
        (encoder, (torch.zeros(2, 16000), torch.tensor([16000, 9000]))),
        (model.decoder, (y, torch.tensor([False]))),
        (model.joiner, (encoder_out, decoder_out, torch.tensor([True]))),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of those inputs
        for name, (part, inputs) in zip(FILES, parts):
            traced = torch.jit.trace(part.eval(), inputs)
            save(traced, folder / name, job.loaded.tokenizer.tokens)
    return [Artifact(FILES, run, job.chunk)]


def run(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs the three files."""
    return list(recognise(load_traced(TraceOptions(*files)), waves, SearchOptions()))
