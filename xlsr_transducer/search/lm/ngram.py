"""Back-off n-gram models over BPE tokens: from an ARPA file to a graph.

A state is the latest tokens, as far back as the model has n-grams for them.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import UNK, Tokenizer
from xlsr_transducer.search.token_graph import TokenGraph

# Ids of the language model's words: these two come first, and the ids of the tokens from <unk>,
# which is 2, are those of the tokenizer.
BEGIN, END = 0, 1
SPECIAL = ["<s>", "</s>", UNK]
BLANKS = " \t\r\n"  # between fields; other white space may belong to a word
LN_10 = math.log(10.0)

Ngrams = dict[tuple[int, ...], tuple[float, float]]


def words_of(tokens: list[str]) -> list[str]:
    """Returns the words of a language model for these tokens, in the order of their ids."""
    return [*SPECIAL[:2], *tokens[Tokenizer.unk_id :]]


def read_ngram_lm(path: Path, tokens: list[str]) -> TokenGraph:
    """Builds the graph of an ARPA file, with natural logarithms; it starts after `<s>`.

    Its n-grams may stand in any order, as KenLM, SRILM or stage 5 write them. A token that the
    file lacks weighs as much as `<unk>` or, without one, as the rarest token.

    Raises:
      UserError: no such file, a broken line, or n-grams of other tokens.
    """
    if not path.is_file():
        raise UserError(f"--ngram-lm {path}: no such file; stage 5 of ./prepare.sh makes one")
    try:
        _, ngrams = read_arpa(path, words_of(tokens))
        missing = [i for i in range(Tokenizer.unk_id, len(tokens)) if (i,) not in ngrams]
        _check_missing(ngrams, tokens, missing, path)
    except UserError as e:
        raise UserError(f"--ngram-lm {e}") from e
    return _graph(ngrams, len(tokens), missing)


def read_arpa(path: Path, words: list[str] | None = None) -> tuple[list[str], Ngrams]:
    """Returns the words of an ARPA file, and (log-prob, back-off weight) of every n-gram, as word
    ids.

    Args:
      words: what the unigrams may be, by id; None: whatever there is, numbered as it comes.

    Raises:
      UserError: a broken file, or other words.
    """
    try:
        return _read_arpa(path, words)
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not an ARPA file ({e})") from e


def _read_arpa(path: Path, words: list[str] | None) -> tuple[list[str], Ngrams]:
    ids = {word: i for i, word in enumerate(words or SPECIAL[:2])}
    found: Ngrams = {}
    order, is_complete = 0, False
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            line = line.strip(BLANKS)
            if line.startswith("\\"):
                section = re.fullmatch(r"\\(\d+)-grams:", line, re.IGNORECASE)
                order = int(section[1]) if section else 0
                is_complete = line.lower() == "\\end\\"
            elif line and order:
                fields = [field for field in re.split(f"[{BLANKS}]", line) if field]
                names = [_plain(word, ids) for word in fields[1 : order + 1]]
                if order == 1 and words is None:
                    ids.update((name, len(ids)) for name in names if name not in ids)
                elif order == 1 and names and names[0] not in ids:
                    raise UserError(_of_others(path, number, f"has no {names[0]!r}"))
                try:
                    ngram = tuple(ids[name] for name in names)
                    prob, backoff = map(float, (fields[0], *(fields[order + 1 :] or "0")))
                    if len(ngram) < order or ngram in found or math.isnan(prob + backoff):
                        raise ValueError
                except (KeyError, ValueError):
                    raise UserError(f"{path} line {number}: no n-gram of {order} of the "
                                    f"model's words, or twice: {line!r}") from None  # fmt: skip
                found[ngram] = (prob * LN_10, backoff * LN_10)
    if not is_complete or not found:
        raise UserError(f"{path}: not an ARPA file, or not all of one")
    return list(ids), found


def _plain(word: str, ids: dict[str, int]) -> str:
    """KenLM takes `<UNK>`, `<S>` and `</S>` for `<unk>`, `<s>` and `</s>`."""
    return word.lower() if word.lower() in SPECIAL and word not in ids else word


def _check_missing(ngrams: Ngrams, tokens: list[str], missing: list[int], path: Path) -> None:
    """Logs the tokens that the file lacks: rare ones may be missing from its text.

    BPE never leaves two pieces side by side that together are a piece: such a pair shows that
    another model, with fewer pieces, split the text.

    Raises:
      UserError: there is such a pair.
    """
    if not missing:
        return
    lacking = {tokens[i] for i in missing}
    for pair in (n for n in ngrams if len(n) == 2 and min(n) > Tokenizer.unk_id):
        joined = tokens[pair[0]] + tokens[pair[1]]
        if joined in lacking:
            raise UserError(_of_others(path, 0, f"joins {' '.join(tokens[i] for i in pair)!r}"))
    names = ", ".join(tokens[i] for i in missing[:5]) + ", ..." * (len(missing) > 5)
    logging.warning(f"{path}: lacks {len(missing)} of {len(tokens)} tokens, which weigh as much "
                    f"as {UNK}: {names}")  # fmt: skip


def _of_others(path: Path, line: int, how: str) -> str:
    where = f"{path} line {line}" if line else f"{path}"
    return (
        f"{where} belongs to other tokens than the model's, which {how}; "
        "make one with stage 5 of ./prepare.sh"
    )


def _graph(ngrams: Ngrams, vocab_size: int, missing: list[int]) -> TokenGraph:
    longest = max(map(len, ngrams))
    contexts = [(), *(n for n in ngrams if len(n) < longest and n[-1] != END)]
    contexts.sort(key=lambda context: (len(context), context))
    state_of = {context: state for state, context in enumerate(contexts)}

    def state_after(ngram: tuple[int, ...]) -> int:
        while ngram not in state_of:
            ngram = ngram[1:]
        return state_of[ngram]

    arcs: list[dict[int, tuple[int, float]]] = [{} for _ in contexts]
    for ngram, (weight, _) in ngrams.items():
        if ngram[-1] not in (BEGIN, END) and ngram[:-1] in state_of:
            arcs[state_of[ngram[:-1]]][ngram[-1]] = (state_after(ngram), weight)
    # Without an arc they would weigh nothing, which is more than any other token.
    rare = arcs[0].get(Tokenizer.unk_id) or (0, min((w for _, w in arcs[0].values()), default=0.0))
    arcs[0].update((token, rare) for token in (Tokenizer.sos_id, *missing))
    backoff = [(0, 0.0), *((state_after(c[1:]), ngrams[c][1]) for c in contexts[1:])]
    # Where a stream ends is not the speaker's choice alone: ending costs nothing.
    final = [0.0] * len(contexts)
    return TokenGraph.build(vocab_size, arcs, backoff, final, state_of.get((BEGIN,), 0))
