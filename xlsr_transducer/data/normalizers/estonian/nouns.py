"""Nouns that stand after figures, and what case such a noun asks of the figure.

A numeral's case shows in speech and not in figures: *5 päevaga* is *viie päevaga*. The case of the
nouns listed here is known; of others it is guessed from the ending, and the guess is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from xlsr_transducer.data.normalizers.estonian.numerals import (
    ENDINGS,
    GENITIVE,
    NOMINATIVE,
    PARTITIVE,
    Noun,
    modifier_case,
)

# Nominative, genitive, partitive; genitive and partitive of the plural.
_COUNTED = """
aasta aasta aastat aastate aastaid
päev päeva päeva päevade päevi
kuu kuu kuud kuude kuid
nädal nädala nädalat nädalate nädalaid
tund tunni tundi tundide tunde
minut minuti minutit minutite minuteid
sekund sekundi sekundit sekundite sekundeid
sajand sajandi sajandit sajandite sajandeid
aastatuhat aastatuhande aastatuhandet aastatuhandete aastatuhandeid
aastakümme aastakümne aastakümmet aastakümnete aastakümneid
veerand veerandi veerandit veerandite veerandeid
euro euro eurot eurode eurosid
sent sendi senti sentide sente
kroon krooni krooni kroonide kroone
dollar dollari dollarit dollarite dollareid
protsent protsendi protsenti protsentide protsente
kraad kraadi kraadi kraadide kraade
meeter meetri meetrit meetrite meetreid
kilomeeter kilomeetri kilomeetrit kilomeetrite kilomeetreid
sentimeeter sentimeetri sentimeetrit sentimeetrite sentimeetreid
ruutmeeter ruutmeetri ruutmeetrit ruutmeetrite ruutmeetreid
hektar hektari hektarit hektarite hektareid
gramm grammi grammi grammide gramme
kilogramm kilogrammi kilogrammi kilogrammide kilogramme
kilo kilo kilo kilode kilosid
tonn tonni tonni tonnide tonne
liiter liitri liitrit liitrite liitreid
inimene inimese inimest inimeste inimesi
mees mehe meest meeste mehi
naine naise naist naiste naisi
laps lapse last laste lapsi
poiss poisi poissi poiste poisse
tüdruk tüdruku tüdrukut tüdrukute tüdrukuid
õpilane õpilase õpilast õpilaste õpilasi
üliõpilane üliõpilase üliõpilast üliõpilaste üliõpilasi
elanik elaniku elanikku elanike elanikke
liige liikme liiget liikmete liikmeid
töötaja töötaja töötajat töötajate töötajaid
osaleja osaleja osalejat osalejate osalejaid
mängija mängija mängijat mängijate mängijaid
riik riigi riiki riikide riike
linn linna linna linnade linnu
vald valla valda valdade valdu
maja maja maja majade maju
korter korteri korterit korterite kortereid
auto auto autot autode autosid
raamat raamatu raamatut raamatute raamatuid
lehekülg lehekülje lehekülge lehekülgede lehekülgi
peatükk peatüki peatükki peatükkide peatükke
paragrahv paragrahvi paragrahvi paragrahvide paragrahve
lõige lõike lõiget lõigete lõikeid
artikkel artikli artiklit artiklite artikleid
punkt punkti punkti punktide punkte
hääl hääle häält häälte hääli
koht koha kohta kohtade kohti
kord korra korda kordade kordi
osa osa osa osade osi
samm sammu sammu sammude samme
korrus korruse korrust korruste korruseid
klass klassi klassi klasside klasse
kursus kursuse kursust kursuste kursusi
grupp grupi gruppi gruppide gruppe
voor vooru vooru voorude voore
etapp etapi etappi etappide etappe
hooaeg hooaja hooaega hooaegade hooaegu
poolaeg poolaja poolaega poolaegade poolaegu
number numbri numbrit numbrite numbreid
tase taseme taset tasemete tasemeid
aste astme astet astmete astmeid
kategooria kategooria kategooriat kategooriate kategooriaid
sünnipäev sünnipäeva sünnipäeva sünnipäevade sünnipäevi
eluaasta eluaasta eluaastat eluaastate eluaastaid
maailmasõda maailmasõja maailmasõda maailmasõdade maailmasõdu
sümfoonia sümfoonia sümfooniat sümfooniate sümfooniaid
rühm rühma rühma rühmade rühmi
tükk tüki tükki tükkide tükke
miljon miljoni miljonit miljonite miljoneid
miljard miljardi miljardit miljardite miljardeid
"""
_MONTHS = """
jaanuar jaanuari jaanuari
veebruar veebruari veebruari
märts märtsi märtsi
aprill aprilli aprilli
mai mai maid
juuni juuni juunit
juuli juuli juulit
august augusti augustit
september septembri septembrit
oktoober oktoobri oktoobrit
november novembri novembrit
detsember detsembri detsembrit
"""


def _read(table: str) -> list[Noun]:
    return [Noun(*line.split()) for line in table.split("\n") if line]


MONTHS = _read(_MONTHS)
CASES = (NOMINATIVE, GENITIVE, PARTITIVE, *ENDINGS)
MONTH_FORMS = frozenset(month.form(case) for month in MONTHS for case in CASES)
CLASS_FORMS = frozenset(Noun("klass", "klassi", "klassi").form(case) for case in CASES)
YEAR = _read(_COUNTED)[0]
_SHORT_ILLATIVE = {"klassi": "klass", "linna": "linn", "majja": "maja", "kohta": "koht"}

# After a number or a counted noun in the genitive: viie aasta pärast, saja kilomeetri kaugusel.
AFTER_GENITIVE = frozenset(
    """
    pärast eest võrra jooksul kestel vältel tagant ajal paiku ringis kanti vahel võrdne ulatuses
    kaugusel kaugusele kaugusest kõrgusel kõrgusele sügavusel pikkune pikkused laiune kõrgune
    sügavune vanune vanused vanuselt vanuses suurune suurused raskune kaaluv kiirusega kiirusel
    kiiruseni raadiuses eelarve tagune tagused pikkuse pikkust laiuse kõrguse suuruse suuruses
    väärtuses väärtuse kestev kestnud täitumisel hinnaga hinnast kohta järel järgi eel eest kombel
    """.split()
)
# Words whose number follows them, whatever comes then.
_NAMED = frozenset(
    "kell kella kl number numbri nr lehekülg lk paragrahv lõige tase telefon".split()
)
BEFORE_GENITIVE = frozenset(("üle", "alla"))  # üle viie aasta
# Words that end like a case and are none.
_NO_NOUNS = frozenset(
    """
    veel all sel kell eile ole üle alla jälle näiteks lisaks korraks seks miks üks kaks kuus viis
    siis ajaks esiteks teiseks vastu umbes koos läks jooks oleks tuleks saaks siiani seni kuni kõik
    peal taga ette ilma ega aga juba tema nende oma minu sinu selle ning kuna täna
    """.split()
)


class Form(NamedTuple):
    """A case and number in which a form of a noun can stand."""

    case: str
    is_plural: bool


def _forms() -> Mapping[str, list[Form]]:
    found: dict[str, list[Form]] = {}
    for noun in [*_read(_COUNTED), *MONTHS]:
        for is_plural in (False, True)[: 2 if noun.plural_genitive else 1]:
            for case in CASES:
                forms = found.setdefault(noun.form(case, is_plural), [])
                forms.append(Form(case, is_plural))
    return found


_FORMS = _forms()


class Wanted(NamedTuple):
    """The form in which a numeral stands, and whether that is sure."""

    case: str = NOMINATIVE
    is_plural: bool = False
    is_sure: bool = True


def is_known(word: str) -> bool:
    """Returns whether a word is a form of a listed noun or month."""
    return word.lower() in _FORMS


def wanted_of_cardinal(is_one: bool, before: str, word: str, after: str) -> Wanted:
    """Returns the case of a cardinal.

    Args:
      is_one: of the number 1, after which the noun is not in the partitive.
      before: the word in front of the number, '' without one.
      word: the word after it, '' without one.
      after: the word after that one.
    """
    before, word, after = before.lower(), word.lower(), after.lower()
    if before in _NAMED or before.startswith("aasta"):  # kell seitse hommikul
        return Wanted(GENITIVE if word in AFTER_GENITIVE else NOMINATIVE)
    if word in AFTER_GENITIVE and word != "kohta":  # kell viie paiku
        return Wanted(GENITIVE)
    cases = [form.case for form in _FORMS.get(word, []) if not form.is_plural]
    if cases:
        if GENITIVE in cases and (after in AFTER_GENITIVE or before in BEFORE_GENITIVE):
            return Wanted(GENITIVE)
        if is_one:
            return Wanted(modifier_case(cases[0]))
        if PARTITIVE in cases:
            return Wanted()
        return Wanted(modifier_case(next(case for case in cases if case != NOMINATIVE))
                      if cases != [NOMINATIVE] else NOMINATIVE)  # fmt: skip
    if before in BEFORE_GENITIVE:
        return Wanted(GENITIVE, is_sure=False)
    return _guess(word)


def wanted_of_ordinal(word: str, after: str) -> Wanted:
    """Returns the case and number of an ordinal before ``word``, with ``after`` following that."""
    word, after = word.lower(), after.lower()
    forms = _FORMS.get(word, [])
    cases = [form.case for form in forms if not form.is_plural]
    if not forms:
        guess = _guess(word)
        ends_open = word[-1:] in ("a", "e", "i", "o", "u", "õ", "ä", "ö", "ü")
        return guess._replace(is_sure=guess.is_sure and not ends_open)
    if not cases:
        return Wanted(modifier_case(forms[0].case), forms[0].is_plural)
    if after in AFTER_GENITIVE and GENITIVE in cases:
        return Wanted(GENITIVE)
    if NOMINATIVE in cases and GENITIVE in cases:
        is_subject = not after or after in ("on", "oli", "ei", "ja", "või", "ning")
        return Wanted(NOMINATIVE if is_subject else GENITIVE, is_sure=False)
    is_sure = len(cases) == 1 and word not in _SHORT_ILLATIVE
    return Wanted(modifier_case(cases[0]), is_sure=is_sure)


def _guess(word: str) -> Wanted:
    """Returns the case that the ending of an unlisted word makes likeliest."""
    if not word.isalpha() or word in _NO_NOUNS or word in AFTER_GENITIVE or len(word) < 5:
        return Wanted()
    for ending in ("sse", "ks", "le"):
        if word.endswith(ending):
            return Wanted(ending, is_sure=False)
    if word.endswith("l") and word[-2] in "aeiouõäöü":
        return Wanted("l", is_sure=False)
    if len(word) > 5 and word.endswith(("ga", "ta", "ni", "na")):
        return Wanted(GENITIVE, is_sure=False)
    # Also partitives and nominatives: inimest, keelt, korrus.
    return Wanted(is_sure=not word.endswith(("st", "s", "lt")))
