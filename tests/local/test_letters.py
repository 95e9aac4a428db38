"""Letters as tokens: ``prepare.sh --unit char``, and what the later stages make of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from local import make_ngram, prepare_lang, prepare_text
from tests.local.test_prepare_text import TEXTS, make_data
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.sources import stale_text
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir, text_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_data(tmp_path_factory.mktemp("letters"), TEXTS)
    prepare_text.main(["--data-dir", str(folder)])
    prepare_lang.main(["--data-dir", str(folder), "--unit", "char"])
    return folder


def test_the_tokens_are_every_character_of_the_text_and_a_boundary(data: Path) -> None:
    tokenizer = Tokenizer.load(find_lang_dir(data))
    text = "tere maailm õun ja šokolaad žanr džäss epost ja e-post öö ei ole püha"
    expected = {"<blk>", "<sos/eos>", "<unk>", "▁", *text.replace(" ", "")}
    assert set(tokenizer.tokens) == expected and tokenizer.vocab_size == len(expected)
    assert tokenizer.tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    [ids] = tokenizer.encode(["õun ja"])
    assert [tokenizer.tokens[i] for i in ids] == list("▁õun▁ja")
    assert tokenizer.decode(ids) == text_of(tokenizer.tokens[i] for i in ids) == "õun ja"
    assert tokenizer.encode(["€"])[0][-1] == tokenizer.unk_id
    # No text spells a blank.
    assert 0 not in tokenizer.encode(["<blk> <sos/eos>"])[0]


def test_pieces_and_letters_side_by_side_are_both_named(data: Path) -> None:
    prepare_lang.main(["--data-dir", str(data), "--vocab-size", "30"])
    with pytest.raises(UserError, match="lang_bpe_30, .*lang_char"):
        find_lang_dir(data)


def test_files_of_an_older_text_name_the_command(data: Path) -> None:
    (data / "lang_char/sources.json").write_text('{"bpe.model": "older"}')
    [reason] = stale_text(data / "lang_char", data)
    assert "--stage 2 --stop-stage 2" in reason and reason.endswith("--unit char")
    prepare_lang.main(["--data-dir", str(data), "--unit", "char"])
    assert stale_text(data / "lang_char", data) == []


def test_an_n_gram_model_of_letters_is_made(data: Path) -> None:
    make_ngram.main([f"--data-dir={data}", f"--lang-dir={data / 'lang_char'}"])
    lines = (data / "lang_char/ngram_3.arpa").read_text(encoding="utf-8").splitlines()
    assert any(line.split("\t")[1:2] == ["▁ j a"] for line in lines)


def test_no_text_is_one_line() -> None:
    with pytest.raises(UserError, match="the training text is empty"):
        prepare_lang.train_letters([])


def test_an_unknown_unit_is_one_line() -> None:
    script = Path(__file__).resolve().parents[2] / "prepare.sh"
    done = subprocess.run([script, "--unit", "word"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --unit word: must be bpe")
    assert len(done.stderr.splitlines()) == 1
