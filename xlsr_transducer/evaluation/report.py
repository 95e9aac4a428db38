"""Writes a report: a page that is one file, its values as JSON and CSV, its pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import replacing
from xlsr_transducer.evaluation.drawing import inline, picture
from xlsr_transducer.evaluation.section import Section, Table

PAGE = Path(__file__).parent / "page"
KINDS = ("svg", "png")


def write_report(
    folder: Path, title: str, sections: Sequence[Section], settings: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes index.html, report.json, report.csv and every picture, all of them or none.

    Args:
      settings: the rows of report.csv, plain values by column.

    Returns:
      The path of index.html.

    Raises:
      UserError: a file cannot be written, or jinja2 is not there.
    """
    figures = {figure.name: figure for section in sections for figure in section.figures}
    if len(figures) < sum(len(section.figures) for section in sections):
        raise ValueError("two figures of the report have one name")
    drawn = {
        f"{name}.{kind}": picture(figure.drawing, kind, name)
        for name, figure in figures.items()
        for kind in KINDS
    }
    pictures = {
        name: inline(drawn[f"{name}.svg"], name, figure.alt) for name, figure in figures.items()
    }
    made = {"date": time.strftime("%Y-%m-%d %H:%M"), "python": platform.python_version(),
            "torch": torch.__version__, "machine": _machine()}  # fmt: skip
    files = {
        "index.html": _page(title, sections, pictures, made).encode(),
        "report.json": _as_json(title, sections, made).encode(),
        "report.csv": _as_csv(settings).encode(),
        **drawn,
    }
    with replacing(*(folder / name for name in files)) as temporary:
        for path, content in zip(temporary, files.values()):
            path.write_bytes(content)
    return folder / "index.html"


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _page(
    title: str,
    sections: Sequence[Section],
    pictures: Mapping[str, str],
    made: Mapping[str, str],
) -> str:
    """Returns the page."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as e:
        raise UserError("the report needs jinja2: pip install jinja2") from e
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        sections=sections,
        pictures={name: Markup(text) for name, text in pictures.items()},
        style=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        made=f"{made['date']}, torch {made['torch']}, {made['machine']}",
        links=_links(sections),
        kinds=_kinds,
        base64=lambda content: base64.b64encode(content).decode(),
    )


def _links(sections: Sequence[Section]) -> dict[str, list[tuple[str, str]]]:
    """Returns the links of the page's head: of titles such as ``Errors: dev``, the anchor and what
    follows the colon, under what precedes it; of other titles one without a text."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in sections:
        heading, _, rest = section.title.partition(": ")
        found.setdefault(heading, []).append((section.name, rest))
    return found


def _kinds(table: Table) -> list[str]:
    """Returns the class of each column: numbers stand to the right."""
    found = []
    for number, column in enumerate(table.columns):
        texts = [str(row[number]) for row in table.rows if isinstance(row[number], str)]
        is_number = column.digits is not None or all(t[:1].isdigit() for t in texts) and texts
        is_wide = max(map(len, texts), default=0) > 40
        found.append("number" if is_number and number else "wide" if is_wide else "text")
    return found


def _as_json(title: str, sections: Sequence[Section], made: Mapping[str, str]) -> str:
    content = {
        "title": title,
        "made": dict(made),
        "sections": {
            section.name: {"finding": section.finding, "notes": section.notes, **section.data}
            for section in sections
        },
    }
    return json.dumps(_plain(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Returns plain values, with None for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table with a heading; a column that a row lacks is empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
