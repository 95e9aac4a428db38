"""Files of tensors: whole or not there, verified, and what was there before survives."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import (
    load_verified,
    remove_unfinished,
    save_atomically,
    step_of,
)
from xlsr_transducer.model.checkpoint import FORMAT
from xlsr_transducer.training.resume import newest_checkpoint, resume_command


def content(step: int, size: int = 10) -> dict:
    """What makes a checkpoint in the eyes of those who look for one."""
    model = {"w": torch.full((size,), float(step))}
    return {"format": FORMAT, "config": {}, "model": model, "optimizer": {}, "step": step}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "epoch-3.pt"
    save_atomically(content(7), path)
    return path


def test_a_file_comes_back_and_tells_its_step(sealed: Path) -> None:
    assert torch.equal(load_verified(sealed)["model"]["w"], torch.full((10,), 7.0))
    assert step_of(sealed) == 7
    assert [p.name for p in sealed.parent.iterdir()] == ["epoch-3.pt"]


def is_refused(path: Path) -> bool:
    """Whether a damaged file is refused; where the damage changes nothing it may be read."""
    try:
        found = load_verified(path)
    except UserError as e:
        assert path.name in str(e)
        return True
    assert found.keys() == content(7).keys() and found["step"] == 7
    assert torch.equal(found["model"]["w"], content(7)["model"]["w"])
    return False


def test_no_flipped_bit_changes_what_is_read(sealed: Path) -> None:
    whole = sealed.read_bytes()
    places = random.Random(1).sample(range(len(whole)), 300)
    places += [0, *range(len(whole) - 140, len(whole))]  # the archive's end and its comment
    refused = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        sealed.write_bytes(damaged)
        refused += is_refused(sealed)
    assert refused > len(places) / 3  # the rest is padding, dates and the like


def test_no_truncation_changes_what_is_read(sealed: Path) -> None:
    whole = sealed.read_bytes()
    shorter = random.Random(1).sample(range(len(whole)), 100)
    for size in [0, 1, 2, *shorter, *range(len(whole) - 140, len(whole))]:
        sealed.write_bytes(whole[:size])
        assert is_refused(sealed) or size > len(whole) - 40  # without the comment alone


def test_a_file_of_another_program_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    assert torch.equal(load_verified(tmp_path / "a.pt")["w"], torch.ones(2))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of file sizes here")
@pytest.mark.parametrize("limit", [0, 1, 5_000, 400_000])
def test_a_full_disk_is_one_clear_error_and_leaves_what_was_there(
    sealed: Path, limit: int
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="epoch-3.pt: could not be written"):
            save_atomically(content(8, size=100_000), sealed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_verified(sealed)["step"] == 7
    assert [p.name for p in sealed.parent.iterdir()] == ["epoch-3.pt"]


def write_for_ever(folder: Path) -> None:
    for step in range(1, 10**6):
        save_atomically(content(step, size=100_000), folder / f"checkpoint-{step % 3}.pt")


def test_a_writer_killed_at_any_moment_leaves_no_damaged_file(tmp_path: Path) -> None:
    """20 kills; without the renaming, most of them hit a file that is half written."""
    unfinished, generator = 0, random.Random(1)
    for _ in range(20):
        # Forked: a fresh start of PyTorch would take longer than all else.
        writer = multiprocessing.get_context("fork").Process(
            target=write_for_ever, args=[tmp_path]
        )
        writer.start()
        time.sleep(generator.uniform(0.02, 0.08))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
        unfinished += len(list(tmp_path.glob("*.tmp")))
        for path in tmp_path.glob("*.pt"):
            assert load_verified(path)["step"] == step_of(path)
        remove_unfinished(tmp_path)
        assert not list(tmp_path.glob("*.tmp"))
    assert unfinished > 0


def test_the_newest_intact_checkpoint_is_chosen(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name, step in (("epoch-1", 5), ("epoch-2", 10), ("checkpoint-10", 10), ("epoch-9", 8)):
        save_atomically(content(step), tmp_path / f"{name}.pt")
    assert newest_checkpoint(tmp_path)[0].name == "epoch-2.pt"  # it has been validated too
    save_atomically(content(12), tmp_path / "checkpoint-12.pt")
    os.utime(tmp_path / "checkpoint-12.pt", (0, 0))  # copies lose their dates
    assert newest_checkpoint(tmp_path)[0].name == "checkpoint-12.pt"


def test_damaged_checkpoints_are_passed_over_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save_atomically(content(step), tmp_path / f"checkpoint-{step}.pt")
    with open(tmp_path / "checkpoint-3.pt", "r+b") as f:
        f.truncate(500)
    whole = bytearray((tmp_path / "checkpoint-2.pt").read_bytes())
    whole[300] ^= 4
    (tmp_path / "checkpoint-2.pt").write_bytes(whole)
    assert newest_checkpoint(tmp_path)[0].name == "checkpoint-1.pt"
    assert "checkpoint-2.pt" in caplog.text
    (tmp_path / "checkpoint-1.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="none of its 3 checkpoints"):
        newest_checkpoint(tmp_path)


def test_weights_without_state_are_not_resumed_from(tmp_path: Path) -> None:
    weights = {k: v for k, v in content(1).items() if k != "optimizer"}
    save_atomically(weights, tmp_path / "epoch-1.pt")
    with pytest.raises(UserError, match="none of its 1 checkpoints"):
        newest_checkpoint(tmp_path)


def test_the_resuming_command_repeats_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert resume_command(["--exp-dir", "a b"]) == "./train.sh --exp-dir 'a b' --resume auto"
    once = ["--resume", "auto", "--world-size", "2"]
    assert resume_command(once) == "./train.sh --resume auto --world-size 2"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resume_command([]) == "the same torchrun command, ending in --resume auto"
