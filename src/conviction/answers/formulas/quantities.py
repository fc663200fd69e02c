"""Times of day, dates, durations and lists with names: what must not lose its units."""

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from math import gcd, lcm

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan januar janvier enero gennaio",
            "february feb februar fevrier février febrero",
            "march mar märz maerz mars marzo",
            "april apr avril abril",
            "may mai mayo",
            "june jun juni juin junio",
            "july jul juli juillet julio",
            "august aug août aout agosto",
            "september sep sept septembre septiembre",
            "october oct oktober okt octobre octubre",
            "november nov novembre noviembre",
            "december dec dezember dez décembre decembre diciembre",
        ),
        1,
    )
    for name in names.split()
}
_MONTH = f"({'|'.join(sorted(_MONTHS, key=len, reverse=True))})\\.?"
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th|\.)?"
_TEENS = r"([12]\d{3})"
_DAY_FIRST = re.compile(
    rf"{_WEEKDAY}(?:the\s+)?{_DAY}\s+(?:of\s+|de\s+)?{_MONTH}(?:,?\s+(?:de\s+)?{_TEENS})?"
)
_MONTH_FIRST = re.compile(rf"{_WEEKDAY}{_MONTH}\s+(?:the\s+)?{_DAY}(?:,?\s+{_TEENS})?")
_EASTERN_DATE = re.compile(r"(?:(\d{4})\s*[년年]\s*)?(\d{1,2})\s*[월月]\s*(\d{1,2})\s*[일日号]")
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})\.?")
_TIME = re.compile(r"(?:at\s+)?(\d{1,2})(?:\s?:\s?(\d{2}))?(?::(\d{2}))?\s*([ap])\.?\s?m\.?")
_NAMED_TIMES = {
    **dict.fromkeys(("noon", "12 noon", "midday", "정오"), "time 12:00"),
    **dict.fromkeys(("midnight", "12 midnight", "자정"), "time 0:00"),
}
_CLOCK = re.compile(r"(\d{1,2})\s?:\s?(\d{2})(?::(\d{2}))?(?:\s*(?:uhr|hrs|hours|o'clock))?")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")
_WRITTEN_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")
_EASTERN_TIME = re.compile(
    r"(오전|오후|午前|午後|上午|下午)?\s*(\d{1,2})\s*[시時点點](?:\s*(\d{1,2})\s*분|\s*(\d{1,2})\s*分)?"
    r"(?:\s*(\d{1,2})\s*[초秒])?"
)
_AFTER_NOON = frozenset({"오후", "午後", "下午", "p"})

_UNITS: dict[str, tuple[str, Fraction]] = {
    unit: (family, Fraction(size))
    for family, sizes in {
        "duration": {
            "s sec secs second seconds 초 秒 sekunde sekunden seconde secondes segundo segundos": 1,
            "m min mins minute minutes 분 分 分钟 minuten minuto minutos": 60,
            "h hr hrs hour hours 시간 时间 時間 小时 小時 stunde stunden heure heures hora": 3600,
            "d day days 일 天 日 tag tage jour jours día días": 86400,
            "week weeks wk wks 주 주일 周 woche wochen semaine semaines semana semanas": 604800,
        },
        "months": {"month months 개월 个月 ヶ月 monat monate mois mes meses": 1,
                   "year years yr yrs 년 年 jahr jahre an ans año años": 12},
        "inches": {
            "in inch inches": 1, "ft foot feet": 12, "yd yard yards": 36, "mi mile miles": 63360,
        },
        "ounces": {"oz ounce ounces": 1, "lb lbs pound pounds": 16},
        "millimetres": {
            "mm": 1,
            "cm centimeters centimeter 센티미터": 10,
            "meter meters metre metres 미터": 1000,
            "km kilometer kilometers 킬로미터": 10**6,
        },
        "grams": {"g gram grams 그램": 1, "kg kilogram kilograms 킬로그램": 1000},
        "seconds of arc": {"°  degree degrees 도": 3600, "' \u2032": 60, "\u2033": 1},
        "cents": {"cent cents ¢": 1, "dollar dollars": 100},
    }.items()
    for units, size in sizes.items()
    for unit in units.split()
}  # fmt: skip
_AMOUNT = r"-?\d+(?:\.\d+)?(?:/\d+)?"
_UNIT_WORDS = r"[^\W\d_]+\.?(?:[ -][^\W\d_]+\.?){0,5}|[°'\u2032\u2033¢]"
_ITEM = re.compile(rf"\s*({_AMOUNT})\s*({_UNIT_WORDS})\s*")
_LABELLED = re.compile(
    rf"\s*([^\W\d_][^\W_]+(?:\s[^\W\d_]+){{0,3}})\s*[:=]?\s*({_AMOUNT})\s*([^\W\d_]*)\s*(?:[,;&]|\band\b|$)"
)
_JOIN = re.compile(
    r"[,;&]?\s*(?:(?:and|또는|그리고|와|과|및|und|et|y)(?![^\W\d_])\s*)?|(?:와|과|하고|랑|이랑)\s*"
)
_OTHER_WORDS = (
    "e pi sqrt root x y z i more less than to times of plus minus mod modulo sin cos tan log "
    "ln or if is are"
)
_NOT_UNITS = frozenset(_OTHER_WORDS.split())


def read_quantity(text: str) -> str | None:
    """The key of a time, date, duration, ratio or list with names; None if it is something else.

    `text` is cleaned by `markup.clean`.
    """
    if text.casefold().strip('" ') in _NAMED_TIMES:
        return _NAMED_TIMES[text.casefold().strip('" ')]
    if not re.search(r"\d", text) or len(text) > 400:  # no sentence is a quantity
        return None
    plain = " ".join(text.replace('"', " ").replace("°", " ° ").casefold().split()).strip(
        "()[]{} ."
    )
    for reader in _READERS:
        if key := reader(plain):
            return key
    return None


def _time(plain: str) -> str | None:
    if found := _TIME.fullmatch(plain):
        hour, minute, second, half = found.groups()
        return _at(int(hour) % 12 + 12 * (half == "p"), minute, second) if int(hour) < 13 else None
    if (found := _CLOCK.fullmatch(plain)) and int(found[1]) <= 24 and int(found[2]) < 60:
        return _at(int(found[1]), found[2], found[3])
    if found := _EASTERN_TIME.fullmatch(plain):
        half, hour, *minutes, second = found.groups()
        minute = next(filter(None, minutes), None)
        if half is None and minute is None:
            return None
        hours = int(hour) if half is None else int(hour) % 12 + 12 * (half in _AFTER_NOON)
        return _at(hours, minute, second)
    return None


def _at(hour: int, minute: str | None, second: str | None) -> str:
    seconds = f":{int(second):02}" if second and int(second) else ""
    return f"time {hour}:{int(minute or 0):02}{seconds}"


def _date(plain: str) -> str | None:
    orders: Iterable[
        tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[str | None, int, str]]]
    ] = (
        (_DAY_FIRST, lambda m: (m[3], _MONTHS[m[2]], m[1])),
        (_MONTH_FIRST, lambda m: (m[3], _MONTHS[m[1]], m[2])),
        (_EASTERN_DATE, lambda m: (m[1], int(m[2]), m[3])),
        (_YEAR_FIRST, lambda m: (m[1], int(m[3]), m[4])),
    )
    for pattern, read in orders:
        if found := pattern.fullmatch(plain):
            year, month, day = read(found)
            if 1 <= month <= 12 and 1 <= int(day) <= 31:
                return f"date {year or ''}-{month}-{int(day)}"
    if _WRITTEN_DATE.fullmatch(plain):
        return plain  # exact as it is written: day and month may stand in either order
    return None


def _ratio(plain: str) -> str | None:
    """A ratio in lowest terms: "6:4" is "3:2". What may be a time of day is one."""
    if not _RATIO.fullmatch(plain):
        return None
    parts = [_amount(part.strip()) for part in plain.split(":")]
    if not all(parts):
        return "".join(plain.split())
    found = [part for part in parts if part is not None]
    whole = [int(part * lcm(*(one.denominator for one in found))) for part in found]
    return "ratio " + ":".join(str(part // gcd(*whole)) for part in whole)


def _listed(plain: str) -> str | None:
    """Amounts with units, as in "2 hours 30 minutes" or "3 dogs and 4 cats"."""
    items = _items(plain)
    if len(items) < 2:  # a single one loses its unit
        return None
    families = {_UNITS[unit][0] if unit in _UNITS else "" for _, unit in items}
    units = [unit for _, unit in items]
    if len(families) == 1 and "" not in families and len(set(units)) == len(units):
        family = families.pop()
        total = sum(abs(amount) * _UNITS[unit][1] for amount, unit in items)
        return f"{family} {-total if items[0][0] < 0 else total}"
    if len(set(map(_singular, units))) == 1:
        return None  # "3 cm and 4 cm": a list of numbers
    return "named " + "; ".join(sorted(f"{_singular(unit)} {amount}" for amount, unit in items))


def _items(plain: str) -> list[tuple[Fraction, str]]:
    """All amounts with their units; empty if anything else stands among them."""
    found: list[tuple[Fraction, str]] = []
    position = 0
    while position < len(plain):
        item = _ITEM.match(plain, position)
        last = _LAST_AMOUNT.fullmatch(plain, position)
        if item is None and last and found and all(unit in _UNITS for _, unit in found):
            return [*found, (Fraction(last[1]), "more")]  # "2 hours 15"
        if item is None:
            return []
        words = _JOINED.sub("", item[2]).strip()
        unit = words.removesuffix(".").strip()
        amount = _amount(item[1])
        if amount is None or not unit or _NOT_UNITS & set(unit.split()):
            return []
        if len(unit) == 1 and unit.isascii() and unit.isalpha() and unit not in _UNITS:
            return []
        found.append((amount, unit))
        position = item.end()
        join = _JOIN.match(plain, position)
        position = join.end() if join else position
    return found


_LAST_AMOUNT = re.compile(r"\s*(\d{1,9})")
_JOINED = re.compile(r"(?:\s(?:and|und|et|y|그리고|및)|(?<=[가-힣])(?:와|과|하고|이랑|랑))$")


def _labelled(plain: str) -> str | None:
    """Names with amounts, as in "Alice: 3, Bob: 4"."""
    found: list[str] = []
    position = 0
    while position < len(plain):
        item = _LABELLED.match(plain, position)
        amount = _amount(item[2]) if item else None
        if item is None or amount is None or _NOT_UNITS & set(item[1].split()):
            return None
        found.append(f"{_singular(item[1])} {amount}")
        position = item.end()
    return "named " + "; ".join(sorted(found)) if len(found) > 1 else None


def _amount(text: str) -> Fraction | None:
    try:
        return Fraction(text) if len(text) < 40 else None  # no count of things
    except (ValueError, ZeroDivisionError):
        return None  # "0.5/3", "1/0"


def _singular(unit: str) -> str:
    return unit.removesuffix("s") if len(unit) > 3 and not unit.endswith("ss") else unit


_READERS = (_time, _date, _ratio, _listed, _labelled)
