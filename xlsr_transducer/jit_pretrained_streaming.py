"""Recognises audio files chunk by chunk, as a live server does, with jit_script_chunk_*.pt:
``python -m xlsr_transducer.jit_pretrained_streaming --nn-model-filename FILE a.wav b.flac``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.geometry import RECEPTIVE_FIELD
from xlsr_transducer.core.options import option
from xlsr_transducer.jit_pretrained import ScriptOptions, load_transducer
from xlsr_transducer.recognition.exported import Recogniser, run, tokens_beside

FRAME = 160  # samples: chunk_size and pad_length count 20 ms and 10 ms


@dataclasses.dataclass(frozen=True)
class StreamingScriptOptions(ScriptOptions):
    """Model."""

    nn_model_filename: Path = option(
        Path("exp/jit_script_chunk_32_left_2.pt"), "what export --jit 1 wrote"
    )


def windows(wave: Tensor, chunk_size: int, pad_length: int) -> Iterator[tuple[Tensor, int]]:
    """What a streaming encoder takes, one after the other: (n,), and how much of it is valid."""
    shift = 2 * chunk_size * FRAME
    size = shift + pad_length * FRAME
    for start in range(0, len(wave) - RECEPTIVE_FIELD + 1, shift):
        window = wave[start : start + size]
        yield F.pad(window, (0, size - len(window))), len(window)


def load(options: ScriptOptions) -> Recogniser:
    """The model in a jit_script_chunk_*.pt.

    Raises:
      UserError: the file's model does not stream.
    """
    model = load_transducer(options.nn_model_filename)
    tokens = tokens_beside(options.nn_model_filename, options.tokens, model.decoder)
    encoder = model.encoder
    if not hasattr(encoder, "get_init_states"):
        raise UserError(f"{options.nn_model_filename}: does not stream; use jit_pretrained for it")

    def encode(wave: Tensor) -> Iterator[Tensor]:
        states = encoder.get_init_states(1)
        for window, valid in windows(wave, encoder.chunk_size, encoder.pad_length):
            out, lens, states = encoder(window.unsqueeze(0), torch.tensor([valid]), states)
            yield out[0, : lens[0]]

    return Recogniser(encode, model.decoder, model.joiner, tokens, model.ctc_output)


def main(argv: Sequence[str] | None = None) -> int:
    return run(argv, __doc__.splitlines()[0], StreamingScriptOptions, load)


if __name__ == "__main__":
    run_command(main)
