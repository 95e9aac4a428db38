"""Training of a language model: epochs, validation by perplexity, checkpoints that resume."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.lm_text import Sentences
from xlsr_transducer.search.lm.checkpoint import BEST, lm_content, read_lm
from xlsr_transducer.search.lm.model import LanguageModel, LmOptions
from xlsr_transducer.training.metrics import append_history


@dataclasses.dataclass(frozen=True)
class LmTrainOptions(Options):
    """Training run."""

    exp_dir: Path = option(Path("exp/lm"), "where checkpoints and logs go")
    num_epochs: int = option(20, "last epoch to train", at_least=1)
    start_epoch: int = option(
        1, "epoch to start with; above 1 it loads the epoch before", at_least=1
    )
    batch_tokens: int = option(4000, "tokens per batch, with padding", at_least=1)
    base_lr: float = option(0.002, "learning rate at the start; it falls to 0 in a line", above=0)
    weight_decay: float = option(0.01, "AdamW's decay", at_least=0)
    clip_grad: float = option(1.0, "longest gradient of the loss per token", above=0)
    seed: int = option(42, "seed of weights, order of sentences and dropout", at_least=0)


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """How well a text is predicted; each sentence's end is predicted like a token or word."""

    loss: float  # nats of the whole text
    num_predictions: int  # tokens and ends
    num_words: int  # words and ends

    @property
    def per_token(self) -> float:
        return math.exp(min(self.loss / self.num_predictions, 700.0))

    @property
    def per_word(self) -> float:
        return math.exp(min(self.loss / self.num_words, 700.0))

    def describe(self) -> str:
        return f"perplexity {self.per_token:.2f} per token, {self.per_word:.1f} per word"


@torch.no_grad()
def perplexity(model: LanguageModel, text: Sentences, batch_tokens: int) -> Perplexity:
    """Of ``text``, without dropout."""
    model.eval()
    device = model.output.weight.device
    loss = 0.0
    for which in text.batches(batch_tokens, order=None):
        tokens, lens = text.batch(which)
        loss -= float(model(tokens.to(device), lens.to(device)).double().sum())
    return Perplexity(loss, text.num_predictions, text.num_words + len(text))


class LmTrainer:
    """Trains one language model; everything it knows can be saved and restored."""

    def __init__(
        self,
        model: LanguageModel,
        lm_options: LmOptions,
        tokens: list[str],
        train: Sentences,
        valid: Sentences,
        options: LmTrainOptions,
        device: torch.device,
    ):
        self.model = model.to(device)
        self.lm_options, self.tokens = lm_options, tokens
        self.train, self.valid, self.options, self.device = train, valid, options, device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), options.base_lr, weight_decay=options.weight_decay
        )
        self.epoch = 1
        self.best = float("inf")  # loss per token

    def run(self) -> None:
        """Trains to the last epoch."""
        logging.info(
            f"training on {len(self.train)} sentences, {len(self.train.tokens)} tokens; "
            f"validation on {len(self.valid)} sentences, {len(self.valid.tokens)} tokens"
        )
        while self.epoch <= self.options.num_epochs:
            trained = self._train_epoch()
            self._finish_epoch(trained)
        logging.info(f"done; best validation perplexity {math.exp(self.best):.2f} per token")

    def _train_epoch(self) -> Perplexity:
        self.model.train()
        order = np.random.default_rng([self.options.seed, self.epoch])
        batches = self.train.batches(self.options.batch_tokens, order)
        loss = 0.0
        for i, which in enumerate(
            tqdm(batches, desc=f"epoch {self.epoch}", unit="batch", disable=None)
        ):
            done = (self.epoch - 1 + i / len(batches)) / self.options.num_epochs
            self.optimizer.param_groups[0]["lr"] = self.options.base_lr * (1 - done)
            loss += self._step(*self.train.batch(which))
        ends = len(self.train)
        return Perplexity(loss, self.train.num_predictions, self.train.num_words + ends)

    def _step(self, tokens: Tensor, lens: Tensor) -> float:
        """One update of the weights; returns the loss of the batch in nats."""
        loss = -self.model(tokens.to(self.device), lens.to(self.device)).sum()
        self.optimizer.zero_grad(set_to_none=True)
        (loss / int((lens + 1).sum())).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_grad)
        self.optimizer.step()
        return float(loss.detach())

    def _finish_epoch(self, trained: Perplexity) -> None:
        """Validates, keeps the best, saves the epoch, and moves on."""
        epoch, folder = self.epoch, self.options.exp_dir
        valid = perplexity(self.model, self.valid, self.options.batch_tokens)
        logging.info(f"epoch {epoch}: train {trained.describe()}; valid {valid.describe()}")
        loss = valid.loss / valid.num_predictions
        is_best = loss < self.best
        self.best = min(self.best, loss)
        self.epoch = epoch + 1
        content = self._content()
        save_atomically(content, folder / f"epoch-{epoch}.pt")
        if is_best:
            save_atomically(content, folder / BEST)
        record: dict[str, Any] = {"epoch": epoch}
        for name, found in (("train", trained), ("valid", valid)):
            record[name] = {"per_token": found.per_token, "per_word": found.per_word}
        append_history(folder / "history.json", record)

    def _content(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            **lm_content(self.model, self.lm_options, self.tokens),
            "epoch": self.epoch,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def restore(self, path: Path) -> None:
        """Resumes from a checkpoint of this run."""
        content = read_lm(path)
        if content["lm_options"] != dataclasses.asdict(self.lm_options):
            raise UserError(f"{path}: was trained with other model options than the ones given")
        if content["tokens"] != self.tokens:
            raise UserError(f"{path}: was trained with another BPE model")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"]["cpu"])
        if content["random"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["random"]["cuda"])
        self.epoch, self.best = content["epoch"], content["best"]
        logging.info(f"resumed from {path}: epoch {self.epoch}")
