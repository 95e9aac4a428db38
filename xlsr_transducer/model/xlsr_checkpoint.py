"""Pretrained XLSR weights from a Hugging Face name, a local folder, or a fairseq ``.pt``.

Whatever the source, the result is a configuration and a state dict with Hugging Face's
names, the weight norm of the positional convolution folded. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.compat import load_tensors, shapes_only
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_config import XlsrConfig

POS_CONV = "encoder.pos_conv_embed.conv."
# The three spellings of the weight norm's magnitude and direction, oldest last.
WEIGHT_NORM_KEYS = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
    ("g", "v"),
)
LAYER = re.compile(r"((?:.*\.)?encoder\.layers\.)(\d+)(\..*)")
ADAPTER = re.compile(r"adapter\.([^.]+)\.(?:safetensors|bin)")
LANGUAGES_SHOWN = 50  # MMS has 1,162
HF_PARTS = ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed")
FAIRSEQ_RULES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (
        r"feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?",
        r"feature_extractor.conv_layers.\1.layer_norm.",
    ),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"mask_emb$", "masked_spec_embed"),
    (r"encoder\.pos_conv\.0\.", POS_CONV),
    (r"encoder\.layer_norm\.", "encoder.layer_norm."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
)
# The weights that show the shape of a network in a fairseq file.
FAIRSEQ_SHAPES = (
    "feature_extractor.conv_layers.0.conv.weight",
    "feature_projection.projection.weight",
    "encoder.layers.0.feed_forward.output_dense.weight",
)


@dataclasses.dataclass(frozen=True)
class XlsrCheckpoint:
    """Weights, shape and identity of a pretrained network."""

    config: XlsrConfig
    weights: dict[str, Tensor]
    source: str  # what the user named: a folder, a file or a Hugging Face name
    sha256: str  # of the file with the weights

    def with_layers(self, kept: Sequence[int]) -> XlsrCheckpoint:
        """Returns the network of these layers alone, numbered from 0; ``sha256`` is the file's."""
        config = dataclasses.replace(self.config, num_hidden_layers=len(kept))
        return dataclasses.replace(self, config=config, weights=of_layers(self.weights, kept))


def of_layers(weights: Mapping[str, Tensor], kept: Sequence[int]) -> dict[str, Tensor]:
    """Returns the weights without those of other layers than ``kept``, of which layer kept[j] is
    called layer j. Any prefix may stand before the names of XLSR."""
    chosen = {}
    for name, value in weights.items():
        match = LAYER.match(name)
        if match is None:
            chosen[name] = value
        elif int(match[2]) in kept:
            chosen[f"{match[1]}{kept.index(int(match[2]))}{match[3]}"] = value
    return chosen


def load_xlsr(source: str, language: str | None = None) -> XlsrCheckpoint:
    """Loads XLSR weights.

    Args:
      source: a folder in Hugging Face's format, a fairseq ``.pt`` file, or a name on the
        Hugging Face hub such as ``facebook/wav2vec2-xls-r-300m``.
      language: whose adapters of MMS are wanted, such as ``fra``; None: those of the main file.

    Raises:
      UserError: nothing usable there; the message says what is missing.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return load_folder(path, source, language)[0]
    if language:
        raise UserError(f"--language {language}: {source} is no folder with adapters, as MMS is")
    if path.is_file():
        return _load_fairseq(path, source)
    if path.suffix in (".pt", ".bin", ".safetensors") or source.startswith((".", "/", "~")):
        raise UserError(f"--xlsr {source}: no such file or folder")
    return load_folder(_download(source), source)[0]


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, allow_patterns=["config.json", "model*.safetensors*", "pytorch_model*.bin*"]
        )
    except Exception as e:  # the hub's client raises errors of many libraries
        raise UserError(
            f"--xlsr {name}: no local folder of that name, and not to be had from the Hugging "
            f"Face hub ({type(e).__name__}); check the name and the network, or download it "
            "elsewhere and give the folder"
        ) from e
    return Path(folder)


def load_folder(
    folder: Path, source: str, language: str | None = None
) -> tuple[XlsrCheckpoint, dict[str, Tensor]]:
    """Loads a folder in Hugging Face's format.

    Args:
      source: what the user called it. language: as ``load_xlsr`` takes it.

    Returns:
      The XLSR in it, and all weights in it by their names there, those of heads among them.

    Raises:
      UserError: something is missing or damaged.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{folder}: no config.json; give a folder in Hugging Face's format")
    values = read_json(config_path)
    files = _weight_files(folder)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(_read_weights(file))
    if language:
        files.append(adapter_file(folder, language))
        weights.update(_whole_adapter(files[-1], weights))
    config = XlsrConfig.from_dict(values, str(config_path))
    of_xlsr = _fold_weight_norm(_only_xlsr(weights), str(folder))
    return _checked(XlsrCheckpoint(config, of_xlsr, source, _sha256(files))), weights


def adapter_languages(folder: Path) -> list[str]:
    """Returns the languages whose adapters of MMS lie in a folder."""
    found = {
        match.group(1) for path in folder.iterdir() if (match := ADAPTER.fullmatch(path.name))
    }
    return sorted(found)


def adapter_file(folder: Path, language: str) -> Path:
    """Returns the file of a language's adapters.

    Raises:
      UserError: there is none; names the languages that are there.
    """
    for ending in ("safetensors", "bin"):
        path = folder / f"adapter.{language}.{ending}"
        if path.is_file():
            return path
    raise unknown_language(folder, language, adapter_languages(folder))


def _whole_adapter(file: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns an adapter's weights, which must replace all that ``weights`` have of another's."""
    adapter = _read_weights(file)
    for name in weights:
        if (".adapter_layer." in name or name.startswith("lm_head.")) and name not in adapter:
            raise UserError(f"{file}: the weight {name} is missing; download it again")
    return adapter


def unknown_language(folder: Path, language: str, known: list[str]) -> UserError:
    """Returns the error that names the languages of a folder."""
    if not known:
        return UserError(f"--language {language}: {folder} has no adapters of languages")
    shown = ", ".join(known[:LANGUAGES_SHOWN])
    more = len(known) - LANGUAGES_SHOWN
    shown += f" and {more} more" if more > 0 else ""
    return UserError(f"--language {language}: {folder} has {shown}")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: it holds none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON ({e})") from e
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return values


def _weight_files(folder: Path) -> list[Path]:
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        if (folder / f"{stem}.{ending}").is_file():
            return [folder / f"{stem}.{ending}"]
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise UserError(f"{index}: has no weight_map; download it again")
            return [folder / Path(name).name for name in sorted(set(weight_map.values()))]
    raise UserError(f"{folder}: neither model.safetensors nor pytorch_model.bin")


def _read_weights(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return _only_tensors(load_tensors(file), file)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file}: not a safetensors file, or truncated ({e})") from e


def _only_tensors(weights: Any, where: Path) -> dict[str, Tensor]:
    """Returns ``weights``, or refuses what is no state dict."""
    if not isinstance(weights, dict):
        raise UserError(f"{where}: holds no state dict")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{where}: holds no state dict: {name!r} is no tensor")
    return weights


def _only_xlsr(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops heads and quantizers, and the prefix that models with a head put in front."""
    stripped = {re.sub(r"^wav2vec2\.", "", k): v for k, v in weights.items()}
    return {k: v for k, v in stripped.items() if k.startswith(HF_PARTS)}


def _fold_weight_norm(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Replaces magnitude and direction by their product, computed in float64."""
    for g_key, v_key in WEIGHT_NORM_KEYS:
        if POS_CONV + g_key in weights and POS_CONV + v_key in weights:
            g = weights.pop(POS_CONV + g_key).double()
            v = weights.pop(POS_CONV + v_key).double()
            norm = v.square().sum(dim=(0, 1), keepdim=True).sqrt()
            weights[POS_CONV + "weight"] = (v * (g / norm)).float()
    if POS_CONV + "weight" not in weights:
        raise UserError(f"{where}: {POS_CONV}weight is missing (nor is there its weight norm)")
    return weights


def _load_fairseq(path: Path, source: str) -> XlsrCheckpoint:
    content = load_tensors(path)
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{path}: no fairseq checkpoint (it has no 'model' entry)")
    weights = {}
    for key, value in _only_tensors(content["model"], path).items():
        name = _fairseq_name(re.sub(r"^w2v_encoder\.w2v_model\.", "", key))
        if name:
            weights[name] = value.float()
    weights = _fold_weight_norm(weights, str(path))
    for name in FAIRSEQ_SHAPES:
        if name not in weights:
            raise UserError(f"{path}: the weight {name} is missing; is this wav2vec 2.0?")
    config = _fairseq_config(weights, _fairseq_options(content)).checked(str(path))
    return _checked(XlsrCheckpoint(config, weights, source, _sha256([path])))


def _fairseq_name(key: str) -> str:
    for pattern, replacement in FAIRSEQ_RULES:
        renamed, count = re.subn("^" + pattern, replacement, key)
        if count:
            return renamed
    return ""  # quantizer, projections of pre-training, a CTC head


def _fairseq_options(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the model's options: ``cfg["model"]`` in newer files, ``args`` in older ones.

    A fine-tuned model wraps the options of the pretrained one.
    """
    options = _as_dict(_as_dict(content.get("cfg")).get("model")) or _as_dict(content.get("args"))
    nested = _as_dict(options.get("w2v_args"))
    return _as_dict(nested.get("model")) or nested or options


def _as_dict(options: Any) -> dict[str, Any]:
    if isinstance(options, argparse.Namespace):
        return vars(options)
    return options if isinstance(options, dict) else {}


def _fairseq_config(weights: dict[str, Tensor], options: dict[str, Any]) -> XlsrConfig:
    """Shapes from the weights; only what they do not show from the options."""
    conv = re.compile(r"feature_extractor\.conv_layers\.\d+\.conv\.weight")
    convs = [k for k in weights if conv.match(k)]
    convs.sort(key=lambda k: int(k.split(".")[2]))
    layers = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.layers."))
    has_layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in weights
    hidden = weights["feature_projection.projection.weight"].shape[0]
    pos_conv = weights[POS_CONV + "weight"]
    return XlsrConfig(
        conv_dim=tuple(weights[k].shape[0] for k in convs),
        conv_kernel=tuple(weights[k].shape[2] for k in convs),
        conv_stride=(5,) + (2,) * (len(convs) - 1),
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in weights,
        feat_extract_norm="layer" if has_layer_norm else "group",
        hidden_size=hidden,
        num_hidden_layers=layers,
        # Every XLSR and XLS-R, 300M to 2B, has 16 heads.
        num_attention_heads=int(options.get("encoder_attention_heads", 16)),
        intermediate_size=weights["encoder.layers.0.feed_forward.output_dense.weight"].shape[1],
        num_conv_pos_embeddings=pos_conv.shape[2],
        num_conv_pos_embedding_groups=hidden // pos_conv.shape[1],
        do_stable_layer_norm=bool(options.get("layer_norm_first", has_layer_norm)),
    )


def _checked(checkpoint: XlsrCheckpoint) -> XlsrCheckpoint:
    """Checks that every weight of the network is there with its shape."""
    with shapes_only():
        expected = Wav2Vec2(checkpoint.config).state_dict()
    weights = checkpoint.weights
    weights.setdefault("masked_spec_embed", torch.zeros(checkpoint.config.hidden_size))
    for name, value in expected.items():
        if name not in weights:
            raise UserError(f"{checkpoint.source}: the weight {name} is missing")
        if weights[name].shape != value.shape:
            raise UserError(
                f"{checkpoint.source}: {name} is {list(weights[name].shape)}, but the "
                f"configuration asks for {list(value.shape)}"
            )
    kept = {name: weights[name].float() for name in expected}
    return dataclasses.replace(checkpoint, weights=kept)


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as f:
            for block in iter(lambda: f.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
