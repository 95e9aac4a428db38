"""Mamba-2: against its definition frame by frame, against transformers, and as a stream."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.model.test_streaming_encoder import difference, in_blocks, masked, three_waves
from tests.support.stream_driver import TINY, serve, speech
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model import mamba2
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import StreamingOptions, with_mixer
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions, mamba_layers
from xlsr_transducer.model.mamba2 import BiMamba2, Mamba2, scan
from xlsr_transducer.model.state import state_bytes
from xlsr_transducer.model.xlsr_config import XlsrConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def recurrence(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor):
    """The definition: state = exp(dt a) state + dt u b^T, y = state c."""
    outputs = []
    for t in range(u.shape[1]):
        decay = (dt[:, t] * a).exp()[:, :, None, None]
        state = decay * state + torch.einsum("nh,nhp,ns->nhps", dt[:, t], u[:, t], b[:, t])
        outputs.append(torch.einsum("nhps,ns->nhp", state, c[:, t]))
    return torch.stack(outputs, 1), state


def random_scan(frames: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    steps, decay = 0.3 * draw(2, frames, 3).abs(), -16 * draw(3).sigmoid()
    drawn = [draw(2, frames, 3, 4), steps, decay, draw(2, frames, 5), draw(2, frames, 5)]
    return [*drawn, draw(2, 3, 4, 5)]


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("frames", [1, 2, 6, 63, 64, 65, 200])
def test_blocks_give_the_recurrence_and_its_gradients(frames: int, block: int) -> None:
    given = [x.requires_grad_() for x in random_scan(frames)]
    weights = torch.randn(2, frames, 3, 4, dtype=torch.float64), torch.randn_like(given[-1])
    results = []
    for function in (lambda *x: scan(*x, block), recurrence):
        y, state = function(*given)
        total = (y * weights[0]).sum() + (state * weights[1]).sum()
        results.append([y, state, *torch.autograd.grad(total, given)])
    for found, expected in zip(*results):
        scale = max(1.0, float(expected.detach().abs().max()))
        assert float((found - expected).detach().abs().max()) < 1e-12 * scale


def test_3000_frames_in_parts_of_any_size_are_those_of_the_recurrence() -> None:
    given = random_scan(3000)
    expected, last = recurrence(*given)
    pieces, state, start = [], given[-1], 0
    for size in (1, 63, 64, 500, 0, 2372):
        part = [x[:, start : start + size] for x in (given[0], given[1], given[3], given[4])]
        y, state = scan(part[0], part[1], given[2], part[2], part[3], state)
        pieces.append(y)
        start += size
    assert (torch.cat(pieces, 1) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert (state - last).abs().max() < 1e-12 * last.abs().max()


def mixer_of_transformers(width: int, seed: int):
    """transformers' Mamba-2 with random steps and norms, and one of ours with its weights."""
    pytest.importorskip("transformers.models.mamba2", reason="these transformers have no Mamba-2")
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    own = Mamba2(width)
    config = Mamba2Config(
        num_heads=own.num_heads, head_dim=own.head_dim, hidden_size=width,
        state_size=own.state_size, expand=1, n_groups=1, conv_kernel=own.history + 1,
        chunk_size=32, use_bias=False,
    )  # fmt: skip
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        theirs.dt_bias.copy_(torch.randn(own.num_heads, generator=generator) - 2)
        theirs.norm.weight.copy_(1 + 0.3 * torch.randn(width, generator=generator))
        theirs.D.copy_(torch.randn(own.num_heads, generator=generator))
    own.load_state_dict(theirs.state_dict())
    return theirs, own


@pytest.fixture(params=[(64, 128, 4), (16, 24, 4), (8, 5, 3), (12, 7, 2)], ids=str)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head width, state size and kernel: those of the reference, and others."""
    for name, value in zip(("HEAD_DIM", "STATE_SIZE", "KERNEL"), request.param):
        monkeypatch.setattr(mamba2, name, value)


def empty_states(mixer: Mamba2, x: Tensor) -> list[Tensor]:
    shapes = [mixer.history, mixer.conv_width], [mixer.num_heads, mixer.head_dim, mixer.state_size]
    return [x.new_zeros([x.shape[0], *shape]) for shape in shapes]


@torch.no_grad()
@pytest.mark.parametrize("width", [64, 96, 256])
def test_a_scan_is_that_of_transformers(width: int, sizes: None) -> None:
    theirs, own = mixer_of_transformers(width, 1)
    for frames in (1, 3, 64, 150):
        x = torch.randn(2, frames, width)
        expected = theirs(x)
        found, _, _ = own(x, *empty_states(own, x))
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def frame_by_frame(mixer: Mamba2, x: Tensor) -> Tensor:
    """The block of the paper, of which nothing is computed for two frames together."""
    weights = mixer.state_dict()
    width, heads, states = mixer.width, mixer.num_heads, mixer.state_size
    kernel = weights["conv1d.weight"][:, 0]  # (channels, K)
    past = x.new_zeros(x.shape[0], kernel.shape[1], kernel.shape[0])
    state = x.new_zeros(x.shape[0], heads, mixer.head_dim, states)
    outputs = []
    for frame in x.unbind(1):
        projected = frame @ weights["in_proj.weight"].T
        gate, new, dt = projected[:, :width], projected[:, width:-heads], projected[:, -heads:]
        past = torch.cat((past[:, 1:], new[:, None]), 1)
        seen = torch.einsum("nkc,ck->nc", past, kernel) + weights["conv1d.bias"]
        seen = seen * seen.sigmoid()
        u, b, c = seen[:, :width], seen[:, width : width + states], seen[:, width + states :]
        u = u.reshape(-1, heads, mixer.head_dim)
        dt = (1 + (dt + weights["dt_bias"]).exp()).log()
        decay = (-dt * weights["A_log"].exp()).exp()
        state = decay[:, :, None, None] * state
        state = state + torch.einsum("nh,nhp,ns->nhps", dt, u, b)
        y = torch.einsum("nhps,ns->nhp", state, c) + weights["D"][:, None] * u
        y = y.flatten(1) * gate * gate.sigmoid()
        y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * weights["norm.weight"]
        outputs.append(y @ weights["out_proj.weight"].T)
    return torch.stack(outputs, 1)


@torch.no_grad()
@pytest.mark.parametrize("width", [32, 96])
def test_a_scan_in_parts_is_the_block_frame_by_frame(width: int, sizes: None) -> None:
    mixer = Mamba2(width).double()
    for parameter in mixer.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(3, 150, width, dtype=torch.float64)
    expected = frame_by_frame(mixer, x)
    states, parts = empty_states(mixer, x), []
    for part in x.split([1, 2, 64, 80, 3], dim=1):
        y, *states = mixer(part, *states)
        parts.append(y)
    assert (torch.cat(parts, 1) - expected).abs().max() < 1e-12 * expected.abs().max()


@torch.no_grad()
def test_with_the_residual_the_input_is_added_once_more() -> None:
    plain, with_residual = BiMamba2(32), BiMamba2(32, has_residual=True)
    with_residual.load_state_dict(plain.state_dict())
    x, lens = torch.randn(2, 20, 32), torch.tensor([20, 7])
    for chunk_size in (-1, 8):
        states = plain.forwards.init_states(2, CPU, x.dtype)
        expected = plain(x, lens, chunk_size, *states)
        found = with_residual(x, lens, chunk_size, *states)
        assert torch.equal(found[0], expected[0] + x)
        assert all(map(torch.equal, found[1:], expected[1:]))


@torch.no_grad()
def test_a_whole_utterance_is_scanned_both_ways_each_row_by_its_own_length() -> None:
    (forwards, own), (backwards, reversed_own) = (mixer_of_transformers(64, s) for s in (1, 2))
    both = BiMamba2(64)
    both.forwards, both.backwards = own, reversed_own
    lens = torch.tensor([70, 1, 33, 0])
    x = torch.randn(4, 70, 64)
    for row, length in enumerate(lens):
        x[row, length:] = 1e3  # padding must not matter
    found = both(x, lens, -1, *own.init_states(4, CPU, x.dtype))[0]
    for row, length in enumerate(lens[:3]):
        alone = x[row : row + 1, :length]
        expected = forwards(alone) + backwards(alone.flip(1)).flip(1)
        scale = expected.abs().max()
        assert (found[row, :length] - expected[0]).abs().max() < 1e-5 * scale


def network(options: str = "all", **shape) -> StreamingXLSREncoder:
    """A tiny encoder with Mamba-2; its states matter, as their steps are large."""
    config = dataclasses.replace(TINY, **shape)
    mixer = EncoderOptions(encoder_dim=32, mixer="bimamba2", mixer_layers=options)
    chunk = ChunkSettings(8, 0, 0)
    encoder = StreamingXLSREncoder(config, mixer, chunk=chunk).eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith(("dt_bias", "out_proj.weight")):
            parameter.data.copy_(3 * parameter.data + 0.5 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize(
    "chunk_size", [2, 16, *(pytest.param(c, marks=pytest.mark.long) for c in (32, 64))]
)
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_it_streams_what_it_simulates(chunk_size: int, dtype: torch.dtype, bound: float) -> None:
    encoder = network().to(dtype)
    setting = ChunkSettings(chunk_size, 0, 0)
    encoder.set_chunk(setting)
    waves = three_waves(chunk_size, dtype)
    expected = masked(encoder, waves, setting)
    streamed = serve(encoder, waves, starts=[0, 2, 3])
    assert difference(streamed, expected) < bound
    alone = [serve(encoder, [wave], starts=[0], whole=True)[0] for wave in waves]
    assert difference(streamed, alone) < bound
    blocks = in_blocks(encoder, waves, setting, longest=20, block=2 * chunk_size)
    assert difference(blocks, expected) < bound


def test_layers_of_both_kinds_stream_what_they_simulate() -> None:
    encoder = network("0,2", num_hidden_layers=4).double()
    for setting in (ChunkSettings(16, 2, 4), ChunkSettings(8, -1, 0), ChunkSettings(32, 0, 3)):
        encoder.set_chunk(setting)
        waves = three_waves(setting.chunk_size, torch.float64)
        streamed = serve(encoder, waves, starts=[0, 1, 3])
        assert difference(streamed, masked(encoder, waves, setting)) < 1e-10, setting


def test_the_whole_past_matters_and_no_later_chunk() -> None:
    encoder = network().double()
    wave = speech(80 + 320 * 64, 1)
    [plain] = masked(encoder, [wave], ChunkSettings(8, 0, 0))
    changed = wave.clone()
    changed[-320 * 8 :] *= 2  # the last chunk
    assert torch.equal(masked(encoder, [changed], ChunkSettings(8, 0, 0))[0][:28], plain[:28])
    changed = wave.clone()
    changed[:400] *= 2
    [other] = masked(encoder, [changed], ChunkSettings(8, 0, 0))
    assert ((other - plain).abs().amax(1) > 1e-9).all()


def test_the_state_has_the_same_size_whatever_the_chunk_and_however_long_the_past() -> None:
    encoder = network()
    sizes = set()
    for chunk_size in (8, 16, 64):
        encoder.set_chunk(ChunkSettings(chunk_size, 0, 0))
        state = encoder.get_init_states(1, CPU)
        sizes.add(state_bytes(state))
        x = torch.randn(1, chunk_size * 320)
        for _ in range(3):
            _, _, state = encoder.streaming_forward(x, torch.tensor([x.shape[1]]), state)
        sizes.add(state_bytes(state))
    assert len(sizes) == 1


def test_it_compiles_to_torchscript() -> None:
    encoder = network("1", num_hidden_layers=3)
    scripted = torch.jit.script(encoder)
    x, lens = torch.randn(2, 9000), torch.tensor([9000, 4000])
    with torch.no_grad():
        for found, expected in zip(scripted(x, lens, 8, 1, 2), encoder(x, lens, 8, 1, 2)):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_everything_but_attention_keeps_its_place() -> None:
    attention = StreamingXLSREncoder(TINY, EncoderOptions(encoder_dim=32)).xlsr.state_dict()
    converted = network().xlsr.state_dict()
    new = {name for name in converted if ".mamba." in name}
    gone = {name for name in attention if ".attention." in name}
    assert new and converted.keys() - new == attention.keys() - gone
    partly = network("1").xlsr.state_dict()
    assert any("layers.0.attention" in name for name in partly)
    assert not any("layers.1.attention" in name for name in partly)


def test_layers_are_chosen_by_numbers_and_ranges() -> None:
    def chosen(layers: str, first: int = 0) -> list[int]:
        return mamba_layers(EncoderOptions(mixer="bimamba2", mixer_layers=layers), 24, first)

    assert chosen("all") == list(range(24)) and chosen("all", 20) == [20, 21, 22, 23]
    assert chosen("3,12-14, 23") == [3, 12, 13, 14, 23]
    for wrong in ("24", "-1", "5-3", "x", "1,", "12-24"):
        with pytest.raises(UserError, match=r"--mixer-layers .*within 0 to 23"):
            chosen(wrong)
    with pytest.raises(UserError, match="within 12 to 23"):
        chosen("3", 12)
    for given in (dict(mixer_layers="3"), dict(mixer_residual=True)):
        with pytest.raises(UserError, match=r"--mixer-[a-z]+ [13] needs --mixer bimamba2"):
            EncoderOptions(**given)


def test_options_of_attention_mean_nothing_without_it() -> None:
    mamba = EncoderOptions(mixer="bimamba2")
    streaming = StreamingOptions(True, "16,-1")
    encoder, chosen = with_mixer(mamba, streaming, XlsrConfig(), "frontend")
    assert encoder.mixer_layers == ",".join(map(str, range(24)))
    assert chosen.all_settings() == {ChunkSettings(16, 0, 0), ChunkSettings()}
    for given in (dict(left_context_chunks="2"), dict(attention_sink_size="4")):
        with pytest.raises(UserError, match="no layer of this network has attention"):
            with_mixer(mamba, StreamingOptions(True, **given), XlsrConfig(), "frontend")
    upper = EncoderOptions(mixer="bimamba2", mixer_layers="12-23")
    assert with_mixer(upper, streaming, XlsrConfig(), "frontend")[1] is streaming
    with pytest.raises(UserError, match="no layer of XLSR lies above --cut last"):
        with_mixer(mamba, streaming, XlsrConfig(), "last")
