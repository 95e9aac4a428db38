"""Tokens of languages: made, learned, left out of texts, and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from local import prepare_lang, validate_manifests
from local.manifests import JsonlGzWriter, read_jsonl_gz
from tests.support.languages import in_languages
from tests.support.tiny_recipe import run_train
from xlsr_transducer import align, decode, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.index import open_index
from xlsr_transducer.data.tokenizer import LanguageFirst, Tokenizer, targets, text_of
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model, read_checkpoint
from xlsr_transducer.recognition.audio_sets import audio_sets
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.scoring import format_table
from xlsr_transducer.recognition.spans import timed_text
from xlsr_transducer.search import Hypothesis


def emitted(ids: list[int]) -> Hypothesis:
    return Hypothesis(ids, list(range(len(ids))), 0.0, [0.0] * len(ids))


@pytest.fixture(scope="module")
def spoken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a corpus in three languages, whose tokens include them."""
    data = in_languages(corpus, tmp_path_factory.mktemp("tokens") / "data")
    (data / "lang_bpe_60").unlink()
    prepare_lang.main([f"--data-dir={data}", "--vocab-size=60", "--language-token=1"])
    return data


@pytest.fixture(scope="module")
def tokenizer(spoken: Path) -> Tokenizer:
    return Tokenizer.load(spoken / "lang_bpe_60")


@pytest.fixture(scope="module")
def exp(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming model after an epoch with the language's token first."""
    exp = tmp_path_factory.mktemp("exp-languages")
    run_train(spoken, exp, "--num-epochs=1", "--language-token=1", "--streaming=1")
    return exp


def in_another(data: Path, folder: Path, language: str | None) -> Path:
    """A copy of the data folder whose second validation utterance is in another language."""
    shutil.copytree(data, folder, symlinks=True)
    for path in folder.rglob("cuts_val.jsonl.gz"):
        cuts = list(read_jsonl_gz(path))
        cuts[1]["supervisions"][0]["language"] = language
        with JsonlGzWriter(path) as writer:
            for cut in cuts:
                writer.write(cut)
    return folder


def test_tokens_of_languages_follow_the_first_three(tokenizer, spoken):
    assert tokenizer.tokens[:6] == ["<blk>", "<sos/eos>", "<unk>", "<et>", "<fi>", "<lv>"]
    assert tokenizer.languages == {"et": 3, "fi": 4, "lv": 5} and tokenizer.vocab_size == 60
    lines = (spoken / "lang_bpe_60" / "tokens.txt").read_text().splitlines()
    assert lines[3:5] == ["<et> 3", "<fi> 4"]
    # Made again without the option, as after new texts, they stay.
    prepare_lang.main([f"--data-dir={spoken}", "--vocab-size=60"])
    assert Tokenizer.load(spoken / "lang_bpe_60").tokens == tokenizer.tokens


def test_texts_neither_spell_a_language_nor_show_it(tokenizer):
    [ids] = tokenizer.encode(["see <et> on"])
    assert not set(ids) & set(tokenizer.languages.values())
    [plain] = tokenizer.encode(["see on"])
    assert tokenizer.decode([3, *plain]) == tokenizer.decode(plain) == "see on"
    assert tokenizer.decode([*plain, 5]) == "see on" and tokenizer.decode([4]) == ""
    assert text_of([tokenizer.tokens[i] for i in [3, *plain]]) == "see on"
    assert tokenizer.language_of([7, 5, 3]) == "lv" and tokenizer.language_of(plain) == ""
    found = timed_text(emitted([3, *plain]), tokenizer.tokens, 0.04)
    assert found.text == "see on" and found.words[0].start == pytest.approx(0.04)


def test_a_model_learns_the_language_before_the_text(tokenizer):
    first = LanguageFirst(tokenizer.to_bytes())
    texts = ["see on", "", "see"]
    plain = tokenizer.encode(texts)
    assert targets(tokenizer, texts, ["et", "lv", ""]) == plain
    assert targets(first, texts, ["et", "lv", ""]) == [[3, *plain[0]], [5], plain[2]]


def test_the_token_is_counted_where_batches_are_planned_and_stands_first_in_them(
    spoken, tokenizer, tmp_path
):
    path = Path(shutil.copy(spoken / "manifests" / "cuts_train.jsonl.gz", tmp_path))
    first = LanguageFirst(tokenizer.to_bytes())
    plain = np.array(open_index(path, tokenizer).tokens)
    assert np.array_equal(open_index(path, first).tokens, plain + 1)  # and frames for CTC
    assert np.array_equal(open_index(path, tokenizer).tokens, plain)
    data = DataModule(DataOptions(data_dir=spoken, num_workers=0), None, first)
    cuts = {cut.id: cut.supervisions[0] for cut in load_cuts(path)}
    seen = 0
    for batch in data.train_loader(["train"], 1, 0):
        for name, ids, length in zip(batch.ids, batch.tokens.tolist(), batch.token_lens):
            [text] = tokenizer.encode([cuts[name].text])
            assert ids[:length] == [first.languages[cuts[name].language], *text]
            seen += 1
    assert seen == len(cuts)


@pytest.mark.parametrize(("language", "message"), [("sv", "'sv' has no token"), (None, "has no")])
def test_a_language_without_a_token_is_refused_in_training_and_decoding(
    spoken, exp, tmp_path, language, message
):
    data = in_another(spoken, tmp_path / "data", language)
    message = rf"{message}.* et, fi, lv"
    with pytest.raises(UserError, match=rf"val_\d+: .*{message}"):
        run_train(data, tmp_path / "exp", "--cut=waveform", f"--xlsr={data / 'toy_xlsr'}",
                  "--language-token=1")  # fmt: skip
    assert not list((tmp_path / "exp").glob("*.pt"))
    given = [f"--data-dir={data}", f"--exp-dir={exp}", "--split=val", "--num-workers=0"]
    for command in (decode, streaming_decode, align):
        with pytest.raises(UserError, match=rf"cuts_val.jsonl.gz, val_\d+: .*{message}"):
            command.main(given)


def test_stage_4_refuses_a_training_language_without_a_token(spoken, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(spoken, data, ignore=shutil.ignore_patterns("features", "*.index"))
    path = data / "manifests" / "cuts_train.jsonl.gz"
    cuts = list(read_jsonl_gz(path))
    with JsonlGzWriter(path) as writer:
        for cut in cuts:
            cut["supervisions"][0]["language"] = "sv"
            writer.write(cut)
    with pytest.raises(UserError, match="'sv' has no token"):
        validate_manifests.main([f"--data-dir={data}", f"--lang-dir={data / 'lang_bpe_60'}"])


def test_a_checkpoint_knows_that_its_model_tells_languages(spoken, exp, tmp_path):
    assert isinstance(load_model(CheckpointOptions(exp_dir=exp)).tokenizer, LanguageFirst)
    assert read_checkpoint(exp / "epoch-1.pt")["language_token"] is True
    shutil.copytree(exp, tmp_path / "exp")
    with pytest.raises(UserError, match="trained with --language-token 1: resume with that too"):
        run_train(spoken, tmp_path / "exp", "--streaming=1", "--resume=auto")


def test_tokens_without_languages_cannot_be_learned_first(corpus, tmp_path):
    with pytest.raises(UserError, match="have no languages; make them .*--language-token 1"):
        run_train(corpus, tmp_path, "--language-token=1")


def test_alignments_have_the_words_and_not_the_language(spoken, exp):
    align.main([f"--data-dir={spoken}", f"--exp-dir={exp}", "--split=val", "--num-workers=0"])
    [path] = (exp / "alignments").glob("val-*.ctm")
    words: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, _, _, word = line.split()[:5]
        words.setdefault(name, []).append(word)
    cuts = read_jsonl_gz(spoken / "manifests" / "cuts_val.jsonl.gz")
    assert words == {c["id"]: c["supervisions"][0]["text"].split() for c in cuts}


def test_results_name_the_language_found_and_how_often_it_was_right(spoken, tokenizer, tmp_path):
    [audio] = audio_sets(spoken / "nowhere", manifest=spoken / "manifests/cuts_val.jsonl.gz")
    results, found = Results(audio), [[3], [5], [4], []]  # right, right, wrong, none
    for before, cut in zip(found, audio.cuts):  # in et, lv, et, fi
        text = results.texts[cut.id] = cut.supervisions[0].text
        results.hypotheses[cut.id] = emitted(before + tokenizer.encode([text])[0])
    score = results.write(tmp_path, "val", "s", tokenizer)
    assert score.wer.errors == 0  # the token is no word
    lines = [json.loads(x) for x in (tmp_path / "utterances-val-s.jsonl").read_text().splitlines()]
    assert [x["language_found"] for x in lines] == ["et", "lv", "fi", ""]
    assert [x["language"] for x in lines] == ["et", "lv", "et", "fi"]
    table = format_table([score]).split("\n\n")[2].splitlines()[2:]
    assert [[row.split()[1], *row.split()[-2:]] for row in table] == [
        ["et", "1", "2"], ["fi", "0", "1"], ["lv", "1", "1"], ["all", "2", "4"],
    ]  # fmt: skip
    assert "LANGUAGE FOUND" in (tmp_path / "errs-val-s.txt").read_text()


def test_a_model_that_tells_languages_streams_what_it_decodes(spoken, exp, capsys):
    given = [f"--data-dir={spoken}", f"--exp-dir={exp}", "--split=val", "--num-workers=0",
             "--blank-penalty=4"]  # fmt: skip
    found = []
    for command, folder in ((decode, exp), (streaming_decode, exp / "streaming")):
        command.main(given)
        [path] = (folder / "greedy_search").glob("tokens-val-*.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found.append([(line["tokens"], line["frames"], line["text"]) for line in lines])
    assert found[0] == found[1]
    assert sum(len(tokens) for tokens, _, _ in found[0]) > 20
    assert not any("<" in text for _, _, text in found[0])
    assert "worst" in capsys.readouterr().out
