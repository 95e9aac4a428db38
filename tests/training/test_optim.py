"""Parameters and rates: ScaledAdam against its formulas, rates of layers, options."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.stream_driver import TINY
from tests.support.tiny_recipe import run_and_resume
from xlsr_transducer.core.compat import load_tensors
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.heads import TransducerOptions, make_heads
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.optim import (
    OptimOptions,
    make_optimizer,
    rate_scales,
    scale_and_clip,
    set_learning_rate,
    set_trainable,
)
from xlsr_transducer.training.scaled_adam import ScaledAdam
from xlsr_transducer.training.schedules import eden, tri_stage
from xlsr_transducer.training.sharding import load_optimizer

BETAS = (0.9, 0.98)


class Reference:
    """ScaledAdam of one tensor after the paper's formulas, in float64."""

    def __init__(self, value: np.ndarray):
        self.theta = value.astype(np.float64)
        self.m, self.v = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.n = self.w = 0.0
        self.t = 0

    def rms(self) -> float:
        return float(np.sqrt(np.mean(self.theta**2)))

    def step(self, gradient: np.ndarray, rate: float) -> None:
        self.t += 1
        g, theta, r = gradient.astype(np.float64), self.theta, self.rms()
        h = float((g * theta).sum())
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g**2
        self.n = BETAS[0] * self.n + (1 - BETAS[0]) * h
        self.w = BETAS[1] * self.w + (1 - BETAS[1]) * h**2
        bias = np.sqrt(1 - BETAS[1] ** self.t) / (1 - BETAS[0] ** self.t)
        adam = -rate * bias * self.m / (np.sqrt(self.v) + 1e-8)
        if theta.size == 1:
            self.theta = theta + 0.1 * adam
            return
        of_size = -0.1 * rate * bias * self.n / (np.sqrt(self.w) + 1e-8) * theta
        self.theta = theta + max(r, 1e-5) * adam + of_size


def median_clip(references: list[Reference], gradients: list, norms: list[float]) -> float:
    squares = [
        (r.rms() * np.linalg.norm(g)) ** 2 for r, g in zip(references, gradients) if g is not None
    ]
    norms.append(float(np.sqrt(sum(squares))))
    return min(1.0, 2.0 * statistics.median(norms[-100:]) / norms[-1])


def test_scaled_adam_follows_the_formulas_on_ragged_tensors_scalars_and_zeros() -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (5, 3), (7,), (2, 3, 4), (), (1,), (4,)]
    sizes = [1.0, 10.0, 0.0, 0.01, 1.0, 1.0, 1.0]
    values = [torch.randn(shape) * size for shape, size in zip(shapes, sizes)]
    params = [nn.Parameter(v.clone()) for v in values]
    references = [Reference(v.numpy()) for v in values]
    rates = [0.05] * 3 + [0.005] * 4
    optimizer = ScaledAdam([{"params": params[:3]}, {"params": params[3:], "lr": 0.005}], lr=0.05)
    norms: list[float] = []
    for step in range(120):
        size = 100.0 if step in (3, 60) else 1.0  # two steps that are clipped
        gradients = [torch.randn_like(v) * size for v in values]
        gradients[3] += values[3]  # one whose size is to shrink
        gradients[6].zero_()
        given = [None if i == 1 and step < 10 else g for i, g in enumerate(gradients)]
        clip = median_clip(references, [None if g is None else g.numpy() for g in given], norms)
        assert clip < 0.2 or size == 1.0
        for param, reference, gradient, rate in zip(params, references, given, rates):
            param.grad = gradient
            if gradient is not None:
                reference.step(gradient.numpy() * clip, rate)
        optimizer.step()
    assert optimizer.param_groups[0]["recent_norms"] == pytest.approx(norms[-100:], rel=1e-4)
    for param, reference in zip(params, references):
        expected = torch.from_numpy(np.asarray(reference.theta)).float()
        torch.testing.assert_close(param.detach(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(params[6], values[6]), "a tensor without gradient stays as it is"
    assert params[2].abs().min() > 0, "a tensor of zeros leaves zero"


def test_a_step_changes_large_and_small_tensors_by_the_same_share() -> None:
    torch.manual_seed(0)
    value, gradient = torch.randn(50, 50), torch.randn(50, 50)
    large, small = nn.Parameter(value * 8), nn.Parameter(value / 8)
    large.grad, small.grad = gradient / 8, gradient * 8
    ScaledAdam([large, small], lr=0.01).step()
    torch.testing.assert_close(large.detach() / 64, small.detach(), rtol=1e-4, atol=1e-7)
    change = (small.detach() * 8 - value).pow(2).mean().sqrt()
    assert float(change) == pytest.approx(0.01, rel=0.02)


def test_scaled_adam_resumes_to_the_bit_from_tensors_and_plain_values(tmp_path: Path) -> None:
    def steps(params: list, optimizer: ScaledAdam, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for i, p in enumerate(params):
                is_frozen = i == 1 and step < 4
                p.grad = None if is_frozen else torch.randn(p.shape, generator=generator)
            optimizer.step()

    torch.manual_seed(0)
    straight = [nn.Parameter(torch.randn(s)) for s in [(3, 4), (5,), ()]]
    optimizer = ScaledAdam(straight)
    steps(straight, optimizer, 0, 6)
    torch.save([optimizer.state_dict(), [p.data for p in straight]], tmp_path / "state.pt")
    steps(straight, optimizer, 6, 12)
    state, values = load_tensors(tmp_path / "state.pt")
    resumed = [nn.Parameter(v) for v in values]
    again = ScaledAdam(resumed)
    again.load_state_dict(state)
    steps(resumed, again, 6, 12)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed))


def test_tri_stage_rises_holds_and_decays_at_the_named_points() -> None:
    points = {0.0: 0.01, 0.05: 0.505, 0.1: 1.0, 0.3: 1.0, 0.5: 1.0, 0.75: 0.05**0.5, 1.0: 0.05}
    for progress, factor in {**points, 1.2: 0.05}.items():
        assert tri_stage(progress, 0.1, 0.4) == pytest.approx(factor, rel=1e-9)
    assert tri_stage(1.0, 0.0, 1.0) == 1.0 == tri_stage(0.0, 0.0, 1.0)


def test_eden_equals_icefalls_counts_of_batches_and_epochs_at_the_named_points() -> None:
    """A training of 1000 batches in 20 epochs, with lr_batches 100, lr_epochs 5, warm-up 50."""

    def counted(batch: int) -> float:
        epoch = batch / 50
        rise = min(1.0, 0.5 + 0.5 * batch / 50)
        return ((batch**2 + 100**2) / 100**2) ** -0.25 * ((epoch**2 + 25) / 25) ** -0.25 * rise

    for batch in (0, 1, 25, 49, 50, 51, 100, 250, 999, 1000):
        assert eden(batch / 1000, 0.05, 0.1, 0.25) == pytest.approx(counted(batch), rel=1e-9)
    assert eden(0.0, 0.05, 0.1, 0.25) == 0.5
    assert eden(0.0, 0.0, 0.1, 0.25) == 1.0
    points = {0.1: 2**-0.25 * 1.16**-0.25, 0.25: 7.25**-0.25 * 2**-0.25, 1.0: (101 * 17) ** -0.25}
    for progress, factor in points.items():
        assert eden(progress, 0.05, 0.1, 0.25) == pytest.approx(factor, rel=1e-9)


def small_model(cut: str = "waveform", layers: int = 3) -> SpeechModel:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, num_hidden_layers=layers)
    encoder = XLSREncoder(config, EncoderOptions(encoder_dim=16), cut)
    return SpeechModel(
        encoder, make_heads(["transducer"], encoder.output_dim, TransducerOptions(16, 16), 12)
    )


def rates(optimizer: torch.optim.Optimizer, model: SpeechModel) -> dict[str, float]:
    by_id = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "scaled_adam"])
def test_layers_learn_slower_the_further_they_are_from_the_top(optimizer: str) -> None:
    options = OptimOptions(optimizer, base_lr=0.01, encoder_lr_scale=0.2, layer_lr_decay=0.5)
    model = small_model()
    made = make_optimizer(model, options)
    assert set_learning_rate(made, options, 0.0) == 0.01 * options.rate_factor(0.0)
    options = dataclasses.replace(options, warmup_fraction=0.0)
    assert set_learning_rate(made, options, 0.0) == 0.01
    rate = rates(made, model)
    expected = {
        "heads.transducer.joiner.output_linear.weight": 0.01,
        "encoder.adapter.projection.bias": 0.01,
        "encoder.xlsr.encoder.layer_norm.weight": 0.002,
        "encoder.xlsr.encoder.layers.2.attention.q_proj.weight": 0.002,
        "encoder.xlsr.encoder.layers.1.final_layer_norm.bias": 0.001,
        "encoder.xlsr.encoder.layers.0.feed_forward.output_dense.weight": 0.0005,
        "encoder.xlsr.feature_projection.projection.weight": 0.00025,
        "encoder.xlsr.masked_spec_embed": 0.00025,
    }
    assert {name: rate[name] for name in expected} == pytest.approx(expected)
    upper = small_model(cut="1")  # features of layer 1: the rates of the rest stay the same
    scales = rate_scales(upper, options)
    assert scales["encoder.xlsr.encoder.layers.1.layer_norm.weight"] == pytest.approx(0.1)
    assert "encoder.xlsr.encoder.layers.0.layer_norm.weight" not in scales


def test_only_matrices_decay_and_every_parameter_has_one_rate() -> None:
    model = small_model()
    groups = make_optimizer(model, OptimOptions(weight_decay=0.3)).param_groups
    assert sorted((g["lr_scale"], g["weight_decay"]) for g in groups) == [
        (0.1, 0.0), (0.1, 0.3), (1.0, 0.0), (1.0, 0.3)]  # fmt: skip
    for group in groups:
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_a_resumed_optimizer_has_its_moments_back_and_the_rates_of_its_options() -> None:
    model = small_model()
    saved = make_optimizer(model, OptimOptions())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    saved.step()
    other = make_optimizer(model, OptimOptions(encoder_lr_scale=0.3, weight_decay=0.5))
    load_optimizer(other, saved.state_dict())
    assert {(g["lr_scale"], g["weight_decay"]) for g in other.param_groups} == {
        (0.3, 0.0), (0.3, 0.5), (1.0, 0.0), (1.0, 0.5)}  # fmt: skip
    for parameter in model.parameters():
        assert torch.equal(other.state[parameter]["exp_avg"], saved.state[parameter]["exp_avg"])
    for options in (OptimOptions("scaled_adam"), OptimOptions(layer_lr_decay=0.9)):
        with pytest.raises(UserError, match="other groups of parameters: resume with its --opt"):
            load_optimizer(make_optimizer(model, options), saved.state_dict())


def gradients(model: SpeechModel) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("optimizer", ["adamw", "scaled_adam"])
def test_frozen_layers_keep_their_values_until_they_thaw(optimizer: str) -> None:
    model, start = small_model(), small_model().state_dict()
    options = OptimOptions(optimizer, freeze_encoder_steps=2, trainable_layers=1)
    made = make_optimizer(model, options)

    def changed() -> set[str]:
        return {name for name, value in model.state_dict().items() if not value.equal(start[name])}

    for step in range(4):
        set_trainable(model, options, step)
        made.zero_grad(set_to_none=True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        assert scale_and_clip(gradients(model), 1.0, options) > 2.0
        made.step()
        layers = {name for name in changed() if name.startswith("encoder.xlsr.")}
        assert bool(layers) == (step >= 2)
    top = ("encoder.xlsr.encoder.layers.2.", "encoder.xlsr.encoder.layer_norm.")
    assert layers == {name for name in start if name.startswith(top)}
    assert "heads.transducer.joiner.output_linear.weight" in changed()


def test_the_gradient_is_shortened_for_adamw_unless_clipping_is_off_or_scaled_adams() -> None:
    given = [(OptimOptions(), 2.0), (OptimOptions("scaled_adam"), 10.0)]
    for options, length in [*given, (OptimOptions(clip_grad=0.0), 10.0)]:
        model = small_model()
        model.joiner.output_linear.bias.grad = torch.zeros(12)
        model.joiner.output_linear.bias.grad[3] = 40.0
        assert scale_and_clip(gradients(model), 0.25, options) == pytest.approx(10.0)
        assert float(model.joiner.output_linear.bias.grad.norm()) == pytest.approx(length)


def test_a_short_gradient_is_scaled_and_one_that_is_not_finite_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(3, 5, generator=generator), torch.randn(7, generator=generator)]
    for scale, factor in ((1e-3, 1e-3), (1.0, None)):
        found = [x.clone() for x in given]
        whole = float(torch.cat([x.reshape(-1).double() for x in given]).norm())
        assert scale_and_clip(found, scale, OptimOptions()) == pytest.approx(scale * whole)
        factor = factor or 2.0 / whole
        for x, y in zip(found, given):
            torch.testing.assert_close(x, y * factor)
    given[1][2] = float("inf")
    found = [x.clone() for x in given]
    assert not math.isfinite(scale_and_clip(found, 0.5, OptimOptions()))
    assert all(torch.equal(x, y) for x, y in zip(found, given))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "adamw", "clipping_scale": 2.0}, "--clipping-scale 2.0 .*adamw"),
        ({"optimizer": "adamw", "lr_epochs_fraction": 0.1}, "--lr-epochs-fraction"),
        ({"optimizer": "scaled_adam", "weight_decay": 0.0}, "--weight-decay 0.0 .*scaled_adam"),
        ({"optimizer": "scaled_adam", "hold_fraction": 0.4}, "--hold-fraction"),
        ({"optimizer": "scaled_adam", "clip_grad": 5.0}, "--clip-grad"),
        (
            {"optimizer": "scaled_adam", "lr_batches_fraction": 7500.0},
            "must be above 0 and at most 10",
        ),
        ({"layer_lr_decay": 0.0}, "--layer-lr-decay"),
        ({"warmup_fraction": 0.7}, "--warmup-fraction"),
    ],
)
def test_options_that_contradict_the_optimizer_are_refused_by_name(
    options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        OptimOptions(**options)


@pytest.mark.long
def test_a_training_with_scaled_adam_learns_and_resumes_to_the_bit(
    corpus: Path, tmp_path: Path
) -> None:
    own = ["--optimizer", "scaled_adam", "--base-lr", "0.02", "--freeze-encoder-steps", "3",
           "--layer-lr-decay", "0.8"]  # fmt: skip
    straight, resumed = run_and_resume(corpus, tmp_path, *own)
    history = json.loads((tmp_path / "a" / "history.json").read_text())
    assert history[1]["train"]["pruned"] < history[0]["train"]["pruned"]
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())["OptimOptions"]
    assert settings["clipping_scale"] == 2.0 and settings["weight_decay"] is None
    assert all(torch.equal(v, resumed["model"][k]) for k, v in straight["model"].items())
    assert str(straight["optimizer"]) == str(resumed["optimizer"])
