"""The options of an encoder."""

from __future__ import annotations

import dataclasses

from xlsr_transducer.core.options import Options, option


@dataclasses.dataclass(frozen=True)
class EncoderOptions(Options):
    """Encoder."""

    encoder_dim: int = option(512, "width of the encoder output", at_least=1, at_most=65536)
    adapter: str = option(
        "conv",
        "between XLSR and the heads: conv: pairs of frames, projected, and a causal convolution; "
        "none: XLSR's 20 ms frames as they are",
        ("conv", "none"),
    )
    adapter_kernel: int = option(
        5, "kernel of the adapter's causal convolution, in 40 ms frames", at_least=1, at_most=1024
    )
    dropout: float = option(
        0.1, "dropout of the adapter and the decoder output", at_least=0, below=1
    )
    feature_dropout: float = option(
        0.0,
        "dropout of the features that enter the adapter, or the heads without one",
        at_least=0,
        below=1,
    )
    weighted_layers: bool = option(
        False,
        "sum all layers of XLSR, weighted by a softmax that is learnt, instead of the last alone",
    )
    xlsr_dropout: float = option(
        0.1, "dropout inside the trained part of XLSR", at_least=0, below=1
    )
    activation_dropout: float | None = option(
        None,
        "dropout inside XLSR's feed-forward layers (default: as its configuration has it)",
        at_least=0,
        below=1,
    )
    layerdrop: float = option(
        0.0, "probability to skip a trained XLSR layer in training", at_least=0, at_most=1
    )
    time_mask_prob: float = option(
        0.05,
        "share of frames hidden from XLSR in training, if no two masks overlap; 0: none",
        at_least=0,
        at_most=1,
    )
    time_mask_length: int = option(10, "longest time mask, in XLSR frames", at_least=1)
    channel_mask_prob: float = option(
        0.0,
        "share of XLSR's input channels hidden in training, if no two masks overlap; 0: none",
        at_least=0,
        at_most=1,
    )
    channel_mask_length: int = option(64, "longest block of hidden channels", at_least=1)
    mask_lengths: str = option(
        "drawn",
        "of masks of frames and channels: drawn: from 1 to the longest; fixed: all the longest, "
        "as wav2vec 2.0 was trained",
        ("drawn", "fixed"),
    )
