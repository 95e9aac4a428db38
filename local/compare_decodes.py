"""Do two decodes agree, token by token and frame by frame?

    python -m local.compare_decodes exp/greedy_search exp/streaming/greedy_search

A and B are tokens-*.jsonl files, or folders that hold them. Exit status 0: identical; 1: the
differences are listed; 2: there is nothing to compare.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.options import Parser

Key = tuple[str, str]  # (set, utterance id)


def read(path: Path) -> dict[Key, dict]:
    """All utterances of a tokens file, or of all tokens files in a folder.

    Raises:
      UserError: no file, a line that is no such record, or an utterance that occurs twice.
    """
    files = sorted(path.glob("tokens-*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no tokens-*.jsonl here; decode writes them beside recogs-*.txt")
    found: dict[Key, dict] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                key = entry["set"], entry["id"]
                entry["tokens"], entry["frames"], entry["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as e:
                raise UserError(f"{file}:{number}: not a record of decoded tokens") from e
            if key in found:
                raise UserError(
                    f"{file}:{number}: {key[1]} of {key[0]} occurs a second time; "
                    "name one file instead of the folder"
                )
            found[key] = entry
    return found


def difference(a: dict, b: dict) -> str | None:
    """The first token or time in which two records differ, in words; None if there is none."""
    if ("unread" in a) != ("unread" in b):
        reason = a.get("unread", b.get("unread"))
        return f"could not be read in {'A' if 'unread' in a else 'B'} ({reason})"
    for what, unit in (("tokens", "token"), ("frames", "time of token")):
        if a[what] == b[what]:
            continue
        pairs = zip(a[what], b[what])
        at = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
        if at is None:
            return f"{len(a[what])} against {len(b[what])} tokens"
        return f"{unit} {at}: {a[what][at]} against {b[what][at]}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, help="tokens file or folder of the first decode")
    parser.add_argument("b", type=Path, help="tokens file or folder of the second decode")
    args = parser.parse_args(argv)
    a, b = read(args.a), read(args.b)
    if not a and not b:
        raise UserError(f"{args.a} and {args.b} hold no utterances")
    num_bad = 0
    for key in sorted(a.keys() | b.keys()):
        name = " ".join(key)
        if key not in a or key not in b:
            num_bad += 1
            print(f"{name}: only in {args.a if key in a else args.b}")
            continue
        what = difference(a[key], b[key])
        if what:
            num_bad += 1
            print(f"{name}: {what}\n  A: {a[key]['text']}\n  B: {b[key]['text']}")
    total = len(a.keys() | b.keys())
    if num_bad:
        print(f"{num_bad} of {total} utterances differ")
        return 1
    unread = sum("unread" in entry for entry in a.values())
    print(
        f"{total} utterances identical in tokens and times"
        + (f", of which {unread} could not be read" if unread else "")
    )
    return 0


if __name__ == "__main__":
    run_command(main)
