"""Hotwords: phrases whose tokens a search prefers, as an Aho-Corasick automaton.

Every token that continues a phrase is lent a bonus at once, so that the beam keeps it; a
phrase that comes to its end keeps what it was lent, one that does not gives it back. A phrase
that continues another one (`ab`, `abc`) earns the tokens they share once.

A. V. Aho, M. J. Corasick, "Efficient string matching", 1975. Bonus and refund as in icefall.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search.token_graph import TokenGraph


def context_graph(phrases: Sequence[tuple[Sequence[int], float]], vocab_size: int) -> TokenGraph:
    """Builds the graph of ``phrases``: token ids and the bonus of each token.

    Where phrases begin alike, the larger bonus counts for the tokens they share.
    """
    children: list[dict[int, int]] = [{}]
    bonus, is_end = [0.0], [False]
    for tokens, score in phrases:
        node = 0
        for token in tokens:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                bonus.append(score)
                is_end.append(False)
            node = children[node][token]
            bonus[node] = max(bonus[node], score)
        is_end[node] = node > 0
    lent, earned, fail = _links(children, bonus, is_end)
    arcs = [
        {token: (child, lent[child] + earned[child] - lent[node]) for token, child in c.items()}
        for node, c in enumerate(children)
    ]
    backoff = [(up, lent[up] - lent[node]) for node, up in enumerate(fail)]
    return TokenGraph.build(vocab_size, arcs, backoff, [-x for x in lent])


def _links(
    children: list[dict[int, int]], bonus: list[float], is_end: list[bool]
) -> tuple[list[float], list[float], list[int]]:
    """Per node: what it has been lent, what reaching it earns, its longest proper suffix."""
    lent, earned, fail = ([0.0] * len(children), [0.0] * len(children), [0] * len(children))
    queue = deque([0])
    while queue:
        node = queue.popleft()
        for token, child in children[node].items():
            up = fail[node]
            while up and token not in children[up]:
                up = fail[up]
            # The root's children have the root as their suffix, not themselves.
            fail[child] = children[up].get(token, 0) if node else 0
            total = lent[node] + bonus[child]
            lent[child], own = (0.0, total) if is_end[child] else (total, 0.0)
            earned[child] = own + earned[fail[child]]
            queue.append(child)
    return lent, earned, fail


def read_context_file(path: Path, tokenizer: Tokenizer, score: float) -> TokenGraph:
    """Builds the graph of a file with one phrase a line, or `phrase :score` for another bonus.

    Raises:
      UserError: no such file, no phrase in it, or a line that the tokens cannot spell.
    """
    if not path.is_file():
        raise UserError(f"--context-file {path}: no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f"--context-file {path}: not UTF-8 text ({e})") from e
    phrases = [
        phrase_tokens(line, tokenizer, score, f"{path} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not phrases:
        raise UserError(f"--context-file {path}: no phrase in it")
    return context_graph(phrases, tokenizer.vocab_size)


def phrase_tokens(
    line: str, tokenizer: Tokenizer, score: float, where: str
) -> tuple[list[int], float]:
    """Returns the tokens of `phrase` or `phrase :score`, and the bonus of each of them.

    Args:
      score: the bonus where none is given.
      where: the line, for messages.

    Raises:
      UserError: the score is no number, or the tokens cannot spell the phrase.
    """
    given = re.fullmatch(r"(.*?)\s*(?:(?:^|\s):(\S+))?", line.strip())
    text = " ".join(given.group(1).split())
    if given.group(2) is not None:
        try:
            score = float(given.group(2))
        except ValueError:
            score = math.nan
        if not abs(score) <= 1000:
            raise UserError(f"{where}: ':{given.group(2)}' is not a number from -1000 to 1000")
    if not text:
        raise UserError(f"{where}: a score without a phrase")
    [tokens, lower] = tokenizer.encode([text, text.lower()])
    if tokenizer.unk_id in tokens:
        unknown = next(c for c in text if tokenizer.unk_id in tokenizer.encode([c])[0])
        hint = "" if tokenizer.unk_id in lower else f"; the model knows {text.lower()!r}"
        raise UserError(f"{where}: the model has no token for {unknown!r} in {text!r}{hint}")
    return tokens, score
