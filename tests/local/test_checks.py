"""Stage 4's flags that manifests alone decide: rates, languages, shared texts, segments."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from local.checks import utterances
from local.checks.faults import feature_problems
from local.checks.flags import KINDS, Flags
from local.checks.languages import Profiles
from local.checks.repeats import flag_overlaps
from local.checks.utterances import Utterances
from local.demo.language_words import ESTONIAN, GERMAN, LATVIAN
from tests.support.checked_corpus import check, flagged, on_file, part_of, stage_4, utterance
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import AUDIO_DURATION
from xlsr_transducer.model.feature_info import FeatureInfo

NO_AUDIO = "--audio-checks=0"
ROOT = Path(__file__).resolve().parents[2]
SPEAKERS = "speakers who are in training too"
WORDS = {"et": ESTONIAN, "lv": LATVIAN, "de": GERMAN}


def sentences(language: str, count: int, seed: int = 0, words: int = 6) -> list[str]:
    draw = random.Random(f"{language} {seed}")
    return [" ".join(draw.choices(WORDS[language], k=words)) for _ in range(count)]


def spoken(name: str, text: str, rate: float, **more) -> dict:
    """An utterance with ``rate`` letters per second."""
    return utterance(name, text, len(text.replace(" ", "")) / rate, **more)


def ordinary(count: int = 60, language: str = "et", seed: int = 0) -> list[dict]:
    """Utterances with 12 to 16 letters per second."""
    draw = random.Random(seed)
    return [
        spoken(f"{language}{i}", text, draw.uniform(12, 16), language=language)
        for i, text in enumerate(sentences(language, count, seed))
    ]


def test_rates_that_cannot_be_and_outliers_are_flagged(tmp_path: Path) -> None:
    text = "kuidas läheb minu sõber"
    odd = [spoken("impossible", text, 41), spoken("outlier", text, 36), spoken("quick", text, 19)]
    odd += [spoken("slower", text, 9), spoken("slow", text, 2.5), spoken("still", text, 0.3)]
    found = check(tmp_path, NO_AUDIO, train=[*ordinary(), *odd])["train"]
    assert [row[:3] for row in found] == [
        ("impossible", "fast", "41.00"), ("outlier", "fast", "36.00"),
        ("slow", "slow", "2.50"), ("still", "slow", "0.30"),
    ]  # fmt: skip
    bounds = {row[3] for row in found[:2]}
    [upper] = bounds
    assert upper.startswith("above ") and 19 < float(upper.removeprefix("above ")) < 36


def test_what_stands_out_depends_on_the_language(tmp_path: Path) -> None:
    slow_language = [
        {**cut, "duration": (longer := 4 * cut["duration"]), "recording":
         {**cut["recording"], "duration": longer}}
        for cut in ordinary(language="lv")
    ]  # fmt: skip
    [like_latvian] = [spoken("et-slow", "kuidas läheb minu sõber", 3.5)]
    found = check(tmp_path, NO_AUDIO, train=[*ordinary(), *slow_language, like_latvian])
    assert [row[:2] for row in found["train"]] == [("et-slow", "slow")]


def test_of_a_few_utterances_only_impossible_rates_are_flagged(tmp_path: Path) -> None:
    cuts = [*ordinary(20), spoken("a", "tere hommikust", 39), spoken("b", "tere hommikust", 41)]
    assert [row[0] for row in check(tmp_path, NO_AUDIO, train=cuts)["train"]] == ["b"]


def test_text_in_another_script_is_flagged_but_not_a_name_in_it(tmp_path: Path) -> None:
    cuts = [*ordinary(), utterance("whole", "добрый вечер и до свидания"),
            utterance("half", "tere товарищ"), utterance("name", "see on väga ilus linn москва"),
            utterance("digits", "täna on ½ või ²")]  # fmt: skip
    found = [row for row in check(tmp_path, NO_AUDIO, train=cuts)["train"] if "script" in row[1]]
    assert found == [
        ("whole", "other-script", "100.00", "cyrillic"),
        ("half", "other-script", "63.64", "cyrillic"),
    ]


def test_a_language_with_scripts_of_its_own_mixture_is_not_flagged(tmp_path: Path) -> None:
    japanese = [
        utterance(f"ja{i}", "私はリンゴとカメラが好きです", language="ja") for i in range(5)
    ]
    serbian = [utterance(f"sr{i}", ("dobro veče", "добро вече")[i % 2]) for i in range(6)]
    assert check(tmp_path, NO_AUDIO, train=[*japanese, *serbian])["train"] == []


def test_sentences_in_the_list_of_another_language_are_flagged_with_the_one_that_fits(
    tmp_path: Path,
) -> None:
    cuts = [cut for language in WORDS for cut in ordinary(300, language)]
    wrong = [
        utterance(f"{said}-as-{language}-{i}", text, language=language)
        for said, language in (("lv", "et"), ("de", "et"), ("et", "lv"))
        for i, text in enumerate(sentences(said, 10, seed=1))
    ]
    found = check(tmp_path, NO_AUDIO, train=[*cuts, *wrong])["train"]
    found = [row for row in found if row[1] == "other-language"]
    assert {(row[0], row[3]) for row in found} == {(w["id"], w["id"][:2]) for w in wrong}
    assert all(float(row[2]) > 10 for row in found)


def test_a_small_language_beside_a_large_one_draws_no_texts_to_it(tmp_path: Path) -> None:
    cuts = [*ordinary(2000, "et"), *ordinary(60, "lv")]
    found = check(tmp_path, NO_AUDIO, train=cuts)["train"]
    assert [row for row in found if row[1] == "other-language"] == []


def test_one_language_alone_or_too_short_a_text_is_not_judged(tmp_path: Path) -> None:
    german = [utterance(f"de{i}", text) for i, text in enumerate(sentences("de", 60))]
    assert check(tmp_path, NO_AUDIO, train=german)["train"] == []
    cuts = [*ordinary(), *ordinary(60, "de"), utterance("short", "über")]
    found = check(tmp_path, NO_AUDIO, train=cuts)["train"]
    assert [row for row in found if row[1] == "other-language"] == []


def test_likelihoods_are_those_of_counting_again_without_the_text() -> None:
    texts = [(text, i) for i, language in enumerate(WORDS) for text in sentences(language, 30)]
    profiles = profiles_of(texts)
    for k in range(0, len(texts), 7):
        text, language = texts[k]
        ratio, best, count = profiles.compare(text, language, is_counted=True)
        others = profiles_of(texts[:k] + texts[k + 1 :])
        expected = others.compare(text, language, is_counted=False)
        assert (ratio, best) == (pytest.approx(expected[0], abs=1e-9), expected[1])
        assert count == len(text)


def profiles_of(texts: list[tuple[str, int]]) -> Profiles:
    profiles = Profiles([0, 1, 2])
    for text, language in texts:
        profiles.add(text, language)
    profiles.close()
    return profiles


def test_sentences_and_speakers_that_other_splits_share_with_training(tmp_path: Path) -> None:
    train = [utterance("t0", "üks kaks kolm", speaker="mari"),
             utterance("t1", "neli viis kuus", speaker="jüri"),
             utterance("t2", "seitse kaheksa")]  # fmt: skip
    val = [utterance("v0", "üks kaks kolm neli", speaker="mari")]
    test = [
        utterance("e0", "üks kaks kolm", speaker="mari", custom={"line": 7}),
        utterance("e1", "üks kaks kolm", speaker="jüri"),
        utterance("e2", "seitse kaheksa"),
        utterance("e3", "muu jutt", 0.1, speaker="uus"),
    ]
    found = check(tmp_path, NO_AUDIO, train=train, val=val, test=test)
    assert found["train"] == found["val"] == []
    assert found["test"] == [
        ("e0", "text-in-train", "", "t0 in train", "", "7"),
        ("e0", "text-and-speaker-in-train", "", "t0 in train", "", "7"),
        ("e1", "text-in-train", "", "t0 in train"),
        ("e2", "text-in-train", "", "t2 in train"),
        ("e3", "fast", "70.00", "above 40.00"),
    ]
    rows = stage_4(tmp_path, NO_AUDIO, train=train, val=val, test=test)
    assert rows["fast"] == ["0", "0", "1 (25.00 %)"] and rows["silent"] == ["-", "-", "-"]
    assert rows["text-in-train"][-1] == "3 (75.00 %)"
    assert rows["text-and-speaker-in-train"][-1] == "1 (25.00 %)"
    assert rows[SPEAKERS] == ["-", "1 of 1", "2 of 3"]


@pytest.fixture
def broadcast(tmp_path: Path) -> dict:
    """A recording of ten minutes with two channels, as one utterance."""
    path = tmp_path / "broadcast.wav"
    return on_file(utterance("broadcast", "tere tulemast"), path, 600 * 16000, 16000, 2)


def test_overlapping_segments_of_a_channel_are_flagged_with_their_amount(
    tmp_path: Path, broadcast: dict
) -> None:
    train = [part_of(broadcast, "a", 10, 20), part_of(broadcast, "touches", 30, 5),
             part_of(broadcast, "b", 34.5, 2), part_of(broadcast, "gap", 50, 3),
             part_of(broadcast, "other-channel", 12, 5, channel=1)]  # fmt: skip
    test = [
        part_of(broadcast, "inside", 12, 4),
        part_of(broadcast, "apart", 100, 4),
        on_file(utterance("elsewhere", "muu"), tmp_path / "else.wav", 320000, 16000),
    ]
    found = check(tmp_path, NO_AUDIO, train=train, test=test)
    assert found["train"] == [("b", "overlap", "0.50", "touches")]
    assert [row for row in found["test"] if row[1] == "overlap"] == [
        ("inside", "overlap", "4.00", "a in train")
    ]


def test_overlaps_are_those_of_all_pairs(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    u = Utterances(tmp_path, has_tokens=False)
    u.begin("train")
    for i in range(300):
        path = tmp_path / f"{draw.integers(12)}.wav"
        whole = on_file(utterance("r", "a"), path, 16000 * 60, 16000, 2)
        start, seconds = draw.uniform(0, 40), draw.uniform(0.5, 4)
        u.add(part_of(whole, f"u{i}", start, seconds, int(draw.integers(2))), None)
    u.close()
    flags = Flags(u)
    flag_overlaps(u, flags)
    flags.write(tmp_path)
    ends = u.starts + u.seconds
    expected = {}
    for i in range(300):
        earlier = (u.sources == u.sources[i]) & (u.channels == u.channels[i])
        earlier &= u.starts < u.starts[i]
        shared = np.minimum(ends[earlier], ends[i]).max(initial=0) - u.starts[i]
        if shared > 1e-3:
            expected[f"u{i}"] = round(float(shared), 2)
    found = {row[0]: float(row[2]) for row in flagged(tmp_path, "train")}
    assert found == pytest.approx(expected, abs=0.011) and len(found) > 50


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_same_segment_twice_is_an_error_but_another_part_of_the_recording_is_not(
    tmp_path: Path, broadcast: dict, split: str
) -> None:
    train = [part_of(broadcast, "a", 10, 20), part_of(broadcast, "b", 40, 20)]
    splits = {"train": train, "test": [part_of(broadcast, "c", 70, 20)]}
    check(tmp_path, NO_AUDIO, **splits)
    splits[split].append(part_of(broadcast, "a-again", 10, 20))
    where = "twice" if split == "train" else "in train"
    with pytest.raises(UserError, match=rf"the same audio occurs {where} \(1\)"):
        check(tmp_path, NO_AUDIO, **splits)


def test_names_with_tabs_stay_in_their_column(tmp_path: Path) -> None:
    cut = utterance("a\tb", "tere hommikust", 0.1, custom={"line": 3, "list": "my\tlist.txt"})
    [row] = check(tmp_path, NO_AUDIO, train=[cut])["train"]
    assert row[0] == "a b" and row[4:] == ("my list.txt", "3")


def test_a_corpus_without_utterances_has_no_flags(tmp_path: Path) -> None:
    table = stage_4(tmp_path, train=[], test=[])
    assert [label for label, cells in table.items() if cells == ["-", "-"]] == [*KINDS, SPEAKERS]
    assert flagged(tmp_path, "train") == flagged(tmp_path, "test") == []


def test_an_utterance_needs_no_more_memory_than_its_columns() -> None:
    codes = {"d": 8, "q": 8, "Q": 8, "i": 4, "H": 2, "h": 2}
    assert sum(codes[code] for code in utterances._COLUMNS.values()) + 8 <= 64


def test_the_command_that_leaves_flagged_lines_out_is_the_documented_one(tmp_path: Path) -> None:
    cuts = [spoken(f"u{i}", "tere hommikust", 45 * (i % 2) or 12, custom={"line": i + 2})
            for i in range(6)]  # fmt: skip
    check(tmp_path, NO_AUDIO, train=cuts)
    page = (ROOT / "docs" / "corpus_checks.md").read_text()
    [command] = [part for part in page.split("\n\n") if part.startswith("    awk")]
    (tmp_path / "data").symlink_to(tmp_path)
    (tmp_path / "train.txt").write_text("# my list\n" + "".join(f"u{i}|\n" for i in range(6)))
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "train_kept.txt").read_text() == "# my list\nu0|\nu2|\nu4|\n"


def test_the_documentation_names_every_kind() -> None:
    page = (ROOT / "docs" / "corpus_checks.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []


@pytest.mark.parametrize("frames, faults", [(99, 0), (100, 1), (29_999, 1)])
def test_features_of_a_segment_have_the_frames_of_the_segment(
    tmp_path: Path, broadcast: dict, frames: int, faults: int
) -> None:
    """2 s are 32000 samples, and floor((32000 - 400) / 320) + 1 = 99 frames."""
    info = FeatureInfo(xlsr="x", sha256="0", cut="frontend", normalize="none", feature_dim=4)
    features = {"num_frames": frames, "num_features": 4, "storage_type": "other"}
    cut = {**part_of(broadcast, "a", 10, 1.98), "features": features}
    cut["custom"] = {AUDIO_DURATION: 2.0}
    assert len([*feature_problems(cut, info, tmp_path)]) == faults
