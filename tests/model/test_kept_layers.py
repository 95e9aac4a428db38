"""Models of some of XLSR's layers: which they are, what they compute, and that they stream."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from tests.model.test_streaming_encoder import difference, masked, three_waves
from tests.support.random_models import write_random_model
from tests.support.stream_driver import TINY, serve, speech
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, with_layers
from xlsr_transducer.model.encoder import StreamingXLSREncoder, XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions, kept_layers
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint
from xlsr_transducer.model.xlsr_config import XlsrConfig

FULL = StreamingOptions()


def network(num_layers: int, **shape) -> XlsrCheckpoint:
    """A random XLSR."""
    config = dataclasses.replace(TINY, num_hidden_layers=num_layers, **shape)
    weights = Wav2Vec2(config).state_dict()
    changed = {name: value + 0.1 * torch.randn_like(value) for name, value in weights.items()}
    return XlsrCheckpoint(config, changed, "random", "0" * 64)


def test_layers_are_chosen_by_numbers_and_ranges_in_their_order() -> None:
    def chosen(layers: str) -> list[int]:
        return kept_layers(EncoderOptions(keep_layers=layers), 24)

    assert chosen("") == list(range(24))
    assert chosen("0,2-4, 23") == [0, 2, 3, 4, 23]
    for wrong in ("24", "-1", "5-3", "x", "1,", "12-24", "²"):
        with pytest.raises(UserError, match=r"--keep-layers .*within 0 to 23"):
            chosen(wrong)
    for wrong in ("3,1", "1,1", "0-4,4"):
        with pytest.raises(UserError, match=f"--keep-layers {wrong}: must ascend"):
            chosen(wrong)


def test_the_model_has_as_many_layers_as_are_kept() -> None:
    given = EncoderOptions(keep_layers="0-2,5", mixer="bimamba2", mixer_layers="3")
    for cut in ("waveform", "frontend", "3"):
        encoder, _, xlsr = with_layers(given, FULL, XlsrConfig(), cut)
        assert (encoder.keep_layers, encoder.mixer_layers) == ("0,1,2,5", "3")
        assert xlsr == dataclasses.replace(XlsrConfig(), num_hidden_layers=4)
    with pytest.raises(UserError, match="--mixer-layers 4: .* within 0 to 3"):
        with_layers(dataclasses.replace(given, mixer_layers="4"), FULL, XlsrConfig(), "frontend")
    everything = EncoderOptions(keep_layers="0-23")
    assert with_layers(everything, FULL, XlsrConfig(), "last")[0].keep_layers == ""


@pytest.mark.parametrize(
    "cut, keep", [("4", "0,1,2,4"), ("4", "0-3"), ("4", "8-12"), ("last", "0-3"), ("24", "23")]
)
def test_features_from_above_a_layer_need_that_layer(cut: str, keep: str) -> None:
    below = 24 if cut == "last" else int(cut)
    message = (
        f"--keep-layers {keep}: .* --cut {cut} have passed layers 0 to {below - 1} .*frontend"
    )
    with pytest.raises(UserError, match=message):
        with_layers(EncoderOptions(keep_layers=keep), FULL, XlsrConfig(), cut)


def test_a_stored_configuration_must_name_all_of_its_layers(tmp_path) -> None:
    xlsr = dataclasses.replace(TINY, num_hidden_layers=2)
    path = write_random_model(tmp_path / "model.pt", ("ctc",), xlsr=xlsr, keep_layers="0,4")
    config = load_model(CheckpointOptions(checkpoint=path)).config
    assert config.kept_layers == [0, 4] and config.xlsr.num_hidden_layers == 2
    for damaged in ("0", "0,1,2", "0,x"):
        values = config.to_dict()
        values["encoder"]["keep_layers"] = damaged
        with pytest.raises(UserError, match="configuration is not understood"):
            ModelConfig.from_dict(values)


@pytest.mark.parametrize("is_stable", [True, False])
def test_it_computes_what_hugging_face_does_without_the_other_layers(is_stable: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = dataclasses.replace(TINY, num_hidden_layers=5, do_stable_layer_norm=is_stable)
    theirs = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**dataclasses.asdict(shape)))
    theirs = theirs.double().eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    theirs(torch.zeros(1, 4000).double())  # old versions compute the convolution's weight here
    convolution = theirs.encoder.pos_conv_embed.conv
    weights = {k: v for k, v in theirs.state_dict().items() if "pos_conv" not in k}
    position = "encoder.pos_conv_embed.conv."
    weights.update({position + "weight": convolution.weight, position + "bias": convolution.bias})
    kept = XlsrCheckpoint(shape, weights, "random", "0" * 64).with_layers([0, 1, 4])
    own = Wav2Vec2(kept.config, normalize="none").double().eval()
    own.load_state_dict(kept.weights)
    layers = theirs.encoder.layers
    theirs.encoder.layers = torch.nn.ModuleList([layers[i] for i in (0, 1, 4)])
    x = torch.stack([speech(8000, i) for i in range(2)])
    with torch.no_grad():
        expected = theirs(x).last_hidden_state
        found, _ = own(x, torch.tensor([8000, 8000]))
    assert float((found - expected).abs().max()) < 1e-10


def test_any_prefix_may_stand_before_the_layers() -> None:
    from xlsr_transducer.model.xlsr_checkpoint import of_layers

    names = ["heads.ctc.output.weight", "encoder.xlsr.encoder.layer_norm.weight"]
    names += [f"encoder.xlsr.encoder.layers.{i}.attention.k_proj.bias" for i in (0, 2, 10, 12)]
    chosen = of_layers({name: torch.tensor(i) for i, name in enumerate(names)}, [2, 12])
    renamed = {name.replace("layers.2.", "layers.0.") for name in names[3:4]}
    renamed |= {name.replace("layers.12.", "layers.1.") for name in names[5:]}
    assert chosen.keys() == {*names[:2], *renamed}
    assert sorted(int(value) for value in chosen.values()) == [0, 1, 3, 5]


def random_student(rng: random.Random) -> tuple[StreamingXLSREncoder, ChunkSettings]:
    """A float64 encoder of random layers of a random XLSR, with random mixers, and a setting."""
    source = network(rng.randint(3, 5), do_stable_layer_norm=rng.random() < 0.7)
    numbers = range(source.config.num_hidden_layers)
    kept = sorted(rng.sample(numbers, rng.randint(1, len(numbers) - 1)))
    mixed = sorted(rng.sample(range(len(kept)), rng.randint(1, len(kept))))
    given = EncoderOptions(
        encoder_dim=32,
        mixer="bimamba2",
        mixer_layers=",".join(map(str, mixed)),
        mixer_residual=rng.random() < 0.5,
        keep_layers=",".join(map(str, kept)),
        weighted_layers=rng.random() < 0.3,
    )
    options, _, xlsr = with_layers(given, FULL, source.config, "waveform")
    left, sinks = rng.choice(((0, 0), (0, 3), (1, 0), (3, 4), (-1, 0)))
    if len(mixed) == len(kept):
        left, sinks = 0, 0
    chunk = ChunkSettings(rng.choice((2, 6, 16, 30)), left, sinks)
    encoder = StreamingXLSREncoder(xlsr, options, chunk=chunk).eval()
    part = source.with_layers(kept).weights
    own = encoder.xlsr.state_dict()
    encoder.xlsr.load_state_dict({**own, **{k: v for k, v in part.items() if k in own}})
    for name, parameter in encoder.named_parameters():
        if name.endswith(("dt_bias", "out_proj.weight")):  # so that states matter
            parameter.data.copy_(3 * parameter.data + 0.5 * torch.randn_like(parameter))
    return encoder.double(), chunk


@pytest.mark.parametrize("seed", range(6))
def test_at_random_settings_it_streams_what_it_simulates(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    encoder, chunk = random_student(rng)
    waves: list[Tensor] = three_waves(chunk.chunk_size, torch.float64)
    waves.append(speech(rng.randint(1, 4000), seed))
    starts = [rng.randint(0, 5) for _ in waves]
    streamed = serve(encoder, waves, starts=starts)
    assert difference(streamed, masked(encoder, waves, chunk)) < 1e-10, (seed, chunk)


def test_a_sum_of_layers_is_one_of_those_that_are_kept() -> None:
    options = EncoderOptions(keep_layers="1,3", weighted_layers=True)
    encoder, _, xlsr = with_layers(options, FULL, network(4).config, "frontend")
    assert XLSREncoder(xlsr, encoder, "frontend").layer_weights.shape == (3,)
