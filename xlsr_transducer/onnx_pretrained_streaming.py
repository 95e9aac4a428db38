"""Recognises audio files chunk by chunk, as a live server does, with exported ONNX files:
``python -m xlsr_transducer.onnx_pretrained_streaming --encoder-model-filename FILE a.wav``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition.exported import Recogniser, encode_chunks, run
from xlsr_transducer.recognition.onnx_models import OnnxOptions, load_onnx


def load(files: Sequence[Path], tokens: Path | None = None) -> Recogniser:
    """Encoder, decoder and joiner for chunks."""
    model = load_onnx(files, tokens, is_streaming=True)
    return Recogniser(
        lambda wave: encode_chunks(model.encoder, wave), model.decoder, model.joiner, model.tokens
    )


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, OnnxOptions, lambda o: load(o.files(), o.tokens_file()))


if __name__ == "__main__":
    run_command(main)
