"""The classify command: whole utterances, random pieces, chunk by chunk; its result files."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet
from scipy.stats import binomtest

from local import prepare_labels, prepare_manifests
from tests.support.label_corpus import LABELS, write_list
from xlsr_transducer import classify, decode, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.accuracy import Outcome, by_duration, draw_confusions
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.classifying import (
    ClassifyOptions,
    Piece,
    classify_set,
    logits_by_chunk,
)
from xlsr_transducer.recognition.share import Accuracy

pytestmark = pytest.mark.slow


# So few updates teach the labels to a random network only with the numbers that PyTorch 2 draws.
learns = pytest.mark.skipif(
    torch.__version__.startswith("1."),
    reason="PyTorch 1.13 draws a network that learns too little",
)


def run(exp: Path, data: Path, *more: str) -> int:
    return classify.main([f"--exp-dir={exp}", f"--data-dir={data}", "--num-workers=0", *more])


@torch.no_grad()
def probabilities_of(loaded: LoadedModel, path: Path) -> torch.Tensor:
    """(V,) of a whole file: of the mean of its frames."""
    wave, chunk = torch.from_numpy(read_audio(path)), loaded.config.streaming.default()
    out, _ = loaded.model.encoder(wave[None], torch.tensor([len(wave)]), *chunk)
    return loaded.model.classifier.output(out[0].double().mean(0).float()).softmax(0)


def padded(folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    waves = [torch.from_numpy(read_audio(folder / name)) for name in names]
    lens = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(waves, True), lens


@learns
def test_classify_scores_sets_and_leaves_tables_and_pictures(
    label_exp: Path, label_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    exp = Path(shutil.copytree(label_exp, tmp_path / "exp"))
    assert run(exp, label_data) == 0
    printed = capsys.readouterr().out
    assert "test:" in printed and "val:" in printed and "0 to 5 s" in printed
    [path] = (exp / "classify").glob("labels-test-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["ref"] == row["hyp"] for row in rows] == [True] * 9
    assert {row["speaker"] for row in rows} == {f"speaker {i}" for i in range(4)}
    # One by one, and by the model itself: the same labels and probabilities.
    loaded = load_model(CheckpointOptions(exp_dir=exp))
    for row in rows:
        probabilities = probabilities_of(loaded, Path(row["audio"]))
        assert loaded.tokenizer.tokens[int(probabilities.argmax())] == row["hyp"]
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)
    [table] = (exp / "classify").glob("confusions-test-*.tsv")
    lines = table.read_text().splitlines()[1:]
    assert sorted(lines) == [f"{label}\t{label}\t3" for label in sorted(LABELS)]
    assert len(list((exp / "classify").glob("confusions-*.png"))) == 2


@learns
def test_files_get_a_line_each_and_unreadable_ones_an_error(
    label_exp: Path, label_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lists = label_data.parent / "lists"
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    assert run(label_exp, label_data, str(lists / "test-1.wav"), str(tmp_path / "bad.wav")) == 2
    out, err = capsys.readouterr()
    name, label, probability = out.strip().split("\t")
    assert name.endswith("test-1.wav") and label == LABELS[1]
    loaded = load_model(CheckpointOptions(exp_dir=label_exp))
    expected = probabilities_of(loaded, lists / "test-1.wav").max()
    assert float(probability) == pytest.approx(float(expected), abs=1e-4)
    assert err.startswith("error: ") and "bad.wav" in err


def test_labels_unknown_to_the_model_count_as_wrong_and_are_named(
    label_exp: Path, label_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    listed = write_list(tmp_path / "lists", "more", ["hiss", "clicks", "whistle"])
    prepare_manifests.main([f"--test-list={listed}", f"--data-dir={tmp_path / 'data'}"])
    prepare_labels.main([f"--data-dir={tmp_path / 'data'}", "--only-tests"])
    (tmp_path / "lists" / "more-1.wav").unlink()
    exp = Path(shutil.copytree(label_exp, tmp_path / "exp"))
    assert run(exp, tmp_path / "data") == 2
    log = "".join(path.read_text() for path in (exp / "classify" / "log").iterdir())
    assert "labels the model does not have, counted as wrong: 'whistle' (1)" in log
    out, err = capsys.readouterr()
    assert "33.33 [6.15, 79.23]" in out and "could not be read, and count as wrong: 1;" in err
    [table] = (exp / "classify").glob("accuracy-*.txt")
    assert "could not be read, and count as wrong:\nmore-1: " in table.read_text()


@pytest.mark.parametrize("chunk_size", [2, 8, 64])
def test_chunk_by_chunk_ends_with_the_logits_of_the_whole(
    label_exp: Path, label_data: Path, chunk_size: int
) -> None:
    loaded = load_model(CheckpointOptions(exp_dir=label_exp))
    encoder = loaded.model.double().encoder
    chunk = ChunkSettings(chunk_size, 1, 2)
    encoder.set_chunk(chunk)
    names = [f"test-{i}.wav" for i in (8, 0, 3)]
    x, lens = padded(label_data.parent / "lists", names)
    x = torch.cat((x.double(), torch.zeros(2, x.shape[1])))
    lens = torch.cat((lens, torch.tensor([400, 399])))  # one frame, and none
    with torch.no_grad():
        *_, (streamed, count) = logits_by_chunk(loaded.model, x, lens)
        out, frames = encoder(x, lens, *chunk)
        whole = loaded.model.classifier(out, frames)
        assert torch.equal(count, frames) and frames[3:].tolist() == [1, 0]
        torch.testing.assert_close(streamed, whole, rtol=1e-9, atol=1e-9)
        [(short, _)] = logits_by_chunk(loaded.model, x[4:, :60], torch.tensor([60]))
    torch.testing.assert_close(short[0], whole[4])


def test_a_sure_label_is_decided_at_the_first_chunk_that_makes_it_so(
    label_exp: Path, label_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    exp = Path(shutil.copytree(label_exp, tmp_path / "exp"))
    assert run(exp, label_data, "--split=test", "--confidence=0.5") == 0
    loaded = load_model(CheckpointOptions(exp_dir=exp))
    [path] = (exp / "classify").glob("labels-*-confidence-0.5.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    early = 0
    for row in rows:
        wave = torch.from_numpy(read_audio(Path(row["audio"])))
        for k in range(1, 100):  # by what a listener has received after each chunk
            received = 80 + k * 8 * 320
            with torch.no_grad():
                so_far = wave[None, :received]
                out, lens = loaded.model.encoder(so_far, torch.tensor([so_far.shape[1]]), 8, 1, 2)
                p, label = loaded.model.classifier(out, lens).softmax(1).max(1)
            if p > 0.5 or received >= len(wave):
                break
        early += received < len(wave)
        assert row["hyp"] == loaded.tokenizer.tokens[int(label)]
        assert row["probability"] == pytest.approx(float(p), abs=1e-4)
        assert row["decided"] == pytest.approx(min(received, len(wave)) / 16000, abs=1e-3)
    assert early > 0
    mean = np.mean([row["decided"] for row in rows])
    assert f"mean time to a decision {mean:.2f} s" in capsys.readouterr().out


def test_pieces_are_drawn_by_the_seed_and_their_logits_averaged(
    label_exp: Path, label_data: Path
) -> None:
    loaded = load_model(CheckpointOptions(exp_dir=label_exp))
    cuts = CutSet.from_file(label_data / "manifests" / "cuts_test.jsonl.gz")
    options = ClassifyOptions(times=3, max_seconds=0.6, seed=5)
    found = classify_set(AudioSet("test", cuts), loaded, options, ChunkSettings(8, 1, 2), 5.0, 0)
    assert len(found.found) == 9 and {cut.duration > 0.6 for cut in cuts} == {True, False}
    for cut in cuts:
        wave, logits = read_audio(cut), []
        for number in range(3):
            piece = Piece(9600, 5, number)(cut, wave, 0.0)
            assert len(piece) == min(len(wave), 9600)
            with torch.no_grad():
                given = torch.from_numpy(piece)[None], torch.tensor([len(piece)])
                logits.append(loaded.model.classifier(*loaded.model.encoder(*given, 8, 1, 2))[0])
        probability, label = torch.stack(logits).mean(0).softmax(0).max(0)
        decision = found.found[cut.id]
        assert decision.label == loaded.tokenizer.tokens[int(label)]
        assert decision.probability == pytest.approx(float(probability), abs=1e-5)
    long = np.arange(20000.0)
    starts = {Piece(9600, 5, n)(next(iter(cuts)), long, 0.0)[0] for n in range(20)}
    assert len(starts) == 20 and max(starts) <= 10400


def test_intervals_and_durations_are_those_of_the_literature(tmp_path: Path) -> None:
    for correct, total in ((1518, 1609), (230, 253), (0, 9), (9, 9), (1, 1)):
        found = Accuracy(correct, total)
        expected = binomtest(correct, total).proportion_ci(method="wilson")
        assert found.interval == pytest.approx((100 * expected.low, 100 * expected.high))
    assert str(Accuracy(1518, 1609)).startswith("94.34 [")
    assert math.isnan(Accuracy(0, 0).percent) and str(Accuracy(0, 0)) == "-"
    given = [
        Outcome(str(s), "et", "et" if s < 6 else "lv", s) for s in (0.0, 5.0, 5.1, 20.0, 21.0)
    ]
    rows = {name: (a.correct, a.total) for name, a in by_duration(given)}
    assert rows == {"all": (3, 5), "0 to 5 s": (2, 2), "5 to 20 s": (1, 2), "above 20 s": (0, 1)}
    many = Counter({(f"s{i}", f"s{i + i % 2}"): 1 for i in range(100)})
    draw_confusions(many, tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "options, message",
    [
        (["--times=10"], "--times 10 needs --max-seconds"),
        (["--confidence=0.9", "--max-seconds=10"], "--confidence 0.9 contradicts --max-seconds"),
        (["--confidence=1"], "--confidence 1: must be above 0 and below 1"),
        (["--confidence=0.9", "--decode-chunk-len=-1"], "--confidence 0.9 needs chunks"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    label_exp: Path, label_data: Path, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(label_exp, label_data, *options)


def test_each_command_names_the_other_for_a_model_of_the_other_kind(
    label_exp: Path, label_data: Path, streaming_exp: Path
) -> None:
    for command in (decode, streaming_decode):
        with pytest.raises(UserError, match="a classifier: use xlsr_transducer.classify"):
            command.main([f"--exp-dir={label_exp}", f"--data-dir={label_data}"])
    with pytest.raises(UserError, match="has no classifier, but transducer and ctc: use decode"):
        run(streaming_exp, label_data)
