"""Recognises audio files with cpu_jit.pt:
``python -m xlsr_transducer.jit_pretrained --nn-model-filename exp/cpu_jit.pt a.wav b.flac``.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition.exported import run
from xlsr_transducer.recognition.script_models import ScriptOptions, load_scripted


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, ScriptOptions, load_scripted)


if __name__ == "__main__":
    run_command(main)
