"""A clone of the repository has all that its tests need."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
OUTSIDE = re.compile(r"\.\./shared|\bshared/data|[\"']shared[\"'] /")


def test_no_test_reads_what_lies_beside_the_checkout() -> None:
    found: list[str] = []
    scripts = [path for path in TESTS.rglob("*.py") if path != Path(__file__)]
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        folders_up = len(path.relative_to(TESTS.parent).parts)
        if any(int(up) >= folders_up for up in re.findall(r"parents\[(\d+)\]", text)):
            found.append(f"{path.name} looks above the checkout")
        found += [f"{path.name}: {place}" for place in OUTSIDE.findall(text)]
    assert len(scripts) > 100
    assert found == []
