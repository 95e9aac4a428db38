"""Reads the headers of audio files by several threads, in the order of the utterances."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from local.importers.entry import Entry
from local.probe_audio import AudioInfo, AudioProblem, probe_audio

_ENTRIES_PER_TASK = 64
_TASKS_PER_WORKER = 4  # bounds what is read ahead, and with it memory
_REMEMBERED = 1 << 16  # recordings that hold several utterances


class Prober:
    """Probes files, each recording of several utterances once, as far as memory allows."""

    def __init__(self) -> None:
        self._found: collections.OrderedDict[str, Future] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, entry: Entry) -> Entry:
        """Returns the entry with what its file holds, or why it cannot be used."""
        if entry.problem:
            return entry
        try:
            shared = entry.shares_recording
            info = self._remembered(entry.audio) if shared else probe_audio(entry.audio)
        except AudioProblem as e:
            return dataclasses.replace(entry, problem=str(e))
        return dataclasses.replace(entry, info=info)

    def _remembered(self, audio: str) -> AudioInfo:
        with self._lock:
            future = self._found.get(audio)
            is_first = future is None
            if is_first:
                future = self._found[audio] = Future()
                if len(self._found) > _REMEMBERED:
                    self._found.popitem(last=False)
            else:
                self._found.move_to_end(audio)
        if is_first:
            try:
                future.set_result(probe_audio(audio))
            except BaseException as e:  # the others that wait get it too
                future.set_exception(e)
        return future.result()


def probe_block(block: Iterable[Entry], prober: Prober) -> list[Entry]:
    """Reads the headers of the audio files of some utterances."""
    return [prober(entry) for entry in block]


def probe_entries(entries: Iterable[Entry], num_jobs: int) -> Iterator[Entry]:
    """Yields the entries in their order, headers read by ``num_jobs`` threads at once."""
    entries, prober = iter(entries), Prober()
    pending: collections.deque[Future] = collections.deque()
    with ThreadPoolExecutor(num_jobs) as pool:
        while True:
            while len(pending) < num_jobs * _TASKS_PER_WORKER:
                block = list(itertools.islice(entries, _ENTRIES_PER_TASK))
                if not block:
                    break
                pending.append(pool.submit(probe_block, block, prober))
            if not pending:
                return
            yield from pending.popleft().result()
