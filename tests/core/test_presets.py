"""Presets: they start a training, those of fairseq have its schedule, and what is wrong in one is
named with its line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from tests.support.stream_driver import TINY
from xlsr_transducer import train
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import from_args
from xlsr_transducer.core.presets import parse_with_preset, read_preset
from xlsr_transducer.data.datamodule import DataOptions, SplitSummary
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import LossOptions, TransducerOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.extent import Extent
from xlsr_transducer.training.gradient import Objective
from xlsr_transducer.training.optim import OptimOptions, make_optimizer, set_learning_rate
from xlsr_transducer.training.options import LoopOptions
from xlsr_transducer.training.state import Progress

CONF = Path(__file__).resolve().parents[2] / "conf"
ESTONIAN = sorted(CONF.glob("estonian_*.yaml"))
FAIRSEQ = sorted(CONF.glob("xlsr_ctc_*.yaml"))
BABEL, LAST = CONF / "xlsr_ctc_babel.yaml", CONF / "xlsr_ctc_common_voice_2b_streaming.yaml"
# finetune.yaml and README.md of fairseq's examples/wav2vec/xlsr.
UPDATES = {"babel": 26000, "common_voice": 13000, "voxpopuli": 50000, "mls_10h": 20000}
FROZEN = 10000


@pytest.mark.parametrize("preset", [*ESTONIAN, BABEL, LAST], ids=lambda path: path.stem)
def test_every_preset_starts_and_makes_five_steps(
    preset: Path, corpus: Path, tmp_path: Path
) -> None:
    train.main([f"--conf={preset}", f"--data-dir={corpus}", f"--xlsr={corpus / 'toy_xlsr'}",
                f"--exp-dir={tmp_path}", "--max-duration=12", "--total-duration=12",
                "--num-epochs=0", "--num-updates=5", "--num-buckets=2", "--num-workers=0",
                "--log-interval=1"])  # fmt: skip
    log = "".join(path.read_text() for path in tmp_path.glob("log/*"))
    steps = [int(n) for n in re.findall(r"epoch 1, step (\d+): .* grad norm", log)]
    assert steps == [1, 2, 3, 4, 5]
    settings = json.loads((tmp_path / "settings.json").read_text())
    written = read_preset(preset, train.get_parser())
    assert settings["OptimOptions"]["encoder_lr_scale"] == written["encoder_lr_scale"]
    assert settings["model"]["streaming"]["chunk_size"] == written.get("chunk_size", "")
    assert settings["DataOptions"]["max_duration"] == 12.0, "the command line comes first"
    assert settings["input"]["conf"] == str(preset)
    assert f"settings: {tmp_path / 'settings.json'}\n" in log, "the log names the file"
    assert len(log.splitlines()) < 40, "and does not repeat what is in it"


def test_the_presets_are_those_of_the_three_sizes() -> None:
    assert [p.stem for p in ESTONIAN] == ["estonian_1000h", "estonian_100h", "estonian_10h"]
    names = [list(read_preset(p, train.get_parser())) for p in ESTONIAN]
    assert names[0] == names[1] == names[2]


def test_fairseqs_presets_are_there_for_both_sizes_and_each_has_a_streaming_sibling() -> None:
    ends = ("", "_2b", "_streaming", "_2b_streaming")
    expected = {f"xlsr_ctc_{corpus}{end}" for corpus in UPDATES for end in ends}
    assert {p.stem for p in FAIRSEQ} == expected
    parser, own = train.get_parser(), ("normalize", "streaming", "chunk_size")
    own = (*own, "left_context_chunks", "attention_sink_size")
    for corpus in UPDATES:
        for end in ("", "_2b"):
            paths = (CONF / f"xlsr_ctc_{corpus}{end}{more}.yaml" for more in ("", "_streaming"))
            whole, streaming = (read_preset(path, parser) for path in paths)
            changed = {k for k in streaming if streaming[k] != whole.get(k)}
            assert changed == set(own) and whole.keys() <= streaming.keys()
            assert (whole["normalize"], streaming["normalize"]) == ("utterance", "cumulative")


@dataclasses.dataclass
class Prepared:
    """A preset's options, and a toy model that they make."""

    model: SpeechModel
    optimizer: object
    objective: Objective
    extent: Extent
    data: DataOptions

    @classmethod
    def of(cls, preset: Path) -> Prepared:
        args = parse_with_preset(train.get_parser(), [f"--conf={preset}"])
        optim, loss, data, loop, encoder, streaming = (
            from_args(kind, args)
            for kind in (OptimOptions, LossOptions, DataOptions, LoopOptions, EncoderOptions,
                         StreamingOptions)
        )  # fmt: skip
        features = FeatureInfo("toy", "0", args.cut, args.normalize, feature_dim=1)
        parts = (features, TINY, encoder, TransducerOptions(), streaming, 12, loss.names)
        config = ModelConfig(*parts)
        model = build_model(config)
        summary = SplitSummary(1000, 1e5, {})
        length = (loop.num_epochs, loop.num_updates)
        return cls(
            model,
            make_optimizer(model, optim),
            Objective(config, optim, loss, 0, None),
            Extent.of(summary, data, *length, world_size=1),
            data,
        )

    def rates(self, update: int) -> dict[str, float]:
        """The rate of every parameter that the update after ``update`` others changes."""
        self.objective.prepare(self.model, update)
        share = self.extent.share(Progress(step=update))
        set_learning_rate(self.optimizer, self.objective.optim, share, self.extent.num_updates)
        by_id = {id(p): g["lr"] for g in self.optimizer.param_groups for p in g["params"]}
        named = self.model.named_parameters()
        return {name: by_id[id(p)] for name, p in named if p.requires_grad}


def tri_stage_of_fairseq(updates: int, peak: float) -> list[float]:
    """The rates of all updates by fairseq's formulas: init_lr_scale 0.01, phase_ratio
    [0.1, 0.4, 0.5], final_lr_scale 0.05."""
    warm, hold, decay = (int(updates * ratio) for ratio in (0.1, 0.4, 0.5))
    slope, factor = (peak - 0.01 * peak) / warm, -math.log(0.05) / decay
    rising = [0.01 * peak + slope * i for i in range(warm)]
    return [*rising, *[peak] * hold, *[peak * math.exp(-factor * i) for i in range(decay + 1)]]


@pytest.mark.parametrize("preset", FAIRSEQ, ids=lambda path: path.stem)
def test_the_effective_schedule_is_fairseqs(preset: Path) -> None:
    corpus = preset.stem[len("xlsr_ctc_") :].replace("_streaming", "").replace("_2b", "")
    is_2b, updates = "_2b" in preset.stem, UPDATES[corpus]
    found = Prepared.of(preset)
    assert found.extent.num_updates == updates
    expected = tri_stage_of_fairseq(updates, 3e-5 if is_2b else 3e-4)
    assert len(expected) == updates + 1
    linear = {"heads.ctc.output.weight", "heads.ctc.output.bias"}
    everything = {n for n, _ in found.model.named_parameters()}
    learnt = {n for n in everything if ".feature_extractor." not in n}
    stages = [0, 1, updates // 10 - 1, updates // 10, updates // 2 - 1, updates // 2]
    stages += [FROZEN - 1, FROZEN, updates - 1, updates]
    for update in [*stages, *range(500, updates, 1000)]:
        rates = found.rates(update)
        assert rates.keys() == (linear if update < FROZEN else learnt), update
        assert list(set(rates.values())) == [pytest.approx(expected[update], rel=1e-9)], update
    assert found.rates(0)["heads.ctc.output.bias"] == pytest.approx(
        expected[2 * updates // 10] / 100
    )
    for group in found.optimizer.param_groups:
        assert (group["weight_decay"], group["betas"], group["eps"]) == (0.0, (0.9, 0.98), 1e-8)
    assert found.objective.optim.clip_grad == 0.0
    samples = (2_560_000, 24) if is_2b else (1_280_000, 4 * 5)
    assert found.data.max_duration == samples[0] / 16000
    assert found.data.total_duration == samples[0] * samples[1] / 16000


@pytest.mark.parametrize("preset", FAIRSEQ, ids=lambda path: path.stem)
def test_masks_and_dropout_are_fairseqs(preset: Path) -> None:
    made = Prepared.of(preset)
    encoder, model = made.model.encoder, made.model
    is_cv_2b = "common_voice_2b" in preset.stem
    assert (encoder.time_mask_prob, encoder.time_mask_length) == (0.3 if is_cv_2b else 0.75, 10)
    assert (encoder.channel_mask_prob, encoder.channel_mask_length) == (0.25, 64)
    assert encoder.has_fixed_masks and encoder.subsampling_factor == 1
    assert made.objective.config.encoder.layerdrop == 0.1
    shares = {name: m.p for name, m in model.named_modules() if hasattr(m, "p")}
    assert len(shares) > 5
    assert all(p == (0.1 if "activation" in name else 0.0) for name, p in shares.items())
    assert {layer.attention.dropout for layer in encoder.xlsr.encoder.layers.values()} == {0.0}
    assert set(model.heads) == {"ctc"} and made.objective.loss.ctc_loss_scale == 1.0


def test_a_preset_takes_over_what_its_base_has_and_it_has_not(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("seed: 3\ndropout: 0.2\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "middle.yaml").write_text("dropout: 0.3\nbase: ../below.yaml\n")
    path = tmp_path / "top.yaml"
    path.write_text("base: in/middle.yaml\nbase_lr: 0.1\n")
    expected = {"seed": 3, "dropout": 0.3, "base_lr": 0.1}
    assert read_preset(path, train.get_parser()) == expected
    (tmp_path / "below.yaml").write_text("seed: many\n")
    with pytest.raises(UserError, match="below.yaml:1: --seed many: must be a whole number"):
        read_preset(path, train.get_parser())
    (tmp_path / "below.yaml").write_text("seed: 3\nbase: top.yaml\n")
    with pytest.raises(UserError, match="below.yaml:2: top.yaml leads back to this file"):
        read_preset(path, train.get_parser())


def test_values_are_those_of_the_file_unless_the_command_line_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "base-lr: 1e-4  # a number to us, a string to YAML 1.1\nencoder_lr_scale: 0.5\n"
        "streaming: yes\nchunk_size: 16,-1\nexp_dir: some/where\ntrainable_layers: -1\n"
    )
    args = parse_with_preset(
        train.get_parser(), ["--conf", str(path), "--encoder-lr-scale", "0.7"]
    )
    assert (args.base_lr, args.encoder_lr_scale, args.trainable_layers) == (1e-4, 0.7, -1)
    assert args.streaming is True and args.chunk_size == "16,-1"
    assert args.exp_dir == Path("some/where") and args.optimizer == "adamw"
    args = parse_with_preset(train.get_parser(), ["--num-epochs", "3"])
    assert (args.conf, args.num_epochs, args.base_lr) == (None, 3, None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("base_lr: 0.1\n\nbase_rl: 0.1\n", "my.yaml:3: there is no option 'base_rl'.*base_lr?"),
        ("conf: other.yaml\n", "my.yaml:1: there is no option 'conf'"),
        ("# x\nnum-epochs: many\n", "my.yaml:2: --num-epochs many: must be a whole number"),
        ("optimizer: sgd\n", "my.yaml:1: --optimizer: invalid choice: 'sgd'"),
        ("streaming: perhaps\n", "my.yaml:1: --streaming perhaps: must be true or false"),
        ("seed:\n", "my.yaml:1: --seed '': must be a whole number"),
        ("\nbase_lr: -1\n", "my.yaml:2: --base-lr -1: must be above 0"),
        ("dropout: .nan\n", "my.yaml:1: --dropout .nan: must be a number"),
        ("seed: 1\nseed: 2\n", "my.yaml:2: seed is given twice"),
        ("chunk_size: [16, 32]\n", "my.yaml:1: an option has one plain value"),
        ("seed: !!python/object/apply:os.getpid []\n", "my.yaml:1: an option has one plain value"),
        ("- seed\n", "my.yaml: holds no options"),
        ("base: no.yaml\n", "my.yaml:1: base no.yaml: there is no such file"),
        ("seed: 1\nbase: my.yaml\n", "my.yaml:2: my.yaml leads back to this file"),
        ("", "my.yaml: holds no options"),
        ("seed: [1\n", "my.yaml: not YAML"),
    ],
)
def test_what_is_wrong_in_a_preset_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        parse_with_preset(train.get_parser(), ["--conf", str(path)])
