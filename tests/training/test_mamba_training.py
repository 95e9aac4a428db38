"""Models with Mamba-2 in the place of attention: trained, resumed, decoded, streamed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_recipe import run_and_resume, run_train
from xlsr_transducer import decode, export, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import read_checkpoint

MAMBA = ("--mixer=bimamba2", "--streaming=1", "--chunk-size=16,8,-1")


@pytest.fixture(scope="module")
def mamba_exp(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exp = tmp_path_factory.mktemp("mamba")
    run_train(corpus, exp, *MAMBA)
    return exp


def results(folder: Path) -> dict[str, str]:
    """The recognised texts of a decode, by file."""
    return {path.name: path.read_text() for path in folder.glob("recogs-*.txt")}


def test_it_streams_the_texts_that_it_simulates(corpus: Path, mamba_exp: Path) -> None:
    given = [f"--exp-dir={mamba_exp}", f"--data-dir={corpus}", "--split=val,test_seen"]
    assert decode.main([*given, "--num-workers=0"]) == 0
    assert streaming_decode.main(given) == 0
    simulated = results(mamba_exp / "greedy_search")
    assert simulated and simulated == results(mamba_exp / "streaming" / "greedy_search")
    for option in ("--left-context-chunks=2", "--attention-sink-size=4"):
        with pytest.raises(UserError, match=f"{option.split('=')[0]} .*no layer of this network"):
            decode.main([*given, option])


@pytest.mark.long
def test_exported_files_give_its_tokens(mamba_exp: Path, tmp_path: Path) -> None:
    formats = ["--jit=1", "--wav2vec2-ctc=1", "--onnx=1"]
    # Each is compared with the checkpoint in a process of its own.
    assert export.main([f"--exp-dir={mamba_exp}", f"--out-dir={tmp_path}", *formats]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"jit_script_chunk_16_left_0.pt", "cpu_jit.pt", "model.onnx"} <= names, names


@pytest.mark.long
def test_a_resumed_training_ends_with_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    straight, resumed = run_and_resume(corpus, tmp_path, *MAMBA, "--mixer-layers=1")
    for name, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][name]), name


def test_a_network_with_attention_is_converted_and_everything_else_kept(
    corpus: Path, streaming_exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = (*MAMBA, "--mixer-layers=1", f"--init-from={streaming_exp / 'epoch-2.pt'}")
    run_train(corpus, tmp_path, *given, "--num-epochs=1", "--base-lr=1e-12", "--weight-decay=0")
    assert "bimamba2 in the place of attention in layers 1: " in capsys.readouterr().err
    before = read_checkpoint(streaming_exp / "epoch-2.pt")["model"]
    after = read_checkpoint(tmp_path / "epoch-1.pt")["model"]
    kept = before.keys() & after.keys()
    assert {name.split(".")[4] for name in before.keys() - kept} == {"1"}
    assert all(".layers.1.mamba." in name for name in after.keys() - kept)
    for name in kept:
        torch.testing.assert_close(after[name], before[name], atol=1e-7, rtol=0)


def test_files_of_attention_and_mamba_are_told_apart(
    corpus: Path, streaming_exp: Path, mamba_exp: Path, tmp_path: Path
) -> None:
    streaming = ("--streaming=1", "--chunk-size=16,8,-1")
    with pytest.raises(UserError, match="--mixer bimamba2 and attention"):
        run_train(corpus, mamba_exp, *streaming, "--start-epoch=2")
    with pytest.raises(UserError, match=r"epoch-2.pt: .*--mixer attention and bimamba2.*--init-"):
        run_train(corpus, streaming_exp, *MAMBA, "--start-epoch=3")
    with pytest.raises(UserError, match=r"--init-from .*mamba.* is new"):
        run_train(corpus, tmp_path, *streaming, f"--init-from={mamba_exp / 'epoch-1.pt'}")
    with pytest.raises(UserError, match="--lora-rank 2: LoRA changes attention"):
        run_train(corpus, tmp_path, *MAMBA, "--lora-rank=2")
