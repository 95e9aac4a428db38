"""Our wav2vec 2.0 against Hugging Face's ``Wav2Vec2Model`` on random tiny networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr
from xlsr_transducer.model.xlsr_config import XlsrConfig

VARIANTS = {
    "xlsr": dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    "base": dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False),
    "layer-norm-post": dict(feat_extract_norm="layer", do_stable_layer_norm=False, conv_bias=True),
    "group-norm-stable": dict(
        feat_extract_norm="group", do_stable_layer_norm=True, conv_bias=False
    ),
    "odd-positional-kernel": dict(
        feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=15
    ),
}
LAYERS = 3
LENS = torch.tensor([16000, 9000, 5001, 400])


def tiny(**variant) -> Wav2Vec2Config:
    shape = dict(
        conv_dim=[16, 24, 32, 32, 32, 32, 40],
        hidden_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=96,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Wav2Vec2Config(**{**shape, **variant})


@pytest.fixture(scope="module", params=VARIANTS)
def networks(request, tmp_path_factory):
    """Hugging Face's network with every weight drawn at random, and its checkpoint as we read it.

    Norms and biases start as ones and zeros, which would hide a swapped weight.
    """
    torch.manual_seed(0)
    theirs = Wav2Vec2Model(tiny(**VARIANTS[request.param])).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return theirs, load_xlsr(str(folder))


def part(checkpoint, start="waveform", end="last", normalize="none") -> Wav2Vec2:
    ours = Wav2Vec2(checkpoint.config, start, end, normalize).eval()
    ours.load_state_dict({k: checkpoint.weights[k] for k in ours.state_dict()}, strict=True)
    return ours


def speech(seed: int = 0) -> torch.Tensor:
    return torch.randn(len(LENS), int(LENS.max()), generator=torch.Generator().manual_seed(seed))


def has_group_norm(checkpoint) -> bool:
    return checkpoint.config.feat_extract_norm == "group"


@torch.no_grad()
def hidden_states(theirs, x):
    """Front-end output, and outputs of layer 1 to L - 1."""
    out = theirs(x, output_hidden_states=True)
    return theirs.feature_extractor(x).transpose(1, 2), out.hidden_states, out.last_hidden_state


@torch.no_grad()
def test_single_utterances_give_what_hugging_face_gives(networks):
    theirs, checkpoint = networks
    ours, x = part(checkpoint), speech()
    for row, n in zip(x, LENS):
        out, lens = ours(row[None, :n], n[None])
        expected = theirs(row[None, :n]).last_hidden_state
        assert lens.tolist() == [expected.shape[1]] == [checkpoint.config.num_frames(int(n))]
        assert float((out - expected).abs().max()) < 1e-5


@torch.no_grad()
def test_padded_batches_give_what_hugging_face_gives(networks):
    theirs, checkpoint = networks
    if has_group_norm(checkpoint):
        pytest.skip("Hugging Face's group norm averages over the padding")
    x = speech()
    attention_mask = (torch.arange(x.shape[1]) < LENS.unsqueeze(1)).long()
    expected = theirs(x * attention_mask, attention_mask=attention_mask).last_hidden_state
    out, lens = part(checkpoint)(x, LENS)  # what lies in the padding does not matter
    for row, other, n in zip(out, expected, lens):
        assert float((row[:n] - other[:n]).abs().max()) < 1e-5
        assert not bool(row[n:].any())


@torch.no_grad()
def test_a_row_of_a_padded_batch_equals_the_row_alone(networks):
    _, checkpoint = networks
    ours, x = part(checkpoint).double(), speech().double()
    out, lens = ours(x, LENS)
    for row, audio, n, frames in zip(out, x, LENS, lens):
        alone, _ = ours(audio[None, :n], n[None])
        assert float((row[:frames] - alone[0]).abs().max()) < 1e-12


@torch.no_grad()
def test_every_level_gives_hugging_faces_hidden_state(networks):
    theirs, checkpoint = networks
    x, lens = speech()[:1], LENS[:1]
    frontend, hidden, last = hidden_states(theirs, x)
    expected = {"frontend": frontend, "last": last, str(LAYERS): last}
    expected.update({str(k): hidden[k] for k in range(1, LAYERS)})
    for level, value in expected.items():
        found, _ = part(checkpoint, end=level)(x, lens)
        assert float((found - value).abs().max()) < 1e-5, level
        assert found.shape[2] == checkpoint.config.feature_dim(level)


@torch.no_grad()
@pytest.mark.parametrize("view", [(-1, -1, 0), (8, 1, 3)])
def test_the_parts_below_and_above_a_level_make_the_whole(networks, view):
    _, checkpoint = networks
    x = speech().double()
    whole, lens = part(checkpoint).double()(x, LENS, *view)
    for level in ("frontend", "1", "2", "last"):
        below, above = part(checkpoint, end=level), part(checkpoint, start=level)
        features, feature_lens = below.double()(x, LENS, *view)
        found, found_lens = above.double()(features, feature_lens, *view)
        assert torch.equal(found_lens, lens)
        assert float((found - whole).abs().max()) < 1e-12, level
        names = set(below.state_dict()) | set(above.state_dict())
        assert names == set(checkpoint.weights)
        assert not set(below.state_dict()) & set(above.state_dict())


@torch.no_grad()
def test_whole_utterances_with_utterance_normalisation_equal_hugging_faces_pipeline(networks):
    theirs, checkpoint = networks
    loud = [3 * row[:n].numpy() + 0.5 for row, n in zip(speech(), LENS)]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    ours = part(checkpoint, normalize="utterance")
    if not has_group_norm(checkpoint):
        batch = extractor(loud, sampling_rate=16000, padding=True, return_tensors="pt")
        expected = theirs(**batch).last_hidden_state
        x = torch.from_numpy(np.stack([np.pad(w, (0, int(LENS.max()) - len(w))) for w in loud]))
        out, lens = ours(x, LENS, -1)
        for row, other, n in zip(out, expected, lens):
            assert float((row[:n] - other[:n]).abs().max()) < 1e-5
    for wave, n in zip(loud, LENS):
        batch = extractor([wave], sampling_rate=16000, return_tensors="pt")
        out, _ = ours(torch.from_numpy(wave)[None], n[None], -1)
        expected = theirs(batch.input_values).last_hidden_state
        assert float((out - expected).abs().max()) < 1e-5


@torch.no_grad()
def test_audio_below_400_samples_has_no_frames(networks):
    _, checkpoint = networks
    ours = part(checkpoint)
    for n in (0, 1, 399):
        out, lens = ours(torch.randn(1, n), torch.tensor([n]))
        assert lens.tolist() == [0] and not bool(out.any())
    out, lens = ours(speech(), torch.tensor([16000, 0, 399, 400]))
    assert lens.tolist() == [49, 0, 0, 1] and bool(out.isfinite().all())


def test_only_xlsrs_hop_and_receptive_field_are_accepted():
    values = tiny().to_dict()
    assert XlsrConfig.from_dict(values).receptive_field == 400
    values["conv_stride"] = [5, 2, 2, 2, 2, 2, 1]
    with pytest.raises(UserError, match="hop 160.*320"):
        XlsrConfig.from_dict(values)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(hidden_act="relu"), "hidden_act is 'relu'"),
        (dict(add_adapter=True), "add_adapter"),
        (dict(feat_extract_norm="batch"), "feat_extract_norm is 'batch'"),
        (dict(num_attention_heads=5), "hidden_size is no multiple"),
        (dict(conv_dim=[16, 16]), "differ in length"),
    ],
)
def test_networks_of_another_architecture_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        XlsrConfig.from_dict({**tiny().to_dict(), **change})


def test_configuration_survives_the_round_trip_through_json():
    config = XlsrConfig.from_dict(tiny(**VARIANTS["xlsr"]).to_dict())
    assert XlsrConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("level", ["0", "4", "-1", "top", "1.5", ""])
def test_levels_that_do_not_exist_are_refused(level):
    with pytest.raises(
        UserError, match="must be waveform, frontend, last, or a layer from 1 to 3"
    ):
        XlsrConfig.from_dict(tiny().to_dict()).number_of_level(level)


def test_a_part_cannot_run_downwards():
    with pytest.raises(ValueError, match="downwards"):
        Wav2Vec2(XlsrConfig.from_dict(tiny().to_dict()), start="2", end="1")


def test_time_mask_hides_frames_as_hugging_face_hides_them(networks):
    theirs, checkpoint = networks
    x, lens = speech()[:1], LENS[:1]
    hidden = torch.zeros(1, 49, dtype=torch.bool)
    hidden[0, 10:20] = True
    with torch.no_grad():
        features = theirs.feature_projection(theirs.feature_extractor(x).transpose(1, 2))[0]
        features[hidden] = theirs.masked_spec_embed
        expected = theirs.encoder(features).last_hidden_state
        found, _ = part(checkpoint)(x, lens, time_mask=hidden)
    assert float((found - expected).abs().max()) < 1e-5
