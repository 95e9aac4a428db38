"""``cpu_jit.pt``, and ``jit_script_chunk_C_left_L.pt`` of a model that streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.scripted import (
    OfflineEncoder,
    StreamingEncoderModel,
    save,
    script_model,
)
from xlsr_transducer.recognition.exported import Output, recognise
from xlsr_transducer.recognition.script_models import (
    ScriptOptions,
    load_scripted,
    load_streaming_script,
)
from xlsr_transducer.search import SearchOptions

OFFLINE = "cpu_jit.pt"


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``."""
    model, tokens = job.loaded.model, job.loaded.tokenizer.tokens
    offline = script_model(OfflineEncoder(model.encoder, job.chunk), model)
    save(offline, folder / OFFLINE, tokens)
    artifacts = [Artifact((OFFLINE,), run_offline, job.chunk)]
    if not job.chunk.is_full_context:
        chunk = job.chunk
        name = f"jit_script_chunk_{chunk.chunk_size}_left_{chunk.left_context_chunks}.pt"
        streaming = script_model(StreamingEncoderModel(model.encoder), model)
        save(streaming, folder / name, tokens)
        artifacts.append(Artifact((name,), run_streaming, chunk, is_streaming=True))
    return artifacts


def run_offline(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs ``cpu_jit.pt``."""
    return list(recognise(load_scripted(ScriptOptions(files[0])), waves, SearchOptions()))


def run_streaming(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs ``jit_script_chunk_*.pt``."""
    return list(recognise(load_streaming_script(ScriptOptions(files[0])), waves, SearchOptions()))
