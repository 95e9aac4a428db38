"""Plain text tables, the one way in which every command prints them."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(
    rows: Sequence[Sequence[str]], *, is_right: bool = False, is_ruled: bool = True
) -> str:
    """Returns one line per row, in columns two spaces apart, without a newline at the end.

    Args:
      rows: cells; the first row is the heading, and all are as long as it.
      is_right: align the columns to the right, except for the first.
      is_ruled: put a line under the heading.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        justify = str.rjust if is_right else str.ljust
        cells = [justify(cell, width) for cell, width in zip(rest, widths[1:])]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    if is_ruled:
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
