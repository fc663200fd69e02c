r"""Whether the gold answers of data sets equal themselves in other dress.

    python benchmarks/gold_answers.py FOLDER_OR_FILE...

Reads JSON lines with an `answer` (or what follows "####" in it, as in GSM8K) or a `target`, writes
each gold answer in LaTeX, plain, boxed and spoken ways, and prints how many of these count as equal
to the gold answer, how many sentences that end with them are read rightly, and which are not.
"""

import json
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from conviction.answers import kind

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
WRAPPED = [
    *("{}", "${}$", "$${}$$", r"\({}\)", r"\[{}\]", r"\boxed{{{}}}", r"$\boxed{{{}}}$"),
    *(" {} ", "{}.", "**{}**", r"$\displaystyle {}$", "${}$.", r"\fbox{{{}}}"),
]
NAMED = ["q = {}", "$q={}$", r"\text{{Answer}} = {}", "f(2) = {}"]
COUNTED = [
    *("{} apples", "{}개", r"{}\text{{ cm}}", "{}.0", r"\${}", "{} m", r"{}\,\mathrm{{kg}}", "0{}"),
    *(r"{}^\circ", "+{}", r"\frac{{{}}}{{1}}", r"{}\%", "{} hours", "€{}", "{}원", "{}th"),
]
SENTENCES = [
    *(r"We add.\n\nThe answer is $\boxed{{{}}}$.", "So, the final answer is ${}$.", "Answer: {}"),
    *(r"**Final Answer**\n\n\[\boxed{{{}}}\]", "따라서 답은 {}입니다.", r"정답: \boxed{{{}}}"),
]
PLAIN = (
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)"),
    (r"\\sqrt\s*\{([^{}]*)\}", r" sqrt(\1)"),
    (r"\\sqrt\s*(\w)", r" sqrt(\1)"),
    (r"\\pi", "π"),
    (r"\\infty", "∞"),
    (r"\\left|\\right|\\!\s*|\\,", ""),
    (r"\^\\circ", "°"),
    (r"\\text\{([^{}]*)\}", r"\1"),
    (r"\\pm", "±"),
    (r"\\\$", "$"),
)


def golds(path: Path) -> Iterator[str]:
    """All gold answers of a file."""
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        gold = row.get("answer", row.get("target"))
        if gold is not None:
            text = str(gold).rpartition("####")[2].strip()
            yield text.removesuffix(".0") if isinstance(gold, float) else text


def dresses(gold: str) -> Iterator[str]:
    """Other ways to write an answer."""
    plain = gold
    for pattern, replacement in PLAIN:
        plain = re.sub(pattern, replacement, plain)
    plain = plain.strip()
    for text in dict.fromkeys((gold, gold.replace(r"\frac", r"\dfrac"), plain)):
        yield from (form.format(text) for form in WRAPPED)
        if "," not in text:
            yield rf"\left({text}\right)"
    if "=" not in gold and "," not in gold and r"\text" not in gold:
        yield from (form.format(gold) for form in NAMED)
    if NUMBER.fullmatch(gold):
        # "0-5" and "5.5.0" are not numbers.
        yield from (form.format(gold) for form in COUNTED[: 3 if not gold.isdecimal() else None])
        if gold.isdecimal() and len(gold) > 3:
            grouped = f"{int(gold):,}"
            yield from (grouped, grouped.replace(",", "{,}"), grouped.replace(",", r",\!"))


def main() -> None:
    paths = [
        path
        for argument in map(Path, sys.argv[1:])
        for path in (sorted(argument.glob("*.jsonl")) if argument.is_dir() else [argument])
    ]
    answers = kind("math")
    numbers = kind("number")
    total = wrong = read = misread = 0
    for path in paths:
        for gold in dict.fromkeys(golds(path)):
            key = answers.canonical(gold)
            kinds = (answers, numbers) if NUMBER.fullmatch(gold) else (answers,)
            for text, compared in product(dresses(gold), kinds):
                total += 1
                found = compared.canonical(text)
                if found != compared.canonical(gold):
                    wrong += 1
                    print(f"{path.stem}, {compared.name}: {gold!r} is not {text!r}: {found!r}")
            for sentence in SENTENCES:
                read += 1
                found = answers.extract(sentence.format(gold))
                if found is None or answers.canonical(found) != key:
                    misread += 1
                    print(f"{path.stem}: {found!r} is read in {sentence.format(gold)!r}")
    print(f"{total} dresses of gold answers, {wrong} of them not equal to the answer")
    print(f"{read} sentences with gold answers, {misread} of them read wrongly")


if __name__ == "__main__":
    main()
