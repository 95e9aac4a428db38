"""The toy checkpoint is a wav2vec 2.0 network that everyone can load, made repeatably."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from local.demo import speech
from local.demo.make_corpus import UNSEEN_VOICES, grammar_words
from local.demo.make_toy_xlsr import SHAPE, main, make_pretrained, make_random, random_network
from local.demo.pretraining import convolve
from local.demo.speech import HELD_OUT_WORDS, TRAINING_WORDS, VOICES, frame_labels
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr
from xlsr_transducer.model.xlsr_config import XlsrConfig

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
    assert "toy network" in (random_folder / "README.md").read_text()


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


def test_pretraining_shares_no_word_and_no_test_voice_with_the_demo():
    words = {word.lower() for word in TRAINING_WORDS + HELD_OUT_WORDS}
    assert len(words) > 800
    assert not words & {word.lower() for word in grammar_words()}
    assert not set(TRAINING_WORDS) & set(HELD_OUT_WORDS)
    assert not set(VOICES) & set(UNSEEN_VOICES)


def test_a_word_shared_with_the_demo_is_refused(monkeypatch):
    monkeypatch.setattr(speech, "WORDS", ("kala", "homme"))
    with pytest.raises(UserError, match="homme"):
        speech.check_separation()


def test_each_frame_is_labelled_with_the_phoneme_in_its_middle():
    starts, numbers = np.array([100, 600]), np.array([5, 7])
    # Frames begin every 320 samples; their middles are at 200, 520 and 840.
    assert frame_labels(starts, numbers, 400 + 2 * 320).tolist() == [5, 5, 7]
    assert frame_labels(starts + 150, numbers, 400).tolist() == [0]
    assert frame_labels(starts, numbers, 399).tolist() == []


def test_the_fast_front_end_of_training_equals_that_of_the_network():
    network = random_network(XlsrConfig.from_dict({**SHAPE.to_dict(), **TINY}), seed=1)
    torch.manual_seed(0)
    audio = torch.randn(2, 4321)
    expected, lens = network.feature_extractor(audio, torch.tensor([4321, 4321]))
    assert expected.shape[1] == int(lens[0])
    torch.testing.assert_close(convolve(network, audio), expected, atol=1e-5, rtol=0)


@pytest.mark.long
def test_pretraining_lowers_the_loss_and_can_be_repeated_on_any_number_of_cores(tmp_path):
    usual = torch.get_num_threads()
    seen = []
    for threads, name in ((1, "first"), (2, "again")):
        torch.set_num_threads(threads)
        try:
            seen.append(make_pretrained(tmp_path / name, 1, 12, TINY))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(usual)
    for losses in (seen[0].mel_losses, seen[0].phoneme_losses):
        assert losses[-1] < losses[0]
    assert len(seen[0].mel_losses) + len(seen[0].phoneme_losses) == 12
    assert 0 < seen[0].accuracy < 1
    assert seen[0] == seen[1]
    for name in ("README.md", "model.safetensors"):
        first, again = (tmp_path / folder / name for folder in ("first", "again"))
        assert first.read_bytes() == again.read_bytes()
    assert "12 steps" in (tmp_path / "first" / "README.md").read_text()
    checkpoint = load_xlsr(str(tmp_path / "first"))
    start = random_network(checkpoint.config, seed=1).state_dict()
    changed = [name for name, value in checkpoint.weights.items() if (value != start[name]).any()]
    assert len(changed) > 0.9 * len(start)


def test_a_negative_number_of_steps_is_refused(tmp_path):
    with pytest.raises(UserError, match="--steps -1"):
        main(["--out", str(tmp_path), "--steps", "-1"])
