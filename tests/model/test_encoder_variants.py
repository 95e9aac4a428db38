"""Encoders without an adapter, and with all layers weighted: they stream what they simulate, and
sum what Hugging Face sums."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.model.test_streaming_encoder import (
    CPU,
    DOUBLE,
    SINGLE,
    difference,
    identical,
    in_blocks,
    masked,
    one_thread,
    three_waves,
)
from tests.support.stream_driver import TINY, padded, serve, speech
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import StreamingXLSREncoder, XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.state import state_bytes

__all__ = ["one_thread"]  # a fixture, used by every test

NO_ADAPTER = dict(adapter="none")
WEIGHTED = dict(weighted_layers=True, encoder_dim=32)
VARIANTS = {
    "no-adapter": (TINY, NO_ADAPTER),
    "weighted": (TINY, WEIGHTED),
    "weighted-no-adapter": (TINY, {**NO_ADAPTER, **WEIGHTED}),
    "weighted-norm-after": (dataclasses.replace(TINY, do_stable_layer_norm=False), WEIGHTED),
}
variants = pytest.mark.parametrize("name", VARIANTS)


def make(name: str, level: str = "waveform", **kwargs) -> StreamingXLSREncoder:
    config, options = VARIANTS[name]
    torch.manual_seed(0)
    encoder = StreamingXLSREncoder(config, EncoderOptions(**options), level, **kwargs).eval()
    if encoder.layer_weights is not None:
        encoder.layer_weights.data.normal_()
    return encoder


@variants
@pytest.mark.parametrize(
    "chunk_size", [8, 32, *(pytest.param(c, marks=pytest.mark.long) for c in (16, 64))]
)
def test_every_chunk_size_streams_what_it_simulates(name: str, chunk_size: int) -> None:
    for dtype, bound in ((DOUBLE, 1e-10), (SINGLE, 2e-5)):
        encoder, waves = make(name).to(dtype), three_waves(chunk_size, dtype)
        for left, sinks in ((1, 40), (2, 4), (4, 0), (-1, 0))[1 if dtype == SINGLE else 0 :]:
            setting = ChunkSettings(chunk_size, left, sinks)
            encoder.set_chunk(setting)
            streamed = serve(encoder, waves, starts=[0, 2, 3])
            assert difference(streamed, masked(encoder, waves, setting)) < bound, setting
        if dtype == DOUBLE:
            alone = [serve(encoder, [w], starts=[0], whole=True)[0] for w in waves]
            assert identical(streamed, alone)


@variants
def test_other_chunk_sizes_and_short_audio_stream_exactly_too(name: str) -> None:
    encoder, waves = make(name).double(), [speech(n, n) for n in (9001, 5555, 399, 400)]
    for chunk_size, left, sinks in ((2, 0, 0), (6, 1, 1), (10, 3, 13), (2, -1, 0)):
        setting = ChunkSettings(chunk_size, left, sinks)
        encoder.set_chunk(setting)
        streamed = serve(encoder, waves, starts=[0, 1, 0, 2])
        assert [len(s) > 0 for s in streamed] == [True, True, False, True]
        assert difference(streamed, masked(encoder, waves, setting)) < 1e-10, setting


@variants
def test_features_stream_and_are_encoded_in_blocks_too(name: str) -> None:
    setting = ChunkSettings(16, 2, 4)
    encoder = make(name, "frontend", chunk=setting).double()
    x, lens = torch.randn(2, 95, 16, dtype=DOUBLE), torch.tensor([95, 33])
    with torch.inference_mode():
        expected, expected_lens = encoder(x, lens, *setting)
        state, outputs = encoder.get_init_states(2, CPU), []
        for start in range(0, 96, 16):
            part = torch.nn.functional.pad(x[:, start : start + 16], (0, 0, 0, start == 80))
            given = (lens - start).clamp(0, 16)
            out, _, state = encoder.streaming_forward(part, given, state)
            outputs.append(out)
    streamed = torch.cat(outputs, dim=1)[:, : expected.shape[1]]
    assert float((streamed - expected).abs().max()) < 1e-10
    encoder.longest_whole, encoder.block_frames = 0, 33
    with torch.inference_mode():
        found, found_lens = encoder.encode(x, lens, *setting)
    assert torch.equal(found_lens, expected_lens) and found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-10
    waves = [*three_waves(16, DOUBLE), speech(399, 4)]
    whole = make(name, chunk=setting).double()
    blocks = in_blocks(whole, waves, setting, 0, 48)
    assert difference(blocks, masked(whole, waves, setting)) < 1e-10


@variants
def test_script_gives_what_eager_gives(name: str) -> None:
    encoder = make(name, chunk=ChunkSettings(8, 2, 4)).double()
    scripted = torch.jit.script(encoder)
    waves = [speech(n, n) for n in (9001, 5555)]
    for setting in (ChunkSettings(), ChunkSettings(8, 2, 4), ChunkSettings(8, -1, 0)):
        assert identical(masked(scripted, waves, setting), masked(encoder, waves, setting))
    one, two = encoder.get_init_states(2, CPU), scripted.get_init_states(2, CPU)
    x = torch.stack([speech(2560, i) for i in range(2)])
    with torch.inference_mode():
        for lens in ([2560, 2560], [2560, 0], [2559, 2560]):
            a, a_lens, one = encoder.streaming_forward(x, torch.tensor(lens), one)
            b, b_lens, two = scripted.streaming_forward(x, torch.tensor(lens), two)
            assert identical([a], [b]) and torch.equal(a_lens, b_lens)


def test_frames_without_an_adapter_are_xlsrs_own_and_have_no_state() -> None:
    encoder = make("no-adapter", chunk=ChunkSettings(8, 2, 4)).double()
    x, lens = padded([speech(n, n) for n in (9001, 399, 400)])
    with torch.inference_mode():
        found, found_lens = encoder(x, lens)
        expected, expected_lens = encoder.xlsr(x, lens)
    assert found_lens.tolist() == [27, 0, 1] == expected_lens.tolist()
    assert torch.equal(found, expected)
    assert (encoder.output_dim, encoder.frame_seconds) == (TINY.hidden_size, 0.02)
    state = encoder.get_init_states(3, CPU)
    assert state.adapter.shape == (3, 0, TINY.hidden_size)
    with_adapter = StreamingXLSREncoder(TINY, EncoderOptions(encoder_dim=32)).double()
    with_adapter.set_chunk(ChunkSettings(8, 2, 4))
    assert state_bytes(state) < state_bytes(with_adapter.get_init_states(3, CPU))


@pytest.mark.parametrize("is_stable", [True, False])
def test_the_weighted_sum_is_that_of_s3prl_and_of_hugging_face(is_stable: bool) -> None:
    """Of the first layer's input and all outputs, the last one after XLSR's outer norm.

    So do s3prl and transformers 4. From transformers 5 on the class sums the last output before
    the norm; there its sum is made here, of its own states.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = dataclasses.replace(TINY, num_hidden_layers=4, do_stable_layer_norm=is_stable)
    theirs = transformers.Wav2Vec2ForSequenceClassification(
        transformers.Wav2Vec2Config(
            **dataclasses.asdict(config),
            use_weighted_layer_sum=True,
            classifier_proj_size=8,
        )
    )
    theirs = theirs.double().eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    theirs.layer_weights.data.normal_()
    options = EncoderOptions(adapter="none", weighted_layers=True)
    ours = XLSREncoder(config, options, normalize="none").double().eval()
    position = "encoder.pos_conv_embed.conv.weight"
    weights = {k: v for k, v in theirs.wav2vec2.state_dict().items() if "pos_conv" not in k}
    convolution = theirs.wav2vec2.encoder.pos_conv_embed.conv
    theirs.wav2vec2(torch.zeros(1, 4000).double())  # old versions compute its weight here
    weights.update({position: convolution.weight, position[:-6] + "bias": convolution.bias})
    ours.xlsr.load_state_dict(weights)
    ours.layer_weights.data.copy_(theirs.layer_weights)
    summed = []
    theirs.projector.register_forward_pre_hook(lambda _, args: summed.append(args[0]))
    x = torch.stack([speech(8000, i) for i in range(2)])
    with torch.no_grad():
        theirs(x)
        states = theirs.wav2vec2(x, output_hidden_states=True)
        found, lens = ours(x, torch.tensor([8000, 8000]))
    layers = torch.stack([*states.hidden_states[:-1], states.last_hidden_state])
    expected = torch.einsum("l,lntd->ntd", theirs.layer_weights.softmax(0), layers)
    assert lens.tolist() == [24, 24] and len(layers) == 5
    assert float((found - expected).detach().abs().max()) < 1e-10
    if not is_stable or int(transformers.__version__.split(".")[0]) < 5:
        assert float((found - summed[0]).abs().max()) < 1e-10


def test_weighted_layers_need_all_layers() -> None:
    for level in ("1", "last"):
        with pytest.raises(UserError, match=f"--weighted-layers 1 needs all.*--cut {level}: use"):
            make("weighted", level)
    assert make("weighted", "frontend").layer_weights.shape == (TINY.num_hidden_layers + 1,)
