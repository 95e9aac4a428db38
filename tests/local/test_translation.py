"""Translation: a toy language of noises, written in English, through every stage to BLEU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import compare_decodes, extract_features, prepare_lang, prepare_manifests, prepare_text
from local.demo.make_toy_xlsr import make_random
from tests.support.tiny_recipe import sharpen
from xlsr_transducer import decode, evaluate, streaming_decode, train
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import find_results

sacrebleu = pytest.importorskip("sacrebleu")

SENTENCES = ["one two three four", "two two one one", "three four one three", "four one four two"]


def sound(word: str, draw: np.random.Generator) -> np.ndarray:
    """Returns a third of a second: a word of the toy language, by its translation."""
    noise = draw.standard_normal(5100)
    kinds = {
        "one": noise,
        "two": 4 * np.convolve(noise, np.ones(40) / 40, "same"),  # low
        "three": 0.3 * np.diff(noise, 2),  # high
        "four": 8.0 * (np.arange(5100) % 160 == 0),  # pulses
    }
    return 0.05 * kinds[word][:5000] * np.hanning(5000)


def speak(sentence: str, draw: np.random.Generator) -> np.ndarray:
    """Returns the audio of a sentence in the toy language, with pauses and some noise."""
    parts = [np.zeros(int(draw.integers(800, 2400)))]
    for word in sentence.split():
        parts += [sound(word, draw), np.zeros(int(draw.integers(400, 800)))]
    audio = np.concatenate(parts)
    return audio + 0.001 * draw.standard_normal(len(audio))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder after stages 0 to 3; the same sentences, spoken anew, in each split."""
    folder, draw = tmp_path_factory.mktemp("translation"), np.random.default_rng(1)
    data = folder / "data"
    for split, count in (("train", 48), ("val", 4), ("test", 8)):
        lines = []
        for i in range(count):
            text = SENTENCES[i % len(SENTENCES)]
            soundfile.write(folder / f"{split}_{i}.wav", speak(text, draw), 16000)
            lines.append(f"{split}_{i}.wav|{text}|speaker\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    lists = [f"--{split}-list={folder / split}.txt" for split in ("train", "val", "test")]
    prepare_manifests.main([*lists, f"--data-dir={data}", "--lang=en"])
    prepare_text.main([f"--data-dir={data}", "--lang=en"])
    prepare_lang.main([f"--data-dir={data}", "--vocab-size=26"])
    make_random(data / "toy_xlsr", 0, {"num_hidden_layers": 1})
    extract_features.main(
        [f"--data-dir={data}", f"--xlsr={data / 'toy_xlsr'}", "--cut=frontend", "--single-process"]
    )
    return data


@pytest.mark.long
def test_texts_of_another_language_than_is_spoken_pass_every_stage_to_bleu(
    data: Path, tmp_path: Path
) -> None:
    """Sixteen steps teach no acoustics: the random joiner of ``sharpen`` writes something."""
    exp = tmp_path / "exp"
    train.main([
        f"--data-dir={data}", f"--exp-dir={exp}", "--num-updates=16", "--max-duration=16",
        "--streaming=1", "--encoder-dim=32", "--decoder-dim=32", "--joiner-dim=32",
        "--heads=transducer,ctc", "--base-lr=0.005", "--num-buckets=1", "--num-workers=0",
        "--tensorboard=0", "--average-period=0", "--save-every-n=0",
    ])  # fmt: skip
    history = json.loads((exp / "history.json").read_text())
    assert history[-1]["train"]["simple"] < 0.8 * history[0]["train"]["simple"]
    sharpen(exp, data.parent)
    words = [f"--exp-dir={exp}", f"--data-dir={data}"]
    decode.main([*words, "--split=test"])
    streaming_decode.main([*words, "--split=test"])
    whole, chunked = find_results(exp)
    tokens = [f.recogs.with_name(f"tokens-{f.recogs.stem[7:]}.jsonl") for f in (whole, chunked)]
    assert compare_decodes.main([str(path) for path in tokens]) == 0
    records = chunked.read(Normalizer.parse("none"))
    assert [r.ref for r in records] == [SENTENCES[i % len(SENTENCES)] for i in range(8)]
    written = set("".join(r.hyp for r in records)) - {"\u2047"}  # the unknown token
    assert len(written) > 1 and written <= set(" ".join(SENTENCES)), "letters of the text"
    more = ["--metric=bleu", "--grid=32/2/4", "--attention=0", "--cpu-layers=pytorch"]
    assert evaluate.main([*words, *more]) == 0
    report = (exp / "report" / "report.json").read_text()
    expected = sacrebleu.corpus_bleu([r.hyp for r in records], [[r.ref for r in records]])
    [score] = re.findall(r'"score": ([0-9.e-]+)', report)
    assert float(score) == pytest.approx(expected.score) and "case:mixed" in report
