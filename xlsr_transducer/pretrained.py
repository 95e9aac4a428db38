"""Recognises audio files with pretrained.pt, or any checkpoint:
``python -m xlsr_transducer.pretrained --checkpoint exp/pretrained.pt a.wav b.flac``.

A streaming model sees what it would see live. ``export`` compares every format with this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.options import option
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.whole import whole_encoder
from xlsr_transducer.recognition.exported import Recogniser, encode_chunks, run


@dataclasses.dataclass(frozen=True)
class PretrainedOptions:
    """Model."""

    checkpoint: Path = option(Path("exp/pretrained.pt"), "what export wrote")


def offline(loaded: LoadedModel, chunk: ChunkSettings) -> Recogniser:
    """A model that encodes whole utterances."""
    model, settings = loaded.model, dataclasses.astuple(chunk)

    def encode(wave: Tensor) -> Iterator[Tensor]:
        out, lens = model.encoder.encode(wave[None], torch.tensor([len(wave)]), *settings)
        yield out[0, : lens[0]]

    advice = "decode takes --decode-chunk-len 32 --left-context-chunks 2; or "
    advice += "cut the audio into shorter pieces"
    whole = whole_encoder(model.encoder, chunk.chunk_size, chunk.left_context_chunks, advice)
    tokens = loaded.tokenizer.tokens
    return Recogniser(encode, model.decoder, model.joiner, tokens, model.ctc_output, whole)


def streaming(loaded: LoadedModel) -> Recogniser:
    """A model with a streaming encoder that processes chunk after chunk."""
    model, tokens = loaded.model, loaded.tokenizer.tokens

    def encode(wave: Tensor) -> Iterator[Tensor]:
        return encode_chunks(model.encoder, wave)

    return Recogniser(encode, model.decoder, model.joiner, tokens, model.ctc_output)


def load(options: PretrainedOptions) -> Recogniser:
    """The model in a checkpoint, with the chunk settings that it was validated with."""
    loaded = load_model(CheckpointOptions(checkpoint=options.checkpoint))
    return offline(loaded, loaded.config.streaming.default())


def main(argv: Sequence[str] | None = None) -> int:
    return run(argv, __doc__.splitlines()[0], PretrainedOptions, load)


if __name__ == "__main__":
    run_command(main)
