"""The grid gives what ``decode`` and ``streaming_decode`` give from the waveform."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from local import streaming_table
from tests.support.decodes import run, tokens
from xlsr_transducer import decode, streaming_decode
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.audio_sets import audio_sets
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.grid import Grid, GridResult
from xlsr_transducer.search import SearchOptions

SETTINGS = [ChunkSettings(), ChunkSettings(8, 1, 0), ChunkSettings(16, 2, 4)]


@pytest.fixture(scope="module")
def results(corpus: Path, streaming_exp: Path) -> list[GridResult]:
    loaded = load_model(CheckpointOptions(exp_dir=streaming_exp), streaming=True)
    [audio] = audio_sets(corpus, "test_seen")
    return Grid(loaded, SearchOptions(blank_penalty=4.0), "pytorch").decode(audio, SETTINGS)


def by_utterance(results: Results) -> dict[str, tuple[list[int], list[int]]]:
    return {name: (h.tokens, h.frames) for name, h in results.hypotheses.items()}


def test_every_setting_gives_what_the_commands_give_from_the_waveform(
    corpus: Path, streaming_exp: Path, results: list[GridResult]
) -> None:
    for result in results:
        chunk = result.chunk
        options = ["--split=test_seen", "--blank-penalty=4", "--num-workers=0",
                   f"--decode-chunk-len={chunk.chunk_size}"]  # fmt: skip
        if not chunk.is_full_context:
            options += [f"--left-context-chunks={chunk.left_context_chunks}",
                        f"--attention-sink-size={chunk.attention_sink_size}"]  # fmt: skip
        run(decode, corpus, streaming_exp, *options)
        expected = tokens(streaming_exp / "greedy_search", "test_seen")
        assert by_utterance(result.simulated) == expected
        assert result.simulated.seconds > 0 and len(result.simulated.texts) == len(expected)
        if result.streamed is None:
            assert chunk.is_full_context
            continue
        run(streaming_decode, corpus, streaming_exp, *options)
        expected = tokens(streaming_exp / "streaming" / "greedy_search", "test_seen")
        assert by_utterance(result.streamed) == expected
        assert not result.differing()
    assert len({str(by_utterance(result.simulated)) for result in results}) == len(SETTINGS)


def test_a_difference_of_one_time_is_found_and_named(
    results: list[GridResult], streaming_exp: Path
) -> None:
    result = dataclasses.replace(results[1], streamed=results[1].streamed.sibling())
    result.streamed.hypotheses.update(results[1].streamed.hypotheses)
    name, found = next(iter(sorted(result.streamed.hypotheses.items())))
    frames = [found.frames[0] + 1, *found.frames[1:]]
    result.streamed.hypotheses[name] = dataclasses.replace(found, frames=frames)
    assert result.differing() == [name]
    loaded = load_model(CheckpointOptions(exp_dir=streaming_exp), streaming=True)
    table = streaming_table.Table(["test_seen"], [[result]], loaded.tokenizer)
    assert table.different == [f"test_seen {result.chunk.describe()} {name}"]
