"""A whole recipe in miniature, made once per test session: corpus, features, training.

Random weights and a handful of utterances: it shows that the parts fit, not what they reach.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from local import extract_features, prepare_lang, prepare_manifests, prepare_text
from local.demo.make_toy_xlsr import make_random
from xlsr_transducer import train
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.model.checkpoint import (
    BEST,
    CheckpointOptions,
    load_model,
    read_checkpoint,
)
from xlsr_transducer.model.speech_model import SpeechModel

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--encoder-dim",
    "32",
    "--decoder-dim",
    "32",
    "--joiner-dim",
    "32",
    "--max-duration",
    "20",
    "--num-buckets",
    "2",
    "--num-workers",
    "0",
    "--ctc-loss-scale",
    "0.2",
    "--base-lr",
    "0.005",
    "--tensorboard",
    "0",
    "--warm-step",
    "10",
]


def run_train(data_dir: Path, exp_dir: Path, *more: str) -> int:
    """Trains two epochs, unless ``more`` says otherwise; returns the exit status."""
    return train.main(
        [
            "--data-dir",
            str(data_dir),
            "--exp-dir",
            str(exp_dir),
            "--num-epochs",
            "2",
            *SMALL,
            *more,
        ]
    )


def run_and_resume(data_dir: Path, folder: Path, *options: str) -> tuple[dict, dict]:
    """Returns the last checkpoints of a training in ``folder``/a and of one in ``folder``/b that
    resumes after the fifth step of the first."""
    run_train(data_dir, folder / "a", *options, "--save-every-n", "5")
    (folder / "b").mkdir()
    for name in ("checkpoint-5.pt", "xlsr_below_cut.pt"):
        shutil.copy(folder / "a" / name, folder / "b")
    run_train(data_dir, folder / "b", *options, "--start-batch", "5")
    straight, resumed = (read_checkpoint(folder / name / "epoch-2.pt") for name in "ab")
    return straight, resumed


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder after stages 0 to 2, with frontend features."""
    data = tmp_path_factory.mktemp("recipe") / "data"
    demo = data / "demo"
    # In a process of its own: within one, the synthesizer's state depends on what it spoke before,
    # and so would the corpus, and all that is trained on it.
    sizes = ["--num-train=30", "--num-val=4", "--num-test-seen=5", "--num-test-unseen=3"]
    command = [sys.executable, "-m", "local.demo.make_corpus", f"--out-dir={demo}", *sizes]
    subprocess.run(command, check=True, cwd=ROOT)
    lists = [f"--{split}-list={demo / split}.txt" for split in ("train", "val")]
    tests = [f"--test-list={demo / name}.txt" for name in ("test_seen", "test_unseen")]
    prepare_manifests.main([*lists, *tests, f"--data-dir={data}"])
    prepare_text.main([f"--data-dir={data}"])
    prepare_lang.main([f"--data-dir={data}", "--vocab-size=60"])
    make_random(data / "toy_xlsr", 0, {"num_hidden_layers": 2})
    extract_features.main(
        [f"--data-dir={data}", f"--xlsr={data / 'toy_xlsr'}", "--cut=frontend", "--single-process"]
    )
    return data


@pytest.fixture(scope="session")
def streaming_exp(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming model after two epochs with several chunk sizes.

    Two epochs teach it no acoustics, so in its best-valid-wer.pt, which decoding uses, the
    joiner is a random one that follows every detail of the encoder's output.
    """
    exp = tmp_path_factory.mktemp("exp-streaming")
    run_train(corpus, exp, "--streaming", "1", "--chunk-size", "16,8,-1",
              "--left-context-chunks", "2,1,-1", "--attention-sink-size", "4,0",
              "--save-every-n", "5", "--average-period", "1")  # fmt: skip
    sharpen(exp, corpus / "demo")
    return exp


def sharpen(exp: Path, demo: Path) -> None:
    """Puts a joiner and a CTC head into the best checkpoint that answer to the encoder's
    deviations; of random joiners the first for which rounding decides nothing in the tests."""
    loaded = load_model(CheckpointOptions(exp_dir=exp))
    model, chunk = loaded.model, loaded.config.streaming.default()

    def encode(wav: Path, *settings: int) -> torch.Tensor:
        samples = torch.from_numpy(read_audio(wav)).unsqueeze(0)
        return model.encoder(samples, torch.tensor([samples.shape[1]]), *settings)[0][0]

    inputs = ("heads.transducer.joiner.encoder_proj", "heads.ctc.output")
    content = read_checkpoint(exp / BEST)
    weights, generator = content["model"], torch.Generator().manual_seed(1)
    with torch.no_grad():
        frames = encode(next(demo.glob("train_*.wav")))
        encoded = [encode(wav, *chunk) for wav in sorted(demo.glob("test_*.wav"))]
        for _ in range(50):
            for name in (f"{inputs[0]}.weight", "heads.transducer.joiner.output_linear.weight",
                         f"{inputs[1]}.weight"):  # fmt: skip
                weights[name].copy_(torch.randn(weights[name].shape, generator=generator))
            for name in inputs:
                weights[f"{name}.weight"].div_(frames.std(0) * frames.shape[1] ** 0.5)
                weights[f"{name}.bias"] = -weights[f"{name}.weight"] @ frames.mean(0)
            model.load_state_dict(weights, strict=False)
            if min(closest_call(model, out) for out in encoded) > 10 * ROUNDING:
                save_atomically(content, exp / BEST)
                return
    raise AssertionError("every random joiner has a decision that rounding could turn")


ROUNDING = 1e-4  # of logits, between faster and plain layers


def closest_call(model: SpeechModel, frames: torch.Tensor) -> float:
    """The smallest lead of a best token over the second best, in greedy search of (T, D)."""
    context, lead = [-1, 0], float("inf")
    for frame in frames:
        context_out = model.decoder(torch.tensor([context]), need_pad=False)[:, 0]
        (best, second), (token, _) = model.joiner(frame.unsqueeze(0), context_out)[0].topk(2)
        lead = min(lead, float((best - second).detach()))
        if token != 0:
            context = [context[1], int(token)]
    return lead
