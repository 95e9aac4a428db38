"""Pretrained weights: every spelling and container loads to the same network, bad files do not."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2Model

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr

POS_CONV = "encoder.pos_conv_embed.conv."
HEADS, HIDDEN, LAYERS = 4, 32, 2
SPELLINGS = {
    "parametrization": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    "weight_g": ("weight_g", "weight_v"),
    "short": ("g", "v"),
}


def tiny(group_norm: bool = False) -> Wav2Vec2Config:
    return Wav2Vec2Config(
        conv_dim=[16] * 7,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="group" if group_norm else "layer",
        do_stable_layer_norm=not group_norm,
        conv_bias=not group_norm,
        codevector_dim=16,
        proj_codevector_dim=16,
        num_codevectors_per_group=4,
        vocab_size=8,
    )


def drawn(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight at random: ones and zeros would hide that two were swapped."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(scope="module")
def theirs():
    return drawn(Wav2Vec2Model(tiny()))


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    theirs.config.save_pretrained(folder)
    weights = {k: v.contiguous() for k, v in theirs.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "xlsr")


@torch.no_grad()
def assert_same_network(source, theirs) -> None:
    checkpoint = load_xlsr(str(source))
    ours = Wav2Vec2(checkpoint.config, normalize="none").eval()
    ours.load_state_dict(checkpoint.weights, strict=True)
    x = torch.randn(1, 8000, generator=torch.Generator().manual_seed(2))
    found, _ = ours(x, torch.tensor([8000]))
    assert float((found - theirs(x).last_hidden_state).abs().max()) < 1e-5
    assert re.fullmatch("[0-9a-f]{64}", checkpoint.sha256)
    assert checkpoint.source == str(source)


def respelled(weights: dict, spelling: str) -> dict:
    names = [name for pair in SPELLINGS.values() for name in pair]
    stem = re.escape(POS_CONV) + "(" + "|".join(re.escape(n) for n in names) + ")$"
    g, v = (n for n in SPELLINGS[spelling])
    renamed = {}
    for key, value in weights.items():
        found = re.search(stem, key)
        if found:
            is_magnitude = found.group(1) in [pair[0] for pair in SPELLINGS.values()]
            key = key[: found.start(1)] + (g if is_magnitude else v)
        renamed[key] = value.contiguous()
    return renamed


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_folders_load_with_every_spelling_of_the_weight_norm(folder, theirs, spelling, container):
    weights = respelled(load_file(folder / "model.safetensors"), spelling)
    assert POS_CONV + SPELLINGS[spelling][0] in weights
    if container == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    else:
        save_file(weights, folder / "model.safetensors")
    assert_same_network(folder, theirs)


def test_a_positional_convolution_without_weight_norm_loads(folder, theirs):
    weights = load_file(folder / "model.safetensors")
    for key in [k for k in weights if k.startswith(POS_CONV) and not k.endswith("bias")]:
        del weights[key]
    weights[POS_CONV + "weight"] = theirs.encoder.pos_conv_embed.conv.weight.detach().contiguous()
    save_file(weights, folder / "model.safetensors")
    assert_same_network(folder, theirs)


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_sharded_folders_load(folder, theirs, container):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if container == "safetensors" else "pytorch_model"
    save = save_file if container == "safetensors" else torch.save
    keys = sorted(weights)
    shards = {}
    for i in range(3):
        name = f"{stem}-{i + 1:05d}-of-00003.{container}"
        save({k: weights[k] for k in keys[i::3]}, folder / name)
        shards.update(dict.fromkeys(keys[i::3], name))
    index = folder / f"{stem}.{container}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert_same_network(folder, theirs)
    (folder / f"{stem}-00002-of-00003.{container}").unlink()
    with pytest.raises(UserError, match="00002-of-00003"):
        load_xlsr(str(folder))
    index.write_text("{}")
    with pytest.raises(UserError, match="index.json"):
        load_xlsr(str(folder))


@pytest.mark.parametrize("kind", [Wav2Vec2ForCTC, Wav2Vec2ForPreTraining])
def test_models_with_a_head_load_without_it(tmp_path, kind):
    headed = drawn(kind(tiny()))
    headed.save_pretrained(tmp_path)
    assert_same_network(tmp_path, headed.wav2vec2)


def test_half_precision_weights_load_as_float32(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors")
    loaded = load_xlsr(str(folder)).weights
    assert {v.dtype for v in loaded.values()} == {torch.float32}


def fairseq_name(key: str) -> str:
    """The name that fairseq gives to what Hugging Face calls ``key``."""
    renames = (
        ("feature_projection.layer_norm.", "layer_norm."),
        ("feature_projection.projection.", "post_extract_proj."),
        ("masked_spec_embed", "mask_emb"),
        (POS_CONV, "encoder.pos_conv.0."),
        (".feed_forward.intermediate_dense.", ".fc1."),
        (".feed_forward.output_dense.", ".fc2."),
        (".attention.", ".self_attn."),
        (".conv.", ".0."),
    )
    for old, new in renames:
        if old in key:
            return key.replace(old, new)
    if key.startswith("encoder.layers.") and ".layer_norm." in key:
        return key.replace(".layer_norm.", ".self_attn_layer_norm.")
    return key


def fairseq_weights(network: Wav2Vec2Model) -> dict:
    weights = respelled(network.state_dict(), "weight_g")
    is_group_norm = network.config.feat_extract_norm == "group"
    renamed = {}
    for key, value in weights.items():
        name = fairseq_name(key)
        if name.startswith("feature_extractor"):
            name = name.replace(".layer_norm.", ".2." if is_group_norm else ".2.1.")
        renamed[name] = value
    renamed["quantizer.vars"] = torch.randn(1, 8, 8)
    renamed["project_q.weight"] = torch.randn(16, 16)
    renamed["final_proj.weight"] = torch.randn(16, HIDDEN)
    return renamed


OPTIONS = {"encoder_attention_heads": HEADS, "layer_norm_first": True, "encoder_layers": LAYERS}
FAIRSEQ = {
    "args": dict(args=argparse.Namespace(**OPTIONS), cfg=None),
    "cfg": dict(args=None, cfg={"model": {"_name": "wav2vec2", **OPTIONS}, "task": {"data": "x"}}),
    "fine-tuned": dict(args=None, cfg={"model": {"w2v_args": {"model": OPTIONS}}}),
    "fine-tuned-args": dict(args=argparse.Namespace(w2v_args=argparse.Namespace(**OPTIONS))),
}


@pytest.mark.parametrize("form", FAIRSEQ)
def test_fairseq_files_load_in_their_older_and_newer_forms(tmp_path, theirs, form):
    weights = fairseq_weights(theirs)
    if form.startswith("fine-tuned"):
        weights = {f"w2v_encoder.w2v_model.{k}": v for k, v in weights.items()}
        weights["w2v_encoder.proj.weight"] = torch.randn(8, HIDDEN)
    file = tmp_path / "xlsr.pt"
    torch.save({"model": weights, "optimizer_history": [{"loss": 1.0}], **FAIRSEQ[form]}, file)
    if torch.__version__.startswith("1.") and "args" in form:  # lets no Namespace through
        with pytest.raises(UserError, match="refused"):
            load_xlsr(str(file))
        return
    assert_same_network(file, theirs)


def test_fairseq_files_of_group_norm_networks_load(tmp_path):
    base = drawn(Wav2Vec2Model(tiny(group_norm=True)))
    options = {**OPTIONS, "layer_norm_first": False}
    torch.save({"model": fairseq_weights(base), "cfg": {"model": options}}, tmp_path / "base.pt")
    assert_same_network(tmp_path / "base.pt", base)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: str):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (self.trace,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("where", ["bin", "pt", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(folder, tmp_path, where):
    trace = tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    source = folder if where == "bin" else tmp_path / "bad.pt"
    file = folder / "pytorch_model.bin" if where == "bin" else source
    if where == "legacy":
        file.write_bytes(pickle.dumps({"model": Bomb(str(trace))}))
    else:
        torch.save({"model": Bomb(str(trace))}, file)
    with pytest.raises(UserError, match=re.escape(str(file))) as caught:
        load_xlsr(str(source))
    assert not trace.exists()
    assert re.search(r"refused, as .*(\.mkdir|(operand|operation) \d+)", str(caught.value))
    for advice in ("weights_only", "safe_globals", "trust"):  # PyTorch's, to load it all the same
        assert advice not in str(caught.value)
    torch.load(file, weights_only=False) if where != "legacy" else pickle.loads(file.read_bytes())
    assert trace.exists()  # so it was live


@pytest.mark.parametrize("container", ["safetensors", "bin", "pt"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_truncated_files_give_one_clear_error(folder, tmp_path, theirs, container, share):
    source = folder
    file = folder / "model.safetensors"
    if container == "bin":
        torch.save(load_file(file), folder / "pytorch_model.bin")
        file.unlink()
        file = folder / "pytorch_model.bin"
    if container == "pt":
        source = file = tmp_path / "xlsr.pt"
        torch.save({"model": fairseq_weights(theirs), "cfg": {"model": OPTIONS}}, file)
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(UserError, match=re.escape(str(file))):
        load_xlsr(str(source))


@pytest.mark.parametrize(
    "missing",
    [
        "encoder.layers.1.attention.k_proj.weight",
        "feature_extractor.conv_layers.3.conv.bias",
        "feature_projection.projection.weight",
        POS_CONV + "parametrizations.weight.original1",
        POS_CONV + "parametrizations.weight.original0",
        POS_CONV + "bias",
    ],
)
def test_a_missing_weight_is_named(folder, missing):
    weights = respelled(load_file(folder / "model.safetensors"), "parametrization")
    del weights[missing]
    save_file(weights, folder / "model.safetensors")
    name = missing.split("parametrizations")[0]
    with pytest.raises(UserError, match=re.escape(name).replace(r"conv\.", "conv|positional")):
        load_xlsr(str(folder))


@pytest.mark.parametrize("missing", ["post_extract_proj", "encoder.layers", "feature_extractor"])
def test_a_fairseq_file_without_a_part_is_refused(tmp_path, theirs, missing):
    weights = {k: v for k, v in fairseq_weights(theirs).items() if not k.startswith(missing)}
    torch.save({"model": weights, "cfg": {"model": OPTIONS}}, tmp_path / "xlsr.pt")
    with pytest.raises(UserError, match="xlsr.pt"):
        load_xlsr(str(tmp_path / "xlsr.pt"))


@pytest.mark.parametrize(
    "content", [{"state": 1}, [1, 2], {"model": 3}, {"model": {"mask_emb": "x"}}]
)
def test_a_pytorch_file_that_is_no_fairseq_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "xlsr.pt")
    with pytest.raises(UserError, match="xlsr.pt"):
        load_xlsr(str(tmp_path / "xlsr.pt"))


@pytest.mark.parametrize(
    "change",
    [
        dict(hidden_size=64),
        dict(num_hidden_layers=3),
        dict(intermediate_size=65),
        dict(num_conv_pos_embeddings=8),
        dict(num_conv_pos_embedding_groups=4),
        dict(conv_dim=[16] * 6 + [8]),
        dict(hidden_act="relu"),
        dict(conv_stride=[5, 2, 2, 2, 2, 2, 1]),
        dict(num_attention_heads=3),
        dict(hidden_size="large"),
        dict(hidden_size=None),
        dict(conv_dim=7),
        dict(num_attention_heads=0),
        dict(layer_norm_eps="small"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(folder, change):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=re.escape(str(folder))):
        load_xlsr(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff\xfe"])
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="config.json"):
        load_xlsr(str(folder))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_xlsr(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no such file or folder"):
        load_xlsr("nothing.pt")
    with pytest.raises(UserError, match="no config.json"):
        load_xlsr(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="neither model.safetensors nor pytorch_model.bin"):
        load_xlsr(str(tmp_path))
