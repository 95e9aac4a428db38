"""Validation by language: of one process and of several, in logs, and as what is the best."""

from __future__ import annotations

import json
import os
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from local.manifests import read_jsonl_gz
from tests.support.languages import in_languages
from tests.support.tiny_recipe import run_train
from tests.support.train_driver import fork
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.model.checkpoint import BEST, CheckpointOptions, load_model, read_checkpoint
from xlsr_transducer.model.heads import LossOptions
from xlsr_transducer.recognition.scoring import error_rate
from xlsr_transducer.training import loop
from xlsr_transducer.training.distributed import Process, joined
from xlsr_transducer.training.interrupt import Interrupt
from xlsr_transducer.training.launch import torchrun_environment
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.validate import LanguageErrors, Validation, validate

needs_processes = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="several processes need PyTorch 2"
)


@pytest.fixture(scope="module")
def spoken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a corpus in three languages."""
    return in_languages(corpus, tmp_path_factory.mktemp("spoken") / "data")


def validated(spoken: Path, exp: Path, process: Process, split: str = "val") -> Validation:
    """Validates the streaming model, whose joiner is random, in batches of few utterances."""
    loaded = load_model(CheckpointOptions(exp_dir=exp))
    options = DataOptions(data_dir=spoken, max_duration=4.0, num_workers=0)
    data = DataModule(options, None, loaded.tokenizer, work_dir=exp)
    chunk, loss = loaded.config.streaming.default(), LossOptions()
    return validate(loaded.model, data, [split], loss, chunk, None, process, Interrupt())


@pytest.fixture(scope="module")
def alone(spoken: Path, streaming_exp: Path) -> Validation:
    return validated(spoken, streaming_exp, Process(0, 1, torch.device("cpu")))


def test_validation_has_the_wer_of_each_language(spoken, streaming_exp, alone):
    assert list(alone.languages) == ["et", "fi", "lv"]
    cuts = {c["id"]: c for c in read_jsonl_gz(spoken / "manifests" / "cuts_val.jsonl.gz")}
    for language, found in alone.languages.items():
        of_it = [
            (t.ref, t.hyp)
            for t in alone.samples  # of four utterances, all
            if cuts[t.id]["supervisions"][0]["language"] == language
        ]
        rate = error_rate(of_it, num_resamples=1)
        assert found == LanguageErrors(len(of_it), rate.num_ref, pytest.approx(rate.percent))
    assert sum(one.words for one in alone.languages.values()) == alone.words
    rates = [one.wer for one in alone.languages.values()]
    assert len(set(rates)) > 1  # or the next line could not fail
    assert alone.worst == max(rates) and alone.spread.gap == max(rates) - min(rates)


def _validate_in_a_process(place: dict[str, str], spoken: Path, exp: Path, out: Path) -> None:
    os.environ.update(place)
    with joined(60) as process:
        found = validated(spoken, exp, process)
        text = json.dumps([found.wer, {k: astuple(v) for k, v in found.languages.items()}])
        (out / f"{process.rank}.json").write_text(text)


@pytest.mark.long
@needs_processes
def test_several_processes_have_the_same_rates_of_each_language(
    spoken, streaming_exp, alone, tmp_path
):
    # Three: one of them gets no batch of some languages.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = [
        (torchrun_environment(rank, 3, store.port), spoken, streaming_exp, tmp_path)
        for rank in range(3)
    ]
    log = tmp_path / "log.txt"
    assert fork(_validate_in_a_process, arguments, log) == [0, 0, 0], log.read_text()
    expected = [alone.wer, {k: list(astuple(v)) for k, v in alone.languages.items()}]
    assert [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(3)] == [expected] * 3


def test_one_language_and_none_are_no_languages(corpus, streaming_exp):
    found = validated(corpus, streaming_exp, Process(0, 1, torch.device("cpu")))
    assert (found.languages, found.spread, found.worst) == ({}, None, found.wer)


def test_log_history_and_tensorboard_have_every_language(spoken, tmp_path):
    run_train(spoken, tmp_path, "--num-epochs=1", "--tensorboard=1", "--best=worst-language")
    log = next((tmp_path / "log").glob("log-train-*")).read_text()
    table = log.split("valid WER by language\n")[1].splitlines()[2:8]
    assert [row.split()[0] for row in table] == ["et", "fi", "lv", "worst", "mean", "gap"]
    [record] = json.loads((tmp_path / "history.json").read_text())
    rates = record["languages"]
    assert record["wer_worst"] == max(rates.values()) == rates[record["worst_language"]]
    assert record["wer_mean"] == pytest.approx(sum(rates.values()) / 3)
    assert record["wer_gap"] == max(rates.values()) - min(rates.values())
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("valid_wer/et", "valid_wer/lv", "valid/wer_worst", "valid/wer_gap", "valid/wer"):
        assert name in board.Tags()["scalars"]
    assert read_checkpoint(tmp_path / "epoch-1.pt")["progress"]["best_wer"] == record["wer_worst"]
    assert f"best validation WER of the worst language {record['wer_worst']:.2f} %" in log


@pytest.mark.long
def test_the_best_checkpoint_is_chosen_by_all_or_by_the_worst_language(
    corpus, tmp_path, monkeypatch
):
    rates = [(30.0, 70.0), (20.0, 90.0), (25.0, 60.0)]  # of all, and of the worst language

    def scripted(*args):
        wer, worst = rates[scripted.calls % 3]
        scripted.calls += 1
        languages = {"et": LanguageErrors(1, 1, worst), "lv": LanguageErrors(1, 1, 1.0)}
        return Validation(LossSums(), wer, 2, [], None, True, languages)

    monkeypatch.setattr(loop, "validate", scripted)
    for best, epoch, rate in (("wer", 2, 20.0), ("worst-language", 3, 60.0)):
        scripted.calls = 0
        run_train(corpus, tmp_path / best, "--num-epochs=3", f"--best={best}")
        kept = read_checkpoint(tmp_path / best / BEST)["model"]
        wanted = read_checkpoint(tmp_path / best / f"epoch-{epoch}.pt")["model"]
        assert all(torch.equal(value, wanted[name]) for name, value in kept.items())
        last = read_checkpoint(tmp_path / best / "epoch-3.pt")["progress"]
        assert (last["best_wer"], last["best"]) == (rate, best)
    # Resumed with another choice, no validation is the best so far: 20 % was another rate.
    scripted.calls = 2
    more = ("--num-epochs=4", "--start-epoch=4", "--best=worst-language")
    run_train(corpus, tmp_path / "wer", *more)
    kept, last = (read_checkpoint(tmp_path / "wer" / name) for name in (BEST, "epoch-4.pt"))
    assert all(torch.equal(value, last["model"][name]) for name, value in kept["model"].items())
    assert last["progress"]["best_wer"] == 60.0
