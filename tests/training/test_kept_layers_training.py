"""Models of some of XLSR's layers, trained: resumed, decoded, streamed, exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from local.demo.make_toy_xlsr import make_random
from tests.support.tiny_recipe import run_train
from xlsr_transducer import decode, export, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model, read_checkpoint

LAYERS = 4
STREAMING = ("--streaming=1", "--chunk-size=16,8,-1")
MAMBA = ("--mixer=bimamba2", "--mixer-layers=1", "--mixer-residual=1")


@pytest.fixture(scope="module")
def deep(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of a training from the waveform on a network of four layers."""
    folder = tmp_path_factory.mktemp("deep") / "toy_xlsr"
    narrow = {"conv_dim": [16] * 7, "hidden_size": 32, "intermediate_size": 48}
    make_random(folder, 1, {**narrow, "num_hidden_layers": LAYERS})
    return "--cut=waveform", f"--xlsr={folder}", *STREAMING


@pytest.fixture(scope="module")
def student(corpus: Path, deep: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming model of three layers, the middle one with Mamba-2, after one epoch."""
    exp = tmp_path_factory.mktemp("student")
    run_train(corpus, exp, *deep, *MAMBA, "--keep-layers=0-1,3", "--num-epochs=1")
    return exp


def test_a_student_streams_what_it_simulates(corpus: Path, student: Path) -> None:
    given = [f"--exp-dir={student}", f"--data-dir={corpus}", "--split=val", "--blank-penalty=4"]
    assert decode.main([*given, "--num-workers=0"]) == 0
    assert streaming_decode.main(given) == 0
    texts = [
        {path.name: path.read_text() for path in folder.glob("recogs-val*.txt")}
        for folder in (student / "greedy_search", student / "streaming" / "greedy_search")
    ]
    assert texts[0] and texts[0] == texts[1]


@pytest.mark.long
def test_exported_files_of_a_student_give_its_tokens(student: Path, tmp_path: Path) -> None:
    formats = ["--jit=1", "--wav2vec2-ctc=1", "--onnx=1"]
    # Each is compared with the checkpoint in a process of its own.
    assert export.main([f"--exp-dir={student}", f"--out-dir={tmp_path}", *formats]) == 0
    exported = load_model(CheckpointOptions(checkpoint=tmp_path / "pretrained.pt"))
    assert exported.config.kept_layers == [0, 1, 3]
    own = load_model(CheckpointOptions(exp_dir=student)).model.state_dict()
    for name, value in exported.model.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_a_student_is_resumed_with_its_own_layers_alone(
    corpus: Path, deep: tuple[str, ...], student: Path
) -> None:
    resumed, kept = (corpus, student, *deep, "--resume=auto"), "--keep-layers=0,1,3"
    for given, names in (
        (MAMBA, "XLSR's num_hidden_layers 3 and 4; .*--keep-layers 0,1,3 and all"),
        ((*MAMBA, "--keep-layers=0-2"), "--keep-layers 0,1,3 and 0,1,2"),
        ((*MAMBA[:2], kept), "--mixer-residual True and False"),
        ((kept,), "--mixer bimamba2 and attention"),
        (("--keep-layers=4",), "--keep-layers 4: 4 must be .* within 0 to 3"),
    ):
        with pytest.raises(UserError, match=names):
            run_train(*resumed, *given)
    run_train(*resumed, *MAMBA, kept)
    assert (student / "epoch-2.pt").is_file()


def test_a_student_of_fewer_layers_starts_from_its_teacher_and_learns_from_it(
    corpus: Path, deep: tuple[str, ...], student: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    teacher = student / "epoch-1.pt"
    still = ("--num-epochs=1", "--base-lr=1e-12", "--weight-decay=0")
    run_train(corpus, tmp_path, *deep, f"--teacher={teacher}", "--keep-layers=0,3", *still)
    logged = capsys.readouterr().err
    assert f"starts from --teacher {teacher}" in logged
    assert f"{teacher} teaches from here on" in logged
    before, after = (read_checkpoint(p)["model"] for p in (teacher, tmp_path / "epoch-1.pt"))
    layers = "encoder.xlsr.encoder.layers."
    for name, value in after.items():
        other = before[name.replace(f"{layers}1.", f"{layers}2.")]
        torch.testing.assert_close(value, other, atol=1e-7, rtol=0, msg=name)


def test_of_stored_features_the_part_below_them_is_the_whole_networks(
    corpus: Path, tmp_path: Path
) -> None:
    run_train(corpus, tmp_path, "--keep-layers=1", "--num-epochs=1")
    loaded = load_model(CheckpointOptions(exp_dir=tmp_path))
    assert loaded.config.kept_layers == [1]
    assert len(loaded.model.encoder.xlsr.encoder.layers) == 1
