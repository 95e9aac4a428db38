"""Scripted models by themselves: states as servers carry them, unusual settings and shapes."""

from __future__ import annotations

import pytest
import torch

from tests.support.stream_driver import TINY, speech, tiny_encoder
from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.exporting.scripted import (
    OfflineEncoder,
    ScriptedTransducer,
    StreamingEncoderModel,
    as_samples,
    pack_states,
    unpack_states,
)
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.heads import HEADS, TransducerOptions, make_heads
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.exported import encode_chunks
from xlsr_transducer.recognition.script_models import windows

SINGLE = torch.float32


def model_of(encoder: XLSREncoder, context_size: int = 2, has_ctc: bool = False) -> SpeechModel:
    options = TransducerOptions(32, 32, context_size)
    return (
        SpeechModel(encoder, make_heads(HEADS[: 1 + has_ctc], encoder.output_dim, options, 20))
        .eval()
        .requires_grad_(False)
    )


@pytest.mark.parametrize("chunk", [(8, 2, 4), (8, 0, 0), (16, -1, 0), (4, 1, 10)])
@torch.no_grad()
def test_windows_give_what_the_stream_gives(chunk: tuple[int, int, int]) -> None:
    encoder = tiny_encoder(chunk=ChunkSettings(*chunk))
    scripted = torch.jit.script(StreamingEncoderModel(encoder))
    for samples in (0, 399, 400, 2720, 2721, 9001):
        wave, states, found = speech(samples, 1, SINGLE), scripted.get_init_states(1), []
        for window, valid in windows(wave, scripted.chunk_size, scripted.pad_length):
            lens = torch.tensor([valid])
            out, out_lens, states = scripted.streaming_forward(window[None], lens, states)
            found.append(out[0, : out_lens[0]])
        expected = list(encode_chunks(encoder, wave))
        assert len(found) == len(expected)
        for a, b in zip(found, expected):
            assert a.shape == b.shape and float((a - b).abs().max()) < 1e-5


@torch.no_grad()
def test_states_survive_packing_to_the_last_bit() -> None:
    encoder = tiny_encoder(chunk=ChunkSettings(8, 2, 4))
    state = encoder.get_init_states(2, torch.device("cpu"))
    x = torch.stack([speech(2560, i, SINGLE) for i in range(2)])
    _, _, state = encoder.streaming_forward(x, torch.tensor([2560, 2560]), state)
    packed = pack_states(state)
    assert len(packed) == 6 * TINY.num_hidden_layers + 2
    for i, tensor in enumerate(packed):
        dim = 1 if i < len(packed) - 2 and i % 6 < 4 else 0
        assert tensor.shape[dim] == 2
    again = unpack_states(packed)
    for a, b in zip([*again.xlsr, again.adapter], [*state.xlsr, state.adapter]):
        assert a.dtype == b.dtype and torch.equal(a, b)


@torch.no_grad()
def test_a_streaming_file_takes_whole_utterances_too() -> None:
    chunk = ChunkSettings(8, 2, 4)
    model = model_of(tiny_encoder(chunk=chunk))
    scripted = torch.jit.script(ScriptedTransducer(StreamingEncoderModel(model.encoder), model))
    x, lens = torch.stack([speech(9001, i, SINGLE) for i in range(2)]), torch.tensor([9001, 5000])
    out, out_lens, states = scripted.encoder(x, lens)
    expected, expected_lens = model.encoder(x, lens, 8, 2, 4)
    assert states == [] and torch.equal(out_lens, expected_lens)
    assert float((out - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("context_size, has_ctc", [(1, False), (3, True)])
@torch.no_grad()
@repeatable()
def test_full_context_models_of_any_context_size_script(context_size: int, has_ctc: bool) -> None:
    torch.manual_seed(1)
    model = model_of(XLSREncoder(TINY, EncoderOptions(encoder_dim=32)), context_size, has_ctc)
    encoder = OfflineEncoder(model.encoder, ChunkSettings())
    scripted = torch.jit.script(ScriptedTransducer(encoder, model))
    assert scripted.decoder.context_size == context_size
    assert (scripted.ctc_output is not None) == has_ctc
    x, lens = torch.stack([speech(3000, i, SINGLE) for i in range(2)]), torch.tensor([3000, 700])
    padded = x.clone()
    padded[1, 700:] = -23.025850929940457
    assert torch.equal(scripted.encoder(padded, lens)[0], scripted.encoder(x, lens)[0])
    out, out_lens = scripted.encoder(torch.rand(3, 20, 80), torch.tensor([20, 7, 0]))
    silence = scripted.encoder(torch.zeros(3, 3200), torch.tensor([3200, 1120, 0]))
    assert torch.equal(out, silence[0]) and out_lens.tolist() == silence[1].tolist()
    y = torch.tensor([[-1] * (context_size - 1) + [0]])
    need_pad = torch.tensor([False])  # icefall's programs give a tensor
    decoder_out = scripted.decoder(y, need_pad=need_pad)
    assert torch.equal(decoder_out, model.decoder(y, need_pad=False))


NAN = float("nan")


@pytest.mark.parametrize("script", [False, True])
def test_filter_banks_are_refused_and_warm_ups_are_silence(script: bool) -> None:
    convert = torch.jit.script(as_samples) if script else as_samples
    error = torch.jit.Error if script else ValueError
    lens = torch.tensor([20, 7])
    noise = torch.rand(2, 20, 80, generator=torch.Generator().manual_seed(0))
    for warm_up in (noise, noise[:, :, :40], noise[:, :0], 0 * noise):
        samples, counts = convert(warm_up, lens)
        assert samples.shape == (2, warm_up.shape[1] * 160) and not samples.any()
        assert counts.tolist() == [3200, 1120]
    mixed = noise.clone()
    mixed[1, 7:] = -23.025850929940457  # as a batch is padded
    spike = noise.clone()
    spike[0, 3, 5] = 1.0
    for features in (noise - 0.5, 4 * noise, mixed, spike, noise * NAN, 0 * noise - 23.03):
        for width in (80, 40, 81, 161):
            wide = features.repeat(1, 1, 3)[:, :, :width]
            with pytest.raises(error, match="samples at 16 kHz in frames of 160, not filter"):
                convert(wide, lens)
