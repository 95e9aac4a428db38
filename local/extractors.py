"""The networks that ``local.extract_features`` runs: samples in, features at the cut out.

Letters: N batch, n samples, T frames, D width.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import num_frames
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint
from xlsr_transducer.model.xlsr_config import WAVEFORM


class Extractor(Protocol):
    """What computes a batch."""

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """N waves (n,) float32 of 400 samples or more -> N arrays (T, D) float16.

        Raises:
          OverflowError: a feature is too large for float16, or no number at all.
        """
        ...


def describe_features(
    checkpoint: XlsrCheckpoint, cut: str, normalize: str, chunk: ChunkSettings, extractor: str
) -> FeatureInfo:
    """What will be made, checked against what the network can do.

    Raises:
      UserError: there is nothing to extract, or the settings contradict each other or the
        network.
    """
    config = checkpoint.config
    if config.cut_level(cut) == WAVEFORM:
        raise UserError(
            "--cut waveform: there is nothing to extract, training reads the audio itself; "
            "leave this stage out, or choose frontend, a layer's number or last"
        )
    if not chunk.is_full_context and config.feat_extract_norm == "group":
        raise UserError(
            f"--chunk-size {chunk.chunk_size}: the front end of {checkpoint.source} has "
            "group norm, which averages over the whole utterance and so cannot stream; "
            "use a network with layer norm, such as XLSR-53 or XLS-R"
        )
    path = Path(checkpoint.source).expanduser()
    info = FeatureInfo(
        xlsr=str(path.resolve()) if path.exists() else checkpoint.source,
        sha256=checkpoint.sha256,
        cut=cut,
        normalize=normalize,
        feature_dim=config.feature_dim(cut),
        chunk=chunk,
        extractor=extractor,
    )
    if extractor == "s3prl":
        _check_s3prl(info)
    return info


def make_extractor(checkpoint: XlsrCheckpoint, info: FeatureInfo, device: str) -> Extractor:
    """The extractor that ``info`` describes.

    Raises:
      UserError: s3prl is asked for and cannot be used.
    """
    if info.extractor == "s3prl":
        return S3prlExtractor(info, device)
    return XlsrExtractor(checkpoint, info, device)


class XlsrExtractor:
    """The project's own network, which can mask by chunk, up to the cut."""

    def __init__(self, checkpoint: XlsrCheckpoint, info: FeatureInfo, device: str):
        config = checkpoint.config.without_dropout()
        self.network = Wav2Vec2(config, end=info.cut, normalize=info.normalize)
        weights = {name: checkpoint.weights[name] for name in self.network.state_dict()}
        self.network.load_state_dict(weights)
        self.network.eval().to(device)
        self.device = device
        self.chunk = dataclasses.astuple(info.chunk)

    @torch.inference_mode()
    def forward(self, waves: Sequence[np.ndarray]) -> tuple[Tensor, list[int]]:
        """(N, T, D) float32 on the device, and the frames of each row."""
        lens = [len(wave) for wave in waves]
        x = torch.zeros(len(waves), max(lens))
        for row, wave in zip(x, waves):
            row[: len(wave)] = torch.from_numpy(wave)
        x_lens = torch.tensor(lens, device=self.device)
        y, y_lens = self.network(x.to(self.device), x_lens, *self.chunk)
        return y, y_lens.tolist()

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        y, lens = self.forward(waves)
        return _to_float16(y, lens)


def _to_float16(y: Tensor, lens: Sequence[int]) -> list[np.ndarray]:
    half = y.half()
    if not bool(torch.isfinite(half).all()):
        raise OverflowError(f"features up to {y.abs().max().item():g} do not fit float16")
    rows = half.cpu().numpy()
    return [row[:frames] for row, frames in zip(rows, lens)]


def _check_s3prl(info: FeatureInfo) -> None:
    """What s3prl's ``hf_wav2vec2_custom`` can do is less than the project's own network."""
    wrong = ""
    if info.cut == "frontend":
        wrong = "gives layers only, not the front end (--cut frontend)"
    elif not info.chunk.is_full_context:
        wrong = f"knows no chunks (--chunk-size {info.chunk.chunk_size})"
    elif info.normalize != "utterance":
        wrong = f"normalises each utterance by itself (--normalize {info.normalize})"
    elif not os.path.isdir(info.xlsr):
        wrong = f"needs a local folder in Hugging Face's format, which {info.xlsr} is not"
    elif not (Path(info.xlsr) / "preprocessor_config.json").is_file():
        wrong = f"needs preprocessor_config.json, which is missing in {info.xlsr}"
    elif not _read_json(Path(info.xlsr) / "preprocessor_config.json").get("do_normalize", True):
        wrong = f"would not normalise: do_normalize is off in {info.xlsr}/preprocessor_config.json"
    if wrong:
        raise UserError(f"--extractor s3prl {wrong}; use --extractor transformers")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON ({e})") from e


class S3prlExtractor:
    """Hugging Face's network as s3prl runs it, for those who compare with its features.

    s3prl gives floor((n - 1) / 320) + 1 frames and repeats the last one to get there; only
    those that the network computed are kept.
    """

    def __init__(self, info: FeatureInfo, device: str):
        try:
            from s3prl.nn import S3PRLUpstream
        except (ImportError, OSError, AttributeError) as e:
            raise UserError(
                f"--extractor s3prl: s3prl cannot be imported ({type(e).__name__}: {e}); it "
                "needs an older PyTorch: with Python 3.10, pip install s3prl==0.4.18 "
                "torch==1.13.1 torchaudio==0.13.1 transformers==4.30.2. "
                "Or use --extractor transformers, which gives the same features"
            ) from e
        self.upstream = S3PRLUpstream("hf_wav2vec2_custom", info.xlsr).eval().to(device)
        self.device = device
        self.layer = -1 if info.cut == "last" else int(info.cut)

    @torch.inference_mode()
    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        lens = torch.tensor([len(wave) for wave in waves], device=self.device)
        x = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waves], True)
        hidden, _ = self.upstream(x.to(self.device), lens)
        return _to_float16(hidden[self.layer], [num_frames(len(w)) for w in waves])
