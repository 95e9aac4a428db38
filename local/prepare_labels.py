"""Stage 2 for a classifier: the texts of the lists are labels, kept as they are.

    python -m local.prepare_labels --data-dir data

writes DATA/manifests/cuts_SPLIT.jsonl.gz (one cut per utterance, its text the label),
DATA/lang_label/labels.txt, the labels of training in their order, and counts.tsv beside it, the
utterances and minutes of each label in each split.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from local.manifests import JsonlGzWriter, manifest_path, split_names
from local.utterances import make_cut, read_utterances
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing, write_text
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Parser
from xlsr_transducer.data.labels import LABELS_FILE, LANG_DIR, Labels
from xlsr_transducer.data.sources import note_source, text_digest
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.data.text_options import write_label_record

Counts = dict[str, tuple[int, float]]  # utterances and seconds of each label
UNITS = ("utterances", "minutes")


def count_labels(data_dir: Path, split: str) -> Counts:
    """Returns what a split has of each label."""
    utterances: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for _, supervision in read_utterances(data_dir, split):
        utterances[supervision.text] += 1
        seconds[supervision.text] += supervision.duration
    logging.info("%s: %d utterances of %d labels", split, sum(utterances.values()), len(seconds))
    return {label: (count, seconds[label]) for label, count in utterances.items()}


def write_cuts(data_dir: Path, split: str) -> None:
    """Writes the cuts of one split."""
    with replacing(manifest_path(data_dir, "cuts", split)) as [temporary]:
        with JsonlGzWriter(temporary) as cuts:
            utterances = read_utterances(data_dir, split)
            for recording, supervision in tqdm(utterances, desc=split, disable=None):
                cuts.write(make_cut(recording, supervision, supervision.text))


def labels_of_training(counts: dict[str, Counts], splits: Sequence[str]) -> Labels:
    """Returns the labels of the splits that are trained on, sorted.

    Raises:
      UserError: there are less than two.
    """
    try:
        return Labels(sorted({label for split in splits for label in counts[split]}))
    except UserError as e:
        raise UserError(f"{', '.join(splits)}: {e}") from e


def check_known(labels: Labels, counts: dict[str, Counts], val: Sequence[str]) -> None:
    """Names the labels that training lacks.

    Raises:
      UserError: a split of ``val`` has one, whose utterances no training can get right.
    """
    for split, found in counts.items():
        unknown = sorted(found.keys() - set(labels.tokens))
        named = ", ".join(repr(label) for label in unknown[:5]) + ", ..." * (len(unknown) > 5)
        if unknown and split in val:
            raise UserError(
                f"{split}: the label {named} is not in the training list: add utterances of it "
                f"there, or take those of {split} out"
            )
        if unknown:
            count = sum(found[label][0] for label in unknown)
            logging.warning(
                "%s: the label %s is not in the training list: its %d utterances count as wrong",
                split, named, count,
            )  # fmt: skip


def write_counts(path: Path, counts: dict[str, Counts]) -> None:
    """Writes utterances and minutes of each label in each split."""
    rows = ["\t".join(["label", *(f"{s} {what}" for s in counts for what in UNITS)])]
    for label in sorted({label for found in counts.values() for label in found}):
        cells = [" ".join(label.split())]
        for found in counts.values():
            count, seconds = found.get(label, (0, 0.0))
            cells += [str(count), f"{seconds / 60:.2f}"]
        rows.append("\t".join(cells))
    write_text(path, "\n".join(rows) + "\n")


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument(
        "--only-tests", action="store_true", help="leave training and validation as they are"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    splits, lang_dir = load_splits(args.data_dir), args.data_dir / LANG_DIR
    is_beside = args.only_tests and bool(splits["train"])
    names = splits["test"] if args.only_tests else split_names(args.data_dir)
    counts = {split: count_labels(args.data_dir, split) for split in names}
    if splits["train"]:
        given = Labels.load(lang_dir) if is_beside else labels_of_training(counts, splits["train"])
        check_known(given, counts, splits["val"])
    for split in names:
        write_cuts(args.data_dir, split)
    # The options of a text: tests that are not prepared as labels are then refused beside these.
    write_label_record(args.data_dir)
    if splits["train"] and not is_beside:
        given.write(lang_dir / LABELS_FILE)
        note_source(lang_dir, LABELS_FILE, text_digest(args.data_dir))
        logging.info("%s: %d labels", lang_dir, given.vocab_size)
    write_counts(lang_dir / ("counts_tests.tsv" if args.only_tests else "counts.tsv"), counts)


if __name__ == "__main__":
    run_command(main)
