"""The n-gram model: its estimate, the graph read back, and what it does to a search."""

from __future__ import annotations

import math
import random

import pytest
import torch

from local import make_ngram
from tests.support.decodes import run, tokens
from tests.support.language_models import NAMES, Plain, make_arpa, sentences
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
from xlsr_transducer.data.lm_text import texts_of
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search import Bias
from xlsr_transducer.search.context_graph import context_graph
from xlsr_transducer.search.lm.ngram import read_arpa, read_ngram_lm


@pytest.mark.parametrize("number, order", [(150, 3), (150, 1), (40, 2), (3, 4)])
def test_the_model_is_modified_kneser_ney_and_the_graph_reads_it(tmp_path, number, order):
    rows = sentences(number)
    plain = Plain(rows, order)
    if number >= 150 and order > 1:
        assert not all(plain.fell_back)
    graph = read_ngram_lm(make_arpa(tmp_path / "lm.arpa", rows, order), NAMES)
    generator = random.Random(1)
    for _ in range(12):
        emitted = [generator.randint(2, VOCAB - 1) for _ in range(generator.randint(0, 5))]
        state = torch.tensor([graph.start])
        for token in emitted:
            state = graph.step(state, torch.tensor([token]))
        history = tuple([0, *emitted][-(order - 1) :]) if order > 1 else ()
        expected = [plain.prob(history, w) for w in range(1, VOCAB)]
        assert sum(expected) == pytest.approx(1)
        weights = graph.weights(state)[0]
        assert weights[2:].tolist() == pytest.approx([math.log(p) for p in expected[1:]], abs=1e-4)
        assert weights[0] == 0 and weights[1] == weights[2]  # blank; sos/eos like unk


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return read_ngram_lm(make_arpa(folder / "lm.arpa", sentences(40), 3), NAMES)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_the_search_finds_what_the_plain_one_finds(lm, beam_size):
    search = biased(Bias(VOCAB, None, lm.scaled(0.6)), beam_size=beam_size)
    model = Plain(sentences(40), 3)
    x, lens = speech(LENS)
    for n, hyps in enumerate(search.nbest(whole(search, x, lens), 9)):
        pool: dict = {(): (0.0, [])}
        for t, frame in enumerate(x[n, : LENS[n]]):
            grown = []
            for emitted, (score, times) in pool.items():
                history = (0, *emitted)[-2:]
                for v, p in enumerate(log_probs_of(search, frame, emitted)):
                    gain = 0.6 * math.log(model.prob(history, max(v, 2))) if v else 0.0
                    end = ((v,), [t]) if v else ((), [])
                    grown.append((score + p + gain, emitted + end[0], times + end[1]))
            pool = {}
            for score, emitted, times in sorted(grown, reverse=True)[:beam_size]:
                add(pool, emitted, score, times)
        expected = sorted(pool.items(), key=lambda h: -h[1][0] / (len(h[0]) + 2))
        assert [tuple(h.tokens) for h in hyps] == [emitted for emitted, _ in expected]
        scores = [score for _, (score, _) in expected]
        assert [h.score for h in hyps] == pytest.approx(scores, abs=1e-3)


def test_a_scale_of_zero_changes_nothing_at_all(lm):
    x, lens = speech(LENS)
    search, plain = biased(Bias(VOCAB, None, lm.scaled(0.0))), biased(None)
    assert search.nbest(whole(search, x, lens), 4) == plain.nbest(whole(plain, x, lens), 4)


def test_language_model_and_hotwords_go_together_in_batches_and_pieces(lm):
    hotwords = context_graph([([3, 4], 1.5), ([9, 2], 3.0)], VOCAB)
    search = biased(Bias(VOCAB, hotwords, lm.scaled(0.3)))
    x, lens = speech([30, 12, 0, 21])
    own = [None, hotwords, None, context_graph([([7], 2.0)], VOCAB)]
    expected = search.results(search.advance(x, lens, search.init_state(4, hotwords=own)))
    state = search.init_state(4, hotwords=own)
    for at in range(0, 30, 7):
        piece = x[:, at : at + 7]
        state = search.advance(piece, (lens - at).clamp(0, piece.shape[1]), state)
    assert_same(search.results(state), expected)
    for n, graph in enumerate(own):
        alone = search.init_state(1, hotwords=[graph])
        alone = search.advance(x[n : n + 1], lens[n : n + 1], alone)
        assert_same(search.results(alone), expected[n : n + 1])


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("\tt5\t", "\tT5\t", "line 12 belongs to other tokens than the model's, .*no 'T5'"),
        ("\\1-grams:\n", "\\1-grams:\n-1\tx\n", "line 7 belongs to other tokens .* no 'x'"),
        ("\\1-grams:\n", "\\1-grams:\n-1\tt3\n", "line .* no n-gram of 1 .* or twice"),
        ("\\3-grams:\n", "\\3-grams:\n-1\tt3 x t3\n", "line .* no n-gram of 3 of the model's"),
        ("\\2-grams:\n", "\\2-grams:\nmuch\tt3 t3\n", "line .* no n-gram of 2 of the model's"),
        ("\\end\\", "", "not an ARPA file, or not all of one"),
    ],
)
def test_files_that_do_not_belong_to_the_model_are_refused(tmp_path, old, new, message):
    path = make_arpa(tmp_path / "lm.arpa", sentences(20), 3)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_ngram_lm(path, NAMES)


def test_the_order_of_lines_and_the_layout_of_the_file_change_nothing(tmp_path):
    path = make_arpa(tmp_path / "lm.arpa", sentences(40), 3)
    expected = read_ngram_lm(path, NAMES)
    header, *sections = path.read_text().split("\n\n")
    generator = random.Random(1)
    for number, section in enumerate(sections[:3]):
        title, *lines = section.splitlines()
        generator.shuffle(lines)
        lines = [line.replace("\t", "  ").replace("<unk>", "<UNK>") for line in lines]
        sections[number] = "\r\n".join([title.upper() + " ", *lines])
    path.write_bytes("\r\n \r\n".join(["made elsewhere", header, *sections]).encode())
    found = read_ngram_lm(path, NAMES)
    for name, value in vars(expected).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(getattr(found, name))), name


# Three orders as `lmplz` lays them out: <unk> first, words as they come, no back-off weight in
# the highest order, 0 for <s>. Its text lacks t9, t10 and t11.
KENLM = """\\data\\
ngram 1=9
ngram 2=4
ngram 3=1

\\1-grams:
-1.5\t<unk>\t0
0\t<s>\t-0.30103
-0.9\t</s>\t0
-0.7\tt4\t-0.2
-0.8\tt3\t-0.1
-1.1\tt8\t-0.15
-1.2\tt5\t0
-1.3\tt7\t0
-1.4\tt6\t0

\\2-grams:
-0.4\t<s> t4\t-0.05
-0.5\tt4 t3\t0
-0.6\tt3 </s>\t0
-0.3\tt3 t8\t0

\\3-grams:
-0.2\t<s> t4 t3

\\end\\
"""


@pytest.mark.parametrize("has_unk", [True, False])
def test_a_model_by_kenlm_gives_its_scores_and_one_of_fewer_pieces_is_refused(
    tmp_path, caplog, has_unk
):
    path = tmp_path / "lm.arpa"
    path.write_text(KENLM if has_unk else KENLM.replace("-1.5\t<unk>\t0\n", ""))
    graph = read_ngram_lm(path, NAMES)
    rarest = -1.5 if has_unk else -1.4
    lacking = 3 if has_unk else 4
    assert f"lacks {lacking} of {VOCAB} tokens" in caplog.text and "t9, t10, t11" in caplog.text

    def log10(*context: int) -> list[float]:
        state = torch.tensor([graph.start])
        for token in context:
            state = graph.step(state, torch.tensor([token]))
        return (graph.weights(state)[0] / math.log(10)).tolist()

    start = log10()  # after <s>: t4 is a bi-gram, the rest backs off
    assert start[4] == pytest.approx(-0.4) and start[3] == pytest.approx(-0.8 - 0.30103)
    assert [start[t] for t in (2, 9, 11)] == pytest.approx([rarest - 0.30103] * 3)
    after = log10(4)  # after <s> t4
    assert after[3] == pytest.approx(-0.2) and after[5] == pytest.approx(-1.2 - 0.05 - 0.2)
    assert log10(4, 3)[8] == pytest.approx(-0.3) and log10(9)[4] == pytest.approx(-0.7)

    joined = [*NAMES[:-1], "t3t8"]  # one piece, which the text of this file has in two
    with pytest.raises(UserError, match="other tokens than the model's, which joins 't3 t8'"):
        read_ngram_lm(path, joined)


def test_stage_5_makes_a_model_that_both_commands_use_alike(
    corpus, streaming_exp, tmp_path, monkeypatch
):
    lang_dir, method = corpus / "lang_bpe_60", MODIFIED["decoding_method"]
    make_ngram.main([f"--data-dir={corpus}", f"--lang-dir={lang_dir}"])
    arpa = lang_dir / "ngram_3.arpa"
    tokenizer = Tokenizer.load(lang_dir)
    text = tmp_path / "text.txt"
    text.write_text("Tere, tere!\n\n")
    other = read_ngram_lm(arpa, tokenizer.tokens)
    make_ngram.main([f"--data-dir={corpus}", f"--lang-dir={lang_dir}", f"--lm-text={text}"])
    assert len(read_ngram_lm(arpa, tokenizer.tokens).arc_key) < len(other.arc_key)

    make_ngram.main([f"--data-dir={corpus}", f"--lang-dir={lang_dir}"])
    options = [f"--decoding-method={method}", "--split=test_seen", "--blank-penalty=4"]
    options.append("--num-workers=0")
    run(decode, corpus, streaming_exp, *options)
    before = tokens(streaming_exp / method, "test_seen")
    options += [f"--ngram-lm={arpa}", "--ngram-lm-scale=4.5"]
    run(decode, corpus, streaming_exp, *options)
    run(streaming_decode, corpus, streaming_exp, *options, "--num-decode-streams=3")
    found = tokens(streaming_exp / method, "test_seen")
    assert found == tokens(streaming_exp / "streaming" / method, "test_seen") != before
    assert list((streaming_exp / method).glob("recogs-test_seen-*-ngram_3-scale-4.5.txt"))


def test_a_model_of_words_has_those_of_the_training_text_and_of_the_other_one(corpus, tmp_path):
    lang_dir, text = corpus / "lang_bpe_60", tmp_path / "text.txt"
    text.write_text("Zebra tere zebra <s>\n")
    options = [f"--data-dir={corpus}", f"--lang-dir={lang_dir}", "--unit=word", "--ngram-order=2"]
    make_ngram.main([*options, f"--lm-text={text}"])
    words, ngrams = read_arpa(lang_dir / "word_ngram_2.arpa")
    trained = {word for row in texts_of(corpus, "train") for word in row.split()}
    assert words[:4] == ["<s>", "</s>", "<unk>", "zebra"]
    assert set(words[3:]) == trained | {"zebra", "tere", "s"} and len(set(words)) == len(words)
    zebra, tere = words.index("zebra"), words.index("tere")
    assert (zebra, tere) in ngrams and (tere, zebra) in ngrams
    untrained = {ngrams[words.index(word),][0] for word in trained - {"tere", "s"}}
    assert len(untrained) == 1 and untrained.pop() < ngrams[zebra,][0]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--ngram-lm=x.pt", "--decoding-method=modified_beam_search"],
            "x.pt works with .*_LG only, not",
        ),
        (["--ngram-lm=x", "--decoding-method=fast_beam_search_LG"], "needs --ngram-lm .*LG.pt"),
        (["--decoding-method=fast_beam_search_nbest_LG"], "stage 7 of ./prepare.sh makes"),
        (["--ngram-lm=x", "--decoding-method=greedy_search"], "--ngram-lm .* not with greedy"),
        (["--ngram-lm=x", "--decoding-method=modified_beam_search"], "x: no such file; stage 5"),
        (["--ngram-lm-scale=3"], "needs --ngram-lm"),
        (["--ngram-lm=x", "--ngram-lm-scale=-1"], "must be 0 or more"),
    ],
)
def test_searches_that_cannot_use_a_model_refuse_it_by_name(
    corpus, streaming_exp, options, message
):
    with pytest.raises(UserError, match=message):
        run(decode, corpus, streaming_exp, *options)
