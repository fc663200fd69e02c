# ruff: noqa: RUF001  # words and signs of many scripts
r"""What answers are dressed in: emphasis, lists, formula delimiters, sentences around them.

Every function takes linear time in the text that it is given.
"""

import re

MOST_SENTENCE_CHARACTERS = 4_000
"""What follows a marker is read that far. A longer answer is found only in a box or as JSON."""

EMPHASIS = re.compile(
    r"(?<![A-Za-z0-9_)])\*\*|\*\*(?![A-Za-z0-9_(])|`"
    r"|</?(?:b|strong|em|i|u|p|span|div|font|center|mark|code|h\d|li|ul|ol|br|output|response"
    r"|result|answer)(?:\s[^<>]{0,200})?/?>",
    re.IGNORECASE,
)
"""Emphasis of Markdown and HTML; "2**3" holds none."""
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("*", "*"), ("_", "_"))
_ONLY_DRESS = frozenset({"$$", "$", r"\[", r"\]", r"\(", r"\)", "*", "_", "---", "***", "```", "|"})
_LEADING = re.compile(
    r"(?:\#{1,6}(?=[\s#]|$)|>\s|\}|[-*•·▪●◦‣]\s|[✅✔☑🎯👉➡→⇒∴⟹]\ufe0f?\s?|(?:=>|->)\s|\s)+"
)
_TRAILING = ".。,，;；:：?？ \t✅✔☑"
_ABBREVIATED = re.compile(r"(?:[A-Za-z]\.[A-Za-z]|\b(?:Jr|Sr|Inc|Ltd|Co|Corp|etc))\.$")
_MOST_LAYERS = 12

# Abbreviations after which a sentence goes on, and those after which it may.
_TITLES = frozenset(
    (
        "st", "mt", "dr", "mr", "mrs", "ms", "mx", "prof", "rev", "gen", "col", "capt", "cpt",
        "lt", "sgt", "maj", "cmdr", "adm", "sen", "rep", "gov", "pres", "hon", "fr", "ft", "vs",
        "messrs", "mme", "mlle", "sra", "sto", "sta", "approx", "ca", "cf", "fig", "eq", "nr",
        "vol", "dept", "univ", "op", "bros", "ste", "hr", "hrn", "frau", "srta",
    )
)  # fmt: skip
_ENDINGS = frozenset(
    (
        "jr", "sr", "inc", "ltd", "co", "corp", "etc", "ave", "blvd", "rd", "no", "al", "esq",
        "phd", "md", "plc", "llc", "gmbh",
    )
)  # fmt: skip
_OPENERS = frozenset(
    (
        "a", "also", "although", "an", "and", "another", "any", "as", "at", "based", "because",
        "both", "but", "by", "each", "even", "first", "for", "from", "given", "he", "hence",
        "her", "here", "his", "hope", "however", "i", "if", "in", "is", "it", "its", "let",
        "like", "many", "more", "most", "my", "next", "no", "not", "note", "now", "of", "on",
        "once", "one", "only", "option", "options", "or", "other", "our", "please", "recall",
        "remember", "she", "since", "so", "some", "statement", "such", "that", "the", "their",
        "then", "there", "therefore", "these", "they", "this", "those", "though", "thus", "to",
        "together", "unlike", "we", "what", "when", "where", "which", "while", "who", "why",
        "with", "without", "yes", "you", "your",
        "다른", "이", "이는", "따라서", "왜냐하면", "그", "그러므로", "하지만",
        "das", "der", "die", "dies", "es", "weil", "denn", "le", "la", "les", "cela", "ce",
        "c'est", "car", "parce", "el", "esto", "porque", "ya",
    )
)  # fmt: skip
_STOP = re.compile(r"[.!?](?=[\s*_\"'”’)\]]|$)|[。！？]")
_OPENING_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "『": "』", "《": "》"}
_AFTER_QUOTE = re.compile(
    r"""[\s*_.]{0,20}(?: $ | [,;:!?(—–-] | [.]\s
      | \s (?:because|since|as|which|by\s+virtue|and\s+not|for|in|so)\b
      | [은는이가를을]?\s?(?:입니다|이다|이에요|예요|이며|이고|이므로|라고)|です|である|だ)""",
    re.VERBOSE,
)

_REASON = re.compile(
    r"""
    [ ](?: because | since (?![ ]\d) | so[ ]that | due[ ]to | given[ ]that | rather[ ]than
    | instead[ ]of
      | and[ ]not | weil | denn | da[ ]die | parce[ ]que?' | parce[ ]que | car[ ](?=[a-zéè])
      | porque
      | perché | as[ ](?:required|desired|expected|claimed|needed|shown|stated|we[ ]know) )\b
  | ,[ ]?(?: because | since | as | which | where | who | whose | so | thus | hence | therefore
      | meaning | making | giving | given | but | not | rather | considering | according | while
      | though | although | after | when | namely | corresponding | (?:in|al)[ ]?(?:total
      |together|all)\b
      | and[ ](?:so|this|that|not|the|it|we|is|he|she|they)\b | while | whereas | assuming
      | et[ ]non | y[ ]no | weil | denn | nicht | car | ya[ ]que | puisque | pois )\b
  | ;[ ](?:the|this|that|it|so|all|other|option|because|since|we|a|an|therefore|hence|thus|not)\b
  | [ ]—[ ](?=[a-z]{2})
  | [,，]?(?:因为|因為|因此|所以|而不是|なぜなら|왜냐하면)
    """,
    re.VERBOSE,
)
_NAME = re.compile(r"(?:the |an? )?[A-Z]")
_APPOSITION = re.compile(
    r",\s(?:(?:the|a|an|one)\s[a-z]|(?:[a-z]+ed|built|written|made|born|won)\s(?:in|by|on|at"
    r"|as|from)\b)"
    r"(?:(?!\sand\s)[^,])*$"
)
_POLITE = re.compile(
    r"\s?(?:입니다만?|이에요|예요|이예요|입니다요|임을 알 수 있습니다|됩니다|라고 할 수 있습니다|"
    r"인 것을 알 수 있습니다|일 것입니다|라고 생각합니다|인 것 같습니다)$"
    r"|\s?(?:です|でした|でしょう|であります|だと思います|となります|になります|だと考えられます)$"
)
_PLAIN_ENDING = re.compile(
    r"\s?(?:이다|이며|이고|이므로|이라는|이라고|이었다|인데|이지만|(?:이|가) (?:된다|됩니다))"
    r"(?:[\s,].*)?$|\s?(?:である|だ|となる|になる)$|(?<=[0-9A-Za-z)\]'\"])(?:다|임|요|야)$"
)
_BEFORE_PLAIN_ENDING = re.compile(r"[^가-힣](?:이다|다)$")

# "(the capital)", and a name in Latin letters after one in another script, as in "서울(Seoul)".
_GLOSS = re.compile(
    r"(?<=\w)\s\((?:the|a|an|in|also|aka|which|formerly|known|located|as|i\.e\.)\b[^()]*\)$"
    r"|(?<=[가-힣\u3040-\u9fff])\s?[(（][A-Za-z][^()（）]*[)）]$"
    r"|(?<=\w)\s\(\d{4}\s?[-–]\s?\d{4}\)$"
)
_CALCULATION = re.compile(
    r"[$\d(\\-](?:[\d\s+*/×·÷().,$€%^-]|\\(?:times|cdot|div|left|right|%|\$)"
    r"|[{}]){1,80}=(?P<right>[^=]+)"
)
_FILLER = re.compile(
    r"""(?:(?:,\s*)?(?:therefore|thus|then|hence|indeed|clearly|simply|actually|obviously
      |approximately
      |roughly|exactly|precisely|probably|likely|most[ ]likely|definitely|certainly|in[ ]fact
      |of[ ]course|equal[ ]to|given[ ]by|going[ ]to[ ]be|approx\.?|nearly|almost|also|still|now|just
      |about|around|quite|always|only|once[ ]again|again|as[ ]expected|found[ ]to[ ]be
      |in[ ]this[ ]case|daher|also|somit|folglich|damit|etwa|ungefähr|genau|donc|alors|ainsi|environ
      |exactement|por[ ]lo[ ]tanto|entonces|aproximadamente|exactamente|portanto|então|quindi|dunque
      |circa|바로|결국|당연히|아마|모두)(?:\s*,)?\s+)+""",
    re.VERBOSE,
)
_ABOUT = re.compile(
    r"(?:(?:[Aa]bout|[Aa]pprox(?:imately|\.)?|[Rr]oughly|[Aa]round|[Ee]xactly|[Nn]early"
    r"|[Aa]lmost)\s+"
    r"|(?:약|대략|총|모두|전부|大约为?|大約|约为?|約|およそ|≈|~)\s*)(?=[\d$\\(.+-])"
)
_CLOSING_EMPHASIS = re.compile(r"^[*_]+(?=\s|$)")
_IT_IS = re.compile(
    r"(?:[Ii]t|[Tt]hat|[Tt]his)(?:[ ](?:is|was|must be|would be|should be)) (?!what\b)"
)
# "The sum is 120": the value is the answer.
_SUBJECT = re.compile(
    r"(?:[Tt]he|[Ii]ts|[Oo]ur)[ ](?:[\w'’-]{1,24}[ ]){1,8}?"
    r"(?:is|are|was|equals|would[ ]be|must[ ]be)[ ]"
    r"(?=[-+−]?[$€£¥₩]?\d|[$]|\\[(]|\\(?:frac|sqrt|boxed))"
)
_THINKING = re.compile(r"(?:I|we)[ ](?:think|believe|guess|would[ ]say),?[ ](?=\S)")
_NOT = re.compile(
    r"(?:not|n't|n’t|never|nicht|pas|no es|não é|non è)\s+|不是|並非|并非", re.IGNORECASE
)
_BUT = re.compile(
    r"(?:,?[ ](?:but(?: rather| instead)?|rather|instead|sondern|mais|sino|mas sim|ma|bensì)"
    r"|[,;.][ ](?:it['’]?s|it is|but it is|the answer is))[ ]|[，,]?[ ]?而是",
    re.IGNORECASE,
)
_EAST_ASIAN_BUT = re.compile(
    r"^.{1,80}?(?:[이가]?\s?(?:아니라|아니고|아닌)|ではなく|じゃなく)[,、て]?\s*(?=\S)"
)


def one_line(text: str) -> str:
    """The text without emphasis, on one line, one space between words."""
    return " ".join(EMPHASIS.sub("", text).split())


def tidy(line: str) -> str:
    """A line without emphasis, list marks, formula delimiters, and its final full stop."""
    line = EMPHASIS.sub("", line).strip()
    if leading := _LEADING.match(line):
        line = line[leading.end() :]
    for _ in range(_MOST_LAYERS):
        before = line
        # "0.333..." is not 0.333.
        if not line.endswith(("..", "…")) and not _ABBREVIATED.search(line, len(line) - 8):
            line = line.rstrip(_TRAILING)
        line = line.removesuffix("\\\\").strip()
        for opening, closing in _DELIMITERS:
            inside = line.removeprefix(opening).removesuffix(closing)
            # "$2$ and $3$" is not one formula between two dollar signs.
            if len(line) - len(inside) == len(opening) + len(closing) and opening not in inside:
                line = inside.strip()
        if line == before:
            break
    return "" if line in _ONLY_DRESS else line


def unhedged(rest: str, *, sentence: bool) -> str:
    """What follows a marker, from the answer on: without "therefore", "about", "not A but".

    Empty where a sentence only says what the answer is not.

    Args:
        rest: The rest of the line, on one line.
        sentence: Whether a verb stands before it, as in "the answer is", and not a colon. Only
            then "not" says what the answer is not.
    """
    rest = _CLOSING_EMPHASIS.sub("", rest).strip()
    if sentence:
        rest = _without_filler(rest.lstrip(":： "))
        if negated := _NOT.match(rest):
            other = _BUT.search(rest, negated.end())
            if not other:
                return ""
            rest = _without_filler(rest[other.end() :])
        if correction := _EAST_ASIAN_BUT.match(rest):
            rest = rest[correction.end() :]
    for opening in (_THINKING, _IT_IS, _SUBJECT):
        if subject := opening.match(rest):
            rest = rest[subject.end() :]
    if about := _ABOUT.match(rest):
        rest = rest[about.end() :]
    return rest


def _without_filler(rest: str) -> str:
    filler = _FILLER.match(rest)
    return rest[filler.end() :] if filler else rest


def stated(rest: str, *, sentence: bool) -> str:
    """The answer in what follows a marker: `unhedged`, and without reasons after it."""
    rest = unhedged(rest, sentence=sentence)
    rest = quoted(rest) or _without_reason(first_sentence(rest))
    answer = tidy(_without_ending(tidy(rest), sentence=sentence))
    answer = _GLOSS.sub("", answer)
    return tidy(result["right"]) if (result := _CALCULATION.fullmatch(answer)) else answer


def quoted(text: str) -> str:
    """The quotation that a text starts with, where the sentence may end after it; else ""."""
    closing = _OPENING_QUOTES.get(text[:1], "")
    end = text.find(closing, 1) if closing else -1
    return text[: end + 1] if end > 1 and _AFTER_QUOTE.match(text, end + 1) else ""


def _without_reason(sentence: str) -> str:
    reason = _REASON.search(sentence, 1)
    sentence = sentence[: reason.start()] if reason else sentence
    # "Paris, the capital of France"; but "the liver, the heart" is a list.
    apposition = _APPOSITION.search(sentence, 1) if _NAME.match(sentence) else None
    return sentence[: apposition.start()] if apposition else sentence


def _without_ending(answer: str, *, sentence: bool) -> str:
    """An answer without the verb that ends a sentence in Korean or Japanese."""
    shorter = _POLITE.sub("", answer)
    if shorter == answer and (sentence or _BEFORE_PLAIN_ENDING.search(answer)):
        shorter = _PLAIN_ENDING.sub("", answer)
    return shorter or answer


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a sentence.

    It does not end in "3.14", "St. Louis", "U.S. Senate" or "J. R. R. Tolkien".
    """
    for stop in _STOP.finditer(text):
        if _ends(text, stop.start(), stop.group()):
            return text[: stop.start()]
    return text


def _ends(text: str, at: int, mark: str) -> bool:
    """Whether a full stop, or another mark, ends a sentence."""
    following = text[at + 1 : at + 40].strip().lstrip(" *_\"'”’)]")
    opens = not following or following.split(None, 1)[0].rstrip(",:;.").casefold() in _OPENERS
    if mark in "。！？":
        return True
    if mark in "!?":
        return bool(following) and opens and not following[0].islower()
    before = text[max(0, at - 24) : at]
    words = before.split()
    word = words[-1].lstrip("(\"'“‘*_") if words else ""
    short = word.casefold()
    if word.endswith(".") or short in _TITLES:  # "..."; "St."
        return not word.endswith(".") and not following
    if short in _ENDINGS:
        return opens or not following[0].islower()
    if following and len(word) == 1 and word.isalpha() and word.isupper():
        return opens or not _in_a_name(before, following)
    return opens or "." not in word or not word.replace(".", "").isalpha()  # "U.S."


def _in_a_name(before: str, following: str) -> bool:
    """Whether an initial stands in a name: at its start, after another initial, or a given name."""
    if not following[0].isupper():
        return False
    words = before.split()
    if len(words) < 2:
        return True
    previous = words[-2]
    return previous[:1].isupper() and (previous.isalpha() or previous.endswith("."))
