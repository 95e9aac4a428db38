"""``--init-from`` a folder of Hugging Face's CTC class: which weights a training begins with."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from local.prepare_lang import train_letters
from tests.support.foreign_ctc import VOCABULARY, write_folder
from xlsr_transducer import train
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model, read_checkpoint
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.initial_weights import load_weights
from xlsr_transducer.training.start import InputOptions, read_input

UPPER = [token.upper() if len(token) == 1 else token for token in VOCABULARY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("start") / "folder", UPPER, shape={"adapter_attn_dim": 8}
    )


def begun(
    folder: Path, tokens: list[str], heads: tuple[str, ...] = ("ctc",), **encoder: Any
) -> SpeechModel:
    """Returns a model as training from the waveform begins with it."""
    theirs = load_model(CheckpointOptions(checkpoint=folder)).config
    options = InputOptions(cut="waveform", init_from=folder)
    source, network = read_input(options, Path("data"), theirs.streaming)
    changed = dataclasses.replace(theirs.encoder, **{"encoder_dim": 32, **encoder})
    config = dataclasses.replace(
        theirs, features=source.features, encoder=changed, vocab_size=len(tokens), heads=heads
    )
    torch.manual_seed(0)
    model = build_model(config)
    load_weights(model, config, network, options, tokens)
    return model


def test_rows_of_the_head_are_those_of_the_same_letters(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokenizer(train_letters(["äva õed", "qxä"])).tokens
    with caplog.at_level(logging.INFO):
        model = begun(folder, tokens)
    given, output = load_file(folder / "model.safetensors"), model.ctc_output
    rows = {"<blk>": "<pad>", "<unk>": "<unk>", "▁": "|"}
    for i, token in enumerate(tokens):
        name = rows.get(token, token.upper())
        if name in UPPER:
            row = UPPER.index(name)
            assert torch.equal(output.weight[i], given["lm_head.weight"][row])
            assert torch.equal(output.bias[i], given["lm_head.bias"][row])
        else:
            assert token in ("<sos/eos>", "q", "x") and output.bias[i] > -1
    [line] = [r.getMessage() for r in caplog.records if "gives the encoder" in r.getMessage()]
    assert "the head of 9 tokens; new are <sos/eos>" in line
    name = "encoder.layers.1.adapter_layer.linear_1.weight"
    assert torch.equal(model.encoder.xlsr.state_dict()[name], given[f"wav2vec2.{name}"])


@pytest.mark.parametrize(
    ("texts", "heads", "encoder", "message"),
    [
        (["▁ab", "▁c"], ("ctc",), {}, "the head is new, as its tokens are others"),
        (["q", "w"], ("ctc",), {}, "the head is new, as its tokens are others"),
        (["a"], ("ctc",), {"adapter": "conv"}, "its head does not fit this model's"),
        (["a"], ("transducer",), {}, "its head does not fit this model's"),
    ],
)
def test_a_head_that_does_not_fit_is_new_and_the_log_tells(
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    texts: list[str],
    heads: tuple[str, ...],
    encoder: dict[str, str],
    message: str,
) -> None:
    with caplog.at_level(logging.INFO):
        model = begun(folder, ["<blk>", "<sos/eos>", "<unk>", *texts], heads, **encoder)
    assert message in caplog.text
    name = "encoder.layers.0.attention.q_proj.weight"
    given = load_file(folder / "model.safetensors")
    assert torch.equal(model.encoder.xlsr.state_dict()[name], given[f"wav2vec2.{name}"])
    if model.ctc_output is not None:
        assert model.ctc_output.bias.abs().max() < 1


def test_adapters_that_the_network_has_not_are_refused(folder: Path, tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain")
    theirs = load_model(CheckpointOptions(checkpoint=plain)).config
    options = InputOptions(cut="waveform", xlsr=str(plain), init_from=folder)
    source, network = read_input(options, Path("data"), theirs.streaming)
    config: ModelConfig = dataclasses.replace(theirs, features=source.features)
    with pytest.raises(UserError, match="has MMS's adapters in its layers: give --xlsr"):
        load_weights(build_model(config), config, network, options, ["<blk>"])


def test_a_language_needs_the_waveform(folder: Path) -> None:
    with pytest.raises(UserError, match="--language est needs --cut waveform"):
        InputOptions(init_from=folder, language="est")


def test_training_continues_from_a_folder_and_keeps_its_adapters(
    folder: Path, corpus: Path, tmp_path: Path
) -> None:
    given = ["--cut=waveform", f"--init-from={folder}", "--heads=ctc", "--adapter=none"]
    data = [f"--data-dir={corpus}", f"--exp-dir={tmp_path}", "--num-workers=0", "--tensorboard=0"]
    train.main([*given, *data, "--num-epochs=1", "--max-duration=30", "--base-lr=0.001"])
    config = ModelConfig.from_dict(read_checkpoint(tmp_path / "epoch-1.pt")["config"])
    assert config.xlsr.adapter_attn_dim == 8 and config.heads == ("ctc",)
    loaded = load_model(CheckpointOptions(exp_dir=tmp_path))
    name = "encoder.layers.1.adapter_layer.linear_1.weight"
    before = load_file(folder / "model.safetensors")[f"wav2vec2.{name}"]
    after = loaded.model.encoder.xlsr.state_dict()[name]
    assert 0 < (after - before).abs().max() < 0.01
