"""Small language models, and what they compute by definition."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import torch

from local import make_ngram
from tests.support.random_searches import VOCAB
from xlsr_transducer.search.lm.model import LanguageModel, LmOptions
from xlsr_transducer.search.lm.ngram import words_of

NAMES = ["<blk>", "<sos/eos>", "<unk>", *(f"t{i}" for i in range(3, VOCAB))]


def tiny_lm(seed: int = 0, **options) -> LanguageModel:
    torch.manual_seed(seed)
    sizes = dict(embedding_dim=8, hidden_dim=16, num_layers=2, dropout=0.5) | options
    model = LanguageModel(VOCAB, LmOptions(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4
    return model


def sentences(number: int) -> list[list[int]]:
    """Some tokens often, some never (2 and 11), some after others; empty sentences too."""
    generator = random.Random(number)
    found: list[list[int]] = [[]]
    for _ in range(number):
        row: list[int] = []
        for _ in range(generator.randint(0, 7)):
            last = row[-1] if row else 3
            row.append(generator.choice([3, 4, 5, 6, 7, 8, 9, 10, last % 8 + 3, last % 8 + 3]))
        found.append(row)
    return found


class Plain:
    """Interpolated modified Kneser-Ney by its definition, word by word."""

    def __init__(self, rows: list[list[int]], order: int):
        rows = [[0, *row, 1] for row in rows]
        raw = [
            Counter(tuple(r[i : i + n]) for r in rows for i in range(len(r) - n + 1))
            for n in range(1, order + 1)
        ]
        self.counts = raw[:]
        for n in range(order - 1):
            self.counts[n] = Counter()
            for g in raw[n]:
                if g[0] == 0 and n:
                    self.counts[n][g] = raw[n][g]
                elif g != (0,):
                    self.counts[n][g] = sum(longer[1:] == g for longer in raw[n + 1])
        self.counts[0].pop((0,), None)
        self.fell_back = [self.discounts(c)[0] for c in self.counts]

    @staticmethod
    def discounts(counts: Counter) -> tuple[bool, list[float]]:
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        if n1 * n2 * n3:
            y = n1 / (n1 + 2 * n2)
            d = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if all(0 < x <= k for k, x in enumerate(d, start=1)):
                return False, d
        return True, [0.5, 1.0, 1.5]

    def prob(self, history: tuple[int, ...], word: int) -> float:
        counts = self.counts[len(history)]
        below = self.prob(history[1:], word) if history else 1 / (VOCAB - 1)
        follow = {g[-1]: c for g, c in counts.items() if g[:-1] == history}
        total = sum(follow.values())
        if not total:
            return below
        _, d = self.discounts(counts)
        taken = {w: d[min(c, 3) - 1] for w, c in follow.items()}
        own = follow[word] - taken[word] if word in follow else 0.0
        return own / total + sum(taken.values()) / total * below


def make_arpa(path: Path, rows: list[list[int]], order: int) -> Path:
    levels = make_ngram.count_levels(rows, order)
    make_ngram.write_arpa(path, levels, make_ngram.estimate(levels, VOCAB), words_of(NAMES))
    return path
