"""Stage 4: checks the manifests and stored features, and describes the corpus.

    python -m local.validate_manifests --data-dir data [--lang-dir data/lang_bpe_2500]

writes DATA/statistics.txt (a table) and DATA/statistics.png (histograms). Fails if anything is
wrong, after naming the first cases of each kind.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from local.corpus_statistics import SplitStatistics, plot_histograms, tables
from local.manifests import manifest_path, read_jsonl_gz, split_names
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.geometry import num_frames
from xlsr_transducer.core.options import Parser
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.features import INFO_FILE, cuts_path
from xlsr_transducer.data.labels import Units, load_units
from xlsr_transducer.data.shar import FEATURES_TYPE
from xlsr_transducer.data.sources import stale_features, stale_text
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.data.tokenizer import language_first
from xlsr_transducer.model.feature_info import FeatureInfo

_SHOWN_PER_KIND = 5
_TOLERANCE = 1e-3  # seconds: durations are rounded to samples here and there
_ITEM_SIZE = 2  # bytes of a float16


class Problems:
    """Counts what is wrong by kind, and logs the first cases of each."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, kind: str, where: str) -> None:
        """``where``: file and cut."""
        self.counts[kind] += 1
        if self.counts[kind] <= _SHOWN_PER_KIND:
            logging.error("%s: %s", where, kind)

    def add_stale(self, reason: str) -> None:
        """``reason``: which file was made from other data, and the command that makes it again."""
        self.counts["files that were not made from the manifests as they are now"] += 1
        logging.error("%s", reason)

    def raise_if_any(self) -> None:
        """Raises UserError with the number of cases of each kind."""
        if self.counts:
            kinds = "; ".join(f"{kind} ({n})" for kind, n in self.counts.most_common())
            raise UserError(f"the manifests are not in order: {kinds}")


def cut_problems(cut: dict) -> Iterator[str]:
    """Yields the faults of a cut, seen alone. ``cut``: a lhotse cut's dictionary."""
    if cut.get("type") != "MonoCut":
        yield f"it is a {cut.get('type')}, not a MonoCut"
        return
    for part in ("recording", "supervisions", "duration"):
        if cut.get(part) is None:
            yield f"there is no {part}"
            return
    duration = cut["duration"]
    if not (math.isfinite(duration) and duration > 0):
        yield "the duration is not a positive number"
        return
    recording = cut["recording"]
    if cut["start"] < 0 or cut["start"] + duration > recording["duration"] + _TOLERANCE:
        yield "the cut reaches beyond its recording"
    if len(cut["supervisions"]) != 1:
        yield "there is not exactly one supervision"
        return
    [supervision] = cut["supervisions"]
    if not (supervision["text"] or "").strip():
        yield "the text is empty"
    end = supervision["start"] + supervision["duration"]
    if not (supervision["start"] >= -_TOLERANCE and end <= duration + _TOLERANCE):
        yield "the supervision reaches beyond the recording"
    if supervision["recording_id"] != recording["id"]:
        yield "the supervision belongs to another recording"


def feature_problems(cut: dict, info: FeatureInfo, folder: Path) -> Iterator[str]:
    """Yields the faults of a cut's features."""
    features = cut.get("features")
    if features is None:
        yield "there are no features"
        return
    if features["num_frames"] != num_frames(cut["recording"]["num_samples"]):
        yield "the number of frames is not floor((samples - 400) / 320) + 1"
    if features["num_features"] != info.feature_dim:
        yield "the feature dimension differs from features.json"
    if features["storage_type"] == "numpy_files":
        path = folder / features["storage_path"] / features["storage_key"]
        size = path.stat().st_size if path.is_file() else 0
        if size < features["num_frames"] * features["num_features"] * _ITEM_SIZE:
            yield "the array is missing or too short"
    elif features["storage_type"] == FEATURES_TYPE:
        path = folder / features["storage_path"]
        size = path.stat().st_size if path.is_file() else 0
        if size < sum(map(int, features["storage_key"].split(":"))):  # where it begins, and bytes
            yield "the tar file of the array is missing or too short"


def _source(cut: dict) -> bytes:
    """A short replacement of the audio files of a cut."""
    sources = [source["source"] for source in cut["recording"]["sources"]]
    return hashlib.blake2b("\0".join(map(os.fspath, sources)).encode(), digest_size=16).digest()


class Uniqueness:
    """Finds ids and audio that occur twice, within a split or in two."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str | bytes], str] = {}

    def problems(self, cut: dict, split: str) -> Iterator[str]:
        """Yields what this cut shares with an earlier one."""
        for what, key in (("id", cut["id"]), ("audio", _source(cut))):
            first = self._seen.setdefault((what, key), "")
            if first:
                yield f"the same {what} occurs " + ("twice" if first == split else f"in {first}")
            self._seen[what, key] = first or split


def check_cuts(
    data_dir: Path, splits: Sequence[str], tokenizer: Units | None, problems: Problems
) -> list[SplitStatistics]:
    """Checks the cuts of all splits and gathers their statistics."""
    uniqueness = Uniqueness()
    gathered = []
    for split in splits:
        path = manifest_path(data_dir, "cuts", split)
        statistics = SplitStatistics(split)
        for cut in read_jsonl_gz(path):
            found = [*cut_problems(cut)] or [*uniqueness.problems(cut, split)]
            for kind in found:
                problems.add(kind, f"{path}: {cut['id']}")
            if not found:
                statistics.add(cut, tokenizer)
        gathered.append(statistics)
    return gathered


def check_features(data_dir: Path, splits: Sequence[str], problems: Problems) -> None:
    """Checks every complete set of stored features against the cuts."""
    for info_path in sorted((data_dir / "features").glob(f"*/{INFO_FILE}")):
        folder = info_path.parent
        info = FeatureInfo.load(folder)
        for split in splits:
            path = cuts_path(folder, split)
            if not path.is_file():
                logging.warning("%s: no features of %s", folder, split)
                continue
            reason = stale_features(folder, data_dir, split)
            if reason:
                problems.add_stale(reason)
                continue
            count = 0
            for cut in read_jsonl_gz(path):
                count += 1
                for kind in [*cut_problems(cut), *feature_problems(cut, info, folder)]:
                    problems.add(kind, f"{path}: {cut['id']}")
            logging.info("%s: features of %d utterances", path, count)


def check_left_out(data_dir: Path, splits: Sequence[str], tokenizer: Units) -> None:
    """Counts what a training would leave out, and names all of it in tables."""
    folders = [path.parent for path in sorted((data_dir / "features").glob(f"*/{INFO_FILE}"))]
    for folder in folders or [None]:
        # A training with the tokens of languages needs a frame for them too.
        data = DataModule(DataOptions(data_dir=data_dir), folder, language_first(tokenizer))
        for split in splits:
            if folder is None or cuts_path(folder, split).is_file():
                path = data_dir / f"left_out_{split}_{folder.name if folder else 'waveform'}.tsv"
                summary = data.summary([split])
                summary.write_left_out(path)
                count = sum(map(len, summary.left_out.values()))
                logging.info(
                    "%s: a training from %s uses %d utterances and leaves out %d, named in %s",
                    split, folder or "the waveform", summary.utterances, count, path,
                )  # fmt: skip


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--lang-dir", type=Path, help="counts tokens with this BPE model")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    splits = split_names(args.data_dir)
    tokenizer = load_units(args.lang_dir) if args.lang_dir else None
    problems = Problems()
    statistics = check_cuts(args.data_dir, splits, tokenizer, problems)
    check_features(args.data_dir, splits, problems)
    for lang_dir in sorted(args.data_dir.glob("lang_*")):
        for reason in stale_text(lang_dir, args.data_dir):
            problems.add_stale(reason)
    if tokenizer is not None and not problems.counts:
        check_left_out(args.data_dir, load_splits(args.data_dir)["train"], tokenizer)
    text = tables(statistics)
    outputs = [args.data_dir / "statistics.txt", args.data_dir / "statistics.png"]
    with replacing(*outputs) as (text_path, image_path):
        text_path.write_text(text, encoding="utf-8")
        plot_histograms(statistics, image_path)
    print(text, end="")
    for split in statistics:
        if split.crowded:
            logging.warning(
                "%s: %d utterances have more tokens than 40 ms frames, such as %s: text and "
                "audio may not belong together", split.name, len(split.crowded), split.crowded[0],
            )  # fmt: skip
    problems.raise_if_any()


if __name__ == "__main__":
    run_command(main)
