"""Where trainings start: pretrained XLSR, some of its layers, another training, the teacher."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from local.demo.make_toy_xlsr import make_random
from tests.support.random_models import tokenizer
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.model.checkpoint import (
    CheckpointOptions,
    load_model,
    model_content,
    save_below_cut,
)
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, with_layers
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import TransducerOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr
from xlsr_transducer.training.initial_weights import initial_model
from xlsr_transducer.training.start import InputOptions, read_input

LAYERS = 4
OF_LAYER = "encoder.xlsr.encoder.layers."
FULL = StreamingOptions()
STREAMING = StreamingOptions(True, "16,8,-1")


@pytest.fixture(scope="module")
def xlsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random XLSR of four layers."""
    folder = tmp_path_factory.mktemp("start") / "toy_xlsr"
    shape = {"num_hidden_layers": LAYERS, "hidden_size": 32, "intermediate_size": 48}
    make_random(folder, 1, {**shape, "conv_dim": [16] * 7})
    return folder


def begun(
    xlsr: Path,
    init_from: Path | None = None,
    teacher: Path | None = None,
    streaming: StreamingOptions = FULL,
    **encoder: Any,
) -> tuple[ModelConfig, SpeechModel]:
    """Returns a model as a training from the waveform begins with it."""
    options = InputOptions(cut="waveform", xlsr=str(xlsr), init_from=init_from)
    source, network = read_input(options, Path("data"), streaming)
    given = EncoderOptions(**{"encoder_dim": 32, **encoder})
    chosen, streaming, shape = with_layers(given, streaming, source.xlsr, "waveform")
    of_heads = TransducerOptions(decoder_dim=16, joiner_dim=32), streaming
    config = ModelConfig(source.features, shape, chosen, *of_heads, 40, ("transducer", "ctc"))
    return config, initial_model(config, network, options, tokenizer().tokens, teacher)


def changed_and_saved(path: Path, config: ModelConfig, model: SpeechModel) -> dict[str, Tensor]:
    """Writes a checkpoint of a model whose weights have changed as by training; returns them."""
    front_end = "encoder.xlsr.feature_extractor."
    weights = {
        name: value if name.startswith(front_end) else value + 0.1 * torch.randn_like(value)
        for name, value in model.state_dict().items()
    }
    save_atomically(model_content(config, tokenizer(), weights), path)
    return weights


def layer(weights: dict[str, Tensor], number: int, only: str = "") -> dict[str, Tensor]:
    prefix = f"{OF_LAYER}{number}."
    found = {n[len(prefix) :]: w for n, w in weights.items() if n.startswith(prefix)}
    return {name: value for name, value in found.items() if name.startswith(only)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found and found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def others(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(OF_LAYER)}


def test_kept_layers_begin_as_those_of_the_pretrained_network(
    xlsr: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        config, model = begun(xlsr, keep_layers="0,2-3")
    assert config.kept_layers == [0, 2, 3] and config.features.sha256 == load_xlsr(xlsr).sha256
    pretrained = {f"encoder.xlsr.{n}": w for n, w in load_xlsr(str(xlsr)).weights.items()}
    own = model.state_dict()
    for number, original in enumerate((0, 2, 3)):
        assert_same(layer(own, number), layer(pretrained, original))
    assert not layer(own, 3)
    assert f"layers 0,2,3 of XLSR's {LAYERS} are kept" in caplog.text
    assert f"starts from the pretrained XLSR, {xlsr}" in caplog.text


@pytest.mark.parametrize("flag", ["init_from", "teacher"])
def test_kept_layers_begin_as_those_of_a_training_with_all(
    xlsr: Path, tmp_path: Path, flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A fixed teacher is one; a student of that student's layers takes them as they are."""
    torch.manual_seed(0)
    file, second = tmp_path / "all.pt", tmp_path / "kept.pt"
    given = changed_and_saved(file, *begun(xlsr))
    with caplog.at_level(logging.INFO):
        config, model = begun(xlsr, **{flag: file}, streaming=STREAMING, keep_layers="0,3")
    assert f"starts from --{flag.replace('_', '-')} {file}" in caplog.text
    own = model.state_dict()
    assert_same(layer(own, 0), layer(given, 0))
    assert_same(layer(own, 1), layer(given, 3))
    assert_same(others(own), others(given))
    trained = changed_and_saved(second, config, model)
    assert_same(begun(xlsr, second, keep_layers="0,3")[1].state_dict(), trained)
    of_one = begun(xlsr, second, keep_layers="3")[1].state_dict()
    assert_same(layer(of_one, 0), layer(trained, 1))


def test_a_converted_student_keeps_all_but_the_attention_of_its_teacher(
    xlsr: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "full.pt"
    given = changed_and_saved(file, *begun(xlsr))
    mamba = dict(mixer="bimamba2", mixer_layers="1", mixer_residual=True)
    own = begun(xlsr, teacher=file, keep_layers="1,3", **mamba)[1].state_dict()
    assert_same(layer(own, 0), layer(given, 1))
    assert layer(own, 1, "mamba.") and not layer(own, 1, "attention.")
    for part in ("layer_norm.", "feed_forward.", "final_layer_norm."):
        assert_same(layer(own, 1, part), layer(given, 3, part))
    assert_same(others(own), others(given))


def test_of_features_of_a_layer_what_lies_below_is_kept_beside_the_checkpoints(
    xlsr: Path, tmp_path: Path
) -> None:
    network = load_xlsr(str(xlsr))
    features = FeatureInfo(str(xlsr), network.sha256, "2", "cumulative", 32)
    given = EncoderOptions(encoder_dim=32, keep_layers="0-1,3")
    encoder, streaming, shape = with_layers(given, FULL, network.config, "2")
    of_heads = TransducerOptions(decoder_dim=16, joiner_dim=32), streaming
    config = ModelConfig(features, shape, encoder, *of_heads, 40, ("ctc",))
    model = initial_model(config, network, InputOptions(), tokenizer().tokens)
    assert list(model.encoder.xlsr.encoder.layers) == ["2"]
    save_below_cut(network, config, tmp_path)
    save_atomically(model_content(config, tokenizer(), model.state_dict()), tmp_path / "best.pt")
    loaded = load_model(CheckpointOptions(checkpoint=tmp_path / "best.pt"))
    assert_same(loaded.model.encoder.xlsr.state_dict(), network.with_layers([0, 1, 3]).weights)


def test_what_init_from_names_counts_more_than_the_teacher(xlsr: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    begin, teacher = tmp_path / "begin.pt", tmp_path / "teacher.pt"
    given = changed_and_saved(begin, *begun(xlsr))
    changed_and_saved(teacher, *begun(xlsr))
    assert_same(begun(xlsr, begin, teacher)[1].state_dict(), given)


def test_layers_that_a_file_lacks_are_named(xlsr: Path, tmp_path: Path) -> None:
    file = tmp_path / "kept.pt"
    changed_and_saved(file, *begun(xlsr, keep_layers="0,1,3"))
    for flag, keep, missing in (("init_from", "", "2"), ("teacher", "1-2", "2")):
        message = (
            f"--{flag.replace('_', '-')} {file}: has layers 0,1,3 of XLSR, but not {missing}: "
            "choose --keep-layers among those, or another file"
        )
        with pytest.raises(UserError, match=f"^{message}$"):
            begun(xlsr, **{flag: file}, keep_layers=keep)


def test_a_student_with_other_heads_takes_what_fits(
    xlsr: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "teacher.pt"
    given = changed_and_saved(file, *begun(xlsr))
    with caplog.at_level(logging.INFO):
        own = begun(xlsr, teacher=file, encoder_dim=48)[1].state_dict()
    parts = "encoder.adapter, heads.ctc, heads.transducer"
    assert f"--teacher {file}: does not give {parts}, which begin at random" in caplog.text
    of_xlsr = [name for name in given if name.startswith("encoder.xlsr.")]
    assert_same({n: own[n] for n in of_xlsr}, {n: given[n] for n in of_xlsr})
    with pytest.raises(UserError, match=f"--init-from {file}: made with other options"):
        begun(xlsr, init_from=file, encoder_dim=48)


def test_a_teacher_of_another_xlsr_is_no_start(
    xlsr: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "teacher.pt"
    config, model = begun(xlsr)
    features = dataclasses.replace(config.features, sha256="0" * 64)
    changed_and_saved(file, dataclasses.replace(config, features=features), model)
    with caplog.at_level(logging.INFO):
        begun(xlsr, teacher=file)
    assert f"--teacher {file}: is of another XLSR" in caplog.text
    assert f"starts from the pretrained XLSR, {xlsr}" in caplog.text


def test_a_teacher_of_other_tokens_is_refused(xlsr: Path, tmp_path: Path) -> None:
    file = tmp_path / "teacher.pt"
    config, model = begun(xlsr)
    content = model_content(config, tokenizer(), model.state_dict())
    save_atomically({**content, "tokens": ["<blk>"]}, file)
    with pytest.raises(UserError, match=f"--teacher {file}: was trained with other tokens"):
        begun(xlsr, teacher=file)
