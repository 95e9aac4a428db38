"""Who teaches at which step, and what is told of a teacher that cannot."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.random_models import tokenizer
from tests.support.teachers import STREAMING, config_of, random_model
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import locked
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import model_content, read_checkpoint
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.optim import OptimOptions
from xlsr_transducer.training.snapshots import Snapshot, Teaching, chosen, find_snapshots
from xlsr_transducer.training.teacher import taught_by
from xlsr_transducer.training.teacher_options import TeacherOptions

ALONE = Process(0, 1, torch.device("cpu"))
STUDENT = config_of(streaming=STREAMING)


def write(path: Path, step: int, config: ModelConfig = STUDENT, **changed: Any) -> Path:
    content = model_content(config, tokenizer(), random_model(config, step).state_dict())
    save_atomically({**content, "step": step, **changed}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 4, 6, 8 and 12, of which the numbers in names do not tell."""
    for name, step in {"checkpoint-4": 4, "checkpoint-8": 8, "epoch-1": 6, "epoch-2": 12,
                       "checkpoint-12": 12, "best-valid-wer": 7}.items():  # fmt: skip
        write(tmp_path / "full" / f"{name}.pt", step)
    (tmp_path / "full" / "epoch-3.pt.tmp").write_bytes(b"half")
    return tmp_path / "full"


def teaching(student: ModelConfig = STUDENT, optim: Any = None, **options: Any) -> Teaching:
    units: Tokenizer = tokenizer()
    optim = optim or OptimOptions()
    return Teaching(TeacherOptions(**options), student, units, optim, ALONE)


def test_the_next_snapshot_above_the_students_step_teaches(folder: Path) -> None:
    found = find_snapshots(folder)
    assert [(s.step, s.path.name) for s in found] == [
        (4, "checkpoint-4.pt"), (6, "epoch-1.pt"), (8, "checkpoint-8.pt"), (12, "epoch-2.pt")
    ]  # fmt: skip
    table = {0: 4, 3: 4, 4: 6, 5: 6, 6: 8, 7: 8, 8: 12, 11: 12, 12: 12, 13: 12, 10**9: 12}
    assert {step: chosen(found, step).step for step in table} == table
    assert chosen([Snapshot(0, folder)], 5) == Snapshot(0, folder)


@pytest.mark.parametrize("start", [0, 5, 20])
def test_weights_change_with_the_steps_wherever_a_training_starts(
    folder: Path, start: int
) -> None:
    of_step = {s.step: read_checkpoint(s.path)["model"] for s in find_snapshots(folder)}
    taught = teaching(teacher_snapshots=folder, distill_until_step=30)
    taught.begin(start, None, None)
    assert taught.note == {"steps": [4, 6, 8, 12]}
    for step in range(start, 30):
        taught.prepare(step)
        expected = of_step[min((n for n in of_step if n > step), default=12)]
        weights = taught.teacher.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    taught.prepare(30)
    assert taught.teacher.model is None
    again = teaching(teacher_snapshots=folder.with_name("gone"), distill_until_step=30)
    again.begin(31, taught.note, Path("epoch-9.pt"))  # needs no file any more
    assert again.teacher.model is None and again.note == taught.note


def test_a_folder_without_intact_and_finished_snapshots_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="--teacher-snapshots .*nowhere: no such folder"):
        find_snapshots(folder / "nowhere")
    with pytest.raises(UserError, match="--teacher-snapshots .*: holds no checkpoint-N.pt and"):
        find_snapshots(folder.parent)
    with locked(folder / "training.lock", ""):
        with pytest.raises(UserError, match=f"{folder}: is still being written"):
            find_snapshots(folder)
    assert len(find_snapshots(folder)) == 4
    changed = bytearray((folder / "checkpoint-8.pt").read_bytes())
    changed[len(changed) // 2] ^= 1
    (folder / "checkpoint-8.pt").write_bytes(changed)
    with pytest.raises(UserError, match="checkpoint-8.pt: damaged, as its checksums"):
        teaching(teacher_snapshots=folder).begin(0, None, None)
    teaching(teacher_snapshots=folder).begin(8, None, None)  # it is not needed any more
    (folder / "epoch-1.pt").write_bytes((folder / "epoch-2.pt").read_bytes()[:-9])
    with pytest.raises(UserError, match="epoch-1.pt: "):
        find_snapshots(folder)


def test_a_training_is_resumed_with_the_teachers_that_it_had(folder: Path) -> None:
    at = Path("checkpoint-5.pt")
    teaching(teacher_snapshots=folder).begin(5, {"steps": [4, 6, 8, 12]}, at)
    with pytest.raises(
        UserError, match=r"checkpoint-5.pt: .*steps 4, 8 and the snapshots of steps 4, 6, 8, 12"
    ):
        teaching(teacher_snapshots=folder).begin(5, {"steps": [4, 8]}, at)
    one, other = folder / "epoch-1.pt", folder / "epoch-2.pt"
    fixed = teaching(teacher=one)
    fixed.begin(0, None, None)
    fixed.prepare(10**6)
    copy = folder / "copy.pt"
    copy.write_bytes(one.read_bytes())
    teaching(teacher=copy).begin(5, fixed.note, at)
    with pytest.raises(UserError, match="checkpoint-5.pt: .*another teacher: that of sha256"):
        teaching(teacher=other).begin(5, fixed.note, at)
    with pytest.raises(UserError, match="that of sha256 .* and the snapshots of steps 4"):
        teaching(teacher_snapshots=folder).begin(5, fixed.note, at)
    alone = teaching()
    alone.begin(5, fixed.note, at)
    assert alone.note is None


def changed_xlsr(**values: Any) -> ModelConfig:
    config = config_of(("ctc",))
    return dataclasses.replace(config, xlsr=dataclasses.replace(config.xlsr, **values))


def changed_features(**values: Any) -> ModelConfig:
    config = config_of(("ctc",))
    return dataclasses.replace(config, features=dataclasses.replace(config.features, **values))


def keeping(config: ModelConfig, layers: str, cut: str = "waveform") -> ModelConfig:
    """The student that has these layers of the pretrained XLSR."""
    count = len(layers.split(","))
    return dataclasses.replace(
        config,
        xlsr=dataclasses.replace(config.xlsr, num_hidden_layers=count),
        encoder=dataclasses.replace(config.encoder, keep_layers=layers),
        features=dataclasses.replace(config.features, cut=cut),
    )


FRONTEND = changed_features(cut="frontend", sha256="1" * 64, feature_dim=16)
WRONG = {
    "width": (changed_xlsr(hidden_size=64), config_of(), "XLSR's width 64 and 32"),
    "depth": (config_of(layers=3), config_of(), "XLSR's depth: layers 0,1,2 and 0,1"),
    "layers": (keeping(config_of(), "0,3"), keeping(config_of(), "0,2"), "layers 0,3 and 0,2"),
    "cut": (FRONTEND, config_of(), "--cut frontend and waveform"),
    "features": (
        FRONTEND,
        dataclasses.replace(
            FRONTEND, features=dataclasses.replace(FRONTEND.features, sha256="2" * 64)
        ),
        "XLSR's sha256 111111111111 and 222222222222",
    ),
    "normalize": (
        changed_features(normalize="utterance"),
        config_of(),
        "--normalize utterance and cumulative",
    ),
    "adapter": (config_of(("ctc",), adapter="none"), config_of(), "--adapter none and conv"),
    "heads": (config_of(("classifier",)), config_of(), "--heads classifier and transducer,ctc"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_teacher_that_does_not_fit_is_named_with_both_values(kind: str, tmp_path: Path) -> None:
    teacher, student, message = WRONG[kind]
    path = write(tmp_path / "teacher.pt", 1, teacher)
    with pytest.raises(UserError) as e:
        teaching(student, teacher=path).begin(0, None, None)
    assert str(path) in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


def test_other_tokens_and_files_that_are_none_are_named(tmp_path: Path) -> None:
    tokens = tokenizer().tokens
    path = write(tmp_path / "teacher.pt", 1, tokens=[*tokens[:-1], "zzz"])
    last = re.escape(repr(tokens[-1]))
    with pytest.raises(UserError, match=f"{path}: .*tokens.* 40 and 40, .*'zzz' and {last}"):
        teaching(teacher=path).begin(0, None, None)
    write(path, 1, language_token=True)
    with pytest.raises(UserError, match=f"{path}: .*--language-token 1 and 0"):
        teaching(teacher=path).begin(0, None, None)
    path.write_bytes(b"no archive")
    for name, reason in {"teacher.pt": "refused", "gone.pt": "no such file"}.items():
        with pytest.raises(UserError, match=f"{tmp_path / name}: {reason}"):
            teaching(teacher=tmp_path / name).begin(0, None, None)


def test_a_file_with_the_whole_of_xlsr_teaches_a_student_above_the_cut(tmp_path: Path) -> None:
    whole = build_model(FRONTEND, whole=True)
    content = model_content(FRONTEND, tokenizer(), whole.state_dict())
    save_atomically(content, tmp_path / "pretrained.pt")
    taught = teaching(FRONTEND, teacher=tmp_path / "pretrained.pt")
    taught.begin(0, None, None)
    names = taught.teacher.model.state_dict().keys()
    assert not any("feature_extractor" in name for name in names) and len(names) > 20


def test_a_wider_and_deeper_teacher_may_teach_outputs_alone(tmp_path: Path) -> None:
    student = config_of(channel_mask_prob=0.0)
    teacher = dataclasses.replace(
        config_of(layers=3), xlsr=changed_xlsr(hidden_size=64, num_hidden_layers=3).xlsr
    )
    path = write(tmp_path / "teacher.pt", 1, teacher)
    teaching(student, teacher=path, distill_layer_scale=0.0).begin(0, None, None)
    with pytest.raises(UserError, match="width 64 and 32$"):  # of the masks of channels
        teaching(teacher=path, distill_layer_scale=0.0).begin(0, None, None)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"teacher": Path("a"), "teacher_snapshots": Path("b")}, "--teacher contradicts"),
        ({"distill_layer_scale": 3.0}, "--distill-layer-scale needs --teacher"),
        (
            {"teacher": Path("a"), "distill_layer_scale": 0.0, "distill_logits_scale": 0.0},
            "nothing is taught",
        ),
    ],
)
def test_options_that_contradict_each_other(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TeacherOptions(**given)


def test_layers_of_which_none_is_trained_are_not_taught() -> None:
    frozen = OptimOptions(trainable_layers=0)
    with pytest.raises(UserError, match="--distill-layer-scale .*: give it as 0"):
        teaching(optim=frozen, teacher=Path("a"))
    teaching(optim=frozen, teacher=Path("a"), distill_layer_scale=0.0)
    top = dataclasses.replace(STUDENT, features=dataclasses.replace(FRONTEND.features, cut="last"))
    with pytest.raises(UserError, match="above --cut last"):
        teaching(top, teacher=Path("a"))


@pytest.mark.parametrize(
    "teacher, student, cut, expected",
    [
        ("", "0,2,4", "waveform", [1, 3, 5]),
        ("", "0,1,2,3,4,5", "frontend", [0, 1, 2, 3, 4, 5]),
        ("", "0,1", "frontend", [0, 5]),
        ("", "1,5", "frontend", [4, 5]),
        ("0,2,4,5", "0,4", "waveform", [1, 3]),
        ("", "0,1,3,5", "2", [2, 3]),
    ],
)
def test_each_layer_is_taught_by_the_one_below_its_next(
    teacher: str, student: str, cut: str, expected: list[int]
) -> None:
    six = config_of(layers=6)
    theirs = keeping(six, teacher) if teacher else six
    assert taught_by(theirs, keeping(six, student, cut)) == expected
