"""Chunk geometry against loops over frames that say in words who sees whom."""

from __future__ import annotations

import itertools

import pytest
import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.chunking import (
    ChunkSettings,
    attention_mask,
    cache_mask,
    chunk_mask,
    fill_sinks,
    grow,
    roll,
    shrink,
)
from xlsr_transducer.model.wav2vec2_layers import PositionalConv
from xlsr_transducer.model.xlsr_config import XlsrConfig

CPU = torch.device("cpu")


def sees(query: int, key: int, chunk_size: int, left: int, sinks: int) -> bool:
    """The rule, in words: own chunk, the chunks left of it, and sinks that are not ahead."""
    own, other = query // chunk_size, key // chunk_size
    if other > own:
        return False
    return other == own or left < 0 or own - other <= left or key < sinks


@pytest.mark.parametrize(
    "chunk_size, left, sinks", itertools.product((2, 4, 6), (-1, 0, 1, 3), (0, 1, 9))
)
@pytest.mark.parametrize("num_frames", [1, 4, 25])
def test_mask_says_what_the_rule_says(num_frames, chunk_size, left, sinks):
    mask = chunk_mask(num_frames, chunk_size, left, sinks, CPU)
    for query, key in itertools.product(range(num_frames), repeat=2):
        assert bool(mask[query, key]) == sees(query, key, chunk_size, left, sinks)


def test_padding_is_never_seen_and_no_row_is_empty():
    lens = torch.tensor([9, 5, 1, 0])
    for setting in ((4, 1, 2), (4, 0, 0), (2, -1, 0), (-1, -1, 0)):
        mask = attention_mask(lens, 9, *setting).expand(-1, 1, 9, 9)
        for row, n in enumerate(lens.tolist()):
            for query, key in itertools.product(range(max(n, 1)), range(n, 9)):
                assert not mask[row, 0, query, key] or query == key
        assert bool(mask.any(-1).all())


def test_a_batch_without_padding_in_full_context_needs_no_mask():
    assert attention_mask(torch.tensor([5, 5]), 5, -1, -1, 0) is None


@pytest.mark.parametrize("chunks", [1, 3])
def test_streaming_sees_exactly_the_frames_that_the_mask_shows(chunks):
    """With frame numbers as keys: cache plus mask must name what the rule names, once."""
    for chunk_size, left, sinks in itertools.product((2, 4), (0, 1, 3), (0, 1, 3, 9)):
        lens = torch.tensor([23, 10, 7])
        starts = (0, 2, 1)  # steps that a stream is late
        size = chunks * chunk_size
        cached = sinks + left * chunk_size
        cache = torch.full((3, 1, 1, cached, 1), -1.0)
        done = torch.zeros(3, dtype=torch.int64)
        for step in range(9):
            joined = torch.tensor([step >= s for s in starts])
            count = torch.where(joined, (lens - done).clamp(0, size), 0)
            new = (done[:, None] + torch.arange(size)).float()[:, None, None, :, None]
            mask = cache_mask(done, count, size, chunk_size, left, cached, sinks)[:, 0]
            assert bool(mask.any(-1).all()) and mask.shape[1] == (1 if chunks == 1 else size)
            mask = mask.expand(-1, size, -1)
            keys = torch.cat((cache, new), dim=3)[:, 0, 0, :, 0]
            for row in range(3):
                if count[row] == 0:
                    continue
                seen = int(done[row] + count[row])
                for place in range(int(count[row])):
                    found = keys[row][mask[row, place]].tolist()
                    query = int(done[row]) + place
                    expected = [k for k in range(seen) if sees(query, k, chunk_size, left, sinks)]
                    assert sorted(found) == expected, (chunk_size, left, sinks, step, row, place)
            first = fill_sinks(cache[:, :, :, :sinks], new, done, count)
            rest = roll(cache[:, :, :, sinks:], new, count == size)
            cache, done = torch.cat((first, rest), dim=3), done + count


def test_an_idle_row_keeps_its_cache():
    old, new = torch.randn(2, 3, 4), torch.randn(2, 2, 4)
    rolled = roll(old, new, torch.tensor([True, False]))
    assert torch.equal(rolled[0], torch.cat((old[0, 2:], new[0])))
    assert torch.equal(rolled[1], old[1])


def test_more_new_frames_than_room_keep_the_latest():
    old, new = torch.randn(1, 3, 4), torch.randn(1, 8, 4)
    assert torch.equal(roll(old, new, torch.tensor([True]))[0], new[0, -3:])


def test_unlimited_cache_grows_in_blocks_and_shrinks_to_what_is_filled():
    cache = torch.randn(2, 1, 5, 3)
    grown = grow(cache, 4, block=16)
    assert grown.shape[-2] == 12  # with the chunk 16; room for 5 frames and the chunk
    assert torch.equal(grown[..., -5:, :], cache)
    assert grow(torch.randn(1, 9, 3), 4, block=16).shape[-2] == 28
    assert torch.equal(shrink(grown, torch.tensor([2, 5])), cache)
    assert shrink(grown, torch.tensor([0, 0])).shape[-2] == 0


def positional_reference(conv: PositionalConv, x: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """A loop over frames and taps: inputs after the end of a frame's chunk count as zero."""
    frames, width = x.shape
    weight, groups = conv.conv.weight, conv.conv.groups
    per_group = width // groups
    kernel = weight.shape[2]
    out = conv.conv.bias.repeat(frames, 1)
    for t in range(frames):
        end = frames if chunk_size < 0 else (t // chunk_size + 1) * chunk_size
        for tap in range(kernel):
            source = t - kernel // 2 + tap
            if not 0 <= source < min(end, frames):
                continue
            for g in range(groups):
                part = slice(g * per_group, (g + 1) * per_group)
                out[t, part] = out[t, part] + weight[part, :, tap] @ x[source, part]
    return torch.nn.functional.gelu(out)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [8, 7, 1])
@pytest.mark.parametrize("chunk_size", [-1, 2, 4, 6, 40])
def test_positional_convolution_does_not_look_beyond_the_chunk(kernel, chunk_size):
    torch.manual_seed(0)
    config = XlsrConfig(
        hidden_size=6, num_conv_pos_embeddings=kernel, num_conv_pos_embedding_groups=2
    )
    conv = PositionalConv(config).double()
    x = torch.randn(2, 19, 6, dtype=torch.float64)
    found = conv(x, chunk_size)
    for row, audio in zip(found, x):
        expected = positional_reference(conv, audio, chunk_size)
        assert float((row - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("chunk_size", [0, 1, 7, -2, -32])
def test_chunk_sizes_that_cannot_be_are_refused(chunk_size):
    with pytest.raises(UserError, match=f"--chunk-size {chunk_size}: .*multiple"):
        ChunkSettings(chunk_size)


def test_negative_left_context_and_sinks_are_refused():
    with pytest.raises(UserError, match="--left-context-chunks -2"):
        ChunkSettings(16, -2)
    with pytest.raises(UserError, match="--attention-sink-size -1"):
        ChunkSettings(16, 1, -1)


def test_contradictions_are_refused_by_name():
    with pytest.raises(UserError, match="--attention-sink-size 4 contradicts --chunk-size -1"):
        ChunkSettings(-1, -1, 4).require_consistent()
    with pytest.raises(UserError, match="--attention-sink-size 4 .*--left-context-chunks -1"):
        ChunkSettings(16, -1, 4).require_consistent()
    with pytest.raises(UserError, match="--chunk-size -1 cannot stream"):
        ChunkSettings().require_streaming()
    with pytest.raises(UserError, match="contradicts"):
        ChunkSettings(16, -1, 4).require_streaming()
    assert ChunkSettings(16, 2, 4).require_streaming() == ChunkSettings(16, 2, 4)


def test_independent_draws_are_simplified_to_the_same_view():
    for chunk_size, left, sinks in itertools.product((-1, 4), (-1, 0, 2), (0, 3)):
        drawn = ChunkSettings(chunk_size, left, sinks)
        same = drawn.simplified().require_consistent()
        lens = torch.tensor([13, 8])
        masks = [attention_mask(lens, 13, *s) for s in (drawn, same)]
        assert torch.equal(*masks)


def test_names_of_files_carry_every_setting():
    assert ChunkSettings().describe() == "full"
    assert ChunkSettings(32, 2, 4).describe() == "chunk-32-left-2-sink-4"
