"""Stage 1: lists of `path|text|speaker` to lhotse recordings and supervisions.

    python -m local.prepare_manifests --train-list train.txt --val-list val.txt \\
        --test-list test.txt --data-dir data

writes, in DATA/manifests, recordings_SPLIT.jsonl.gz, supervisions_SPLIT.jsonl.gz (text as in the
list), rejected_SPLIT.tsv and splits.json. Lists are UTF-8; blank lines and lines that begin
with `#` are skipped; the text may hold `|`. A split may have several lists, such as one of each
language, `--train-list et=et.txt --train-list lv=lv.txt`; one manifest holds them all.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lhotse import AudioSource, Recording, SupervisionSegment
from tqdm import tqdm

from local.lists import ListFile, Place, name_splits, read_list
from local.manifests import (
    JsonlGzWriter,
    Rejected,
    check_rejected,
    manifest_path,
    read_jsonl_gz,
    rejected_path,
    write_rejected,
)
from local.probe_audio import AudioInfo, AudioProblem, probe_audio
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing, write_text
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, word
from xlsr_transducer.data.splits import load_splits

_LINES_PER_TASK = 64
_TASKS_PER_WORKER = 4  # bounds what is read ahead, and with it memory


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a list; ``problem`` is why it cannot be used, empty if it can."""

    line: int
    content: str
    path: str = ""  # as in the list
    audio: str = ""  # absolute, symbolic links resolved
    text: str = ""
    speaker: str = ""
    info: AudioInfo | None = None
    problem: str = ""


def parse_line(number: int, line: bytes, folder: Path) -> Entry:
    """Splits at the first bar for the path and at the last for the speaker."""
    try:
        content = line.decode("utf-8")
    except UnicodeDecodeError:
        return Entry(number, line.decode("utf-8", "replace"), problem="not UTF-8")
    if content.count("|") < 2:
        return Entry(number, content, problem="too few fields: path|text|speaker expected")
    path, rest = content.split("|", 1)
    text, speaker = rest.rsplit("|", 1)
    path, text, speaker = path.strip(), text.strip(), speaker.strip()
    problem = "missing file: the path is empty" if not path else "" if text else "empty text"
    audio = os.path.realpath(os.path.join(folder, path))
    return Entry(number, content, path, audio, text, speaker, problem=problem)


def probe_lines(lines: list[tuple[int, bytes]], folder: Path) -> list[Entry]:
    """Parses lines and reads the headers of their audio files."""
    entries = []
    for number, line in lines:
        entry = parse_line(number, line, folder)
        if not entry.problem:
            try:
                entry = dataclasses.replace(entry, info=probe_audio(entry.audio))
            except AudioProblem as e:
                entry = dataclasses.replace(entry, problem=str(e))
        entries.append(entry)
    return entries


def probe_list(path: Path, folder: Path, num_jobs: int) -> Iterator[Entry]:
    """The entries of a list in its order, headers read by ``num_jobs`` threads at once."""
    lines = read_list(path)
    pending: collections.deque = collections.deque()
    with ThreadPoolExecutor(num_jobs) as pool:
        while True:
            while len(pending) < num_jobs * _TASKS_PER_WORKER:
                block = list(itertools.islice(lines, _LINES_PER_TASK))
                if not block:
                    break
                pending.append(pool.submit(probe_lines, block, folder))
            if not pending:
                return
            yield from pending.popleft().result()


class UtteranceIds:
    """Names utterances after their files, and knows which audio was used where.

    Memory: some 200 bytes for each utterance.
    """

    def __init__(self) -> None:
        self._where: dict[bytes, Place] = {}
        self._used: set[str] = set()

    def first_use(self, audio: str, place: Place) -> Place | None:
        """Returns where this audio was used before; otherwise notes its use here."""
        key = hashlib.blake2b(os.fsencode(audio), digest_size=16).digest()
        if key in self._where:
            return self._where[key]
        self._where[key] = place
        return None

    def take(self, utterance: str) -> None:
        """Notes that this name is used."""
        self._used.add(utterance)

    def name(self, path: str) -> str:
        """Returns the file's name without its ending; if taken, with a hash of the path in the
        list."""
        stem = re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(path))[0])
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
        candidates = [stem, *(f"{stem}-{digest[:size]}" for size in range(8, 17))]
        utterance = next((c for c in candidates if c not in self._used), None)
        if utterance is None:  # the same path in the list, found in different folders
            numbered = (f"{stem}-{digest}-{i}" for i in itertools.count(2))
            utterance = next(c for c in numbered if c not in self._used)
        self._used.add(utterance)
        return utterance


@dataclasses.dataclass
class ListStatistics:
    """Counts the accepted lines of a list, for the log."""

    accepted: int = 0
    seconds: float = 0.0
    no_speaker: int = 0
    multi_channel: int = 0
    sampling_rates: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, entry: Entry) -> None:
        """Counts an accepted entry."""
        self.accepted += 1
        self.seconds += entry.info.num_samples / entry.info.sampling_rate
        self.no_speaker += not entry.speaker
        self.multi_channel += entry.info.num_channels > 1
        self.sampling_rates[entry.info.sampling_rate] += 1

    def log(self, name: str, reasons: collections.Counter) -> None:
        """Writes the summary of a list."""
        rates = ", ".join(f"{n} at {hz} Hz" for hz, n in sorted(self.sampling_rates.items()))
        logging.info(
            "%s: %d utterances, %.2f hours (%s)", name, self.accepted, self.seconds / 3600, rates
        )
        if self.multi_channel:
            logging.info(
                "%s: %d files have several channels; channel 0 is used", name, self.multi_channel
            )
        if self.no_speaker:
            logging.warning("%s: %d lines have no speaker", name, self.no_speaker)
        for reason, count in reasons.most_common():
            logging.warning("%s: %d lines rejected: %s", name, count, reason)


def make_items(
    entry: Entry, utterance: str, language: str, list_name: str
) -> tuple[Recording, SupervisionSegment]:
    """Returns lhotse's recording (all channels of the file) and supervision (channel 0).

    Args:
      list_name: where the split has several.
    """
    info = entry.info
    duration = info.num_samples / info.sampling_rate
    channels = list(range(info.num_channels))
    source = AudioSource(type="file", channels=channels, source=entry.audio)
    recording = Recording(
        id=utterance,
        sources=[source],
        sampling_rate=info.sampling_rate,
        num_samples=info.num_samples,
        duration=duration,
        channel_ids=channels,
    )
    supervision = SupervisionSegment(
        id=utterance,
        recording_id=utterance,
        start=0.0,
        duration=duration,
        channel=0,
        text=entry.text,
        language=language,
        speaker=entry.speaker or None,
        custom={"line": entry.line, **({"list": list_name} if list_name else {})},
    )
    return recording, supervision


def prepare_split(
    split: str, lists: Sequence[ListFile], args: argparse.Namespace, ids: UtteranceIds
) -> None:
    """Writes the manifests of one split, and its table of rejected lines in any case."""
    rejected: list[Rejected] = []
    counts: list[tuple[str, int, int]] = []  # of each list
    kinds = ("recordings", "supervisions")
    table = rejected_path(args.data_dir, split)
    with replacing(*(manifest_path(args.data_dir, kind, split) for kind in kinds)) as temporary:
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(JsonlGzWriter(path)) for path in temporary]
            for one in lists:
                source = str(one.path) if len(lists) > 1 else ""
                name = f"{split}, {source} ({one.language})" if source else split
                statistics, found = _prepare_list(one, Place(split, 0, source), args, ids, writers)
                statistics.log(name, collections.Counter(r.reason.split(":")[0] for r in found))
                counts.append((name, len(found), statistics.accepted))
                rejected += found
        write_rejected(table, rejected)
        for name, num_rejected, num_accepted in counts:
            check_rejected(name, num_rejected, num_accepted, args.max_rejected, table)


def _prepare_list(
    source: ListFile,
    place: Place,
    args: argparse.Namespace,
    ids: UtteranceIds,
    writers: Sequence[JsonlGzWriter],
) -> tuple[ListStatistics, list[Rejected]]:
    """Writes the usable lines of a list; returns their counts, and the others."""
    folder = args.audio_root or source.path.resolve().parent
    statistics, rejected = ListStatistics(), []
    entries = probe_list(source.path, folder, args.num_jobs)
    for entry in tqdm(entries, desc=place.list or place.split, unit=" lines", disable=None):
        here = place._replace(line=entry.line)
        problem = entry.problem or _repetition(entry.audio, here, ids)
        if problem:
            rejected.append(Rejected(entry.line, problem, entry.content, place.list))
            continue
        items = make_items(entry, ids.name(entry.path), source.language, place.list)
        for writer, item in zip(writers, items, strict=True):
            writer.write(item)
        statistics.add(entry)
    return statistics, rejected


def _repetition(audio: str, place: Place, ids: UtteranceIds) -> str:
    """Returns the reason if this audio occurs earlier in the split. Raises UserError if in
    another."""
    first = ids.first_use(audio, place)
    if first is None:
        return ""
    if first.split == place.split:
        where = f" of {first.list}" if first.list != place.list else ""
        return f"duplicate path: first in line {first.line}{where}"
    raise UserError(f"{audio} is in two splits: {first} and {place}; keep it in one of them")


def present_splits(
    data_dir: Path, lists: Iterable[str], ids: UtteranceIds
) -> dict[str, list[str]]:
    """Returns the splits of a data folder but those that are made anew; notes their ids and audio.

    Returns:
      Empty lists for a new folder.
    """
    if not (data_dir / "manifests" / "splits.json").is_file():
        return {"train": [], "val": [], "test": []}
    splits = load_splits(data_dir)
    kept = {role: [n for n in names if n not in lists] for role, names in splits.items()}
    for split in (name for names in kept.values() for name in names):
        for supervision, recording in zip(
            read_jsonl_gz(manifest_path(data_dir, "supervisions", split)),
            read_jsonl_gz(manifest_path(data_dir, "recordings", split)),
        ):
            custom = supervision.get("custom") or {}
            place = Place(split, custom.get("line", 0), custom.get("list", ""))
            ids.take(recording["id"])
            ids.first_use(recording["sources"][0]["source"], place)
    return kept


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in ("train", "val", "test"):
        parser.add_argument(
            f"--{split}-list",
            type=ListFile.parse,
            action="append",
            default=[],
            metavar="[LANG=]FILE",
            help="may be given several times, such as for each language",
        )
    parser.add_argument(
        "--audio-root", type=Path, help="relative paths start here (default: the list's folder)"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument(
        "--lang", type=word, default="et", help="language of lists that are given without LANG="
    )
    parser.add_argument(
        "--max-rejected",
        type=Number(float, at_least=0, at_most=100),
        default=1.0,
        help="percent of a list's lines",
    )
    parser.add_argument(
        "--num-jobs",
        type=Number(int, at_least=1, at_most=1024),
        default=8,
        help="files read at once",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    if args.audio_root is not None and not args.audio_root.is_dir():
        raise UserError(f"--audio-root {args.audio_root} is not a folder")
    named = name_splits(args.train_list, args.val_list, args.test_list, args.lang)
    ids = UtteranceIds()
    splits = {"train": ["train"], "val": ["val"], "test": []}
    if not args.train_list:
        splits = present_splits(args.data_dir, named, ids)
    for split, lists in named.items():
        prepare_split(split, lists, args, ids)
    splits["test"] += [name for name in named if name not in ("train", "val")]
    write_text(args.data_dir / "manifests" / "splits.json", json.dumps(splits, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
