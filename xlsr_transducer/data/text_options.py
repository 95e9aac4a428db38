"""The text options of commands, and the record of those that a corpus was made with.

Where a command is given none, those of the corpus hold: its test sets and the text of its language
models are normalised like its training text.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.options import Parser, add_options, flag_of, str2bool
from xlsr_transducer.data.normalizers import resolved
from xlsr_transducer.data.text import TextOptions

_NAMES = [field.name for field in dataclasses.fields(TextOptions)]
_CASES = {True: "lower", False: "keep"}  # of --lower-case


class Record(NamedTuple):
    """How the training text of a corpus was normalised."""

    path: Path
    options: TextOptions
    normalizer: str  # as ``resolved`` has it
    languages: list[str]


def record_path(data_dir: Path) -> Path:
    """Returns where the record lies."""
    return data_dir / "manifests" / "text_options.json"


def add_text_options(parser: Parser) -> None:
    """Adds the text options, which are None where they are not given."""
    add_options(parser, TextOptions, **dict.fromkeys(_NAMES))
    parser.add_argument(
        "--lower-case", type=str2bool, help="an older spelling: 1 is --case lower, 0 --case keep"
    )


def text_options(args: argparse.Namespace, record: Record | None = None) -> TextOptions:
    """Returns the options given, and for the others those of the record or the defaults.

    Raises:
      UserError: they contradict each other, or the recorded normaliser is no longer what it was.
    """
    given = {name: getattr(args, name) for name in _NAMES if getattr(args, name) is not None}
    if args.lower_case is not None:
        case = _CASES[args.lower_case]
        if given.setdefault("case", case) != case:
            raise UserError(
                f"--lower-case {int(args.lower_case)} contradicts --case {given['case']}: "
                "--case is enough"
            )
    if record is None:
        return TextOptions(**given)
    options = dataclasses.replace(record.options, **given)
    if "normalizer" not in given and resolved(options.normalizer) != record.normalizer:
        raise UserError(
            f"--normalizer {options.normalizer} has changed since it made the training text "
            f"({record.path}): run stage 2 on all lists again"
        )
    return options


def write_record(data_dir: Path, options: TextOptions, languages: Iterable[str]) -> None:
    """Writes how the training text was normalised."""
    values = dataclasses.asdict(options)
    digest = resolved(options.normalizer)
    if digest != options.normalizer:
        values["normalizer"] = str(Path(options.normalizer).resolve())
    values.update(normalizer_digest=digest, languages=sorted(languages))
    write_text(record_path(data_dir), json.dumps(values, indent=2) + "\n")


def write_label_record(data_dir: Path) -> None:
    """Writes that the texts are labels, beside which no text can be prepared."""
    write_text(record_path(data_dir), json.dumps({"unit": "label"}) + "\n")


def read_record(data_dir: Path) -> Record | None:
    """Returns how the training text was normalised, None where there is no record.

    Raises:
      UserError: the corpus has labels, not texts; or the file is damaged.
    """
    path = record_path(data_dir)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("unit") == "label":
            raise UserError(f"{path}: the training texts are labels: give --unit label")
        if "lower_case" in values:  # files of before
            values["case"] = _CASES[values["lower_case"]]
        languages = values.get("languages") or [values["lang"]]
        options = TextOptions(**{name: values[name] for name in _NAMES if name in values})
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged: run stage 2 of ./prepare.sh on all lists") from e
    digest = values.get("normalizer_digest", options.normalizer)
    return Record(path, options, digest, languages)


def check_same(record: Record, options: TextOptions, languages: Iterable[str]) -> None:
    """Refuses test sets beside a training text that was normalised otherwise.

    Args:
      languages: of the test sets.

    Raises:
      UserError: names the options, or the languages that the training text lacks.
    """
    before = dataclasses.replace(record.options, normalizer=record.normalizer)
    now = dataclasses.replace(options, normalizer=resolved(options.normalizer))
    for name in _NAMES:
        if getattr(before, name) != getattr(now, name):
            raise UserError(
                f"{flag_of(name)} {getattr(options, name)}: the training text was made with "
                f"{getattr(before, name)} ({record.path}), and test sets need the same: leave the "
                "option out"
            )
    foreign = sorted(set(languages) - set(record.languages))
    if foreign:
        raise UserError(
            f"the training text has no {', '.join(foreign)} ({record.path} names its languages): "
            "give test sets theirs by --lang, or --test-list LANG=FILE"
        )
