"""Heads: what reads the encoder. Each has its loss here, its search in ``search``, its files in
``exporting``; ``SpeechModel`` joins them to an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from xlsr_transducer.model.heads.base import HEADS, Head, Losses, LossOptions
from xlsr_transducer.model.heads.classifier import ClassifierHead, ClassifierOptions
from xlsr_transducer.model.heads.ctc import CtcHead
from xlsr_transducer.model.heads.transducer import TransducerHead, TransducerOptions

__all__ = [
    "HEADS",
    "ClassifierHead",
    "ClassifierOptions",
    "Head",
    "Losses",
    "LossOptions",
    "TransducerOptions",
    "make_heads",
]


def make_heads(
    names: Sequence[str],
    width: int,
    options: TransducerOptions,
    vocab_size: int,
    dropout: float = 0.0,
    classifier: ClassifierOptions = ClassifierOptions(),  # noqa: B008  frozen
) -> dict[str, Head]:
    """Returns the heads ``names`` over encoder output of ``width``, in the order of ``HEADS``.

    Args:
      options: of the transducer, if it is one of them.
      dropout: of its decoder output.
      classifier: options of the classifier, if it is one of them.
    """
    makers = {
        "transducer": lambda: TransducerHead(width, options, vocab_size, dropout),
        "ctc": lambda: CtcHead(width, vocab_size),
        "classifier": lambda: ClassifierHead(width, vocab_size, classifier),
    }
    return {name: makers[name]() for name in HEADS if name in names}
