"""Recognises audio files chunk by chunk, as a live server does, with exported ONNX files:
``python -m xlsr_transducer.onnx_pretrained_streaming --encoder-model-filename FILE a.wav``.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition.exported import run
from xlsr_transducer.recognition.onnx_models import OnnxOptions, load_streaming


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, OnnxOptions, lambda o: load_streaming(o.files(), o.tokens_file()))


if __name__ == "__main__":
    run_command(main)
