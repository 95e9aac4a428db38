"""A failed batch is kept, and repeats with the same numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from local import replay_batch
from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.datamodule import Batch, DataModule, DataOptions
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.model.heads import Losses, LossOptions
from xlsr_transducer.training.failed_batch import (
    FailedBatches,
    FailureOptions,
    read_failed_batch,
    replay,
)
from xlsr_transducer.training.gradient import Objective, finite
from xlsr_transducer.training.optim import OptimOptions, prepare_lora
from xlsr_transducer.training.teacher import Teacher
from xlsr_transducer.training.teacher_options import Scales

LOSS = LossOptions(ctc_loss_scale=0.2, warm_step=10)


@pytest.fixture
def batch(corpus: Path) -> Batch:
    options = DataOptions(data_dir=corpus, num_workers=0, num_buckets=2, max_duration=20.0)
    data = DataModule(options, find_features(corpus), Tokenizer.load(find_lang_dir(corpus)))
    return next(iter(data.train_loader(["train"], 1, 1)))


def keeper(corpus: Path, streaming_exp: Path, exp: Path, **options) -> FailedBatches:
    """With a model of which only the heads and LoRA in the second layer are trained."""
    content = read_checkpoint(streaming_exp / "epoch-1.pt")
    config = ModelConfig.from_dict(content["config"])
    model = build_model(config)
    model.load_state_dict(content["model"])
    optim = OptimOptions(trainable_layers=1, lora_rank=2)
    prepare_lora(model, optim)
    torch.nn.init.normal_(model.encoder.xlsr.encoder.layers["1"].attention.q_proj.lora_b)
    objective = Objective(config, optim, LOSS, 5, None)
    tokenizer = Tokenizer.load(find_lang_dir(corpus))
    return FailedBatches(exp, model, objective, tokenizer, FailureOptions(**options))


def losses_of(kept: FailedBatches, batch: Batch, step: int) -> Losses:
    kept.objective.prepare(kept.model, step)
    with repeatable():
        return kept.objective.losses(kept.model, batch, 2, batch.place.index, step)


def test_a_failed_batch_repeats_to_the_bit(
    corpus: Path, streaming_exp: Path, tmp_path: Path, batch: Batch, capsys
) -> None:
    kept = keeper(corpus, streaming_exp, tmp_path)
    losses = losses_of(kept, batch, 7)
    LOSS.weighted(losses, 7).sum().backward()
    kept.keep(batch, 2, 7, "ZeroDivisionError: a defect")
    torch.manual_seed(6)
    assert [p.name for p in kept.saved] == ["step-7-rank-0.pt"]
    assert not list((tmp_path / "failed").glob("*.tmp*"))
    content = read_failed_batch(kept.saved[0])
    assert content["reason"] == "ZeroDivisionError: a defect" and content["epoch"] == 2
    result = replay(content, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(losses, result.losses))
    gradients = [p.grad for p in kept.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(kept.model.parameters(), float("inf"))
    norm = norm / batch.token_lens.sum()
    assert len(gradients) < len(list(kept.model.parameters())) and norm == result.grad_norm

    replay_batch.main([str(kept.saved[0]), "--device", "cpu"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in batch.ids) and "a defect" in shown
    assert f"gradient norm {norm:.9g}" in shown


def test_a_batch_of_a_training_with_a_teacher_repeats_without_the_teachers_file(
    corpus: Path, streaming_exp: Path, tmp_path: Path, batch: Batch
) -> None:
    kept = keeper(corpus, streaming_exp, tmp_path)
    teacher = Teacher(Scales(15.0, 1.0), kept.objective.config)
    weights = read_checkpoint(streaming_exp / "epoch-2.pt")["model"]
    teacher.take(kept.objective.config, weights, torch.device("cpu"))
    kept.objective = dataclasses.replace(kept.objective, teacher=teacher)
    losses = losses_of(kept, batch, 7)
    expected = kept.objective.weighted(losses, finite(losses), 7).sum() / batch.token_lens.sum()
    kept.keep(batch, 2, 7, "a defect")
    result = replay(read_failed_batch(kept.saved[0]), torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(losses, result.losses))
    assert result.losses.layers.any() and result.losses.logits.any()
    assert float(result.total) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_a_batch_of_losses_that_are_not_finite_is_kept_and_leads_to_its_module(
    corpus: Path, streaming_exp: Path, tmp_path: Path, batch: Batch
) -> None:
    kept = keeper(corpus, streaming_exp, tmp_path, max_failed_in_a_row=2)
    with torch.no_grad():
        kept.model.joiner.encoder_proj.weight[0, 0] = float("nan")
    for step in (1, 2):
        is_finite = finite(losses_of(kept, batch, step))
        assert not is_finite.any()
        kept.name_losses(batch, is_finite, 1, step)
        if step == 1:
            kept.end_step([batch], 1, step, True, is_scaled=False)
    with pytest.raises(UserError, match="2 steps in a row .* local.replay_batch .*step-2-"):
        kept.end_step([batch], 1, 2, True, is_scaled=False)
    message = "output of heads.transducer.joiner.encoder_proj .*parameter weight"
    with pytest.raises(UserError, match=message):
        replay_batch.main([str(kept.saved[0]), "--device", "cpu", "--inf-check", "1"])


def test_a_few_bad_losses_are_named_and_do_not_fail_the_batch(
    corpus: Path, streaming_exp: Path, tmp_path: Path, batch: Batch, caplog
) -> None:
    kept = keeper(corpus, streaming_exp, tmp_path)
    value = torch.ones(len(batch.ids))
    simple = value.clone()
    simple[1] = float("inf")
    is_finite = finite(Losses(simple, *[value] * (len(Losses._fields) - 1)))
    assert is_finite.tolist() == [i != 1 for i in range(len(batch.ids))]
    kept.name_losses(batch, is_finite, 1, 1)
    assert batch.ids[1] in caplog.text and batch.ids[0] not in caplog.text
    kept.end_step([batch], 1, 1, True, is_scaled=False)
    assert not kept.saved and kept.in_a_row == 0
    kept.end_step([batch], 1, 2, False, is_scaled=False)
    assert "gradient not finite, no update: " + ", ".join(batch.ids) in caplog.text
    assert [p.name for p in kept.saved] == ["step-2-rank-0.pt"] and kept.in_a_row == 1


def test_no_more_files_are_kept_than_asked_for_and_a_full_disk_hides_nothing(
    corpus: Path, streaming_exp: Path, tmp_path: Path, batch: Batch, caplog, monkeypatch
) -> None:
    kept = keeper(corpus, streaming_exp, tmp_path, keep_failed_batches=1)
    for step in (1, 2):
        kept.keep(batch, 1, step, "a defect")
    assert [p.name for p in (tmp_path / "failed").iterdir()] == ["step-1-rank-0.pt"]

    def no_space(*_) -> None:
        raise UserError("could not be written (No space left on device)")

    monkeypatch.setattr("xlsr_transducer.training.failed_batch.save_atomically", no_space)
    keeper(corpus, streaming_exp, tmp_path / "full").keep(batch, 1, 1, "a defect")
    assert "No space left" in caplog.text


def test_another_file_is_refused_by_name(streaming_exp: Path) -> None:
    with pytest.raises(UserError, match="epoch-1.pt: not a failed batch"):
        replay_batch.main([str(streaming_exp / "epoch-1.pt")])
