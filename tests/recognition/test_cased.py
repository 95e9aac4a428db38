"""Case and punctuation come out of tokens as they went in: texts, words with times, live text."""

from __future__ import annotations

import pytest

from local.prepare_lang import train_bpe, train_letters
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.recognition.spans import timed_text
from xlsr_transducer.search.hypothesis import Hypothesis

TEXTS = [
    "Tere, Mari!",
    "Kuidas läheb? Hästi.",
    '"Jah," ütles ta - ei!',
    "USA (kolm)",
    "kes's e-post",
]


@pytest.fixture(scope="module", params=["bpe", "letters"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    model = train_bpe(TEXTS * 3, 50) if request.param == "bpe" else train_letters(TEXTS)
    return Tokenizer(model)


def hypothesis(ids: list[int]) -> Hypothesis:
    return Hypothesis(tokens=ids, frames=list(range(len(ids))), log_probs=[0.0] * len(ids))


@pytest.mark.parametrize("text", TEXTS)
def test_words_with_times_have_their_case_and_punctuation(tokenizer: Tokenizer, text: str) -> None:
    [ids] = tokenizer.encode([text])
    timed = timed_text(hypothesis(ids), tokenizer.tokens, 0.04)
    assert timed.text == text == tokenizer.decode(ids)
    assert [word.text for word in timed.words] == text.split()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_grows_token_by_token_only_gets_longer(
    tokenizer: Tokenizer, text: str
) -> None:
    [ids] = tokenizer.encode([text])
    shown = ""
    for count in range(1, len(ids) + 1):
        timed = timed_text(hypothesis(ids[:count]), tokenizer.tokens, 0.04, is_final=False)
        assert timed.text.startswith(shown)
        shown = timed.text
    assert shown == text
