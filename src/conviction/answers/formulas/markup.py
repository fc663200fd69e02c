r"""Markup and typing made plain: what is left says the same with fewer ways of saying it.

Text in formulas (`\text{cm}`) is kept between double quotes, so that "cm" is no product of
letters.
"""

import re
import unicodedata

_HYPHENS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_TRANSLATION = {
    **_HYPHENS,
    **_INVISIBLE,
    **str.maketrans("\u2044\u3002\u2018\u2019\u201c\u201d", "/.''\"\""),
}
# NFKC turns "1½" into "11/2"; a space keeps the whole number apart.
_VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215f])")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_GREEK_LETTERS = "αβγδεθλμπρστφψωΓΔΘΛΠΣΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon theta lambda mu pi rho sigma tau phi psi omega "
    "Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega"
)
_SYMBOLS = str.maketrans(
    {
        **{a: f"\\{name} " for a, name in zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True)},
        "√": r"\root ",
        "∞": r"\infty ",
        **dict.fromkeys("\N{MULTIPLICATION SIGN}·⋅∙", r"\cdot "),
        "÷": "/",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "\N{UNION}": r"\cup ",
        "∈": r"\in ",
        "±": r"\pm ",
        "∅": r"\emptyset ",
    }
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|normal)?|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|operatorname|"
    r"boldsymbol|bm|emph)\*?\s*\{([^{}]*)\}"
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\[,!:;])\s*(?=\d{3}(?!\d))")
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\cr\s*\[[^\[\]]*(?:mm|cm|pt|em|ex)\]", r"\\cr "),
        (r'\^\s*(?:\{\s*"?\s*(?:st|nd|rd|th)\s*"?\s*\}|"(?:st|nd|rd|th)")', " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:display|text|script)style(?![A-Za-z])", ""),
        (r"\\(?:boxed|fbox)(?![A-Za-z])", ""),
        (r"\\[()\[\]]|\\?\$", ""),
        (r"\\(?=[\d-])", ""),
        (r"\\[,!:;> ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", "°"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\leq(?:slant)?(?![A-Za-z])|<=", r"\\le "),
        (r"\\geq(?:slant)?(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\*\*", "^"),
        (r"\\(?:times|ast)(?![A-Za-z])|\*|(?<=\d)\s*x\s*(?=10\^)", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\equiv(?![A-Za-z])", "="),
        (r"\\(?:simeq|sim)(?![A-Za-z])", r"\\approx "),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\[lr]brace(?![A-Za-z])\s*", ""),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\%", "%"),
    )
)
# Quoted texts, commands, and single characters.
_TOKEN = re.compile(r'"[^"]*"|\\[A-Za-z]+|\\.|.', re.DOTALL)
_OPENING = frozenset({"(", "[", "{", "\\{"})
_CLOSING = frozenset({")", "]", "}", "\\}"})


def fold(text: str) -> str:
    """Full-width, minus-like, invisible and other compatibility characters made plain."""
    apart = _VULGAR_FRACTION.sub(" ", text)
    return unicodedata.normalize("NFKC", apart.translate(_INVISIBLE)).translate(_TRANSLATION)


def fold_words(text: str) -> str:
    """Words in lower case, one space between them; punctuation and articles left out.

    A point or comma within a number stays, as "3.14" is not "314". Never empty unless `text`
    is.
    """
    folded = fold(text).casefold()
    spaced = re.sub(r"(?<!\d)[^\w\s]|[^\w\s](?!\d)|[^\w\s.,:/]|_", " ", folded)
    words = [word for word in spaced.split() if word not in {"a", "an", "the"}]
    return " ".join(words) or " ".join(folded.split()) or text


def clean(answer: str) -> str:
    """One line of plain markup, without delimiters, sizes, spacing and final punctuation."""
    text = _SUPERSCRIPT_RUN.sub(
        lambda run: f"^{{{run.group().translate(_SUPERSCRIPTS)}}}", answer.replace('"', " ")
    )
    text = fold(text.translate(_SYMBOLS)).replace("\n", " ")
    if "\\begin" in text:
        text = text.replace("\\\\", r"\cr ")
    else:
        # Some models escape every backslash twice.
        text = re.sub(r"\\\\(?=[A-Za-z{}])", r"\\", text).replace("\\\\", " ")
    text = _THOUSANDS.sub("", _TEXT.sub(_quoted, text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    line = " ".join(text.split()).rstrip(",;: ").strip("` ")
    # "0.333..." is not 0.333.
    return line if line.endswith("..") else line.removesuffix(".").rstrip()


def _quoted(match: re.Match[str]) -> str:
    content = " ".join(match.group(1).split())
    inner = content.strip("()[]. ")
    if len(inner) == 1 and inner.isascii() and inner.isalpha():
        return f" {inner} "  # a variable in bold, or a choice
    return f' "{content}" ' if content else " "


def split(text: str, separators: frozenset[str]) -> list[str]:
    """The parts of `text` between separators that stand outside of all brackets."""
    parts = [""]
    depth = 0
    for token in _TOKEN.findall(text):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth <= 0 and token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def enclosed(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing bracket, if one pair encloses all of `text`."""
    found: list[str] = _TOKEN.findall(text)
    if len(found) < 2 or found[0] not in _OPENING or found[-1] not in _CLOSING:
        return None
    depth = 0
    for position, token in enumerate(found):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and position < len(found) - 1:
            return None
    return (found[0], "".join(found[1:-1]).strip(), found[-1]) if depth == 0 else None
