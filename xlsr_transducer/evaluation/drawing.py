"""How pictures of the report look: one style, colours that the page can turn dark.

A picture is drawn in ``INK`` on nothing. In the page, the colours named here are variables of its
style sheet, so that it follows the reader's light or dark theme.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Drawing

P, R = ParamSpec("P"), TypeVar("R")

INK, FAINT, PAPER = "#1d1f23", "#8b9099", "#fefefe"
LINES = "#e1e3e8"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", PAPER: "var(--paper)"}
VARIABLES[LINES] = "var(--lines)"
COLOURS = ("#3b74c4", "#d07d24", "#35936a", "#c24d52", "#8560b5", "#6f7782")
SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f7fc", "#8fb3e3", "#24508f"])
STYLE = {
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": LINES,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that draws: inside, everything has the style."""
    return matplotlib.rc_context(STYLE)(draw)


@styled
def drawing(width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any):
    """Returns a figure of so many inches, and its axes as a (rows, columns) array.

    Args:
      shared: ``sharex`` and ``sharey`` of ``Figure.subplots``.
    """
    figure = Drawing(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def picture(figure: Drawing, kind: str, name: str) -> bytes:
    """Returns a figure as a file: the same bytes for the same figure.

    Args:
      kind: ``svg`` or ``png``.
      name: of the picture; the ids of an SVG begin with it.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def inline(svg: bytes, name: str, alt: str) -> str:
    """Returns an SVG as part of an HTML page: of the page's colours, with ids of its own."""
    text = svg[svg.index(b"<svg") :].decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"(href=\"|url\()#", rf"\g<1>#{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def mark_cells(axes: Axes, values: list[list[float]], digits: int) -> None:
    """Writes the values of a heat map into its cells, light on dark ones."""
    known = [v for row in values for v in row if v == v]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value == value:
                colour = "#ffffff" if value > middle else "#1a2536"
                text = f"{value:.{digits}f}"
                axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=8.5)


def plain_map(axes: Axes) -> None:
    """Takes lines and ticks off the axes of a heat map."""
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
