"""Results on a few fixed validation utterances: a table and an alignment picture.

Letters: T encoder frames, E width of the encoder, S tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.geometry import ENCODER_FRAME
from xlsr_transducer.loss.lattice import total_scores
from xlsr_transducer.model.heads.ctc import BLANK_ID
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.alignment import lattice_log_probs
from xlsr_transducer.recognition.scoring import Transcript
from xlsr_transducer.search import Hypothesis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SAMPLES = 8
NEVER = -1e30  # log-prob; sums of it have derivatives, as those of infinity have not
SKEWS = {"regular": 1, "modified": 0, "constrained": 0}


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Where the model puts the tokens of a text."""

    id: str
    pieces: list[str]  # the S tokens
    occupation: Tensor  # (S, T): probability that token s is emitted in frame t
    ctc: Tensor | None  # (T,): probability of anything but blank, of the CTC head
    recognised: list[int]  # frames in which greedy search emitted
    has_transducer: bool = True  # otherwise the CTC head puts the tokens
    frame: float = ENCODER_FRAME  # seconds


def sample_table(samples: list[Transcript]) -> str:
    """Reference and hypothesis of each utterance, as a Markdown table."""
    lines = ["| utterance | reference | hypothesis |", "|---|---|---|"]
    for sample in samples:
        cells = (sample.id, " ".join(sample.ref), " ".join(sample.hyp))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


@torch.no_grad()
def lattice_of(
    model: SpeechModel,
    name: str,
    encoder_out: Tensor,
    tokens: list[int],
    hypothesis: Hypothesis,
    pieces: list[str],
    rnnt_type: str = "regular",
) -> Lattice:
    """The occupation of a text's lattice.

    Args:
      encoder_out: (T, E), without padding. pieces: the spelling of all V tokens.
    """
    ctc, log_probs = None, torch.zeros(0)
    if model.ctc_output is not None:
        log_probs = model.ctc_output(encoder_out.float()).log_softmax(-1).cpu()
        ctc = 1.0 - log_probs[:, BLANK_ID].exp()
    has_transducer = model.joiner is not None
    if has_transducer:
        y = torch.tensor([tokens], dtype=torch.int64, device=encoder_out.device)
        blank, emit = lattice_log_probs(model, encoder_out.unsqueeze(0), y)
        px, py = emit.transpose(1, 2), blank.transpose(1, 2)
        if rnnt_type == "constrained":
            px = px + py[:, 1:]
        _, found, _ = total_scores(px, py, None, SKEWS[rnnt_type], return_occupation=True)
        assert found is not None
        occupation = found[0].float().cpu()
    else:
        occupation = ctc_occupation(log_probs, tokens)
    shown = [pieces[token] for token in tokens]
    emitted, frame = hypothesis.frames, model.encoder.frame_seconds
    return Lattice(name, shown, occupation, ctc, emitted, has_transducer, frame)


def ctc_occupation(log_probs: Tensor, tokens: list[int]) -> Tensor:
    """Returns (S, T): the probability that the label of frame t is token s of the text; zeros
    where there is no path.

    Args:
      log_probs: (T, V), of the CTC head.
    """
    labels = torch.full((2 * len(tokens) + 1,), BLANK_ID)
    labels[1::2] = torch.tensor(tokens, dtype=torch.int64)
    # A blank between different tokens may be left out.
    may_skip = F.pad((labels[2:] != BLANK_ID) & (labels[2:] != labels[:-2]), (2, 0))
    with torch.enable_grad():  # the derivative of log P by a label's log-prob is its probability
        emit = log_probs.double()[:, labels].requires_grad_()
        alpha = torch.full_like(emit[0], NEVER)
        alpha[:2] = 0.0
        for t, frame in enumerate(emit):
            if t:
                one, two = (F.pad(alpha, (n, 0), value=NEVER)[: len(labels)] for n in (1, 2))
                two = two.masked_fill(~may_skip, NEVER)
                alpha = torch.stack((alpha, one, two)).logsumexp(0)
            alpha = alpha + frame
        total = alpha[-2:].logsumexp(0)
        if total < NEVER / 2:
            return torch.zeros(len(tokens), len(log_probs))
        [occupation] = torch.autograd.grad(total, emit)
    return occupation[:, 1::2].t().float()


def draw_lattice(lattice: Lattice, title: str, path: Path) -> Figure:
    """Draws a lattice's occupation as PNG; returns the figure.

    Above, tokens over time; below, the probability that a frame has a token, by the transducer
    and by the CTC head, and the frames in which greedy search emitted.
    """
    from matplotlib.figure import Figure

    count, frames = lattice.occupation.shape
    seconds = lattice.frame
    height = min(max(2.5 + 0.16 * count, 4.0), 16.0)
    figure = Figure(figsize=(9, height), layout="tight")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[height - 1.8, 1.8])
    area = (0.0, frames * seconds, count, 0)
    above.imshow(
        lattice.occupation, aspect="auto", extent=area, vmin=0, vmax=1, cmap="magma_r",
        interpolation="nearest",
    )  # fmt: skip
    above.set_yticks([s + 0.5 for s in range(count)], lattice.pieces, fontsize=7)
    above.set_title(f"{lattice.id}, {title}: probability of each token in each frame", fontsize=9)
    times = [(t + 0.5) * seconds for t in range(frames)]
    label = "transducer" if lattice.has_transducer else "CTC head, of this text"
    below.plot(times, lattice.occupation.sum(0), label=label)
    if lattice.ctc is not None:
        below.plot(times, lattice.ctc, label="CTC head")
    emitted = [(t + 0.5) * seconds for t in lattice.recognised]
    below.plot(emitted, [0.0] * len(emitted), "k^", ms=4, label="recognised")
    below.set(xlabel="seconds", ylabel="tokens per frame", ylim=(-0.05, None))
    below.legend(fontsize=7)
    with replacing(path) as [temporary]:
        figure.savefig(temporary, dpi=120, format="png")
    return figure
