"""Sharded training is training: the same numbers, the same checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support import sharding_driver
from tests.support.tiny_recipe import SMALL, run_train
from tests.support.train_driver import fork, run_together
from tests.training.test_inf_check import tiny_model
from xlsr_transducer.core.compat import has_fsdp2, load_tensors
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model, read_checkpoint
from xlsr_transducer.training.optim import OptimOptions
from xlsr_transducer.training.sharding import check_sharding, gather, load_weights, whole

needs_fsdp2 = pytest.mark.skipif(not has_fsdp2(), reason="this PyTorch has no fully_shard")
PLAIN = ("--dropout", "0", "--xlsr-dropout", "0", "--time-mask-prob", "0", "--average-period", "2",
         "--total-duration", "20", "--max-duration", "10", "--clip-grad", "1000")  # fmt: skip


@needs_fsdp2
def test_sharded_steps_equal_plain_ones_and_resume_from_a_gathered_checkpoint(
    tmp_path: Path,
) -> None:
    words = (tmp_path / "store", tmp_path / "out.pt")
    log = tmp_path / "log.txt"
    statuses = fork(sharding_driver.run, [(rank, *words) for rank in range(2)], log)
    assert statuses == [0, 0], log.read_text()
    for found in load_tensors(tmp_path / "out.pt").values():  # of each optimizer
        _compare(found["plain"], found["sharded"])


def _compare(plain: dict, sharded: dict) -> None:
    for state in ("model", "last"):
        for name, value in plain[state].items():
            torch.testing.assert_close(sharded[state][name], value, rtol=1e-5, atol=1e-5)
    assert plain["valid"] == pytest.approx(sharded["valid"], rel=1e-5)
    assert plain["straight"] == pytest.approx(sharded["straight"], rel=1e-5)
    assert sharded["resumed"] == sharded["straight"]
    assert sharded["dropped"] == 0  # in the memory of a process that does not write
    # As if it had not been sharded: a model of its own takes it.
    tiny_model().load_state_dict(sharded["model"])
    first = plain["optimizer"]["state"]
    assert first.keys() == sharded["optimizer"]["state"].keys()


@needs_fsdp2
@pytest.mark.long
def test_two_sharded_processes_resume_a_plain_training_as_one_plain_process_does(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    """With a teacher, which is not divided."""
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    given = (*PLAIN, f"--teacher={streaming_exp / 'epoch-2.pt'}", "--distill-layer-scale=1")
    run_train(corpus, plain, *given)
    sharded.mkdir()
    for name in ("epoch-1.pt", "xlsr_below_cut.pt"):
        shutil.copy(plain / name, sharded)
    words = [f"--data-dir={corpus}", f"--exp-dir={sharded}", "--num-epochs=2", *SMALL, *given,
             "--start-epoch=2", "--sharding=fsdp2", "--gradient-checkpointing=1"]  # fmt: skip
    log = tmp_path / "log.txt"
    assert run_together([(words, {})], 2, log) == [0, 0], log.read_text()
    expected, actual = (read_checkpoint(exp / "epoch-2.pt") for exp in (plain, sharded))
    assert expected.keys() == actual.keys()
    for part in ("model", "model_avg"):
        assert expected[part].keys() == actual[part].keys()
        for name, value in expected[part].items():
            if not name.endswith("k_proj.bias"):  # no gradient but rounding, which Adam blows up
                torch.testing.assert_close(actual[part][name], value, rtol=1e-5, atol=1e-5)
    first, second = expected["optimizer"]["state"], actual["optimizer"]["state"]
    assert first.keys() == second.keys()
    for i, moments in first.items():  # Adam's weights do not tell a gradient from its half
        torch.testing.assert_close(
            second[i]["exp_avg"], moments["exp_avg"], rtol=1e-3, atol=1e-5, msg=f"parameter {i}"
        )
    assert expected["progress"].pop("parts") == actual["progress"].pop("parts")
    assert expected["progress"] == pytest.approx(actual["progress"])
    load_model(CheckpointOptions(exp_dir=sharded, epoch=2, avg=1))


def test_what_does_not_go_with_sharding_is_refused_by_name() -> None:
    if not has_fsdp2():
        with pytest.raises(UserError, match=r"--sharding fsdp2 needs PyTorch 2\.6"):
            check_sharding(OptimOptions(), False, 2)
        return
    check_sharding(OptimOptions(), False, 2)
    for optim, use_fp16, world_size, message in (
        (OptimOptions(), False, 1, "several processes"),
        (OptimOptions(), True, 2, "--use-fp16 1"),
        (OptimOptions(freeze_encoder_steps=5), False, 2, "--freeze-encoder-steps"),
        (OptimOptions(lora_rank=2), False, 2, "--lora-rank"),
    ):
        with pytest.raises(UserError, match=f"--sharding fsdp2 .*{message}"):
            check_sharding(optim, use_fp16, world_size)


def test_a_model_that_is_not_sharded_stays_as_it_is() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with whole(model):
        load_weights(model, gather(before))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
