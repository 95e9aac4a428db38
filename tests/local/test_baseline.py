"""Models of Hugging Face on the same sets, scored like the recogniser."""

from __future__ import annotations

import ast
import json
import socket
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", minversion="4.45")

from local import baseline
from tests.support.noise_sets import write_set
from tests.support.tiny_hugging_face import (
    write_ctc,
    write_encoder_decoder,
    write_translator,
    write_whisper,
)
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.evaluation.baseline import Baseline, BaselineOptions
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import find_results
from xlsr_transducer.recognition.plain_text import basic

KINDS = {"ctc": write_ctc, "whisper": write_whisper, "seq2seq": write_encoder_decoder}
TEXTS = ["Tere, ema on kodus.", "Ilm on hea", "ema"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("sets")
    write_set(data, "one", TEXTS, [1.5, 0.8, 1.1])
    return data


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is all that a model needs."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(model: Path, data: Path, out: Path, *more: str) -> int:
    return baseline.main([f"--model={model}", f"--data-dir={data}", f"--out={out}", *more])


def expected(folder: Path, kind: str, paths: list[str], language: str = "") -> list[str]:
    """The texts by the model's own classes, one utterance at a time, without the pipeline."""
    import torch
    from transformers import (
        AutoFeatureExtractor,
        AutoModelForCTC,
        AutoModelForSpeechSeq2Seq,
        AutoTokenizer,
    )

    extract = AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cls = AutoModelForCTC if kind == "ctc" else AutoModelForSpeechSeq2Seq
    model = cls.from_pretrained(folder).eval()
    texts = []
    for path in paths:
        inputs = extract(read_audio(path), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            if kind == "ctc":
                ids = model(**inputs).logits.argmax(-1)
            else:
                task = {"task": "transcribe"} if kind == "whisper" else {}
                if language:
                    task = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(language)}
                ids = model.generate(**inputs, **task)
        # CTC's blank is a special token too, and parts letters that are the same.
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=kind != "ctc"))
    return [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_its_texts_are_the_models_own_and_its_files_icefalls(
    kind: str, data: Path, tmp_path: Path
) -> None:
    model, out = KINDS[kind](tmp_path / "model"), tmp_path / "out"
    assert run(model, data, out, "--batch-size=2") == 0
    [files] = find_results(out)
    assert (files.method, files.set_name) == ("transformers", "one")
    records = files.read(Normalizer.parse("none"))
    wavs = [r.audio for r in records]
    assert [r.hyp for r in records] == expected(model, kind, wavs)
    assert [r.ref for r in records] == TEXTS
    assert any(r.hyp for r in records)
    lines = files.recogs.read_text(encoding="utf-8").splitlines()
    words = [ast.literal_eval(line.split("=", 1)[1]) for line in lines]
    assert [" ".join(w) for w in words[::2]] == [basic(text) for text in TEXTS]
    about = json.loads((out / "baseline.json").read_text())
    assert about["parameters"] > 0 and about["scored"] == "Whisper's basic normalisation"


def test_audio_beyond_whispers_window_changes_no_other_text(tmp_path: Path) -> None:
    model = Baseline(BaselineOptions(model=str(write_whisper(tmp_path / "model")), language="et"))
    draw = np.random.default_rng(0)
    waves = [draw.normal(0, 0.1, int(16000 * s)).astype(np.float32) for s in (33, 1, 2)]
    texts = model.texts(waves)
    assert all(texts) and texts == [model.texts([wave])[0] for wave in waves]


def test_a_language_that_the_model_lacks_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    model = write_whisper(tmp_path / "model")
    with pytest.raises(UserError, match="--model .*model: Unsupported language: qq"):
        run(model, data, tmp_path / "out", "--language=qq")


def test_bleu_is_told_of_texts_as_they_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("sacrebleu")
    model = write_encoder_decoder(tmp_path / "model")
    assert run(model, data, tmp_path / "out", "--metric=bleu") == 0
    assert "one: BLEU" in (told := capsys.readouterr().out) and "case:mixed" in told


@pytest.mark.parametrize("language", ["", "de_DE", "et_EE"])
def test_a_translator_writes_the_language_that_is_asked_for(
    language: str, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sacrebleu")
    model, out = write_translator(tmp_path / "model"), tmp_path / "out"
    given = [f"--language={language}"] if language else []
    assert run(model, data, out, "--metric=bleu", *given) == 0
    [files] = find_results(out)
    records = files.read(Normalizer.parse("none"))
    theirs = expected(model, "seq2seq", [r.audio for r in records], language)
    assert [r.hyp for r in records] == theirs and all(theirs)
    plain = expected(model, "seq2seq", [r.audio for r in records])
    assert (theirs == plain) == (not language), "a random decoder writes by what it begins with"


def test_a_language_that_a_translator_lacks_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    model = write_translator(tmp_path / "model")
    with pytest.raises(UserError, match="--language german: --model .*model has no such token"):
        run(model, data, tmp_path / "out", "--language=german")


def test_an_utterance_that_cannot_be_read_counts_as_deleted(tmp_path: Path) -> None:
    write_set(tmp_path / "data", "one", TEXTS, [1.5, 0.8, 1.1])
    (tmp_path / "data" / "wav" / "one-1.wav").unlink()
    model = write_ctc(tmp_path / "model")
    assert run(model, tmp_path / "data", tmp_path / "out") == 2
    [files] = find_results(tmp_path / "out")
    [lost] = [r for r in files.read(Normalizer.parse("basic")) if r.unread]
    assert lost.num_errors == 3 and not lost.hyp


@pytest.mark.parametrize("content", ["{}", "{", None])
def test_what_is_no_recogniser_is_refused_by_name(
    content: str | None, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match="model: no model of transformers that recognises speech"):
        run(folder, data, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("recogs-*"))
