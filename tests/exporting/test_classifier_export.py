"""Exported classifiers: Hugging Face's own class gives their logits, and loads them back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.support.label_corpus import LABELS, run_train
from xlsr_transducer import export
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.exporting import hugging_face_classifier, pretrained
from xlsr_transducer.exporting.formats import FormatOptions, Job
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel, load_model
from xlsr_transducer.model.config import StreamingOptions
from xlsr_transducer.model.encoder_options import EncoderOptions

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
OF_HF = ("--adapter=none", "--normalize=utterance", "--num-epochs=1")


@pytest.fixture(scope="module")
def exported(label_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training, ``exp``, in full context, and its exports: ``pretrained.pt`` and
    ``hf``."""
    folder = tmp_path_factory.mktemp("exported")
    run_train(label_data, folder / "exp", *OF_HF)
    given = [f"--exp-dir={folder / 'exp'}", f"--hf={folder / 'hf'}", f"--out-dir={folder}"]
    assert export.main(given) == 0
    return folder


def job(loaded: LoadedModel, folder: Path, **options) -> Job:
    chunk = loaded.config.streaming.default()
    return Job(loaded, chunk, "best", folder, FormatOptions(hf=folder / "again", **options))


def test_hugging_faces_class_gives_the_same_logits_on_a_ragged_batch(
    exported: Path, label_data: Path
) -> None:
    folder = exported / "hf"
    model = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    lists = label_data.parent / "lists"
    waves = [read_audio(lists / f"test-{i}.wav") for i in (8, 0, 4)]
    waves.append(waves[0][:400])  # one frame
    batch = extractor(waves, sampling_rate=16000, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch).logits
    assert [model.config.id2label[i] for i in range(3)] == sorted(LABELS)
    files = [{"checkpoint": folder}, {"checkpoint": exported / "pretrained.pt"}]
    for source in [{"exp_dir": exported / "exp"}, *files]:
        loaded = load_model(CheckpointOptions(**source))
        x = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waves], True)
        with torch.no_grad():
            encoded = loaded.model.encoder(x, torch.tensor([len(w) for w in waves]))
            ours = loaded.model.classifier(*encoded)
        torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
        assert loaded.tokenizer.tokens == sorted(LABELS)
    classify = transformers.pipeline("audio-classification", model=str(folder), device="cpu")
    found = classify(waves[0])
    assert found[0]["label"] == sorted(LABELS)[int(logits[0].argmax())]


def test_a_folder_of_hugging_face_is_written_back_with_its_weights(
    exported: Path, tmp_path: Path
) -> None:
    loaded = load_model(CheckpointOptions(checkpoint=exported / "hf"))
    hugging_face_classifier.write(job(loaded, tmp_path), tmp_path)
    a, b = (
        transformers.Wav2Vec2ForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (exported / "hf", tmp_path)
    )
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-6, atol=1e-7)


def test_a_streaming_classifier_is_written_as_pretrained_and_as_nothing_else(
    label_exp: Path, tmp_path: Path
) -> None:
    loaded = load_model(CheckpointOptions(exp_dir=label_exp))
    [artifact] = pretrained.write(job(loaded, tmp_path), tmp_path)
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (300, 9000)]
    files = [tmp_path / name for name in artifact.files]
    for given, found in zip(artifact.expected(waves), artifact.run(files, waves)):
        assert torch.equal(given.encoder_out, found.encoder_out)
    for format_name in ("onnx", "jit", "jit_trace", "wav2vec2_ctc"):
        flag = "--" + format_name.replace("_", "-")
        with pytest.raises(UserError, match=f"{flag} 1: the model is a classifier"):
            export.main([f"--exp-dir={label_exp}", f"--out-dir={tmp_path / 'out'}", f"{flag}=1"])
    assert not (tmp_path / "out").exists()


def test_what_hugging_faces_class_cannot_compute_is_refused_by_name(
    label_exp: Path, exported: Path, tmp_path: Path
) -> None:
    loaded = load_model(CheckpointOptions(checkpoint=exported / "hf"))
    config = loaded.config
    cumulative = dataclasses.replace(config.features, normalize="cumulative")
    for changed, why in (
        ({"encoder": EncoderOptions(adapter="conv")}, "--adapter conv: train with --adapter none"),
        ({"encoder": EncoderOptions(adapter="none", weighted_layers=True)}, "fixed meaning of"),
        ({"features": cumulative}, "--normalize cumulative: train with --normalize utterance"),
        ({"streaming": StreamingOptions(True)}, "chunk-32.*: give --decode-chunk-len -1"),
    ):
        other = dataclasses.replace(loaded, config=dataclasses.replace(config, **changed))
        with pytest.raises(UserError, match=f"Hugging Face's class has no {why}"):
            hugging_face_classifier.write(job(other, tmp_path), tmp_path)
    assert not list(tmp_path.iterdir())
