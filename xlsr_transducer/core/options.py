"""Command-line options: declared once, with their range, and checked wherever a value comes from.

A dataclass field made by ``option(default, "help", at_least=1)`` becomes ``--field-name``; the
same dataclass is what the code receives, what is saved with a model, and what a preset sets.
A parser's own argument has ``type=Number(int, at_least=1)``. No number is without a range, and
infinity and "not a number" are in none.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from xlsr_transducer.core.errors import UserError

T = TypeVar("T")

LARGEST = 2**31 - 1  # of a number that has no upper bound of its own


@dataclasses.dataclass(frozen=True)
class Number:
    """A type for argparse: whole or real numbers within bounds. ``also`` is allowed besides."""

    kind: type
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    also: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.above is None):
            raise TypeError("a number needs one lower bound: at_least or above")

    def __call__(self, text: str) -> float:
        """Returns the number that ``text`` spells.

        Raises:
          argparse.ArgumentTypeError: what is wrong with it.
        """
        try:
            value = self.kind(text)
        except ValueError as e:
            shown = text if text.strip() else repr(text)
            raise argparse.ArgumentTypeError(f"{shown}: must be {self._a_number}") from e
        if value not in self:
            raise argparse.ArgumentTypeError(f"{text}: must be {self.describe(value)}")
        return value

    def __contains__(self, value: float) -> bool:
        if not -LARGEST <= value <= LARGEST:  # nan compares as False too
            return False
        return value == self.also or (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    @property
    def _a_number(self) -> str:
        return "a whole number" if self.kind is int else "a number"

    def describe(self, wrong: float) -> str:
        """Returns the bounds in words, such as "from 0 to 1", for a number that is not within
        them."""
        at_most = self.at_most
        if at_most is None and self.below is None and wrong > LARGEST:
            at_most = LARGEST
        if self.at_least is not None and at_most is not None:
            words = f"from {self.at_least} to {at_most}"
        else:
            bounds = {"at least": self.at_least, "above": self.above}
            bounds.update({"at most": at_most, "below": self.below})
            words = " and ".join(f"{k} {v}" for k, v in bounds.items() if v is not None)
        return words + (f", or {self.also}" if self.also is not None else "")

    def require(self, flag: str, value: Any) -> None:
        """Raises UserError if ``value``, which is no text, is not such a number."""
        kinds = int if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise UserError(f"{flag} {value}: must be {self._a_number}")
        if value not in self:
            raise UserError(f"{flag} {value}: must be {self.describe(value)}")


def option(
    default: Any,
    help: str,
    choices: tuple | None = None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    also: float | None = None,
) -> Any:
    """Returns a dataclass field with what argparse needs to know about it, and the range of a
    number."""
    bounds = dict(at_least=at_least, above=above, at_most=at_most, below=below, also=also)
    metadata = {"help": help, "choices": choices, "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """Base of the dataclasses of options: refuses numbers out of their range.

    A ``__post_init__`` of one's own begins with ``super().__post_init__()``.
    """

    def __post_init__(self) -> None:
        for name, kind in types_of(type(self)).items():
            value = getattr(self, name)
            if isinstance(kind, Number) and value is not None:
                kind.require(flag_of(name), value)


def flag_of(name: str) -> str:
    """``base_lr``: ``--base-lr``."""
    return "--" + name.replace("_", "-")


def str2bool(text: str) -> bool:
    """icefall's spelling of booleans: 1/0, true/false, yes/no, in any case."""
    word = text.strip().lower()
    if word in ("1", "true", "t", "yes", "y"):
        return True
    if word in ("0", "false", "f", "no", "n"):
        return False
    raise argparse.ArgumentTypeError(f"{text}: must be true or false")


def path(text: str) -> Path:
    """Returns a path; the empty one would be the current folder, and is mostly an unset
    variable."""
    return Path(word(text))


def word(text: str) -> str:
    """Returns a text that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: must not be empty")
    return text


def folder_name(text: str) -> str:
    """Returns the name of a folder in another, not a path that leads elsewhere."""
    if not re.fullmatch(r"[^/\\\s.-][^/\\\s]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be the name of a folder, without slashes, spaces or a dot in front"
        )
    return text


@functools.cache
def types_of(cls: type) -> dict[str, Any]:
    """Returns for each option of a dataclass what makes a value of a text.

    Raises:
      TypeError: a number declares no range.
    """
    hints, types = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            continue
        hint = hints[field.name]
        kind = next((a for a in get_args(hint) if a is not type(None)), hint)
        if kind in (int, float):
            kind = Number(kind, **field.metadata["bounds"])
        types[field.name] = str2bool if kind is bool else kind
    return types


def numbers_of(flag: str, text: str, kind: Number) -> list[Any]:
    """Returns the numbers of a list with commas.

    Raises:
      UserError: one of them is wrong.
    """
    try:
        return [kind(word) for word in str(text).split(",")]
    except argparse.ArgumentTypeError as e:
        raise UserError(f"{flag} {text}: {e}; it takes a number or a list such as 16,32") from e


def add_options(parser: argparse.ArgumentParser, cls: type, **defaults: Any) -> None:
    """Adds one ``--option`` for each field of ``cls`` that ``option()`` made.

    Args:
      defaults: those of this command where they differ from the dataclass's, by field.
    """
    group = parser.add_argument_group((cls.__doc__ or cls.__name__).splitlines()[0].rstrip("."))
    types = types_of(cls)
    for field in dataclasses.fields(cls):
        if field.name not in types:
            continue
        default = defaults.get(field.name, field.default)
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(
            flag_of(field.name),
            type=types[field.name],
            default=default,
            choices=field.metadata["choices"],
            help=(field.metadata["help"] + shown).replace("%", "%%"),
        )


def from_args(cls: type[T], args: argparse.Namespace) -> T:
    """Returns the dataclass filled from parsed arguments."""
    names = {f.name for f in dataclasses.fields(cls)} & set(vars(args))
    return cls(**{name: getattr(args, name) for name in names})


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, by UserError. Options are spelt in full."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("prog", Path(sys.argv[0]).stem)
        super().__init__(**settings, allow_abbrev=False, exit_on_error=False)
        self.register("type", Path, path)
        # -1e-3 and -1,16 are values too: no option begins with one dash and a digit.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else list(args)
        self._require_known(words)
        try:
            found, rest = super().parse_known_args(words, namespace)
        except argparse.ArgumentError as e:
            if e.argument_name is None:
                self.error(e.message)
            # The message of a type of this module begins with the value.
            colon = "" if isinstance(e.__context__, argparse.ArgumentTypeError) else ":"
            raise UserError(f"{e.argument_name}{colon} {e.message}") from e
        if rest:
            self.error(f"unrecognised argument {rest[0]}")
        return found, rest

    def _require_known(self, words: list[str]) -> None:
        """Names the first unknown option, and the nearest known one."""
        known = list(self._option_string_actions)
        for text in words:
            if text == "--":
                return
            name = text.split("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"unrecognised option {name}{did_you_mean(name, known)}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (--help lists all)")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a question for the end of a message, if a name is near; otherwise nothing."""
    by_word = {text.lstrip("-"): text for text in known}  # dashes would make all names alike
    close = difflib.get_close_matches(name.lstrip("-"), by_word, 1)
    return f"; did you mean {by_word[close[0]]}?" if close else ""
