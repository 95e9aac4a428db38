"""Files that may be copies of each other, found without decoding: by length and some bytes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from local.checks.utterances import Utterances
from local.manifests import manifest_path, read_jsonl_gz

_THREADS = 16  # a network disk answers late, but many at once
_PER_BATCH = 4096  # utterances: bounds what is in memory
_PEEK = 4096  # bytes


def numbered_cuts(data_dir: Path, u: Utterances, wanted: np.ndarray) -> Iterator[tuple[int, dict]]:
    """Yields row and cut of the wanted rows. The manifests have no faults.

    Args:
      wanted: (N,) bool.
    """
    paths = [manifest_path(data_dir, "cuts", split) for split in u.splits]
    for row, cut in enumerate(itertools.chain.from_iterable(map(read_jsonl_gz, paths))):
        if wanted[row]:
            yield row, cut


def likely_copies(data_dir: Path, u: Utterances) -> np.ndarray:
    """Returns which rows have the times of another row, in a file of the same size with the same
    4 kB in its middle, as (N,) bool."""
    cuts = numbered_cuts(data_dir, u, _shared(u.seconds))
    rows, digests = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in iter(lambda: list(itertools.islice(cuts, _PER_BATCH)), []):
            rows.append(np.array([row for row, _ in batch]))
            digests.append(np.fromiter(pool.map(_peek, (cut for _, cut in batch)), np.uint64))
    found, every = np.concatenate(digests), np.concatenate(rows)
    copies = np.zeros(len(u), dtype=bool)
    copies[every[_shared(found) & (found > 0)]] = True
    return copies


def _shared(values: np.ndarray) -> np.ndarray:
    """Returns which values occur more than once, as (n,) bool."""
    _, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[numbers] > 1


def _peek(cut: dict) -> int:
    """Returns 64 bits of a part's times and of its files; 0 if they cannot be read."""
    try:
        parts = [_peek_file(s["source"], s["type"]) for s in cut["recording"]["sources"]]
    except (OSError, ValueError):
        return 0
    times = repr((cut["start"], cut["duration"], len(parts))).encode()
    return int.from_bytes(hashlib.blake2b(times + b"".join(parts), digest_size=8).digest(), "big")


@functools.lru_cache(maxsize=1024)  # a recording may hold many utterances
def _peek_file(path: str, kind: str) -> bytes:
    """Returns the size of a file and bytes of its middle."""
    offset = 0
    if kind == "shar":
        path, start, length = path.rsplit(":", 2)
        offset, size = int(start), int(length)
    with open(path, "rb") as f:
        if kind != "shar":
            size = os.fstat(f.fileno()).st_size
        f.seek(offset + size // 2)
        return str(size).encode() + f.read(min(_PEEK, size - size // 2))
