"""Presets: files of options, ``--conf FILE``, over which the command line has the last word.

A preset is YAML, one option a line: ``base_lr: 0.001``, in the names that ``--help`` shows, with
dashes or underscores. Nothing but plain values is read; they are spelt as on the command line.
``base: FILE`` takes over what another preset has, beside this one, and this one does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Parser, did_you_mean, flag_of

BASE = "base"


def parse_with_preset(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses ``argv``; what it does not give comes from the file of ``--conf``, if it has one.

    Raises:
      UserError: the file has an unknown option or a wrong value; names file and line.
    """
    args = parser.parse_args(argv)
    if args.conf is None:
        return args
    parser.set_defaults(**read_preset(args.conf, parser))
    return parser.parse_args(argv)


def read_preset(path: Path, parser: Parser) -> dict[str, Any]:
    """Returns the options of a preset, by name with underscores, as ``parser`` converts them.

    Raises:
      UserError: what is wrong with it, or with one that it is based on; names file and line.
    """
    return _read(path, parser, ())


def _read(path: Path, parser: Parser, above: tuple[Path, ...]) -> dict[str, Any]:
    """``read_preset`` of a file on which the files ``above`` are based."""
    known = vars(parser.parse_args([])).keys() - {"conf"}
    values: dict[str, Any] = {}
    base: dict[str, Any] = {}
    for name, text, line in _lines(path):
        where, name = f"{path}:{line}", name.replace("-", "_")
        if name == BASE and not base:
            base = _read(_base(path, text, where, above), parser, (path, *above))
            continue
        if name not in known:
            raise UserError(f"{where}: there is no option {name!r}{did_you_mean(name, known)}")
        if name in values:
            raise UserError(f"{where}: {name} is given twice")
        values[name] = _converted(parser, name, text, where)
    return {**base, **values}


def _base(path: Path, text: str, where: str, above: tuple[Path, ...]) -> Path:
    """The file that ``base: text`` in ``path`` names, on which the files ``above`` are not
    based."""
    file = path.parent / text
    if not file.is_file():
        raise UserError(f"{where}: base {text}: there is no such file")
    if any(file.samefile(other) for other in (path, *above)):
        raise UserError(f"{where}: {text} leads back to this file")
    return file


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


def _converted(parser: Parser, name: str, text: str, where: str) -> Any:
    try:
        return getattr(parser.parse_args([f"{flag_of(name)}={text}"]), name)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
