"""Hugging Face's CTC models in the place of a checkpoint: letters, languages, bad folders."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.foreign_ctc import (
    GROUP_NORM,
    LAST,
    VOCABULARY,
    randomize,
    sharpen,
    texts_of_pipeline,
    waves,
    write_folder,
)
from xlsr_transducer import decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.letter_model import CONTROL, NORMAL, UNKNOWN, letter_model
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr
from xlsr_transducer.recognition.exported import recognise
from xlsr_transducer.recognition.torch_models import offline, streaming
from xlsr_transducer.search import SearchOptions


def load(folder: Path, language: str | None = None, **options: Any) -> LoadedModel:
    return load_model(CheckpointOptions(checkpoint=folder, language=language), **options)


def texts(loaded: LoadedModel) -> list[str]:
    found = recognise(offline(loaded, ChunkSettings()), waves(), SearchOptions())
    return [loaded.tokenizer.decode(output.tokens) for output in found]


def words(texts: list[str]) -> list[str]:
    """Runs of spaces count as one."""
    return [" ".join(text.split()) for text in texts]


UPPER = [token.upper() if len(token) == 1 else token for token in VOCABULARY]
FOLDERS = {
    "blank first, special tokens as rows": {},
    "blank last": dict(vocabulary=LAST, pad_token="[PAD]", unk_token="[UNK]"),
    "upper case": dict(vocabulary=UPPER),
    "upper case, printed in lower": dict(vocabulary=UPPER, do_lower_case=True),
    "tokens of several characters": dict(vocabulary=["ch", *VOCABULARY, "ng"]),
    "group norm": dict(shape=GROUP_NORM),
    "audio as it is": dict(do_normalize=False),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_letters_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "folder", **FOLDERS[kind])
    loaded = load(folder)
    expected = words(texts_of_pipeline(folder, waves()))
    assert texts(loaded) == expected
    assert len(set("".join(expected))) > 15
    assert loaded.config.features.normalize == ("none" if "as it is" in kind else "utterance")
    vocabulary = FOLDERS[kind].get("vocabulary", VOCABULARY)
    assert loaded.tokenizer.tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    assert loaded.tokenizer.vocab_size == len(vocabulary) + 1  # <sos/eos>, which it never emits


def test_the_word_delimiter_is_the_one_that_the_folder_names(tmp_path: Path) -> None:
    vocabulary = ["#" if token == "|" else token for token in VOCABULARY]
    folder = write_folder(tmp_path / "a", vocabulary, word_delimiter_token="#")
    # transformers 5.23 does not read it back, and prints the token.
    expected = [text.replace("#", " ") for text in texts_of_pipeline(folder, waves())]
    assert texts(load(folder)) == words(expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("foreign") / "xls-r-tiny.2")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "folder")


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


def test_decode_prints_the_letters_and_results_are_named_after_the_folder(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wave = waves()[-1]
    soundfile.write(tmp_path / "a.wav", wave.numpy(), 16000, subtype="FLOAT")
    decode.main([f"--checkpoint={saved}", str(tmp_path / "a.wav")])
    assert words(texts_of_pipeline(saved, [wave]))[0] in capsys.readouterr().out
    assert CheckpointOptions(checkpoint=saved).describe() == "xls-r-tiny.2"


def test_files_of_older_versions_load(folder: Path) -> None:
    """.bin instead of safetensors, a feature extractor of its own, tokens added to vocab.json."""
    expected = texts(load(folder))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "processor_config.json").unlink(missing_ok=True)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    (folder / "tokenizer_config.json").unlink()
    vocabulary = json.loads((folder / "vocab.json").read_text())
    added = {token: vocabulary.pop(token) for token in ("<s>", "</s>")}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "added_tokens.json").write_text(json.dumps(added))
    pad = {"content": "<pad>", "lstrip": True}
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    assert texts(load(folder)) == expected


def test_an_xlsr_with_a_head_is_a_pretrained_xlsr_too(saved: Path) -> None:
    network = load_xlsr(str(saved))
    theirs = load_file(saved / "model.safetensors")
    name = "encoder.layers.1.attention.q_proj.weight"
    assert torch.equal(network.weights[name], theirs[f"wav2vec2.{name}"])


def test_texts_become_its_tokens() -> None:
    pieces = [("<blk>", CONTROL), ("<sos/eos>", CONTROL), ("<unk>", UNKNOWN)]
    tokenizer = Tokenizer(letter_model([*pieces, *((t, NORMAL) for t in ["▁", "a", "õ"])], "[U]"))
    assert tokenizer.encode(["õa a", ""]) == [[5, 4, 3, 4], []]
    [unknown] = tokenizer.encode(["xa"])
    assert unknown == [2, 4] and tokenizer.decode(unknown) == "[U]a"
    assert 0 not in tokenizer.encode(["<blk>"])[0]
    assert tokenizer.decode([0, 5, 1, 3, 0, 3, 4]) == "õ a"


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_bad_folders_are_one_line_each(folder: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(match: str, language: str | None = None) -> None:
        with pytest.raises(UserError, match=match) as raised:
            load(folder, language)
        assert "\n" not in str(raised.value)

    def file(name: str) -> Path:
        return folder / name

    for name, values, match in (
        ("config.json", {"architectures": ["Wav2Vec2Model"]}, "give it as --xlsr"),
        ("config.json", {"architectures": ["HubertForCTC"]}, "only Wav2Vec2ForCTC"),
        ("config.json", {"hidden_act": "relu"}, "only gelu"),
        ("tokenizer_config.json", {"pad_token": "[PAD]"}, "the padding token '.PAD.', the blank"),
        ("tokenizer_config.json", {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "Phoneme"),
        ("tokenizer_config.json", {"replace_word_delimiter_char": "_"}, "only a space"),
        ("vocab.json", {"a": "0"}, "'a' has the number '0'"),
        ("vocab.json", {"▁": 5}, "two of its tokens are '▁'"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "8000 Hz"),
    ):
        if not file(name).is_file():
            file(name).write_text("{}")
        kept = file(name).read_bytes()
        edit(file(name), **values)
        refused(match)
        file(name).write_bytes(kept)
    refused("--language est: .* has one vocab.json for all", "est")
    file("vocab.json").rename(file("other.json"))
    refused("no vocab.json")
    file("other.json").rename(file("vocab.json"))
    weights = load_file(file("model.safetensors"))
    save_file({**weights, "lm_head.weight": torch.zeros(5, 7)}, file("model.safetensors"))
    refused("lm_head has the shapes")
    del weights["lm_head.bias"]
    save_file(weights, file("model.safetensors"))
    refused("lm_head.bias is missing")
    file("model.safetensors").unlink()
    file("pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    refused("pytorch_model.bin")
    assert "executed" not in capsys.readouterr().out
    file("config.json").unlink()
    refused("neither a checkpoint nor a folder with a config.json")


LANGUAGES = {"est": VOCABULARY, "uzb-script_latin": [*VOCABULARY, "q", "w"]}


@pytest.fixture(scope="module")
def mms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as MMS has it: adapters and letters of two languages, of which the first is in the
    main file too."""
    from transformers import Wav2Vec2ForCTC

    folder = tmp_path_factory.mktemp("mms") / "mms"
    write_folder(folder, shape={"adapter_attn_dim": 8}, do_normalize=False)
    for seed, (language, vocabulary) in enumerate(LANGUAGES.items()):
        model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
        if seed:
            model.lm_head = torch.nn.Linear(model.config.hidden_size, len(vocabulary))
            for layer in model.wav2vec2.encoder.layers:
                randomize(layer.adapter_layer)
            sharpen(model, do_normalize=False)
        adapter = {k: v.detach().contiguous() for k, v in model._get_adapters().items()}
        save_file(adapter, folder / f"adapter.{language}.safetensors", metadata={"format": "pt"})
    nested = {name: {t: i for i, t in enumerate(v)} for name, v in LANGUAGES.items()}
    (folder / "vocab.json").write_text(json.dumps(nested))
    edit(folder / "tokenizer_config.json", target_lang="est", added_tokens_decoder={})
    return folder


def texts_of_language(folder: Path, language: str) -> list[str]:
    """Returns transformers' texts."""
    from transformers import AutoProcessor, Wav2Vec2ForCTC

    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.set_target_lang(language)
    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    model.load_adapter(language)
    found = []
    for wave in waves():
        inputs = processor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            best = model(inputs.input_values).logits.argmax(-1)
        found.append(processor.batch_decode(best)[0])
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_adapters_and_letters_of_a_language_come_together(mms: Path, language: str) -> None:
    loaded = load(mms, language)
    assert texts(loaded) == words(texts_of_language(mms, language))
    assert loaded.tokenizer.vocab_size == len(LANGUAGES[language]) + 1
    if language == "est":
        assert texts(load(mms)) == texts(loaded)  # what the folder names
    else:
        assert texts(load(mms)) != texts(loaded)


def test_adapters_stream_with_the_numbers_of_the_whole(mms: Path) -> None:
    loaded = load(mms, "uzb-script_latin", streaming=True)
    chunk = ChunkSettings(8, 2, 4)
    loaded.model.encoder.set_chunk(chunk)
    whole = recognise(offline(loaded, chunk), waves(), SearchOptions())
    pieces = recognise(streaming(loaded), waves(), SearchOptions())
    for a, b in zip(whole, pieces):
        assert (a.tokens, a.frames) == (b.tokens, b.frames) and a.tokens
        assert difference(a.encoder_out, b.encoder_out) < 2e-5


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def test_unknown_languages_are_one_line_with_those_that_are_there(
    mms: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--language lav: .* has est, uzb-script_latin$"):
        load(mms, "lav")
    folder = shutil.copytree(mms, tmp_path / "mms")
    (folder / "adapter.est.safetensors").unlink()
    with pytest.raises(UserError, match="--language est: .* has uzb-script_latin$"):
        load(folder, "est")
    edit(folder / "tokenizer_config.json", target_lang=None)
    with pytest.raises(UserError, match="tokens of 2 languages; give --language"):
        load(folder)
    name = "adapter.uzb-script_latin.safetensors"
    adapter = load_file(folder / name)
    del adapter[next(iter(adapter))]
    save_file(adapter, folder / name)
    with pytest.raises(UserError, match="adapter.uzb-script_latin.safetensors: the weight"):
        load(folder, "uzb-script_latin")
    with pytest.raises(UserError, match="--language est: .*a.pt is no folder"):
        load(tmp_path / "a.pt", "est")
