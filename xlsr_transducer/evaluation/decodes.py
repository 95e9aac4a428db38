"""The sections about what was recognised: errors, groups, confidences, references, comparison.

All of them start from result files. Of each experiment the model's own setting counts.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.evaluation.baseline import (
    Baseline,
    BaselineOptions,
    decode_set,
    is_baseline,
    name_of,
)
from xlsr_transducer.evaluation.bleu import bleu_section, require_bleu
from xlsr_transducer.evaluation.calibration import calibration_section
from xlsr_transducer.evaluation.comparison import comparison_section, curves_section
from xlsr_transducer.evaluation.errors import errors_section
from xlsr_transducer.evaluation.experiment import REPORT, RESULTS, Experiment
from xlsr_transducer.evaluation.experiments import experiments_in, experiments_section
from xlsr_transducer.evaluation.groups import groups_section
from xlsr_transducer.evaluation.normalizing import NONE, Normalizer
from xlsr_transducer.evaluation.records import Record, find_results
from xlsr_transducer.evaluation.references import references_section
from xlsr_transducer.evaluation.section import Section
from xlsr_transducer.recognition.audio_sets import AudioSet, name_in_results

BASELINES = "baselines"  # folder in the report's, of baselines that are given by name
LEAST_CONFIDENCE = 1e-8  # of a word, whose logarithm is taken


@dataclasses.dataclass(frozen=True)
class ScoringOptions(Options):
    """Scoring."""

    score_normalize: str = option(
        NONE,
        "how texts are normalised before they are scored: none, basic (Whisper's), "
        "numbers:LANGUAGE (by num2words), a file of replacements, or several with commas",
    )
    by: str = option("", "custom fields of the manifest by which WER is told, such as dialect,age")
    metric: str = option("wer", "bleu: of models that translate, besides", choices=("wer", "bleu"))
    experiments: Path | None = option(
        None, "folder of experiments: all of their results in one table"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric == "bleu":
            require_bleu()

    def fields(self) -> list[str]:
        """Returns the custom fields."""
        return [name.strip() for name in self.by.split(",") if name.strip()]


def decode_sections(
    experiments: Sequence[Experiment], baselines: Sequence[str], options: ScoringOptions
) -> list[Section]:
    """Returns the sections of all sets, set by set.

    Args:
      experiments: whose result files are written, each with a name of its own.
      baselines: folders of baselines, or names of models, which then are decoded.

    Raises:
      UserError: a normalisation, a baseline or a folder that cannot be used.
    """
    normalizer = Normalizer.parse(options.score_normalize)
    first, report = experiments[0], experiments[0].folder / REPORT
    opened = [_BaselineFolder(given, report / BASELINES, normalizer) for given in baselines]
    sections = []
    for number, one in enumerate(first.sets):
        decodes = {e.name: _own(e, number, normalizer) for e in experiments}
        for baseline in opened:
            decodes[baseline.name] = baseline.records(one.audio)
        records = decodes[first.name]
        sections += [
            errors_section(records, normalizer, one.audio, one.name),
            groups_section(records, one.audio, options.fields(), one.name),
            calibration_section(records, one.name),
            references_section(records, _support(one.words), one.audio, one.name),
        ]
        if len(decodes) > 1:
            sections.append(comparison_section(decodes, one.audio, one.name))
        if options.metric == "bleu":
            sections.append(bleu_section(decodes, one.name))
        if options.experiments:
            folders = experiments_in(options.experiments)
            sections.append(experiments_section(folders, one.name, normalizer))
    return [*sections, curves_section([e.folder for e in experiments])]


def _own(experiment: Experiment, number: int, normalizer: Normalizer) -> list[Record]:
    """Returns the utterances of a set with the model's own setting."""
    wanted = experiment.sets[number].name, experiment.suffix(experiment.own)
    folder = experiment.folder / REPORT / RESULTS
    found = [f for f in find_results(folder) if (f.set_name, f.suffix) == wanted]
    return found[0].read(normalizer) if found else []


def _support(words: Mapping[str, Sequence]) -> dict[str, float]:
    """Returns how well each aligned reference is supported: mean log of its words' confidences."""
    return {
        name: statistics.fmean(math.log(max(word[3], LEAST_CONFIDENCE)) for word in found)
        for name, found in words.items()
        if found
    }


class _BaselineFolder:
    """A baseline, read from its folder, or decoded into one."""

    def __init__(self, given: str, made_in: Path, normalizer: Normalizer):
        self.folder = Path(given) if is_baseline(Path(given)) else made_in / name_of(given)
        self.given, self.normalizer = given, normalizer
        self.name = self.folder.name
        self.model: Baseline | None = None

    def records(self, audio: AudioSet) -> list[Record]:
        """Returns the utterances of a set.

        Raises:
          UserError: a folder's baseline has no results of the set, or the model cannot be used.
        """
        name = name_in_results(audio, self.folder)
        found = find_results(self.folder, name)
        if not found and self.folder == Path(self.given):
            raise UserError(
                f"--baseline {self.given}: no results of {audio.name}, or of another manifest; "
                "make them with python -m local.baseline"
            )
        if not found:
            self.model = self.model or Baseline(BaselineOptions(model=self.given))
            decode_set(self.model, audio, self.normalizer, self.folder)
            found = find_results(self.folder, name)
        return found[0].read(self.normalizer)
