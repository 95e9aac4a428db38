"""Models split at every level: which features fit which training, and that all of them stream."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from local import extract_features
from tests.support.tiny_recipe import run_train
from xlsr_transducer import decode, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import load_verified, save_atomically
from xlsr_transducer.model.checkpoint import (
    CheckpointOptions,
    load_model,
    model_content,
    read_checkpoint,
    save_below_cut,
)
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import StreamingOptions, check_features
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr

STREAMING = ["--streaming=1", "--chunk-size=16", "--left-context-chunks=1",
             "--attention-sink-size=4"]  # fmt: skip


def newest_tokens(folder: Path) -> dict[str, tuple[list[int], list[int]]]:
    path = max(folder.glob("tokens-val-*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
    records = map(json.loads, path.read_text().splitlines())
    return {r["id"]: (r["tokens"], r["frames"]) for r in records}


@pytest.mark.parametrize("cut", ["waveform", "1", "last"])
def test_a_model_of_every_level_streams_what_it_simulates(
    corpus: Path, tmp_path: Path, cut: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data, ignore=shutil.ignore_patterns("demo"))
    toy_xlsr = f"--xlsr={data / 'toy_xlsr'}"
    if cut == "waveform":
        source = ["--cut=waveform", toy_xlsr]
    else:
        chunk = [word for word in STREAMING if word != "--streaming=1"]
        extract_features.main([f"--data-dir={data}", toy_xlsr, f"--cut={cut}", "--single-process",
                               *chunk])  # fmt: skip
        source = [f"--features={cut}-cumulative-chunk-16-left-1-sink-4"]
    run_train(data, tmp_path, *source, *STREAMING, "--num-epochs=1")
    settings = ["--exp-dir", str(tmp_path), "--data-dir", str(data), "--split=val",
                "--blank-penalty=4", "--num-workers=0"]  # fmt: skip
    decode.main(settings)
    streaming_decode.main(settings)
    simulated = newest_tokens(tmp_path / "greedy_search")
    assert simulated == newest_tokens(tmp_path / "streaming" / "greedy_search")
    assert sum(len(t) for t, _ in simulated.values()) > 10


def features(cut: str, normalize: str = "cumulative", **more) -> FeatureInfo:
    return FeatureInfo("toy_xlsr", "0", cut, normalize, 8, **more)


FULL = StreamingOptions()
CHUNKED = StreamingOptions(True, "16", "1", "4")


@pytest.mark.parametrize(
    "info, streaming, message",
    [
        (features("12"), CHUNKED, "--cut 12 --chunk-size 16 --left-context-chunks 1"),
        (features("frontend", "utterance"), CHUNKED, "--normalize cumulative"),
        (features("12", chunk=ChunkSettings(16, 1, 4)), FULL, "not streaming"),
        (features("12", chunk=ChunkSettings(32, 1, 4)), CHUNKED, "chunk-32-left-1-sink-4"),
        (
            features("12", chunk=ChunkSettings(16, 1, 4)),
            StreamingOptions(True, "16,32", "1", "4"),
            "chunk-32-left-1-sink-4",
        ),
    ],
)
def test_features_that_contradict_the_model_are_refused_with_the_right_command(
    info: FeatureInfo, streaming: StreamingOptions, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_features(info, streaming)


@pytest.mark.parametrize(
    "info, streaming",
    [
        (features("frontend"), CHUNKED),
        (features("frontend"), FULL),
        (features("12"), FULL),
        (features("12", "utterance"), FULL),
        (features("12", chunk=ChunkSettings(16, 1, 4)), CHUNKED),
    ],
)
def test_features_that_fit_are_accepted(info: FeatureInfo, streaming: StreamingOptions) -> None:
    check_features(info, streaming)


@pytest.mark.parametrize(
    "options, trained",
    [
        ([], {"encoder.layers.0", "encoder.layers.1", "feature_projection"}),
        (["--trainable-layers=1"], {"encoder.layers.1"}),
        (["--trainable-layers=0"], set()),
        (["--freeze-encoder-steps=1000"], set()),
    ],
)
def test_only_the_layers_asked_for_are_trained(
    corpus: Path, tmp_path: Path, options: list[str], trained: set[str]
) -> None:
    run_train(corpus, tmp_path, "--num-epochs=1", *options)
    before = read_checkpoint_of_xlsr(corpus / "toy_xlsr")
    after = read_checkpoint(tmp_path / "epoch-1.pt")["model"]
    changed = {
        name
        for name, value in before.items()
        if f"encoder.xlsr.{name}" in after
        and not torch.equal(after[f"encoder.xlsr.{name}"], value)
    }
    for part in ("encoder.layers.0", "encoder.layers.1", "feature_projection"):
        assert any(name.startswith(part) for name in changed) == (part in trained), part
    assert "adapter.projection.weight" in {n.removeprefix("encoder.") for n in after}


def read_checkpoint_of_xlsr(folder: Path) -> dict[str, torch.Tensor]:
    return load_xlsr(str(folder)).weights


def test_a_streaming_model_continues_from_a_full_context_one(corpus: Path, tmp_path: Path) -> None:
    run_train(corpus, tmp_path / "full", "--num-epochs=1")
    start = tmp_path / "full" / "epoch-1.pt"
    run_train(corpus, tmp_path / "streaming", "--num-epochs=1", *STREAMING,
              f"--init-from={start}", "--base-lr=1e-30")  # fmt: skip
    before = read_checkpoint(start)["model"]
    after = read_checkpoint(tmp_path / "streaming" / "epoch-1.pt")["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_init_from_a_model_of_other_widths_is_refused(corpus: Path, tmp_path: Path) -> None:
    run_train(corpus, tmp_path / "full", "--num-epochs=1")
    with pytest.raises(UserError, match=r"joiner\S+ has the shapes \[.*\] and \["):
        run_train(corpus, tmp_path / "other", f"--init-from={tmp_path / 'full' / 'epoch-1.pt'}",
                  "--joiner-dim=16")  # fmt: skip


@pytest.fixture(scope="module")
def exported(streaming_exp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes pretrained.pt as ``export`` does: the whole of XLSR, the part below the level too."""
    loaded = load_model(CheckpointOptions(exp_dir=streaming_exp))
    path = tmp_path_factory.mktemp("exported") / "pretrained.pt"
    weights = loaded.model.state_dict()
    save_atomically(model_content(loaded.config, loaded.tokenizer, weights), path)
    return path


def test_training_from_features_starts_from_an_exported_model(
    corpus: Path, exported: Path, tmp_path: Path
) -> None:
    run_train(corpus, tmp_path, "--num-epochs=1", f"--init-from={exported}", "--base-lr=1e-30")
    before = read_checkpoint(exported)["model"]
    after = read_checkpoint(tmp_path / "epoch-1.pt")["model"]
    assert before.keys() > after.keys()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    load_model(CheckpointOptions(exp_dir=tmp_path))


def test_an_exported_model_with_another_front_end_is_refused_by_name(
    corpus: Path, exported: Path, tmp_path: Path
) -> None:
    content = read_checkpoint(exported)
    name = next(n for n in content["model"] if "feature_extractor" in n)
    content["model"][name] += 1
    other = tmp_path / "other.pt"
    save_atomically(content, other)
    with pytest.raises(UserError, match="other.pt: its XLSR below the cut is not the one"):
        run_train(corpus, tmp_path / "exp", f"--init-from={other}")


def test_layers_of_another_xlsr_without_those_below_are_refused(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    content = read_checkpoint(streaming_exp / "epoch-1.pt")
    content["config"]["features"]["sha256"] = "0" * 64
    save_atomically(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt: holds layers of another XLSR"):
        run_train(corpus, tmp_path / "exp", f"--init-from={tmp_path / 'other.pt'}")


@pytest.mark.parametrize("damage", ["config", "model", "tokens", "mode", "chunk"])
def test_what_is_wrong_inside_a_checkpoint_is_told_with_its_name(
    corpus: Path, streaming_exp: Path, tmp_path: Path, damage: str
) -> None:
    content = read_checkpoint(streaming_exp / "epoch-1.pt")
    if damage == "mode":
        content["config"]["features"]["normalize"] = "loud"
    elif damage == "chunk":
        content["config"]["streaming"]["chunk_size"] = "15"
    else:
        content[damage] = {"w": 1}
    save_atomically(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt: "):
        run_train(corpus, tmp_path / "exp", f"--init-from={tmp_path / 'other.pt'}")


@pytest.mark.parametrize("stale", ["another XLSR", "another cut", "damaged"])
def test_what_an_aborted_training_left_below_the_cut_is_replaced(
    corpus: Path, streaming_exp: Path, tmp_path: Path, stale: str
) -> None:
    path = tmp_path / "xlsr_below_cut.pt"
    right = load_verified(streaming_exp / path.name)
    wrong = {
        "another XLSR": {**right, "sha256": "0" * 64},
        "another cut": {**right, "model": dict(list(right["model"].items())[:-1])},
        "damaged": {"model": None},
    }[stale]
    save_atomically(wrong, path)
    loaded = load_model(CheckpointOptions(exp_dir=streaming_exp))
    xlsr = load_xlsr(str(corpus / "toy_xlsr"))
    save_below_cut(xlsr, loaded.config, tmp_path)
    kept = load_verified(path)
    assert kept["sha256"] == right["sha256"] and kept["model"].keys() == right["model"].keys()
    assert all(torch.equal(value, kept["model"][name]) for name, value in right["model"].items())
    before = path.stat().st_ino
    save_below_cut(xlsr, loaded.config, tmp_path)
    assert path.stat().st_ino == before  # kept
