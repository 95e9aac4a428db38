"""Attention maps are what the layers compute, and their sums lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from tests.support.stream_driver import speech, tiny_encoder
from xlsr_transducer.evaluation.attention import (
    DISTANCE_NAMES,
    attention_weights,
    key_kinds,
    mean_attention,
    utterance_maps,
    watched,
)
from xlsr_transducer.model.chunking import ChunkSettings, chunk_mask
from xlsr_transducer.model.encoder import StreamingXLSREncoder, XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr

VIEWS = [ChunkSettings(8, 2, 4), ChunkSettings(16, 1, 0), ChunkSettings()]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def sharp_encoder(dtype: torch.dtype) -> StreamingXLSREncoder:
    """A random encoder whose attention is far from even."""
    encoder = tiny_encoder().to(dtype)
    with torch.no_grad():
        for layer in encoder.xlsr.encoder.layers.values():
            layer.attention.q_proj.weight.mul_(8)
            layer.attention.k_proj.weight.mul_(8)
    return encoder


@pytest.mark.parametrize("chunk", VIEWS, ids=ChunkSettings.describe)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_maps_times_values_are_what_each_layer_gives(
    chunk: ChunkSettings, dtype: torch.dtype
) -> None:
    encoder, tolerance = sharp_encoder(dtype), TOLERANCE[dtype]
    checked = []

    def check(attention, inputs, output) -> None:
        x, keys, values, mask = inputs
        weights = attention_weights(attention, x, keys, mask)
        assert (weights.sum(-1) - 1).abs().max() < tolerance
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        assert (attention.out_proj(mixed) - output).abs().max() < tolerance
        if mask is not None:
            assert weights.masked_select(~mask.expand_as(weights)).abs().max() == 0
        assert weights.amax(-1).mean() > 0.2  # far from even, so that the comparison says much
        checked.append(weights)

    layers = encoder.xlsr.encoder.layers.values()
    hooks = [layer.attention.register_forward_hook(check) for layer in layers]
    with torch.no_grad():
        encoder(speech(16000, 0, dtype)[None], torch.tensor([16000]), *chunk)
    [hook.remove() for hook in hooks]
    assert len(checked) == 2


def test_the_maps_are_those_of_the_model_as_it_computes() -> None:
    encoder, wave = sharp_encoder(torch.float64), speech(16000, 1)
    maps = utterance_maps(encoder, wave, VIEWS[0])
    frames = maps.shape[1]
    assert maps.shape == (2, 49, 49)
    assert not (maps * ~chunk_mask(frames, *VIEWS[0], torch.device("cpu"))).any()
    before = encoder(wave[None], torch.tensor([16000]), *VIEWS[0])[0]
    with watched(encoder, lambda number, weights: None):
        inside = encoder(wave[None], torch.tensor([16000]), *VIEWS[0])[0]
    assert torch.equal(before, inside)
    assert not any(
        layer.attention._forward_hooks for layer in encoder.xlsr.encoder.layers.values()
    )


def test_the_maps_are_those_of_hugging_faces_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = dict(conv_dim=[16] * 7, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
                 intermediate_size=64, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
                 feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)  # fmt: skip
    theirs = Wav2Vec2Model(Wav2Vec2Config(**shape)).eval()
    theirs.config._attn_implementation = "eager"  # which hands the weights out
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for layer in theirs.encoder.layers:
            layer.attention.q_proj.weight.mul_(20)
    theirs.save_pretrained(tmp_path)
    checkpoint = load_xlsr(str(tmp_path))
    ours = XLSREncoder(checkpoint.config, EncoderOptions(encoder_dim=8), normalize="none").eval()
    names = ours.xlsr.state_dict()
    ours.xlsr.load_state_dict({name: checkpoint.weights[name] for name in names})
    theirs.double(), ours.double()
    wave, maps = torch.randn(1, 16000, dtype=torch.float64), []
    with torch.no_grad(), watched(ours, lambda number, weights: maps.append(weights)):
        expected = theirs(wave, output_attentions=True).attentions
        ours(wave, torch.tensor([16000]))
    assert len(maps) == len(expected) == 3
    for found, one in zip(maps, expected):
        # The positional convolution's weight norm was folded in float32.
        torch.testing.assert_close(found, one, rtol=0, atol=1e-5)
        assert found.amax(-1).mean() > 0.05  # 0.02 if it were even


def test_shares_are_the_sums_over_the_maps_of_every_head() -> None:
    """By hand, frame by frame: who belongs to which kind and class of distance."""
    encoder, chunk = sharp_encoder(torch.float64), ChunkSettings(8, 2, 4)
    waves = [speech(n, n) for n in (9000, 16000)]
    mass = mean_attention(encoder, waves, chunk)
    kinds, distances = torch.zeros(3, 2, 2), torch.zeros(len(DISTANCE_NAMES), 2, 2)
    kinds, distances, frames = kinds.double(), distances.double(), 0
    starts = [-63, -31, -15, -7, -3, 0, 1, 4, 8, 16, 32, 64, 128, 256]
    for wave in waves:
        maps = {}
        with torch.no_grad(), watched(encoder, lambda n, w: maps.setdefault(n, w[0])):  # noqa: B023
            encoder(wave[None], torch.tensor([len(wave)]), *chunk)
        size = maps[0].shape[-1]
        frames += size - 8
        for query in range(8, size):
            for key in range(size):
                own, sink = query // 8 == key // 8, key < 4
                kind = 0 if own else 2 if sink else 1
                place = sum(query - key >= start for start in starts)
                for layer in range(2):
                    kinds[kind, layer] += maps[layer][:, query, key]
                    distances[place, layer] += maps[layer][:, query, key]
    assert mass.frames == frames
    torch.testing.assert_close(mass.shares(), kinds / frames, rtol=0, atol=1e-10)
    torch.testing.assert_close(mass.by_distance(), distances / frames, rtol=0, atol=1e-10)
    ones = torch.ones(2, 2, dtype=torch.float64)
    torch.testing.assert_close(mass.shares().sum(0), ones)
    torch.testing.assert_close(mass.by_distance().sum(0), ones)


def test_even_attention_gives_the_sinks_their_share_of_the_view() -> None:
    encoder, chunk = tiny_encoder().double(), ChunkSettings(8, 1, 4)
    for layer in encoder.xlsr.encoder.layers.values():
        torch.nn.init.zeros_(layer.attention.q_proj.weight)
        torch.nn.init.zeros_(layer.attention.q_proj.bias)
    mass = mean_attention(encoder, [speech(16000, 0)], chunk)
    torch.testing.assert_close(mass.shares()[2], torch.full((2, 2), mass.uniform_share()).double())
    assert 0.1 < mass.uniform_share() < 0.25


def test_without_sinks_none_are_counted_and_short_audio_counts_nothing() -> None:
    encoder = tiny_encoder()
    assert (
        mean_attention(encoder, [speech(9000, 0).float()], ChunkSettings(8, 2, 0)).kinds[2].sum()
        == 0
    )
    short = mean_attention(encoder, [speech(2000, 0).float()], ChunkSettings(8, 2, 4))
    assert short.frames == 0 and short.shares().isnan().all()


def test_kinds_of_keys_are_disjoint_and_cover_all() -> None:
    kinds = key_kinds(40, ChunkSettings(8, 1, 12), torch.device("cpu"))
    assert bool((kinds.sum(0) == 1).all())
    assert kinds[:, 20, 10].tolist() == [False, False, True]  # of the left context too
    assert kinds[:, 10, 9].tolist() == [True, False, False]  # a sink of its own chunk
