r"""Markup and typing made plain: what is left says the same with fewer ways of saying it.

Text in formulas (`\text{cm}`) is kept between double quotes, so that "cm" is not read as a
product of letters.
"""

import re
import unicodedata

_HYPHENS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_INVISIBLE = dict.fromkeys(
    (
        *map(ord, "\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"),
        *range(0x202A, 0x202F),  # directions of writing
        *range(0x2066, 0x206A),
    )
)
_TRANSLATION = {
    **_HYPHENS,
    **_INVISIBLE,
    **str.maketrans("\u2044\u3002\u2018\u2019\u201c\u201d\u066b\u3001", "/.''\"\".,"),
}
# NFKC turns "1½" into "11/2"; a space keeps the whole number apart.
_VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215f])")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT_RUN = re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+")
_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
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
        "≦": r"\le ",
        "≧": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "≡": r"\equiv ",
        "\N{UNION}": r"\cup ",
        "∩": r"\cap ",
        "\N{SET MINUS}": r"\setminus ",
        "\N{DOUBLE-STRUCK CAPITAL R}": r"\R ",
        "\N{DOUBLE-STRUCK CAPITAL Z}": r"\Z ",
        "∈": r"\in ",
        "±": r"\pm ",
        "∅": r"\emptyset ",
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "〈": r"\langle ",
        "〉": r"\rangle ",
        "∫": r"\int ",
        "℃": "°C",
        "℉": "°F",
        "º": "°",
        "˚": "°",
    }
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|sc|md|normal)?|math(?:rm|sf|tt)|mbox|operatorname|emph)\*?"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_TEXT_STYLE = re.compile(r"\\(?:textbf|textit|emph|text)\s*\{\s*\\(?=(?:text|math)[a-z]*\s*\{)")
_ACCENT = re.compile(
    r"\\(?:math(?:bf|it|bb|cal|scr|frak|normal)|vec|hat|widehat|overrightarrow|boldsymbol|bm|bold|"
    r"underline)(?![A-Za-z])\s*(?:\{([^{}]*)\}|(\\?[A-Za-z]+|\d))"
)
_STARRED = re.compile(r"\\(begin|end)\{([a-z]+)\*\}")
_DOTLESS = re.compile(r"\\([ij])math(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=\d) ?(?:\{ ?, ?\}|,\\!(?:\\[,!])*|\\[,!:;])\s*(?=\d{3}(?!\d))")
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\cr\s*\[[^\[\]]{0,9}(?:mm|cm|pt|em|ex)\]", r"\\cr "),
        (r"\\textsuperscript(?![A-Za-z])", "^"),
        (r'\^\s*(?:\{\s*"?\s*(?:st|nd|rd|th)\s*"?\s*\}|"(?:st|nd|rd|th)")', " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:display|text|script)style(?![A-Za-z])", ""),
        (r"\\(?:boxed|fbox)(?![A-Za-z])", ""),
        (r"\\[()\[\]]|\\?\$", ""),
        (r"\\(?=[\d-])", ""),
        (r"\\!", ""),
        (r"(?<=[a-zA-Z]) in (?=[\[({]|\\\{)", r"\\in "),
        (r"\{([^{}\\]+)\\choose(?![A-Za-z])([^{}\\]+)\}", r"\\binom{\1}{\2}"),
        (r"\\R\s*-\s*(?=\\\{)", r"\\R\\setminus "),
        (r"\\[,:;> ]|\\q?quad(?![A-Za-z])|~|\\(?:hspace|phantom)\{[^{}]*\}", " "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", "°"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\leq(?:slant|q)?(?![A-Za-z])|<=", r"\\le "),
        (r"\\geq(?:slant|q)?(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\*\*", "^"),
        (r"\\(?:times|ast)(?![A-Za-z])|\*|(?<=\d)\s*x\s*(?=10\^)", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:simeq|sim|thickapprox)(?![A-Za-z])", r"\\approx "),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}|\{\s*\}", r"\\emptyset "),
        (r"\\(?:backslash|smallsetminus)(?![A-Za-z])", r"\\setminus "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[lr]?vert(?![A-Za-z])|\\mid(?![A-Za-z])", "|"),
        (r"\\(?:land|wedge)(?![A-Za-z])", ' "and" '),
        (r"\\(?:lor|vee)(?![A-Za-z])", ' "or" '),
        (r"\\l?dots(?![A-Za-z])|\\cdots(?![A-Za-z])|…", "..."),
        (r"\\%", "%"),
    )
)
# Quoted texts, commands, and single characters.
_TOKEN = re.compile(r'"[^"]*"|\\[A-Za-z]+|\\.|.', re.DOTALL)
_OPENING = frozenset({"(", "[", "{", "\\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"})
_CLOSING = frozenset({")", "]", "}", "\\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"})
_SETS_OF_NUMBERS = {"R": r"\R ", "Z": r"\Z ", "N": r"\N ", "Q": r"\Q ", "C": r"\C "}


def fold(text: str) -> str:
    """Full-width, minus-like, invisible and other compatibility characters made plain.

    Digits of every script become those of ASCII.
    """
    apart = _VULGAR_FRACTION.sub(" ", text)
    plain = unicodedata.normalize("NFKC", apart.translate(_INVISIBLE)).translate(_TRANSLATION)
    return plain if plain.isascii() else _FOREIGN_DIGIT.sub(_ascii_digit, plain)


def _ascii_digit(match: re.Match[str]) -> str:
    return str(unicodedata.decimal(match.group(), match.group()))


def fold_words(text: str) -> str:
    """Words in lower case, one space between them; punctuation and articles left out.

    A point or comma within a number stays, as "3.14" is not "314". Never empty unless `text`
    is.
    """
    folded = fold(text).casefold()
    spaced = re.sub(r"(?<!\d)[^\w\s]|[^\w\s](?!\d)|[^\w\s.,:/]|_", " ", folded)
    words = [word for word in spaced.split() if word not in {"a", "an", "the"}]
    return " ".join(words) or " ".join(folded.split()) or text


def raised(text: str) -> str:
    """Superscripts as exponents and subscripts as indices, so that "10⁶" is not 106."""
    powers = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run.group().translate(_SUPERSCRIPTS)}}}", text)
    return _SUBSCRIPT_RUN.sub(lambda run: f"_{{{run.group().translate(_SUBSCRIPTS)}}}", powers)


def clean(answer: str) -> str:
    """One line of plain markup, without delimiters, sizes, spacing and final punctuation."""
    text = raised(answer.replace('"', " "))
    text = fold(text.translate(_SYMBOLS).replace("\n", " "))
    if "\\begin" in text:
        text = text.replace("\\\\", r"\cr ")
    else:
        # Some models escape every backslash twice.
        text = re.sub(r"\\\\(?=[A-Za-z]{2}|[{}])", r"\\", text)
        text = text.replace("\\\\", " ; " if text.count("=") > 1 else " ")
    text = _STARRED.sub(r"\\\1{\2}", _without_bold(text))
    text = _DOTLESS.sub(r" \1 ", text.replace('"', " "))
    text = _TEXT.sub(_quoted, _nested_style(text))
    text = _THOUSANDS.sub("", _ACCENT.sub(_bare, _ACCENT.sub(_bare, text)))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    line = " ".join(text.split()).rstrip(",;: ").strip("` ")
    # "0.333..." is not 0.333.
    return line if line.endswith("..") else line.removesuffix(".").rstrip()


def _without_bold(text: str) -> str:
    r"""Text without the "**" of Markdown around words, as in "**73**"; "2**10" is a power."""
    for mark in ("**", "__", "*", "_"):
        inside = text.strip().removeprefix(mark).removesuffix(mark)
        if len(text.strip()) == len(inside) + 2 * len(mark) and mark not in inside:
            return inside
    return re.sub(r"(?<![\w)}\]*])\*\*(?!\s)([^*]+)\*\*(?![\w({\[*\\])", r"\1", text)


def _nested_style(text: str) -> str:
    r"""`\textbf{\text{a}}` without its outer style; the brace it leaves is removed later."""
    return _TEXT_STYLE.sub(r"{\\", text)


def _quoted(match: re.Match[str]) -> str:
    content = " ".join(match.group(1).split())
    inner = content.strip("()[]. ")
    whole = content in {inner, f"({inner})", f"({inner}).", f"{inner}."}
    if len(inner) == 1 and inner.isascii() and inner.isalpha() and whole:
        bold = match.group().startswith((r"\textbf", r"\textit", r"\emph"))
        return f" ({inner}) " if content[:1] == "(" else f" {inner} " if bold else f' "{inner}" '
    return f' "{content}" ' if content else " "


def _bare(match: re.Match[str]) -> str:
    inside = match.group(1) if match.group(1) is not None else match.group(2)
    if match.group().startswith(r"\mathbb"):
        return _SETS_OF_NUMBERS.get(inside, f" {inside} ")
    return f" {inside} "


def tokens(text: str) -> list[str]:
    """Quoted texts, commands, and single characters."""
    return _TOKEN.findall(text)


def split(text: str, separators: frozenset[str]) -> list[str]:
    """The parts of `text` between separators that stand outside of all brackets."""
    return pieces(text, separators)[0]


def pieces(text: str, separators: frozenset[str]) -> tuple[list[str], list[str]]:
    """The parts of `text` as `split` gives them, and the separators between them."""
    parts: list[list[str]] = [[]]
    between: list[str] = []
    depth = 0
    for token in tokens(text):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth <= 0 and token in separators:
            parts.append([])
            between.append(token)
        else:
            parts[-1].append(token)
    return ["".join(part).strip() for part in parts], between


def enclosed(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing bracket, if one pair encloses all of `text`."""
    found = tokens(text)
    if len(found) < 2 or found[0] not in _OPENING or found[-1] not in _CLOSING:
        return None
    depth = 0
    for position, token in enumerate(found):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and position < len(found) - 1:
            return None
    return (found[0], "".join(found[1:-1]).strip(), found[-1]) if depth == 0 else None
