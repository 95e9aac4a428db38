"""The CPU's faster layers give the same network."""

from __future__ import annotations

import torch
from stream_driver import padded, serve, speech, tiny_encoder
from torch import nn

from xlsr_transducer.compat import has_fast_linear
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.cpu_inference import FastGroupedConv, FastLinear, prepare_for_cpu


def test_swapped_network_gives_the_same_numbers_and_weights():
    setting = ChunkSettings(16, 2, 4)
    plain, fast = tiny_encoder(chunk=setting), prepare_for_cpu(tiny_encoder(chunk=setting))
    assert any(isinstance(m, FastLinear) for m in fast.modules()) == has_fast_linear()
    assert isinstance(fast.xlsr.encoder.pos_conv_embed.conv, FastGroupedConv)
    assert list(fast.state_dict()) == list(plain.state_dict())
    waves = [speech(n, n, torch.float32) for n in (20001, 9000)]
    x, lens = padded(waves)
    with torch.inference_mode():
        for view in ((-1, -1, 0), (16, 2, 4)):
            found, expected = fast(x, lens, *view)[0], plain(x, lens, *view)[0]
            assert float((found - expected).abs().max()) < 1e-5
    for found, expected in zip(serve(fast, waves, [0, 1]), serve(plain, waves, [0, 1])):
        assert float((found - expected).abs().max()) < 1e-5


def test_layers_without_bias_and_other_shapes_of_input_work():
    for bias in (True, False):
        linear = nn.Linear(16, 24, bias=bias).eval()
        model = prepare_for_cpu(nn.Sequential(linear).eval())
        for shape in ((16,), (3, 16), (2, 1, 5, 16), (100, 16), (0, 16)):
            x = torch.randn(shape)
            with torch.inference_mode():
                assert float((model(x) - linear(x)).abs().sum()) < 1e-4


def test_few_and_many_outputs_of_the_grouped_convolution_agree_with_pytorch():
    conv = nn.Conv1d(12, 12, 8, groups=3).eval()
    fast = FastGroupedConv(conv)
    for batch, frames in ((1, 1), (1, 48), (4, 12), (3, 17), (1, 100)):
        x = torch.randn(batch, frames + 7, 12).transpose(1, 2)
        with torch.inference_mode():
            assert float((fast(x) - conv(x)).abs().max()) < 1e-5


def test_other_types_and_training_are_left_alone():
    assert type(prepare_for_cpu(nn.Sequential(nn.Linear(4, 4)).double().eval())[0]) is nn.Linear
    assert type(prepare_for_cpu(nn.Sequential(nn.Linear(4, 4)).train())[0]) is nn.Linear
