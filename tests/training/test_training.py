"""Training: it learns, resumes where it stopped, keeps what it promises beside the weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.tiny_recipe import run_train
from xlsr_transducer import train_lm
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.datamodule import DataModule, DataOptions, Part
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir
from xlsr_transducer.model.averaging import mean_between, mean_of
from xlsr_transducer.model.checkpoint import (
    CheckpointOptions,
    load_model,
    read_checkpoint,
)
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import StreamingOptions
from xlsr_transducer.model.heads import LossOptions
from xlsr_transducer.training.extent import Extent, with_warm_step
from xlsr_transducer.training.retention import remove_old
from xlsr_transducer.training.state import Progress
from xlsr_transducer.training.step import Stepper

# As ``streaming_exp`` was trained.
STREAMING = ["--streaming=1", "--chunk-size=16,8,-1", "--left-context-chunks=2,1,-1",
             "--attention-sink-size=4,0", "--average-period=1"]  # fmt: skip


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["model"]


def data_module(corpus: Path, **options) -> DataModule:
    tokenizer = Tokenizer.load(find_lang_dir(corpus))
    settings = DataOptions(data_dir=corpus, num_workers=0, num_buckets=2, **options)
    return DataModule(settings, find_features(corpus), tokenizer)


def test_training_lowers_the_loss_and_leaves_every_file(streaming_exp: Path) -> None:
    history = json.loads((streaming_exp / "history.json").read_text())
    assert history[1]["train"]["pruned"] < history[0]["train"]["pruned"]
    for name in (
        "epoch-1.pt",
        "epoch-2.pt",
        "best-valid-wer.pt",
        "curves.png",
        "settings.json",
        "xlsr_below_cut.pt",
        "checkpoint-5.pt",
    ):
        assert (streaming_exp / name).stat().st_size > 0, name
    assert not list(streaming_exp.glob("*.tmp*"))


@pytest.mark.parametrize("start", ["--start-epoch=2", "--start-batch=5"])
def test_a_resumed_training_ends_with_the_same_weights(
    corpus: Path,
    streaming_exp: Path,
    tmp_path: Path,
    start: str,
) -> None:
    for name in ("epoch-1.pt", "checkpoint-5.pt", "xlsr_below_cut.pt"):
        shutil.copy(streaming_exp / name, tmp_path)
    run_train(corpus, tmp_path, *STREAMING, start)
    straight, resumed = weights(streaming_exp / "epoch-2.pt"), weights(tmp_path / "epoch-2.pt")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_new_training_does_not_mix_its_files_with_those_of_an_older_one(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "epoch-3.pt").write_bytes(b"")
    with pytest.raises(UserError, match="holds checkpoints of a training already.*--resume auto"):
        run_train(corpus, tmp_path)
    assert not (tmp_path / "settings.json").exists()


def test_two_trainings_in_one_folder_are_refused_and_a_killed_one_frees_it(
    corpus: Path, tmp_path: Path
) -> None:
    code = ("import sys, time; from pathlib import Path; "
            "from xlsr_transducer.training.resume import sole_training\n"
            "with sole_training(Path(sys.argv[1])):\n"
            "    print('locked', flush=True); time.sleep(600)")  # fmt: skip
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"{tmp_path}: another training is running in it"):
            run_train(corpus, tmp_path)
        with pytest.raises(UserError, match=f"{tmp_path}: another training is running in it"):
            train_lm.main([f"--data-dir={corpus}", f"--exp-dir={tmp_path}"])
        assert [path.name for path in tmp_path.iterdir()] == ["training.lock"]
    finally:
        other.kill()
        other.communicate()
    run_train(corpus, tmp_path, "--num-epochs=1")


def test_the_running_mean_equals_the_mean_of_the_weights_of_each_step(
    corpus: Path,
    tmp_path: Path,
) -> None:
    run_train(corpus, tmp_path, "--save-every-n", "1", "--average-period", "1")
    first, last = (
        read_checkpoint(tmp_path / "epoch-1.pt"),
        read_checkpoint(tmp_path / "epoch-2.pt"),
    )
    files = [tmp_path / f"checkpoint-{n}.pt" for n in range(first["step"] + 1, last["step"] + 1)]
    expected = mean_of(weights(file) for file in files)
    actual = mean_between(first["model_avg"], first["step"], last["model_avg"], last["step"])
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].float(), value, rtol=1e-5, atol=1e-7)
    loaded = load_model(CheckpointOptions(exp_dir=tmp_path, epoch=2, avg=1))
    name = "heads.transducer.joiner.output_linear.weight"
    torch.testing.assert_close(loaded.model.state_dict()[name], expected[name])


def test_what_is_done_every_so_many_steps_is_off_at_0(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    off = ("--save-every-n=0", "--log-interval=0", "--average-period=0")
    run_train(corpus, tmp_path, "--num-epochs=1", *off)
    assert not list(tmp_path.glob("checkpoint-*.pt")) and "grad norm" not in caplog.text
    last = CheckpointOptions(exp_dir=tmp_path, epoch=1)
    with pytest.raises(UserError, match="epoch-1.pt: holds no running mean.*averaged-model 0"):
        load_model(last)
    load_model(dataclasses.replace(last, use_averaged_model=False))
    with pytest.raises(UserError, match="--average-period 0: resume with that too"):
        run_train(corpus, tmp_path, "--num-epochs=2", "--resume=auto", "--average-period=1")
    run_train(corpus, tmp_path, "--num-epochs=2", "--resume=auto", *off)


def test_an_average_that_lacks_files_is_refused(streaming_exp: Path) -> None:
    for options, message in (
        ({"epoch": 2, "avg": 3}, "needs 4 files epoch"),
        ({"epoch": 2, "avg": 3, "use_averaged_model": False}, "needs 3 files epoch"),
        ({"iter": 5, "avg": 1}, "needs 2 files checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(CheckpointOptions(exp_dir=streaming_exp, **options))
    load_model(CheckpointOptions(exp_dir=streaming_exp, epoch=2, avg=2))  # from the start


def test_an_epoch_alone_needs_no_other_file_and_tells_what_it_is(
    streaming_exp: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("epoch-2.pt", "checkpoint-10.pt", "xlsr_below_cut.pt"):
        shutil.copy(streaming_exp / name, tmp_path)
    name = "heads.transducer.joiner.output_linear.weight"
    for given, file in (({"epoch": 2}, "epoch-2.pt"), ({"iter": 10}, "checkpoint-10.pt")):
        alone = CheckpointOptions(exp_dir=tmp_path, **given)
        [(key, number)] = given.items()
        assert alone.describe() == f"{key}-{number}-avg-1"
        loaded = load_model(alone).model.state_dict()[name]
        assert torch.equal(loaded, weights(tmp_path / file)[name])
        assert f"those of {tmp_path / file} as they are, as there is none before" in caplog.text
        whole = CheckpointOptions(exp_dir=streaming_exp, **given)
        assert whole.describe() == f"{key}-{number}-avg-1-use-averaged-model"
        averaged = load_model(whole).model.state_dict()[name]
        assert torch.equal(
            averaged, load_model(dataclasses.replace(whole, avg=1)).model.state_dict()[name]
        )
        assert not torch.equal(averaged, loaded)
        assert "the mean over all steps of the last of the" in caplog.text
    with pytest.raises(UserError, match="epoch-1.pt: no such file"):
        load_model(CheckpointOptions(exp_dir=tmp_path, epoch=2, avg=1))


def test_a_checkpoint_moved_without_the_part_below_the_cut_names_both(
    streaming_exp: Path, tmp_path: Path
) -> None:
    shutil.copy(streaming_exp / "epoch-2.pt", tmp_path)
    message = f"{tmp_path}/xlsr_below_cut.pt: no such file; {tmp_path}/epoch-2.pt needs it.*copy"
    with pytest.raises(UserError, match=message):
        load_model(CheckpointOptions(checkpoint=tmp_path / "epoch-2.pt"))


def test_a_damaged_bpe_model_is_named(corpus: Path, streaming_exp: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "lang_bpe_60", tmp_path / "lang")
    (tmp_path / "lang" / "bpe.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="lang/bpe.model: this is not a sentencepiece model"):
        Tokenizer.load(tmp_path / "lang")
    content = read_checkpoint(streaming_exp / "epoch-2.pt")
    content["bpe_model"] = content["bpe_model"][:100].clone()
    save_atomically(content, tmp_path / "x.pt")
    shutil.copy(streaming_exp / "xlsr_below_cut.pt", tmp_path)
    with pytest.raises(UserError, match="x.pt: its BPE model is damaged"):
        load_model(CheckpointOptions(checkpoint=tmp_path / "x.pt"))


def test_old_checkpoints_are_removed_and_the_last_can_be_averaged(
    corpus: Path, tmp_path: Path
) -> None:
    options = ("--keep-last-epochs=2", "--save-every-n=2", "--keep-last-k=1", "--average-period=1")
    run_train(corpus, tmp_path, "--num-epochs=1", *options)
    for name in ("epoch-9.pt", "checkpoint-999.pt"):  # of a training that went further
        (tmp_path / name).write_bytes(b"")
    run_train(corpus, tmp_path, "--num-epochs=3", "--start-epoch=2", *options)
    assert {p.name for p in tmp_path.glob("epoch-*.pt")} == {f"epoch-{n}.pt" for n in (2, 3, 9)}
    last = read_checkpoint(tmp_path / "epoch-3.pt")["step"] // 2 * 2
    steps = {p.name for p in tmp_path.glob("checkpoint-*.pt")}
    assert steps == {f"checkpoint-{last}.pt", "checkpoint-999.pt"}
    assert (tmp_path / "best-valid-wer.pt").is_file()
    load_model(CheckpointOptions(exp_dir=tmp_path, epoch=3, avg=1))


def test_checkpoints_beyond_so_many_bytes_are_removed_but_not_the_newest_two(
    tmp_path: Path,
) -> None:
    def write(name: str, step: int) -> None:
        content = {"step": step, "model": torch.zeros(1000)}
        save_atomically(content, tmp_path / f"{name}.pt")

    def names() -> set[str]:
        return {path.stem for path in tmp_path.glob("*.pt")}

    for epoch in range(1, 6):
        write(f"epoch-{epoch}", 10 * epoch)
    for step in (8, 16, 24, 60):
        write(f"checkpoint-{step}", step)
    every, counts = names(), {"epoch": 20, "checkpoint": 30}
    size = (tmp_path / "epoch-1.pt").stat().st_size / 1e9
    for gigabytes in (0.0, 8.5 * size):  # one of a later step is another training's
        remove_old(tmp_path, 50, counts, gigabytes)
        assert names() == every
    remove_old(tmp_path, 50, counts, 5.5 * size)
    assert names() == every - {"checkpoint-8", "epoch-1", "epoch-2"}
    remove_old(tmp_path, 50, counts, 1e-9)
    kept = {"epoch-4", "epoch-5", "checkpoint-16", "checkpoint-24", "checkpoint-60"}
    assert names() == kept


def test_validations_within_an_epoch_change_no_weight_and_keep_the_best(
    corpus: Path, tmp_path: Path, streaming_exp: Path
) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    for exp, more in ((plain, []), (watched, ["--valid-interval=2"])):
        run_train(corpus, exp, "--num-epochs=1", "--max-duration=10", *more)
    ends = [weights(exp / "epoch-1.pt") for exp in (plain, watched)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    logs = ["".join(p.read_text() for p in (exp / "log").iterdir()) for exp in (plain, watched)]
    steps = read_checkpoint(plain / "epoch-1.pt")["step"]
    found = [re.findall(r"step (\d+): valid simple .* WER (\S+) % of", log) for log in logs]
    assert [int(step) for step, _ in found[0]] == [steps] and found[1][-1] == found[0][-1]
    assert [int(step) for step, _ in found[1]] == [*range(2, steps + 1, 2), steps]
    best = min(float(wer) for _, wer in found[1])
    assert read_checkpoint(watched / "epoch-1.pt")["progress"]["best_wer"] == pytest.approx(
        best, abs=0.01
    )


def test_mean_of_files_equals_a_float64_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 3, 4)
    for i, value in enumerate(values):
        content = {"format": 1, "config": {}, "model": {"w": value}}
        save_atomically(content, tmp_path / f"{i}.pt")
    mean = mean_of(weights(tmp_path / f"{i}.pt") for i in range(5))["w"]
    assert torch.equal(mean, values.double().mean(0).float())


@pytest.mark.parametrize(
    "options, message",
    [
        (["--joiner-dim=24"], "--joiner-dim 32 and 24"),
        (["--encoder-dim=16", "--context-size=1"], "--encoder-dim 32 and 16; --context-size 2 "),
        (["--ctc-loss-scale=0"], "--heads transducer,ctc and transducer"),
        (["--chunk-size=8"], "--chunk-size 16,8,-1 and 8"),
        (["--lora-rank=2"], "epoch-1.pt: the checkpoint was trained with no LoRA"),
        (["--optimizer=scaled_adam"], "epoch-1.pt: the checkpoint has the state of another opt"),
    ],
)
def test_options_that_contradict_the_checkpoint_are_named_and_leave_the_settings_as_they_are(
    corpus: Path, streaming_exp: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    for name in ("epoch-1.pt", "settings.json"):
        shutil.copy(streaming_exp / name, tmp_path)
    before = (tmp_path / "settings.json").read_bytes()
    with pytest.raises(UserError, match=message):
        run_train(corpus, tmp_path, "--resume", "auto", *STREAMING, *options)
    assert (tmp_path / "settings.json").read_bytes() == before


def test_dropout_masks_and_the_place_of_xlsr_may_change_when_a_training_resumes(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data, ignore=shutil.ignore_patterns("demo", "toy_xlsr"))
    shutil.copytree(corpus / "toy_xlsr", tmp_path / "moved")
    info = find_features(data) / "features.json"
    info.write_text(info.read_text().replace(str(corpus / "toy_xlsr"), str(tmp_path / "moved")))
    exp = tmp_path / "exp"
    exp.mkdir()
    shutil.copy(streaming_exp / "epoch-1.pt", exp)
    run_train(data, exp, "--resume=auto", *STREAMING, "--dropout=0.3", "--layerdrop=0.1",
              "--time-mask-prob=0.2")  # fmt: skip
    log = "".join(path.read_text() for path in (exp / "log").iterdir())
    changed = "--dropout 0.1 and 0.3; --layerdrop 0.0 and 0.1; --time-mask-prob 0.05 and 0.2"
    assert f"other options than in {exp / 'epoch-1.pt'}: {changed}\n" in log
    assert read_checkpoint(exp / "epoch-2.pt")["config"]["encoder"]["dropout"] == 0.3


def test_the_schedules_span_all_training_splits_and_say_when_a_resumed_training_changes_them(
    corpus: Path, tmp_path: Path
) -> None:
    data, exp = tmp_path / "data", tmp_path / "exp"
    shutil.copytree(corpus, data, ignore=shutil.ignore_patterns("demo"))
    splits = json.loads((corpus / "manifests" / "splits.json").read_text())
    both = {**splits, "train": ["train", "val"]}
    (data / "manifests" / "splits.json").write_text(json.dumps(both))
    lang_dir = f"--lang-dir={find_lang_dir(corpus)}"  # that of ``data`` is of one split's text
    run_train(data, exp, "--num-epochs=1", lang_dir)
    module = data_module(corpus)
    seconds = sum(module.summary([split]).seconds for split in ("train", "val"))
    progress = read_checkpoint(exp / "epoch-1.pt")["progress"]
    assert progress["total_seconds"] == pytest.approx(seconds)
    assert progress["seconds"] == pytest.approx(seconds)
    run_train(data, exp, "--num-epochs=2", "--resume=auto", lang_dir)
    log = "".join(path.read_text() for path in (exp / "log").iterdir())
    assert "training on 34 utterances" in log
    assert log.count("other schedules than before: --num-epochs 1 and 2: learning rate") == 1


def test_the_warm_up_of_the_losses_follows_the_length_of_the_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    short, long = Extent(4, 3600.0, 370), Extent(30, 3.6e6, 100_000)
    assert with_warm_step(LossOptions(), short, Progress()).warm_step == 55
    assert "--warm-step 55, of about 370 steps" in caplog.text
    assert with_warm_step(LossOptions(), long, Progress()).warm_step == 2000
    resumed = Progress(num_epochs=4, total_seconds=3600.0, warm_step=55)
    assert with_warm_step(LossOptions(), long, resumed).warm_step == 55
    assert "longer than the training" not in caplog.text
    assert with_warm_step(LossOptions(warm_step=2000), short, Progress()).warm_step == 2000
    assert "--warm-step 2000 is longer than the training of about 370 steps" in caplog.text
    assert LossOptions(warm_step=0).scales(0) == (0.5, 1.0)


def test_a_checkpoint_of_another_bpe_model_is_not_resumed_from(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    content = read_checkpoint(streaming_exp / "epoch-1.pt")
    content["tokens"][-2:] = content["tokens"][:-3:-1]
    save_atomically(content, tmp_path / "epoch-1.pt")
    with pytest.raises(UserError, match="epoch-1.pt: was trained with another BPE model"):
        run_train(corpus, tmp_path, "--resume", "auto", *STREAMING)


def test_a_damaged_state_is_told_with_the_name_of_the_file(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    for name, value in (("progress", {"steps": 1}), ("model_avg", {}), ("optimizer", {})):
        content = {**read_checkpoint(streaming_exp / "epoch-1.pt"), name: value}
        save_atomically(content, tmp_path / "epoch-1.pt")
        with pytest.raises(UserError, match="epoch-1.pt: its state of a training is not underst"):
            run_train(corpus, tmp_path, "--resume", "auto", *STREAMING)


def test_batches_repeat_for_a_seed_and_resume_after_those_seen(corpus: Path) -> None:
    data = data_module(corpus, max_duration=10.0)
    ids = [b.ids for b in data.train_loader(["train"], epoch=3, seed=1)]
    assert ids == [b.ids for b in data.train_loader(["train"], epoch=3, seed=1)]
    assert ids[2:] == [b.ids for b in data.train_loader(["train"], epoch=3, seed=1, skip=2)]
    assert ids != [b.ids for b in data.train_loader(["train"], epoch=4, seed=1)]
    assert sorted(sum(ids, [])) == sorted(c.id for c in data.corpus(["train"]))


def test_an_epoch_resumed_with_other_batch_options_takes_the_utterances_that_are_left_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, taken = Stepper.add, []

    def noted(self, batch) -> None:
        taken.append(batch.ids)
        add(self, batch)

    monkeypatch.setattr(Stepper, "add", noted)
    everything = sorted(c.id for c in data_module(corpus).corpus(["train"]))
    settings = [
        ("--max-duration=9",),
        ("--max-duration=4", "--num-buckets=3"),
        ("--max-duration=12", "--seed=7", "--total-duration=24"),
    ]
    used: list[list[str]] = []
    for i, options in enumerate(settings):  # each goes two steps, and the last one to the end
        exp = tmp_path / str(i)
        exp.mkdir()
        if i:
            shutil.copy(tmp_path / str(i - 1) / f"checkpoint-{2 * i}.pt", exp)
        run_train(corpus, exp, "--num-epochs=1", "--save-every-n=1", "--resume=auto", *options)
        used += taken if i == len(settings) - 1 else taken[:2]
        taken.clear()
    assert sorted(sum(used, [])) == everything
    assert read_checkpoint(tmp_path / "2" / "epoch-1.pt")["progress"]["seconds"] > 0
    log = "".join(path.read_text() for path in (tmp_path / "1" / "log").iterdir())
    assert "other batch options than for the first 2 batches of epoch 1: max_duration 9.0 " in log
    # Nothing is left: the epoch only ends.
    last = data_module(corpus, max_duration=5.0)
    count = sum(1 for _ in last.train_loader(["train"], 1, 1))
    part = Part(last.batch_options(["train"], 1), count)
    other = data_module(corpus, max_duration=8.0)
    assert not list(other.train_loader(["train"], 1, 1, count, earlier=[part]))


def test_chunk_settings_are_drawn_the_same_for_a_seed_and_step() -> None:
    options = StreamingOptions(True, "16,32,-1", "1,2,-1", "0,4")
    draws = [options.draw(1, step) for step in range(200)]
    assert draws == [options.draw(1, step) for step in range(200)]
    assert set(draws) == options.all_settings()
    assert ChunkSettings() in draws and ChunkSettings(16, -1, 0) in draws
    assert all(d.attention_sink_size == 0 for d in draws if d.left_context_chunks == -1)
    assert options.default() == ChunkSettings(16, 1, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--feature-dim", "7"], "--feature-dim 7 contradicts"),
        (["--cut", "last"], "--cut last contradicts"),
        (["--chunk-size", "16"], "--streaming 1"),
        (["--streaming", "1", "--chunk-size", "15"], "multiple of the subsampling factor"),
        (["--streaming", "1", "--left-context-chunks", "-1", "--attention-sink-size", "4"], ""),
        (["--use-xlsr-encoder", "0"], "--use-xlsr-encoder"),
        (["--use-fp16", "1", "--use-bf16", "1"], "contradicts"),
        (["--features", "none-such"], "none-such"),
    ],
)
def test_contradictory_options_are_refused_by_name(
    corpus: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    if not message:  # all of the left context includes the sinks: a list of one draws none
        run_train(corpus, tmp_path, "--num-epochs", "1", *options)
        return
    with pytest.raises(UserError, match=message):
        run_train(corpus, tmp_path, *options)


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign"])
def test_a_damaged_checkpoint_is_refused_in_one_line(
    streaming_exp: Path,
    tmp_path: Path,
    damage: str,
) -> None:
    path = tmp_path / "bad.pt"
    content = bytearray((streaming_exp / "epoch-1.pt").read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[:64] = bytes(64)
        path.write_bytes(content)
    else:
        torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="bad.pt"):
        load_model(CheckpointOptions(checkpoint=path))
