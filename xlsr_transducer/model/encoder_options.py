"""The options of an encoder."""

from __future__ import annotations

import dataclasses

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, flag_of, option


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
    mixer: str = option(
        "attention",
        "what mixes the frames in XLSR's layers: its attention, or Mamba-2 both ways",
        ("attention", "bimamba2"),
    )
    mixer_layers: str = option(
        "all", "layers with --mixer bimamba2, from 0: all, or numbers and ranges such as 0,12-23"
    )
    mixer_residual: bool = option(
        False, "with --mixer bimamba2: add the mixer's input to its output once more"
    )
    keep_layers: str = option(
        "",
        "layers of XLSR that the model has, from 0: numbers and ranges such as 0,2,4 or 0-5,8; "
        "the others are left out (default: all are kept)",
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixer == "attention":
            for name, default in (("mixer_layers", "all"), ("mixer_residual", False)):
                given = getattr(self, name)
                if given != default:
                    shown = int(given) if isinstance(given, bool) else given
                    raise UserError(f"{flag_of(name)} {shown} needs --mixer bimamba2")


def mamba_layers(options: EncoderOptions, num_layers: int, first: int = 0) -> list[int]:
    """Returns the layers that have Mamba-2 in the place of attention.

    Args:
      num_layers: of the model. first: the lowest layer that may.

    Raises:
      UserError: there is no such layer.
    """
    if options.mixer == "attention":
        return []
    if options.mixer_layers == "all":
        return list(range(first, num_layers))
    return sorted(set(_layers("--mixer-layers", options.mixer_layers, first, num_layers)))


def kept_layers(options: EncoderOptions, num_layers: int) -> list[int]:
    """Returns which layers of a pretrained XLSR those of the model are: entry j is the number
    there of the model's layer j.

    Args:
      num_layers: of the pretrained XLSR.

    Raises:
      UserError: there are no such layers, or not in this order.
    """
    if not options.keep_layers:
        return list(range(num_layers))
    kept = _layers("--keep-layers", options.keep_layers, 0, num_layers)
    if kept != sorted(set(kept)):
        raise UserError(
            f"--keep-layers {options.keep_layers}: must ascend and name each layer once, as the "
            "order of layers is XLSR's"
        )
    return kept


def _layers(flag: str, text: str, first: int, num_layers: int) -> list[int]:
    """Returns the layers of a list of numbers and ranges, in its order.

    Raises:
      UserError: one is not within ``first`` to ``num_layers`` - 1; names the option ``flag``.
    """
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        high = high or low
        is_range = low.isdecimal() and high.isdecimal() and int(low) <= int(high)
        if not is_range or int(low) < first or int(high) >= num_layers:
            raise UserError(
                f"{flag} {text}: {part.strip() or repr(part)} must be a layer, or a range such "
                f"as 12-23, within {first} to {num_layers - 1}"
            )
        found.extend(range(int(low), int(high) + 1))
    return found
