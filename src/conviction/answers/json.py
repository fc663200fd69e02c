"""Answers that are JSON: objects, arrays, or single values."""

import json
from fractions import Fraction
from typing import Any, cast

from conviction.answers.finding.values import refuse
from conviction.answers.formulas.parsing import exact
from conviction.answers.kinds import AnswerKind, PromptEnding


class JsonAnswers(AnswerKind):
    """JSON values, equal whatever the order of keys, the spacing, and "1" or "1.0"."""

    name = "json"
    help = "a JSON value"
    ending = PromptEnding(
        "Think step by step and finish with the result as JSON in a ```json block."
    )
    korean_ending = PromptEnding("차근차근 생각한 다음 결과를 ```json 블록에 JSON으로 쓰세요.")
    strategies = ("fence", "json", "tag", "boxed", "marker")

    def accepts(self, answer: str) -> bool:
        """Whether it is JSON."""
        return bool(_canonical(answer))

    def canonical(self, answer: str) -> str:
        """The value with sorted keys and exact numbers; other text as it stands."""
        form = _canonical(answer) or answer.strip() or "nothing"
        return form.encode("utf-8", "backslashreplace").decode()  # "\\ud800" alone is no character


def _canonical(text: str) -> str | None:
    try:
        return _render(json.loads(text, parse_int=exact, parse_float=exact, parse_constant=refuse))
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _render(value: Any) -> str:
    match value:
        case dict():
            members = cast("dict[str, Any]", value)
            inside = (f"{json.dumps(key)}: {_render(members[key])}" for key in sorted(members))
            return "{" + ", ".join(inside) + "}"
        case list():
            return "[" + ", ".join(map(_render, cast("list[Any]", value))) + "]"
        case Fraction():
            return str(value)
        case _:
            return json.dumps(value, ensure_ascii=False)
