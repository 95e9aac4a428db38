"""Units, currencies and abbreviations of Estonian texts, as they are read aloud."""

from __future__ import annotations

from typing import NamedTuple

from xlsr_transducer.data.normalizers.estonian.numerals import Noun


class Unit(NamedTuple):
    """The words after a number: its noun, and those that follow it."""

    noun: Noun
    tail: str = ""
    is_sure: bool = True


def _unit(names: str, tail: str = "", is_sure: bool = True) -> Unit:
    return Unit(Noun(*names.split()), tail, is_sure)


_METRE, _GRAM = "meeter meetri meetrit", "gramm grammi grammi"
_LITRE, _HOUR = "liiter liitri liitrit", "tund tunni tundi"
_WATT, _HERTZ = "vatt vati vatti", "herts hertsi hertsi"
_BYTE, _BIT = "bait baidi baiti", "bitt biti bitti"


def _with(prefix: str, names: str, tail: str = "") -> Unit:
    return _unit(" ".join(prefix + name for name in names.split()), tail)


UNITS: dict[str, Unit] = {
    "km": _with("kilo", _METRE), "m": _with("", _METRE), "dm": _with("detsi", _METRE),
    "cm": _with("senti", _METRE), "mm": _with("milli", _METRE), "µm": _with("mikro", _METRE),
    "nm": _with("nano", _METRE),
    "km²": _with("ruutkilo", _METRE), "km2": _with("ruutkilo", _METRE),
    "m²": _with("ruut", _METRE), "m2": _with("ruut", _METRE), "cm²": _with("ruutsenti", _METRE),
    "m³": _with("kuup", _METRE), "m3": _with("kuup", _METRE), "cm³": _with("kuupsenti", _METRE),
    "km/h": _with("kilo", _METRE, "tunnis"), "km/t": _with("kilo", _METRE, "tunnis"),
    "m/s": _with("", _METRE, "sekundis"),
    "kg": _with("kilo", _GRAM), "g": _with("", _GRAM), "mg": _with("milli", _GRAM),
    "µg": _with("mikro", _GRAM), "t": _unit("tonn tonni tonni", is_sure=False),
    "ha": _unit("hektar hektari hektarit"),
    "l": _with("", _LITRE), "dl": _with("detsi", _LITRE), "cl": _with("senti", _LITRE),
    "ml": _with("milli", _LITRE), "l/s": _with("", _LITRE, "sekundis"),
    "h": _with("", _HOUR), "min": _unit("minut minuti minutit"),
    "s": _unit("sekund sekundi sekundit"), "sek": _unit("sekund sekundi sekundit"),
    "ms": _unit("millisekund millisekundi millisekundit"),
    "°": _unit("kraad kraadi kraadi"), "°C": _unit("kraad kraadi kraadi", is_sure=False),
    "ºC": _unit("kraad kraadi kraadi", is_sure=False), "℃": _unit("kraad kraadi kraadi"),
    "°F": _unit("kraad kraadi kraadi", "Fahrenheiti"),
    "V": _unit("volt voldi volti"), "kV": _unit("kilovolt kilovoldi kilovolti"),
    "W": _with("", _WATT), "kW": _with("kilo", _WATT),
    "MW": _with("mega", _WATT), "GW": _with("giga", _WATT),
    "kWh": _unit("kilovatt-tund kilovatt-tunni kilovatt-tundi"),
    "MWh": _unit("megavatt-tund megavatt-tunni megavatt-tundi"),
    "GWh": _unit("gigavatt-tund gigavatt-tunni gigavatt-tundi"),
    "Hz": _with("", _HERTZ), "kHz": _with("kilo", _HERTZ), "MHz": _with("mega", _HERTZ),
    "GHz": _with("giga", _HERTZ), "kcal": _unit("kilokalor kilokalori kilokalorit"),
    "kJ": _unit("kilodžaul kilodžauli kilodžauli"), "hj": _unit("hobujõud hobujõu hobujõudu"),
    "kB": _with("kilo", _BYTE), "KB": _with("kilo", _BYTE),
    "MB": _with("mega", _BYTE), "GB": _with("giga", _BYTE), "TB": _with("tera", _BYTE),
    "Mbit/s": _with("mega", _BIT, "sekundis"), "Gbit/s": _with("giga", _BIT, "sekundis"),
    "dB": _unit("detsibell detsibelli detsibelli"),
    "hPa": _unit("hektopaskal hektopaskali hektopaskalit"),
    "%": _unit("protsent protsendi protsenti"), "‰": _unit("promill promilli promilli"),
    "tk": _unit("tükk tüki tükki"), "lk": _unit("lehekülg lehekülje lehekülge"),
}  # fmt: skip

# A currency, and its hundredth part.
_EURO, _CENT = "euro euro eurot", "sent sendi senti"
_CROWN, _DOLLAR = "kroon krooni krooni", "dollar dollari dollarit"
CURRENCIES: dict[str, tuple[Unit, Unit]] = {
    **dict.fromkeys(("€", "EUR", "eur"), (_unit(_EURO), _unit(_CENT))),
    **dict.fromkeys(("$", "USD"), (_unit(_DOLLAR), _unit(_CENT))),
    **dict.fromkeys(("£", "GBP"), (_unit("nael naela naela"), _unit("penn penni penni"))),
    **dict.fromkeys(("kr", "EEK"), (_unit(_CROWN), _unit(_CENT))),
    "RUB": (_unit("rubla rubla rubla"), _unit("kopikas kopika kopikat")),
}
# Forms of the euro in words, whose decimals are cents as well.
CURRENCY_WORDS = {"eurot": "€", "dollarit": "$", "krooni": "kr"}

MULTIPLES: dict[str, Unit] = {
    **dict.fromkeys(("mln", "milj"), _unit("miljon miljoni miljonit")),
    **dict.fromkeys(("mld", "mrd", "miljrd"), _unit("miljard miljardi miljardit")),
    "trln": _unit("triljon triljoni triljonit"),
    "tuh": _unit("tuhat tuhande tuhat"),
}

# Nouns that are shortened: they may take an ending, dr-le.
SHORT_NOUNS: dict[str, Noun] = {
    "dr": Noun("doktor", "doktori", "doktorit"),
    "prof": Noun("professor", "professori", "professorit"),
    "hr": Noun("härra", "härra", "härrat"),
    "pr": Noun("proua", "proua", "prouat"),
    "prl": Noun("preili", "preili", "preilit"),
    "§": Noun("paragrahv", "paragrahvi", "paragrahvi"),
    "lk": Noun("lehekülg", "lehekülje", "lehekülge"),
    "nr": Noun("number", "numbri", "numbrit"),
    "tel": Noun("telefon", "telefoni", "telefoni"),
    "tn": Noun("tänav", "tänava", "tänavat"),
    "mnt": Noun("maantee", "maantee", "maanteed"),
    "pst": Noun("puiestee", "puiestee", "puiesteed"),
    "saj": Noun("sajand", "sajandi", "sajandit"),
    "ptk": Noun("peatükk", "peatüki", "peatükki"),
    "lg": Noun("lõige", "lõike", "lõiget"),
    "kpt": Noun("kapten", "kapteni", "kaptenit"),
    "kol": Noun("kolonel", "koloneli", "koloneli"),
    "ltn": Noun("leitnant", "leitnandi", "leitnanti"),
    "mjr": Noun("major", "majori", "majorit"),
    "kin": Noun("kindral", "kindrali", "kindralit"),
}

ABBREVIATIONS: dict[str, str] = {
    "nt": "näiteks", "näit": "näiteks", "jne": "ja nii edasi", "jpt": "ja paljud teised",
    "jm": "ja muud", "jms": "ja muud sellist", "jmt": "ja mitmed teised", "jt": "ja teised",
    "vms": "või muud sellist", "vm": "või muu", "vt": "vaata", "vrd": "võrdle",
    "s.t": "see tähendab", "st": "see tähendab", "s.o": "see on", "sh": "sealhulgas",
    "nn": "niinimetatud", "v.a": "välja arvatud", "k.a": "kaasa arvatud",
    "e.m.a": "enne meie aega", "m.a.j": "meie aja järgi", "eKr": "enne Kristust",
    "e.Kr": "enne Kristust", "pKr": "pärast Kristust", "p.Kr": "pärast Kristust",
    "lp": "lugupeetud", "sünd": "sündinud", "surn": "surnud",
    "end": "endine", "toim": "toimetaja", "koost": "koostaja", "tlk": "tõlkija",
    "veebr": "veebruar", "jaan": "jaanuar", "apr": "aprill", "aug": "august",
    "sept": "september", "okt": "oktoober", "nov": "november", "dets": "detsember",
}  # fmt: skip
# Those that may be read otherwise, or in another case.
UNSURE = frozenset("jm jms vms vm k.a end sünd toim jaan veebr apr aug sept okt nov dets".split())
# Also words or parts of names: read out only with a number after them, or before them.
BEFORE_NUMBER = {"u": "umbes", "ca": "tsirka", "kl": "kell", "a": "aastal"}
ONLY_AFTER_NUMBER = frozenset("jaan veebr apr aug sept okt nov dets".split())
ONLY_WITH_POINT = frozenset("end sünd surn toim koost kol kin tel".split())
# After these a point ends the sentence too, if a capital follows.
ENDS_LISTS = frozenset("jne jpt jm jms jmt jt vms vm".split())

SYMBOLS = {
    "&": "ja", "+": "pluss", "=": "võrdub", "×": "korda", "±": "pluss-miinus", "%": "protsent",
    "½": "pool", "<": "väiksem kui", ">": "suurem kui", "€": "eurot", "№": "number",
}  # fmt: skip
