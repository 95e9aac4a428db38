"""The text of a language model: where it comes from, as tokens, in batches.

Letters: N sentences of a batch, S tokens of the longest of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from lhotse import SupervisionSegment
from torch import Tensor
from tqdm import tqdm

from xlsr_transducer.core import compat  # noqa: F401  it switches TF32 off
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.flaws import flaw
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.data.text import TextNormalizer
from xlsr_transducer.data.tokenizer import Tokenizer

ENCODED_AT_ONCE = 10000  # texts
POOL = 100  # batches whose sentences are sorted by length together


def read_texts(path: Path, normalizer: TextNormalizer) -> Iterator[str]:
    """The normalized lines of a text file, without empty ones.

    Raises:
      UserError: no such file, or not text.
    """
    if not path.is_file():
        raise UserError(f"--lm-text {path}: no such file")
    try:
        with open(path, encoding="utf-8") as f:
            yield from filter(None, map(normalizer, f))
    except UnicodeDecodeError as e:
        raise UserError(f"--lm-text {path}: not UTF-8 text ({e})") from e


def texts_of(data_dir: Path, role: str) -> Iterator[str]:
    """The normalized texts of the splits of a role, ``train`` or ``val``."""
    for supervision in _supervisions(data_dir, role):
        yield supervision.text


def languages_of(data_dir: Path, role: str) -> list[str]:
    """Returns the languages of the splits of a role, in alphabetical order.

    Raises:
      UserError: an utterance has none.
    """
    found = {supervision.language or "" for supervision in _supervisions(data_dir, role)}
    if "" in found:
        raise UserError(
            f"{data_dir}: utterances of {role} have no language: run ./prepare.sh from stage 1 "
            "with lists given as LANG=FILE"
        )
    return sorted(found)


def _supervisions(data_dir: Path, role: str) -> Iterator[SupervisionSegment]:
    for split in load_splits(data_dir)[role]:
        path = data_dir / "manifests" / f"cuts_{split}.jsonl.gz"
        if not path.is_file():
            raise UserError(f"{path} is missing: stage 2 of ./prepare.sh makes it")
        for cut in load_cuts(path):
            if not flaw(cut, from_waveform=True):
                yield cut.supervisions[0]


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Sentences as tokens, one after the other."""

    tokens: np.ndarray  # int32
    starts: np.ndarray  # int64, of each sentence, and where the last one ends
    num_words: int

    @staticmethod
    def encode(texts: Iterable[str], tokenizer: Tokenizer, name: str) -> Sentences:
        """Raises UserError if there are none; ``name`` says what they are."""
        rows: list[np.ndarray] = []
        num_words = 0
        texts = iter(tqdm(texts, desc=f"{name} text", unit="sentence", disable=None))
        while part := list(islice(texts, ENCODED_AT_ONCE)):
            rows += [np.array(ids, dtype=np.int32) for ids in tokenizer.encode(part)]
            num_words += sum(len(text.split()) for text in part)
        if not rows:
            raise UserError(f"there is no {name} text to make a language model with")
        starts = np.cumsum([0, *map(len, rows)])
        return Sentences(np.concatenate(rows), starts, num_words)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def num_predictions(self) -> int:
        """Tokens, and an end for each sentence."""
        return len(self.tokens) + len(self)

    def batch(self, which: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens (N, S) int64, padded with unk, and their numbers (N,)."""
        lens = self.starts[which + 1] - self.starts[which]
        column = np.arange(lens.max())
        inside = column < lens[:, None]
        padded = np.full(inside.shape, Tokenizer.unk_id, dtype=np.int64)
        padded[inside] = self.tokens[(self.starts[which][:, None] + column)[inside]]
        return torch.from_numpy(padded), torch.from_numpy(lens)

    def batches(self, batch_tokens: int, order: np.random.Generator | None) -> list[np.ndarray]:
        """Sentences of each batch: similar in length, at most ``batch_tokens`` with padding.

        Args:
          order: shuffles sentences and batches; None: sorted by length.
        """
        lens = np.diff(self.starts) + 1
        which = np.arange(len(self)) if order is None else order.permutation(len(self))
        pool = len(self) if order is None else max(POOL * batch_tokens // int(lens.mean()), 1)
        found: list[np.ndarray] = []
        for start in range(0, len(self), pool):
            part = which[start : start + pool]
            part = part[np.argsort(lens[part], kind="stable")]
            found += _cut(part, lens[part], batch_tokens)
        if order is not None:
            found = [found[i] for i in order.permutation(len(found))]
        return found


def _cut(which: np.ndarray, lens: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cuts sentences, sorted by length, where rows times the longest would be too much."""
    cuts = [0]
    for i, length in enumerate(lens.tolist()):
        if (i - cuts[-1] + 1) * length > batch_tokens and i > cuts[-1]:
            cuts.append(i)
    return np.split(which, cuts[1:])
