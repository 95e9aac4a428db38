"""Recognises audio files with exported ONNX files, in onnxruntime:
``python -m xlsr_transducer.onnx_pretrained --encoder-model-filename FILE a.wav b.flac``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition.exported import Recogniser, run
from xlsr_transducer.recognition.onnx_models import OnnxOptions, load_onnx


def load(files: Sequence[Path], tokens: Path | None = None) -> Recogniser:
    """Encoder, decoder and joiner for whole utterances."""
    model = load_onnx(files, tokens, is_streaming=False)

    def encode(wave: Tensor) -> Iterator[Tensor]:
        out, lens = model.encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
        yield out[0, : lens[0]]

    whole = model.encoder.whole
    return Recogniser(encode, model.decoder, model.joiner, model.tokens, whole=whole)


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, OnnxOptions, lambda o: load(o.files(), o.tokens_file()))


if __name__ == "__main__":
    run_command(main)
