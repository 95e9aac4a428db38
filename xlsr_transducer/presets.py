"""Presets: files of options, ``--conf FILE``, over which the command line has the last word.

A preset is YAML, one option a line: ``base_lr: 0.001``, in the names that ``--help`` shows, with
dashes or underscores. Nothing but plain values is read; they are spelt as on the command line.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from xlsr_transducer.errors import UserError


def parse_with_preset(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parses ``argv``; what it does not give comes from the file of ``--conf``, if it has one.

    Raises:
      UserError: the file has an unknown option or a wrong value; names file and line.
    """
    args = parser.parse_args(argv)
    if args.conf is None:
        return args
    parser.set_defaults(**read_preset(args.conf, parser))
    return parser.parse_args(argv)


def read_preset(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options of a preset, by name with underscores, as ``parser`` converts them."""
    known = vars(parser.parse_args([])).keys() - {"conf"}
    values: dict[str, Any] = {}
    for name, text, line in _lines(path):
        where, name = f"{path}:{line}", name.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{where}: there is no option {name!r}{hint}")
        if name in values:
            raise UserError(f"{where}: {name} is given twice")
        values[name] = _converted(parser, name, text, where)
    return values


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """Name, value as it is written, and number of the line of each option."""
    try:
        # Composed, not constructed: no object is made, and 1e-4 or "no" stay as they are.
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not YAML ({e})") from e
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: holds no options; write one a line, such as 'base_lr: 0.001'")
    for key, value in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{path}:{line}: an option has one plain value, such as 16,32,-1")
        yield key.value, value.value, line


def _converted(parser: argparse.ArgumentParser, name: str, text: str, where: str) -> Any:
    flag = "--" + name.replace("_", "-")
    exits, parser.exit_on_error = parser.exit_on_error, False  # type: ignore[attr-defined]
    try:
        return getattr(parser.parse_args([f"{flag}={text}"]), name)
    except argparse.ArgumentError as e:
        raise UserError(f"{where}: {name}: {e.message}") from e
    finally:
        parser.exit_on_error = exits  # type: ignore[attr-defined]
