"""Hotwords: what the graph adds, and what it does to a search."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.support.decodes import run, tokens
from tests.support.random_searches import (
    LENS,
    MODIFIED,
    VOCAB,
    add,
    assert_same,
    biased,
    log_probs_of,
    speech,
    whole,
)
from xlsr_transducer import decode, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.search import Bias, Heads, SearchOptions, make_search
from xlsr_transducer.search.context_graph import context_graph, read_context_file
from xlsr_transducer.search.token_graph import TokenGraph

PHRASES = [([3, 4], 1.5), ([3, 4, 5, 6], 2.0), ([4, 5], 1.0), ([7], 2.5), ([3, 8, 3, 4], 0.5)]


def plain_bonus(phrases, emitted: tuple, at_end: bool) -> float:
    """By definition: phrases in ``emitted`` earn their tokens, the one under way is lent them.

    What a shorter phrase with the same beginning has earned is not earned again.
    """
    table: dict[tuple, float] = {}
    for phrase, score in phrases:
        for i in range(1, len(phrase) + 1):
            part = tuple(phrase[:i])
            table[part] = max(table.get(part, score), score)
    whole_phrases = {tuple(p) for p, _ in phrases}

    def worth(part: tuple) -> float:
        ends = [i for i in range(1, len(part)) if part[:i] in whole_phrases]
        return sum(table[part[:i]] for i in range(max(ends, default=0) + 1, len(part) + 1))

    total = 0.0
    for start in range(len(emitted)):
        for end in range(start + 1, len(emitted) + 1):
            if emitted[start:end] in whole_phrases:
                total += worth(emitted[start:end])
    suffixes = (emitted[i:] for i in range(len(emitted)))
    longest = next((s for s in suffixes if s in table), ())
    if not at_end and longest and longest not in whole_phrases:
        total += worth(longest)
    return total


def walk(graph: TokenGraph, emitted: tuple) -> tuple[float, torch.Tensor]:
    state, total = torch.tensor([graph.start]), 0.0
    for token in emitted:
        total += graph.weights(state)[0, token].item()
        state = graph.step(state, torch.tensor([token]))
    return total, state


@pytest.mark.parametrize("seed", range(4))
def test_the_graph_adds_what_the_definition_says(seed):
    generator = random.Random(seed)
    phrases = PHRASES
    if seed:
        phrases = [
            ([generator.randint(1, 4) for _ in range(generator.randint(1, 5))], score / 4)
            for score in range(1, 9)
        ]
    graph = context_graph(phrases, VOCAB)
    for _ in range(30):
        length = generator.randint(0, 9)
        emitted = tuple(generator.randint(1, 8 if seed == 0 else 5) for _ in range(length))
        total, state = walk(graph, emitted)
        assert total == pytest.approx(plain_bonus(phrases, emitted, False), abs=1e-4)
        total += graph.final_weight[state].item()
        assert total == pytest.approx(plain_bonus(phrases, emitted, True), abs=1e-4)


def test_graphs_side_by_side_give_what_each_gives_alone():
    graphs = [context_graph(PHRASES, VOCAB), TokenGraph.nothing(VOCAB)]
    graphs.append(context_graph([([4, 4], 1.0)], VOCAB))
    joined, first = TokenGraph.union(graphs)
    for graph, start in zip(graphs, first):
        states = torch.arange(len(graph.backoff))
        assert torch.equal(joined.weights(states + start), graph.weights(states))
        for token in range(VOCAB):
            token = torch.full_like(states, token)
            assert torch.equal(
                joined.step(states + start, token), graph.step(states, token) + start
            )


def plain_biased(search, frames, phrases):
    """Modified beam search hypothesis by hypothesis, with the bonus by definition."""
    pool = {(): (0.0, [])}
    for t, frame in enumerate(frames):
        grown = []
        for emitted, (score, times) in pool.items():
            for v, p in enumerate(log_probs_of(search, frame, emitted)):
                now = emitted + ((v,) if v else ())
                gain = plain_bonus(phrases, now, False) - plain_bonus(phrases, emitted, False)
                grown.append((score + p + gain, now, times + ([t] if v else [])))
        pool = {}
        for score, emitted, times in sorted(grown, reverse=True)[: search.options.beam_size]:
            add(pool, emitted, score, times)
    norm = search.context_size
    found = []
    for emitted, (score, times) in pool.items():
        score += plain_bonus(phrases, emitted, True) - plain_bonus(phrases, emitted, False)
        found.append((emitted, score, times))
    return sorted(found, key=lambda h: -h[1] / (len(h[0]) + norm))


@pytest.mark.parametrize("beam_size", [1, 5])
def test_the_search_finds_what_the_plain_one_finds(beam_size):
    search = biased(Bias(VOCAB, context_graph(PHRASES, VOCAB)), beam_size=beam_size)
    x, lens = speech(LENS)
    plain = biased(None, beam_size=beam_size)
    unbiased = plain.results(whole(plain, x, lens))
    state, different = whole(search, x, lens), 0
    for n, hyps in enumerate(search.nbest(state, 100)):
        expected = plain_biased(search, x[n, : LENS[n]], PHRASES)
        assert [tuple(h.tokens) for h in hyps] == [h[0] for h in expected]
        assert [h.frames for h in hyps] == [h[2] for h in expected]
        assert [h.score for h in hyps] == pytest.approx([h[1] for h in expected], abs=1e-4)
        different += hyps[0].tokens != unbiased[n].tokens
    assert different


def test_a_score_of_zero_changes_nothing_at_all():
    x, lens = speech([41, 30, 1, 0])
    zero = context_graph([(phrase, 0.0) for phrase, _ in PHRASES], VOCAB)
    search, plain = biased(Bias(VOCAB, zero)), biased(None)
    found = search.nbest(whole(search, x, lens), 4)
    assert found == plain.nbest(whole(plain, x, lens), 4)


def test_each_stream_has_its_own_hotwords_whoever_shares_the_batch():
    bias = Bias(VOCAB, context_graph(PHRASES, VOCAB))
    search = biased(bias)
    own = context_graph([([9, 2], 3.0), ([1, 1, 5], 2.0)], VOCAB)
    graphs = [own, None, TokenGraph.nothing(VOCAB), own]
    x, lens = speech([33, 33, 33, 20])
    x[1:3] = x[0]
    state = search.advance(x, lens, search.init_state(4, hotwords=graphs))
    batched = search.results(state)
    assert len({tuple(h.tokens) for h in batched[:3]}) == 3
    plain = biased(None)
    assert_same(batched[2:3], plain.results(whole(plain, x[:1], lens[:1])))
    for n, graph in enumerate(graphs):
        alone = search.init_state(1, hotwords=[graph])
        alone = search.results(search.advance(x[n : n + 1], lens[n : n + 1], alone))
        assert_same(alone, batched[n : n + 1])


def test_streams_with_hotwords_join_and_leave_between_pieces():
    search = biased(Bias(VOCAB, context_graph(PHRASES, VOCAB)))
    own = context_graph([([9, 2], 3.0), ([1, 1, 5], 2.0)], VOCAB)
    x, lens = speech([24, 40])
    expected = search.advance(x, lens, search.init_state(2, hotwords=[None, own]))
    expected = search.results(expected)
    state = search.init_state(1)
    state = search.advance(x[:1, :8], torch.tensor([8]), state)
    state = search.cat([state, search.init_state(1, hotwords=[own])])
    for at in range(0, 16, 4):
        piece = torch.stack([x[0, 8 + at : 12 + at], x[1, at : at + 4]])
        state = search.advance(piece, torch.tensor([4, 4]), state)
        search.results(state)
    assert_same(search.results(search.select(state, [0])), expected[:1])
    state = search.select(state, [1])
    state = search.advance(x[1:, 16:], torch.tensor([24]), state)
    assert_same(search.results(state), expected[1:])
    nobody = search.select(state, [])
    assert search.results(search.advance(x[:0], lens[:0], nobody)) == []


def test_graphs_are_joined_when_a_new_one_comes_not_when_other_streams_meet(monkeypatch):
    joined, original = [], TokenGraph.union

    def union(graphs):
        joined.append(len(graphs))
        return original(graphs)

    monkeypatch.setattr(TokenGraph, "union", staticmethod(union))
    search = biased(Bias(VOCAB))
    graphs = [context_graph([([i + 1, i + 2], 3.0)], VOCAB) for i in range(5)]
    x, lens = speech([30] * 5)
    state = search.init_state(5, hotwords=graphs)
    done, draw = [0] * 5, random.Random(0)
    while min(done) < 30:
        left = [row for row in range(5) if done[row] < 30]
        rows = draw.sample(left, draw.randint(1, len(left)))
        piece = torch.stack([x[row, done[row] : done[row] + 3] for row in rows])
        part = search.advance(piece, torch.tensor([3] * len(rows)), search.select(state, rows))
        state = search.put(state, torch.tensor(rows), part)
        for row in rows:
            done[row] += 3
    assert joined == [5]
    alone = [biased(Bias(VOCAB, graph)) for graph in graphs]
    expected = [s.results(whole(s, x[:1], lens[:1]))[0] for s, x in zip(alone, x.split(1))]
    assert_same(search.results(state), expected)
    assert len({tuple(h.tokens) for h in expected}) > 1


def test_a_graph_that_no_stream_holds_any_more_is_left_out():
    bias = Bias(VOCAB)
    for token in range(1, 8):
        graph = context_graph([([token], 3.0)], VOCAB)
        walk = bias.walk((graph, bias.nothing), "cpu")
        assert len(walk.graphs[0].backoff) == 3  # states: two, and one where nothing is
        del graph


def spelling_search(bias: Bias | None):
    """A search whose log-probs are what the encoder output says, whatever was emitted before."""
    decoder, joiner = Decoder(VOCAB, VOCAB).eval(), Joiner(VOCAB, VOCAB, VOCAB, VOCAB).eval()
    with torch.no_grad():
        for p in joiner.parameters():
            p.zero_()
        joiner.encoder_proj.weight.copy_(torch.eye(VOCAB) * 0.01)
        joiner.output_linear.weight.copy_(torch.eye(VOCAB) * 100)
    return make_search(SearchOptions(**MODIFIED), Heads(decoder, joiner), bias)


def test_a_rare_word_that_is_missed_without_is_found_with():
    emitted = [(0, 0), (3, 3), (0, 0), (6, 4), (7, 5), (0, 0), (8, 8)]  # (clearly, or else)
    x = torch.full((1, len(emitted), VOCAB), -9.0)
    for t, (best, other) in enumerate(emitted):
        x[0, t, other] = 1.5
        x[0, t, best] = 3.0
    lens = torch.tensor([len(emitted)])
    without = spelling_search(None)
    assert without.results(whole(without, x, lens))[0].tokens == [3, 6, 7, 8]
    for score, expected in ((0.5, [3, 6, 7, 8]), (2.0, [3, 4, 5, 8])):
        search = spelling_search(Bias(VOCAB, context_graph([([3, 4, 5], score)], VOCAB)))
        assert search.results(whole(search, x, lens))[0].tokens == expected
    # A beginning that does not come true is paid back, also at the end.
    graph = context_graph([([3, 4, 9], 2.0), ([8, 9], 3.0)], VOCAB)
    search = spelling_search(Bias(VOCAB, graph))
    [found] = search.results(whole(search, x, lens))
    [expected] = without.results(whole(without, x, lens))
    assert found.tokens == expected.tokens
    assert found.score == pytest.approx(expected.score, abs=0.1)


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return Tokenizer.load(corpus / "lang_bpe_60")


def test_a_file_gives_each_phrase_its_score(tokenizer, tmp_path):
    path = tmp_path / "words.txt"
    word = tokenizer.decode([i for i, s in enumerate(tokenizer.word_starts) if s][1:3])
    path.write_text(f"\n{word}\n  {word} {word}   :0.5\n", encoding="utf-8")
    graph = read_context_file(path, tokenizer, 1.5)
    [once, twice] = tokenizer.encode([word, f"{word} {word}"])
    assert once == twice[: len(once)]
    total, state = walk(graph, tuple(twice))
    # The second phrase continues the first, and holds it once more.
    second = 0.5 * (len(twice) - len(once)) + 1.5 * len(once)
    assert total == pytest.approx(1.5 * len(once) + second)
    assert graph.final_weight[state] == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no phrase in it"),
        ("tere\nta :x", "line 2: ':x' is not a number"),
        ("ta :nan", "line 1: ':nan' is not a number"),
        ("\n :2", "line 2: a score without a phrase"),
        ("ta\nta \u4e16", "line 2: the model has no token for '\u4e16'"),
        ("TA", "line 1: .* the model knows 'ta'"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_lines_that_cannot_be_used_are_refused_by_number(tokenizer, tmp_path, text, message):
    path = tmp_path / "words.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_context_file(path, tokenizer, 1.0)


def test_commands_take_hotwords_and_streaming_gives_what_decoding_gives(
    corpus, streaming_exp, tokenizer, tmp_path
):
    method = MODIFIED["decoding_method"]
    options = [f"--decoding-method={method}", "--split=test_seen", "--blank-penalty=4"]
    options.append("--num-workers=0")
    run(decode, corpus, streaming_exp, *options)
    before = tokens(streaming_exp / method, "test_seen")
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{tokenizer.decode(t)}\n" for t in ([9, 12], [20], [14, 30])))
    options += [f"--context-file={path}", "--context-score=12"]
    run(decode, corpus, streaming_exp, *options)
    run(streaming_decode, corpus, streaming_exp, *options, "--num-decode-streams=3")
    found = tokens(streaming_exp / method, "test_seen")
    assert found == tokens(streaming_exp / "streaming" / method, "test_seen") != before
    assert list((streaming_exp / method).glob("recogs-test_seen-*-context-words-score-12.0.txt"))


@pytest.mark.parametrize("command", [decode, streaming_decode])
@pytest.mark.parametrize(
    "options, message",
    [
        (["--context-file=x", "--decoding-method=greedy_search"], "not with greedy_search"),
        (["--context-file=x", "--decoding-method=beam_search"], "not with beam_search"),
        (["--context-file=x", "--decoding-method=fast_beam_search"], "not with fast_beam_search"),
        (["--context-file=x", "--decoding-method=modified_beam_search"], "x: no such file"),
        (["--context-score=3"], "needs --context-file"),
        (["--context-file=x", "--context-score=nan"], "nan: must be from -1000 to 1000"),
    ],
)
def test_searches_that_cannot_use_hotwords_refuse_them_by_name(
    corpus, streaming_exp, command, options, message
):
    with pytest.raises(UserError, match=message):
        run(command, corpus, streaming_exp, *options)


def test_streams_of_a_pool_have_their_own_hotwords(corpus, streaming_exp, tokenizer):
    model = load_model(CheckpointOptions(exp_dir=streaming_exp), streaming=True).model
    options = SearchOptions(**MODIFIED, blank_penalty=4.0)
    search = make_search(options, model, Bias(tokenizer.vocab_size))
    own = context_graph([([9, 12], 20.0), ([20], 20.0)], tokenizer.vocab_size)
    noise = 0.1 * torch.randn(24000, generator=torch.Generator().manual_seed(0))

    def found_with(*hotwords: TokenGraph | None) -> list[list[int]]:
        engine = StreamingEngine(model.encoder, search, num_slots=1)
        streams = [engine.open(str(i), graph) for i, graph in enumerate(hotwords)]
        for stream in streams:
            stream.accept(noise)
            stream.finish()
        while len(engine):
            engine.step()
        return [stream.result.tokens for stream in streams]

    together = found_with(None, own, None)
    assert together == found_with(None) + found_with(own) + found_with(None)
    assert together[0] == together[2] != together[1]
    assert 20 in together[1]
