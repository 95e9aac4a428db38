"""Stage 1: corpora to lhotse recordings and supervisions.

    python -m local.prepare_manifests --train-list train.txt --val-list val.txt \\
        --test-list test.txt --data-dir data

writes, in DATA/manifests, recordings_SPLIT.jsonl.gz, supervisions_SPLIT.jsonl.gz (text as in the
list), rejected_SPLIT.tsv and splits.json. A list is `path|text|speaker` in UTF-8, where blank
lines and lines that begin with `#` are skipped and the text may hold `|`, or another corpus (see
docs/corpora.md). A split may have several lists, such as one of each language,
`--train-list et=et.txt --train-list lv=lv.txt`; one manifest holds them all.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from lhotse import AudioSource, Recording, SupervisionSegment
from tqdm import tqdm

from local.importers.columns import columns_option
from local.importers.entry import Corpus, Entry
from local.importers.parts import TOLERANCE, Part, Unusable, Unwanted, channel_option, parts_of
from local.importers.probing import probe_entries
from local.importers.recognise import ImportOptions, open_corpora
from local.importers.uses import Use, Uses
from local.lists import ListFile, Place, name_splits
from local.manifests import (
    JsonlGzWriter,
    Rejected,
    check_rejected,
    manifest_path,
    rejected_path,
    write_rejected,
)
from local.utterances import read_pairs
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing, write_text
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, word
from xlsr_transducer.data.cuts import COLUMNS
from xlsr_transducer.data.splits import load_splits


@dataclasses.dataclass
class ListStatistics:
    """Counts what a list gives, for the log."""

    lines: int = 0  # accepted
    utterances: int = 0
    seconds: float = 0.0
    no_speaker: int = 0
    default_channel: int = 0
    clipped: int = 0
    sampling_rates: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    languages: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, entry: Entry, parts: Sequence[Part], is_clipped: bool, language: str) -> None:
        """Counts an accepted entry."""
        self.lines += 1
        self.utterances += len(parts)
        self.seconds += sum(p.end - p.start for p in parts) / entry.info.sampling_rate
        self.no_speaker += not entry.speaker
        self.default_channel += entry.info.num_channels > 1 and not entry.channels
        self.clipped += is_clipped
        self.sampling_rates[entry.info.sampling_rate] += len(parts)
        self.languages[language] += len(parts)

    def log(self, name: str, reasons: collections.Counter, args: argparse.Namespace) -> None:
        """Writes the summary of a list."""
        rates = ", ".join(f"{n} at {hz} Hz" for hz, n in sorted(self.sampling_rates.items()))
        logging.info(
            "%s: %d utterances, %.2f hours (%s)", name, self.utterances, self.seconds / 3600, rates
        )
        if len(self.languages) > 1:
            languages = (f"{name} {n}" for name, n in self.languages.most_common())
            logging.info("%s: languages: %s", name, ", ".join(languages))
        if self.default_channel and args.channel is None:
            logging.info(
                "%s: %d files have several channels; channel 0 is used", name, self.default_channel
            )
        if self.clipped:
            logging.warning(
                "%s: %d segments ended up to %g s after their recording: clipped",
                name, self.clipped, TOLERANCE,
            )  # fmt: skip
        if self.no_speaker:
            logging.warning("%s: %d lines have no speaker", name, self.no_speaker)
        for reason, count in reasons.most_common():
            logging.warning("%s: %d lines rejected: %s", name, count, reason)


def make_recording(entry: Entry, name: str) -> Recording:
    """Returns lhotse's recording, with all channels of the file."""
    info = entry.info
    channels = list(range(info.num_channels))
    return Recording(
        id=name,
        sources=[AudioSource(type="file", channels=channels, source=entry.audio)],
        sampling_rate=info.sampling_rate,
        num_samples=info.num_samples,
        duration=info.num_samples / info.sampling_rate,
        channel_ids=channels,
    )


def make_supervision(
    entry: Entry, part: Part, use: Use, language: str, place: Place
) -> SupervisionSegment:
    """Returns lhotse's supervision. Fields of the corpus besides the usual ones are `columns`."""
    rate = entry.info.sampling_rate
    custom = {"line": entry.line, "list": place.list, COLUMNS: dict(entry.columns)}
    return SupervisionSegment(
        id=use.utterance,
        recording_id=use.recording,
        start=part.start / rate,
        duration=(part.end - part.start) / rate,
        channel=part.channel,
        text=entry.text,
        language=language,
        speaker=entry.speaker or None,
        gender=entry.columns.get("gender"),
        custom={name: value for name, value in custom.items() if value},
    )


def prepare_split(
    split: str,
    lists: Sequence[tuple[ListFile, Corpus]],
    args: argparse.Namespace,
    uses: Uses,
) -> None:
    """Writes the manifests of one split, and its table of rejected lines in any case."""
    rejected: list[Rejected] = []
    counts: list[tuple[str, int, int]] = []  # of each list
    kinds = ("recordings", "supervisions")
    table = rejected_path(args.data_dir, split)
    with replacing(*(manifest_path(args.data_dir, kind, split) for kind in kinds)) as temporary:
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(JsonlGzWriter(path)) for path in temporary]
            for one, corpus in lists:
                source = str(one.path) if len(lists) > 1 else ""
                name = f"{split}, {source} ({one.language or args.lang})" if source else split
                if corpus.form:
                    logging.info("%s: %s, %s", name, corpus.path, corpus.form)
                place = Place(split, 0, source)
                statistics, found = _prepare_list(one.language, corpus, place, args, uses, writers)
                reasons = collections.Counter(r.reason.split(":")[0] for r in found)
                statistics.log(name, reasons, args)
                for reason, count in corpus.left_out.most_common():
                    logging.info("%s: %d lines left out: %s", name, count, reason)
                counts.append((name, len(found), statistics.lines))
                rejected += found
        write_rejected(table, rejected)
        for name, num_rejected, num_accepted in counts:
            check_rejected(name, num_rejected, num_accepted, args.max_rejected, table)
        uses.check_overlaps(split)


def _prepare_list(
    language: str,
    corpus: Corpus,
    place: Place,
    args: argparse.Namespace,
    uses: Uses,
    writers: Sequence[JsonlGzWriter],
) -> tuple[ListStatistics, list[Rejected]]:
    """Writes the usable lines of a list; returns their counts, and the others.

    Args:
      language: '' for that of the corpus, or else of --lang.
    """
    statistics, rejected = ListStatistics(), []
    entries = probe_entries(corpus.entries(), args.num_jobs)
    for entry in tqdm(entries, desc=place.list or place.split, unit=" lines", disable=None):
        here = place._replace(line=entry.line)
        try:
            if entry.problem:
                raise Unusable(entry.problem)
            parts, is_clipped = parts_of(entry, args.channel)
            for part in parts:
                _refuse_repetition(entry.audio, part, here, uses)
        except Unusable as e:
            rejected.append(Rejected(entry.line, str(e), entry.content, place.list))
            continue
        except Unwanted as e:
            corpus.left_out[str(e)] += 1
            continue
        spoken = language or entry.language or args.lang
        for part in parts:
            use = uses.add(entry, part, here, f"-c{part.channel}" * (len(parts) > 1))
            if use.is_new:
                writers[0].write(make_recording(entry, use.recording))
            writers[1].write(make_supervision(entry, part, use, spoken, here))
        statistics.add(entry, parts, is_clipped, spoken)
    return statistics, rejected


def _refuse_repetition(audio: str, part: Part, place: Place, uses: Uses) -> None:
    """Raises Unusable if this part of this audio occurs earlier in the split, UserError if in
    another."""
    first = uses.first(audio, part)
    if first is None:
        return
    if first.split == place.split:
        where = f" of {first.list}" if first.list != place.list else ""
        raise Unusable(f"duplicate path: first in line {first.line}{where}")
    raise UserError(f"{audio} is in two splits: {first} and {place}; keep it in one of them")


def present_splits(data_dir: Path, lists: Iterable[str], uses: Uses) -> dict[str, list[str]]:
    """Returns the splits of a data folder but those that are made anew; notes their ids and audio.

    Returns:
      Empty lists for a new folder.
    """
    if not (data_dir / "manifests" / "splits.json").is_file():
        return {"train": [], "val": [], "test": []}
    splits = load_splits(data_dir)
    kept = {role: [n for n in names if n not in lists] for role, names in splits.items()}
    for split in (name for names in kept.values() for name in names):
        for recording, supervision in read_pairs(data_dir, split):
            custom = supervision.get("custom") or {}
            place = Place(split, custom.get("line", 0), custom.get("list", ""))
            start, length = (
                round(supervision[key] * recording["sampling_rate"])
                for key in ("start", "duration")
            )
            part = Part(start, start + length, supervision["channel"])
            audio = recording["sources"][0]["source"]
            uses.note(audio, part, place, supervision["id"], recording["id"])
    return kept


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in ("train", "val", "test"):
        parser.add_argument(
            f"--{split}-list",
            type=ListFile.parse,
            action="append",
            default=[],
            metavar="[LANG=]CORPUS",
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
        "--channel",
        type=channel_option,
        metavar="N|each",
        help="of recordings with several (default: what the corpus names, or else 0)",
    )
    parser.add_argument(
        "--columns",
        type=columns_option,
        default={},
        metavar="ROLE=NAME,...",
        help="of a data set of Hugging Face, where they cannot be guessed",
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
    named = name_splits(args.train_list, args.val_list, args.test_list)
    store = args.data_dir / "audio"
    options = ImportOptions(args.audio_root, args.channel, args.columns, store)
    corpora = open_corpora(named, options)
    uses = Uses()
    splits = {"train": ["train"], "val": ["val"], "test": []}
    if not args.train_list:
        splits = present_splits(args.data_dir, named, uses)
    for split, lists in named.items():
        prepare_split(split, list(zip(lists, corpora[split])), args, uses)
    splits["test"] += [name for name in named if name not in ("train", "val")]
    write_text(args.data_dir / "manifests" / "splits.json", json.dumps(splits, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
