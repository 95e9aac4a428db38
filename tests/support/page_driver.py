"""The server's page as its tests use it: fixtures, and what they read off it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Watch, chromium
from tests.support.live_server import ENDPOINT, RATE, expected, load_live, serving
from tests.support.stream_driver import speech
from xlsr_transducer.data.audio_file import resample
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.spans import TimedText

PATIENCE = 60000  # ms, for a machine that does much else
expect.set_options(timeout=PATIENCE)


@dataclasses.dataclass(frozen=True)
class Site:
    """A server, its model, and a folder with sound: a.wav, stereo.wav, a.flac and text.wav."""

    address: str
    model: LiveModel
    folder: Path
    wave: torch.Tensor  # of a.wav, 4 s at 16 kHz
    segments: list[TimedText]  # of a.wav, as the engine finds them


@pytest.fixture(scope="module")
def site(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose model takes hotwords."""
    model = load_live(checkpoint, *ENDPOINT, "--decoding-method", "modified_beam_search")
    folder = tmp_path_factory.mktemp("sound")
    samples = speech(4 * RATE, 3, torch.float32).numpy()
    samples[2 * RATE : 5 * RATE // 2] = 0
    wave = (samples * 32768).round().astype(np.int16)
    soundfile.write(folder / "a.wav", wave, RATE)
    soundfile.write(folder / "a.flac", wave, RATE)
    left = resample(samples, RATE, 22050)
    soundfile.write(folder / "stereo.wav", np.stack([left, 0 * left], 1), 22050, subtype="PCM_16")
    (folder / "text.wav").write_text("no audio")
    exact = torch.from_numpy(wave / np.float32(32768))
    with serving(model) as address:
        yield Site(address, model, folder, exact, expected(model, exact))


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Browser]:
    """A browser whose microphone plays a.wav."""
    with chromium(site.folder / "a.wav") as browser:
        yield browser


Visit = Callable[..., tuple[Page, Watch]]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens pages; at the end nothing went wrong in them, and they asked no other host."""
    opened: list[tuple[str, Page, Watch]] = []

    def open_page(address: str, permissions=("microphone",), **settings) -> tuple[Page, Watch]:
        context = browser.new_context(permissions=list(permissions), **settings)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        watch = Watch(page)
        opened.append((address, page, watch))
        page.goto(f"http://{address}/")
        expect(page.locator("#model")).not_to_be_empty()
        return page, watch

    yield open_page
    for address, page, watch in opened:
        page.context.close()
        assert watch.problems == []
        own = (f"http://{address}/", "blob:")
        assert [url for url in watch.requests if not url.startswith(own)] == []


def wait_for(page: Page, state: str) -> None:
    """Waits for a state of the page's recogniser, such as idle."""
    page.wait_for_selector(f"body[data-state={state}]")


def read_file(page: Page, file: Path) -> None:
    """Lets the page recognise a file; returns when it has."""
    page.set_input_files("#file", file)
    wait_for(page, "idle")
    expect(page.locator("#status")).to_contain_text(" s of audio in ")


def shown(page: Page) -> list[list[list[str]]]:
    """Returns the words of each segment on the page, and what is told of each."""
    return page.evaluate(
        "[...document.querySelectorAll('#segments li')].map((item) =>"
        "  [...item.querySelectorAll('.word')].map((w) => [w.textContent, w.dataset.details]))"
    )


def assert_shown(page: Page, segments: list[TimedText]) -> None:
    """Checks that the page shows ``segments``: words, and their times and confidences."""
    wanted = [segment.words for segment in segments if segment.words]
    found = shown(page)
    assert [[word for word, _ in words] for words in found] == [
        [word.text for word in words] for words in wanted
    ]
    assert sum(map(len, wanted)) > 3
    for (_, details), word in zip(sum(found, []), sum(wanted, [])):
        start, end, confidence = map(float, re.findall(r"[\d.]+", details))
        assert (start, end) == pytest.approx((word.start, word.end), abs=0.0056)
        assert confidence == pytest.approx(100 * word.confidence, abs=0.51)
