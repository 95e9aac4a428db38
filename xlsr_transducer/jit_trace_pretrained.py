"""Recognises audio files with the three files that export --jit-trace 1 wrote:
``python -m xlsr_transducer.jit_trace_pretrained --encoder-model-filename FILE ... a.wav``.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition.exported import run
from xlsr_transducer.recognition.script_models import TraceOptions, load_traced


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, TraceOptions, load_traced)


if __name__ == "__main__":
    run_command(main)
