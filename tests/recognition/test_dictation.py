"""Live audio is shown as it is recognised, by a line that grows on a terminal."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("starlette")  # which the support of these tests needs
from tests.support.live_capture import LiveCapture  # noqa: E402
from tests.support.live_server import (  # noqa: E402
    ENDPOINT,
    expected,
    load_live,
    waves,
    write_checkpoint,
)
from xlsr_transducer import microphone  # noqa: E402
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model  # noqa: E402
from xlsr_transducer.recognition.dictation import (  # noqa: E402
    LiveText,
    Screen,
    dictate,
    last_columns,
    recognise,
)
from xlsr_transducer.recognition.live import LiveModel  # noqa: E402


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_on(terminal: str) -> list[str]:
    """Returns what a terminal shows: a carriage return and ``ESC [2K`` begin the line anew."""
    return [line.split("\r\x1b[2K")[-1] for line in terminal.split("\n")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dictation")
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LiveModel:
    return load_live(folder / "pretrained.pt", "--enable-endpoint", "1", *ENDPOINT)


@pytest.fixture(scope="module")
def wave(folder: Path) -> np.ndarray:
    found = waves(load_model(CheckpointOptions(checkpoint=folder / "pretrained.pt")).model, 6)
    return max(found, key=len).numpy()


@pytest.mark.parametrize("size", [160, 1600, 40000])
def test_final_texts_are_those_of_the_stream_alone(
    model: LiveModel, wave: np.ndarray, size: int
) -> None:
    found = list(recognise(model, LiveCapture(wave, size)))
    wanted = [segment.text for segment in expected(model, torch.from_numpy(wave))]
    assert [h.text for h in found if h.is_final] == wanted and len(wanted) > 1
    growing = [h.text for h in found if not h.is_final]
    assert any(growing) and len(growing) > len(wanted)


def test_a_terminal_has_one_line_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    terminal = Terminal()
    screen = Screen(terminal)
    for text in ("one", "one two", "one two three four"):
        screen.show(LiveText(text, is_final=False))
        assert lines_on(terminal.getvalue())[-1] == text[-11:]
    screen.show(LiveText("one two three four", is_final=True))
    screen.show(LiveText("", is_final=False))
    screen.show(LiveText("five", is_final=False))
    screen.clear()
    assert lines_on(terminal.getvalue()) == ["one two three four", ""]


def test_a_file_has_final_lines_alone() -> None:
    out = io.StringIO()
    screen = Screen(out)
    for text, is_final in (("a", False), ("a b", True), ("", True), ("c", False), ("c d", True)):
        screen.show(LiveText(text, is_final))
    screen.clear()
    assert out.getvalue() == "a b\nc d\n"


def test_text_cannot_steer_the_terminal() -> None:
    terminal = Terminal()
    Screen(terminal).show(LiveText("a\x1b]0;title\x07b\x1b[2Jc\nd", is_final=True))
    assert terminal.getvalue() == "a]0;titleb[2Jcd\n"


def test_the_end_of_a_line_fits_also_with_wide_characters() -> None:
    assert [last_columns("abc", n) for n in (0, 1, 2, 3, 9)] == ["", "c", "bc", "abc", "abc"]
    assert [last_columns("a日本", n) for n in (1, 2, 3, 4, 5)] == ["", "本", "本", "日本", "a日本"]


def test_ctrl_c_ends_with_the_final_text(model: LiveModel, wave: np.ndarray) -> None:
    before, out = signal.getsignal(signal.SIGINT), io.StringIO()
    capture = LiveCapture(wave, 1600, at_end=lambda: os.kill(os.getpid(), signal.SIGINT))
    dictate(capture, recognise(model, capture), out)
    assert capture.is_stopped
    texts = [h.text for h in recognise(model, LiveCapture(wave, 1600)) if h.is_final]
    assert out.getvalue().splitlines() == texts
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_recognises_without_a_server(
    folder: Path,
    model: LiveModel,
    wave: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(microphone, "Microphone", lambda device: LiveCapture(wave, 1600))
    given = ["--checkpoint", str(folder / "pretrained.pt"), "--cpu-layers", "pytorch", *ENDPOINT]
    assert microphone.main(given) == 0
    texts = [h.text for h in recognise(model, LiveCapture(wave, 1600)) if h.is_final]
    assert capsys.readouterr().out.splitlines() == texts
