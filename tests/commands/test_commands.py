"""Commands as a user meets them: one line and status 2 for bad input, options from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xlsr_transducer.core.errors import UserError, interrupts_held_back, run_command
from xlsr_transducer.core.options import (
    LARGEST,
    Number,
    Options,
    Parser,
    add_options,
    flag_of,
    from_args,
    option,
    str2bool,
    types_of,
)
from xlsr_transducer.model.config import StreamingOptions
from xlsr_transducer.model.encoder import EncoderOptions

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("xlsr_transducer", "local")
    for path in (ROOT / folder).glob("*.py")
    if "run_command(main)" in path.read_text()
)


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


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    """The parser that a command uses."""

    class Found(Exception):
        pass

    def stop(parser: Parser, *arguments: object) -> None:
        raise Found(parser)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", stop)
        with pytest.raises(Found) as found:
            importlib.import_module(command).main([])
    return found.value.args[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_every_command_has_a_range(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for action in parser_of(command, monkeypatch)._actions:
        kind, flag = action.type, (action.option_strings or [action.dest])[0]
        assert kind not in (int, float), f"{flag} declares no range"
        if not isinstance(kind, Number):
            assert (
                not isinstance(action.default, (int, float))
                or action.const is True
                or (kind is str2bool)
            ), f"{flag} is a number without a range"
            continue
        for text in ("nan", "inf", "-inf", "1e400", "9" * 30, "-" + "9" * 30, "", "x"):
            with pytest.raises(argparse.ArgumentTypeError, match="must be"):
                kind(text)
        if kind.kind is int:
            with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
                kind("2.5")
        if isinstance(action.default, (int, float)):
            assert action.default in kind, f"{flag}: the default is out of range"


def all_options(cls: type = Options) -> list[type]:
    found = [c for c in cls.__subclasses__() if c.__module__ != __name__]
    return found + [c for sub in found for c in all_options(sub)]


def test_every_dataclass_of_options_checks_its_numbers() -> None:
    for command in COMMANDS:
        importlib.import_module(command)
    assert len(all_options()) > 10
    for cls in all_options():
        for name, kind in types_of(cls).items():
            if isinstance(kind, Number):
                with pytest.raises(UserError, match=f"{flag_of(name)} nan: must be"):
                    cls(**{name: float("nan")})


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


def test_ctrl_c_is_one_line_and_status_130(capsys: pytest.CaptureFixture) -> None:
    def main(argv: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("receiver", ["main", "other"])
def test_ctrl_c_waits_for_the_end_of_foreign_code(receiver: str) -> None:
    """Whichever thread the system gives the signal to."""

    def interrupt() -> None:  # has arrived when the call returns, however busy the machine is
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    reached = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held_back():
            if receiver == "main":
                interrupt()
            else:
                other = threading.Thread(target=interrupt_unblocked, args=[interrupt])
                other.start()
                other.join()
            reached.append("the end of the block")
        reached.append("further")
    assert reached == ["the end of the block"]


def interrupt_unblocked(interrupt: Callable[[], None]) -> None:
    """Calls ``interrupt`` in a thread that takes signals, as one of a library's may."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    interrupt()


def is_held(pid: int) -> bool:
    """Whether Ctrl-C waits, in a process of the system's own programs or of Python.

    A shell blocks it for a moment whenever it starts a program: that does not count.
    """
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").open())
    is_anew = b"INTERRUPTS_ARE_HELD=1" in Path(f"/proc/{pid}/environ").read_bytes()
    return is_anew and bool(int(fields["SigBlk"], 16) & 2)


@pytest.mark.parametrize("command", ["./train.sh", "./extract_features.sh", "./prepare.sh"])
def test_ctrl_c_while_python_starts_is_one_line(command: str, tmp_path: Path) -> None:
    options = [f"--data-dir={tmp_path}"]
    if command == "./prepare.sh":
        options += ["--stage=4", "--stop-stage=4"]
    process = started(command, *options)
    while process.poll() is None and not is_held(process.pid):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "interrupted\n")


def started(*command: str, **environment: str) -> subprocess.Popen:
    """A script of the recipe in a process group of its own, as a terminal starts it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={"PATH": path, "VIRTUAL_ENV": sys.prefix, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_after_ctrl_c_no_further_program_is_started(tmp_path: Path) -> None:
    python = tmp_path / "python"  # ends well, as one does that has just done its work
    python.write_text(f"#!/bin/bash\necho $* >> {tmp_path}/calls\nkill -INT 0\nexit 0\n")
    python.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    lists = [f"--{split}-list={tmp_path / split}" for split in ("train", "val")]
    process = started("./prepare.sh", *lists, PATH=path)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


IMPORT_ALL = """
import importlib, sys, torch
def project():
    return {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("xlsr_transducer", "local")}
for name in sys.argv[1:]:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    importlib.import_module(name)
    uses_torch = any(getattr(m, "torch", None) is torch for m in project().values())
    exact = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    print(name, uses_torch, exact == ("highest", False))
    for loaded in project():
        del sys.modules[loaded]
"""


def test_in_every_command_float32_on_a_gpu_is_float32() -> None:
    """Not TF32, which keeps three digits."""
    files = [*ROOT.glob("xlsr_transducer/*.py"), *ROOT.glob("local/*.py")]
    commands = [f"{p.parent.name}.{p.stem}" for p in files if "run_command(main" in p.read_text()]
    assert len(commands) > 20
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *commands], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert found.keys() == set(commands)
    assert {name for name, state in found.items() if state == "True False"} == set()
    assert found["xlsr_transducer.decode"] == found["local.extract_features"] == "True True"
