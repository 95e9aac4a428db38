"""Word and character error rates, and icefall's result files.

For a test set and a suffix that names the settings, ``write_results`` leaves

    recogs-<set>-<suffix>.txt       id, reference words, recognised words
    errs-<set>-<suffix>.txt         the rate, alignments, confusions, counts per word; rates by
                                    language, and by other columns, where they have several values
    wer-summary-<set>-<suffix>.txt  settings, WER, unread utterances; the WER without case and
                                    punctuation where texts have them; then the same by language
                                    and other columns
    utterances-<set>-<suffix>.jsonl one JSON object per utterance: texts, speaker, language (and
                                    language_found by a model that tells it), seconds, columns of
                                    the corpus, custom fields, place of the audio
    tokens-<set>-<suffix>.jsonl     one JSON object per utterance with token ids, their encoder
                                    frames and log-probs (read by local/compare_decodes.py), words
                                    with start, end and confidence, speaker, columns, custom fields

An utterance that could not be read has no recognised words, so that all of its words count as
deleted; every file tells how many there are.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kaldialign

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.recognition.error_rates import (
    ErrorRate,
    Score,
    Transcript,
    error_rate,
    score,
    score_values,
)
from xlsr_transducer.recognition.languages import (
    columns_of,
    has_several,
    identified_table,
    spreads,
    value_rows,
    value_tables,
    with_identified,
)
from xlsr_transducer.recognition.spans import Span
from xlsr_transducer.search.hypothesis import Hypothesis

__all__ = [
    "GAP",
    "SHOWN_GAP",
    "ErrorRate",
    "Pairs",
    "Score",
    "Transcript",
    "error_rate",
    "format_table",
    "score",
    "write_results",
]

# In place of a missing word: no text holds a NUL. Shown as "*", as icefall does.
GAP = "\0"
SHOWN_GAP = "*"
PLAIN = "without case and punctuation"
SPREAD = (("worst", "highest"), ("mean", "mean"), ("gap", "gap"))  # shown, and field of Spread

Pairs = list[tuple[str, str]]


def write_results(
    res_dir: Path | str,
    set_name: str,
    suffix: str,
    transcripts: Iterable[Transcript],
    hypotheses: Mapping[str, Hypothesis] | None = None,
    unread: Mapping[str, str] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    words: Mapping[str, Sequence[Span]] | None = None,
) -> Score:
    """Scores a set and writes its result files into ``res_dir``.

    Args:
      suffix: names the settings; part of every file name.
      hypotheses: by utterance id, for the tokens file; without them it is not written.
      unread: why an utterance could not be read, by id; its transcript has no hypothesis.
      facts: what is known of an utterance, by id (see ``facts_of``); ``ref`` and ``hyp`` are its
        texts, where they differ from the words that are scored.
      words: recognised words with their times, by id, for the tokens file.

    Raises:
      UserError: two utterances have one id, an utterance has no hypothesis, or a file cannot be
        written.
    """
    unread, facts = unread or {}, facts or {}
    transcripts = sorted(transcripts, key=lambda t: t.id)
    counts = Counter(t.id for t in transcripts)
    twice = [i for i, n in counts.items() if n > 1]
    if twice:
        raise UserError(f"{set_name}: utterance id {twice[0]} occurs {counts[twice[0]]} times")
    result = score(set_name, suffix, transcripts, len(unread))
    parts = {
        name: score_values(result, transcripts, unread, values)
        for name, values in columns_of(facts).items()
    }
    result = replace(result, columns={name: found for name, found in parts.items() if found})
    result = with_identified(result, transcripts, facts)
    name = f"{set_name}-{suffix}"
    files = {
        f"recogs-{name}.txt": _recogs(transcripts),
        f"errs-{name}.txt": _errs(transcripts, result, unread),
        f"wer-summary-{name}.txt": _summary(result),
        f"utterances-{name}.jsonl": _utterance_lines(set_name, transcripts, unread, facts),
    }
    if hypotheses is not None:
        lines = _token_lines(set_name, transcripts, hypotheses, unread, facts, words or {})
        files[f"tokens-{name}.jsonl"] = lines
    with replacing(*(Path(res_dir) / file for file in files)) as temporary:
        for path, text in zip(temporary, files.values()):
            path.write_text(text, encoding="utf-8")
    return result


def format_table(scores: Sequence[Score]) -> str:
    """Returns a plain text table, one line per score; then one of the languages, and of each
    other column, if there are several, and one of how often languages were found, if they were
    sought."""
    rates = ("WER % [95 %]", "CER % [95 %]")
    has_plain = any(s.plain_wer for s in scores)  # a column only where texts have case
    rows = [("set", "settings", *rates, "words", "ins/del/sub", "utts", "unread",
             *[f"WER % {PLAIN}"] * has_plain)]  # fmt: skip
    for s in scores:
        kinds = f"{s.wer.insertions}/{s.wer.deletions}/{s.wer.substitutions}"
        cells = (s.set_name, s.suffix, str(s.wer), str(s.cer), str(s.wer.num_ref), kinds)
        plain = [str(s.plain_wer or s.wer)] * has_plain
        rows.append((*cells, str(s.num_utterances), str(s.num_unread), *plain))
    tables = (text_table(rows), *value_tables(scores), identified_table(scores))
    return "\n\n".join(filter(None, tables))


def _summary(result: Score) -> str:
    """The settings and their rate; then by column each value, the worst, their mean, and the
    gap."""
    rate = f"{result.suffix}\t{result.wer.percent:.2f}\t{result.num_unread}\n"
    if result.plain_wer:
        rate += f"\n{PLAIN}\tWER\n{result.suffix}\t{result.plain_wer.percent:.2f}\n"
    parts = [f"settings\tWER\tunread\n{rate}"]
    for column, values in result.columns.items():
        if has_several(values):
            of_each = [(name, s.wer.percent, s.cer.percent) for name, s in values.items()]
            both = spreads(values)
            of_each += [(what, *(getattr(s, field) for s in both)) for what, field in SPREAD]
            rows = "".join(f"{name}\t{wer:.2f}\t{cer:.2f}\n" for name, wer, cer in of_each)
            parts.append(f"{column}\tWER\tCER\n{rows}")
    return "\n".join(parts)


def _recogs(transcripts: Iterable[Transcript]) -> str:
    lines = (f"{t.id}:\tref={t.ref}\n{t.id}:\thyp={t.hyp}\n" for t in transcripts)
    return "".join(lines)


def _utterance_lines(
    set_name: str,
    transcripts: Iterable[Transcript],
    unread: Mapping[str, str],
    facts: Mapping[str, Mapping[str, Any]],
) -> str:
    lines = []
    for t in transcripts:
        entry = {"set": set_name, "id": t.id, "ref": " ".join(t.ref), "hyp": " ".join(t.hyp)}
        entry.update(facts.get(t.id, {}))
        if t.id in unread:
            entry["unread"] = unread[t.id]
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


def _token_lines(
    set_name: str,
    transcripts: Iterable[Transcript],
    hypotheses: Mapping[str, Hypothesis],
    unread: Mapping[str, str],
    facts: Mapping[str, Mapping[str, Any]],
    words: Mapping[str, Sequence[Span]],
) -> str:
    lines = []
    for t in transcripts:
        if t.id not in hypotheses and t.id not in unread:
            raise UserError(f"{set_name}: no hypothesis for utterance {t.id}")
        h = hypotheses.get(t.id, Hypothesis())
        entry = {"set": set_name, "id": t.id, "text": " ".join(t.hyp), "tokens": h.tokens}
        entry.update(frames=h.frames, log_probs=[round(p, 4) for p in h.log_probs])
        if t.id in words:
            entry["words"] = [
                [w.text, round(w.start, 3), round(w.end, 3), round(w.confidence, 4)]
                for w in words[t.id]
            ]
        known = facts.get(t.id, {})
        entry.update(
            {
                key: known[key]
                for key in ("speaker", "language", "columns", "custom")
                if key in known
            }
        )
        if t.id in unread:
            entry["unread"] = unread[t.id]
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


def _errs(transcripts: Sequence[Transcript], result: Score, unread: Mapping[str, str]) -> str:
    """icefall's error statistics, section by section."""
    aligned: dict[str, Pairs] = {t.id: kaldialign.align(t.ref, t.hyp, GAP) for t in transcripts}
    confusions = Counter(pair for pairs in aligned.values() for pair in pairs)
    correct = sum(n for (r, h), n in confusions.items() if r == h)
    wer = result.wer
    heading = [
        f"%WER = {wer.percent:.2f}",
        f"Errors: {wer.insertions} insertions, {wer.deletions} deletions, "
        f"{wer.substitutions} substitutions, over {wer.num_ref} reference words "
        f"({correct} correct)",
        f"95 % interval of the WER: {wer.low:.2f} to {wer.high:.2f}",
        *([f"%WER {PLAIN} = {result.plain_wer}"] if result.plain_wer else []),
        f"%CER = {result.cer}, over {result.cer.num_ref} characters",
        f"{len(unread)} of {len(transcripts)} utterances could not be read; their words count as "
        "deletions",
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, "
        "DELETIONS:, INSERTIONS:, PER-WORD STATS:",
    ]
    details = [f"{i}:\t" + " ".join(_spans(pairs)) for i, pairs in aligned.items()]
    often_first = sorted(confusions.items(), key=lambda x: (-x[1], x[0]))
    wrong = [(n, r, h) for (r, h), n in often_first if r != h]
    sections = [
        heading,
        ["PER-UTT DETAILS: corr or (ref->hyp)", *details],
        [
            "SUBSTITUTIONS: count ref -> hyp",
            *(f"{n}   {r} -> {h}" for n, r, h in wrong if GAP not in (r, h)),
        ],
        ["DELETIONS: count ref", *(f"{n}   {r}" for n, r, h in wrong if h == GAP)],
        ["INSERTIONS: count hyp", *(f"{n}   {h}" for n, r, h in wrong if r == GAP)],
        [
            "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp",
            *_word_stats(confusions),
        ],
    ]
    for column, values in result.columns.items():
        if has_several(values):
            rows = [(column, "WER % [95 %]", "CER % [95 %]", "words", "utterances", "unread")]
            rows += [cells for _, *cells in value_rows("", values)]
            title = f"BY {column.upper()}: rates, the worst, their mean, and the gap"
            sections.append([title, text_table(rows)])
    if identified := identified_table([result]):
        sections.append(["LANGUAGE FOUND: in how many utterances", identified])
    if unread:
        lines = [f"{i}: {' '.join(reason.split())}" for i, reason in sorted(unread.items())]
        sections.append(["UNREAD: utterance: reason", *lines])
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _spans(pairs: Pairs) -> list[str]:
    """Returns the alignment in words, successive errors joined: ``a (b c->d) e (*->f)``."""
    shown: list[str] = []
    wrong: Pairs = []

    def close() -> None:
        if wrong:
            ref, hyp = (" ".join(w for w in side if w != GAP) for side in zip(*wrong))
            shown.append(f"({ref or SHOWN_GAP}->{hyp or SHOWN_GAP})")
            wrong.clear()

    for r, h in pairs:
        if r == h:
            close()
            shown.append(r)
        else:
            wrong.append((r, h))
    close()
    return shown


def _word_stats(confusions: Mapping[tuple[str, str], int]) -> list[str]:
    """Per word: correct, errors it took part in, occurrences in reference and hypothesis."""
    stats: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for (r, h), n in confusions.items():
        if r == h:
            stats[r][0] += n
        if r != GAP:
            stats[r][1] += n * (r != h)
            stats[r][2] += n
        if h != GAP:
            stats[h][1] += n * (r != h)
            stats[h][3] += n
    worst_first = sorted(stats.items(), key=lambda x: (-x[1][1], x[0]))
    return [f"{word}   {' '.join(map(str, counts))}" for word, counts in worst_first]
