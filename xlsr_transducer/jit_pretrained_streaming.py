"""Recognises audio files chunk by chunk, as a live server does, with jit_script_chunk_*.pt:
``python -m xlsr_transducer.jit_pretrained_streaming --nn-model-filename FILE a.wav b.flac``.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition.exported import run
from xlsr_transducer.recognition.script_models import (
    StreamingScriptOptions,
    load_streaming_script,
)


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, StreamingScriptOptions, load_streaming_script)


if __name__ == "__main__":
    run_command(main)
