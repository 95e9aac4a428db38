"""The neural language model: what it computes, how it is trained, what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.language_models import tiny_lm
from xlsr_transducer import train_lm
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.lm_text import Sentences, texts_of
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search.lm.checkpoint import load_lm, read_lm
from xlsr_transducer.search.lm.model import LanguageModel
from xlsr_transducer.training.lm import perplexity

VOCAB = 12
TINY = ["--embedding-dim=16", "--hidden-dim=32", "--num-layers=1", "--batch-tokens=120"]
RATE = ["--base-lr=0.02", "--num-epochs=5"]


def stepwise(model: LanguageModel, emitted: list[int]) -> list[torch.Tensor]:
    """Log-probs (V,) of what follows each beginning of ``emitted``."""
    state, found = model.init_state(1), []
    with torch.no_grad():
        for token in [Tokenizer.sos_id, *emitted]:
            log_probs, state = model.step(state, torch.tensor([token]))
            found.append(log_probs[0])
    return found


def sentences(texts: list[list[int]], num_words: int = 0) -> Sentences:
    starts = np.cumsum([0, *map(len, texts)])
    return Sentences(np.array(sum(texts, []), dtype=np.int32), starts, num_words)


TEXTS = [[3, 4, 5], [], [7], [3, 3, 3, 11, 2, 5, 6, 7], [9, 9]]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_ragged_batch_gives_what_steps_give_sentence_by_sentence(num_layers: int) -> None:
    model = tiny_lm(num_layers=num_layers)
    tokens, lens = sentences(TEXTS).batch(np.arange(len(TEXTS)))
    with torch.no_grad():
        found = model(tokens, lens)
    for text, score in zip(TEXTS, found.tolist()):
        steps = stepwise(model, text)
        expected = sum(float(p[v]) for p, v in zip(steps, [*text, Tokenizer.sos_id]))
        assert score == pytest.approx(expected, abs=1e-4)
        for p in steps:
            assert p[Tokenizer.blank_id] == -float("inf")
            assert float(p.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_states_of_different_sentences_are_computed_together() -> None:
    model = tiny_lm()
    state = model.init_state(3)
    with torch.no_grad():
        for emitted in ([1, 1, 1], [3, 4, 5], [6, 6, 7]):
            log_probs, state = model.step(state, torch.tensor(emitted))
    for n in range(3):
        expected = stepwise(model, [[3, 6], [4, 6], [5, 7]][n])[-1]
        assert log_probs[n].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_perplexity_counts_tokens_or_words_and_ends() -> None:
    model = tiny_lm()
    loss = 0.0
    for text in TEXTS:
        for p, v in zip(stepwise(model, text), [*text, Tokenizer.sos_id]):
            loss -= float(p[v])
    for batch_tokens in (1, 12, 1000):
        found = perplexity(model, sentences(TEXTS, num_words=6), batch_tokens)
        assert found.per_token == pytest.approx(math.exp(loss / (14 + 5)), rel=1e-4)
        assert found.per_word == pytest.approx(math.exp(loss / (6 + 5)), rel=1e-4)


def test_batches_hold_every_sentence_once_and_not_too_much() -> None:
    rng = np.random.default_rng(0)
    text = sentences([[3] * int(n) for n in rng.integers(0, 30, 500)])
    lens = np.diff(text.starts) + 1
    orders = []
    for seed in (1, 1, 2):
        batches = text.batches(100, np.random.default_rng(seed))
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        assert all(len(b) * lens[b].max() <= 100 for b in batches)
        filled = lens.sum() / sum(len(b) * lens[b].max() for b in batches)
        assert filled > 0.8
        orders.append(np.concatenate(batches).tolist())
    assert orders[0] == orders[1] != orders[2]


def train(corpus: Path, exp: Path, *more: str) -> None:
    train_lm.main([f"--data-dir={corpus}", f"--exp-dir={exp}", *TINY, *RATE, *more])


@pytest.fixture(scope="module")
def lm_exp(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five epochs on a corpus without its test manifests: nothing of them is read."""
    exp = tmp_path_factory.mktemp("lm")
    data = exp / "data"
    shutil.copytree(corpus / "lang_bpe_60", data / "lang_bpe_60")
    (data / "manifests").mkdir()
    for name in ("splits.json", "cuts_train.jsonl.gz", "cuts_val.jsonl.gz"):
        shutil.copy(corpus / "manifests" / name, data / "manifests")
    train(data, exp)
    return exp


def test_training_learns_the_text_and_keeps_the_best(corpus: Path, lm_exp: Path) -> None:
    records = json.loads((lm_exp / "history.json").read_text())
    valid = [r["valid"]["per_token"] for r in records]
    assert len(valid) == 5 and min(valid) < 0.75 * valid[0] and valid[0] < 60
    loaded = load_lm(lm_exp)
    tokenizer = Tokenizer.load(corpus / "lang_bpe_60")
    assert loaded.tokens == tokenizer.tokens
    text = Sentences.encode(texts_of(corpus, "val"), tokenizer, "validation")
    found = perplexity(loaded.model, text, 77)
    assert found.per_token == pytest.approx(min(valid), rel=1e-4)
    words = sum(len(t.split()) + 1 for t in texts_of(corpus, "val"))
    per_word = math.exp(math.log(found.per_token) * text.num_predictions / words)
    assert records[valid.index(min(valid))]["valid"]["per_word"] == pytest.approx(per_word)


def test_a_resumed_training_ends_with_the_same_bits(
    corpus: Path, lm_exp: Path, tmp_path: Path
) -> None:
    for name in ("epoch-1.pt", "history.json"):
        shutil.copy(lm_exp / name, tmp_path)
    torch.manual_seed(5)
    train(corpus, tmp_path, "--start-epoch=2")
    whole, resumed = (read_lm(exp / "epoch-3.pt")["model"] for exp in (lm_exp, tmp_path))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    histories = [(exp / "history.json").read_text() for exp in (lm_exp, tmp_path)]
    assert histories[0] == histories[1]


def test_another_text_can_be_learnt(corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Tere, maailm!\n\n" * 300, encoding="utf-8")
    train(corpus, tmp_path / "lm", f"--lm-text={text}", "--num-epochs=2")
    tokenizer = Tokenizer.load(corpus / "lang_bpe_60")
    [ids] = tokenizer.encode(["tere maailm"])
    steps = stepwise(load_lm(tmp_path / "lm").model, ids)
    assert [int(p.argmax()) for p in steps] == [*ids, Tokenizer.sos_id]


def test_what_cannot_be_used_is_refused_by_name(
    corpus: Path, streaming_exp: Path, lm_exp: Path, tmp_path: Path
) -> None:
    for options, message in (
        (["--lm-text=x.txt"], "x.txt: no such file"),
        (["--hidden-dim=0"], "--hidden-dim 0: must be from 1 to 65536"),
        (["--dropout=1"], "--dropout 1: must be"),
        (["--start-epoch=9"], "epoch-8.pt: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            train(corpus, tmp_path, *options)
    shutil.copy(lm_exp / "epoch-1.pt", tmp_path)
    with pytest.raises(UserError, match="with other model options"):
        train(corpus, tmp_path, "--start-epoch=2", "--hidden-dim=16")
    (tmp_path / "text.txt").write_text(" ,\n", encoding="utf-8")
    with pytest.raises(UserError, match="no training text"):
        train(corpus, tmp_path, f"--lm-text={tmp_path / 'text.txt'}")
    with pytest.raises(UserError, match="no best-valid-loss.pt here"):
        load_lm(tmp_path)
    shutil.copy(streaming_exp / "best-valid-wer.pt", tmp_path / "best-valid-loss.pt")
    with pytest.raises(UserError, match="not a language model"):
        load_lm(tmp_path)
    tokens = load_lm(lm_exp).tokens
    with pytest.raises(UserError, match=f"{lm_exp}.*model in exp/a .*token 5 .*not 'x'"):
        load_lm(lm_exp).require_tokens([*tokens[:5], "x", *tokens[6:]], "exp/a")
    with pytest.raises(UserError, match="it has 60 tokens, not 59"):
        load_lm(lm_exp).require_tokens(tokens[:-1], "exp/a")
