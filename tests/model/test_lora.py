"""LoRA: the small matrices train alone, and every reader of a checkpoint sees merged weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.stream_driver import TINY
from tests.support.tiny_recipe import run_and_resume, run_train
from xlsr_transducer import decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.heads import TransducerOptions, make_heads
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.lora import LoraLinear, load_lora_state, lora_state
from xlsr_transducer.training.optim import (
    OptimOptions,
    make_optimizer,
    prepare_lora,
    set_trainable,
)

OPTIONS = ["--lora-rank", "4", "--optimizer", "adamw", "--encoder-lr-scale", "1"]


def small_model(level: str = "frontend") -> SpeechModel:
    torch.manual_seed(0)
    three_layers = dataclasses.replace(TINY, num_hidden_layers=3)
    encoder = XLSREncoder(three_layers, EncoderOptions(encoder_dim=16), level)
    return SpeechModel(
        encoder, make_heads(["transducer"], encoder.output_dim, TransducerOptions(16, 16), 12)
    )


def with_lora(options: OptimOptions) -> SpeechModel:
    """A model whose small matrices have values, as after some training."""
    model = small_model()
    prepare_lora(model, options)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.lora_b)
    return model.eval()


def test_merged_weights_compute_what_the_parts_compute() -> None:
    x, lens = torch.randn(2, 20, 16), torch.tensor([20, 13])
    model, merged = with_lora(OptimOptions(lora_rank=4)), small_model().eval()
    before = merged.encoder(x, lens)[0]
    merged.load_state_dict(model.state_dict())
    expected = model.encoder(x, lens)[0]
    torch.testing.assert_close(merged.encoder(x, lens)[0], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, atol=0.1)


def test_a_new_lora_changes_nothing_and_takes_ordinary_weights() -> None:
    x, lens = torch.randn(2, 20, 16), torch.tensor([20, 13])
    plain, model = small_model().eval(), with_lora(OptimOptions(lora_rank=4))
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.encoder(x, lens)[0], plain.encoder(x, lens)[0])
    del (weights := plain.state_dict())["encoder.xlsr.encoder.layers.0.attention.q_proj.weight"]
    with pytest.raises(RuntimeError, match="0.attention.q_proj.weight"):
        model.load_state_dict(weights)


@pytest.mark.parametrize("layers, expected", [(-1, {"0", "1", "2"}), (2, {"1", "2"})])
def test_only_the_small_matrices_of_the_trained_layers_change(layers: int, expected: set) -> None:
    options = OptimOptions(lora_rank=4, trainable_layers=layers)
    model = with_lora(options)
    start = {name: p.detach().clone() for name, p in model.encoder.xlsr.named_parameters()}
    set_trainable(model, options, 0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    make_optimizer(model, options).step()
    changed = {n for n, p in model.encoder.xlsr.named_parameters() if not torch.equal(p, start[n])}
    assert changed and all(".lora_" in name for name in changed)
    assert {name.split(".")[2] for name in changed} == expected
    assert len(changed) == 8 * len(expected)


@pytest.mark.long
def test_a_training_goes_on_to_the_bit_and_decodes_without_flags(
    corpus: Path, tmp_path: Path
) -> None:
    straight, resumed = run_and_resume(corpus, tmp_path, *OPTIONS)
    assert all(torch.equal(v, resumed["model"][k]) for k, v in straight["model"].items())
    assert all(float(x["lora_b"].abs().max()) > 0 for x in straight["lora"].values())
    assert not any("lora" in name for name in straight["model"])
    for avg in (1, 2):
        loaded = load_model(CheckpointOptions(tmp_path / "a", epoch=2, avg=avg)).model
        assert not any(isinstance(m, LoraLinear) for m in loaded.modules())
    decode.main(["--exp-dir", str(tmp_path / "a"), "--data-dir", str(corpus), "--split", "val"])
    with pytest.raises(UserError, match="rank 4, alpha 8, but the options ask for .*rank 2"):
        run_train(corpus, tmp_path / "b", "--lora-rank", "2", "--start-batch", "5")


def test_state_of_another_lora_is_refused() -> None:
    model = with_lora(OptimOptions(lora_rank=4))
    state = lora_state(model)
    load_lora_state(model, state)
    for other in (
        OptimOptions(lora_rank=4, lora_alpha=5.0),
        OptimOptions(lora_rank=4, trainable_layers=1),
    ):
        with pytest.raises(UserError, match="checkpoint was trained with LoRA in 12"):
            load_lora_state(with_lora(other), state)
    with pytest.raises(UserError, match="no LoRA"):
        load_lora_state(small_model(), state)


def test_lora_options_that_contradict_are_refused_by_name() -> None:
    assert OptimOptions(lora_rank=3).lora_alpha == 6.0
    for options in (
        {"lora_alpha": 8.0},
        {"lora_rank": 4, "trainable_layers": 0},
        {"lora_rank": -1},
    ):
        with pytest.raises(UserError, match="--lora"):
            OptimOptions(**options)
    with pytest.raises(UserError, match="leave no layer"):
        prepare_lora(small_model("last"), OptimOptions(lora_rank=4))
    with pytest.raises(UserError, match=f"--lora-rank 999: .* width, {TINY.hidden_size}"):
        prepare_lora(small_model(), OptimOptions(lora_rank=999))


@pytest.mark.parametrize("level, count", [("frontend", 3), ("2", 1), ("last", 0)])
def test_more_layers_than_lie_above_the_level_are_refused(level: str, count: int) -> None:
    prepare_lora(small_model(level), OptimOptions(trainable_layers=count))
    with pytest.raises(UserError, match=f"--trainable-layers 99: of XLSR {count} layers"):
        prepare_lora(small_model(level), OptimOptions(trainable_layers=99))
