"""Command-line options from dataclasses, so that no option list exists twice.

A dataclass field made by ``option(default, "help")`` becomes ``--field-name``; the same
dataclass is what the code receives, what is saved with a model, and what a preset sets.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


def option(default: Any, help: str, choices: tuple | None = None) -> Any:
    """A dataclass field with what argparse needs to know about it."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def str2bool(text: str) -> bool:
    """icefall's spelling of booleans: 1/0, true/false, yes/no, in any case."""
    word = text.strip().lower()
    if word in ("1", "true", "t", "yes", "y"):
        return True
    if word in ("0", "false", "f", "no", "n"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def _parser_of(hint: Any) -> Any:
    members = [a for a in get_args(hint) if a is not type(None)] or [hint]
    return str2bool if members[0] is bool else members[0]


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds one ``--option`` for each field of ``cls`` that ``option()`` made."""
    group = parser.add_argument_group((cls.__doc__ or cls.__name__).splitlines()[0].rstrip("."))
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            continue
        shown = "" if field.default is None else f" (default: {field.default})"
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=_parser_of(hints[field.name]),
            default=field.default,
            choices=field.metadata["choices"],
            help=(field.metadata["help"] + shown).replace("%", "%%"),
        )


def from_args(cls: type[T], args: argparse.Namespace) -> T:
    """The dataclass filled from parsed arguments."""
    names = {f.name for f in dataclasses.fields(cls)} & set(vars(args))
    return cls(**{name: getattr(args, name) for name in names})
