"""The README.md that goes with exported XLSR weights, filled from the folder of the run."""

from __future__ import annotations

import json
from pathlib import Path

from xlsr_transducer.exporting.formats import Job

CARD = """---
library_name: transformers
tags:
- wav2vec2
- automatic-speech-recognition
---
{about}

| | |
|---|---|
{facts}

## Data

{data}

## Word error rates of the recogniser

{rates}

## Settings of the training

{settings}
"""

XLSR_ALONE = """# XLSR out of a transducer

The XLSR network (wav2vec 2.0) of a speech recogniser, a transducer trained with XLSR-Transducer.
Adapter, decoder and joiner are not part of it: it gives hidden states, not text. It loads with
`transformers.Wav2Vec2Model.from_pretrained`, and is trained further with `--xlsr FOLDER`."""
CTC_MODEL = """# A CTC recogniser

XLSR (wav2vec 2.0) with a CTC output layer over letters, trained with XLSR-Transducer. It loads
with `transformers.pipeline("automatic-speech-recognition", model=FOLDER)`, and is trained further
with `--init-from FOLDER`."""


def model_card(job: Job, about: str = XLSR_ALONE) -> str:
    """Returns the card's text. What the run did not record is "unknown".

    Args:
      about: its title, and what is exported.
    """
    settings = _settings(job.exp_dir)
    return CARD.format(
        about=about,
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(job)),
        data=_data(settings),
        rates=_rates(job.exp_dir),
        settings=_options(settings),
    )


def _facts(job: Job) -> list[tuple[str, str]]:
    config = job.loaded.config
    features, xlsr = config.features, job.loaded.model.encoder.xlsr
    trained = {"waveform": "all that the training did not freeze", "last": "none of it"}
    usual = f"what lies above {features.cut}, as far as the training did not freeze it"
    count = sum(p.numel() for p in xlsr.parameters())
    return [
        # Of a local folder the name alone: where it lay is of no use to others.
        ("begun from", _shown(features.xlsr)),
        ("its SHA-256", features.sha256),
        ("trained", trained.get(features.cut, usual)),
        ("weights", job.name),
        ("parameters", f"{count:,}"),
        ("normalisation of the waveform in training", features.normalize),
        ("seen by a frame", job.chunk.describe()),
        ("streaming", "yes" if config.streaming.streaming else "no"),
        ("tokens of the recogniser", str(config.vocab_size)),
    ]


def _shown(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def _settings(exp_dir: Path) -> dict:
    path = exp_dir / "settings.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _options(settings: dict) -> str:
    groups = {name: values for name, values in settings.items() if name != "model"}
    if not groups:
        return "Unknown."
    shown = {
        name: {k: _shown(v) if isinstance(v, str) else v for k, v in values.items()}
        for name, values in groups.items()
    }
    return _fenced(json.dumps(shown, indent=2))


def _data(settings: dict) -> str:
    folder = settings.get("DataOptions", {}).get("data_dir", "")
    path = Path(folder) / "statistics.txt"
    if not folder or not path.is_file():
        return "Unknown."
    return _fenced(path.read_text(encoding="utf-8").rstrip("\n"))


def _rates(exp_dir: Path) -> str:
    """Returns a table of all wer-summary files of the run."""
    rows = []
    for path in sorted(exp_dir.glob("**/wer-summary-*.txt")):
        suffix, wer, *unread = path.read_text(encoding="utf-8").splitlines()[1].split("\t")
        name = path.stem[len("wer-summary-") :].replace(f"-{suffix}", "")
        way = "chunk by chunk" if "streaming" in path.relative_to(exp_dir).parts else "simulated"
        rows.append(f"| {name} | {suffix} | {way} | {wer} | {' '.join(unread)} |")
    if not rows:
        return "Not measured."
    return "\n".join(["| set | settings | | WER % | unread |", "|---|---|---|---|---|", *rows])


def _fenced(text: str) -> str:
    return f"```\n{text}\n```"
