"""Text that only grows, whatever the tokens and wherever segments end."""

from __future__ import annotations

import random

from xlsr_transducer.data.tokenizer import SOS_EOS, UNK, WORD_START, text_of
from xlsr_transducer.recognition.spans import timed_text
from xlsr_transducer.search import Hypothesis
from xlsr_transducer.serving.openai_shapes import GrowingText

TOKENS = [UNK, SOS_EOS, WORD_START, f"{WORD_START}o", f"{WORD_START}see", "n", "li", "\u00e4"]


def test_deltas_joined_are_the_text_of_all_tokens() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text, deltas, spoken = GrowingText(), [], []
        for _ in range(draw.randint(0, 4)):
            tokens = [draw.randrange(len(TOKENS)) for _ in range(draw.randint(1, 6))]
            stable = 0
            while draw.random() < 0.7:  # states before the end, of which the rest may change
                stable = draw.randint(stable, len(tokens))
                rest = [draw.randrange(len(TOKENS)) for _ in range(draw.randint(0, 3))]
                live = tokens[:stable] + rest
                found = Hypothesis(live, [0] * len(live), 0.0, [0.0] * len(live), 0.0, stable)
                deltas.append(text.add(timed_text(found, TOKENS, 0.04, is_final=False)))
                known = [*spoken, *(TOKENS[i] for i in tokens[:stable])]
                assert "".join(deltas) == text.text == text_of(known)
            frames = list(range(len(tokens)))
            found = Hypothesis(tokens, frames, 0.0, [0.0] * len(tokens))
            deltas.append(text.add(timed_text(found, TOKENS, 0.04)))
            spoken += [TOKENS[i] for i in tokens]
            assert "".join(deltas) == text.text == text_of(spoken)
