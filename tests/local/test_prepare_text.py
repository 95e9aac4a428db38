"""Stage 2 of prepare.sh: text, its report, the BPE model; and the tokenizer that reads it."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from local import prepare_lang, prepare_manifests, prepare_text
from local.manifests import read_rejected
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.text import CharacterUse, TextNormalizer, TextOptions
from xlsr_transducer.data.tokenizer import Tokenizer, read_tokens

TEXTS = [
    "Tere, maailm!", "Õun ja šokolaad", "Žanr: džäss", "e\u00adpost ja e-post", "öö ei ole püha",
]  # fmt: skip


def make_data(folder: Path, texts: list[str], channels: int = 1) -> Path:
    """Stage 1 on a corpus with these training texts and one validation utterance."""
    folder.mkdir(exist_ok=True)
    names = [f"{i}.wav" for i in range(len(texts))]
    for name in [*names, "v.wav"]:
        soundfile.write(folder / name, np.zeros((800, channels)), 8000)
    lines = [f"{name}|{text}|s\n" for name, text in zip(names, texts, strict=True)]
    (folder / "train.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "val.txt").write_text("v.wav|Tere €|s\n", encoding="utf-8")
    lists = ["--train-list", f"{folder}/train.txt", "--val-list", f"{folder}/val.txt"]
    prepare_manifests.main([*lists, "--data-dir", str(folder / "data")])
    return folder / "data"


def prepare(data: Path, *options: str) -> list[str]:
    prepare_text.main(["--data-dir", str(data), *options])
    cuts = CutSet.from_file(data / "manifests/cuts_train.jsonl.gz")
    return [cut.supervisions[0].text for cut in cuts]


def normalize(text: str, language: str = "et", **options) -> str:
    return TextNormalizer(TextOptions(**options), language)(text)


@pytest.mark.parametrize(
    ("punctuation", "expected"),
    [
        ("in-word", "tere kes's e-post ja 5 3-5 oh"),
        ("drop", "tere kess e post ja 5 3 5 oh"),
        ("keep", "-tere, 'kes's e-post\" ja 5% (3-5)... oh!"),
    ],
)
def test_punctuation_policies(punctuation, expected):
    text = "\u2013Tere, \u2018KES\u2019s\u00a0e\u2010post\u201d ja  5% (3\u20135)\u2026\toh!"
    assert normalize(text, punctuation=punctuation) == expected


def test_text_is_composed_and_case_is_an_option():
    assert normalize("O\u0303UN S\u030cveits") == "õun šveits"
    assert normalize("O\u0303un", case="keep") == "Õun"
    assert normalize("IŞIK İ", language="tr") == "ışık i"
    assert normalize("\u200bsoft\u00adhyphen\ufeff") == "softhyphen"
    assert normalize(" - ' ... ! ") == ""


def test_normalizing_twice_changes_nothing():
    normalizer = TextNormalizer(TextOptions())
    for text in TEXTS:
        assert normalizer(normalizer(text)) == normalizer(text)


def test_uses_account_for_every_character():
    normalizer = TextNormalizer(TextOptions())
    text = "Ää-ä - b\u2019b €!"  # and composed characters, however they are written:
    assert normalizer("o\u0303") == "õ" and normalizer.uses.pop(CharacterUse("õ", "õ")) == 1
    assert normalizer(text) == "ää-ä b'b"
    use = {(u.character, u.becomes, u.action): n for u, n in normalizer.uses.items()}
    assert use == {
        ("Ä", "ä", "mapped"): 1, ("ä", "ä", "kept"): 2, ("-", "-", "kept"): 1,
        ("-", "", "dropped"): 1, ("b", "b", "kept"): 2, ("\u2019", "'", "mapped"): 1,
        ("€", "", "dropped"): 1, ("!", "", "dropped"): 1,
    }  # fmt: skip
    assert sum(normalizer.uses.values()) == len(text.replace(" ", ""))
    assert CharacterUse("a", "a").action == "kept"


def test_cuts_hold_normalized_text_channel_0_and_the_original(tmp_path):
    data = make_data(tmp_path, TEXTS, channels=2)
    assert prepare(data)[:3] == ["tere maailm", "õun ja šokolaad", "žanr džäss"]
    cut = next(iter(CutSet.from_file(data / "manifests/cuts_train.jsonl.gz")))
    assert (cut.id, cut.channel, cut.duration, cut.recording.num_channels) == ("0", 0, 0.1, 2)
    assert cut.supervisions[0].custom == {"line": 1, "original_text": "Tere, maailm!"}
    assert cut.load_audio().shape == (1, 800)


def test_report_tells_kept_mapped_and_dropped_by_split(tmp_path):
    data = make_data(tmp_path, TEXTS)
    prepare(data)
    with open(data / "manifests/text_report.tsv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = {r["character"]: (r["action"], r["becomes"], r["train"], r["val"]) for r in rows}
    assert found["T"] == ("mapped", "t", "1", "1")
    assert found["š"] == ("kept", "š", "1", "0")
    assert found["€"] == ("dropped", "", "0", "1")
    assert [r["code"] for r in rows if r["character"] == " "] == ["U+00AD"]


def test_text_that_vanishes_is_rejected_once_however_often_the_stage_runs(tmp_path):
    data = make_data(tmp_path, [*TEXTS, "?!"])
    with pytest.raises(UserError, match="1 of 6 lines"):
        prepare(data)
    for _ in range(2):
        assert len(prepare(data, "--max-rejected", "20")) == 5
        rows = list(read_rejected(data / "manifests/rejected_train.tsv"))
        assert rows == [(6, "empty text after normalization", "?!", "")]


def test_stages_repeat_byte_for_byte(tmp_path):
    data = make_data(tmp_path, TEXTS)
    contents = []
    for _ in range(2):
        prepare(data)
        prepare_lang.main(["--data-dir", str(data), "--vocab-size", "30"])
        files = sorted(p for p in data.rglob("*") if p.is_file() and p.name != "digests.json")
        contents.append({p.name: p.read_bytes() for p in files})
    assert contents[0] == contents[1] and "bpe.model" in contents[0]


def test_manifests_that_do_not_pair_are_an_error(tmp_path):
    data = make_data(tmp_path, TEXTS)
    path = data / "manifests/supervisions_train.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))
    with pytest.raises(UserError, match="do not pair"):
        prepare(data)
    foreign = b"".join(lines).replace(b'"recording_id": "', b'"recording_id": "other', 1)
    path.write_bytes(gzip.compress(foreign))
    with pytest.raises(UserError, match="do not pair"):
        prepare(data)


@pytest.fixture(scope="module")
def lang(tmp_path_factory) -> Path:
    data = make_data(tmp_path_factory.mktemp("lang"), TEXTS)
    prepare(data)
    prepare_lang.main(["--data-dir", str(data), "--vocab-size", "30"])
    return data / "lang_bpe_30"


def test_tokens_txt_begins_as_k2_and_sherpa_expect(lang):
    lines = (lang / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert [int(line.split(" ")[1]) for line in lines] == list(range(30))


def test_tokenizer_goes_there_and_back(lang):
    tokenizer = Tokenizer.load(lang)
    texts = ["tere maailm", "õun ja šokolaad", "", "öö"]
    ids = tokenizer.encode(texts)
    assert [tokenizer.decode(one) for one in ids] == texts and ids[2] == []
    assert tokenizer.vocab_size == 30 and tokenizer.blank_id == 0
    assert all(i > 2 for one in ids for i in one)
    starts = [sum(tokenizer.word_starts[i] for i in one) for one in ids]
    assert starts == [len(text.split()) for text in texts]
    assert tokenizer.encode(["x"])[0][-1] == tokenizer.unk_id


def test_tokenizer_travels_as_bytes(lang):
    tokenizer = Tokenizer.load(lang)
    again = Tokenizer.from_bytes(tokenizer.to_bytes())
    assert again.tokens == tokenizer.tokens == read_tokens(lang / "tokens.txt")
    assert again.encode(["tere"]) == tokenizer.encode(["tere"])
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer.from_bytes(b"nonsense")


def test_no_text_can_spell_the_blank(lang):
    tokenizer = Tokenizer.load(lang)
    [ids] = tokenizer.encode(["tere <blk> <sos/eos> tere"])
    assert not {tokenizer.blank_id, tokenizer.sos_id} & set(ids)


def test_tokens_txt_of_another_model_is_an_error(lang, tmp_path):
    (tmp_path / "bpe.model").write_bytes((lang / "bpe.model").read_bytes())
    tokens = (lang / "tokens.txt").read_text(encoding="utf-8")
    (tmp_path / "tokens.txt").write_text(tokens.replace("a", "q"), encoding="utf-8")
    with pytest.raises(UserError, match="does not belong"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokens.txt").write_text("<blk> 0\n<unk> 7\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        Tokenizer.load(tmp_path)


def test_vocabulary_too_large_names_the_largest_which_then_works(tmp_path):
    data = make_data(tmp_path, TEXTS)
    prepare(data)

    def train(size: int) -> None:
        prepare_lang.main(["--data-dir", str(data), "--vocab-size", str(size)])

    with pytest.raises(UserError, match=r"2500 .*largest possible is \d+$") as error:
        train(2500)
    largest = int(str(error.value).split()[-1])
    assert not (data / "lang_bpe_2500/bpe.model").exists()
    train(largest)
    assert Tokenizer.load(data / f"lang_bpe_{largest}").vocab_size == largest
    with pytest.raises(UserError, match=f"largest possible is {largest}$"):
        train(largest + 1)
    with pytest.raises(UserError, match=r"smallest possible is \d+$") as error:
        train(5)
    train(int(str(error.value).split()[-1]))


def test_bpe_sees_the_training_text_only(tmp_path):
    data = make_data(tmp_path, TEXTS)
    prepare(data, "--punctuation", "keep")
    prepare_lang.main(["--data-dir", str(data), "--vocab-size", "40"])
    assert not any("€" in token for token in read_tokens(data / "lang_bpe_40/tokens.txt"))
    splits = json.loads((data / "manifests/splits.json").read_text())
    assert splits["val"] == ["val"]
