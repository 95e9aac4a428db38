"""Too little memory: layers computed twice, a try before the first step, batches left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.tiny_recipe import run_train
from xlsr_transducer.core.errors import UserError, is_out_of_memory
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.loop import Trainer
from xlsr_transducer.training.step import Stepper

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB (this is a test)"


def weights(exp: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(exp / "epoch-1.pt")["model"]


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def log_of(exp: Path) -> str:
    return "".join(path.read_text() for path in sorted((exp / "log").iterdir()))


class Forgetful(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)


def too_large_at(monkeypatch: pytest.MonkeyPatch, calls: list[int], seen: list[int]) -> None:
    """In these calls of the model in training, counted from 0, backward runs out of memory."""
    forward = SpeechModel.forward

    def failing(self, x, *args, **more):
        losses = forward(self, x, *args, **more)
        if not self.training:
            return losses
        seen.append(len(x))
        if len(seen) - 1 not in calls:
            return losses
        # The joiner has its gradient by then, and the encoder has none.
        return losses._replace(simple=Forgetful.apply(losses.simple))

    monkeypatch.setattr(SpeechModel, "forward", failing)


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.cuda.OutOfMemoryError(OUT_OF_MEMORY), True),
        (RuntimeError(OUT_OF_MEMORY), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_batch_that_does_not_fit_is_left_out_and_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--num-epochs=1"]
    seen: list[int] = []
    too_large_at(monkeypatch, [1], seen)
    run_train(corpus, tmp_path, *options)
    log = log_of(tmp_path)
    assert f"left out, does not fit into memory: {seen[1]} utterances, up to " in log
    assert "1 batches too large for the memory" in log
    content = read_checkpoint(tmp_path / "epoch-1.pt")
    assert content["step"] == len(seen) and content["progress"]["too_large"] == 1
    assert not (tmp_path / "failed").exists()


def test_a_left_out_batch_changes_no_weight(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    too_large_at(monkeypatch, list(range(100)), seen)
    run_train(corpus, tmp_path, "--num-epochs=1", "--max-skipped-batches=100", "--save-every-n=1")
    first, last = read_checkpoint(tmp_path / "checkpoint-1.pt")["model"], weights(tmp_path)
    assert len(seen) > 3 and all(torch.equal(first[name], last[name]) for name in first)


def test_with_what_does_not_fit_goes_what_its_process_had_of_the_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    update = Stepper.update

    def noted(self, *args, **more):
        report = update(self, *args, **more)
        norms.append(report.grad_norm)
        return report

    monkeypatch.setattr(Stepper, "update", noted)
    seen: list[int] = []
    too_large_at(monkeypatch, [1], seen)  # the second of the first step's
    run_train(corpus, tmp_path, "--num-epochs=1", "--total-duration=30", "--max-duration=15")
    assert norms[0] == 0.0 and norms[1] > 0.0
    lost = [line for line in log_of(tmp_path).splitlines() if "left out, does not fit" in line]
    assert len(lost) == 2 and all("step 0: " in line for line in lost)
    assert [int(line.split("memory: ")[1].split()[0]) for line in lost] == seen[:2]


def test_too_many_batches_that_do_not_fit_end_the_training_with_advice(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_large_at(monkeypatch, [0, 1, 2], [])
    with pytest.raises(UserError, match="3 batches did not fit .* --max-skipped-batches 2: lower"):
        run_train(corpus, tmp_path, "--num-epochs=1", "--max-skipped-batches=2")


def test_a_scan_and_recomputed_layers_change_nothing(corpus: Path, tmp_path: Path) -> None:
    options = ["--num-epochs=1", "--layerdrop=0.3", "--channel-mask-prob=0.1"]
    run_train(corpus, tmp_path / "plain", *options)
    run_train(corpus, tmp_path / "scanned", *options, "--scan-for-oom-batches=1",
              "--gradient-checkpointing=1")  # fmt: skip
    assert same(tmp_path / "plain", tmp_path / "scanned")
    histories = [json.loads((tmp_path / name / "history.json").read_text())[0]["train"]
                 for name in ("plain", "scanned")]  # fmt: skip
    assert histories[0] == histories[1]
    assert "fits into memory: " in log_of(tmp_path / "scanned")
    assert "fits into memory: " not in log_of(tmp_path / "plain")


def test_a_scan_names_the_batch_that_will_not_fit_before_the_first_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    too_large_at(monkeypatch, [0], seen)
    with pytest.raises(UserError, match=r"does not fit into memory: lower .*\(train_00"):
        run_train(corpus, tmp_path, "--num-epochs=1", "--scan-for-oom-batches=1")
    assert len(seen) == 1


def test_a_scan_tries_the_whole_utterance_and_the_smallest_chunks(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, int]] = set()
    forward = SpeechModel.forward

    def noted(self, x, x_lens, y, y_lens, options, chunk, *others):
        if self.training:
            seen.add((len(x), chunk.chunk_size))
        return forward(self, x, x_lens, y, y_lens, options, chunk, *others)

    def stop(self, extent) -> bool:
        raise InterruptedError

    monkeypatch.setattr(SpeechModel, "forward", noted)
    monkeypatch.setattr(Trainer, "_train_epoch", stop)
    with pytest.raises(InterruptedError):
        run_train(corpus, tmp_path, "--scan-for-oom-batches=1", "--streaming=1",
                  "--chunk-size=32,-1,8,16", "--left-context-chunks=2,1")  # fmt: skip
    sizes = {size for size, _ in seen}
    assert seen == {(size, chunk) for size in sizes for chunk in (-1, 8)}


def test_a_scan_reserves_memory_for_the_moments_of_layers_that_are_still_frozen(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[tuple[int, int]] = []
    to_come = Stepper._moments_to_come

    def noted(self) -> int:
        of_xlsr = sum(p.numel() for p in self.state.model.encoder.xlsr.parameters())
        total = sum(p.numel() for p in self.state.model.parameters())
        reserved.append((to_come(self), 2 * (of_xlsr if self.state.progress.step else total)))
        return reserved[-1][0]

    monkeypatch.setattr(Stepper, "_moments_to_come", noted)
    options = ["--scan-for-oom-batches=1", "--freeze-encoder-steps=100"]
    run_train(corpus, tmp_path, "--num-epochs=1", *options)
    run_train(corpus, tmp_path, "--num-epochs=2", "--resume=auto", *options)
    assert all(found == expected for found, expected in reserved) and len(set(reserved)) == 2
