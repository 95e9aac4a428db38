"""The parts of an export format, and the list of formats.

A format is a module of this room with ``write(job, folder)``, which writes files into an empty
folder and returns an ``Artifact`` for each set of files that only work together. An artifact
names the function that runs those files again: ``parity.py`` calls it in a fresh process and
compares what it gives with the checkpoint.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import option
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.exported import Output


@dataclasses.dataclass(frozen=True)
class FormatOptions:
    """Formats."""

    pretrained: bool = option(True, "write pretrained.pt, a checkpoint without what trains")
    jit: bool = option(False, "write cpu_jit.pt, and jit_script_chunk_*.pt of a streaming model")
    jit_trace: bool = option(False, "write encoder_, decoder_ and joiner_jit_trace.pt")
    wav2vec2_ctc: bool = option(
        False,
        "write wav2vec2_ctc.pt, which stock sherpa serves; a transducer's has the search inside",
    )
    hf: Path | None = option(
        None,
        "write into this folder what Hugging Face's classes load: a CTC model of letters or a "
        "classifier; of a transducer its XLSR",
    )
    onnx: bool = option(
        False, "write encoder, decoder and joiner, or a CTC model, as ONNX files, and model.onnx"
    )
    fp16: bool = option(False, "with --onnx 1: further ONNX files with float16 weights")
    int8: bool = option(False, "with --onnx 1: further ONNX files with int8 weights")
    data_dir: Path = option(Path("data"), "its validation set shows what int8 changes")

    def __post_init__(self) -> None:
        if not any(getattr(self, name) for name in FORMATS):
            raise UserError("--pretrained 0: nothing is left to export; give --jit 1, for example")
        for name in ("fp16", "int8"):
            if getattr(self, name) and not self.onnx:
                raise UserError(f"--{name} 1 needs --onnx 1: it is a kind of ONNX file")


# The option that asks for a format, and the module that writes it.
FORMATS = {
    "pretrained": "xlsr_transducer.exporting.pretrained",
    "jit": "xlsr_transducer.exporting.torchscript",
    "jit_trace": "xlsr_transducer.exporting.traced",
    "wav2vec2_ctc": "xlsr_transducer.exporting.wav2vec2_ctc",
    "onnx": "xlsr_transducer.exporting.onnx_format",
    "hf": "xlsr_transducer.exporting.hugging_face",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """The model to export."""

    loaded: LoadedModel  # float32 on the CPU, in evaluation mode, with PyTorch's own layers
    chunk: ChunkSettings  # what each frame sees; full context for a full-context model
    name: str  # of the weights, for file names: epoch-30-avg-9
    exp_dir: Path
    options: FormatOptions


# Gives the outputs for utterances, (n,) samples each, one by one; the files as absolute paths.
Runner = Callable[[Sequence[Path], Sequence[Tensor]], list[Output]]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Files that only work together: put in place together if they pass, else deleted."""

    files: tuple[str, ...]  # names in the folder
    run: Runner  # a module's function, called in a fresh process
    chunk: ChunkSettings  # what the checkpoint is to see when it is compared
    is_streaming: bool = False  # compare with the checkpoint's chunk by chunk computation
    tolerance: float = 0.0  # largest difference of the encoder output; 0: equal to the last bit
    same_text: bool = True  # tokens and their frames must be equal
    is_projected: bool = False  # its encoder output is ``projection_of(model)``'s
    # What gives the outputs to compare with, where it is not the whole checkpoint.
    expected: Callable[[Sequence[Tensor]], list[Output]] | None = None
    home: Path | None = None  # where the files belong, if not in the folder of the export


HUGGING_FACE_CLASSIFIER = "xlsr_transducer.exporting.hugging_face_classifier"


def chosen_formats(
    options: FormatOptions, is_classifier: bool = False
) -> list[Callable[[Job, Path], list[Artifact]]]:
    """Returns the ``write`` functions of the formats asked for."""
    formats = {**FORMATS, **({"hf": HUGGING_FACE_CLASSIFIER} if is_classifier else {})}
    modules = [module for name, module in formats.items() if getattr(options, name)]
    return [importlib.import_module(module).write for module in modules]
