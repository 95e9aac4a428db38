"""From a long recording and its transcript to a list of utterances: the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import segment as command
from local.demo import segmenting as experiment
from local.importers.text_list import TextList
from local.segmenting.utterances import (
    NOT_WRITTEN,
)
from tests.local.test_transcripts import write
from tests.support.random_models import CHUNK, write_random_model
from tests.support.stream_driver import speech
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition import long_encoding
from xlsr_transducer.recognition.long_alignment import Aligner
from xlsr_transducer.recognition.long_encoding import encode_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model and 36 s of sound with pauses, in which it finds words."""
    folder = tmp_path_factory.mktemp("segment")
    write_random_model(folder / "model.pt", ["transducer", "ctc"])
    wave = speech(36 * 16000, 7).numpy()
    for start in range(2, 36, 3):
        wave[start * 16000 : start * 16000 + 8000] *= 1e-3
    soundfile.write(folder / "a b.wav", wave, 16000)
    return folder


def run(folder: Path, *more: str) -> int:
    arguments = [f"--checkpoint={folder / 'model.pt'}", "--window-seconds=4", *more]
    return command.main(
        [*arguments, "--data-dir=none", "--cpu-layers=pytorch", "--punctuation=keep"]
    )


def own_words(folder: Path, method: str, work: Path) -> list[str]:
    """The words that the library recognises in the recording."""
    loaded = load_model(CheckpointOptions(checkpoint=folder / "model.pt"))
    wave, _ = soundfile.read(folder / "a b.wav", dtype="float32")
    args = (loaded.model.encoder, CHUNK, [wave], 4.0, work, {}, lambda _: None)
    found = Aligner(loaded.model, loaded.tokenizer, method).recognise(encode_recording(*args))
    return [word.span.text for word in found]


@pytest.mark.parametrize("method", ["ctc", "transducer"])
def test_the_model_s_own_words_come_back_as_utterances(
    method: str, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_encoding, "PART", 6.0)
    words = own_words(recording, method, tmp_path / "own")
    assert len(words) > 12
    lines = [" ".join(words[i : i + 4]) for i in range(0, len(words), 4)]
    del lines[2]
    text = write(tmp_path / "t.txt", "\n".join([*lines, "日本"]))
    arguments = [f"--audio={recording / 'a b.wav'}", f"--transcript={text}"]
    arguments += [f"--method={method}", "--min-seconds=0.5", "--speaker=mari"]
    assert run(recording, *arguments, f"--out-dir={tmp_path / 'one'}") == 0
    entries = list(TextList(tmp_path / "one" / "segments.txt", tmp_path).entries())
    table = (tmp_path / "one" / "segments.tsv").read_text().splitlines()
    rows = [dict(zip(table[0].split("\t"), line.split("\t"))) for line in table[1:]]
    kept = [row for row in rows if row["state"] == "utterance"]
    assert len(kept) == len(entries)
    all_words = " ".join(words)
    for entry, row in zip(entries, kept):
        assert not entry.problem and entry.speaker == row["speaker"] == "mari"
        assert Path(entry.path) == recording / "a b.wav" and entry.text == row["text"]
        assert 0 <= entry.start < entry.end <= 36 and entry.text in all_words
        assert float(row["start"]) == entry.start and 0 < float(row["confidence"]) <= 1
    states = {row["text"]: row["state"] for row in rows}
    assert "'日本' has characters that the model's tokens lack" in states["日本"]
    assert NOT_WRITTEN in states.values()
    # Killed after its first part, it resumes and ends with the same bytes.
    store, calls = long_encoding._store, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return store(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(long_encoding, "_store", killed)
        run(recording, *arguments, f"--out-dir={tmp_path / 'two'}")
    assert not (tmp_path / "two" / "segments.txt").exists()
    assert run(recording, *arguments, f"--out-dir={tmp_path / 'two'}") == 0
    for name in ("segments.txt", "segments.tsv"):
        one, two = ((tmp_path / n / name).read_bytes() for n in ("one", "two"))
        assert one == two


def test_many_recordings_and_what_is_wrong_with_one(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = own_words(recording, "ctc", tmp_path / "own")
    write(tmp_path / "t.txt", " ".join(words))
    (tmp_path / "broken.wav").write_bytes(b"RIFFx")
    write(tmp_path / "empty.txt", "\n")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    audio = recording / "a b.wav"
    (tmp_path / "other.wav").symlink_to(audio)
    entries = [f"{audio}|t.txt|mari", "broken.wav|t.txt|x", "short.wav|t.txt|y"]
    listed = write(tmp_path / "list.txt", "\n".join(entries))
    options = ["--min-seconds=0.3", f"--list={listed}", f"--out-dir={tmp_path / 'out'}"]
    assert run(recording, *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 2 and "broken.wav: unreadable audio" in errors[0]
    assert "short.wav: is shorter than a frame" in errors[1]
    assert (tmp_path / "out" / "segments.txt").read_text().count("|mari\n") > 0
    write(tmp_path / "wrong.txt", "ksksk mlmlm ntntn")
    arguments = [f"--audio={audio}", f"--transcript={tmp_path / 'wrong.txt'}"]
    assert run(recording, *arguments, f"--out-dir={tmp_path / 'out'}") == 2
    assert "no utterance: " in capsys.readouterr().err.splitlines()[-1]
    for content, complaint in (
        ("a|b", "list.txt:1: a line has audio|transcript|speaker"),
        (f"{audio}|t.txt|x\n\n{audio}|t.txt|y", "list.txt:3: .*is named twice"),
        ("none.wav|t.txt|x", "list.txt:1: .*none.wav: no such file"),
        ("# nothing", "names no recording"),
    ):
        write(listed, content)
        with pytest.raises(UserError, match=complaint.replace("|", r"\|")):
            run(recording, *options)
    for more, complaint in (
        ([], "give --audio and --transcript, or a --list"),
        ([f"--audio={audio}"], "give --audio and --transcript"),
        ([f"--list={listed}", "--speaker=x"], "--speaker belongs to --audio"),
    ):
        with pytest.raises(UserError, match=complaint):
            run(recording, *more, f"--out-dir={tmp_path / 'out'}")


def test_the_head_must_be_there() -> None:
    assert command.head_of(None, ["transducer", "ctc"]) == "ctc"
    assert command.head_of(None, ["transducer"]) == "transducer"
    with pytest.raises(UserError, match="needs a model with ctc or transducer; .* has classifier"):
        command.head_of(None, ["classifier"])
    with pytest.raises(UserError, match="needs a model with ctc; this one has transducer"):
        command.head_of("ctc", ["transducer"])


# ---- the experiment


def test_the_experiment_tells_right_from_wrong() -> None:
    one = experiment.Sentence
    truth = [one(0.0, 1.0, ["a", "b"]), one(2.0, 3.0, ["c", "d"]), one(5.0, 6.0, ["e"])]
    kept = [one(0.1, 2.95, ["a", "b", "c", "d"]), one(4.8, 6.0, ["x"]), one(2.5, 3.1, ["d"])]
    wrong, words, distances = experiment.score(kept, truth)
    assert (wrong, words) == (1, 5)
    assert distances == pytest.approx([0.1, 0.05, 0.1])
    lines = [f"Lause {k}." for k in range(300)]
    text, written = experiment.make_transcript(lines, 1)
    assert [k for k, line in enumerate(lines) if line in text] == written
    assert 255 < len(written) < 285 and text.count(".") > len(written) + 15
