"""What an extraction costs beside the computing: planning, sending, looking up, merging.

``benchmarks.extract`` has the options. Here are the utterances that exist nowhere, and the workers
that compute nothing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from local import extract_workers
from local.audio_identity import settings_digest
from local.extract_cluster import Connected, local_cluster, prepare_dask
from local.extract_progress import Progress
from local.extract_records import Record, Stored, record_path
from local.extract_shard import Shard, plan_shards, shard_seconds
from local.extract_split import Split, merge_split
from local.extract_workers import Task, Workers
from local.manifests import JsonlGzWriter, manifest_path

WIDTH = 512  # of frontend features
SECONDS = 5.4  # of an utterance


def cuts(count: int, folder: Path) -> Iterator[dict]:
    """Utterances as stage 2 leaves them."""
    for number in range(count):
        name = f"utterance-{number:09d}"
        source = {"type": "file", "channels": [0], "source": f"{folder}/{name}.flac"}
        samples = round(SECONDS * 16000)
        supervision = {"id": name, "recording_id": name, "start": 0.0, "duration": SECONDS}
        supervision.update(channel=0, text="the text of it, of a usual length for it", speaker="s")
        yield {
            "id": name,
            "start": 0.0,
            "duration": SECONDS,
            "channel": 0,
            "supervisions": [{**supervision, "language": "et"}],
            "recording": {
                "id": name,
                "sources": [source],
                "sampling_rate": 16000,
                "num_samples": samples,
                "duration": SECONDS,
                "channel_ids": [0],
            },
            "type": "MonoCut",
        }


def no_op(task: Task, content: bytes, topic: str, key: str) -> None:
    """In the place of the computation of a shard."""


def memory() -> float:
    """The most memory that this process has used, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def ready_cluster(count: int) -> Connected:
    """A local cluster of which all workers are there."""
    with local_cluster(count) as (client, recover):
        client.wait_for_workers(count)
        yield client, recover


def simulate(count: int, folder: Path) -> str:
    """Plans the shards of ``count`` utterances and sends them to two workers."""
    prepare_dask()
    extract_workers.compute_shard = no_op
    task = Task("", None, folder, "cpu", 30.0)  # type: ignore[arg-type]
    planned = most = shards = 0

    def counted() -> Iterator[Shard]:
        nonlocal planned
        for shard in plan_shards("train", cuts(count, folder), shard_seconds(total, WIDTH)):
            planned += 1
            yield shard

    class Counting(Progress):
        """Counts the shards that are planned and not ready."""

        def set(self, done: float) -> None:
            nonlocal most, shards
            shards += done > self.done
            most = max(most, planned - shards)
            super().set(done)

    total = count * SECONDS
    cluster = functools.partial(ready_cluster, 2)
    with Workers(task, cluster) as workers, Counting("train", total) as progress:
        workers.run(iter(()), progress)  # the cluster starts
        before, start, own = memory(), time.perf_counter(), time.process_time()
        workers.run(counted(), progress)
        seconds, own = time.perf_counter() - start, time.process_time() - own
    return (
        f"{count} utterances of {SECONDS} s in {planned} shards: {seconds:.1f} s, of which the "
        f"processor worked {own:.1f} s here; memory {before:.0f} -> {memory():.0f} MiB; at most "
        f"{most} shards in flight"
    )


def measure_lines(count: int, folder: Path) -> str:
    """Looks up and merges ``count`` utterances, of which nothing and then everything is stored."""
    data_dir, features = folder / "data", folder / "features"
    manifest = manifest_path(data_dir, "cuts", "train")
    manifest.parent.mkdir(parents=True)
    (manifest.parent / "splits.json").write_text(json.dumps({"train": ["train"]}))
    with JsonlGzWriter(manifest) as writer:
        for cut in cuts(count, folder):
            writer.write(cut)
    before = memory()
    clock = [time.process_time()]
    split = Split(data_dir, features, "train")
    clock.append(time.process_time())
    split.find_stored()
    clock.append(time.process_time())
    for shard in split.missing_shards(WIDTH):
        _store(shard, features)
    clock.append(time.process_time())
    split.find_stored()
    clock.append(time.process_time())
    merge_split(split)
    clock.append(time.process_time())
    names = ("digest of the text", "look-up, nothing there", "", "look-up, all there", "merge")
    parts = [
        f"{name} {1e6 * (b - a) / count:.0f}"
        for name, a, b in zip(names, clock, clock[1:])
        if name
    ]
    return (
        f"{count} lines, microseconds of the processor for each: {', '.join(parts)}; memory "
        f"{before:.0f} -> {memory():.0f} MiB"
    )


def _store(shard: Shard, features: Path) -> None:
    """Writes a record as if the shard were computed."""
    tar = f"{shard.split}/features.{shard.name}.tar"
    (features / shard.split).mkdir(parents=True, exist_ok=True)
    (features / tar).write_bytes(b"")
    frames = round(SECONDS * 50) - 1
    rows = tuple(
        Stored(cut["id"], settings_digest(cut), "", "0" * 32, f"{i}:{i}", (frames, WIDTH))
        for i, cut in enumerate(shard.cuts)
    )
    Record(tar, 0, rows).write(record_path(features, shard.split, shard.name))
