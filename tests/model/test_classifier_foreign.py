"""Classifiers of Hugging Face and fairseq in the place of checkpoints."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.support.label_corpus import LABELS, run_train
from tests.support.tiny_hugging_face import ENCODER
from xlsr_transducer import classify
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import (
    CheckpointOptions,
    LoadedModel,
    load_model,
    read_checkpoint,
    read_model,
)

transformers = pytest.importorskip("transformers")
LENGTHS = (9000, 400, 4321, 719, 16000)  # one frame twice


def write_folder(folder: Path, **config) -> transformers.Wav2Vec2ForSequenceClassification:
    """Saves a random classifier of three labels, with outputs that differ widely."""
    torch.manual_seed(0)
    labels = {0: "hiss", 1: "clicks", 2: "low hum"}
    given = transformers.Wav2Vec2Config(
        **{**ENCODER, "num_hidden_layers": 3, "classifier_proj_size": 7, "id2label": labels,
           "label2id": {v: k for k, v in labels.items()}, **config})  # fmt: skip
    model = transformers.Wav2Vec2ForSequenceClassification(given).eval()
    with torch.no_grad():
        for layer in (model.projector, model.classifier):
            layer.weight.normal_()
            layer.bias.normal_()
        if given.use_weighted_layer_sum:
            model.layer_weights.normal_()
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=config.get("do_normalize", True), return_attention_mask=True
    ).save_pretrained(folder)
    return model


def waves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [0.1 * torch.randn(n, generator=generator) + 0.02 for n in LENGTHS]


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    x = torch.nn.utils.rnn.pad_sequence(waves(), batch_first=True)
    with torch.no_grad():
        return loaded.model.classifier(*loaded.model.encoder(x, torch.tensor(LENGTHS)))


def summed(model: transformers.Wav2Vec2ForSequenceClassification, batch: dict) -> torch.Tensor:
    """The logits of a model with a weighted sum of layers, as transformers 4 computes them: the
    last layer counts after the outer norm. transformers 5 takes it from before."""
    found = model.wav2vec2(**batch, output_hidden_states=True)
    layers = torch.stack([*found.hidden_states[:-1], found.last_hidden_state])
    x = (layers * model.layer_weights.softmax(0).view(-1, 1, 1, 1)).sum(0)
    lens = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1))
    means = [frames[:n].mean(0) for frames, n in zip(model.projector(x), lens.tolist())]
    return model.classifier(torch.stack(means))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_folder_of_hugging_face_gives_its_logits_on_a_ragged_batch(
    tmp_path: Path, weighted: bool, normalize: bool
) -> None:
    options = {"use_weighted_layer_sum": weighted, "do_normalize": normalize}
    model = write_folder(tmp_path / "lid", **options)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "lid")
    arrays = [wave.numpy() for wave in waves()]
    batch = extractor(arrays, sampling_rate=16000, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = summed(model, batch) if weighted else model(**batch).logits
    loaded = load_model(CheckpointOptions(checkpoint=tmp_path / "lid"))
    assert loaded.tokenizer.tokens == ["hiss", "clicks", "low hum"]
    torch.testing.assert_close(logits_of(loaded), expected, rtol=1e-5, atol=1e-5)
    assert len(set(expected.argmax(1).tolist())) > 1 or expected.std(0).min() > 0.01


def test_classify_scores_a_foreign_folder_and_a_training_goes_on_from_it(
    label_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_folder(tmp_path / "lid")
    given = [f"--data-dir={label_data}", "--num-workers=0", f"--exp-dir={tmp_path / 'out'}"]
    assert classify.main([*given, f"--checkpoint={tmp_path / 'lid'}", "--split=test"]) == 0
    assert "test" in capsys.readouterr().out
    assert list((tmp_path / "out" / "classify").glob("accuracy-*-lid-*.txt"))
    init = (f"--xlsr={tmp_path / 'lid'}", f"--init-from={tmp_path / 'lid'}")
    more = ("--adapter=none", "--classifier-dim=7", "--num-epochs=1", "--base-lr=1e-9")
    run_train(label_data, tmp_path / "exp", *init, *more)
    ours = read_checkpoint(tmp_path / "exp" / "epoch-1.pt")
    theirs = read_model(tmp_path / "lid")
    order = [theirs["tokens"].index(label) for label in sorted(LABELS)]
    for part in ("weight", "bias"):
        name = f"heads.classifier.output.{part}"
        torch.testing.assert_close(ours["model"][name], theirs["model"][name][order])
        name = f"heads.classifier.projection.{part}"
        torch.testing.assert_close(ours["model"][name], theirs["model"][name])
    # Without the projection, the encoder alone is taken.
    run_train(label_data, tmp_path / "new", *init, *more[:1], *more[2:])
    assert "heads.classifier.projection.bias" not in read_checkpoint(
        tmp_path / "new" / "epoch-1.pt"
    )["model"]  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label does not name the 3 labels"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "the label 'a' occurs twice"),
        ({"add_adapter": True}, "add_adapter is set"),
    ],
)
def test_folders_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, change: dict, message: str
) -> None:
    write_folder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_model(CheckpointOptions(checkpoint=tmp_path))


def fairseq_names(folder: Path, model: transformers.Wav2Vec2ForSequenceClassification) -> dict:
    """The weights of a folder by fairseq's names, as far as known from its public code."""
    names = {
        "feature_projection.projection.": "post_extract_proj.",
        "feature_projection.layer_norm.": "layer_norm.",
        "masked_spec_embed": "mask_emb",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original": "encoder.pos_conv.0.",
        "encoder.pos_conv.0.0": "encoder.pos_conv.0.weight_g",
        "encoder.pos_conv.0.1": "encoder.pos_conv.0.weight_v",
        "encoder.pos_conv_embed.conv.bias": "encoder.pos_conv.0.bias",
        ".attention.": ".self_attn.",
        ".feed_forward.intermediate_dense.": ".fc1.",
        ".feed_forward.output_dense.": ".fc2.",
    }  # fmt: skip
    weights = {}
    for name, value in model.wav2vec2.state_dict().items():
        if name.startswith("encoder.layers.") and ".final_layer_norm." not in name:
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        if name.startswith("feature_extractor."):
            name = name.replace(".conv.", ".0.").replace(".layer_norm.", ".2.1.")
        for theirs, fairseq in names.items():
            name = name.replace(theirs, fairseq)
        weights[f"w2v_encoder.w2v_model.{name}"] = value
    for ours, fairseq in (("projector", "linear"), ("classifier", "projection")):
        for part in ("weight", "bias"):
            weights[f"pooling_layer.{fairseq}.{part}"] = model.state_dict()[f"{ours}.{part}"]
    return weights


def fairseq_content(folder: Path) -> tuple[dict, transformers.Wav2Vec2ForSequenceClassification]:
    model = write_folder(folder)
    options = {"_name": "wav2vec_classification", "pooling": "mean", "activation_fn": "linear",
               "w2v_args": {"model": {"encoder_attention_heads": 2}}}  # fmt: skip
    cfg = {"model": options, "task": {"_name": "audio_classification", "normalize": True}}
    return {"cfg": cfg, "args": None, "model": fairseq_names(folder, model)}, model


reads_fairseq = pytest.mark.skipif(
    torch.__version__.startswith("1."),
    reason="torch.load(weights_only) of PyTorch 1.13 lets no class of fairseq through",
)


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch):
    """An object as fairseq's checkpoints hold it: of a class that is not there when it is read."""
    module = types.ModuleType("fairseq.data.dictionary")

    class Dictionary:
        def __init__(self) -> None:
            self.symbols, self.count, self.indices = ["et", "lv", "fi"], [3, 2, 1], {"et": 0}

    Dictionary.__module__, Dictionary.__qualname__ = module.__name__, "Dictionary"
    module.Dictionary = Dictionary
    with monkeypatch.context() as patched:
        for name in ("fairseq", "fairseq.data"):
            patched.setitem(sys.modules, name, types.ModuleType(name))
        patched.setitem(sys.modules, module.__name__, module)
        yield Dictionary()


@reads_fairseq
def test_a_checkpoint_of_fairseq_gives_the_same_logits_and_its_labels(
    tmp_path: Path, dictionary
) -> None:
    content, _ = fairseq_content(tmp_path / "lid")
    expected = logits_of(load_model(CheckpointOptions(checkpoint=tmp_path / "lid")))
    content["task_state"] = {"target_dictionary": dictionary}
    torch.save(content, tmp_path / "lid.pt")
    loaded = load_model(CheckpointOptions(checkpoint=tmp_path / "lid.pt"))
    assert loaded.tokenizer.tokens == ["et", "lv", "fi"]
    torch.testing.assert_close(logits_of(loaded), expected)
    del content["task_state"]
    torch.save(content, tmp_path / "lid.pt")
    named = load_model(CheckpointOptions(checkpoint=tmp_path / "lid.pt"))
    assert named.tokenizer.tokens == ["0", "1", "2"]
    (tmp_path / "dict.lang.txt").write_text("ab 10\ncd 9\nef 8\n")
    named = load_model(CheckpointOptions(checkpoint=tmp_path / "lid.pt"))
    assert named.tokenizer.tokens == ["ab", "cd", "ef"]


@reads_fairseq
def test_checkpoints_of_fairseq_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    content, _ = fairseq_content(tmp_path / "lid")
    path = tmp_path / "lid.pt"

    def refusal(changed: dict) -> str:
        torch.save(changed, path)
        with pytest.raises(UserError) as refused:
            load_model(CheckpointOptions(checkpoint=path))
        return str(refused.value)

    for name, value in (("pooling", "max"), ("activation_fn", "gelu")):
        options = {**content["cfg"]["model"], name: value}
        wrong = {**content, "cfg": {**content["cfg"], "model": options}}
        assert refusal(wrong).startswith(f"{path}: {name} is {value!r}; only ")
    weights = dict(content["model"])
    del weights["pooling_layer.linear.bias"]
    assert "the weight pooling_layer.linear.bias is missing" in refusal(
        {**content, "model": weights}
    )

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    with open(path, "wb") as f:
        pickle.dump({**content, "extra": Evil()}, f)
    with pytest.raises(UserError, match="lid.pt"):
        load_model(CheckpointOptions(checkpoint=path))
