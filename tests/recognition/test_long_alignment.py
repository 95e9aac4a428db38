"""Long recordings: windows lose nothing, a placement is the best of all, and times are true."""

from __future__ import annotations

import itertools
import random
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.recognition.test_alignment import all_ctc_paths
from tests.support.random_models import CHUNK, FULL, tokenizer, write_random_model
from tests.support.stream_driver import speech
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import HOP, OVERLAP
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition import long_encoding
from xlsr_transducer.recognition.long_alignment import Aligner, Unit
from xlsr_transducer.recognition.long_encoding import (
    Encoded,
    encode_recording,
    sound_levels,
    stored_seconds,
    windows,
)
from xlsr_transducer.recognition.placing import MATCH, SKIPPED, WRONG, place

# ---- placing


def best_fit(unit: Sequence[str], words: Sequence[str]) -> int:
    """The best score of a unit on all of ``words``, by plain recursion."""
    if not unit or not words:
        return WRONG * (len(unit) + len(words))
    first = MATCH if unit[0] == words[0] else WRONG
    return max(
        first + best_fit(unit[1:], words[1:]),
        WRONG + best_fit(unit[1:], words),
        WRONG + best_fit(unit, words[1:]),
    )


def best_total(units: Sequence[Sequence[str]], words: Sequence[str]) -> int:
    """The best score of all placements, each tried."""
    if not units:
        return SKIPPED * len(words)
    found = best_total(units[1:], words)
    for first, end in itertools.combinations(range(len(words) + 1), 2):
        here = SKIPPED * first + best_fit(units[0], words[first:end])
        found = max(found, here + best_total(units[1:], words[end:]))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_a_placement_is_the_best_of_all(seed: int) -> None:
    draw = random.Random(seed)
    units = [draw.choices("abc", k=draw.randint(1, 3)) for _ in range(draw.randint(0, 3))]
    words = draw.choices("abc", k=draw.randint(0, 6))
    found, at, total = place(units, words), 0, 0
    assert len(found) == len(units)
    for unit, stretch in zip(units, found):
        if stretch is not None:
            assert at <= stretch.first < stretch.end <= len(words)
            total += SKIPPED * (stretch.first - at) + best_fit(unit, words[slice(*stretch)])
            at = stretch.end
    assert total + SKIPPED * (len(words) - at) == best_total(units, words)


@pytest.mark.parametrize("vocabulary, wrong", [(2000, 0.15), (60, 0.0)])
def test_missing_and_extra_sentences_lead_nothing_astray(vocabulary: int, wrong: float) -> None:
    draw = random.Random(1)

    def sentence() -> list[str]:
        return [str(draw.randrange(vocabulary)) for _ in range(draw.randint(4, 9))]

    words: list[str] = []
    units: list[list[str]] = []
    true: list[tuple[int, int] | None] = []
    for _ in range(400):
        spoken = sentence()
        start = len(words)
        words += [w if draw.random() >= wrong else "?" for w in spoken]
        if draw.random() < 0.1:
            units.append(sentence())
            true.append(None)
        if draw.random() >= 0.1:
            units.append(spoken)
            true.append((start, len(words)))
    exact = 0
    for unit, stretch, truth in zip(units, place(units, words), true):
        if truth is None:  # nobody spoke it
            assert stretch is None
            continue
        right = sum(a == b for a, b in zip(unit, words[slice(*truth)]))
        if stretch is None:
            assert 2 * right <= len(unit)
            continue
        exact += tuple(stretch) == truth
        assert max(abs(a - b) for a, b in zip(stretch, truth)) <= len(unit) - right
    assert exact == sum(map(bool, true)) or wrong


@pytest.mark.parametrize("words, wanted", [("x a b q y", (1, 4)), ("x q b c y", (1, 4))])
def test_a_wrong_word_at_its_edge_belongs_to_a_unit(words: str, wanted: tuple[int, int]) -> None:
    assert place([["a", "b", "c"]], words.split()) == [wanted]


def test_nothing_is_placed_on_nothing() -> None:
    assert place([], ["a"]) == [] and place([["a"], []], []) == [None, None]
    assert place([[]], ["a"]) == [None]


# ---- windows and what is stored


@pytest.mark.parametrize("hop, count", [(HOP, 1), (2 * HOP, 0), (HOP, 50_001), (2 * HOP, 131_072)])
@pytest.mark.parametrize("size", [700, 60_000])
def test_windows_follow_each_other_and_lose_no_sample(hop: int, count: int, size: int) -> None:
    wave = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    pieces = [wave[i : i + size] for i in range(0, count, size)]
    found, at = list(windows(pieces, 40, hop)), 0
    for window in found[:-1]:
        frames = (len(window) - OVERLAP) // hop
        assert len(window) == frames * hop + OVERLAP and 20 <= frames <= 40
        assert np.array_equal(window, wave[at : at + len(window)])
        at += frames * hop
    assert np.array_equal(
        np.concatenate([wave[:0], *found[-1:]]), wave[at:] if found else wave[:0]
    )
    assert count <= OVERLAP or found


def test_a_window_ends_in_the_pause() -> None:
    wave = np.random.default_rng(0).standard_normal(100 * HOP + OVERLAP).astype(np.float32)
    wave[62 * HOP : 82 * HOP] *= 0.01
    first = next(windows([wave], 100, HOP))
    assert 62 * HOP < len(first) < 82 * HOP


def test_levels_are_decibels_and_hum_counts_little() -> None:
    rng, t = np.random.default_rng(0), np.arange(10 * HOP) / 16000
    noise = 0.1 * rng.standard_normal(10 * HOP)
    white = sound_levels(noise.astype(np.float32), HOP, 10)
    assert white == pytest.approx(10 * np.log10(0.01 * (1 + 0.97**2)) * np.ones(10), abs=1.5)
    hum = sound_levels((0.1 * np.sin(2 * np.pi * 50 * t)).astype(np.float32), HOP, 12)
    assert hum[1:10].max() < white.min() - 20 and hum[-1] == long_encoding.QUIETEST


@pytest.mark.parametrize("chunk, adapter", [(CHUNK, "conv"), (FULL, "none")])
def test_stored_frames_are_the_encoders_and_a_killed_run_goes_on(
    chunk, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_random_model(tmp_path / "m.pt", ["ctc"], adapter, chunk)
    encoder = load_model(CheckpointOptions(checkpoint=path)).model.encoder
    monkeypatch.setattr(long_encoding, "PART", 3.0)
    wave = speech(14 * 16000 + 123, 3, torch.float32).numpy()
    pieces = np.array_split(wave, 9)
    about = {"audio": "a"}

    def run(folder: Path, pieces) -> tuple[Encoded, float]:
        done: list[float] = []
        encoded = encode_recording(encoder, chunk, pieces, 2.0, folder, about, done.append)
        return encoded, sum(done)

    whole, seconds = run(tmp_path / "whole", iter(pieces))
    hop = HOP * encoder.subsampling_factor
    expected = []
    with torch.no_grad():
        for window in windows(pieces, round(2.0 / encoder.frame_seconds), hop):
            x = torch.from_numpy(window)[None]
            expected.append(encoder(x, torch.tensor([x.shape[1]]), *chunk)[0][0])
    assert whole.windows == [len(x) for x in expected] and len(whole.parts) > 2
    frames = whole.frames(0, whole.num_frames)
    torch.testing.assert_close(frames, torch.cat(expected), atol=2e-3, rtol=1e-3)
    assert (
        seconds == pytest.approx(whole.seconds) and abs(whole.seconds - len(wave) / 16000) < 0.05
    )
    levels = sound_levels(wave, HOP, whole.num_frames * encoder.subsampling_factor)
    assert np.abs(whole.levels(0, whole.num_frames) - levels)[:-2].max() < 0.5
    between = slice(whole.parts[0][0] + 1, sum(whole.parts[0]) + 5)
    assert torch.equal(whole.frames(between.start, between.stop), frames[between])

    def killed():
        yield from pieces[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed())
    there = stored_seconds(tmp_path / "killed", about, encoder.frame_seconds)
    assert 3 <= there < 10
    (tmp_path / "killed" / "frames-00099.npy.tmp").write_bytes(b"half")
    resumed, seconds = run(tmp_path / "killed", iter(pieces))
    assert seconds == pytest.approx(whole.seconds - there)
    assert resumed.parts == whole.parts
    assert torch.equal(resumed.frames(0, resumed.num_frames), frames)
    assert run(tmp_path / "killed", None)[1] == 0  # nothing is left to do
    about["audio"] = "b"
    assert stored_seconds(tmp_path / "killed", about, encoder.frame_seconds) == 0
    assert run(tmp_path / "killed", iter(pieces[:1]))[0].seconds < 2


# ---- aligning


V = tokenizer().vocab_size


def stored(folder: Path, logits: Tensor, window: int = 50) -> Encoded:
    """What ``encode_recording`` would leave of an encoder whose output is ``logits`` (T, V)."""
    folder.mkdir()
    counts = [len(part) for part in logits.split(window)]
    for kind, array in (
        ("frames", logits.half().numpy()),
        ("levels", np.zeros((len(logits), 2), np.float16)),
        ("windows", np.array(counts)),
    ):
        np.save(folder / f"{kind}-00000.npy", array)
    return Encoded(folder, (tuple(counts),), 0.04, 2)


def aligner() -> Aligner:
    """Of a model whose CTC head passes its input on."""
    output = nn.Linear(V, V, bias=False)
    nn.init.eye_(output.weight)
    encoder = types.SimpleNamespace(frame_seconds=0.04, like=torch.zeros(0))
    model = types.SimpleNamespace(encoder=encoder, ctc_output=output, decoder=None, joiner=None)
    return Aligner(model, tokenizer(), "ctc")


def words_of(count: int, seed: int) -> list[str]:
    """Words that the tokenizer spells."""
    draw = random.Random(seed)
    return ["".join(draw.choices("aeioklmnst", k=draw.randint(2, 5))) for _ in range(count)]


def spoken(words: Sequence[str], seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Logits (T, V) of words, and the frames of the first and last token of each."""
    draw = random.Random(seed)
    labels, places = [0] * 3, []
    for word in words:
        [ids] = tokenizer().encode([word])
        start = len(labels)
        for token in ids:
            start = start if token != ids[0] else min(start, len(labels))
            places_of = len(labels)
            labels += [token] + [0] * draw.randint(1, 4)
        places.append((start, places_of))
        labels += [0] * draw.choice([0, 0, 10])
    logits = torch.zeros(len(labels), V)
    logits[torch.arange(len(labels)), torch.tensor(labels)] = 9.0
    return logits, places


def test_sentences_get_their_times_where_text_is_missing_and_more(tmp_path: Path) -> None:
    sentences = [words_of(5, seed) for seed in range(60)]
    logits, places = spoken([w for s in sentences for w in s], 0)
    one = aligner()
    # Windows end between words, as they do in pauses.
    encoded = stored(tmp_path / "x", logits, len(logits))
    recognised = one.recognise(encoded)
    assert [w.span.text for w in recognised] == [w for s in sentences for w in s]
    draw, units, true = random.Random(3), [], []
    for k, sentence in enumerate(sentences):
        if draw.random() < 0.2:
            units.append(one.unit(words_of(5, 1000 + k)))
            true.append(None)
        if draw.random() >= 0.2:
            units.append(one.unit(sentence))
            true.append(k)
    found = one.align(encoded, units, recognised)
    for unit, aligned, k in zip(units, found, true):
        if k is None:
            assert aligned is None or aligned.odds > 5
            continue
        assert aligned.errors == 0 and [w.text for w in aligned.words] == list(unit.words)
        for span, (first, last) in zip(aligned.words, places[5 * k : 5 * k + 5]):
            assert span.start == pytest.approx(0.04 * first) and span.confidence > 0.9
            assert span.end == pytest.approx(0.04 * (last + 1))


def test_a_wrong_word_costs_what_all_paths_say(tmp_path: Path) -> None:
    """The odds are those of the best paths, found by trying all."""
    one = aligner()
    names = [i for i, t in enumerate(tokenizer().tokens) if len(t) == 2 and t[0] == "\u2581"][:2]
    a, b = names
    g = torch.Generator().manual_seed(0)
    logits = torch.full((6, V), -60000.0)
    logits[:, [0, a, b]] = torch.randn(6, 3, generator=g)
    logits[1, a], logits[4, a] = 4.0, 4.0
    logits[[0, 2, 3, 5], 0] = 4.0
    encoded = stored(tmp_path / "x", logits)
    recognised = one.recognise(encoded)
    texts = [tokenizer().tokens[i][1:] for i in (a, b)]
    assert [w.span.text for w in recognised] == [texts[0], texts[0]]
    [found] = one.align(encoded, [Unit((texts[0], texts[0], texts[1]), (a, a, b))], recognised)
    narrow = logits.half().double()[:, [0, a, b]].log_softmax(-1)
    best = {t: max(all_ctc_paths(narrow, list(t)).values()) for t in ((1, 1), (1, 1, 2))}
    assert found.errors == 1 and found.error_rate == pytest.approx(1 / 3)
    assert found.odds == pytest.approx(best[1, 1] - best[1, 1, 2], abs=1e-6)


def test_text_without_a_path_has_no_words(tmp_path: Path) -> None:
    one, words = aligner(), words_of(4, 1)
    encoded = stored(tmp_path / "x", spoken(words[:4], 0)[0])
    recognised = one.recognise(encoded)
    unit = Unit(tuple(words), one.unit(words).tokens[:1] * 500)
    [found] = one.align(encoded, [Unit((*words[:3], "x"), unit.tokens)], recognised)
    assert found.words == [] and found.odds == float("inf")


def test_what_the_tokens_cannot_spell_is_named() -> None:
    with pytest.raises(UserError, match="'日本' has characters that the model's tokens lack"):
        aligner().unit(["aa", "日本"])
    with pytest.raises(UserError, match="no words"):
        aligner().unit([])
    assert aligner().unit(["aa", "kes"]).words == ("aa", "kes")


@pytest.mark.parametrize("head", ["ctc", "transducer"])
def test_each_window_is_recognised_as_an_utterance(head: str, tmp_path: Path) -> None:
    from xlsr_transducer.search import SearchOptions, make_search

    path = write_random_model(tmp_path / "m.pt", [head])
    loaded = load_model(CheckpointOptions(checkpoint=path))
    wave = speech(12 * 16000, 5, torch.float32)
    folder, nobody = tmp_path / "work", lambda _: None
    encoded = encode_recording(
        loaded.model.encoder, CHUNK, [wave.numpy()], 3.0, folder, {}, nobody
    )
    recognised = Aligner(loaded.model, loaded.tokenizer, head).recognise(encoded)
    assert len(recognised) > 5
    method = "ctc_greedy_search" if head == "ctc" else "greedy_search"
    search = make_search(SearchOptions(decoding_method=method), loaded.model)
    texts, at = [], 0
    for count in encoded.windows:
        frames = encoded.frames(at, at + count)[None]
        state = search.advance(frames, torch.tensor([count]), search.init_state(1))
        texts += loaded.tokenizer.decode(search.results(state)[0].tokens).split()
        at += count
    assert [word.span.text for word in recognised] == texts
    starts = [word.span.start for word in recognised]
    assert starts == sorted(starts) and 0 <= starts[0] and starts[-1] < encoded.seconds
