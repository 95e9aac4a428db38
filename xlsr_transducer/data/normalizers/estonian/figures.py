"""Rules for figures: money, units, ordinals, endings after a figure, plain numbers.

A rule is a pattern and a function that returns the reading of a match, or None to leave it. They
are tried in the order of RULES, each on the whole text, so what one has spelt the next cannot see.
"""

from __future__ import annotations

import re

from xlsr_transducer.data.normalizers.estonian.amounts import (
    DASH,
    NUMBER,
    SIGN,
    WHOLE,
    Amount,
    between,
    counted,
)
from xlsr_transducer.data.normalizers.estonian.nouns import (
    AFTER_GENITIVE,
    BEFORE_GENITIVE,
    CLASS_FORMS,
    MONTH_FORMS,
    MONTHS,
    YEAR,
    Wanted,
    is_known,
    wanted_of_cardinal,
    wanted_of_ordinal,
)
from xlsr_transducer.data.normalizers.estonian.numerals import (
    ENDINGS,
    GENITIVE,
    NOMINATIVE,
    PARTITIVE,
    cardinal,
    digit_by_digit,
    ordinal,
    roman,
)
from xlsr_transducer.data.normalizers.estonian.rules import (
    ENDING,
    LETTER,
    Reading,
    any_of,
    rule,
    word_before,
    words_after,
)
from xlsr_transducer.data.normalizers.estonian.tables import (
    CURRENCIES,
    CURRENCY_WORDS,
    MULTIPLES,
    UNITS,
)


def _amounts(match: re.Match[str]) -> list[Amount]:
    first = Amount.parse(match["sign"].strip() + match["a"])
    return [first] + ([Amount.parse(match["b"])] if match["b"] else [])


def _genitive_or_nominative(match: re.Match[str]) -> str:
    """Returns the case of a number with a unit: üle viie kilomeetri, viie kilomeetri kaugusel."""
    word = words_after(match)[0].lower()
    is_genitive = word in AFTER_GENITIVE or word_before(match).lower() in BEFORE_GENITIVE
    return GENITIVE if is_genitive else NOMINATIVE


def _multiple(match: re.Match[str]) -> Reading:
    """2,5 mln: a number of a large unit, whose noun or currency may follow."""
    amounts, unit = _amounts(match), MULTIPLES[match["unit"]]
    case = _genitive_or_nominative(match)
    text = counted(amounts, unit, case)
    if match["money"]:
        noun = CURRENCIES[match["money"]][0].noun
        text += " " + (noun.genitive if case == GENITIVE else noun.partitive)
    return Reading(text)


def _money(match: re.Match[str]) -> Reading:
    name = match["unit"] or match["front"]
    unit, hundredth = CURRENCIES[CURRENCY_WORDS.get(name, name)]
    amounts = _amounts(match)
    case = match["ending"] or _genitive_or_nominative(match)
    last = amounts[-1]
    if len(last.decimals) == 2 and len(amounts) == 1 and case == NOMINATIVE:
        parts = [counted([last._replace(decimals="")], unit)] if int(last.whole) else []
        if int(last.decimals):
            parts.append(counted([Amount("", str(int(last.decimals)), "")], hundredth))
        text = " ".join(parts) or counted([last._replace(decimals="")], unit)
        return Reading(text, name not in CURRENCY_WORDS)
    return Reading(counted(amounts, unit, case))


def _measure(match: re.Match[str]) -> Reading:
    unit, amounts = UNITS[match["unit"]], _amounts(match)
    attached = not match["space"] and match["unit"] in ENDINGS
    if attached and not match["ending"]:  # 5l: adessive in careful texts, litres in others
        return Reading(between(amounts, match["unit"]), False)
    if match["adjective"]:
        *before, last = between(amounts, GENITIVE).split()
        joined = (" " if before else "") + unit.noun.genitive + match["adjective"]
        return Reading(" ".join([*before, last]) + joined)
    case = match["ending"] or _genitive_or_nominative(match)
    return Reading(counted(amounts, unit, case), unit.is_sure)


_ALSO = re.compile(r"(?:(?:,| ja| või| ning| kuni) \d+\.)+(?= )")


def _ordinal(match: re.Match[str]) -> Reading | None:
    """24. veebruaril, 5.\u20136. klass, 5. ja 6. mail, 1990. aastatel."""
    other = _ALSO.match(match.string, match.end())
    word, after = words_after(match, other.end() if other else None)
    if len(word) == 1 and after in CLASS_FORMS:  # 5. b klassis
        word, after = after, ""
    if not word:
        return None
    if word[0].isupper():
        # A sentence may have ended; at the beginning of a text it is the number of a list.
        if match.string[: match.start()].strip():
            return None
    wanted = wanted_of_ordinal(word, after)
    is_sure = wanted.is_sure and not word[0].isupper()
    numbers = [int(match[name].replace(" ", "")) for name in "ab" if match[name]]
    return Reading(
        " kuni ".join(ordinal(n, wanted.case, wanted.is_plural) for n in numbers), is_sure
    )


def _year(match: re.Match[str]) -> Reading:
    """1990. a: in the adessive, but before a month in the genitive."""
    months = tuple(month.nominative[:4] for month in MONTHS)
    is_month = (match["next"] or "").lower().startswith(months)
    is_plural = match["short"] == "aa"
    case = GENITIVE if is_month else "l"
    ends = match[0].endswith(".") and not match.string[match.end() :].strip()
    noun = YEAR.form(case, is_plural) + "." * ends
    return Reading(f"{ordinal(int(match['a']), case, is_plural)} {noun}", is_month)


def _ordinal_at_end(match: re.Match[str]) -> Reading:
    """ "5." before a capital, at the end or before punctuation: the end of a sentence, likely."""
    figures, before = match["a"].replace(" ", ""), word_before(match).lower()
    is_year = before.startswith("aasta") or before in MONTH_FORMS  # 29. märtsil 1929.
    return Reading(cardinal(int(figures)) + ".", len(figures) > 4 or is_year)


def _ordinal_ending(match: re.Match[str]) -> Reading | None:
    """1990ndatel, 3-ndas, 21. with an ending of ordinals."""
    number, tail = int(match["a"]), match["tail"]
    is_low = number % 10 in (1, 2) and number % 100 not in (11, 12)
    if tail.startswith("nd"):
        rest = tail[2:]
        is_plural = rest in ("ad", "aid") or rest.startswith("ate")
        forms = {"a": GENITIVE, "at": PARTITIVE, "ad": NOMINATIVE, "ate": GENITIVE,
                 "aid": PARTITIVE, "as": "s"}  # fmt: skip
        case = forms.get(rest) or rest.removeprefix("ate" if is_plural else "a")
    elif not is_low:
        return None
    else:
        is_plural = tail.startswith("ste") or tail == "sed"
        forms = {"ne": NOMINATIVE, "sed": NOMINATIVE, "ste": GENITIVE, "se": GENITIVE}
        case = forms.get(tail) or tail.removeprefix("ste" if is_plural else "se")
    if case not in (NOMINATIVE, GENITIVE, PARTITIVE, *ENDINGS):
        return None
    return Reading(ordinal(number, case, is_plural))


def _ending(match: re.Match[str]) -> Reading:
    """5-le, 3ks, 20ga."""
    amounts, ending = _amounts(match), match["ending"]
    if ending == "d":
        return Reading(between(amounts, GENITIVE) + "d")
    # Without a hyphen 5l, 5s and 5t may be units.
    is_sure = "-" in match["mark"] or ending not in ("l", "s", "t")
    return Reading(between(amounts, PARTITIVE if ending == "t" else ending), is_sure)


_ADJECTIVE = re.compile(r"(?:ne|se|st|sed|ste|si|seid|line|lise|list|lised|liste|lisi)\w{0,3}$")


def _compound(match: re.Match[str]) -> Reading:
    """20-aastane: one word; of several words of a numeral none is joined: saja viie aastane."""
    word, numbers = match["word"], [Amount.parse(match[n]) for n in "ab" if match[n]]
    if word[0].isupper():
        return Reading(f"{between(numbers)} {word}", False)
    stem = between(numbers, GENITIVE)
    joint = "" if len(numbers[-1].spoken(GENITIVE).split()) == 1 else " "
    is_adjective = bool(_ADJECTIVE.search(word))
    return Reading(stem + joint + word, is_adjective and len(numbers) == 1)


def _half(match: re.Match[str]) -> Reading:
    """5- ja 6-aastased: the first half of a compound."""
    return Reading(between([Amount.parse(match["a"])], GENITIVE) + "-")


def _roman(match: re.Match[str]) -> Reading | None:
    """XX sajandil, Karl XII: the letters I, V and X, where a noun or a name shows that they
    count."""
    figures, ending = match["a"], match["ending"]
    number = roman(figures)
    word, after = words_after(match)
    name = word_before(match)
    is_regnal = len(name) > 1 and name[0].isupper() and name[1:].islower()
    is_counted = bool(word) and word[0].islower() and len(word) > 2
    if not number or not (is_regnal or is_counted or len(figures) > 1):
        return None
    if ending:
        text = ordinal(number, ending)
        return Reading(text[0].upper() + text[1:] if is_regnal else text)
    wanted = wanted_of_ordinal(word, after) if word else Wanted(is_sure=False)
    if is_regnal and not is_known(word):
        case = GENITIVE if word in AFTER_GENITIVE else NOMINATIVE
        text = ordinal(number, case)
        is_sure = (not is_counted or case == GENITIVE) and figures not in ("V", "X")
        return Reading(text[0].upper() + text[1:], is_sure)
    if figures in ("V", "X") and not is_known(word):
        return None
    numbers = [roman(figures) for figures in match.group("a", "b") if figures]
    return Reading(
        " kuni ".join(ordinal(n, wanted.case, wanted.is_plural) for n in numbers),
        wanted.is_sure and is_counted,
    )


def _mixed(match: re.Match[str]) -> Reading:
    """A4, Covid-19, 3D: figures beside letters are read as a number of their own."""
    left, number, right = match["left"] or "", match["a"], match["right"] or ""
    amount = Amount.parse(number)
    return Reading(" ".join(filter(None, [left.rstrip("-"), amount.spoken(), right])), False)


def _point(match: re.Match[str]) -> Reading:
    """3.5: a decimal point, or the number of a version or a section."""
    parts = [Amount("", part, "").spoken() for part in match[0].split(".")]
    return Reading(" punkt ".join(parts), False)


def _plain(match: re.Match[str]) -> Reading:
    """A number: its case is that of the noun after it."""
    amounts = _amounts(match)
    wanted = wanted_of_cardinal(amounts[-1].is_one, word_before(match), *words_after(match))
    is_sure = wanted.is_sure and all(amount.is_sure for amount in amounts)
    if len(amounts) == 2:
        low, high = (float(f"{a.whole}.{a.decimals or 0}") for a in amounts)
        if low >= high:  # a score
            return Reading(" ".join(amount.spoken() for amount in amounts), False)
        is_sure = is_sure and not re.search(r"\d-\d", match[0])
    return Reading(between(amounts, wanted.case), is_sure)


def _fraction(match: re.Match[str]) -> Reading | None:
    """1/2, 3/4; others, such as 24/7, are two numbers."""
    top, bottom = int(match["a"]), int(match["b"])
    known = {2: ("pool", "pool"), 4: ("veerand", "veerandit")}
    if 0 < top < bottom and bottom in known:
        one, many = known[bottom]
        return Reading(one if top == 1 else f"{cardinal(top)} {many}", False)
    if 0 < top < bottom <= 20 and bottom > 2:
        noun = ordinal(bottom, GENITIVE)[:-1] + "ik"
        return Reading(f"{cardinal(top)} {noun}" + ("ku" if top > 1 else ""), False)
    return Reading(f"{Amount('', match['a'], '').spoken()} {Amount('', match['b'], '').spoken()}",
                   False)  # fmt: skip


def _code(match: re.Match[str]) -> Reading:
    """A telephone number: digit by digit."""
    plus = "pluss " if match["plus"] else ""
    word = re.sub(r"\b([Tt])el\b\.?", r"\1elefon", match["word"])
    return Reading(word + plus + digit_by_digit(match["a"]), bool(word))


_END = rf"(?!{LETTER}|\d)"
_MONEY_TAIL = rf"(?:-(?P<ending>{ENDING})(?!\w))?"
_ORDINAL = r"\d{1,3}(?: \d{3}){1,2}|\d{1,9}"
_UNIT_TAIL = (
    rf"(?:-(?:(?P<adjective>(?:ne|lise|line|list|lis[it])\w{{0,3}})|(?P<ending>{ENDING})))?"
)
_RANGE = rf"(?<![\w.,/])(?P<sign>{SIGN})(?P<a>{NUMBER})(?:{DASH}(?P<b>{NUMBER}))?"

QUANTITIES = [
    rule("telephone", r"(?P<word>\b(?:[Tt]el\.?|[Tt]elefon|[Tt]elefonil|[Tt]elefoninumber):? )"
          r"(?P<plus>\+)?(?P<a>\d[\d ]{4,}\d)", _code),
    rule("telephone", r"(?P<word>)(?P<plus>\+)(?P<a>\d{3}(?: ?\d{2,4}){2,3})(?!\d)", _code),
    rule("money", rf"(?<!\w)(?P<sign>)(?P<front>[€$£]|(?:EUR|USD)(?= )) ?(?P<a>{NUMBER})"
          rf"(?:{DASH}(?P<b>{NUMBER}))?(?! ?(?:mln|milj|mld|mrd))(?P<unit>)(?P<ending>)", _money),
    rule("money", rf"{_RANGE} ?(?P<unit>{any_of(MULTIPLES)})\b\.?(?P<ending>)"
          rf"(?: ?(?P<money>{any_of(CURRENCIES)}){_END})?", _multiple),
    rule("money", rf"{_RANGE} ?(?P<unit>{any_of(CURRENCIES)}){_MONEY_TAIL}{_END}(?P<front>)",
          _money),
    rule("money", rf"(?<![\w.,/])(?P<sign>)(?P<a>{WHOLE},\d\d)(?P<b>) (?P<unit>"
          rf"{any_of(CURRENCY_WORDS)}){_END}(?P<ending>)(?P<front>)", _money),
    rule("unit", rf"{_RANGE}(?P<space> ?)(?P<unit>{any_of(UNITS)}){_UNIT_TAIL}{_END}(?!-\w)",
          _measure),
]  # fmt: skip
NUMBERS = [
    rule("ordinal", r"(?<![\w.,/-])(?P<a>\d{3,4})\. ?(?P<short>aa?)\b\.?"
          r"(?= ?(?P<next>[^\W\d_]+)?)", _year),
    rule("ordinal", rf"(?<![\w.,/-])(?P<a>{_ORDINAL})\.(?:{DASH}(?P<b>{_ORDINAL})\.)?"
          r"(?= [^\W\d_]|, \d+\.)", _ordinal),
    rule("ordinal", r"(?<![\w.,/-])(?P<a>\d{1,9})-?(?P<tail>nd\w{1,8}|ne|se(?!\w)|se[lktgn]\w*|"
          r"sed|ste\w*)(?!\w)", _ordinal_ending),
    rule("ending", rf"(?<![\w.,/])(?P<sign>{SIGN})(?P<a>{NUMBER})(?P<b>)(?P<mark>[-\u2010]?)"
          rf"(?P<ending>{ENDING}|t|(?<=[-\u2010])d)(?!\w)", _ending),
    rule("compound", rf"(?<![\w.,/-])(?P<a>{WHOLE})(?:[-\u2013](?P<b>{WHOLE}))?"
          r"(?:-(?P<word>[^\W\d_]{3,}(?:-\w+)*))", _compound),
    rule("compound", rf"(?<![\w.,/-])(?P<a>{WHOLE})(?P<b>)(?P<word>[a-zäöüõšž]{{5,}})\b",
          _compound),
    rule("compound", rf"(?<![\w.,/-])(?P<a>{WHOLE})-(?= (?:ja|või|ning|kuni) |, ?\d)", _half),
    rule("fraction", r"(?<![\w.,/])(?P<a>\d+)/(?P<b>\d+)(?![\w/])", _fraction),
    rule("point", rf"(?<![\w.,])(?!{WHOLE}(?![\d.]))\d+(?:\.\d+)+(?!\d)", _point),
    rule("range", rf"(?<![\w.,/])(?P<sign>{SIGN})(?P<a>{NUMBER}){DASH}(?P<b>{NUMBER})"
          rf"(?![\w/])", _plain),
    rule("sentence end", rf"(?<![\w.,/-])(?P<a>{_ORDINAL})\.(?=\s*$| [^\W\d_])",
          _ordinal_at_end),
    rule("number", rf"(?<![\w,/])(?<![^\W\d_]-)(?P<sign>{SIGN})(?P<a>{NUMBER})(?P<b>)"
          r"(?!\w|-[^\W\d_])", _plain),
    rule("mixed", rf"(?P<left>(?<!{LETTER}){LETTER}+-?)?(?P<a>\d+)-?(?P<right>{LETTER}+)?",
         _mixed),
]  # fmt: skip
ROMANS = [
    rule("roman", r"(?<![\w.-])(?P<a>[IVX]+)(?:[-\u2013](?P<b>[IVX]+))?"
          rf"(?:-(?:nda)?(?P<ending>{ENDING})|\.(?= {LETTER}))?(?!\w)", _roman),
]  # fmt: skip
