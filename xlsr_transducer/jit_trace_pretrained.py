"""Recognises audio files with the three files that export --jit-trace 1 wrote:
``python -m xlsr_transducer.jit_trace_pretrained --encoder-model-filename FILE ... a.wav``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.options import option
from xlsr_transducer.recognition.exported import (
    Recogniser,
    load_script,
    run,
    tokens_beside,
    whole_script,
)


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """Model."""

    encoder_model_filename: Path = option(Path("exp/encoder_jit_trace.pt"), "the encoder")
    decoder_model_filename: Path = option(Path("exp/decoder_jit_trace.pt"), "the decoder")
    joiner_model_filename: Path = option(Path("exp/joiner_jit_trace.pt"), "the joiner")
    tokens: Path | None = option(None, "tokens.txt (default: the one beside the encoder)")


class TracedDecoder(nn.Module):
    """A traced decoder as searches call it. Traces keep weights and no numbers."""

    def __init__(self, traced: torch.jit.ScriptModule):
        super().__init__()
        self.traced = traced
        has_conv = hasattr(traced.conv, "weight")
        self.context_size: int = traced.conv.weight.shape[2] if has_conv else 1
        self.blank_id = 0

    def forward(self, y: Tensor, need_pad: bool = False) -> Tensor:
        """(N, context size) -> (N, 1, D)."""
        return self.traced(y, torch.tensor([need_pad]))


class TracedJoiner(nn.Module):
    """A traced joiner as searches call it. It projects anew at each call: its trace does."""

    def __init__(self, traced: torch.jit.ScriptModule):
        super().__init__()
        self.traced = traced
        self.encoder_proj = nn.Identity()
        self.decoder_proj = nn.Identity()

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = False
    ) -> Tensor:
        """(*, E) and (*, D) -> (*, V)."""
        return self.traced(encoder_out, decoder_out, torch.tensor([True]))


def load(options: TraceOptions) -> Recogniser:
    """The model in three traced files.

    Raises:
      UserError: a file is not the part that it is given as.
    """
    encoder = load_script(options.encoder_model_filename)
    decoder = load_script(options.decoder_model_filename)
    joiner = load_script(options.joiner_model_filename)
    for path, part, name, own in (
        (options.encoder_model_filename, encoder, "encoder", "scripted"),
        (options.decoder_model_filename, decoder, "decoder", "embedding"),
        (options.joiner_model_filename, joiner, "joiner", "output_linear"),
    ):
        if not hasattr(part, own):
            raise UserError(f"{path}: is no traced {name}")
    whole = whole_script(options.encoder_model_filename, encoder.scripted)
    tokens = tokens_beside(options.encoder_model_filename, options.tokens, decoder)

    def encode(wave: Tensor) -> Iterator[Tensor]:
        out, lens = encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
        yield out[0, : lens[0]]

    return Recogniser(encode, TracedDecoder(decoder), TracedJoiner(joiner), tokens, whole=whole)


def main(argv: Sequence[str] | None = None) -> int:
    return run(argv, __doc__.splitlines()[0], TraceOptions, load)


if __name__ == "__main__":
    run_command(main)
