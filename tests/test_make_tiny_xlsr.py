"""The stand-in checkpoint is a wav2vec 2.0 network that everyone can load, made repeatably."""

from __future__ import annotations

import json

import pytest
import torch

from local.make_tiny_xlsr import make_random
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr

TINY = {"conv_dim": [8] * 7, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    return make_random(tmp_path_factory.mktemp("random"), seed=3)


def hugging_face_outputs(folder, audio):
    transformers = pytest.importorskip("transformers")
    model, report = transformers.Wav2Vec2Model.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(audio).last_hidden_state


def test_transformers_and_the_project_load_it_with_equal_outputs(random_folder):
    torch.manual_seed(0)
    audio = torch.randn(2, 8000)
    checkpoint = load_xlsr(str(random_folder))
    network = Wav2Vec2(checkpoint.config, normalize="none").eval()
    network.load_state_dict(checkpoint.weights)
    with torch.no_grad():
        ours, lens = network(audio, torch.tensor([8000, 8000]))
    assert lens.tolist() == [24, 24]
    theirs = hugging_face_outputs(random_folder, audio)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_it_has_the_architecture_of_xlsr(random_folder):
    config = json.loads((random_folder / "config.json").read_text())
    assert config["model_type"] == "wav2vec2"
    assert config["feat_extract_norm"] == "layer" and config["conv_bias"]
    assert config["do_stable_layer_norm"] and config["num_feat_extract_layers"] == 7
    preprocessor = json.loads((random_folder / "preprocessor_config.json").read_text())
    assert preprocessor["do_normalize"] and preprocessor["return_attention_mask"]
    assert "stand-in" in (random_folder / "README.md").read_text()


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    first = make_random(tmp_path / "first", seed=1, config_overrides=TINY)
    again = make_random(tmp_path / "again", seed=1, config_overrides=TINY)
    other = make_random(tmp_path / "other", seed=2, config_overrides=TINY)
    names = sorted(path.name for path in first.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes()
    weights = "model.safetensors"
    assert (first / weights).read_bytes() != (other / weights).read_bytes()
