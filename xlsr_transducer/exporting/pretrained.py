"""``pretrained.pt``: weights, configuration and tokens, for every command of the project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.exporting import classifier
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.model.checkpoint import model_content
from xlsr_transducer.recognition.exported import Output, recognise
from xlsr_transducer.recognition.torch_models import load_checkpoint
from xlsr_transducer.search import SearchOptions

NAME = "pretrained.pt"


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the file into ``folder``."""
    loaded = job.loaded
    weights = loaded.model.state_dict()
    save_atomically(model_content(loaded.config, loaded.tokenizer, weights), folder / NAME)
    if loaded.model.classifier is not None:
        return [classifier.pretrained(loaded, NAME)]
    return [Artifact((NAME,), run, loaded.config.streaming.default())]


def run(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs the file as ``python -m xlsr_transducer.pretrained`` does."""
    return list(recognise(load_checkpoint(files[0]), waves, SearchOptions()))
