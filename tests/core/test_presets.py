"""Presets: each one starts a training, and what is wrong in one is named with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from xlsr_transducer import train
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.presets import parse_with_preset, read_preset

CONF = Path(__file__).resolve().parents[2] / "conf"
PRESETS = sorted(CONF.glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_starts_and_makes_five_steps(
    preset: Path, corpus: Path, tmp_path: Path
) -> None:
    train.main([f"--conf={preset}", f"--data-dir={corpus}", f"--xlsr={corpus / 'toy_xlsr'}",
                f"--exp-dir={tmp_path}", "--max-duration=12", "--total-duration=12",
                "--num-epochs=1", "--num-buckets=2", "--num-workers=0", "--log-interval=1",
                ])  # fmt: skip
    log = "".join(path.read_text() for path in tmp_path.glob("log/*"))
    steps = [int(n) for n in re.findall(r"epoch 1, step (\d+): .* grad norm", log)]
    assert steps and max(steps) >= 5
    settings = json.loads((tmp_path / "settings.json").read_text())
    written = yaml.safe_load(preset.read_text())
    assert settings["OptimOptions"]["encoder_lr_scale"] == written["encoder_lr_scale"]
    assert settings["model"]["streaming"]["chunk_size"] == written["chunk_size"]
    assert settings["DataOptions"]["max_duration"] == 12.0, "the command line comes first"
    assert settings["input"]["conf"] == str(preset)
    assert f"settings: {tmp_path / 'settings.json'}\n" in log, "the log names the file"
    assert len(log.splitlines()) < 40, "and does not repeat what is in it"


def test_the_presets_are_those_of_the_three_sizes() -> None:
    assert [p.stem for p in PRESETS] == ["estonian_1000h", "estonian_100h", "estonian_10h"]
    names = [list(read_preset(p, train.get_parser())) for p in PRESETS]
    assert names[0] == names[1] == names[2]


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
