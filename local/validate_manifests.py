"""Stage 4: checks the manifests, stored features and audio, and describes the corpus.

    python -m local.validate_manifests --data-dir data [--lang-dir data/lang_bpe_2500]

writes DATA/statistics.txt (tables), DATA/statistics.png (histograms), and DATA/flagged_SPLIT.tsv,
which names utterances that are odd. Fails if anything contradicts, after naming the first cases of
each kind.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from local.checks.audio import AudioOptions, Measured, flag_audio, measure_all
from local.checks.faults import Problems, cut_problems, feature_problems
from local.checks.flags import Flags, flag_table
from local.checks.languages import flag_languages
from local.checks.rates import flag_rates
from local.checks.repeats import (
    flag_overlaps,
    flag_shared_texts,
    repeated_rows,
    speakers_in_train,
)
from local.checks.utterances import Utterances
from local.corpus_statistics import SplitStatistics, plot_histograms, tables
from local.manifests import manifest_path, read_jsonl_gz, split_names
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.files import disk_errors_named, replacing
from xlsr_transducer.core.options import Number, Parser, add_options, from_args
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.features import INFO_FILE, cuts_path
from xlsr_transducer.data.labels import Labels, Units, load_units
from xlsr_transducer.data.sources import stale_features, stale_text
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.data.tokenizer import language_first
from xlsr_transducer.model.feature_info import FeatureInfo


def check_cuts(
    data_dir: Path, splits: Sequence[str], tokenizer: Units | None, problems: Problems
) -> tuple[list[SplitStatistics], Utterances]:
    """Checks the cuts of all splits, and gathers their statistics and what the flags need."""
    utterances = Utterances(data_dir, has_tokens=tokenizer is not None)
    gathered = []
    for split in splits:
        path = manifest_path(data_dir, "cuts", split)
        statistics = SplitStatistics(split)
        utterances.begin(split)
        for cut in read_jsonl_gz(path):
            found = [*cut_problems(cut)]
            for kind in found:
                problems.add(kind, f"{path}: {cut['id']}")
            if not found:
                count = statistics.add(cut, tokenizer)
                utterances.add(cut, count)
        gathered.append(statistics)
    utterances.close()
    for row, first, what in repeated_rows(utterances):
        split, earlier = utterances.split_of(row), utterances.split_of(first)
        where = "twice" if split == earlier else f"in {earlier}"
        path = manifest_path(data_dir, "cuts", split)
        problems.add(f"the same {what} occurs {where}", f"{path}: {utterances[row].id}")
    return gathered, utterances


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


def find_flags(
    args: argparse.Namespace, u: Utterances, is_speech: bool, has_audio: bool
) -> tuple[str, Measured | None]:
    """Writes the tables of flagged utterances.

    Args:
      is_speech: whether the texts are what is spoken, not labels.
      has_audio: whether the audio is read too.

    Returns:
      Their numbers as a table; the measures of the audio, if it was read.
    """
    flags, train = Flags(u), load_splits(args.data_dir)["train"]
    flag_overlaps(u, flags)
    if is_speech:
        flag_rates(u, flags)
        flag_languages(u, flags)
        flag_shared_texts(u, flags, train)
    options, measured = from_args(AudioOptions, args), None
    num_read = dict.fromkeys(u.splits, 0)
    if has_audio and options.audio_checks:
        measured = measure_all(args.data_dir, u, options, args.num_jobs)
        flag_audio(measured, flags, options.max_silence)
        num_read = measured.num_read(u)
    flags.write(args.data_dir)
    more = [
        ("utterances whose audio was read", {s: str(n) for s, n in num_read.items()}),
        ("speakers who are in training too", speakers_in_train(u, train)),
    ]
    return flag_table(flags, num_read, more), measured


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--lang-dir", type=Path, help="counts tokens with this BPE model")
    parser.add_argument(
        "--num-jobs",
        type=Number(int, at_least=1, at_most=1024),
        default=len(os.sched_getaffinity(0)),
        help="processes that read audio (default: one for each CPU)",
    )
    add_options(parser, AudioOptions)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    splits = split_names(args.data_dir)
    tokenizer = load_units(args.lang_dir) if args.lang_dir else None
    problems = Problems()
    with disk_errors_named(args.data_dir):
        statistics, utterances = check_cuts(args.data_dir, splits, tokenizer, problems)
    check_features(args.data_dir, splits, problems)
    for lang_dir in sorted(args.data_dir.glob("lang_*")):
        for reason in stale_text(lang_dir, args.data_dir):
            problems.add_stale(reason)
    if tokenizer is not None and not problems.counts:
        check_left_out(args.data_dir, load_splits(args.data_dir)["train"], tokenizer)
    is_speech = not isinstance(tokenizer, Labels)
    flagged, measured = find_flags(args, utterances, is_speech, has_audio=not problems.counts)
    text = f"{tables(statistics)}\n{flagged}"
    outputs = [args.data_dir / "statistics.txt", args.data_dir / "statistics.png"]
    with replacing(*outputs) as (text_path, image_path):
        text_path.write_text(text, encoding="utf-8")
        plot_histograms(statistics, image_path, measured.by_split(utterances) if measured else {})
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
