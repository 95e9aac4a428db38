"""The CPU's faster layers give the same network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.stream_driver import padded, serve, speech, tiny_encoder
from xlsr_transducer.core.compat import has_fast_linear
from xlsr_transducer.model import cpu_choice, cpu_inference
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.cpu_inference import FastGroupedConv, FastLinear, prepare_for_cpu


def test_swapped_network_gives_the_same_numbers_and_weights():
    setting = ChunkSettings(16, 2, 4)
    plain, fast = (
        tiny_encoder(chunk=setting),
        prepare_for_cpu(tiny_encoder(chunk=setting), "onednn"),
    )
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
        model = prepare_for_cpu(nn.Sequential(linear).eval(), "onednn")
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
    for model in (nn.Sequential(nn.Linear(4, 4)).double().eval(), nn.Sequential(nn.Linear(4, 4))):
        assert type(prepare_for_cpu(model, "onednn")[0]) is nn.Linear


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, and a process that has chosen nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_choice.choose_layers.cache_clear()
    yield tmp_path / "xlsr_transducer" / "cpu_layers.json"
    cpu_choice.choose_layers.cache_clear()


def measured(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> Callable[[int], str]:
    """The choice of a process that measures ``ratios`` one after the other, and no more."""
    values = iter(ratios)
    monkeypatch.setattr(cpu_choice, "measure", lambda width: next(values))
    monkeypatch.setattr(cpu_choice, "has_fast_linear", lambda: True)

    def choose(width: int) -> str:
        cpu_choice.choose_layers.cache_clear()
        return cpu_choice.choose_layers(width)

    return choose


def test_layers_are_measured_once_per_machine_and_width(cache, monkeypatch):
    choose = measured(monkeypatch, 0.8, 1.1, 1.0)
    assert [choose(1024), choose(1280), choose(1024), choose(1280)] == [
        "onednn", "pytorch", "onednn", "pytorch"]  # fmt: skip
    entries = json.loads(cache.read_text())
    assert sorted(entries.values()) == ["onednn", "pytorch"]
    assert all(torch.__version__ in key for key in entries)
    monkeypatch.setattr(cpu_choice.torch, "__version__", "9.9")
    assert choose(1024) == "pytorch"  # another version: measured anew, a tie


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": 1}', "\0\1"])
def test_a_damaged_cache_is_written_anew(cache, monkeypatch, content):
    cache.parent.mkdir()
    cache.write_text(content)
    choose = measured(monkeypatch, 0.8)
    assert choose(1024) == choose(1024) == "onednn"


def test_a_cache_that_cannot_be_written_is_no_error(cache, monkeypatch):
    cache.parent.write_text("a file where the folder would be")
    choose = measured(monkeypatch, 0.8, 1.1)
    assert choose(1024) == "onednn"
    assert cpu_choice.choose_layers(1024) == "onednn"  # remembered by the process
    assert choose(1024) == "pytorch"  # another process


def test_small_networks_use_pytorch_unmeasured(cache, monkeypatch):
    assert measured(monkeypatch)(64) == "pytorch"
    model = prepare_for_cpu(nn.Sequential(nn.Linear(64, 64)).eval())
    assert type(model[0]) is nn.Linear and not cache.exists()


def test_the_choice_follows_the_hidden_size_and_holds_for_every_layer(cache, monkeypatch):
    widths = []
    monkeypatch.setattr(cpu_inference, "choose_layers", lambda w: widths.append(w) or "pytorch")
    layers = [nn.Linear(320, 1280), nn.Linear(1280, 320), nn.Linear(320, 500)]
    model = prepare_for_cpu(nn.Sequential(*layers).eval())
    assert widths == [320] and all(type(layer) is nn.Linear for layer in model)


def test_the_measure_is_a_ratio_of_times(cache):
    if has_fast_linear():
        assert 0.01 < cpu_choice.measure(64) < 100
