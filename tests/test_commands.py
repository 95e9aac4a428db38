"""Commands as a user meets them: one line and status 2 for bad input, options from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from xlsr_transducer.errors import UserError, run_command
from xlsr_transducer.options import add_options, from_args, option, str2bool

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sample options. With a second sentence."""

    some_number: int = option(3, "a number, 100 % of it")
    is_on: bool = option(False, "a switch")
    path: Path | None = option(None, "a path")
    kind: str = option("a", "one of two", ("a", "b"))


def parse(*words: str) -> Sample:
    parser = argparse.ArgumentParser()
    add_options(parser, Sample)
    parser.format_help()
    return from_args(Sample, parser.parse_args(words))


def test_a_dataclass_gives_its_options_with_types_and_defaults() -> None:
    assert parse() == Sample()
    given = parse("--some-number", "5", "--is-on", "True", "--path", "x/y", "--kind", "b")
    assert given == Sample(5, True, Path("x/y"), "b")
    with pytest.raises(SystemExit):
        parse("--kind", "c")


@pytest.mark.parametrize(
    "word, value", [("1", True), ("true", True), ("False", False), ("0", False)]
)
def test_booleans_are_spelt_as_in_icefall(word: str, value: bool) -> None:
    assert str2bool(word) is value


@pytest.mark.parametrize(
    "error", [UserError("line one\n  line two"), FileNotFoundError(2, "No", "f")]
)
def test_bad_input_gives_one_line_and_status_2(
    error: Exception, capsys: pytest.CaptureFixture
) -> None:
    def main(argv: object) -> None:
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_defect_keeps_its_traceback() -> None:
    def main(argv: object) -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run_command(main)


@pytest.mark.parametrize("module", ["train", "decode", "streaming_decode"])
def test_a_missing_corpus_is_one_clear_line(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"xlsr_transducer.{module}"]
    options = ["--data-dir", str(tmp_path / "none"), "--exp-dir", str(tmp_path / "exp")]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(tmp_path) in last
    assert "Traceback" not in done.stderr
