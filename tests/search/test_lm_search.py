"""Neural language models in searches: shallow fusion, LODR, rescoring."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from local import make_ngram
from tests.support.decodes import run, tokens
from tests.support.language_models import Plain, make_arpa, tiny_lm
from tests.support.language_models import sentences as texts
from tests.support.random_searches import (
    LENS,
    VOCAB,
    add,
    assert_same,
    log_probs_of,
    make,
    speech,
    whole,
)
from xlsr_transducer import decode, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search import Bias, SearchOptions, make_search
from xlsr_transducer.search.context_graph import context_graph
from xlsr_transducer.search.lm.checkpoint import BEST, lm_content
from xlsr_transducer.search.lm.fusion import ScaledLm
from xlsr_transducer.search.lm.model import LanguageModel, LmOptions
from xlsr_transducer.search.lm.ngram import read_ngram_lm
from xlsr_transducer.search.options import LM_METHODS, METHODS

FUSION = "modified_beam_search_lm_shallow_fusion"
LODR = "modified_beam_search_LODR"
RESCORE = "modified_beam_search_lm_rescore"
ROWS = texts(40)


def fused(method: str, bias: Bias | None, **setting):
    """A search of ``method`` over the networks of the other tests."""
    plain = make(dict(decoding_method="modified_beam_search"))
    options = SearchOptions(decoding_method=method, **setting)
    return make_search(options, plain, bias)


@pytest.fixture(scope="module")
def bigram(tmp_path_factory):
    names = ["<blk>", "<sos/eos>", "<unk>", *(f"t{i}" for i in range(3, VOCAB))]
    path = make_arpa(tmp_path_factory.mktemp("bigram") / "lm.arpa", ROWS, 2)
    return read_ngram_lm(path, names)


def lm_log_probs(model: LanguageModel):
    """(V,) log-probs after any tokens, by the networks in a row, from the beginning."""

    @cache
    def after(emitted: tuple[int, ...]) -> list[float]:
        with torch.no_grad():
            out, _ = model.lstm(model.embedding(torch.tensor([[1, *emitted]])))
            logits = model.output(out[0, -1])
            logits[0] = -math.inf
            return logits.log_softmax(-1).tolist()

    return after


def gains(method: str):
    """What shallow fusion with scale 0.5, or LODR with 0.5 and -0.3, adds to a token."""
    after, plain = lm_log_probs(tiny_lm()), Plain(ROWS, 2)

    @cache
    def gain(emitted: tuple[int, ...], token: int) -> float:
        if token == 0:
            return 0.0
        token = max(token, 2)
        added = 0.5 * after(emitted)[token]
        if method == LODR:
            added -= 0.3 * math.log(plain.prob((0, *emitted)[-1:], token))
        return added

    return gain


def bias_of(method: str, bigram, scale: float = 0.5, hotwords=None) -> Bias:
    lm = bigram.scaled(-0.3) if method == LODR else None
    return Bias(VOCAB, hotwords, lm, ScaledLm(tiny_lm(), scale))


@pytest.mark.parametrize("method, beam_size", [(FUSION, 1), (FUSION, 4), (LODR, 3)])
def test_the_search_finds_what_the_plain_one_finds(bigram, method, beam_size):
    search = fused(method, bias_of(method, bigram), beam_size=beam_size)
    gain = gains(method)
    x, lens = speech(LENS)
    unbiased = fused("modified_beam_search", None, beam_size=beam_size)
    unbiased, different = unbiased.results(whole(unbiased, x, lens)), 0
    for n, hyps in enumerate(search.nbest(whole(search, x, lens), 9)):
        pool: dict = {(): (0.0, [])}
        for t, frame in enumerate(x[n, : LENS[n]]):
            grown = []
            for emitted, (score, times) in pool.items():
                for v, p in enumerate(log_probs_of(search, frame, emitted)):
                    end = ((v,), [t]) if v else ((), [])
                    grown.append((score + p + gain(emitted, v), emitted + end[0], times + end[1]))
            pool = {}
            for score, emitted, times in sorted(grown, reverse=True)[:beam_size]:
                add(pool, emitted, score, times)
        expected = sorted(pool.items(), key=lambda h: -h[1][0] / (len(h[0]) + 2))
        assert [tuple(h.tokens) for h in hyps] == [emitted for emitted, _ in expected]
        assert [h.frames for h in hyps] == [times for _, (_, times) in expected]
        scores = [score for _, (score, _) in expected]
        assert [h.score for h in hyps] == pytest.approx(scores, abs=1e-3)
        different += hyps[0].tokens != unbiased[n].tokens
    assert different


def path_log_prob(search, frames, found) -> float:
    """The transducer's log-prob of one path."""
    total, emitted, at = 0.0, (), dict(zip(found.frames, found.tokens))
    for t, frame in enumerate(frames):
        token = at.get(t, 0)
        total += log_probs_of(search, frame, emitted)[token]
        emitted += (token,) if token else ()
    return total


def test_the_fused_score_is_that_of_the_path_and_the_scaled_one_of_the_text():
    model = tiny_lm()
    search = fused(FUSION, Bias(VOCAB, None, None, ScaledLm(model, 0.5)), beam_size=1)
    x, lens = speech(LENS)
    for n, found in enumerate(search.results(whole(search, x, lens))):
        text = torch.tensor([found.tokens], dtype=torch.int64)
        with torch.no_grad():
            lm = float(model(text, torch.tensor([len(found.tokens)])))
            # Its end costs nothing in a search.
            lm -= lm_log_probs(model)(tuple(found.tokens))[1]
        expected = path_log_prob(search, x[n, : LENS[n]], found) + 0.5 * lm
        assert found.score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("method", LM_METHODS)
def test_scales_of_zero_change_nothing_at_all(bigram, method):
    bias = Bias(VOCAB, None, bigram.scaled(0.0), ScaledLm(tiny_lm(), 0.0))
    search, plain = fused(method, bias), fused("modified_beam_search", None)
    x, lens = speech([41, 30, 1, 0])
    assert search.nbest(whole(search, x, lens), 4) == plain.nbest(whole(plain, x, lens), 4)


@pytest.mark.parametrize("method", LM_METHODS)
def test_batches_and_pieces_change_nothing_and_hotwords_go_along(bigram, method):
    hotwords = context_graph([([3, 4], 1.5), ([9, 2], 3.0)], VOCAB)
    search = fused(method, bias_of(method, bigram, hotwords=hotwords))
    x, lens = speech([30, 12, 0, 21])
    own = [None, hotwords, None, context_graph([([7], 2.0)], VOCAB)]
    expected = search.results(search.advance(x, lens, search.init_state(4, hotwords=own)))
    # A stream joins later, another one leaves; pieces of seven frames.
    state = search.init_state(3, hotwords=own[:3])
    state = search.advance(x[:3, :7], lens[:3].clamp(max=7), state)
    state = search.cat([state, search.init_state(1, hotwords=own[3:])])
    at = torch.tensor([7, 7, 0, 0])
    while (at < lens).any():
        sizes = (lens - at).clamp(0, 7)
        rows = [torch.cat([x[n, a : a + 7], x[n, :7]])[:7] for n, a in enumerate(at.tolist())]
        state = search.advance(torch.stack(rows), sizes, state)
        at = at + sizes
    assert_same(search.results(state), expected)
    assert_same(search.results(search.select(state, [3, 0])), [expected[3], expected[0]])
    for n, graph in enumerate(own):
        alone = search.init_state(1, hotwords=[graph])
        alone = search.advance(x[n : n + 1], lens[n : n + 1], alone)
        assert_same(search.results(alone), expected[n : n + 1])


def test_equal_models_cancel_in_lodr(tmp_path):
    names = ["<blk>", "<sos/eos>", "<unk>", *(f"t{i}" for i in range(3, VOCAB))]
    unigram = read_ngram_lm(make_arpa(tmp_path / "lm.arpa", ROWS, 1), names)
    model = tiny_lm()
    with torch.no_grad():
        model.output.weight.zero_()
        probs = [Plain(ROWS, 1).prob((), token) for token in range(1, VOCAB)]
        model.output.bias[1:] = torch.tensor(probs).log()
    search = fused(LODR, Bias(VOCAB, None, unigram.scaled(-0.7), ScaledLm(model, 0.7)))
    plain = fused("modified_beam_search", None)
    x, lens = speech([41, 30, 1, 0])
    found, expected = (s.nbest(whole(s, x, lens), 4) for s in (search, plain))
    for a, b in zip(found, expected):
        assert_same(a, b)


def test_rescoring_gives_the_order_that_brute_force_gives():
    model = tiny_lm()
    after = lm_log_probs(model)
    search = fused(RESCORE, Bias(VOCAB, None, None, ScaledLm(model, 0.8)), beam_size=6)
    plain = fused("modified_beam_search", None, beam_size=6)
    x, lens = speech(LENS)
    changed = 0
    before = plain.nbest(whole(plain, x, lens), 6)
    for found, given in zip(search.nbest(whole(search, x, lens), 4), before):
        scored = []
        for h in given:
            text = (*h.tokens, Tokenizer.sos_id)
            lm = sum(after(text[:i])[v] for i, v in enumerate(text))
            score = h.score + 0.8 * lm
            scored.append((score / (len(h.tokens) + search.context_size), score, h))
        scored.sort(key=lambda entry: -entry[0])
        assert [h.tokens for h in found] == [h.tokens for _, _, h in scored[:4]]
        assert [h.frames for h in found] == [h.frames for _, _, h in scored[:4]]
        for h, (norm_score, score, _) in zip(found, scored):
            assert (h.norm_score, h.score) == pytest.approx((norm_score, score), abs=1e-3)
        changed += found[0].tokens != given[0].tokens
    assert changed


def test_methods_with_a_language_model_do_not_run_without_one():
    for method in LM_METHODS:
        for bias in (None, Bias(VOCAB)):
            with pytest.raises(UserError, match=f"{method} needs a neural language model"):
                fused(method, bias)


@pytest.fixture(scope="module")
def lm_exp(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model of the corpus' tokens."""
    exp = tmp_path_factory.mktemp("lm")
    found = Tokenizer.load(corpus / "lang_bpe_60").tokens
    torch.manual_seed(3)
    options = LmOptions(embedding_dim=16, hidden_dim=32, num_layers=1)
    model = LanguageModel(len(found), options)
    with torch.no_grad():
        model.output.weight *= 20
    save_atomically(lm_content(model, options, found), exp / BEST)
    return exp


@pytest.fixture(scope="module")
def arpa(corpus: Path) -> Path:
    lang_dir = corpus / "lang_bpe_60"
    make_ngram.main([f"--data-dir={corpus}", f"--lang-dir={lang_dir}", "--ngram-order=2"])
    return lang_dir / "ngram_2.arpa"


def test_both_commands_give_the_same_and_rescoring_is_for_whole_utterances(
    corpus: Path, streaming_exp: Path, lm_exp: Path, arpa: Path
) -> None:
    given = ["--split=test_seen", "--blank-penalty=4", "--num-workers=0"]
    run(decode, corpus, streaming_exp, *given, "--decoding-method=modified_beam_search")
    seen = [tokens(streaming_exp / "modified_beam_search", "test_seen")]
    given += [f"--lm-exp-dir={lm_exp}", "--lm-scale=1.5"]
    lodr = [f"--ngram-lm={arpa}", "--ngram-lm-scale=-2.5"]
    for method, more in ((FUSION, []), (LODR, lodr), (RESCORE, [])):
        options = [f"--decoding-method={method}", *given, *more]
        run(decode, corpus, streaming_exp, *options)
        seen.append(tokens(streaming_exp / method, "test_seen"))
        if method == RESCORE:
            with pytest.raises(UserError, match=f"{RESCORE} needs whole utterances"):
                run(streaming_decode, corpus, streaming_exp, *options)
            break
        run(streaming_decode, corpus, streaming_exp, *options, "--num-decode-streams=3")
        assert tokens(streaming_exp / "streaming" / method, "test_seen") == seen[-1]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    names = [p.name for p in (streaming_exp / LODR).glob("recogs-test_seen-*")]
    assert any(f"ngram_2-scale--2.5-{lm_exp.name}-scale-1.5" in name for name in names)


def test_a_model_of_other_tokens_is_refused_and_both_are_named(
    corpus: Path, streaming_exp: Path, lm_exp: Path, tmp_path: Path
) -> None:
    content = torch.load(lm_exp / BEST, weights_only=True)
    content["tokens"][7] = "other"
    save_atomically(content, tmp_path / BEST)
    options = [f"--lm-exp-dir={tmp_path}", f"--decoding-method={FUSION}"]
    message = f"{tmp_path}.* other tokens than the model in {streaming_exp} .*token 7 is 'other'"
    for command in (decode, streaming_decode):
        with pytest.raises(UserError, match=message):
            run(command, corpus, streaming_exp, *options)


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("greedy_search", ["--lm-exp-dir=x"], "--lm-exp-dir x works with .* not with greedy"),
        ("modified_beam_search", ["--lm-exp-dir=x"], "not with modified_beam_search"),
        (FUSION, ["--lm-exp-dir=x"], "--lm-exp-dir x: no best-valid-loss.pt"),
        (FUSION, [], f"{FUSION} needs --lm-exp-dir"),
        (FUSION, ["--lm-scale=1"], "--lm-scale 1.0 needs --lm-exp-dir"),
        (FUSION, ["--lm-exp-dir=x", "--lm-scale=-1"], "--lm-scale -1: must be from 0"),
        (LODR, ["--lm-exp-dir=x"], "needs --ngram-lm, a bi-gram"),
        (LODR, ["--lm-exp-dir=x", "--ngram-lm=y"], "--ngram-lm-scale 0.1: .*takes .* away"),
    ],
)
def test_contradictions_are_refused_by_name(corpus, streaming_exp, method, options, message):
    with pytest.raises(UserError, match=message):
        run(decode, corpus, streaming_exp, f"--decoding-method={method}", *options)


def test_every_method_with_a_language_model_is_known():
    assert {FUSION, LODR, RESCORE} == set(LM_METHODS) < set(METHODS)
