"""One way of writing for characters that look alike or mean the same."""

import re
import unicodedata

_HYPHENS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_TRANSLATION = {
    **_HYPHENS,
    **_INVISIBLE,
    ord("\u2044"): "/",
    ord("\u3002"): ".",
    ord("\u2018"): "'",
    ord("\u2019"): "'",
    ord("\u201c"): '"',
    ord("\u201d"): '"',
}
# NFKC turns "1½" into "11/2"; a space keeps the whole number apart.
_VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215f])")


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
