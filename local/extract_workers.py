"""Who computes the shards of an extraction: workers of a Dask cluster, or this process."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import queue
import re
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from local.extract_progress import Progress
from local.extract_shard import Shard, extract_shard
from local.extractors import Extractor, make_extractor
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.features import INFO_FILE
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr

if TYPE_CHECKING:
    from distributed import Client, Future

POLL_SECONDS = 0.5
REPORT_SECONDS = 1.0  # between reports of a worker
RECOVER_SECONDS = 10.0
ALONE_SECONDS = 60.0  # without a worker, after which it is said
KEPT = "finished shards are kept"


@dataclasses.dataclass(frozen=True)
class Task:
    """The settings of a worker."""

    source: str  # of the checkpoint, which each worker loads by itself
    info: FeatureInfo
    folder: Path
    device: str
    max_duration: float


class InProcess:
    """This process, without Dask."""

    def __init__(self, task: Task, checkpoint: XlsrCheckpoint):
        self._task = task
        self._extractor = make_extractor(checkpoint, task.info, task.device)
        self._threads = torch.get_num_threads()

    def run(self, shards: Iterator[Shard], progress: Progress) -> None:
        """Computes shards one after the other."""
        task = self._task
        for shard in shards:
            extract_shard(shard, task.folder, self._extractor, task.max_duration, progress.add)

    def __enter__(self) -> InProcess:
        torch.set_num_threads(1)  # as in the workers
        return self

    def __exit__(self, *exc: object) -> None:
        torch.set_num_threads(self._threads)


class Workers:
    """The workers of a Dask cluster, which may come, go and be killed.

    A shard of a worker that is gone is computed again by another one.
    """

    def __init__(self, task: Task, cluster: Callable[[], contextlib.AbstractContextManager]):
        """
        Args:
          cluster: one of ``extract_cluster``, which starts when the first shard needs it.
        """
        self._task, self._cluster = task, cluster
        self._stack = contextlib.ExitStack()
        self._connected: tuple[Client, Callable[[], None]] | None = None

    def run(self, shards: Iterator[Shard], progress: Progress) -> None:
        """Computes shards, of which only as many are in memory as the workers need next.

        Raises:
          UserError: what a worker reports, or a shard that no worker survives.
        """
        if self._connected is None:
            self._connected = self._stack.enter_context(self._cluster())
        client, recover = self._connected
        with _Reports(client) as reports:
            _Run(client, recover, self._task, reports, progress).run(shards)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: Any) -> bool | None:
        return self._stack.__exit__(*exc)


class _Reports:
    """What workers report about the shards that they compute."""

    def __init__(self, client: Client):
        self.topic = f"xlsr-extraction-{uuid.uuid4().hex}"
        self._client = client
        self._seconds: dict[str, float] = {}  # by the shard's key

    def __enter__(self) -> _Reports:
        self._client.subscribe_topic(self.topic, lambda event: self._note(*event[1]))
        return self

    def __exit__(self, kind: Any, *exc: object) -> None:
        if kind is None:
            self._client.unsubscribe_topic(self.topic)

    def _note(self, key: str, seconds: float) -> None:
        if key in self._seconds:  # otherwise the shard is ready
            self._seconds[key] = seconds

    def expect(self, key: str) -> None:
        """A shard begins."""
        self._seconds[key] = 0.0

    def forget(self, key: str) -> None:
        """A shard is ready."""
        del self._seconds[key]

    def seconds(self) -> float:
        """Returns the seconds of audio that are ready of unfinished shards."""
        return sum(list(self._seconds.values()))


class _Run:
    """One pass over shards."""

    def __init__(
        self,
        client: Client,
        recover: Callable[[], None],
        task: Task,
        reports: _Reports,
        progress: Progress,
    ):
        self._client, self._recover, self._task = client, recover, task
        self._reports, self._progress = reports, progress
        self._ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._pending: dict[str, tuple[Future, Shard]] = {}
        self._had_workers = self._looked = time.monotonic()

    def run(self, shards: Iterator[Shard]) -> None:
        finished = 0.0
        while True:
            for shard in itertools.islice(shards, self._room()):
                self._submit(shard)
            if not self._pending:
                return
            with contextlib.suppress(queue.Empty):
                future = self._ready.get(timeout=POLL_SECONDS)
                shard = self._pending.pop(future.key)[1]
                self._reports.forget(future.key)
                _require(future, shard)
                finished += shard.seconds
            self._progress.set(finished + self._reports.seconds())

    def _submit(self, shard: Shard) -> None:
        key = f"{shard.split}-{uuid.uuid4().hex}"
        self._reports.expect(key)
        future = self._client.submit(
            compute_shard, self._task, packed(shard), self._reports.topic, key, key=key, pure=False
        )
        self._pending[key] = future, shard
        future.add_done_callback(self._ready.put)

    def _room(self) -> int:
        """Returns how many shards more the workers can take: one each, so that none is blamed for
        the death of a worker that computed another."""
        now = time.monotonic()
        if now - self._looked > RECOVER_SECONDS:
            self._looked = now
            self._recover()
        threads = sum(self._client.nthreads().values())
        if threads:
            self._had_workers = now
        elif now - self._had_workers > ALONE_SECONDS:
            logging.warning("there is no worker: waiting for one")
            self._had_workers = now
        return max(max(threads, 1) - len(self._pending), 0)


def _require(future: Future, shard: Shard) -> None:
    """Raises what a shard's computation ended with."""
    from distributed import KilledWorker

    error = future.exception()
    if error is None and future.status == "finished":
        return
    if isinstance(error, KilledWorker):
        raise UserError(
            f"{shard}: workers were killed again and again while they computed them, perhaps for "
            f"want of memory: try fewer --num-jobs or a smaller --max-duration; {KEPT}"
        ) from error
    if future.status in ("cancelled", "lost"):
        raise UserError(
            f"the connection to the scheduler was lost; {KEPT}: run this again"
        ) from error
    if isinstance(error, ModuleNotFoundError) or isinstance(error.__cause__, ModuleNotFoundError):
        raise UserError(
            f"a worker cannot import the recipe ({error.__cause__ or error}): start workers with "
            f"the recipe's environment and its folder in PYTHONPATH, see docs/cluster.md"
        ) from error
    raise error


def packed(shard: Shard) -> bytes:
    """Returns a shard made small: schedulers keep the latest messages in memory."""
    return zlib.compress(json.dumps([shard.split, shard.cuts]).encode("ascii"), 1)


def compute_shard(task: Task, content: bytes, topic: str, key: str) -> None:
    """Computes one shard in a worker of Dask.

    Args:
      content: the shard, from ``packed``.
      topic: of reports on it. key: what it is called there.
    """
    from distributed import get_worker

    worker = get_worker()
    if not (task.folder / INFO_FILE).is_file():
        raise UserError(
            f"a worker on {socket.gethostname()} does not see {task.folder}: features, audio and "
            "checkpoint must lie on a disk that all machines share"
        )
    # Results may depend on the number of threads, and must not depend on the number of workers.
    torch.set_num_threads(1)
    seconds, last = 0.0, time.monotonic()

    def on_batch(more: float) -> None:
        nonlocal seconds, last
        seconds += more
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            worker.log_event(topic, (key, seconds))

    with _loading:
        extractor = _extractor(task, _device(task.device, str(worker.name)))
    split, cuts = json.loads(zlib.decompress(content))
    extract_shard(Shard(split, tuple(cuts)), task.folder, extractor, task.max_duration, on_batch)


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _extractor(task: Task, device: str) -> Extractor:
    """Loads the network, once in each process."""
    checkpoint = load_xlsr(task.source)
    if checkpoint.sha256 != task.info.sha256:
        raise UserError(
            f"{task.source} on {socket.gethostname()} is another checkpoint than here: its sha256 "
            f"is {checkpoint.sha256[:16]}... and not {task.info.sha256[:16]}..."
        )
    return make_extractor(checkpoint, task.info, device)


def _device(device: str, name: str) -> str:
    """Returns the GPU of a worker: that of its number, the name being such as 3 or gpu-3."""
    if device != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: PyTorch sees no GPU on {socket.gethostname()}; use --device cpu"
        )
    number = re.search(r"(?:^|-)(\d+)$", name)  # not the port of an address
    return f"cuda:{int(number.group(1)) % torch.cuda.device_count() if number else 0}"
