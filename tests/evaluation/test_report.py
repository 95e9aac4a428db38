"""The page shows what sections hold, as text, and needs nothing besides itself."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("jinja2")

from xlsr_transducer.evaluation.drawing import drawing
from xlsr_transducer.evaluation.report import write_report
from xlsr_transducer.evaluation.section import (
    AlignedWord,
    Column,
    Fact,
    Figure,
    Section,
    Table,
    Utterance,
    Utterances,
)
from xlsr_transducer.recognition.scoring import GAP

EVIL = '<script>alert("1")</script>'


def figure(name: str) -> Figure:
    drawn, [[axes]] = drawing(3, 2)
    axes.plot([0, 1], [0, 1], label="a < b")
    return Figure(name, drawn, f"caption {EVIL}", f'what "{EVIL}" shows')


def sections() -> list[Section]:
    table = Table(
        f"heading {EVIL}",
        [Column("name"), Column("WER", "%", 2), Column("pairs")],
        [["a", 12.345, "1/2/3"], [EVIL, float("inf"), None]],
        marked=[1],
        shown=1,
    )
    words = [AlignedWord("tere", "tere"), AlignedWord("hea", GAP), AlignedWord(GAP, EVIL),
             AlignedWord("ja", "jaa")]  # fmt: skip
    one = Section("first", "First", "A finding.", [EVIL], [Fact("model", EVIL, "detail")])
    one.tables, one.figures, one.notes = [table], [figure("line"), figure("other")], [EVIL]
    shown = Utterance(EVIL, words, "two errors", b"RIFF....")
    one.utterances = [Utterances("worst", [shown])]
    one.data = {"rate": float("nan"), "list": [1.5, float("inf")], "text": "ä"}
    return [one, Section("second-a", "Second: a"), Section("second-b", "Second: b")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, "Title", sections(), [{"a": 1, "b": None}, {"a": 2, "c": "x,y"}])
    return folder


class Outline(HTMLParser):
    """Notes tags that are opened, and whether all are closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.seen, self.addresses = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes) -> None:
        self.seen.append((tag, dict(attributes)))
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "img", "link", "use", "path", "image", "stop"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag) -> None:
        if tag in ("meta", "br", "img", "link", "use", "path", "image", "stop"):
            return
        assert self.open.pop() == tag


def test_no_text_of_the_data_becomes_markup(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "<script" not in page
    assert page.count("alert(&#34;1&#34;)") + page.count("alert(&quot;1&quot;)") >= 9
    outline = Outline(page)
    assert outline.open == []


def test_the_page_opens_alone_and_offline(folder: Path) -> None:
    outline = Outline((folder / "index.html").read_text())
    own = {"line.svg", "line.png", "other.svg", "other.png"}
    for address in outline.addresses:
        assert address.startswith(("#", "data:")) or address in own
    assert own | {"index.html", "report.json", "report.csv"} == {p.name for p in folder.iterdir()}
    assert (folder / "line.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_stand_to_the_right_and_what_is_no_number_is_a_dash(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert '<td class="number">12.35</td>' in page or '<td class="number">12.34</td>' in page
    assert '<td class="number">–</td>' in page
    assert '<td class="number">1/2/3</td>' in page
    assert '<td class="text">a</td>' in page
    assert "<summary>1 more</summary>" in page


def test_sections_of_several_sets_share_a_heading_among_the_links(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    links = '<span>Second: <a href="#second-a">a</a> <a href="#second-b">b</a></span>'
    assert links in page and '<a href="#first">First</a>' in page


def test_errors_are_told_by_more_than_colour(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert '<span class="word deleted" title="deleted"><del>hea</del></span>' in page
    assert '<span class="word substituted" title="substituted"><del>ja</del><ins>jaa</ins>' in page
    assert '<span class="word inserted" title="inserted"><ins>&lt;script' in page


def test_pictures_of_one_page_share_no_ids(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in re.findall(r'(?:href="|url\()#([^")]+)', page):
        assert name in ids


def test_values_are_plain_json_and_csv(folder: Path) -> None:
    found = json.loads((folder / "report.json").read_text())
    first = found["sections"]["first"]
    assert first["rate"] is None and first["list"] == [1.5, None] and first["text"] == "ä"
    assert (folder / "report.csv").read_text() == 'a,b,c\n1,,\n2,,"x,y"\n'


def test_two_figures_of_one_name_are_refused(tmp_path: Path) -> None:
    section = Section("x", "X")
    section.figures = [figure("line"), figure("line")]
    with pytest.raises(ValueError, match="one name"):
        write_report(tmp_path, "Title", [section], [])
    assert not list(tmp_path.iterdir())


def test_a_row_of_another_length_than_the_heading_is_refused() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", [Column("a"), Column("b")], [["1"]])
