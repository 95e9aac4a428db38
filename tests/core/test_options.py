"""Options from dataclasses: their types, their ranges, and the message about a wrong one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import (
    LARGEST,
    Options,
    Parser,
    add_options,
    from_args,
    option,
    str2bool,
)
from xlsr_transducer.model.config import StreamingOptions
from xlsr_transducer.model.encoder_options import EncoderOptions


@dataclasses.dataclass(frozen=True)
class Sample(Options):
    """Sample options. With a second sentence."""

    some_number: int = option(3, "a number, 100 % of it", at_least=1, also=-1)
    some_share: float = option(0.5, "a share", above=0, at_most=1)
    is_on: bool = option(False, "a switch")
    path: Path | None = option(None, "a path")
    kind: str = option("a", "one of two", ("a", "b"))


def parse(*words: str) -> Sample:
    parser = Parser(prog="sample")
    add_options(parser, Sample)
    parser.format_help()
    return from_args(Sample, parser.parse_args(words))


def test_a_dataclass_gives_its_options_with_types_and_defaults() -> None:
    assert parse() == Sample()
    given = parse("--some-number", "5", "--is-on", "True", "--path", "x/y", "--kind", "b")
    assert given == Sample(5, 0.5, True, Path("x/y"), "b")
    assert parse("--some-number", "-1").some_number == -1
    assert parse("--some-share", "1e-3").some_share == 0.001


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--some-number 0", "--some-number 0: must be at least 1, or -1"),
        ("--some-number -2", "--some-number -2: must be at least 1, or -1"),
        ("--some-number 2.5", "--some-number 2.5: must be a whole number"),
        (
            "--some-number " + "9" * 20,
            f"--some-number {'9' * 20}: must be from 1 to {LARGEST}, or -1",
        ),
        ("--some-share 0", "--some-share 0: must be above 0 and at most 1"),
        ("--some-share nan", "--some-share nan: must be above 0 and at most 1"),
        ("--some-share -inf", "--some-share -inf: must be above 0 and at most 1"),
        ("--some-share -1e-3", "--some-share -1e-3: must be above 0 and at most 1"),
        ("--some-share x", "--some-share x: must be a number"),
        ("--some-share", "--some-share: expected one argument"),
        ("--path=", "--path '': must not be empty"),
        ("--kind c", "--kind: invalid choice: 'c'"),
        ("--is-on maybe", "--is-on maybe: must be true or false"),
        (
            "--some-numbr 3",
            "sample: unrecognised option --some-numbr; did you mean --some-number?",
        ),
        ("--some-numb=3", "sample: unrecognised option --some-numb; did you mean --some-number?"),
        ("--other 3", "sample: unrecognised option --other (--help lists all)"),
        ("3", "sample: unrecognised argument 3 (--help lists all)"),
    ],
)
def test_a_wrong_option_is_named_with_its_range(words: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(*words.split())


def test_numbers_that_come_from_elsewhere_have_the_same_ranges() -> None:
    with pytest.raises(UserError, match="--some-number 0: must be at least 1, or -1"):
        Sample(some_number=0)
    with pytest.raises(UserError, match="--some-number 1.5: must be a whole number"):
        Sample(some_number=1.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--dropout 1.5: must be at least 0 and below 1"):
        EncoderOptions(**{**dataclasses.asdict(EncoderOptions()), "dropout": 1.5})


def test_a_number_without_a_range_is_a_defect() -> None:
    @dataclasses.dataclass(frozen=True)
    class Forgotten(Options):
        number: float = option(1.0, "without bounds")

    with pytest.raises(TypeError, match="needs one lower bound"):
        add_options(Parser(), Forgotten)


@pytest.mark.parametrize(
    "word, value", [("1", True), ("true", True), ("False", False), ("0", False)]
)
def test_booleans_are_spelt_as_in_icefall(word: str, value: bool) -> None:
    assert str2bool(word) is value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": "16,x"}, "--chunk-size 16,x: x: must be a whole number"),
        ({"chunk_size": "16,0"}, "--chunk-size 16,0: 0: must be at least 1, or -1"),
        ({"chunk_size": "16,7"}, "--chunk-size 7: must be a positive multiple"),
        ({"left_context_chunks": "2,-2"}, "-2: must be at least 0, or -1"),
        ({"attention_sink_size": "4," + "9" * 20}, f"must be from 0 to {LARGEST}"),
        ({"attention_sink_size": ","}, "'': must be a whole number"),
    ],
)
def test_every_value_of_a_list_is_checked(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        StreamingOptions(streaming=True, **options)
