"""The page in a real browser: what it shows is what the engine finds in what it sent."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from tests.support.browser import OTHER_NAME, Relay, needs_chromium
from tests.support.live_server import ENDPOINT, RATE, expected, load_live, serving
from tests.support.page_driver import Site, Visit, assert_shown, read_file, shown, wait_for
from tests.support.stream_driver import speech
from xlsr_transducer.data.audio_file import read_audio_file

pytestmark = needs_chromium


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest correlation of ``b`` with a piece of ``a`` of its length."""
    size = len(a) + len(b)
    product = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    lag = int(product[: len(a) - len(b) + 1].argmax())
    return float(np.corrcoef(a[lag : lag + len(b)], b)[0, 1])


SCREEN_LOCK = """() => {
    navigator.wakeLock.request = async () => {
        window.isKeptAwake = true;
        return { release: async () => { window.isKeptAwake = false; } };
    };
}"""


def test_what_is_spoken_is_shown_as_the_engine_finds_it(site: Site, visit: Visit) -> None:
    page, watch = visit(site.address)
    page.evaluate(SCREEN_LOCK)
    page.click("#speak")
    page.wait_for_selector("#segments .live .word")
    # How soon words come depends on where in its file the fake microphone begins.
    page.wait_for_selector("#segments li:not(.live) .word >> nth=3")
    expect(page.locator("#delay")).to_have_text(re.compile(r"\d+\.\d\d s"))
    expect(page.locator("#level")).to_have_attribute("aria-valuenow", re.compile(r"[3-9]\d"))
    assert page.evaluate("isKeptAwake")
    page.click("#speak")
    wait_for(page, "idle")
    assert not page.evaluate("isKeptAwake")
    expect(page.locator(".live")).to_have_count(0)
    received = watch.received()
    assert_shown(page, expected(site.model, torch.from_numpy(received)))
    # The fake microphone begins somewhere in its file and takes away what is high: the noise is
    # like itself by 0.8. Other noise is so by 0.1.
    piece = received[RATE // 2 :][: RATE // 4]
    assert similarity(np.tile(site.wave, 2), piece) > 0.5
    assert similarity(np.tile(speech(2 * RATE, 4).numpy(), 2), piece) < 0.2


def test_files_are_shown_as_the_engine_finds_them(site: Site, visit: Visit) -> None:
    page, watch = visit(site.address)
    for name in ("a.wav", "stereo.wav", "a.flac"):
        read_file(page, site.folder / name)
        received, samples = watch.received(), read_audio_file(site.folder / name)
        # The browser decodes flac itself and scales what is above zero by 1 / 32767.
        assert np.abs(received - samples).max() <= (4e-5 if name == "a.flac" else 0)
        assert_shown(page, expected(site.model, torch.from_numpy(received)))
        page.click("#clear")
    page.set_input_files("#file", site.folder / "text.wav")
    problem = "text.wav: the browser cannot read this as audio."
    expect(page.locator("#problem")).to_have_text(problem)
    wait_for(page, "idle")


def test_a_dropped_file_goes_on_in_time_and_clear_begins_anew(site: Site, visit: Visit) -> None:
    page, _ = visit(site.address)
    drop(page, site.folder / "a.wav")
    assert_shown(page, site.segments)
    once = shown(page)
    drop(page, site.folder / "a.wav")
    both = shown(page)
    assert both[: len(once)] == once and len(both) == 2 * len(once)
    first = [float(words[0][1].split("–")[0]) for words in both]
    for before, after in zip(first, first[len(once) :]):
        assert after - before == pytest.approx(len(site.wave) / RATE, abs=0.011)
    page.click("#clear")
    assert shown(page) == []
    drop(page, site.folder / "a.wav")
    assert shown(page) == once


def drop(page: Page, file: Path) -> None:
    """Drops a file on the page; returns when it is recognised."""
    data = page.evaluate_handle(
        """(base64) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "a.wav"));
            return data;
        }""",
        base64.b64encode(file.read_bytes()).decode(),
    )
    page.dispatch_event("#transcript", "drop", {"dataTransfer": data})
    wait_for(page, "idle")


def test_hotwords_are_sent_and_wrong_ones_refused_with_the_reason(
    site: Site, visit: Visit
) -> None:
    page, watch = visit(site.address)
    plain = site.segments
    known = next(w.text for segment in plain for w in segment.words if "\u2047" not in w.text)
    hotwords = [f"{known[::-1]} :5", "kala :5"]
    wanted = expected(site.model, site.wave, hotwords)
    assert [s.text for s in wanted] != [s.text for s in plain], "choose hotwords that matter"
    page.fill("#hotwords", ", ".join(hotwords))
    read_file(page, site.folder / "a.wav")
    assert_shown(page, wanted)
    page.fill("#hotwords", "Ω")
    page.set_input_files("#file", site.folder / "a.wav")
    expect(page.locator("#problem")).to_contain_text("The server refuses: hotword 1")
    wait_for(page, "idle")


def test_a_server_without_hotwords_says_why(visit: Visit, checkpoint: Path) -> None:
    with serving(load_live(checkpoint, *ENDPOINT)) as server:
        page, _ = visit(server)
        expect(page.locator("#hotwords")).to_be_disabled()
        expect(page.locator("#hotwords-note")).to_contain_text("--decoding-method modified_beam")


def test_a_key_is_asked_for_where_one_is_needed_and_kept_out_of_addresses(
    site: Site, visit: Visit, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("s3cret\n")
    with serving(site.model, api_key_file=tmp_path / "keys") as server:
        page, watch = visit(server)
        page.click("#speak")  # the browser points at the empty field
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", "a key with spaces, which no browser can send")
        page.click("#speak")
        wait_for(page, "idle")
        page.fill("#key", "wrong")
        page.set_input_files("#file", site.folder / "a.wav")
        expect(page.locator("#problem")).to_have_text(
            "The server refuses: it does not accept this API key."
        )
        page.fill("#key", "s3cret")
        read_file(page, site.folder / "a.wav")
        assert_shown(page, site.segments)
        addresses = [*watch.requests, *(address for address, _ in watch.sockets), page.url]
        assert not any("s3cret" in address for address in addresses)


NO_DEVICE = """() => {
    navigator.mediaDevices.getUserMedia = async () => {
        throw new DOMException("Requested device not found", "NotFoundError");
    };
}"""


def test_why_there_is_no_microphone_is_said(site: Site, visit: Visit) -> None:
    page, _ = visit(site.address, permissions=())
    page.click("#speak")
    expect(page.locator("#problem")).to_contain_text("no permission")
    wait_for(page, "idle")
    page.evaluate(NO_DEVICE)
    page.click("#speak")
    expect(page.locator("#problem")).to_contain_text("this computer has none")
    wait_for(page, "idle")
    other, _ = visit(f"{OTHER_NAME}:{site.address.partition(':')[2]}", permissions=())
    other.click("#speak")
    expect(other.locator("#problem")).to_contain_text("only on https pages")
    expect(other.locator("#problem")).to_contain_text("--certificate")
    read_file(other, site.folder / "a.wav")  # this works all the same
    assert_shown(other, site.segments)


def test_when_the_server_dies_the_text_stays_and_the_page_goes_on_with_the_next(
    site: Site, visit: Visit
) -> None:
    relay = Relay(site.address)
    page, watch = visit(f"localhost:{relay.port}")
    page.click("#speak")
    page.wait_for_selector("#segments li:not(.live) + li.live .word")
    relay.kill()
    wait_for(page, "lost")
    expect(page.locator("#problem")).to_contain_text(
        "The connection to the server is lost. The text so far is kept"
    )
    before = shown(page)
    assert before and page.locator(".live").count() == 0
    relay.start()
    wait_for(page, "listening")
    expect(page.locator("#problem")).to_be_hidden()
    page.wait_for_selector(f"#segments li:nth-child({len(before) + 1})")
    page.click("#speak")
    wait_for(page, "idle")
    found = shown(page)
    assert found[: len(before)] == before
    segments = expected(site.model, torch.from_numpy(watch.received()))
    assert [[word for word, _ in words] for words in found[len(before) :]] == [
        [word.text for word in segment.words] for segment in segments if segment.words
    ]
    times = [float(words[0][1].split("–")[0]) for words in found]
    assert times == sorted(times)
    relay.kill()
    page.click("#speak")
    expect(page.locator("#problem")).to_have_text("The server does not answer.")
    wait_for(page, "idle")
    assert shown(page) == found
