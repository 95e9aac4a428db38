"""What training hides: spans of frames, channels and layers; and what it computes twice."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.noise_corpus import TINY
from tests.support.tiny_recipe import run_train
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.masking import draw_spans, drop_layers
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_config import XlsrConfig

LIST_VALUES = {k: tuple(v) if isinstance(v, list) else v for k, v in TINY.items()}
CONFIG = XlsrConfig(**LIST_VALUES).without_dropout()
LENS = torch.tensor([20, 13])


def tiny_encoder(level: str = "frontend", **options) -> XLSREncoder:
    torch.manual_seed(0)
    values = {"encoder_dim": 8, "dropout": 0.0, "xlsr_dropout": 0.0, "time_mask_prob": 0.0}
    return XLSREncoder(CONFIG, EncoderOptions(**{**values, **options}), level).double()


def features(width: int = 16) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 20, width, dtype=torch.float64)


def gradients(encoder: XLSREncoder) -> dict[str, torch.Tensor]:
    encoder.zero_grad()
    torch.manual_seed(2)
    out, _ = encoder(features(), LENS, 8, 1, 2)
    out.square().sum().backward()
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


def test_spans_cover_the_share_asked_for_and_are_no_longer_than_asked():
    torch.manual_seed(0)
    mask = draw_spans(2000, 200, 0.01, 6)  # so few that overlaps do not count
    assert float(mask.float().mean()) == pytest.approx(0.01, rel=0.1)
    runs = [len(run) for row in mask.tolist() for run in
            "".join(" x"[hidden] for hidden in row).split()]  # fmt: skip
    assert set(range(1, 7)) <= set(runs)
    share = [runs.count(n) / len(runs) for n in range(1, 7)]
    assert share == pytest.approx([1 / 6] * 6, abs=0.05)


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("rows, size", [(0, 5), (3, 0), (3, 1), (1, 4)])
def test_spans_fit_any_size(rows: int, size: int, is_fixed: bool):
    assert draw_spans(rows, size, 1.0, 10, is_fixed).shape == (rows, size)


@pytest.mark.parametrize("size, prob, length", [(500, 0.75, 10), (1024, 0.25, 64), (40, 0.5, 10)])
def test_fixed_spans_cover_what_those_of_hugging_face_and_fairseq_cover(
    size: int, prob: float, length: int
):
    model = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")
    torch.manual_seed(0)
    np.random.seed(0)
    rows = 1000
    expected = torch.from_numpy(model._compute_mask_indices((rows, size), prob, length)).float()
    found = draw_spans(rows, size, prob, length, is_fixed=True).float()
    assert found.mean().item() == pytest.approx(expected.mean().item(), abs=0.01)
    ends = slice(0, 3), slice(size - 3, size), slice(size // 2, size // 2 + 9)
    for places in ends:  # neither gathers at the ends what would lie beyond them
        of_each = [mask[:, places].mean().item() for mask in (found, expected)]
        assert of_each[0] == pytest.approx(of_each[1], abs=0.05)
    runs = [len(run) for row in found.bool().tolist() for run in
            "".join(" x"[hidden] for hidden in row).split()]  # fmt: skip
    assert min(runs) == length


def test_dropout_inside_feed_forward_layers_is_as_asked_for_or_as_xlsrs_own():
    own = dataclasses.replace(CONFIG, activation_dropout=0.2)
    for given, expected in ((None, 0.2), (0.0, 0.0), (0.1, 0.1)):
        encoder = XLSREncoder(own, EncoderOptions(encoder_dim=8, activation_dropout=given))
        layer = encoder.xlsr.encoder.layers["0"].feed_forward
        assert layer.activation_dropout.p == expected


def test_hidden_channels_are_zero_behind_the_projection_as_in_hugging_face():
    torch.manual_seed(0)
    part = Wav2Vec2(CONFIG, "frontend").eval().double()
    hidden = torch.zeros(2, CONFIG.hidden_size, dtype=torch.bool)
    hidden[0, 3:9] = hidden[1, 20:] = True
    projected = part.feature_projection(features())
    projected = torch.where(hidden.unsqueeze(1), torch.zeros_like(projected), projected)
    projected[1, 13:] = 0.0
    expected = part.encoder(projected, LENS, -1, -1, 0)
    found, _ = part(features(), LENS, channel_mask=hidden)
    assert torch.equal(found, expected)


def test_features_of_a_layer_are_hidden_as_zeros_in_frames_and_channels():
    encoder = tiny_encoder("2", time_mask_prob=0.3, channel_mask_prob=0.2, channel_mask_length=4)
    seen = []
    encoder.xlsr.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = features(CONFIG.hidden_size)
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        encoder.train()(x, LENS)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    is_hidden = seen[0][0] == 0.0
    frames, channels = is_hidden.all(1), is_hidden.all(0)
    assert 0 < int(frames.sum()) < 20 and 0 < int(channels.sum()) < CONFIG.hidden_size
    assert torch.equal(is_hidden, frames.unsqueeze(1) | channels.unsqueeze(0))
    encoder.eval()(x, LENS)
    assert not bool((seen[3][0] == 0.0).any())


def test_a_dropped_layer_is_as_if_it_were_not_there():
    encoder = tiny_encoder().train()
    shorter = copy.deepcopy(encoder)
    del shorter.xlsr.encoder.layers["1"]
    encoder.xlsr.encoder.layers["1"].is_dropped = True
    assert torch.equal(encoder(features(), LENS)[0], shorter(features(), LENS)[0])
    dropped = gradients(encoder)
    assert not any(name.startswith("xlsr.encoder.layers.1.") for name in dropped)
    whole, short = encoder.eval(), shorter.eval()
    assert not torch.equal(whole(features(), LENS)[0], short(features(), LENS)[0])


def test_layers_are_dropped_by_seed_and_step_alone_and_only_if_they_are_trained():
    xlsr = tiny_encoder().xlsr
    for parameter in xlsr.encoder.layers["0"].parameters():
        parameter.requires_grad_(False)

    def draws(seed: int) -> list[list[bool]]:
        found = []
        for step in range(300):
            torch.rand(1)
            drop_layers(xlsr, 0.3, seed, step)
            found.append([layer.is_dropped for layer in xlsr.encoder.layers.values()])
        return found

    first = draws(1)
    assert first == draws(1) and first != draws(2)
    shares = torch.tensor(first).float().mean(0).tolist()
    assert shares[0] == 0.0 and shares[1:] == pytest.approx([0.3, 0.3], abs=0.08)
    drop_layers(xlsr, 0.0, 1, 0)
    assert not any(layer.is_dropped for layer in xlsr.encoder.layers.values())


def test_recomputed_layers_have_the_same_gradients_dropout_and_all():
    encoder = tiny_encoder(xlsr_dropout=0.2, time_mask_prob=0.2, channel_mask_prob=0.1).train()
    kept = gradients(encoder)
    for layer in encoder.xlsr.encoder.layers.values():
        layer.is_recomputed = True
    recomputed = gradients(encoder)
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layerdrop": 1.5}, "--layerdrop 1.5"),
        ({"time_mask_prob": -0.1}, "--time-mask-prob -0.1"),
        ({"channel_mask_prob": float("nan")}, "--channel-mask-prob nan"),
        ({"channel_mask_length": 0}, "--channel-mask-length 0"),
    ],
)
def test_impossible_masks_are_refused_by_name(options: dict, message: str):
    with pytest.raises(UserError, match=message):
        EncoderOptions(**options)


def test_a_resumed_training_draws_the_same_masks_and_layers(corpus: Path, tmp_path: Path):
    options = ["--num-epochs=1", "--save-every-n=3", "--layerdrop=0.4", "--time-mask-prob=0.3",
               "--channel-mask-prob=0.2", "--channel-mask-length=8"]  # fmt: skip
    run_train(corpus, tmp_path, *options)
    straight = read_checkpoint(tmp_path / "epoch-1.pt")
    run_train(corpus, tmp_path, *options, "--start-batch=3")
    resumed = read_checkpoint(tmp_path / "epoch-1.pt")
    assert straight["step"] == resumed["step"] > 3
    assert all(torch.equal(straight["model"][n], resumed["model"][n]) for n in straight["model"])
