"""Measures of a training: sums of losses, speed, history, curves."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.files import replacing, write_text
from xlsr_transducer.model.heads import Losses
from xlsr_transducer.training.distributed import Process

MOST_NAMES = 16  # of groups beside their curves


@dataclasses.dataclass
class LossSums:
    """Sums of losses in nats over utterances, and over what they are divided by."""

    simple: float = 0.0
    pruned: float = 0.0
    ctc: float = 0.0
    consistency: float = 0.0
    classifier: float = 0.0
    layers: float = 0.0
    logits: float = 0.0
    tokens: int = 0
    utterances: int = 0
    seconds: float = 0.0
    nonfinite: int = 0  # utterances whose loss was not finite; not in the sums
    unread: int = 0  # utterances that could not be read
    too_large: int = 0  # batches that did not fit into memory
    lost_updates: int = 0  # steps without an update, as the gradient was not finite

    def add(self, losses: Losses, is_finite: Tensor, tokens: Tensor, seconds: float) -> None:
        """Takes in a batch; ``is_finite`` (N,) bool chooses the utterances that count."""
        kept = torch.stack([x.detach().double() for x in losses])
        kept = kept.masked_fill(~is_finite, 0.0).sum(1).tolist()
        for name, value in zip(Losses._fields, kept):
            setattr(self, name, getattr(self, name) + value)
        self.tokens += int((tokens * is_finite).sum())
        self.utterances += int(is_finite.sum())
        self.nonfinite += int((~is_finite).sum())
        self.seconds += seconds

    def merge(self, other: LossSums) -> None:
        """Adds the sums of ``other``."""
        for field in dataclasses.fields(self):
            name = field.name
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def over_all(self, process: Process) -> LossSums:
        """The sums over all processes."""
        kinds = [type(f.default) for f in dataclasses.fields(self)]
        values = process.sum([float(value) for value in dataclasses.astuple(self)])
        return LossSums(*[kind(value) for kind, value in zip(kinds, values)])

    def per_token(self) -> dict[str, float]:
        """Losses per token, in nats."""
        count = max(self.tokens, 1)
        sums = {name: getattr(self, name) for name in Losses._fields}
        return {name: value / count for name, value in sums.items() if value}

    def describe(self) -> str:
        """``simple 1.20, pruned 0.90 per token``, and what went wrong, if anything did."""
        text = ", ".join(f"{k} {v:.4f}" for k, v in self.per_token().items())
        text += " per utterance" if self.classifier else " per token"  # a label is a token
        if self.unread:
            text += f", {self.unread} utterances not read"
        if self.too_large:
            text += f", {self.too_large} batches too large for the memory"
        if self.nonfinite:
            text += f", loss of {self.nonfinite} utterances not finite"
        if self.lost_updates:
            text += f", gradient of {self.lost_updates} steps not finite"
        return text


class Clock:
    """Seconds of audio per second, and how long the rest will take."""

    def __init__(self, done_seconds: float):
        self.start_done = done_seconds
        self.start = time.monotonic()

    def speed(self, done_seconds: float, left_seconds: float) -> tuple[float, str]:
        """Seconds of audio per second since the start, and the time that ``left_seconds`` of audio
        will take as ``1:02:03``."""
        elapsed = max(time.monotonic() - self.start, 1e-9)
        rate = (done_seconds - self.start_done) / elapsed
        return rate, str(datetime.timedelta(seconds=int(left_seconds / max(rate, 1e-9))))


def append_history(path: Path, record: dict) -> list[dict]:
    """Adds an epoch's record to a JSON file, replacing one of the same epoch; returns all."""
    records = json.loads(path.read_text()) if path.is_file() else []
    records = [r for r in records if r["epoch"] < record["epoch"]] + [record]
    write_text(path, json.dumps(records, indent=1) + "\n")
    return records


def main_loss(per_token: dict[str, float]) -> str:
    """Returns the name of the loss to look at, of those that a model has."""
    return next((name for name in ("pruned", "ctc", "classifier") if name in per_token), "pruned")


def error_name(per_token: dict[str, float]) -> str:
    """Returns the name of the error of a model with these losses: that of labels, or of words."""
    return "label error" if "classifier" in per_token else "WER"


def plot_history(records: list[dict], path: Path):
    """Draws losses, validation error and group weights, if there are any, over the epochs as PNG;
    returns the figure."""
    from matplotlib.figure import Figure

    groups = sorted({name for r in records for name in r.get("group_weights", {})})
    figure = Figure(figsize=(13.5 if groups else 9, 3.5), layout="tight")
    losses, errors, *others = figure.subplots(1, 3 if groups else 2)
    epochs = [r["epoch"] for r in records]
    measured = records[0]["train"] if records else {}
    main = main_loss(measured)
    for name in ("train", "valid"):
        losses.plot(epochs, [r[name].get(main) for r in records], "o-", ms=3, label=name)
    losses.set(xlabel="epoch", ylabel=f"{main} loss per token (nats)")
    losses.legend()
    errors.plot(epochs, [r["wer"] for r in records], "o-", ms=3, label="all")
    for name in sorted({name for r in records for name in r.get("languages", ())}):
        rates = [r.get("languages", {}).get(name, math.nan) for r in records]
        errors.plot(epochs, rates, "o-", ms=2, lw=1, label=name)
    if len(errors.lines) > 1:
        errors.legend(fontsize=7)
    name = {"WER": "WER (%), greedy"}.get(error_name(measured), "label error (%)")
    errors.set(xlabel="epoch", ylabel=f"validation {name}", ylim=(0, None))
    for weights in others:
        for name in groups:
            q = [r.get("group_weights", {}).get(name) for r in records]
            weights.plot(epochs, q, "o-", ms=3, label=name)
        weights.set(xlabel="epoch", ylabel="group weights", ylim=(0, None))
        if len(groups) <= MOST_NAMES:
            weights.legend(fontsize="small")
    for axis in (losses, errors, *others):
        axis.grid(alpha=0.3)
    with replacing(path) as [temporary]:
        figure.savefig(temporary, dpi=120, format="png")
    return figure
