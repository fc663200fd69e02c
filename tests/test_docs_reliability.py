"""The page of promises: every test that it names is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_each_promise_names_a_test_that_is_there() -> None:
    table = PAGE.split("## Promises", 1)[1].split("\n\n")[1]
    promises = table.strip().splitlines()[2:]
    assert len(promises) > 8
    for promise in promises:
        assert re.search(r"`(?:tests/)?[a-z/]*test_\w+\.py`", promise), promise
    names = {path.name for path in TESTS.rglob("test_*.py")}
    assert set(re.findall(r"\btest_\w+\.py", PAGE)) <= names
