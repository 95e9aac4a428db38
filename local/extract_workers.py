"""Who computes the shards of an extraction: worker processes, or this one."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from local.extract_progress import Progress
from local.extract_shard import Shard, extract_shard
from local.extractors import make_extractor
from xlsr_transducer.core.errors import UserError, interrupts_held_back
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr

POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker has to know before its first shard."""

    source: str  # of the checkpoint, which each worker loads by itself
    info: FeatureInfo
    folder: Path
    device: str
    max_duration: float


ShardFunction = Callable[[Shard, Callable[[float], None]], None]


def shard_function(task: Task, checkpoint: XlsrCheckpoint) -> ShardFunction:
    """Makes the network and returns what computes one shard with it."""
    extractor = make_extractor(checkpoint, task.info, task.device)

    def compute(shard: Shard, on_batch: Callable[[float], None]) -> None:
        extract_shard(shard, task.folder, extractor, task.max_duration, on_batch)

    return compute


_worker: dict[str, Any] = {}  # of a worker process: its shard function and the common counter


def _start_worker(task: Task, done: Any, started: Any) -> None:
    """Runs once in each worker."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with started.get_lock():
        rank = started.value
        started.value += 1
    # Results may depend on the number of threads, and must not depend on the number of jobs.
    torch.set_num_threads(1)
    if task.device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
        task = dataclasses.replace(task, device=device)
    _worker["compute"] = shard_function(task, load_xlsr(task.source))
    _worker["done"] = done


def _die_with_parent() -> None:
    """A killed parent must not leave workers that go on writing."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _compute_in_worker(shard: Shard) -> None:
    def on_batch(seconds: float) -> None:
        with _worker["done"].get_lock():
            _worker["done"].value += seconds

    _worker["compute"](shard, on_batch)


class Workers:
    """Processes that compute shards; started when the first shard needs them."""

    def __init__(self, task: Task, num_jobs: int):
        context = multiprocessing.get_context("spawn")  # a fork would break CUDA and OpenMP
        self.num_jobs = num_jobs
        self.done = context.Value("d", 0.0)
        started = context.Value("i", 0)
        self._others = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(
            num_jobs, context, _start_worker, (task, self.done, started)
        )

    def run(self, shards: Iterator[Shard], progress: Progress) -> None:
        """Computes shards, of which it holds only a few in memory at a time."""
        start = self.done.value
        pending: set[Future] = set()
        while True:
            for shard in itertools.islice(shards, 2 * self.num_jobs - len(pending)):
                with interrupts_held_back():  # for workers that it starts; this process ends them
                    pending.add(self._pool.submit(_compute_in_worker, shard))
            if not pending:
                return
            finished, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            progress.set(self.done.value - start)
            for future in finished:
                future.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        self._pool.shutdown(cancel_futures=True)
        if kind is BrokenProcessPool:
            raise UserError(
                "a worker was killed, perhaps for want of memory: try fewer --num-jobs or a "
                "smaller --max-duration; finished shards are kept"
            ) from error


class InProcess:
    """The same without workers."""

    def __init__(self, task: Task, checkpoint: XlsrCheckpoint):
        self._compute = shard_function(task, checkpoint)
        self._threads = torch.get_num_threads()

    def run(self, shards: Iterator[Shard], progress: Progress) -> None:
        """Computes shards one after the other."""
        for shard in shards:
            self._compute(shard, progress.add)

    def __enter__(self) -> InProcess:
        torch.set_num_threads(1)  # as in the workers
        return self

    def __exit__(self, *exc: object) -> None:
        torch.set_num_threads(self._threads)
