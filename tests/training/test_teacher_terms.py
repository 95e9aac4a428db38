"""The terms of distillation, computed again from hidden states that hooks have kept.

Letters: T frames, U tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.stream_driver import speech
from tests.support.teachers import STREAMING, config_of, random_model, teacher_of
from xlsr_transducer.model.heads import Losses, LossOptions
from xlsr_transducer.model.heads.transducer import TransducerHead
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.gradient import autocast
from xlsr_transducer.training.teacher_options import Scales

SAMPLES = (9000, 400, 20000, 1700)  # the second is one frame
FRAMES = [(n - 400) // 320 + 1 for n in SAMPLES]
TOKENS = (5, 1, 12, 0)


def batch(is_classifier: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples, their lengths, tokens or labels, their lengths; padding is noise."""
    x = torch.stack([speech(max(SAMPLES), seed, torch.float32) for seed in range(len(SAMPLES))])
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(1, 40, (len(SAMPLES), max(TOKENS)), generator=generator)
    y_lens = torch.tensor(TOKENS)
    if is_classifier:
        y, y_lens = y[:, :1], torch.ones(len(SAMPLES), dtype=torch.int64)
    return x, torch.tensor(SAMPLES), y, y_lens


def detached(losses: Losses) -> Losses:
    return Losses(*[x.detach() for x in losses])


def keep_outputs(model: SpeechModel) -> dict[str, Any]:
    """What the model computes: filled in when it runs."""
    kept: dict[str, Any] = {"layers": []}
    for layer in model.encoder.xlsr.encoder.layers.values():
        layer.register_forward_hook(lambda _, __, out: kept["layers"].append(out.detach()))
    model.encoder.register_forward_hook(lambda _, __, out: kept.update(out=out[0].detach()))
    if model.joiner is not None:
        for module in (
            model.decoder,
            model.heads["transducer"].decoder_dropout,
        ):  # the last counts
            module.register_forward_hook(lambda _, __, out: kept.update(decoded=out.detach()))
    return kept


def layer_term(ours: list[Tensor], theirs: list[Tensor], i: int) -> float:
    """Of utterance ``i``: the mean over layers, frames and channels."""

    def normed(row: Tensor) -> np.ndarray:
        values = row.double().numpy()
        return (values - values.mean()) / math.sqrt(values.var() + 1e-5)

    distances = []
    for a, b in zip(ours, theirs):
        for t in range(FRAMES[i]):
            distances.append(((normed(a[i, t]) - normed(b[i, t])) ** 2).mean())
    return float(np.mean(distances))


def kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of softened distributions of logits (V,)."""
    p, q = (np.exp(x / 2 - np.logaddexp.reduce(x / 2)) for x in (theirs, ours))
    return float((p * np.log(p / q)).sum())


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()


def ctc_logits(model: SpeechModel, out: Tensor, i: int) -> list[np.ndarray]:
    frames = (FRAMES[i] + model.encoder.subsampling_factor - 1) // model.encoder.subsampling_factor
    return [linear(model.ctc_output, out[i, t].double().numpy()) for t in range(frames)]


def lattice_logits(
    model: SpeechModel, kept: dict[str, Any], i: int, cells: list[tuple[int, int]]
) -> list[np.ndarray]:
    """Of utterance ``i`` on ``cells`` (t, s)."""
    joiner, found = model.joiner, []
    for t, s in cells:
        frame = linear(joiner.encoder_proj, kept["out"][i, t].double().numpy())
        context = linear(joiner.decoder_proj, kept["decoded"][i, s].double().numpy())
        found.append(linear(joiner.output_linear, np.tanh(frame + context)))
    return found


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The cells of the lattice that the pruned loss looks at: filled in when it does."""
    kept: list[Tensor] = []
    loss = TransducerHead._pruned_loss

    def note(self, logits, y, of_batch, *others):
        kept.append(of_batch)
        return loss(self, logits, y, of_batch, *others)

    monkeypatch.setattr(TransducerHead, "_pruned_loss", note)
    return kept


@pytest.mark.parametrize("mixer", ["attention", "bimamba2"])
@pytest.mark.parametrize("prune_range", [3, 99])
def test_terms_of_transducer_and_ctc(mixer: str, prune_range: int, ranges: list[Tensor]) -> None:
    """A full-context teacher with the transducer alone of the student's two heads, and with
    both; dropout and masks are those of training."""
    config = config_of(streaming=STREAMING, mixer=mixer)
    model = random_model(config)
    options = LossOptions(ctc_loss_scale=0.2, prune_range=prune_range)
    x, x_lens, y, y_lens = batch()
    for heads in (("transducer",), ("transducer", "ctc")):
        teacher = teacher_of(config_of(heads), config)
        ours, theirs = keep_outputs(model), keep_outputs(teacher.model)
        torch.manual_seed(5)
        losses = detached(
            model(x, x_lens, y, y_lens, options, STREAMING.default(), teacher.lesson)
        )
        for i, count in enumerate(TOKENS):
            frames = (FRAMES[i] + 1) // 2
            cells = [(t, s) for t in range(frames) for s in ranges[-1][i, t].tolist()]
            cells = [(t, s) for t, s in cells if s <= count]
            assert prune_range < 99 or len(cells) == frames * (count + 1)
            pairs = zip(
                lattice_logits(model, ours, i, cells),
                lattice_logits(teacher.model, theirs, i, cells),
            )
            expected = np.mean([kl(a, b) for a, b in pairs])
            if "ctc" in heads:
                pairs = zip(
                    ctc_logits(model, ours["out"], i), ctc_logits(teacher.model, theirs["out"], i)
                )
                expected += np.mean([kl(a, b) for a, b in pairs])
            assert float(losses.logits[i]) == pytest.approx(count * expected, rel=1e-4, abs=1e-7)
            expected = layer_term(ours["layers"], theirs["layers"], i)
            assert float(losses.layers[i]) == pytest.approx(count * expected, rel=1e-4)
        assert losses.layers[:3].min() > 0.01 and losses.logits[:3].min() > 1e-4


def test_terms_of_ctc_without_adapter_on_two_views() -> None:
    config = config_of(("ctc",), adapter="none")
    model, teacher = random_model(config), teacher_of(config, config)
    options = LossOptions(heads="ctc", cr_ctc_scale=0.2)
    x, x_lens, y, y_lens = batch()
    ours, theirs = keep_outputs(model), keep_outputs(teacher.model)
    losses = detached(model(x, x_lens, y, y_lens, options, teach=teacher.lesson))
    for i, count in enumerate(TOKENS):
        terms = []
        for view in (0, len(TOKENS)):
            of_view = [[o[view:] for o in kept["layers"]] for kept in (ours, theirs)]
            outs = ours["out"][view:], theirs["out"][view:]
            logits = ctc_logits(model, outs[0], i), ctc_logits(teacher.model, outs[1], i)
            divergences = [kl(a, b) for a, b in zip(*logits)]
            assert len(divergences) == FRAMES[i]
            terms.append((layer_term(*of_view, i), np.mean(divergences)))
        layers, logits = np.mean(terms, axis=0)
        assert float(losses.layers[i]) == pytest.approx(count * layers, rel=1e-4)
        assert float(losses.logits[i]) == pytest.approx(count * logits, rel=1e-4)


def test_terms_of_a_classifier() -> None:
    config = config_of(("classifier",))
    model, teacher = random_model(config), teacher_of(config, config)
    ours, theirs = keep_outputs(model), keep_outputs(teacher.model)
    options = LossOptions(heads="classifier")
    losses = detached(model(*batch(True), options, teach=teacher.lesson))
    for i in range(len(SAMPLES)):
        frames = (FRAMES[i] + 1) // 2
        logits = [
            linear(m.classifier.output, kept["out"][i, :frames].double().mean(0).numpy())
            for m, kept in ((model, ours), (teacher.model, theirs))
        ]
        assert float(losses.logits[i]) == pytest.approx(kl(*logits), rel=1e-3)
        assert float(losses.layers[i]) == pytest.approx(
            layer_term(ours["layers"], theirs["layers"], i), rel=1e-4
        )


def test_fewer_layers_are_taught_what_the_next_one_was_trained_on() -> None:
    """Of layers 0, 1, 3 of five: by layers 0, 2 and 4."""
    config = config_of(("ctc",), layers=3)
    model, teacher = random_model(config), teacher_of(config_of(("ctc",), layers=5), config)
    teacher.layers = [0, 2, 4]
    ours, theirs = keep_outputs(model), keep_outputs(teacher.model)
    losses = detached(model(*batch(), LossOptions(heads="ctc"), teach=teacher.lesson))
    chosen = [theirs["layers"][n] for n in (0, 2, 4)]
    for i, count in enumerate(TOKENS):
        expected = count * layer_term(ours["layers"], chosen, i)
        assert float(losses.layers[i]) == pytest.approx(expected, rel=1e-4)


STEADY = {"dropout": 0.0, "xlsr_dropout": 0.0, "activation_dropout": 0.0}


def taught_by_itself(model: SpeechModel, config: Any, **options: Any) -> tuple[Losses, Any]:
    teacher = teacher_of(config, config)
    teacher.take(config, model.state_dict(), torch.device("cpu"))
    loss = LossOptions(ctc_loss_scale=0.2, **options)
    return model(*batch(), loss, teach=teacher.lesson), teacher


HALF = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(
        torch.__version__.startswith("1."), reason="its layer norms of a CPU lack bfloat16"
    ),
)


@pytest.mark.parametrize("dtype", [None, HALF])
@pytest.mark.parametrize("options", [{}, {"cr_ctc_scale": 0.5}])
def test_a_model_without_dropout_is_at_no_distance_from_itself(
    options: dict, dtype: torch.dtype | None
) -> None:
    """In the precision of the training; and under other masks it would be."""
    config = config_of(**STEADY)
    model = random_model(config)
    with autocast(torch.device("cpu"), dtype):
        losses, teacher = taught_by_itself(model, config, **options)
    assert losses.layers.eq(0).all() and losses.logits.eq(0).all()
    loss = LossOptions(ctc_loss_scale=0.2, **options)
    other = model(*batch(), loss, teach=lambda x, n, _: teacher.lesson(x, n, (None, None)))
    assert (other.layers[[0, 2]] > 0).all() and (other.logits[[0, 2]] > 0).all()


def test_a_teacher_changes_no_other_loss_and_draws_nothing() -> None:
    config = config_of(layerdrop=0.5)
    model, teacher = random_model(config), teacher_of(config_of(), config)
    model.encoder.xlsr.encoder.layers["1"].is_dropped = True
    found = []
    for teach in (None, teacher.lesson):
        torch.manual_seed(3)
        losses = model(*batch(), LossOptions(ctc_loss_scale=0.2), teach=teach)
        found.append((losses, torch.rand(1)))
    (alone, a), (taught, b) = found
    assert torch.equal(a, b)
    assert all(torch.equal(x, y) for x, y in zip(alone[:5], taught[:5]))
    assert alone.layers.eq(0).all() and alone.logits.eq(0).all()
    (taught.layers + taught.logits).sum().backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert not teacher.model.training


@pytest.mark.parametrize("scales", [Scales(2.0, 0.0), Scales(0.0, 3.0)])
def test_a_term_that_counts_nothing_is_not_computed(scales: Scales) -> None:
    config = config_of(("ctc",))
    model, teacher = random_model(config), teacher_of(config, config, scales=scales)
    losses = model(*batch(), LossOptions(heads="ctc"), teach=teacher.lesson)
    assert bool(losses.layers.any()) == (scales.layers > 0)
    assert bool(losses.logits.any()) == (scales.logits > 0)
    expected = losses.layers * scales.layers + losses.logits * scales.logits
    assert torch.equal(teacher.weighted(losses), expected)
    teacher.leave()
    assert teacher.weighted(losses) == 0.0 and teacher.content() is None
