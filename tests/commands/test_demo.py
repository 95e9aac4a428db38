"""The demo from a fresh copy of the recipe: it ends well and its models recognise (10 minutes)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("xlsr_transducer", "local", "demo.sh", "prepare.sh", "extract_features.sh", "train.sh",
         "requirements.txt", "requirements-lock.txt")  # fmt: skip
# Percent, for (test_seen, test_unseen): far above what any machine gave, far below what an
# untrained model gives.
MOST = {"full/greedy_search": (4, 8), "streaming/streaming/greedy_search": (6, 12)}


def wer(folder: Path, name: str) -> float:
    """Returns the WER in a folder of results of one set."""
    [summary] = folder.glob(f"wer-summary-{name}-best-*.txt")
    return float(summary.read_text().splitlines()[1].split("\t")[1])


def check(exp: Path) -> None:
    """Checks what the demo left in its folder ``exp``."""
    for folder, limits in MOST.items():
        for name, limit in zip(("test_seen", "test_unseen"), limits):
            assert wer(exp / folder, name) < limit, f"{folder} {name}"
    table = (exp / "streaming" / "streaming_table.txt").read_text()
    assert "\n0 utterances differ" in table
    assert sum(" ms)" in line for line in table.splitlines()) == 9


def copied(folder: Path) -> dict[str, str]:
    """Copies the recipe; returns the variables with which its scripts use this environment."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": path}


@pytest.mark.long
def test_the_demo_runs_from_a_fresh_copy_and_recognises(tmp_path: Path) -> None:
    environment = copied(tmp_path)
    done = subprocess.run(
        ["./demo.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "./demo.sh --serve" in done.stdout
    check(tmp_path / "exp" / "demo")


def test_a_finished_demo_is_served_with_hotwords(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    from tests.support.live_server import write_checkpoint

    exp = tmp_path / "exp/demo/streaming"
    exp.mkdir(parents=True)
    written = write_checkpoint(exp)
    shutil.copy(written, exp / "epoch-4.pt")  # what tells that the demo has ended
    written.rename(exp / "best-valid-wer.pt")
    command = ["./demo.sh", "--serve", "--port", "0"]
    environment = copied(tmp_path)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=PIPE, text=True) as demo:
        try:
            address = demo.stdout.readline().split()[1]
            with urlopen(f"{address}/config") as answer:
                assert json.load(answer)["no_hotwords"] == ""
        finally:
            demo.terminate()
    assert demo.returncode == 0
