"""The page in a real browser: saving, keyboard, phone, colours, what is read out."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import needs_chromium
from tests.support.page_driver import Site, Visit, read_file, shown, wait_for
from xlsr_transducer.recognition.spans import Span, TimedText
from xlsr_transducer.recognition.subtitles import render
from xlsr_transducer.serving.sherpa import message_of

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def modules(browser: Browser, site: Site) -> Iterator[Page]:
    """A page whose modules are called one by one."""
    page = browser.new_page()
    page.goto(f"http://{site.address}/")
    yield page
    page.close()


def saved(page: Page, name: str) -> str:
    with page.expect_download() as download:
        page.click(f"[data-format={name}]")
    assert download.value.suggested_filename == f"transcript.{name}"
    return download.value.path().read_text(encoding="utf-8")


def test_the_transcript_can_be_saved_and_copied(site: Site, visit: Visit) -> None:
    page, _ = visit(site.address, ("clipboard-read", "clipboard-write"))
    read_file(page, site.folder / "a.wav")
    text = {name: render(name, site.segments, 0.0) for name in ("txt", "srt", "vtt")}
    assert len(text["srt"]) > 50
    assert {name: saved(page, name) for name in text} == text
    page.click("#copy")
    expect(page.locator("#status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text["txt"]


def random_segments(seed: int) -> list[TimedText]:
    """Segments with pauses, long words, characters beyond 16 bits, and marks of HTML."""
    draw, now, segments = random.Random(seed), 3500.0, []
    for number in range(20):
        words = []
        for _ in range(draw.randint(1, 60)):
            seconds = draw.choice([0.04, 0.2, 0.6])
            text = "".join(draw.choices("aeõ<&>😀", k=draw.choice([1, 3, 9, 50])))
            words.append(Span(text, round(now, 3), round(now + seconds, 3), 0.9))
            now += seconds + draw.choice([0, 0.04, 0.12, 3.0 * (draw.random() < 0.1)])
        joined = " ".join(word.text for word in words)
        segments.append(TimedText(number, joined, [], [], [], words, is_final=True))
    return segments


def test_subtitles_are_those_of_the_commands(modules: Page) -> None:
    segments = random_segments(0)
    for name in ("srt", "vtt"):
        found = modules.evaluate(
            """async ([name, segments]) => {
                const { FORMATS } = await import("/subtitles.js");
                return FORMATS[name](segments);
            }""",
            [name, [{"words": message_of(s)["word_details"]} for s in segments]],
        )
        assert found == render(name, segments, 0.0)


def test_pieces_of_the_microphone_are_together_all_that_came(modules: Page) -> None:
    sizes, samples, last = modules.evaluate(
        """async () => {
            const posted = [];
            let Collector;
            globalThis.registerProcessor = (name, found) => { Collector = found; };
            globalThis.AudioWorkletProcessor = class {
                port = { postMessage: (data) => posted.push(data) };
            };
            await import("/worklet.js");
            const collector = new Collector();
            collector.process([[]]); // before the microphone has started
            for (let i = 0; i < 20; i++) {
                collector.process([[Float32Array.from({ length: 128 }, (_, j) => 128 * i + j)]]);
            }
            collector.port.onmessage();
            const last = posted.pop();
            return [posted.map((p) => p.length), posted.flatMap((p) => [...p]), last];
        }"""
    )
    assert sizes == [2048, 512] and samples == list(range(20 * 128)) and last is None


def test_the_delay_is_the_mean_over_tokens_from_when_they_were_sent(modules: Page) -> None:
    found = modules.evaluate(
        """async () => {
            const { Delay } = await import("/delay.js");
            const delay = new Delay();
            delay.sent(1, 1000);
            delay.sent(2, 2000);
            const first = delay.mean([0.5, 1.5], 2500); // 1.5 and 0.5 s
            delay.sent(3, 3000);
            return [first, delay.mean([0.5, 1.5, 2.5], 7000), delay.mean([], 9000)];
        }"""
    )
    assert found == [1.0, 2.0, 2.0]


def test_words_are_text_grey_until_final_and_announced_once_final(modules: Page) -> None:
    found = modules.evaluate(
        """async () => {
            const { Transcript } = await import("/transcript.js");
            const { TranscriptView } = await import("/transcript_view.js");
            const [list, announcer] =
                ["segments", "announcer"].map((id) => document.getElementById(id));
            const transcript = new Transcript();
            new TranscriptView(transcript, list, announcer);
            const look = () => {
                const word = list.querySelector(".word");
                return [word.textContent, getComputedStyle(word).color, announcer.textContent];
            };
            const word = { word: "<img src=x onerror=alert(1)>", start: 0, end: 1, confidence: 1 };
            transcript.update({ word_details: [word], is_final: false }, 0);
            const partial = look();
            transcript.update({ word_details: [word], is_final: true }, 0);
            return [partial, look(), list.querySelectorAll("img").length];
        }"""
    )
    text = "<img src=x onerror=alert(1)>"
    assert found == [[text, "rgb(89, 98, 110)", ""], [text, "rgb(22, 25, 29)", text], 0]


def test_every_script_runs_in_its_own_direction(modules: Page) -> None:
    found = modules.evaluate(
        """async () => {
            const { Transcript } = await import("/transcript.js");
            const { TranscriptView } = await import("/transcript_view.js");
            const list = document.getElementById("segments").cloneNode();
            document.body.append(list);
            const transcript = new Transcript();
            new TranscriptView(transcript, list, document.createElement("div"));
            for (const text of ["õhtust päeva", "שלום עולם", "سلام", "早上 好"]) {
                const words = text.split(" ").map((word) => ({ word, start: 0, end: 1 }));
                transcript.update({ word_details: words, is_final: true }, 0);
            }
            const next = new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true });
            const [first] = list.children[1].querySelectorAll(".word");
            first.dispatchEvent(next);
            const lines = [...list.querySelectorAll("p")];
            return [
                lines.map((line) => getComputedStyle(line).direction),
                lines.map((line) => line.textContent),
                document.activeElement.textContent,
                list.lang,
            ];
        }"""
    )
    texts = ["õhtust päeva", "שלום עולם", "سلام", "早上 好"]
    assert found == [["ltr", "rtl", "rtl", "ltr"], texts, "עולם", ""]


def test_all_can_be_done_with_the_keyboard(site: Site, visit: Visit) -> None:
    page, _ = visit(site.address)
    read_file(page, site.folder / "a.wav")
    page.evaluate("document.activeElement.blur()")
    order = []
    for _ in range(10):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "(({ id, className, dataset, tagName }) =>"
                "  id || className || dataset.format || tagName)(document.activeElement)"
            )
        )
    wanted = "hotwords word speak choose copy clear txt srt vtt SUMMARY".split()
    assert order == wanted
    words = sum(shown(page), [])
    for _ in range(8):
        page.keyboard.press("Shift+Tab")
    for press, (word, details) in (
        (None, words[0]),
        ("ArrowRight", words[1]),
        ("End", words[-1]),
        ("ArrowLeft", words[-2]),
        ("Home", words[0]),
    ):
        if press:
            page.keyboard.press(press)
        assert page.evaluate("document.activeElement.textContent") == word
        expect(page.locator("#word-details")).to_have_text(details)
        assert (
            page.evaluate("document.activeElement.getAttribute('aria-describedby')")
            == "word-details"
        )
    page.keyboard.press("Escape")
    expect(page.locator("#word-details")).to_be_hidden()
    page.hover("#segments li:last-child .word:last-child")
    expect(page.locator("#word-details")).to_have_text(words[-1][1])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for(page, "listening")
    page.keyboard.press("Enter")
    wait_for(page, "idle")


CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    };
    const ground = (e) => {
        const color = getComputedStyle(e).backgroundColor;
        return rgba(color)[3] === 255 ? color : ground(e.parentElement);
    };
    const luminance = (color) => {
        const [r, g, b] = [...rgba(color)].map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    return [...document.body.querySelectorAll("*")]
        .filter((e) => hasText(e) && e.checkVisibility() && e.tagName !== "SCRIPT")
        .map((e) => {
            const [a, b] = [getComputedStyle(e).color, ground(e)].map(luminance);
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return [e.id || e.className || e.tagName, ratio];
        });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read_in_light_and_dark(
    site: Site, visit: Visit, scheme: str
) -> None:
    page, _ = visit(
        site.address,
        viewport={"width": 320, "height": 600},
        color_scheme=scheme,
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
    )
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#level div')).transitionDuration")
        == "0s"
    )
    read_file(page, site.folder / "a.wav")
    page.click("summary")
    page.set_input_files("#file", site.folder / "text.wav")
    expect(page.locator("#problem")).to_be_visible()
    page.tap(".word")
    expect(page.locator("#word-details")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for box in (b.bounding_box() for b in page.locator("button").all()):
        assert box["height"] >= 44 and box["width"] >= 44
    contrasts = page.evaluate(CONTRASTS)
    assert {"problem", "word", "speak-label", "status", "copy", "word-details"} <= {
        n for n, _ in contrasts
    }
    assert [(name, ratio) for name, ratio in contrasts if ratio < 4.5] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 19, 23)") == (scheme == "dark")
