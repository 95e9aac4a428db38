"""Forced alignment: the best path is the best of all paths, and its times reach the files."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xlsr_transducer import align as command
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.decode import main as decode
from xlsr_transducer.loss.rnnt_loss import RNNT_TYPES, rnnt_loss
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.recognition.alignment import (
    align,
    align_ctc,
    best_path,
    ctc_best_path,
)
from xlsr_transducer.recognition.spans import token_spans, word_spans
from xlsr_transducer.search import Hypothesis, SearchOptions, make_search


def all_paths(blank: Tensor, emit: Tensor, rnnt_type: str) -> dict[tuple[int, ...], float]:
    """Score of every choice of frames for the tokens of one utterance, (T, S + 1) and (T, S)."""
    num_frames, num_tokens = emit.shape
    found = {}
    for frames in itertools.combinations_with_replacement(range(num_frames), num_tokens):
        if rnnt_type != "regular" and len(set(frames)) < num_tokens:
            continue
        score = 0.0
        for t in range(num_frames):
            here = [s for s in range(num_tokens) if frames[s] == t]
            score += sum(float(emit[t, s]) for s in here)
            if not here or rnnt_type != "modified":
                score += float(blank[t, sum(f <= t for f in frames)])
        found[frames] = score
    return found


def random_lattice(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    n, t, s = shape
    blank, emit = (3 * torch.randn(n, t, k, generator=g).double() for k in (s + 1, s))
    return -blank.abs(), -emit.abs()


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_best_of_all_paths_in_a_ragged_batch(rnnt_type: str, seed: int) -> None:
    blank, emit = random_lattice(seed, 7, 5, 3)
    lens = torch.tensor([5, 5, 4, 1, 3, 2, 0])
    token_lens = torch.tensor([3, 0, 2, 1, 3, 3, 2])
    score, frames = best_path(blank, emit, lens, token_lens, rnnt_type)
    for n, (T, S) in enumerate(zip(lens.tolist(), token_lens.tolist())):
        paths = all_paths(blank[n, :T, : S + 1], emit[n, :T, :S], rnnt_type) if T else {}
        if not paths:
            assert score[n] == -float("inf")
            continue
        best = max(paths, key=paths.__getitem__)
        assert float(score[n]) == pytest.approx(paths[best], abs=1e-9)
        assert tuple(frames[n, :S].tolist()) == best


def all_ctc_paths(log_probs: Tensor, tokens: list[int]) -> dict[tuple[int, ...], float]:
    """Score of every row of labels (T, V) that emits ``tokens``, blank being 0."""
    found = {}
    for labels in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [k for k, _ in itertools.groupby(labels) if k] == tokens:
            found[labels] = sum(float(log_probs[t, k]) for t, k in enumerate(labels))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_ctc_path_is_the_best_of_all_paths_in_a_ragged_batch(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    texts = [[1, 2, 3], [], [1, 1], [2, 2, 1], [1, 1], [3], [1, 2, 1], [2], [2, 2, 2]]
    lens = torch.tensor([6, 5, 3, 6, 2, 1, 3, 0, 6])
    log_probs = (3 * torch.randn(len(texts), 6, 4, generator=g).double()).log_softmax(-1)
    tokens = torch.zeros(len(texts), 4, dtype=torch.int64)
    for row, text in zip(tokens, texts):
        row[: len(text)] = torch.tensor(text)
    token_lens = torch.tensor([len(text) for text in texts])
    score, frames = ctc_best_path(log_probs, lens, tokens, token_lens, 0)
    infeasible = 0
    for n, text in enumerate(texts):
        paths = all_ctc_paths(log_probs[n, : lens[n]], text) if lens[n] else {}
        if not paths:
            assert score[n] == -float("inf")
            infeasible += 1
            continue
        best = max(paths, key=paths.__getitem__)
        assert float(score[n]) == pytest.approx(paths[best], abs=1e-9)
        begins = [t for t, k in enumerate(best) if k and (t == 0 or best[t - 1] != k)]
        assert frames[n, : len(text)].tolist() == begins
        if text:
            args = (torch.tensor([text]), lens[n : n + 1], token_lens[n : n + 1])
            loss = nn.functional.ctc_loss(log_probs[n].unsqueeze(1), *args, reduction="sum")
            everything = torch.tensor(list(paths.values()), dtype=torch.float64).logsumexp(0)
            assert float(everything) == pytest.approx(-float(loss), abs=1e-9)
    assert infeasible == 2  # no blank fits between equal tokens; no frames


class Network(nn.Module):
    """Decoder, joiner and CTC head with random weights, sharp enough to prefer some paths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.decoder, self.joiner = Decoder(9, 8), Joiner(6, 8, 16, 9)
        self.joiner.output_linear.weight.data *= 8
        self.ctc_output = nn.Linear(6, 9)
        self.ctc_output.weight.data *= 8


def test_the_score_is_one_term_of_the_loss_of_the_same_logits() -> None:
    network = Network()
    out, tokens = torch.randn(1, 6, 6), torch.tensor([[3, 1, 4]])
    [found] = align(network, out, torch.tensor([6]), tokens, torch.tensor([3]))
    decoder_out = network.decoder(torch.tensor([[0, 3, 1, 4]]))
    logits = network.joiner(out.unsqueeze(2), decoder_out.unsqueeze(1)).detach()
    log_probs = logits[0].double().log_softmax(-1)
    paths = all_paths(
        log_probs[..., 0], log_probs[:, :3].gather(2, tokens.T.expand(6, 3, 1))[..., 0], "regular"
    )
    assert found.score == pytest.approx(max(paths.values()), abs=1e-5)
    everything = torch.tensor(list(paths.values())).logsumexp(0)
    loss = rnnt_loss(logits.double(), tokens, 0, reduction="none")
    assert float(everything) == pytest.approx(-float(loss), abs=1e-5)


@pytest.mark.parametrize("align", [align, align_ctc])
def test_a_batch_gives_what_each_utterance_gives_alone(align) -> None:
    network = Network()
    out, tokens = torch.randn(4, 20, 6), torch.randint(1, 9, (4, 7))
    lens, token_lens = torch.tensor([20, 13, 1, 8]), torch.tensor([7, 4, 1, 0])
    together = align(network, out, lens, tokens, token_lens)
    for n in range(4):
        part = slice(n, n + 1)
        [alone] = align(network, out[part], lens[part], tokens[part], token_lens[part])
        assert (alone.tokens, alone.frames) == (together[n].tokens, together[n].frames)
        assert alone.score == pytest.approx(together[n].score, abs=1e-4)


def test_no_search_finds_a_better_path_for_its_own_text() -> None:
    network = Network()
    out, lens = torch.randn(3, 25, 6), torch.tensor([25, 11, 18])
    search = make_search(SearchOptions(), network)
    emitted = search.results(search.advance(out, lens, search.init_state(3)))
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(h.tokens) for h in emitted], batch_first=True)
    counts = torch.tensor([len(h.tokens) for h in emitted])
    assert int(counts.min()) > 2
    for hypothesis, found in zip(emitted, align(network, out, lens, tokens, counts, "modified")):
        assert found.tokens == hypothesis.tokens
        assert found.score >= hypothesis.score - 1e-4


def test_the_ctc_path_of_what_the_ctc_head_says_is_that_of_its_best_labels() -> None:
    network = Network()
    out, lens = torch.randn(3, 25, 6), torch.tensor([25, 11, 18])
    options = SearchOptions(decoding_method="ctc_greedy_search")
    search = make_search(options, network)
    emitted = search.results(search.advance(out, lens, search.init_state(3)))
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(h.tokens) for h in emitted], batch_first=True)
    counts = torch.tensor([len(h.tokens) for h in emitted])
    assert int(counts.min()) > 2
    for hypothesis, found in zip(emitted, align_ctc(network, out, lens, tokens, counts)):
        assert (found.tokens, found.frames) == (hypothesis.tokens, hypothesis.frames)
        assert found.log_probs == pytest.approx(hypothesis.log_probs, abs=1e-5)
        assert found.score == pytest.approx(hypothesis.score, abs=1e-4)


def test_spans_follow_each_other_and_share_a_frame() -> None:
    path = Hypothesis([1, 2, 1, 2], [3, 5, 5, 9], 0.0, [0.0, 0.0, -1e9, 0.0])
    spans = token_spans(path, ["<blk>", "\u2581a", "b"], 0.04)
    times = [(round(s.start, 4), round(s.end, 4)) for s in spans]
    assert times == [(0.12, 0.16), (0.2, 0.22), (0.22, 0.24), (0.36, 0.4)]
    words = word_spans(spans, [True, False, True, False], ["ab", "aB"])
    assert [(w.text, round(w.start, 4), round(w.end, 4), w.confidence) for w in words] == [
        ("ab", 0.12, 0.22, 1.0),
        ("aB", 0.22, 0.4, 0.5),
    ]
    with pytest.raises(ValueError, match="1 words, but 2"):
        word_spans(spans, [True, False, True, False], ["ab"])


@pytest.mark.parametrize("method, topology", [("transducer", "regular"), ("ctc", "ctc")])
def test_every_word_of_a_split_gets_a_time_in_ctm_and_textgrid(
    corpus: Path, streaming_exp: Path, method: str, topology: str
) -> None:
    arguments = [f"--exp-dir={streaming_exp}", f"--data-dir={corpus}", "--num-workers=0"]
    command.main([*arguments, "--split=test_seen", f"--method={method}"])
    decode([*arguments, "--split=test_seen"])
    recogs = next((streaming_exp / "greedy_search").glob("recogs-test_seen-*")).read_text()
    texts = {
        line.split(":\t")[0]: re.findall(r"'([^']*)'", line)
        for line in recogs.splitlines()
        if "\tref=" in line
    }
    [path] = (streaming_exp / "alignments").glob(f"test_seen-*-{topology}.ctm")
    emitted: dict[str, list[str]] = {}
    ends: dict[str, float] = {}
    for line in path.read_text().splitlines():
        name, channel, start, duration, word, confidence = line.split()
        assert channel == "1" and 0 <= float(confidence) <= 1
        assert float(duration) > 0 and float(start) >= ends.get(name, 0.0) - 2e-3
        emitted.setdefault(name, []).append(word)
        ends[name] = float(start) + float(duration)
    assert emitted == texts
    for name, words in texts.items():
        grid = (path.with_suffix("") / f"{name}.TextGrid").read_text()
        tier = grid.split("item [2]:")[0]
        shown = [w for w in re.findall(r'text = "(.*)"', tier) if w]
        assert shown == words
        lows, highs = (re.findall(rf"^ {{12}}{x} = (.*)$", tier, re.M) for x in ("xmin", "xmax"))
        assert lows[1:] == highs[:-1] and float(lows[0]) == 0
        assert [highs[-1]] * 3 == re.findall(r"^(?: {8})?xmax = (.*)$", grid, re.M)


def test_text_without_a_path_is_left_out_by_name(
    corpus: Path, streaming_exp: Path, capsys: pytest.CaptureFixture
) -> None:
    wav = next((corpus / "demo").rglob("*.wav"))
    arguments = [f"--exp-dir={streaming_exp}", f"--data-dir={corpus}", "--num-workers=0"]
    arguments += ["--rnnt-type=modified", str(wav)]
    command.main([*arguments, "--text", "tere  tulemast"])
    printed = capsys.readouterr()
    assert [line.split()[4] for line in printed.out.splitlines()] == ["tere", "tulemast"]
    assert command.main([*arguments, "--text", "tere tulemast " * 200]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.search(rf"error: {wav}: no path for \d+ tokens", printed.err)
    with pytest.raises(UserError, match="1 audio files, but 2 --text"):
        command.main([*arguments, "--text", "a", "--text", "b"])
    with pytest.raises(UserError, match="--text is empty"):
        command.main([*arguments, "--text", " "])
    with pytest.raises(UserError, match="--text 'tere 日本': '日本' has characters"):
        command.main([*arguments, "--text", "tere 日本"])


def test_what_the_ctc_lattice_lacks_is_refused_by_name(corpus: Path, streaming_exp: Path) -> None:
    arguments = [f"--exp-dir={streaming_exp}", f"--data-dir={corpus}", "--method=ctc"]
    with pytest.raises(UserError, match="--rnnt-type modified works with --method transducer"):
        command.main([*arguments, "--rnnt-type=modified"])
    for method, has in (("ctc", "transducer"), ("transducer", "ctc")):
        with pytest.raises(UserError, match=f"--method {method} needs .*; this one has {has}"):
            command._topology(method, "regular", [has])
    with pytest.raises(UserError, match="needs a model with that head; this one has classifier"):
        command._topology(None, "regular", ["classifier"])
    assert command._topology(None, "modified", ["transducer", "ctc"]) == "modified"
