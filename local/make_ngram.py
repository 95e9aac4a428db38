"""Stage 5: an n-gram model of the BPE tokens, from the training text or another one.

    python -m local.make_ngram --data-dir data --lang-dir data/lang_bpe_2500 [--lm-text FILE]

writes LANG_DIR/ngram_ORDER.arpa, or for stage 7, with `--unit word`, a model of the words,
LANG_DIR/word_ngram_ORDER.arpa: interpolated modified Kneser-Ney (S. F. Chen, J. Goodman, "An
empirical study of smoothing techniques for language modeling", 1999). The unigrams of
tokens are `<s>`, `</s>` and then all tokens but blank and sos/eos. Words are those of the
training text and of the other one.

Letters: K n-grams of one order, V words of the language model, L words of the text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, word
from xlsr_transducer.data.lm_text import read_texts, texts_of
from xlsr_transducer.data.sources import note_source, text_digest
from xlsr_transducer.data.text import TextNormalizer
from xlsr_transducer.data.text_options import add_text_options, read_record, text_options
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search.lm.ngram import BEGIN, END, words_of

# The words that every model of words begins with, in the order of their ids.
SPECIAL = ["<s>", "</s>", "<unk>"]

# Discounts for counts 1, 2, 3 and more where the text is too small to estimate them.
FALLBACK = (0.5, 1.0, 1.5)


@dataclass
class Level:
    """All n-grams of one order that occur, by increasing (prefix, last word)."""

    prefix: np.ndarray  # (K,) place of its first n - 1 words in the level below
    last: np.ndarray  # (K,) its last word
    suffix: np.ndarray  # (K,) place of its last n - 1 words in the level below
    begins: np.ndarray  # (K,) bool, whether its first word is BEGIN
    count: np.ndarray  # (K,) how often it occurs


def count_levels(sentences: Iterable[Sequence[int]], order: int) -> list[Level]:
    """N-grams of the orders 1 to ``order`` of sentences of word ids, BEGIN and END around them."""
    rows = [np.array([BEGIN, *s, END], dtype=np.int64) for s in sentences]
    if not rows:
        raise UserError("there is no text to make a language model of")
    words = np.concatenate(rows)
    left = np.concatenate([np.arange(len(r), 0, -1) for r in rows])  # to the sentence's end
    num_words = int(words.max()) + 1
    levels: list[Level] = []
    below, start = np.zeros(len(words), dtype=np.int64), np.arange(len(words))
    for n in range(1, order + 1):
        start = start[left[start] >= n]
        keys = below[start] * num_words + words[start + n - 1]
        unique, first, place, count = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        at = start[first]
        suffix = below[at + 1] if n > 1 else np.zeros(len(at), dtype=np.int64)
        levels.append(
            Level(unique // num_words, unique % num_words, suffix, words[at] == BEGIN, count)
        )
        below = np.full(len(words) + 1, -1)
        below[start] = place.reshape(-1)
    return levels


def discounts(count: np.ndarray) -> np.ndarray:
    """(4,) what is taken off counts of 0, 1, 2, and 3 or more (Chen and Goodman, equation 26)."""
    n1, n2, n3, n4 = (int((count == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return np.array([0.0, *FALLBACK])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    good = (found[1:] > 0).all() and (found <= np.arange(4)).all()
    return found if good else np.array([0.0, *FALLBACK])


def estimate(levels: list[Level], num_words: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probability of each n-gram's last word, and back-off factor of each n-gram, by order.

    For unigrams there is a probability for each of the ``num_words`` words.
    Orders below the highest count by how many different words an n-gram is preceded.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    lower = np.full(1, 1.0 / (num_words - 1))  # all words but BEGIN
    for n, level in enumerate(levels, start=1):
        count = level.count
        if n < len(levels):
            preceded = np.bincount(levels[n].suffix, minlength=len(count))
            count = np.where(level.begins & (n > 1), count, preceded)
        if n == 1:
            count = np.where(level.last == BEGIN, 0, count)
        discount = discounts(count)[np.minimum(count, 3)]
        size = 1 if n == 1 else len(levels[n - 2].count)
        total = np.bincount(level.prefix, weights=count, minlength=size)
        taken = np.bincount(level.prefix, weights=discount, minlength=size)
        share = np.divide(taken, total, out=np.ones(size), where=total > 0)
        if n > 1:
            found[-1] = (found[-1][0], share)
        top = np.maximum(total, 1)[level.prefix]
        prob = (count - discount) / top + share[level.prefix] * lower[level.suffix]
        found.append((prob, np.ones(len(count))))
        if n == 1:  # the words that do not occur too
            unigrams = np.full(num_words, share[0] * lower[0])
            unigrams[level.last] = prob
        lower = prob
    return [(unigrams, found[0][1]), *found[1:]]


def write_arpa(
    path: Path,
    levels: list[Level],
    estimates: list[tuple[np.ndarray, np.ndarray]],
    words: list[str],
) -> None:
    """The model in the ARPA format: log10 of probabilities and back-off factors."""
    first = levels[0]
    names = [words[w] for w in first.last]
    factors = np.ones(len(words))
    factors[first.last] = estimates[0][1]
    with replacing(path) as [temporary], open(temporary, "w", encoding="utf-8") as f:
        f.write("\\data\\\n")
        for n, level in enumerate(levels, start=1):
            f.write(f"ngram {n}={len(words) if n == 1 else len(level.count)}\n")
        f.write("\n\\1-grams:\n")
        for word, prob, factor in zip(words, estimates[0][0], factors):
            shown = -99.0 if word == words[BEGIN] else np.log10(prob)
            f.write(f"{shown:.7g}\t{word}\t{np.log10(factor):.7g}\n")
        for n, (level, (prob, factor)) in enumerate(zip(levels[1:], estimates[1:]), start=2):
            names = [f"{names[p]} {words[w]}" for p, w in zip(level.prefix, level.last)]
            f.write(f"\n\\{n}-grams:\n")
            for name, p, b in zip(names, np.log10(prob), np.log10(factor)):
                f.write(f"{p:.7g}\t{name}" + (f"\t{b:.7g}\n" if n < len(levels) else "\n"))
        f.write("\n\\end\\\n")


def numbered(texts: Iterable[str], ids: dict[str, int]) -> Iterator[list[int]]:
    """The word ids of each text; a new word gets the next free one."""
    for text in texts:
        yield [
            SPECIAL.index("<unk>") if word in SPECIAL else ids.setdefault(word, len(ids))
            for word in text.split()
        ]


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--lang-dir", type=Path, required=True)
    parser.add_argument(
        "--ngram-order",
        type=Number(int, at_least=1, at_most=9),
        default=3,
        help="words of the longest n-grams",
    )
    parser.add_argument("--lm-text", type=Path, help="a sentence a line (default: training text)")
    parser.add_argument("--unit", choices=("token", "word"), default="token")
    parser.add_argument("--lang", type=word, default="et", help="language of the text")
    add_text_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    order = args.ngram_order
    tokenizer = Tokenizer.load(args.lang_dir)
    if args.lm_text:
        options = text_options(args, read_record(args.data_dir))
        texts = read_texts(args.lm_text, TextNormalizer(options, args.lang))
    else:
        texts = texts_of(args.data_dir, "train")
    if args.unit == "word":
        ids = {word: i for i, word in enumerate(SPECIAL)}
        levels = count_levels(numbered(texts, ids), order)
        for _ in numbered(texts_of(args.data_dir, "train"), ids):
            pass  # words of the training text that the other one lacks
        words = list(ids)
        path = args.lang_dir / f"word_ngram_{order}.arpa"
    else:
        # BEGIN, END, then the tokens from <unk> on, whose ids are those of the tokenizer.
        words = words_of(tokenizer.tokens)
        levels = count_levels((tokenizer.encode([t])[0] for t in texts), order)
        path = args.lang_dir / f"ngram_{order}.arpa"
    write_arpa(path, levels, estimate(levels, len(words)), words)
    note_source(args.lang_dir, path.name, "" if args.lm_text else text_digest(args.data_dir))
    counts = ", ".join(str(len(level.count)) for level in levels)
    logging.info("%s: n-grams of each order that occur: %s", path, counts)


if __name__ == "__main__":
    run_command(main)
