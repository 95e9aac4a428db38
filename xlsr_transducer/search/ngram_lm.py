"""Back-off n-gram models over BPE tokens: from an ARPA file to a graph.

A state is what was said last, as far back as the model has n-grams for it.
"""

from __future__ import annotations

import math
from pathlib import Path

from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.errors import UserError
from xlsr_transducer.search.token_graph import TokenGraph

# Ids of the language model's words: these two come first, and the ids of the tokens from <unk>,
# which is 2, are those of the tokenizer.
BEGIN, END = 0, 1
LN_10 = math.log(10.0)

Ngrams = dict[tuple[int, ...], tuple[float, float]]


def words_of(tokens: list[str]) -> list[str]:
    """The words of a language model for these tokens, in the order of its unigrams."""
    return ["<s>", "</s>", *tokens[Tokenizer.unk_id :]]


def read_ngram_lm(path: Path, tokens: list[str]) -> TokenGraph:
    """The graph of an ARPA file, with natural logarithms; it starts behind `<s>`.

    Raises:
      UserError: no such file, a broken line, or unigrams that are not those of ``tokens``.
    """
    if not path.is_file():
        raise UserError(f"--ngram-lm {path}: no such file; stage 5 of ./prepare.sh makes one")
    try:
        _, ngrams = read_arpa(path, words_of(tokens))
    except UserError as e:
        raise UserError(f"--ngram-lm {e}") from e
    return _graph(ngrams, len(tokens))


def read_arpa(path: Path, words: list[str] | None = None) -> tuple[list[str], Ngrams]:
    """The words of an ARPA file, and (log-prob, back-off weight) of every n-gram, as word ids.

    Args:
      words: what the unigrams have to be; None: whatever there is.

    Raises:
      UserError: a broken file, or other words.
    """
    try:
        return _read_arpa(path, words)
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not an ARPA file ({e})") from e


def _read_arpa(path: Path, words: list[str] | None) -> tuple[list[str], Ngrams]:
    ids = {word: i for i, word in enumerate(words or ["<s>", "</s>"])}
    found: Ngrams = {}
    order, unigrams, is_complete = 0, [], False
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            line = line.strip()
            if line.startswith("\\"):
                if order == 1 and words is not None:
                    _check_words(unigrams, words, path)
                order = int(line[1]) if line.endswith("-grams:") and line[1].isdigit() else 0
                is_complete = line == "\\end\\"
            elif line and order:
                fields = line.split()
                if order == 1 and words is None:
                    ids.setdefault(" ".join(fields[1:2]), len(ids))
                try:
                    prob, *numbers = float(fields[0]), *map(float, fields[order + 1 :])
                    ngram = tuple(ids.get(w, -1) for w in fields[1 : order + 1])
                    if len(ngram) < order or len(numbers) > 1 or (order > 1 and min(ngram) < 0):
                        raise ValueError
                except ValueError:
                    raise UserError(f"{path} line {number}: no n-gram of {order} of the "
                                    f"model's words: {line!r}") from None  # fmt: skip
                if order == 1:
                    unigrams.append(fields[1])
                found[ngram] = (prob * LN_10, (numbers or [0.0])[0] * LN_10)
    if not is_complete or not found:
        raise UserError(f"{path}: not an ARPA file, or not all of one")
    return list(ids), found


def _check_words(unigrams: list[str], words: list[str], path: Path) -> None:
    """The model and the language model must mean the same by a token."""
    if unigrams == words:
        return
    how = f"{len(unigrams)} unigrams for {len(words)} words"
    for number, (word, wanted) in enumerate(zip(unigrams, words), start=1):
        if word != wanted:
            how = f"unigram {number} is {word!r}, not {wanted!r}"
            break
    raise UserError(
        f"{path} belongs to other tokens than the model's ({how}); "
        "make one with stage 5 of ./prepare.sh"
    )


def _graph(ngrams: Ngrams, vocab_size: int) -> TokenGraph:
    longest = max(map(len, ngrams))
    contexts = [(), *(n for n in ngrams if len(n) < longest and n[-1] != END)]
    contexts.sort(key=len)
    state_of = {context: state for state, context in enumerate(contexts)}

    def state_after(ngram: tuple[int, ...]) -> int:
        while ngram not in state_of:
            ngram = ngram[1:]
        return state_of[ngram]

    arcs: list[dict[int, tuple[int, float]]] = [{} for _ in contexts]
    for ngram, (weight, _) in ngrams.items():
        if ngram[-1] not in (BEGIN, END) and ngram[:-1] in state_of:
            arcs[state_of[ngram[:-1]]][ngram[-1]] = (state_after(ngram), weight)
    # No text holds it; without an arc it would weigh nothing, which is more than any other token.
    arcs[0][Tokenizer.sos_id] = arcs[0][Tokenizer.unk_id]
    backoff = [(0, 0.0), *((state_after(c[1:]), ngrams[c][1]) for c in contexts[1:])]
    # Where a stream ends is not the speaker's choice alone: ending costs nothing.
    final = [0.0] * len(contexts)
    return TokenGraph.build(vocab_size, arcs, backoff, final, state_of.get((BEGIN,), 0))
