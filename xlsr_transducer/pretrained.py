"""Recognises audio files with pretrained.pt, or any checkpoint:
``python -m xlsr_transducer.pretrained --checkpoint exp/pretrained.pt a.wav b.flac``.

A streaming model sees what it would see live. ``export`` compares every format with this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.options import option
from xlsr_transducer.recognition.exported import run
from xlsr_transducer.recognition.torch_models import load_checkpoint


@dataclasses.dataclass(frozen=True)
class PretrainedOptions:
    """Model."""

    checkpoint: Path = option(Path("exp/pretrained.pt"), "what export wrote")


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__.splitlines()[0]
    return run(argv, about, PretrainedOptions, lambda o: load_checkpoint(o.checkpoint))


if __name__ == "__main__":
    run_command(main)
