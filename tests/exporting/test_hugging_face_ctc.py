"""``export --hf`` of CTC models: transformers gives decode's letters, other models are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from local.prepare_lang import train_bpe, train_letters
from tests.support.foreign_ctc import (
    GROUP_NORM,
    LAST,
    SHAPE,
    VOCABULARY,
    texts_of_pipeline,
    waves,
    write_folder,
)
from xlsr_transducer import export
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.exporting import hugging_face
from xlsr_transducer.exporting.formats import FormatOptions
from xlsr_transducer.exporting.hugging_face_ctc import require_expressible
from xlsr_transducer.exporting.parity import built_in_audio
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model, model_content
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import TransducerOptions
from xlsr_transducer.model.xlsr_config import XlsrConfig
from xlsr_transducer.recognition.decoding import ChunkOptions
from xlsr_transducer.recognition.exported import recognise
from xlsr_transducer.recognition.torch_models import offline
from xlsr_transducer.search import SearchOptions

TEXTS = ["tere tulemast koju", "õhtul sõidab rong", "ära mine üle jõe"]


def make_checkpoint(
    path: Path, texts: list[str] = TEXTS, normalize: str = "utterance", **shape: Any
) -> Path:
    """A random model of letters; its output layer answers to the encoder's deviations."""
    tokenizer = Tokenizer(train_letters(texts))
    config = ModelConfig(
        FeatureInfo("toy", "0" * 64, "waveform", normalize, feature_dim=1),
        XlsrConfig.from_dict({**SHAPE, **shape}),
        EncoderOptions(adapter="none"),
        TransducerOptions(),
        StreamingOptions(),
        tokenizer.vocab_size,
        ("ctc",),
    )
    torch.manual_seed(2)
    model = build_model(config).eval()
    frames = []
    with torch.no_grad():
        for wave in waves():
            frames.append(model.encoder(wave[None], torch.tensor([len(wave)]))[0][0])
        hidden, output = torch.cat(frames), model.ctc_output
        output.weight.copy_(4 * torch.randn_like(output.weight) / hidden.std(0) / 32**0.5)
        output.bias.copy_(-output.weight @ hidden.mean(0))
        output.bias[1:3] -= 100.0  # no training leaves <sos/eos> and <unk> likely
    save_atomically(model_content(config, tokenizer, model.state_dict()), path)
    return path


def texts(path: Path) -> list[str]:
    loaded = load_model(CheckpointOptions(checkpoint=path))
    found = recognise(offline(loaded, ChunkSettings()), waves(), SearchOptions())
    return [loaded.tokenizer.decode(output.tokens) for output in found]


def write_here(checkpoint: Path, folder: Path) -> Path:
    """Writes the folder and makes the exporter's comparison in this process."""
    folder.mkdir()
    options = FormatOptions(pretrained=False, hf=folder)
    job = export.load_job(CheckpointOptions(checkpoint=checkpoint), ChunkOptions(), options)
    [artifact] = hugging_face.write(job, folder)
    audio = built_in_audio()
    found = artifact.run([folder / name for name in artifact.files], audio)
    for theirs, ours in zip(found, artifact.expected(audio), strict=True):
        assert theirs.tokens == ours.tokens
        if ours.tokens:
            assert (theirs.encoder_out - ours.encoder_out).abs().max() < artifact.tolerance
    return folder


def words(texts: list[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize("normalize", ["utterance", "none"])
def test_the_pipeline_gives_decodes_letters(tmp_path: Path, normalize: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "a.pt", normalize=normalize)
    folder = write_here(checkpoint, tmp_path / "hf")
    expected = texts(checkpoint)
    assert words(texts_of_pipeline(folder, waves())) == expected
    assert len(set("".join(expected))) > 15
    assert "CTC recogniser" in (folder / "README.md").read_text(encoding="utf-8")
    assert texts(folder) == expected  # and back


def test_the_vocabulary_has_the_usual_names(tmp_path: Path) -> None:
    folder = write_here(make_checkpoint(tmp_path / "a.pt"), tmp_path / "hf")
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert list(vocabulary)[:3] == ["<pad>", "<s>", "<unk>"] and "|" in vocabulary
    assert not any("▁" in token for token in vocabulary)


FOREIGN = {
    "blank last": dict(vocabulary=LAST, pad_token="[PAD]", unk_token="[UNK]"),
    "special tokens, tokens of several characters": dict(vocabulary=["ch", *VOCABULARY]),
    "group norm": dict(shape=GROUP_NORM),
    "adapters": dict(shape={"adapter_attn_dim": 8}, do_normalize=False),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_goes_through_a_checkpoint_and_back(tmp_path: Path, kind: str) -> None:
    source = write_folder(tmp_path / "source", **FOREIGN[kind])
    loaded = load_model(CheckpointOptions(checkpoint=source))
    content = model_content(loaded.config, loaded.tokenizer, loaded.model.state_dict())
    save_atomically(content, tmp_path / "pretrained.pt")
    out = write_here(tmp_path / "pretrained.pt", tmp_path / "hf")
    given, found = (load_file(d / "model.safetensors") for d in (source, out))
    was, now = (json.loads((d / "vocab.json").read_text()) for d in (source, out))
    pad = FOREIGN[kind].get("pad_token", "<pad>")
    assert set(now) == {token if token != pad else "<pad>" for token in was}
    for token, row in was.items():
        for part in ("weight", "bias"):
            name, place = f"lm_head.{part}", now["<pad>" if token == pad else token]
            assert torch.equal(found[name][place], given[name][row])
    conv = "pos_conv_embed.conv."
    same = [name for name in found if "lm_head" not in name and conv not in name]
    assert len(same) > 40 and set(same) <= set(given)
    assert all(torch.equal(found[name], given[name]) for name in same)
    assert texts_of_pipeline(out, waves()) == texts_of_pipeline(source, waves())


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    loaded = load_model(CheckpointOptions(checkpoint=make_checkpoint(tmp_path / "a.pt")))
    require_expressible(loaded, is_full_context=True)
    config = loaded.config
    pieces, bar = Tokenizer(train_bpe(TEXTS, 45)), Tokenizer(train_letters(["a|b"]))
    languages = Tokenizer(train_letters(TEXTS, ["<et>", "<lv>"]))

    def encoder(**options: Any) -> ModelConfig:
        return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **options))

    cumulative = dataclasses.replace(config.features, normalize="cumulative")
    for change, message in (
        ({"config": encoder(adapter="conv")}, "no --adapter conv: train with --adapter none"),
        ({"config": encoder(weighted_layers=True)}, "no --weighted-layers 1: train with"),
        (
            {"config": dataclasses.replace(config, features=cumulative)},
            "no --normalize cumulative",
        ),
        ({"tokenizer": pieces}, "no BPE pieces: train on letters, made by prepare.sh --unit char"),
        ({"tokenizer": languages}, "no language tokens, which it would print: train with"),
        ({"tokenizer": bar}, "no letter .*, its boundary of words: prepare texts with"),
    ):
        with pytest.raises(UserError, match=message):
            require_expressible(dataclasses.replace(loaded, **change), is_full_context=True)
    with pytest.raises(UserError, match="no chunks: export it in full context"):
        require_expressible(loaded, is_full_context=False)


def run(checkpoint: Path, out: Path) -> int:
    given = [f"--checkpoint={checkpoint}", f"--out-dir={out}", "--pretrained=0"]
    return export.main([*given, f"--hf={out / 'hf'}"])


@pytest.mark.long
def test_the_command_compares_in_a_fresh_process(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = make_checkpoint(tmp_path / "a.pt")
    assert run(checkpoint, tmp_path / "out") == 0
    assert texts(tmp_path / "out/hf") == texts(checkpoint)
    assert "passed" in capsys.readouterr().out


def test_a_refused_model_leaves_no_file(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "a.pt", normalize="cumulative")
    with pytest.raises(UserError, match="--normalize cumulative: train with --normalize utter"):
        run(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out/hf").exists() and list((tmp_path / "out").iterdir()) == []
