"""Sharded training is training: the same numbers, the same checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_inf_check import tiny_model

from xlsr_transducer.compat import has_fsdp2, load_tensors
from xlsr_transducer.errors import UserError
from xlsr_transducer.training.sharding import gather, load_weights, shard, whole

TESTS = Path(__file__).parent
needs_fsdp2 = pytest.mark.skipif(not has_fsdp2(), reason="this PyTorch has no fully_shard")


@needs_fsdp2
def test_sharded_steps_equal_plain_ones_and_resume_from_a_gathered_checkpoint(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    words = [str(tmp_path / "store"), str(tmp_path / "out.pt")]
    program = [sys.executable, str(TESTS / "sharding_driver.py")]
    processes = [
        subprocess.Popen([*program, str(rank), *words], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    for found in load_tensors(tmp_path / "out.pt").values():  # of each optimizer
        _compare(found["plain"], found["sharded"])


def _compare(plain: dict, sharded: dict) -> None:
    for state in ("model", "last"):
        for name, value in plain[state].items():
            torch.testing.assert_close(sharded[state][name], value, rtol=1e-5, atol=1e-5)
    assert plain["valid"] == pytest.approx(sharded["valid"], rel=1e-5)
    assert plain["straight"] == pytest.approx(sharded["straight"], rel=1e-5)
    assert sharded["resumed"] == sharded["straight"]
    # As if it had not been sharded: a model of its own takes it.
    tiny_model().load_state_dict(sharded["model"])
    first = plain["optimizer"]["state"]
    assert first.keys() == sharded["optimizer"]["state"].keys()


def test_sharding_is_refused_by_name_where_it_cannot_be() -> None:
    message = "several processes" if has_fsdp2() else "needs PyTorch 2.6"
    with pytest.raises(UserError, match=f"--sharding fsdp2 .*{message}|{message}"):
        shard(tiny_model(), 1, torch.device("cpu"))


def test_a_model_that_is_not_sharded_stays_as_it_is() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with whole(model):
        load_weights(model, gather(before))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
