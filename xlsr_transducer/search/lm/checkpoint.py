"""Checkpoints of language models: configuration and tokens beside the weights, as plain values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import load_verified
from xlsr_transducer.search.lm.model import LanguageModel, LmOptions

FORMAT = 1
BEST = "best-valid-loss.pt"
KEYS = {"format", "lm_options", "tokens", "model"}


@dataclasses.dataclass(frozen=True)
class LoadedLm:
    """A language model ready to use, and the tokens whose ids it speaks of."""

    model: LanguageModel
    tokens: list[str]
    path: Path

    def require_tokens(self, tokens: list[str], whose: str) -> None:
        """Both models must mean the same by a token id.

        Raises:
          UserError: names both models, and the first token that they do not share.
        """
        if self.tokens == tokens:
            return
        how = f"it has {len(self.tokens)} tokens, not {len(tokens)}"
        for number, (ours, theirs) in enumerate(zip(self.tokens, tokens)):
            if ours != theirs:
                how = f"its token {number} is {ours!r}, not {theirs!r}"
                break
        raise UserError(
            f"the language model {self.path} was trained on other tokens than the model in "
            f"{whose} ({how}); train one with that model's BPE model (train_lm --lang-dir)"
        )


def lm_content(model: LanguageModel, options: LmOptions, tokens: list[str]) -> dict[str, Any]:
    """Returns what every checkpoint of a language model holds."""
    return {
        "format": FORMAT,
        "lm_options": dataclasses.asdict(options),
        "tokens": tokens,
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
    }


def read_lm(path: Path) -> dict[str, Any]:
    """Reads and checks a checkpoint.

    Raises:
      UserError: it is missing, damaged, unsafe, or of another kind.
    """
    content = load_verified(path)
    if not isinstance(content, dict) or not KEYS <= content.keys():
        raise UserError(f"{path}: not a language model of xlsr_transducer.train_lm")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: format {content['format']}, but this version reads {FORMAT}")
    return content


def load_lm(exp_dir: Path) -> LoadedLm:
    """Returns the best language model of a training run.

    Raises:
      UserError: a file is missing or does not fit; the message names it.
    """
    path = exp_dir / BEST
    if not path.is_file():
        raise UserError(
            f"--lm-exp-dir {exp_dir}: no {BEST} here; python -m xlsr_transducer.train_lm makes it"
        )
    content = read_lm(path)
    try:
        model = LanguageModel(len(content["tokens"]), LmOptions(**content["lm_options"]))
        model.load_state_dict(content["model"])
    except (RuntimeError, TypeError) as e:
        raise UserError(f"{path}: the weights do not fit the configuration ({e})") from e
    return LoadedLm(model.eval(), content["tokens"], path)
