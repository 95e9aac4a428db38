"""A checkpoint's model as a ``Recogniser``: whole utterances, or chunk after chunk.

Neither this nor what it imports needs lhotse or k2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.whole import whole_encoder
from xlsr_transducer.recognition.exported import Recogniser, encode_chunks


def offline(loaded: LoadedModel, chunk: ChunkSettings) -> Recogniser:
    """Returns a model that encodes whole utterances."""
    model = loaded.model

    def encode(wave: Tensor) -> Iterator[Tensor]:
        out, lens = model.encoder.encode(wave[None], torch.tensor([len(wave)]), *chunk)
        yield out[0, : lens[0]]

    advice = "decode takes --decode-chunk-len 32 --left-context-chunks 2; or "
    advice += "cut the audio into shorter pieces"
    whole = whole_encoder(model.encoder, chunk.chunk_size, chunk.left_context_chunks, advice)
    tokens, frame = loaded.tokenizer.tokens, model.encoder.frame_seconds
    return Recogniser(encode, model.decoder, model.joiner, tokens, model.ctc_output, frame, whole)


def streaming(loaded: LoadedModel) -> Recogniser:
    """Returns a model with a streaming encoder, which processes chunk after chunk."""
    model, tokens = loaded.model, loaded.tokenizer.tokens
    frame = model.encoder.frame_seconds

    def encode(wave: Tensor) -> Iterator[Tensor]:
        return encode_chunks(model.encoder, wave)

    return Recogniser(encode, model.decoder, model.joiner, tokens, model.ctc_output, frame)


def load_checkpoint(path: Path) -> Recogniser:
    """Returns the model in a checkpoint, with the chunk settings that it was validated with."""
    loaded = load_model(CheckpointOptions(checkpoint=path))
    return offline(loaded, loaded.config.streaming.default())
