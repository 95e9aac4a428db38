"""The shape of an XLSR network, as Hugging Face's ``config.json`` gives it, and its levels."""

from __future__ import annotations

import dataclasses
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import HOP, RECEPTIVE_FIELD

WAVEFORM = -2
FRONTEND = -1


@dataclasses.dataclass(frozen=True)
class XlsrConfig:
    """Names and defaults of Hugging Face's ``Wav2Vec2Config`` (defaults: XLSR-53)."""

    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    feat_extract_norm: str = "layer"
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = True
    layer_norm_eps: float = 1e-5
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layerdrop: float = 0.1
    adapter_attn_dim: int | None = None  # width of MMS's adapter in each layer; None: no adapters

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> XlsrConfig:
        """From the content of ``config.json``; fields it lacks keep Hugging Face's defaults.

        Raises:
          UserError: an architecture that this project does not have.
        """
        if not isinstance(values, dict):
            raise UserError(f"{where}: holds no configuration; it must be a JSON object")
        hf_defaults = {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "conv_bias": False,
            "feat_extract_norm": "group",
            "do_stable_layer_norm": False,
        }
        names = [f.name for f in dataclasses.fields(cls)]
        merged = {**hf_defaults, **{k: values[k] for k in names if k in values}}
        merged = {k: tuple(v) if isinstance(v, list) else v for k, v in merged.items()}
        for name in ("hidden_act", "feat_extract_activation"):
            if values.get(name, "gelu") != "gelu":
                raise UserError(f"{where}: {name} is {values[name]!r}; only gelu is supported")
        if values.get("add_adapter"):
            raise UserError(f"{where}: add_adapter is set; such a network is not supported")
        return cls(**merged).checked(where)

    def checked(self, where: str) -> XlsrConfig:
        """Returns itself, or refuses a value, which it names with the file ``where``."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_like(value, field.default):
                raise UserError(f"{where}: {field.name} is {value!r}, unlike {field.default!r}")
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise UserError(f"{where}: conv_dim, conv_kernel and conv_stride differ in length")
        if self.feat_extract_norm not in ("layer", "group"):
            raise UserError(f"{where}: feat_extract_norm is {self.feat_extract_norm!r}")
        if (self.hop, self.receptive_field) != (HOP, RECEPTIVE_FIELD):
            raise UserError(
                f"{where}: the convolutions have hop {self.hop} and receptive field "
                f"{self.receptive_field}; XLSR has {HOP} and {RECEPTIVE_FIELD} samples"
            )
        if self.adapter_attn_dim and not self.do_stable_layer_norm:
            raise UserError(
                f"{where}: adapter_attn_dim is set, but do_stable_layer_norm is not: MMS's "
                "adapters belong to layers with the norm first"
            )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"{where}: hidden_size is no multiple of num_attention_heads")
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise UserError(
                f"{where}: hidden_size is no multiple of num_conv_pos_embedding_groups"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``from_dict`` takes them."""
        plain = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    def without_dropout(self) -> XlsrConfig:
        return dataclasses.replace(
            self, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0
        )

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        product = 1
        for stride in self.conv_stride:
            product *= stride
        return product

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees."""
        field = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride)):
            field = (field - 1) * stride + kernel
        return field

    @property
    def overlap(self) -> int:
        """Samples that a frame shares with the next one."""
        return self.receptive_field - self.hop

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames so many samples give."""
        return max((num_samples - self.overlap) // self.hop, 0)

    def number_of_level(self, level: str) -> int:
        """Returns the number of a level: WAVEFORM, FRONTEND, or the number of layers below it.

        Raises:
          UserError: there is no such level in this network.
        """
        named = {"waveform": WAVEFORM, "frontend": FRONTEND, "last": self.num_hidden_layers}
        if level in named:
            return named[level]
        if level.isdigit() and 1 <= int(level) <= self.num_hidden_layers:
            return int(level)
        raise UserError(
            f"--cut {level}: must be waveform, frontend, last, or a layer from 1 to "
            f"{self.num_hidden_layers}"
        )

    def feature_dim(self, level: str) -> int:
        """Returns the width of what enters the model at a level (1 for the waveform)."""
        number = self.number_of_level(level)
        if number < 0:
            return 1 if number == WAVEFORM else self.conv_dim[-1]
        return self.hidden_size


def _is_like(value: Any, example: Any) -> bool:
    """Returns whether ``value`` has the type of ``example``; whole numbers must be positive
    too, and may be missing where the example is None."""
    if example is None:
        return value is None or _is_like(value, 1)
    if isinstance(example, tuple):
        return isinstance(value, tuple) and all(_is_like(v, 1) for v in value) and bool(value)
    if isinstance(example, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    if isinstance(example, int) and not isinstance(example, bool):
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    return isinstance(value, type(example))
