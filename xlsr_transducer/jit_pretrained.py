"""Recognises audio files with cpu_jit.pt:
``python -m xlsr_transducer.jit_pretrained --nn-model-filename exp/cpu_jit.pt a.wav b.flac``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.options import option
from xlsr_transducer.recognition.exported import (
    Recogniser,
    load_script,
    run,
    tokens_beside,
    whole_script,
)


@dataclasses.dataclass(frozen=True)
class ScriptOptions:
    """Model."""

    nn_model_filename: Path = option(Path("exp/cpu_jit.pt"), "what export --jit 1 wrote")
    tokens: Path | None = option(None, "tokens.txt (default: the one beside the model)")


def load_transducer(path: Path) -> torch.jit.ScriptModule:
    """A TorchScript file with an encoder, a decoder and a joiner.

    Raises:
      UserError: it is none.
    """
    model = load_script(path)
    missing = [name for name in ("encoder", "decoder", "joiner") if not hasattr(model, name)]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; give a file that export --jit 1 wrote")
    return model


def load(options: ScriptOptions) -> Recogniser:
    """The model in a cpu_jit.pt.

    Raises:
      UserError: the file's model streams.
    """
    model = load_transducer(options.nn_model_filename)
    if hasattr(model.encoder, "get_init_states"):
        raise UserError(f"{options.nn_model_filename}: streams; use jit_pretrained_streaming")
    tokens = tokens_beside(options.nn_model_filename, options.tokens, model.decoder)

    def encode(wave: Tensor) -> Iterator[Tensor]:
        out, lens = model.encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
        yield out[0, : lens[0]]

    whole = whole_script(options.nn_model_filename, model.encoder)
    return Recogniser(encode, model.decoder, model.joiner, tokens, model.ctc_output, whole)


def main(argv: Sequence[str] | None = None) -> int:
    return run(argv, __doc__.splitlines()[0], ScriptOptions, load)


if __name__ == "__main__":
    run_command(main)
