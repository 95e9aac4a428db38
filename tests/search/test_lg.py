"""LG, the graph of words: what it accepts and weighs, and the searches along it.

Runs only where k2 imports (requirements-k2.txt).
"""

from __future__ import annotations

import functools
import itertools
import math
import random

import numpy as np
import pytest
import torch

from local import make_lg, make_ngram
from tests.support.decodes import run
from tests.support.decodes import tokens as tokens_of
from tests.support.language_models import NAMES, Plain, make_arpa, sentences
from tests.support.random_searches import WIDE, all_paths, assert_same, nbest
from xlsr_transducer import decode
from xlsr_transducer.core.compat import import_k2
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import WORD_START, Tokenizer
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import Heads, Hypothesis, SearchOptions, make_search
from xlsr_transducer.search.k2.lattices import read_lg, write_lg
from xlsr_transducer.search.lm.ngram import read_arpa

try:
    k2 = import_k2("this test")
except UserError as e:
    pytest.skip(str(e), allow_module_level=True)

# Words 3 to 11 of the models in test_ngram_lm in tokens; 1 to 4 begin a word, 5 and 6 do not.
# Some begin others, and some are never emitted in a sentence.
SPELT = {3: [1], 4: [1, 5], 5: [1, 5, 6], 6: [2, 5], 7: [2], 8: [3], 9: [3, 6, 6], 10: [4, 5],
         11: [4]}  # fmt: skip
VOCAB = 7
TOKENS = ["<blk>", *(f"{WORD_START}v{i}" for i in range(1, 5)), "v5", "v6"]


class Grammar:
    """G as lists of arcs, walked in two ways."""

    def __init__(self, arcs: list[make_lg.Arc], backoff: int):
        self.arcs = {(a, v): (b, weight) for a, b, v, _, weight in arcs}
        self.backoff = backoff

    def forced(self, words: list[int]) -> float:
        """Log-prob of a sentence that backs off only where there is no arc."""
        state, total = 0, 0.0
        for label in [*(word + 1 for word in words), -1]:
            while (state, label) not in self.arcs:
                state, weight = self.arcs[state, self.backoff]
                total += weight
            state, weight = self.arcs[state, label]
            total += weight
        return total

    def free(self, words: list[int]) -> float:
        """Of one that may back off anywhere, as in a graph without failure arcs: the best."""
        now = {0: 0.0}
        for label in [*(word + 1 for word in words), -1]:
            reached: dict[int, float] = {}
            for state, total in now.items():
                while True:
                    if (state, label) in self.arcs:
                        target, weight = self.arcs[state, label]
                        reached[target] = max(reached.get(target, -math.inf), total + weight)
                    if (state, self.backoff) not in self.arcs:
                        break
                    state, weight = self.arcs[state, self.backoff]
                    total += weight
            now = reached
        return max(now.values())


@pytest.fixture(scope="module", params=[1, 3])
def lg_file(request, tmp_path_factory):
    """An LG.pt of an n-gram model, and the model by its definition."""
    folder = tmp_path_factory.mktemp("lg")
    rows = sentences(60)
    names, ngrams = read_arpa(make_arpa(folder / "lm.arpa", rows, request.param))
    assert names == ["<s>", "</s>", *NAMES[2:]]
    spelt = {word + 1: row for word, row in SPELT.items()}
    lexicon = make_lg.make_fsa(k2, make_lg.lexicon_arcs(spelt, len(names), VOCAB))
    grammar = make_lg.make_fsa(k2, make_lg.grammar_arcs(ngrams, spelt, len(names)))
    path = folder / "LG.pt"
    write_lg(path, make_lg.compose_lg(k2, lexicon, grammar, VOCAB), TOKENS)
    return (
        path,
        Grammar(make_lg.grammar_arcs(ngrams, spelt, len(names)), len(names) + 1),
        (Plain(rows, request.param), request.param),
    )


def words_in(tokens: list[int]) -> list[int] | None:
    """The words that the tokens spell; None if they spell none."""
    words: list[list[int]] = []
    for token in tokens:
        if token < 5:
            words.append([token])
        elif not words:
            return None
        else:
            words[-1].append(token)
    known = {tuple(row): word for word, row in SPELT.items()}
    found = [known.get(tuple(word)) for word in words]
    return None if None in found else found


def test_g_is_the_n_gram_model(lg_file):
    _, grammar, (model, order) = lg_file
    generator = random.Random(4)
    for length in range(40):
        words = [generator.randint(3, 11) for _ in range(length % 6)]
        emitted, total = [0, *words, 1], 0.0
        for i in range(1, len(emitted)):
            total += math.log(model.prob(tuple(emitted[max(i - order + 1, 0) : i]), emitted[i]))
        assert grammar.forced(words) == pytest.approx(total, abs=1e-4)


def test_lg_accepts_rows_of_words_with_the_weight_of_g_and_nothing_else(lg_file):
    path, grammar, _ = lg_file
    graph = read_lg(path, TOKENS, 1.0)
    assert int(graph.labels.max()) == VOCAB - 1 and 0 not in graph.labels.tolist()
    generator = random.Random(5)
    rows = [[generator.randint(1, 6) for _ in range(generator.randint(1, 5))] for _ in range(60)]
    for n in range(60):
        rows.append(sum((SPELT[generator.randint(3, 11)] for _ in range(n % 5 + 1)), []))
    accepted = 0
    for row in rows:
        both = k2.connect(k2.intersect(k2.linear_fsa(row), graph, treat_epsilons_specially=False))
        words = words_in(row)
        if words is None:
            assert both.num_arcs == 0, row
            continue
        accepted += 1
        score = float(k2.create_fsa_vec([both]).get_tot_scores(True, False))
        assert score == pytest.approx(grammar.free(words), abs=1e-4), row
    assert 60 < accepted < 110


def walk(graph, tokens: list[int], add) -> float:
    """The weight of all ways along the arcs by ``add``, without that of a final arc at the end."""
    states, final = {0: 0.0}, int(graph.arcs.values()[:, 1].max())
    arcs = list(zip(*graph.arcs.values()[:, :3].T.tolist(), graph.scores.tolist()))
    for token in tokens:
        reached: dict[int, float] = {}
        for a, b, label, weight in arcs:
            if a in states and label == token:
                reached[b] = add(reached.get(b, -math.inf), states[a] + weight)
        states = reached
    ends = {a for a, b, _, _ in arcs if b == final}
    return functools.reduce(add, (x for state, x in states.items() if state in ends))


@torch.no_grad()
@pytest.mark.parametrize("method", ["fast_beam_search_LG", "fast_beam_search_nbest_LG"])
def test_the_searches_find_what_brute_force_finds(lg_file, method):
    torch.manual_seed(4)
    decoder, joiner = Decoder(VOCAB, 8).double().eval(), Joiner(8, 8, 8, VOCAB).double().eval()
    joiner.output_linear.weight *= 3
    x, lens = torch.randn(3, 5, 8, dtype=torch.float64), torch.tensor([5, 1, 4])
    graph = read_lg(lg_file[0], TOKENS, 0.5)
    add = np.logaddexp if "nbest" in method else max
    wide = dict(WIDE, num_paths=3000 if "nbest" in method else 200)
    search = make_search(SearchOptions(method, **wide), Heads(decoder, joiner), lg=graph)
    for n, hyps in enumerate(nbest(search, x, lens)):
        scores: dict = {}
        for tokens, score in all_paths(search, x[n, : lens[n]]):
            if words_in(list(tokens)) is not None:
                scores.setdefault(tokens, []).append(score)
        for tokens, parts in scores.items():
            scores[tokens] = functools.reduce(add, parts) + walk(graph, list(tokens), add)
        assert tuple(hyps[0].tokens) == max(scores, key=scores.get)
        assert len(hyps) > (min(300, 0.8 * len(scores)) if "nbest" in method else 0)
        for h in hyps:
            assert h.score == pytest.approx(scores[tuple(h.tokens)], abs=1e-4)


@pytest.mark.parametrize("method", ["fast_beam_search_LG", "fast_beam_search_nbest_LG"])
def test_batches_change_nothing_and_only_words_are_found(lg_file, method):
    torch.manual_seed(6)
    decoder, joiner = Decoder(VOCAB, 8).double().eval(), Joiner(8, 8, 8, VOCAB).double().eval()
    with torch.no_grad():
        joiner.output_linear.weight *= 4
    lens = torch.tensor([25, 0, 1, 40, 12, 31])
    x = torch.randn(6, 40, 8, dtype=torch.float64)
    graph = read_lg(lg_file[0], TOKENS, 0.5)
    options = SearchOptions(method, beam=3.0, blank_penalty=4.0)
    search = make_search(options, Heads(decoder, joiner), lg=graph)
    together = nbest(search, x, lens)
    for n, hyps in enumerate(together):
        assert_same(nbest(search, x[n : n + 1], lens[n : n + 1])[0], hyps)
        assert all(words_in(h.tokens) is not None for h in hyps)
    assert sum(len(hyps[0].tokens) for hyps in together) > 20


@torch.no_grad()
@pytest.mark.parametrize("is_along_lg", [False, True])
def test_ctc_finds_the_best_alignment_of_all_or_of_whole_words(lg_file, is_along_lg):
    torch.manual_seed(7)
    head, lens = torch.nn.Linear(8, VOCAB).double(), torch.tensor([1, 4, 0, 3])
    head.weight *= 3
    x = torch.randn(4, 4, 8, dtype=torch.float64)
    graph = read_lg(lg_file[0], TOKENS, 0.5) if is_along_lg else None
    options = SearchOptions("ctc_LG" if is_along_lg else "ctc_decoding", beam=1e3)
    search = make_search(options, Heads(ctc_output=head), lg=graph)
    found = nbest(search, x, lens)
    weights, grammar = {}, lg_file[1]
    assert found[2] == [Hypothesis()]  # no frame
    for n, [best] in enumerate(found):
        if not lens[n]:
            continue
        log_probs, alignments = head(x[n, : lens[n]]).log_softmax(-1), []
        for labels in itertools.product(range(VOCAB), repeat=int(lens[n])):
            begins = [t for t, k in enumerate(labels) if k and (t == 0 or labels[t - 1] != k)]
            tokens = tuple(labels[t] for t in begins)
            if is_along_lg:
                words = words_in(list(tokens))
                if words is None:
                    continue
                if tokens not in weights:  # which the end of the sentence belongs to
                    weights[tokens] = 0.5 * grammar.free(words)
            score = sum(float(log_probs[t, k]) for t, k in enumerate(labels))
            alignments.append((score + weights.get(tokens, 0.0), tokens, begins))
        score, tokens, frames = max(alignments)
        assert (tuple(best.tokens), best.frames) == (tokens, frames)
        assert best.score == pytest.approx(score, abs=1e-4)
        probs = [float(log_probs[t, k]) for t, k in zip(frames, tokens)]
        assert best.log_probs == pytest.approx(probs, abs=1e-5)
    state = search.init_state(4)
    for at in range(4):
        state = search.advance(x[:, at : at + 1], (lens - at).clamp(0, 1), state)
    assert_same([h for [h] in search.nbest(search.select(state, [3, 1]), 1)],
                [found[3][0], found[1][0]])  # fmt: skip


def test_ctc_along_lg_has_no_result_where_no_word_ends(lg_file):
    # Of the tokens only those within words are likely.
    head = torch.nn.Linear(VOCAB, VOCAB).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(VOCAB))
        head.bias.zero_()
    x = torch.full((1, 2, VOCAB), -200.0, dtype=torch.float64)
    x[0, 0, 3], x[0, 1, 6] = 0.0, 0.0  # the beginning of word 9
    graph = read_lg(lg_file[0], TOKENS, 0.5)
    search = make_search(SearchOptions("ctc_LG", beam=5.0), Heads(ctc_output=head), lg=graph)
    [[found]] = nbest(search, x, torch.tensor([2]))
    assert found.tokens == [] and found.score == -math.inf


def test_a_file_of_another_kind_or_for_other_tokens_is_refused(lg_file, tmp_path):
    content = torch.load(lg_file[0])
    assert content.keys() == {"arcs", "tokens"} and content["arcs"].dtype == torch.int32
    with pytest.raises(UserError, match="other tokens than the model's"):
        read_lg(lg_file[0], [*TOKENS[:-1], "x"], 1.0)
    with pytest.raises(UserError, match="no such file; stage 7"):
        read_lg(tmp_path / "LG.pt", TOKENS, 1.0)
    torch.save({"arcs": content["arcs"]}, tmp_path / "LG.pt")
    with pytest.raises(UserError, match="not an LG.pt"):
        read_lg(tmp_path / "LG.pt", TOKENS, 1.0)


def test_stage_7_and_the_methods_of_decode_along_lattices(corpus, streaming_exp, capsys):
    lang_dir = corpus / "lang_bpe_60"
    make_ngram.main([f"--data-dir={corpus}", f"--lang-dir={lang_dir}", "--unit=word"])
    make_lg.main([f"--lang-dir={lang_dir}"])
    lg = [f"--ngram-lm={lang_dir / 'LG.pt'}"]
    common = ["--split=test_seen", "--blank-penalty=4", "--num-workers=0", "--decode-chunk-len=-1"]
    errors = {}
    fast = [f"fast_beam_search_{name}" for name in ("nbest", "nbest_oracle", "LG", "nbest_LG")]
    for name in (*fast, "ctc_decoding", "ctc_LG"):
        method = name.replace("fast_beam_search_", "")
        options = [f"--decoding-method={name}", *common, *(lg if "LG" in method else [])]
        run(decode, corpus, streaming_exp, *options)
        [path] = (streaming_exp / name).glob("errs-test_seen-*")
        errors[method] = float(path.read_text().split()[2])
        assert ("oracle" in path.name) == ("oracle" in method)
        assert path.name.count("-LG-scale-0.01") == ("LG" in method)
    assert errors["nbest_oracle"] < errors["nbest"]

    words = set(read_arpa(lang_dir / "word_ngram_3.arpa")[0])
    tokenizer = Tokenizer.load(lang_dir)
    for method in (*fast[:1], *fast[2:], "ctc_decoding", "ctc_LG"):
        found = tokens_of(streaming_exp / method, "test_seen").values()
        emitted = {word for row, _ in found for word in tokenizer.decode(row).split()}
        assert emitted and bool(emitted - words) != method.endswith("LG")

    with pytest.raises(UserError, match="belongs to other tokens"):
        read_lg(lang_dir / "LG.pt", TOKENS, 1.0)
