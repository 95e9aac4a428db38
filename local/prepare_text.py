"""Stage 2, first part: normalizes the text and writes the cuts that training reads.

    python -m local.prepare_text --data-dir data [--case keep] [--punctuation keep]

writes DATA/manifests/cuts_SPLIT.jsonl.gz (one cut per utterance; the text as it was stays in the
supervision's custom field `original_text`) and DATA/manifests/text_report.tsv, which shows for
each character whether it was kept, mapped or dropped; text_changes.tsv shows texts before and
after, and text_undecided.tsv what can be read otherwise. Utterances of which no text is left join
rejected_SPLIT.tsv.
"""

from __future__ import annotations

import argparse
import collections
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from local.manifests import (
    JsonlGzWriter,
    Rejected,
    check_rejected,
    manifest_path,
    read_jsonl_gz,
    read_rejected,
    rejected_path,
    split_names,
    write_rejected,
)
from local.text_changes import ChangeTables, change_tables
from local.utterances import make_cut, read_utterances
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, word
from xlsr_transducer.data.normalizers import Report
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.data.text import CharacterUse, TextNormalizer, TextOptions
from xlsr_transducer.data.text_options import (
    add_text_options,
    check_same,
    read_record,
    text_options,
    write_record,
)

_NO_TEXT = "empty text after normalization"
_REPORT_HEADER = ("action", "character", "code", "name", "becomes")


class Normalizers:
    """The normalizer of each language, which together count the uses of characters."""

    def __init__(self, options: TextOptions, language: str) -> None:
        """``language``: of utterances whose manifest names none."""
        self._options, self._default = options, language
        self._of: dict[str, TextNormalizer] = {}

    def __call__(self, text: str, language: str | None) -> tuple[str, Report]:
        """Returns the normalized text of a language, and what changed."""
        language = language or self._default
        if language not in self._of:
            self._of[language] = TextNormalizer(self._options, language)
        report = Report(language)
        return self._of[language](text, report), report

    @property
    def uses(self) -> collections.Counter[CharacterUse]:
        """What became of the characters of all texts."""
        return sum((one.uses for one in self._of.values()), collections.Counter())

    @property
    def languages(self) -> set[str]:
        """Those of all texts."""
        return set(self._of)


def prepare_split(
    data_dir: Path,
    split: str,
    normalizers: Normalizers,
    max_rejected: float,
    changes: ChangeTables,
) -> None:
    """Writes the cuts of one split and brings its table of rejected lines up to date."""
    accepted: collections.Counter[str] = collections.Counter()  # by list
    table = rejected_path(data_dir, split)
    rejected = [row for row in read_rejected(table) if row.reason != _NO_TEXT]
    with replacing(manifest_path(data_dir, "cuts", split)) as [temporary]:
        with JsonlGzWriter(temporary) as cuts:
            utterances = read_utterances(data_dir, split)
            for recording, supervision in tqdm(utterances, desc=split, disable=None):
                custom = supervision.custom or {}
                text, report = normalizers(supervision.text, supervision.language)
                changes.add(split, supervision.id, supervision.text, text, report)
                if text:
                    cuts.write(make_cut(recording, supervision, text))
                    accepted[custom.get("list", "")] += 1
                else:
                    place = (custom.get("line", 0), _NO_TEXT, supervision.text)
                    rejected.append(Rejected(*place, custom.get("list", "")))
        write_rejected(table, sorted(rejected, key=lambda row: (row.list, row)))
        logging.info("%s: %d utterances with text", split, accepted.total())
        refused = collections.Counter(row.list for row in rejected)
        for source in sorted({*accepted, *refused}) or [""]:
            name = f"{split}, {source}" if source else split
            check_rejected(name, refused[source], accepted[source], max_rejected, table)


def write_report(path: Path, uses: dict[str, collections.Counter[CharacterUse]]) -> None:
    """One row for each treatment of a character, with its counts by split."""
    rows = sorted({use for counts in uses.values() for use in counts},
                  key=lambda use: (use.action, use.character))  # fmt: skip
    with replacing(path) as [temporary], open(temporary, "w", encoding="utf-8") as f:
        f.write("\t".join([*_REPORT_HEADER, *uses]) + "\n")
        for use in rows:
            name = unicodedata.name(use.character, "(no name)")
            code = f"U+{ord(use.character):04X}"
            counts = [str(uses[split][use]) for split in uses]
            shown = use.character if use.character.isprintable() else " "
            f.write("\t".join([use.action, shown, code, name, use.becomes, *counts]) + "\n")


def log_report(uses: dict[str, collections.Counter[CharacterUse]], path: Path) -> None:
    """The short form of the report, and what in it deserves a look."""
    total: collections.Counter[CharacterUse] = sum(uses.values(), collections.Counter())
    for action in ("kept", "mapped", "dropped"):
        counts = {use: count for use, count in total.items() if use.action == action}
        shown = " ".join(sorted({_shown(use) for use in counts}))
        logging.info(
            "characters %s: %d kinds, %d in all: %s", action, len(counts), sum(counts.values()),
            shown if len(shown) <= 400 else shown[:400] + " ...",
        )  # fmt: skip
    written = {split: {c for use in counts for c in use.becomes} for split, counts in uses.items()}
    train = written.get("train", set())
    unknown = sorted(set().union(*written.values()) - train)
    if unknown and train:
        logging.warning("not in the training text, so unknown to the model: %s", " ".join(unknown))
    if any(character.isdigit() for character in train):
        logging.warning("the text holds digits: --normalizer spells them out as they are spoken")
    logging.info("details: %s", path)


def _shown(use: CharacterUse) -> str:
    character = use.character if use.character.isprintable() else f"U+{ord(use.character):04X}"
    return f"{character}>{use.becomes}" if use.action == "mapped" else character


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument(
        "--lang",
        type=word,
        default="et",
        help="language of utterances whose manifest names none: matters for Turkish i",
    )
    parser.add_argument(
        "--max-rejected",
        type=Number(float, at_least=0, at_most=100),
        default=1.0,
        help="percent of a list's lines",
    )
    parser.add_argument(
        "--only-tests", action="store_true", help="leave training and validation as they are"
    )
    add_text_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    splits = load_splits(args.data_dir)
    names = splits["test"] if args.only_tests else split_names(args.data_dir)
    folder = args.data_dir / "manifests"
    is_beside = args.only_tests and splits["train"]
    record = read_record(args.data_dir) if is_beside else None
    options = text_options(args, record)
    if record:
        items = (read_jsonl_gz(manifest_path(args.data_dir, "supervisions", n)) for n in names)
        languages = {s.get("language") or args.lang for one in items for s in one}
        check_same(record, options, languages)
    uses, languages = {}, set()
    suffix = "_tests" if args.only_tests else ""
    with change_tables(folder, suffix) as changes:
        for split in names:
            normalizers = Normalizers(options, args.lang)
            prepare_split(args.data_dir, split, normalizers, args.max_rejected, changes)
            uses[split] = normalizers.uses
            if not is_beside and split in (splits["train"] or names):
                languages |= normalizers.languages
                write_record(args.data_dir, options, languages)
    path = folder / f"text_report{suffix}.tsv"
    write_report(path, uses)
    log_report(uses, path)


if __name__ == "__main__":
    run_command(main)
