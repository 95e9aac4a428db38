"""All commands as a user meets them: their options, one line for bad input and for Ctrl-C."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.options import Number, Options, Parser, flag_of, str2bool, types_of

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("xlsr_transducer", "local")
    for path in (ROOT / folder).glob("*.py")
    if "run_command(main)" in path.read_text()
)


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
    found = [c for c in cls.__subclasses__() if not c.__module__.startswith("tests.")]
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


@pytest.mark.parametrize("module", ["train", "decode", "streaming_decode"])
def test_a_missing_corpus_is_one_clear_line(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main = importlib.import_module(f"xlsr_transducer.{module}").main
    options = ["--data-dir", str(tmp_path / "none"), "--exp-dir", str(tmp_path / "exp")]
    with pytest.raises(SystemExit) as exit_info:
        run_command(main, options)
    assert exit_info.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(tmp_path) in last


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
ours = ("xlsr_transducer", "local")
def project():
    return {n: m for n, m in sys.modules.items() if n.split(".")[0] in ours}
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


@pytest.mark.long
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
