"""Recognises the parts of an experiment that are not done yet, in one process or several."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import signal
from collections.abc import Sequence

import torch
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.parts import Part, decode_part
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.grid import Grid
from xlsr_transducer.search import SearchOptions


@dataclasses.dataclass(frozen=True)
class Work:
    """A model by its options, and what is to be computed with it."""

    checkpoint: CheckpointOptions
    search: SearchOptions
    cpu_layers: str
    settings: tuple[ChunkSettings, ...]
    alignment: ChunkSettings  # setting of the forced alignment


@functools.lru_cache(maxsize=1)
def load_grid(work: Work) -> Grid:
    """Loads the model of a process, once."""
    return Grid(load_model(work.checkpoint), work.search, work.cpu_layers)


def decode_parts(parts: Sequence[Part], work: Work, jobs: int) -> None:
    """Computes the results that parts lack; what is done stays when it is interrupted.

    Raises:
      UserError: a process was ended from outside, for example as memory ran out.
    """
    settings = list(work.settings)
    undone = [part for part in parts if not part.is_done(settings)]
    steps = sum(len(part.missing(settings)) for part in undone)
    name = work.checkpoint.source
    with tqdm(total=steps, desc=name, unit="setting", disable=None) as progress:
        if jobs == 1 or len(undone) < 2:
            for part in undone:
                decode_part(load_grid(work), part, settings, work.alignment, progress.update)
            return
        _in_processes(undone, work, min(jobs, len(undone)), progress)


def _in_processes(parts: Sequence[Part], work: Work, jobs: int, progress: tqdm) -> None:
    threads = max(torch.get_num_threads() // jobs, 1)
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _start_process, (threads,))
    try:
        settings = list(work.settings)
        counts = {pool.submit(_decode, part, work): len(part.missing(settings)) for part in parts}
        for future in concurrent.futures.as_completed(counts):
            future.result()
            progress.update(counts[future])
    except BaseException as e:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(e, concurrent.futures.process.BrokenProcessPool):
            raise UserError(
                "a process of --jobs was ended from outside, perhaps for want of memory; what is "
                "done is kept: run the same command again with fewer --jobs"
            ) from e
        raise
    pool.shutdown()


def _start_process(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it ends it
    torch.set_num_threads(threads)


def _decode(part: Part, work: Work) -> None:
    decode_part(load_grid(work), part, list(work.settings), work.alignment)
