"""Small models with random weights whose output depends on every sample: of any heads."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from local.prepare_lang import train_bpe
from tests.support.stream_driver import TINY, speech
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import model_content
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import TransducerOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.xlsr_config import XlsrConfig

RATE = 16000
CHUNK = ChunkSettings(16, 2, 4)
FULL = ChunkSettings()
ROUNDING = 1e-3  # of logits; between batches of different sizes they differ by less


@functools.cache
def tokenizer() -> Tokenizer:
    """Forty pieces of random words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioklmnst", k=draw.randint(2, 6))) for _ in range(60)]
    return Tokenizer(train_bpe([" ".join(draw.choices(words, k=6)) for _ in range(200)], 40))


def write_random_model(
    path: Path,
    heads: Sequence[str],
    adapter: str = "conv",
    chunk: ChunkSettings = CHUNK,
    normalize: str = "cumulative",
    xlsr: XlsrConfig = TINY,
    **encoder: object,
) -> Path:
    """Writes a checkpoint; returns its path.

    Args:
      chunk: of a streaming model; ``FULL`` makes one for full context.
      encoder: further ``EncoderOptions``.
    """
    torch.manual_seed(0)
    is_streaming = not chunk.is_full_context
    config = ModelConfig(
        features=FeatureInfo("random", "0" * 64, "waveform", normalize, 1),
        xlsr=xlsr,
        encoder=EncoderOptions(encoder_dim=32, adapter=adapter, **encoder),
        transducer=TransducerOptions(decoder_dim=16, joiner_dim=32),
        streaming=StreamingOptions(is_streaming, *map(str, chunk if is_streaming else ("",) * 3)),
        vocab_size=tokenizer().vocab_size,
        heads=tuple(heads),
    )
    model = build_model(config).eval()
    _make_talkative(model, encoded(model, speech(10 * RATE, 0, torch.float32), chunk))
    save_atomically(model_content(config, tokenizer(), model.state_dict()), path)
    return path


@torch.no_grad()
def _make_talkative(model: SpeechModel, frames: Tensor) -> None:
    """Lets random heads answer to the deviations of encoder output (T, E), mostly by blanks."""
    if model.joiner is not None:
        _answer_to(model.joiner.encoder_proj, frames)
        output = model.joiner.output_linear
        output.weight.normal_()
        output.bias.zero_()
        output.bias[0] = 12
    if model.ctc_output is not None:
        _answer_to(model.ctc_output, frames)
        model.ctc_output.bias[0] += 2


def _answer_to(projection: torch.nn.Linear, frames: Tensor) -> None:
    projection.weight.normal_().div_(frames.std(0) * frames.shape[1] ** 0.5)
    projection.bias.copy_(-projection.weight @ frames.mean(0))


@torch.no_grad()
def encoded(model: SpeechModel, wave: Tensor, chunk: ChunkSettings = CHUNK) -> Tensor:
    """Returns (T, E) of (n,) samples."""
    return model.encoder(wave[None], torch.tensor([len(wave)]), *chunk)[0][0]


@torch.no_grad()
def closest_ctc(model: SpeechModel, frames: Tensor) -> float:
    """Returns the smallest lead of a best label over the second best, in frames (T, E)."""
    best = model.ctc_output(frames).topk(2).values
    return float((best[:, 0] - best[:, 1]).min()) if len(frames) else 1.0
