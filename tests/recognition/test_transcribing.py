"""Recordings are transcribed as a stream is: the same segments, written whole, several at once."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile
import torch

from tests.support.stream_driver import speech
from xlsr_transducer import streaming_decode, transcribe
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition import transcribing
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.spans import TimedText

pytest.importorskip("starlette")  # which the support of these tests needs
pytest.importorskip("av")
from tests.support.live_server import (  # noqa: E402
    ENDPOINT,
    RATE,
    expected,
    load_live,
    waves,
    write_checkpoint,
)
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has a checkpoint and audio files ``0.wav`` to ``5.wav``."""
    path = tmp_path_factory.mktemp("transcribe")
    checkpoint = write_checkpoint(path)
    for i, wave in enumerate(waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 6)):
        soundfile.write(path / f"{i}.wav", wave.numpy(), RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LiveModel:
    return load_live(folder / "pretrained.pt", "--enable-endpoint", "1", *ENDPOINT)


def arguments(folder: Path, *more: str) -> list[str]:
    given = ["--checkpoint", str(folder / "pretrained.pt"), "--cpu-layers", "pytorch", *ENDPOINT]
    return [*given, *map(str, more)]


def segments(model: LiveModel, path: Path) -> list[TimedText]:
    return expected(model, torch.from_numpy(soundfile.read(path, dtype="float32")[0]))


@pytest.mark.parametrize("num_streams", [1, 4])
def test_texts_and_times_are_those_of_each_stream_alone(
    folder: Path, tmp_path: Path, model: LiveModel, num_streams: int
) -> None:
    files = [folder / f"{i}.wav" for i in range(6)]
    options = ["--format", "json", "--output-dir", tmp_path / "out", "--num-streams", num_streams]
    assert transcribe.main(arguments(folder, *files, *options)) == 0
    for path in files:
        found = json.loads((tmp_path / "out" / f"{path.stem}.json").read_text())
        wanted = segments(model, path)
        assert [s["text"] for s in found["segments"]] == [s.text for s in wanted]
        assert [[w["start"] for w in s["words"]] for s in found["segments"]] == [
            [round(w.start, 3) for w in s.words] for s in wanted
        ]
        assert found["seconds"] == round(soundfile.info(path).duration, 3)
    assert sum(len(segments(model, path)) > 1 for path in files) > 1


def test_the_text_is_that_of_streaming_decode(folder: Path, capsys: pytest.CaptureFixture) -> None:
    path = folder / "0.wav"
    streaming_decode.main(arguments(folder, "--enable-endpoint", "1", path))
    # It joins tokens across segments, where a word may go on.
    wanted = capsys.readouterr().out.split("\t")[1].replace(" ", "").strip()
    assert transcribe.main(arguments(folder, path)) == 0
    assert capsys.readouterr().out.replace(" ", "").replace("\n", "") == wanted != ""


def test_one_file_is_printed_in_any_format(
    folder: Path, capsys: pytest.CaptureFixture, model: LiveModel
) -> None:
    wanted = [s.text for s in segments(model, folder / "0.wav")]
    for name, start in (("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:"), ("textgrid", "File ty")):
        transcribe.main(arguments(folder, folder / "0.wav", "--format", name))
        assert capsys.readouterr().out.startswith(start)
    transcribe.main(arguments(folder, folder / "0.wav"))
    assert capsys.readouterr().out.splitlines() == wanted


def test_standard_input_is_a_file_too(
    folder: Path, tmp_path: Path, model: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()

    def send() -> None:
        with os.fdopen(write, "wb") as file:
            file.write((folder / "0.wav").read_bytes())

    with os.fdopen(read, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        writer = threading.Thread(target=send)
        writer.start()
        assert transcribe.main(arguments(folder, "-", "--output-dir", tmp_path)) == 0
        writer.join()
    wanted = [s.text for s in segments(model, folder / "0.wav")]
    assert (tmp_path / "stdin.txt").read_text().splitlines() == wanted


def test_bad_files_are_named_and_the_others_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, model: LiveModel
) -> None:
    bad = {"text.wav": b"no audio" * 99, "empty.wav": b"", "cut.flac": b""}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "cut.flac", speech(30 * RATE, 0).numpy(), RATE)
    os.truncate(tmp_path / "cut.flac", (tmp_path / "cut.flac").stat().st_size // 2)
    files = [tmp_path / name for name in bad] + [folder / "0.wav", tmp_path / "none.wav"]
    out = tmp_path / "out"
    assert transcribe.main(arguments(folder, *files, folder / "1.wav", "--output-dir", out)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[:2] for line in lines) == sorted(
        ["error", str(tmp_path / name)] for name in (*bad, "none.wav")
    )
    assert {path.name for path in out.iterdir()} == {"0.txt", "1.txt"}
    wanted = [s.text for s in segments(model, folder / "1.wav")]
    assert (out / "1.txt").read_text().splitlines() == wanted


@pytest.mark.parametrize(
    "files, reason",
    [
        (["a.wav", "b.wav"], "several files need an --output-dir"),
        (
            ["a.wav", "b/a.mp3", "--output-dir", "out"],
            r"out/a.txt: would be the result of b/a.mp3",
        ),
        (["-", "-", "--output-dir", "out"], "stdin.txt: would be the result of -"),
        (["./a.txt", "--output-dir", "."], "a.txt: would be the result of a.txt, and that"),
    ],
)
def test_results_of_one_name_are_refused(files: Sequence[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        transcribe.main(files)


def test_an_old_result_stays_until_the_new_one_is_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.txt").write_text("old")
    steps = transcribing._Progress.add
    given = arguments(folder, folder / "0.wav", folder / "1.wav", "--output-dir", tmp_path)

    def interrupt(self, seconds: float) -> None:
        steps(self, seconds)
        if self._seconds > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(transcribing._Progress, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        transcribe.main(given)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("0.txt", "old")]
    monkeypatch.undo()
    assert transcribe.main(given) == 0
    assert (tmp_path / "0.txt").read_text() not in ("", "old")
    assert {p.name for p in tmp_path.iterdir()} == {"0.txt", "1.txt"}


def test_a_killed_command_leaves_no_half_result(folder: Path, tmp_path: Path) -> None:
    audio = io.BytesIO()
    soundfile.write(audio, speech(40 * RATE, 1).numpy(), RATE, format="WAV")
    command = [sys.executable, "-m", "xlsr_transducer.transcribe", "-", "--output-dir", tmp_path]
    running = subprocess.Popen([*command, *arguments(folder)], stdin=subprocess.PIPE)
    running.stdin.write(audio.getvalue()[: 60 * RATE])  # it waits for the rest
    running.stdin.flush()
    unfinished = tmp_path / "stdin.txt.tmp"
    while not (unfinished.exists() and unfinished.stat().st_size):
        assert running.poll() is None
        time.sleep(0.05)
    running.kill()
    running.wait()
    assert not (tmp_path / "stdin.txt").exists()


def test_a_terminal_shows_how_far_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    transcribe.main(arguments(folder, folder / "0.wav"))
    seconds = int(soundfile.info(folder / "0.wav").duration)
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("100%") and f"{seconds}/{seconds} " in last and "s of audio/s" in last


def test_memory_does_not_hold_the_audio(folder: Path, tmp_path: Path, model: LiveModel) -> None:
    """Of a long file there is never more in the engine than a few pieces."""
    path = tmp_path / "long.flac"
    soundfile.write(path, speech(60 * RATE, 1).numpy(), RATE)
    options = transcribing.TranscribeOptions(output_dir=tmp_path)
    most, engine = 0, model.engine(1)
    real = type(engine).step

    def step(self):
        nonlocal most
        most = max([most, *(s.buffer.num_waiting for s in self.streams)])
        assert all(len(s.segments) < 3 for s in self.streams)
        return real(self)

    type(engine).step = step
    try:
        assert transcribing.transcribe_files(model, [path], options) == 0
    finally:
        type(engine).step = real
    assert 0 < most < 10 * RATE
