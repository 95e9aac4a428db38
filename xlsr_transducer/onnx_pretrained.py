"""Recognises audio files with exported ONNX files, in onnxruntime:
``python -m xlsr_transducer.onnx_pretrained --encoder-model-filename FILE a.wav b.flac``.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition.exported import run
from xlsr_transducer.recognition.onnx_models import OnnxOptions, load_offline


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, OnnxOptions, lambda o: load_offline(o.files(), o.tokens_file()))


if __name__ == "__main__":
    run_command(main)
