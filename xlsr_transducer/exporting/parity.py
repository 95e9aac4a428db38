"""The check of every export: fresh process, the same audio, compared with the checkpoint."""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from xlsr_transducer.core.compat import load_tensors, repeatable
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.exporting.formats import Artifact, Runner
from xlsr_transducer.exporting.onnx_graphs import LogProbs, projection_of
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.exported import Output, recognise
from xlsr_transducer.recognition.torch_models import offline, streaming
from xlsr_transducer.search import SearchOptions

BUILT_IN_SECONDS = (0.02, 0.025, 0.7, 2.345, 5.0)  # the first is too short for any frame
ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The comparison of an artifact with the checkpoint."""

    artifact: Artifact
    sizes: tuple[int, ...]  # of its files, in bytes
    num_tokens: int  # that the checkpoint gives
    num_different: int  # utterances with other tokens or frames
    difference: float | None  # largest of any encoder output; None where the files give none
    problem: str = ""  # why it failed; empty: passed

    @property
    def is_passed(self) -> bool:
        return not self.problem


def built_in_audio() -> list[Tensor]:
    """Tones and noise of several lengths, the same every time; (n,) samples each."""
    waves = []
    for seed, seconds in enumerate(BUILT_IN_SECONDS):
        time = torch.arange(int(seconds * SAMPLING_RATE), dtype=torch.float64) / SAMPLING_RATE
        noise = torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
        level = 0.05 * (1.1 + torch.sin(2 * torch.pi * 1.7 * time))
        chirp = torch.sin(2 * torch.pi * (150 + 250 * time) * time)
        waves.append((level * (chirp + 0.5 * noise)).float())
    return waves


class Reference:
    """The checkpoint's own outputs, for whole and for streamed audio."""

    def __init__(self, loaded: LoadedModel, waves: Sequence[Tensor]):
        self.loaded = loaded
        self.waves = waves
        self._known: dict[tuple[ChunkSettings, bool], list[Output]] = {}

    def outputs(self, artifact: Artifact) -> list[Output]:
        """Returns one output per utterance; a streaming encoder has its chunk set already."""
        if artifact.expected is not None:
            with repeatable():
                return artifact.expected(self.waves)
        key = chunk, is_streaming = artifact.chunk, artifact.is_streaming
        if key not in self._known:
            model = streaming(self.loaded) if is_streaming else offline(self.loaded, chunk)
            with repeatable():
                self._known[key] = list(recognise(model, self.waves, SearchOptions()))
        return self._known[key]


def check(artifact: Artifact, folder: Path, reference: Reference) -> Verdict:
    """Runs an artifact in a fresh process and compares it with the checkpoint."""
    expected = reference.outputs(artifact)
    num_tokens = sum(len(e.tokens) for e in expected)
    files = [folder / name for name in artifact.files]
    sizes = tuple(f.stat().st_size for f in files)
    found, problem = run_fresh(artifact.run, files, reference.waves)
    if problem:
        return Verdict(artifact, sizes, num_tokens, len(expected), None, problem)
    pairs = list(zip(expected, found))
    different = sum((e.tokens, e.frames) != (f.tokens, f.frames) for e, f in pairs)
    difference = None
    if all(f.encoder_out is not None for f in found):
        project = projection_of(reference.loaded.model) if artifact.is_projected else None
        difference = max(_difference(e.encoder_out, f.encoder_out, project) for e, f in pairs)
    if different and artifact.same_text:
        problem = f"{different} of {len(pairs)} utterances give other tokens"
    if difference is not None and not difference <= artifact.tolerance:
        problem = f"the encoder differs by {difference:.1e}, allowed: {artifact.tolerance:.1e}"
    return Verdict(artifact, sizes, num_tokens, different, difference, problem)


def _difference(a: Tensor, b: Tensor, project: nn.Module | None) -> float:
    """Returns the largest between the checkpoint's encoder output, projected if asked for, and a
    file's; of log-probs, as a share of the largest, since they may be far from 1."""
    if a.numel() == b.numel() == 0:
        return 0.0
    a = project(a) if project else a
    if a.shape != b.shape:
        return float("inf")
    size = float(a.abs().max().clamp(min=1.0)) if isinstance(project, LogProbs) else 1.0
    return float((a.double() - b.double()).abs().max()) / size


def run_fresh(
    run: Runner, files: Sequence[Path], waves: Sequence[Tensor]
) -> tuple[list[Output], str]:
    """Returns what ``run`` gives in a process of its own, or what went wrong there."""
    with tempfile.TemporaryDirectory() as scratch:
        audio, result = Path(scratch) / "audio.pt", Path(scratch) / "result.pt"
        _save(list(waves), audio)
        command = [sys.executable, "-m", "xlsr_transducer.exporting.parity"]
        command += [f"{run.__module__}:{run.__name__}", str(audio), str(result)]
        done = subprocess.run(
            [*command, *(str(f.resolve()) for f in files)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            return [], f"it does not run in a fresh process: {lines[-1]}"
        return [Output(**values) for values in load_tensors(result)], ""


def format_table(verdicts: Sequence[Verdict]) -> str:
    """Returns a plain text table, one line per file."""
    rows = [("file", "size", "compared", "tokens", "max difference", "result")]
    for v in verdicts:
        how = "chunk by chunk" if v.artifact.is_streaming else "whole utterances"
        tokens = "" if v.artifact.expected else str(v.num_tokens)
        difference = "" if v.difference is None else f"{v.difference:.1e}"
        texts = f"{v.num_different} texts differ" if v.num_different else "passed"
        for name, size in zip(v.artifact.files, v.sizes):
            cells = (name, f"{size / 1e6:.1f} MB", how, tokens, difference)
            rows.append((*cells, v.problem or texts))
    return text_table(rows)


def main(argv: Sequence[str]) -> None:
    """The fresh process: MODULE:FUNCTION AUDIO RESULT FILES..."""
    name, audio, result, *files = argv
    module, function = name.split(":")
    run: Runner = getattr(importlib.import_module(module), function)
    with repeatable():
        outputs = run([Path(f) for f in files], load_tensors(audio))
    _save([vars(output) for output in outputs], Path(result))


def _save(content: list, path: Path) -> None:
    """PyTorch's own writer of files may end the process when the disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
