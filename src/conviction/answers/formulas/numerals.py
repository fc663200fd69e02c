r"""Numbers as people write them: repeating decimals, thousands, scales, money, units."""

import re
from fractions import Fraction

from conviction.answers.formulas.parsing import exact, known_word

_CURRENCY = (
    r"(?:\$|[€£¥₩₹₽₫฿₺₴₱₪₦]|Rs\.?(?=\s*-?[\d.])|"
    r"(?:USD|EUR|GBP|JPY|KRW|INR|CNY|RMB|CHF|CAD|AUD|SGD|HKD|MXN|BRL|US)(?![A-Za-z]))"
)
_CURRENCY_BEFORE = re.compile(rf'^(-?)\s*"?\s*{_CURRENCY}\s*"?\s*(?=[-+\d.])')
_CURRENCY_AFTER = re.compile(rf'(?<=[\d.])\s*"?\s*(?:{_CURRENCY}|[원元円圆块])\s*"?$')
_ABBREVIATED = re.compile(
    rf"(?<![A-Za-z])\\?{_CURRENCY}\s*(\d[\d,]*(?:\.\d+)?)\s*([kKMBT]|bn|mn)n?(?![A-Za-z]|\s*[-+*/^=_\\$(])"
)
_FEET = re.compile(r"(?<!\d)(\d{1,3})\s?['\u2019\u2032]\s?(\d{1,2})\s?(?:[\"\u201d\u2033]|'')")
_DOLLARS = re.compile(r"(?<![A-Za-z])(?:US|CA|AU|HK|NT|NZ|A|C|R|S)\\?\$(?=\s?\d)")
_IN_SHORT = re.compile(r"(-?\d+(?:\.\d+)?)\s*([kKMB]|bn|mn)")
_BRACKETS = re.compile(r"([(){}\[\]])")
_DEPTH = {**dict.fromkeys("({[", 1), **dict.fromkeys(")}]", -1)}
_ABBREVIATIONS = {"K": 3, "M": 6, "MN": 6, "B": 9, "BN": 9, "T": 12}
_INDIAN = re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+|(?:'\d{3})+)(?![\d,])")
_POINTS = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.])")
_RUN_OF_DIGITS = r"(?<![\d.\\])(\d*)\.(\d*)"
_OVERLINE = re.compile(
    _RUN_OF_DIGITS + r"\s*\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))(?:\.\.\.)?"
)
_DOT = r"\\dot\s*(?:\{\s*(\d)\s*\}|(\d))"
_DOTS = re.compile(rf"{_RUN_OF_DIGITS}\s*{_DOT}(?:(\d*)\s*{_DOT})?")
_IN_PARENTHESES = re.compile(rf"{_RUN_OF_DIGITS}\((\d+)\)(?:\.\.\.)?(?![\d.])")
_GOES_ON = re.compile(rf"{_RUN_OF_DIGITS}\.\.\.(?![\d.])")
_LONGEST_PERIOD = 6

_SCALES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "lac": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
}
_SCALE = "|".join(_SCALES)
_SCALED = re.compile(
    rf'(?<![\d.])(\d++(?:\.\d++)?)((?:\s*"?\s*(?:{_SCALE})s?(?![A-Za-z])\s*"?)+)(?:of(?![A-Za-z]))?',
    re.IGNORECASE,
)
_SMALL = {"십": 10, "十": 10, "백": 100, "百": 100, "천": 1000, "千": 1000}
_LARGE = {
    **dict.fromkeys("만万萬", 10**4),
    **dict.fromkeys("억億亿", 10**8),
    **dict.fromkeys("조兆", 10**12),
}
_EASTERN = "".join((*_SMALL, *_LARGE))
# "千克" is a kilogram.
_EASTERN_RUN = re.compile(
    rf"(?<![\d.,])\d+(?:\.\d+)?\s*[{_EASTERN}](?![克米瓦卡升])(?:\s?\d+(?:\.\d+)?(?=[{_EASTERN}\s원元円명개]|$)|\s?[{_EASTERN}])*"
)
_EASTERN_PART = re.compile(rf"\d+(?:\.\d+)?|[{_EASTERN}]")

_SHORT = (
    "[kcmµ]?m|[kmµ]?g|[mk]?L|[md]?l|[km]?N|[kM]?J|[kM]?W|[km]?V|[mk]?A|K|C|F|Hz|kHz|Pa|kPa|[mµn]?s|"
    "h|hr|hrs|min|mins|sec|secs|in|ft|yd|mi|lb|lbs|oz|mph|kph|km/h|mol|rad|ha|cc|gal|pt|qt|kWh|Wh|"
    "eV|dB|ms|kb|MB|GB|TB|cal|kcal|atm|AU"
)
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_SHORT_UNIT = rf"(?:{_SHORT}){_POWER}"
_SHORT_END = re.compile(rf"(?<=[\d)}}])\s+{_SHORT_UNIT}(?:\s*(?:/|\\cdot)\s*{_SHORT_UNIT}){{0,2}}$")
_VARIABLE = re.compile(r"(?<![\\A-Za-z\d])[A-Za-z](?![A-Za-z])")
_ENDS_NUMBER = re.compile(r"(?:[\d})°]|\\pi)\s*$")
_LONGEST_UNIT = 100
_QUOTED = (
    rf'(?:\\Omega|\\mu\s*"[^"]*"|"[^"]*"{_POWER}|'
    rf'\\frac\s*\{{\s*"[^"]*"\s*\}}\s*\{{\s*"[^"]*"{_POWER}\s*\}})'
)
_QUOTED_END = re.compile(rf"(?:\s*(?:/|\\cdot)?\s*{_QUOTED})+$")
# "550gallons", but neither "2sinxcosx" nor the product "2abcd"
_JOINED_UNIT = re.compile(r"(?<=[\d})])(?![a-z]*(?:sin|cos|tan|log|sqrt|exp))[a-z]{5,}$")
_UNIT_END = re.compile(
    r"(?:(?<=[\d})°])|(?<=\\pi))(?:\s*(?:[kcm]m|[km]g|ml|ft|in|mi|min|hrs?|mph|kph|cents?|dollars?|"
    r"degrees?|units?|inches|inch|feet|foot|miles?|meters?|hours?|minutes?|seconds?|sec|years?|"
    r"days?|euros?|[개명원살세분초시권장대마리번째도잔병송그루인년월일]+|시간|킬로미터|센티미터|"
    r"킬로그램|그램|미터|리터|[个個人本枚匹円元岁米斤公里千克度分秒]+|小时|時間|分钟)"
    rf"(?:\s*/\s*\w+|\s*per\s+\w+)?{_POWER}"
    r"|\s+[^\W\d_]{3,}(?:[\s-]+[^\W\d_]+)*|\s+[^\W\d_]{2}(?:\s+[^\W\d_]+)+|(?:st|nd|rd|th)\b.*)$"
)
_TEMPERATURE = re.compile(r'° ?"? ?[CFK] ?"?$')
_MORE_WORDS = (
    "is are if when or and not no odd even prime mod modulo undefined positive negative than "
    "times where for such each because with i"
)
_SAYS_MORE = frozenset(_MORE_WORDS.split())
_PERCENT = re.compile(
    r'\s*(?:%|"?\s*(?:percentage|percent|pct|per cent|퍼센트|프로|Prozent|por ciento)\s*"?)'
)
_SIGN = re.compile(r"^(?:minus|negative)\s+(?=[\d.$\\])", re.IGNORECASE)


def abbreviated(answer: str) -> str:
    """Money in thousands and millions written out: "$1.2M" becomes "1.2e6"."""
    inside = answer.strip().removeprefix("$").removesuffix("$")
    if len(answer.strip()) == len(inside) + 2 and "$" not in inside:
        answer = inside  # a formula between its delimiters
    answer = _FEET.sub(r"\1 feet \2 inches", answer)
    answer = _DOLLARS.sub("$", answer)
    return _ABBREVIATED.sub(
        lambda m: f"{m[1].replace(',', '')}e{_ABBREVIATIONS[m[2].upper()]}", answer
    )


def written_out(text: str) -> str:
    """Repeating decimals as fractions, and numbers with scales, such as "2만 5천", as digits."""
    if "." in text:
        text = _OVERLINE.sub(lambda m: _repeating(m[1], m[2], m[3] or m[4]), text)
        text = _DOTS.sub(_dotted, text)
        text = _IN_PARENTHESES.sub(lambda m: _repeating(m[1], m[2], m[3]), text)
        text = _GOES_ON.sub(_going_on, text)
    text = _SIGN.sub("-", text)
    return _EASTERN_RUN.sub(_eastern, _SCALED.sub(_scaled, text))


def _repeating(whole: str, fixed: str, period: str) -> str:
    above = int(f"{whole}{fixed}{period}") - int(f"{whole}{fixed}" or "0")
    return f"({above}/{(10 ** len(period) - 1) * 10 ** len(fixed)})"


def _dotted(match: re.Match[str]) -> str:
    first = match[3] or match[4]
    last = match[6] or match[7]
    return _repeating(match[1], match[2], first if last is None else f"{first}{match[5]}{last}")


def _going_on(match: re.Match[str]) -> str:
    """1/6 for "0.1666...": its end is there three times, or twice if longer than a digit."""
    digits = match[2]
    for length in range(1, _LONGEST_PERIOD + 1):
        period = digits[-length:]
        times = 3 if length == 1 else 2
        if len(digits) >= length * times and digits.endswith(period * times):
            return _repeating(match[1], digits, period)
    return match[0]


def _scaled(match: re.Match[str]) -> str:
    value = exact(match[1])
    for word in re.findall("[a-z]+", match[2].lower()):
        value *= _SCALES[word if word in _SCALES else word.removesuffix("s")]
    return f"{_decimal(value)} "


def _eastern(match: re.Match[str]) -> str:
    total = section = Fraction(0)
    number: Fraction | None = None
    for part in _EASTERN_PART.findall(match[0]):
        if part in _SMALL:
            section += (Fraction(1) if number is None else number) * _SMALL[part]
            number = None
        elif part in _LARGE:
            amount = section + (number or 0)
            total += (amount or 1) * _LARGE[part]
            section, number = Fraction(0), None
        else:
            number = exact(part)
    return f"{_decimal(total + section + (number or 0))} "


def _decimal(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"({value})"


def amount_in_short(answer: str) -> str:
    """Such as "1.2M" and "3k" written out, where they are all of the answer."""
    short = _IN_SHORT.fullmatch(answer.strip())
    return f"{short[1]}e{_ABBREVIATIONS[short[2].upper()]}" if short else answer


def joined_thousands(text: str, *, everywhere: bool = False) -> str:
    """Digits without separators of thousands: "1,234" is 1234, and "1.234.567" is 1234567.

    So is "12,34,567", as Indians write it. Unless `everywhere`, only outside of brackets.
    """
    depth = 0
    parts: list[str] = []
    for piece in _BRACKETS.split(text):
        depth += _DEPTH.get(piece, 0)
        joined = piece
        if piece not in _DEPTH and (depth <= 0 or everywhere):
            for pattern in (_INDIAN, _THOUSANDS, _POINTS):
                joined = pattern.sub(_joined, joined)
        parts.append(joined)
    return "".join(parts)


def _joined(match: re.Match[str]) -> str:
    return re.sub("[ ,.']", "", match[0])


def bare_number(text: str) -> str:
    """A number or formula without currency, unit and ordinal ending: "5 cm^2" is 5.

    A percent sign goes, too: "25%" is 25, and not 0.25.
    """
    text = _CURRENCY_BEFORE.sub(r"\1", text.strip())
    start = max(0, len(text) - _LONGEST_UNIT)
    head, tail = text[:start], text[start:]
    if head.count('"') % 2:
        return text  # the middle of a quoted text is not a unit
    tail = _JOINED_UNIT.sub("", tail)
    tail = _TEMPERATURE.sub("", _without_percent(_CURRENCY_AFTER.sub("", tail)))
    quoted = _QUOTED_END.search(tail)
    if quoted and _ENDS_NUMBER.search(tail[: quoted.start()]) and _unit(quoted[0]):
        tail = tail[: quoted.start()]
    short = _SHORT_END.search(tail)
    if short and not _VARIABLE.search(head + tail[: short.start()]):
        tail = tail[: short.start()]
    end = _UNIT_END.search(tail)
    if end and _unit(end[0]) and not any(map(known_word, re.findall("[A-Za-z]+", end[0]))):
        tail = tail[: end.start()]
    return (head + tail).strip()


def _without_percent(text: str) -> str:
    percent = _PERCENT.search(text)
    if percent and re.fullmatch(r'[\s"\w-]*', text[percent.end() :]):
        return text[: percent.start()]
    return text


def _unit(words: str) -> bool:
    found = set(re.findall(r"[^\W\d_]+", words.lower()))
    return not found & _SAYS_MORE
