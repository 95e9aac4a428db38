"""StreamingXLSREncoder: chunk by chunk gives what the masked whole-utterance forward gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.stream_driver import TINY, padded, serve, speech, tiny_encoder
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import StreamingXLSREncoder, XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.state import cat_states, select_states, state_bytes
from xlsr_transducer.model.wav2vec2 import Wav2Vec2

CPU = torch.device("cpu")
DOUBLE, SINGLE = torch.float64, torch.float32
# Below PyTorch 2 sums depend on the batch in their last bit; above, equality is asked for.
IS_BITWISE = int(torch.__version__.split(".")[0]) >= 2


@pytest.fixture(autouse=True)
def one_thread():
    """Threads share the work out by size, and so change the last bit with the batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def masked(encoder, waves, chunk: ChunkSettings):
    """The masked forward of a padded batch, as one tensor per row."""
    x, lens = padded(waves, filler=float("nan"))
    with torch.inference_mode():
        out, out_lens = encoder(x, lens, *chunk)
    return [row[:n] for row, n in zip(out, out_lens)]


def difference(found, expected) -> float:
    assert [len(a) for a in found] == [len(b) for b in expected]
    return max(float((a - b).abs().max()) for a, b in zip(found, expected) if len(a))


def identical(found, expected) -> bool:
    if not IS_BITWISE:
        return difference(found, expected) < 1e-12
    return all(torch.equal(a, b) for a, b in zip(found, expected))


def three_waves(chunk_size: int, dtype: torch.dtype):
    """Unequal, odd lengths; the left context of four chunks fills up and shifts."""
    lengths = [int(320 * chunk_size * f) + odd for f, odd in ((5.4, 157), (2.7, 81), (6.2, 381))]
    return [speech(n, seed, dtype) for seed, n in enumerate(lengths)]


def sweep(chunk_size: int):
    for left in (1, 2, 4, -1):
        for sinks in (0, 4, 16, 40):
            if left >= 0 or sinks == 0:  # sinks without a limit of the left context are refused
                yield ChunkSettings(chunk_size, left, sinks)


@pytest.mark.parametrize("chunk_size", [8, 16, 32, 64])
def test_every_setting_streams_what_it_simulates_in_float64(chunk_size):
    encoder = tiny_encoder().double()
    waves = three_waves(chunk_size, DOUBLE)
    for setting in sweep(chunk_size):
        encoder.set_chunk(setting)
        streamed = serve(encoder, waves, starts=[0, 2, 3])
        assert difference(streamed, masked(encoder, waves, setting)) < 1e-10, setting
        alone = [serve(encoder, [w], starts=[0], whole=True)[0] for w in waves]
        assert identical(streamed, alone), setting


@pytest.mark.parametrize("chunk_size", [8, 16, 32, 64])
def test_every_setting_streams_what_it_simulates_in_float32(chunk_size):
    encoder = tiny_encoder()
    waves = three_waves(chunk_size, SINGLE)
    for setting in sweep(chunk_size):
        encoder.set_chunk(setting)
        streamed = serve(encoder, waves, starts=[0, 2, 3])
        assert difference(streamed, masked(encoder, waves, setting)) < 2e-5, setting


@pytest.mark.parametrize("chunk_size", [2, 6, 10])
def test_other_chunk_sizes_stream_exactly_too(chunk_size):
    encoder = tiny_encoder().double()
    waves = [speech(n, n) for n in (9001, 5555)]
    for left, sinks in ((0, 0), (0, 3), (1, 1), (3, 13)):
        setting = ChunkSettings(chunk_size, left, sinks)
        encoder.set_chunk(setting)
        streamed = serve(encoder, waves, starts=[0, 1])
        assert difference(streamed, masked(encoder, waves, setting)) < 1e-10, setting


def test_unlimited_left_context_of_many_blocks_streams_exactly():
    setting = ChunkSettings(64, -1, 0)
    encoder = tiny_encoder(chunk=setting).double()
    waves = [speech(n, n) for n in (401234, 222222, 99999)]  # 25 s: 1250 keys
    streamed = serve(encoder, waves, starts=[0, 1, 2])
    assert difference(streamed, masked(encoder, waves, setting)) < 1e-10
    alone = [serve(encoder, [w], starts=[0], whole=True)[0] for w in waves]
    assert identical(streamed, alone)


def in_blocks(encoder, waves, chunk: ChunkSettings, longest: int, block: int):
    """``encode`` of a padded batch, long from ``longest`` frames on, as one tensor per row."""
    encoder.longest_whole, encoder.block_frames = longest, block
    x, lens = padded(waves, filler=float("nan"))
    with torch.inference_mode():
        out, out_lens = encoder.encode(x, lens, *chunk)
    return [row[:n] for row, n in zip(out, out_lens)]


@pytest.mark.parametrize("chunk_size", [2, 16])
def test_long_audio_in_blocks_of_chunks_gives_the_masked_numbers(chunk_size):
    waves = [*three_waves(chunk_size, DOUBLE), speech(399, 4)]
    encoder = tiny_encoder()
    for left, sinks in ((0, 0), (1, 4), (2, 40), (4, 0)):
        setting = ChunkSettings(chunk_size, left, sinks)
        expected = masked(encoder.double(), waves, setting)
        for block in (1, 3 * chunk_size + 1, 99 * chunk_size):
            found = in_blocks(encoder, waves, setting, 0, block)
            assert difference(found, expected) < 1e-10, setting
        rounded = [w.float() for w in waves]
        found = in_blocks(encoder.float(), rounded, setting, 0, 3 * chunk_size)
        assert difference(found, masked(encoder, rounded, setting)) < 2e-5, setting


def test_stored_features_are_encoded_in_blocks_too():
    setting = ChunkSettings(16, 2, 4)
    encoder = tiny_encoder(level="frontend").double()
    features, lens = torch.randn(2, 333, 16, dtype=DOUBLE), torch.tensor([333, 207])
    with torch.inference_mode():
        expected, expected_lens = encoder(features, lens, *setting)
        encoder.longest_whole, encoder.block_frames = 100, 64
        found, found_lens = encoder.encode(features, lens, *setting)
    assert torch.equal(found_lens, expected_lens) and found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-10


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made inside."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


def test_minutes_of_audio_equal_the_masked_forward_without_a_square_mask():
    encoder = tiny_encoder()
    wave = speech(2 * 60 * 16000, 1, SINGLE)
    x, lens = wave.unsqueeze(0), torch.tensor([len(wave)])
    frames = len(wave) // 320
    with torch.inference_mode():
        with LargestTensor() as simulated:
            expected, _ = encoder(x, lens, 32, 2, 4)
        with LargestTensor() as blocks:
            found, found_lens = encoder.encode(x, lens, 32, 2, 4)
    assert frames > encoder.longest_whole and found_lens.tolist() == [found.shape[1]]
    assert simulated.largest > 0.99 * frames**2 > 10 * blocks.largest
    # The audio itself; under PyTorch 1.13 a tensor of one block, which does not grow with it.
    assert blocks.largest <= max(len(wave), 2_300_000)
    assert difference([found[0]], [expected[0]]) < 2e-5


def test_short_audio_and_other_views_are_encoded_whole_to_the_same_bits():
    encoder = tiny_encoder()
    waves = [speech(n, n, SINGLE) for n in (20001, 5000)]
    for setting in (ChunkSettings(16, 2, 4), ChunkSettings(16, -1, 0), ChunkSettings()):
        longest = 99 if setting.left_context_chunks >= 0 else 0
        found = in_blocks(encoder, waves, setting, longest, 16)
        assert identical(found, masked(encoder, waves, setting))


def test_pieces_of_one_sample_give_what_the_whole_gives():
    encoder = tiny_encoder(chunk=ChunkSettings(8, 1, 4)).double()
    wave = speech(7001, 5)
    state = encoder.get_init_states(1, CPU)
    outputs, waiting = [], []
    with torch.inference_mode():
        for i, sample in enumerate(wave):
            waiting.append(sample)
            if i == 79:
                state.xlsr.tail[0] = torch.stack(waiting)
                waiting = []
            if len(waiting) == 8 * 320 or i == len(wave) - 1:
                x = F.pad(torch.stack(waiting), (0, 8 * 320 - len(waiting)))[None]
                out, lens, state = encoder.streaming_forward(
                    x, torch.tensor([len(waiting)]), state
                )
                outputs.append(out[0, : lens[0]])
                waiting = []
    whole = masked(encoder, [wave], ChunkSettings(8, 1, 4))
    assert difference([torch.cat(outputs)], whole) < 1e-10


@pytest.mark.parametrize("num_samples, frames", [(0, 0), (1, 0), (79, 0), (399, 0), (400, 1)])
def test_audio_shorter_than_one_frame_gives_nothing_and_no_error(num_samples, frames):
    setting = ChunkSettings(16, 1, 4)
    encoder = tiny_encoder(chunk=setting).double()
    wave, other = speech(num_samples, 1), speech(12345, 2)
    streamed = serve(encoder, [wave, other], starts=[0, 0])
    whole = masked(encoder, [wave, other], setting)
    assert [len(s) for s in streamed] == [frames, 19]
    assert difference(streamed, whole) < 1e-10
    assert len(masked(encoder, [wave], setting)[0]) == frames
    assert identical(serve(encoder, [other], starts=[0], whole=True), streamed[1:])


@pytest.mark.parametrize("seconds, frames", [(0.1, 2), (0.4, 10), (0.62, 15)])
def test_utterances_shorter_than_a_chunk_keep_their_last_frame(seconds, frames):
    setting = ChunkSettings(32, 2, 4)
    encoder = tiny_encoder(chunk=setting).double()
    wave = speech(int(seconds * 16000), 3)
    streamed = serve(encoder, [wave], starts=[0])
    assert len(streamed[0]) == frames  # an odd XLSR frame at the end still makes one
    assert difference(streamed, masked(encoder, [wave], setting)) < 1e-10
    # Nothing lies beyond the only chunk, so full context is the same view.
    assert difference(streamed, masked(encoder, [wave], ChunkSettings())) < 1e-10


def test_more_audio_never_changes_what_earlier_chunks_gave():
    encoder = tiny_encoder(chunk=ChunkSettings(16, 2, 4)).double()
    wave = speech(80 + 320 * 16 * 5 + 999, 4)
    longest = serve(encoder, [wave], starts=[0])[0]
    for chunks in range(1, 6):
        shorter = serve(encoder, [wave[: 80 + 320 * 16 * chunks]], starts=[0])[0]
        assert len(shorter) == 8 * chunks
        assert torch.equal(shorter, longest[: len(shorter)])


@pytest.mark.parametrize("left, sinks", [(1, 4), (-1, 0)])
def test_one_sample_beyond_a_chunk_changes_nothing_inside_it(left, sinks):
    setting = ChunkSettings(8, left, sinks)
    encoder = tiny_encoder(chunk=setting).double()
    wave = speech(80 + 320 * 40 + 111, 6)
    end = 80 + 320 * 8 * 3  # of the samples that chunks 0 to 2 see
    changed = wave.clone()
    changed[end] += 0.5
    before, after = (masked(encoder, [w], setting)[0] for w in (wave, changed))
    assert torch.equal(before[:12], after[:12])
    assert not torch.equal(before[12], after[12])
    before, after = (serve(encoder, [w], starts=[0])[0] for w in (wave, changed))
    assert torch.equal(before[:12], after[:12])
    # The last sample inside does reach the chunk's first frame: a chunk sees all of itself.
    changed = wave.clone()
    changed[end - 1] += 0.5
    before, after = (masked(encoder, [w], setting)[0] for w in (wave, changed))
    assert torch.equal(before[:8], after[:8])
    assert not torch.equal(before[8], after[8])


def test_frames_outside_the_view_change_nothing_and_sinks_do():
    wave = speech(80 + 320 * 8 * 6, 7)
    changed = wave.clone()
    changed[:400] += 0.3 * torch.randn(400, dtype=DOUBLE)
    encoder = tiny_encoder(normalize="none").double()  # normalisation remembers for ever
    for sinks in (0, 1):
        setting = ChunkSettings(8, 1, sinks)
        before, after = (masked(encoder, [w], setting)[0][-1] for w in (wave, changed))
        # Two layers reach two chunks back, the positional convolution and the adapter 1.
        assert torch.equal(before, after) == (sinks == 0)


def test_rows_of_a_padded_batch_equal_single_rows():
    encoder = tiny_encoder().double()
    waves = [speech(n, n) for n in (20001, 5000, 399, 12345)]
    for setting in (ChunkSettings(), ChunkSettings(16, 1, 4), ChunkSettings(8, -1, 0)):
        batch = masked(encoder, waves, setting)
        single = [masked(encoder, [w], setting)[0] for w in waves]
        assert difference(batch, single) < 1e-12


@pytest.mark.parametrize("normalize", ["cumulative", "none"])
def test_frontend_features_stream_as_the_waveform_does(normalize):
    setting = ChunkSettings(16, 2, 4)
    whole = tiny_encoder(chunk=setting, normalize=normalize).double()
    above = tiny_encoder(level="frontend", chunk=setting, normalize=normalize).double()
    above.load_state_dict(whole.state_dict(), strict=False)
    below = Wav2Vec2(TINY, end="frontend", normalize=normalize).double().eval()
    below.load_state_dict(whole.xlsr.state_dict(), strict=False)
    waves = [speech(n, n) for n in (30001, 17777)]
    expected = serve(whole, waves, starts=[0, 1])
    assert difference(serve_features(above, below, waves), expected) < 1e-10
    with torch.inference_mode():
        out, out_lens = above(*below(*padded(waves)), 16, 2, 4)
    assert difference([o[:n] for o, n in zip(out, out_lens)], expected) < 1e-10


@pytest.mark.parametrize("level", ["1", "last"])
def test_features_of_a_layer_stream_with_matching_chunk_settings(level):
    setting = ChunkSettings(16, 2, 4)
    whole = tiny_encoder(chunk=setting).double()
    above = tiny_encoder(level=level, chunk=setting).double()
    above.load_state_dict(whole.state_dict(), strict=False)
    below = Wav2Vec2(TINY, end=level).double().eval()
    below.load_state_dict(whole.xlsr.state_dict(), strict=False)
    waves = [speech(n, n) for n in (30001, 17777)]
    expected = serve(whole, waves, starts=[0, 1])
    found = serve_features(above, below, waves, (16, 2, 4))
    assert difference(found, expected) < 1e-10
    # Features that have seen the future are something else.
    assert difference(serve_features(above, below, waves), expected) > 1e-3


@torch.inference_mode()
def serve_features(encoder, below, waves, view=()):
    """Streams stored features, each row from a state of its own age."""
    features, lens = below(*padded(waves), *view)
    chunk_size = encoder.chunk_size
    outputs = [[] for _ in waves]
    state = encoder.get_init_states(len(waves), CPU)
    position = torch.zeros_like(lens)
    for step in range(2 * features.shape[1] // chunk_size + 2):
        ready = torch.tensor([step % (row + 1) == 0 for row in range(len(waves))])
        count = torch.where(ready, (lens - position).clamp(max=chunk_size), 0)
        x = features.new_full((len(waves), chunk_size, features.shape[2]), float("nan"))
        for row, (start, n) in enumerate(zip(position, count)):
            x[row, :n] = features[row, start : start + n]
        out, out_lens, state = encoder.streaming_forward(x, count, state)
        for row, n in enumerate(out_lens):
            outputs[row].append(out[row, :n])
        position = position + count
    assert torch.equal(position, lens)
    return [torch.cat(o) for o in outputs]


def test_streams_can_be_repacked_in_any_order():
    encoder = tiny_encoder(chunk=ChunkSettings(8, 2, 4)).double()
    chunk = 8 * 320
    x = torch.stack([speech(3 * chunk, i) for i in range(3)])
    full = torch.full((3,), chunk)
    with torch.inference_mode():
        state = encoder.get_init_states(3, CPU)
        _, _, state = encoder.streaming_forward(x[:, :chunk], full, state)
        out, _, _ = encoder.streaming_forward(x[:, chunk : 2 * chunk], full, state)
        rows = torch.tensor([2, 0])
        parts = cat_states([select_states(state, rows), select_states(state, torch.tensor([1]))])
        order = torch.tensor([2, 0, 1])
        again, _, _ = encoder.streaming_forward(x[order, chunk : 2 * chunk], full, parts)
    assert identical([again], [out[order]])


@pytest.mark.parametrize("left", [0, 2, -1])
def test_streams_of_different_ages_can_be_packed_together(left):
    encoder = tiny_encoder(chunk=ChunkSettings(8, left, 0)).double()
    chunk = 8 * 320
    full = torch.tensor([chunk])
    states, expected = [], []
    x = torch.stack([speech(5 * chunk, i) for i in range(3)])
    with torch.inference_mode():
        for row, age in enumerate((3, 1, 4)):
            state = encoder.get_init_states(1, CPU)
            for i in range(age):
                part = x[row : row + 1, i * chunk : (i + 1) * chunk]
                _, _, state = encoder.streaming_forward(part, full, state)
            states.append(state)
            out, _, _ = encoder.streaming_forward(x[row : row + 1, -chunk:], full, state)
            expected.append(out)
        found, _, _ = encoder.streaming_forward(x[:, -chunk:], full.repeat(3), cat_states(states))
    assert identical([found], [torch.cat(expected)])


def test_idle_rows_keep_their_state_to_the_last_bit():
    encoder = tiny_encoder(chunk=ChunkSettings(8, 1, 20)).double()
    x = torch.stack([speech(2560, i) for i in range(2)])
    with torch.inference_mode():
        _, _, state = encoder.streaming_forward(
            x, torch.tensor([2560, 2560]), encoder.get_init_states(2, CPU)
        )
        noise = torch.full_like(x, float("nan"))
        out, lens, after = encoder.streaming_forward(noise, torch.tensor([0, 319]), state)
    assert lens.tolist() == [0, 0] and not bool(out.any())
    for old, new in zip([*state.xlsr, state.adapter], [*after.xlsr, after.adapter]):
        assert torch.equal(old, new)


def test_state_is_no_larger_than_the_formula_and_does_not_grow():
    setting = ChunkSettings(16, 2, 4)
    encoder = tiny_encoder(chunk=setting)
    sizes = list(sizes_while_streaming(encoder, chunks=8))
    width, layers, kernel = TINY.hidden_size, TINY.num_hidden_layers, TINY.num_conv_pos_embeddings
    xlsr = 4 * width * (2 * layers * (4 + 2 * 16) + kernel // 2) + 352
    adapter = 4 * encoder.output_dim * encoder.adapter.history
    assert set(sizes) == {sizes[0]}
    assert sizes[0] <= xlsr + adapter


def sizes_while_streaming(encoder, chunks: int):
    state = encoder.get_init_states(1, CPU)
    samples = encoder.chunk_size * 320
    for i in range(chunks):
        yield state_bytes(state)
        with torch.inference_mode():
            _, _, state = encoder.streaming_forward(
                speech(samples, i, SINGLE)[None], torch.tensor([samples]), state
            )
    yield state_bytes(state)


def test_script_gives_what_eager_gives():
    encoder = tiny_encoder(chunk=ChunkSettings(8, 2, 4)).double()
    encoder.longest_whole, encoder.block_frames = 20, 16
    scripted = torch.jit.script(encoder)
    waves = [speech(n, n) for n in (9001, 5555)]
    x, lens = padded(waves)
    with torch.inference_mode():
        long = [e.encode(x, lens, 8, 2, 4)[0] for e in (scripted, encoder)]
    assert identical(long[:1], long[1:])
    for setting in (ChunkSettings(), ChunkSettings(8, 2, 4), ChunkSettings(8, -1, 0)):
        assert identical(masked(scripted, waves, setting), masked(encoder, waves, setting))
    one, two = encoder.get_init_states(2, CPU), scripted.get_init_states(2, CPU)
    x = torch.stack([speech(2560, i) for i in range(2)])
    with torch.inference_mode():
        for lens in ([2560, 2560], [2560, 0], [2559, 2560]):
            a, a_lens, one = encoder.streaming_forward(x, torch.tensor(lens), one)
            b, b_lens, two = scripted.streaming_forward(x, torch.tensor(lens), two)
            assert identical([a], [b]) and torch.equal(a_lens, b_lens)


def test_bfloat16_keeps_its_audio_in_float32_and_stays_close():
    setting = ChunkSettings(16, 2, 4)
    exact, rough = tiny_encoder(chunk=setting), tiny_encoder(chunk=setting).bfloat16()
    chunk = 16 * 320
    x, full = speech(2 * chunk, 1, SINGLE)[None], torch.tensor([chunk])
    states = [e.get_init_states(1, CPU) for e in (exact, rough)]
    assert states[1].xlsr.tail.dtype == SINGLE
    with torch.inference_mode():
        for part in x.split(chunk, dim=1):
            steps = [e.streaming_forward(part, full, s) for e, s in zip((exact, rough), states)]
            states = [s for _, _, s in steps]
            assert [a.dtype for a in states[0].xlsr[1:3]] == [b.dtype for b in states[1].xlsr[1:3]]
            assert float((steps[0][0] - steps[1][0].float()).abs().mean()) < 0.05
        whole, _ = rough(
            torch.cat((x[:, -80:], x), dim=1), torch.tensor([2 * chunk + 80]), 16, 2, 4
        )
    assert whole.dtype == torch.bfloat16 and bool(whole.isfinite().all())


def test_one_set_of_weights_serves_both_encoders():
    streaming = tiny_encoder()
    torch.manual_seed(9)
    offline = XLSREncoder(TINY, EncoderOptions(encoder_dim=32)).eval()
    offline.load_state_dict(streaming.state_dict())
    x, lens = padded([speech(9001, 1, SINGLE)])
    assert torch.equal(offline(x, lens)[0], streaming(x, lens)[0])


def test_gradients_reach_every_weight_through_the_masked_forward():
    encoder = tiny_encoder().train()
    x, lens = padded([speech(9001, 1, SINGLE), speech(5001, 2, SINGLE)])
    out, _ = encoder(x, lens, 8, 1, 2)
    out.square().mean().backward()
    missing = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert missing in ([], ["xlsr.masked_spec_embed"])
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters() if p.grad is not None)


def test_what_cannot_stream_is_refused_by_name():
    group = dataclasses.replace(TINY, feat_extract_norm="group")
    with pytest.raises(UserError, match="group norm"):
        StreamingXLSREncoder(group, EncoderOptions())
    with pytest.raises(UserError, match="--normalize utterance.*cumulative"):
        StreamingXLSREncoder(TINY, EncoderOptions(), normalize="utterance")
    with pytest.raises(UserError, match="--chunk-size -1 cannot stream"):
        StreamingXLSREncoder(TINY, EncoderOptions(), chunk=ChunkSettings())
    # From stored front-end features neither is in the way.
    StreamingXLSREncoder(group, EncoderOptions(), level="frontend")
