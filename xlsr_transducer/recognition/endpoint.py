"""Endpointing: where a stream's segment ends, by Kaldi's three rules (online-endpoint.h).

Silence is counted in blanks: the encoder frames after the last token of the best
hypothesis. Letters: N streams, B hypotheses per stream.
"""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from xlsr_transducer.core.geometry import ENCODER_FRAME
from xlsr_transducer.core.options import Options, option


@dataclasses.dataclass(frozen=True)
class EndpointRules:
    """The thresholds in encoder frames, and what happens at an endpoint."""

    silence: int  # rule 1: blanks that end a segment
    silence_after_tokens: int  # rule 2: the same, if the segment has a token
    length: int  # rule 3: frames of a segment, whatever is in it
    reset_encoder: bool = False  # the encoder begins anew with the chunk after an endpoint
    frame: float = ENCODER_FRAME  # seconds

    def is_endpoint(self, length: Tensor, trailing: Tensor) -> Tensor:
        """Returns (N,) bool, whether a segment ends after the frames so far.

        Args:
          length: (N,) frames of the segment so far.
          trailing: (N,) those after its last token; all of them if it has none.
        """
        has_token = length > trailing
        after_tokens = has_token & (trailing >= self.silence_after_tokens)
        return after_tokens | (trailing >= self.silence) | (length >= self.length)

    def frames_until(self, length: Tensor, trailing: Tensor) -> Tensor:
        """Returns (N,) after how many more frames an endpoint may come, at least 1.

        Args:
          length: (N,) frames of the segment so far.
          trailing: (N, B) those after the last token of each hypothesis, any of which may become
            the best one.
        """
        after_tokens = trailing.masked_fill(trailing == length.unsqueeze(1), 0)
        earliest = (self.silence - trailing.amax(1)).minimum(self.length - length)
        return earliest.minimum(self.silence_after_tokens - after_tokens.amax(1)).clamp(min=1)


@dataclasses.dataclass(frozen=True)
class EndpointOptions(Options):
    """Endpointing. Names and defaults are sherpa's."""

    enable_endpoint: bool = option(
        False, "end a segment where one of the rules holds; the search begins anew there"
    )
    rule1_min_trailing_silence: float = option(
        2.4, "rule 1: seconds of silence that end a segment", above=0
    )
    rule2_min_trailing_silence: float = option(
        1.2, "rule 2: seconds of silence that end a segment with at least one token", above=0
    )
    rule3_min_utterance_length: float = option(
        20.0, "rule 3: seconds after which a segment ends in any case", above=0
    )

    reset_encoder: bool = option(
        False, "begin the encoder anew, too, with the chunk after an endpoint"
    )

    def _seconds(self) -> tuple[float, float, float]:
        return (
            self.rule1_min_trailing_silence,
            self.rule2_min_trailing_silence,
            self.rule3_min_utterance_length,
        )

    def rules(self, frame: float = ENCODER_FRAME) -> EndpointRules | None:
        """Returns the rules in frames of ``frame`` seconds; None if endpointing is off."""
        # A threshold such as 1.2 s is 30 frames, not the 31 that rounding might make of it.
        frames = (math.ceil(s / frame - 1e-6) for s in self._seconds())
        return EndpointRules(*frames, self.reset_encoder, frame) if self.enable_endpoint else None

    def suffix(self) -> list[str]:
        """Returns what belongs into the names of result files."""
        if not self.enable_endpoint:
            return []
        reset = ["reset-encoder"] if self.reset_encoder else []
        return ["-".join(map(str, ("endpoint", *self._seconds(), *reset)))]
