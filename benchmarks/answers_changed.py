"""Which answers and verdicts of recordings another version of the answers code changes.

    python benchmarks/answers_changed.py OLD NEW [POOL...] [--answer KIND]

OLD and NEW are git references, or folders with a `src`. A POOL is whatever `Pool.open` reads; the
default is the recordings in examples/. Where a recording holds texts, answers are found in them
anew; else the recorded answers are classified anew. The verdict is a plain majority of the traces
that ended by themselves. Printed are all traces whose answer or class changed, all verdicts that
changed, and all grades that changed; the last lines count them. The exit code is 0 in any case.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LONGEST = 70

# Only names that every version has, so that it runs on old ones.
READER = """
import json, sys
from contextlib import closing
import conviction
from conviction.answers import Grouping, is_correct, kind

assert conviction.__file__.startswith(sys.argv[2]), conviction.__file__
chosen = kind(sys.argv[1])
with closing(chosen):
    for line in sys.stdin:
        asked = json.loads(line)
        grouping, read, votes = Grouping(chosen), [], {}
        for trace in asked["traces"]:
            found = chosen.extract(trace["text"]) if "text" in trace else trace["answer"]
            answer = None if not found else grouping.classify(found)
            read.append(None if answer is None else [found, answer.text, answer.key])
            if answer is not None and trace["votes"]:
                votes.setdefault(answer.key, []).append(answer.text)
        leader = max(votes.values(), key=len, default=[None])[0]
        gold = asked["gold"]
        right = None if gold is None else is_correct(chosen, leader, gold)
        print(json.dumps({"read": read, "verdict": leader, "right": right}), flush=True)
"""


def questions(pool: Path, answer: str | None) -> tuple[str, list[dict[str, Any]]]:
    """The kind of a recording's answers, and its questions with all traces."""
    from conviction.recordings import Pool  # noqa: PLC0415  # of this version, to read only

    opened = Pool.open(pool, answers=answer or "math")
    found: list[dict[str, Any]] = []
    for question in opened.questions:
        traces = opened.traces(question.id)
        rows: list[dict[str, Any]] = []
        for text, recorded, finish in zip(
            opened.texts(question.id), traces.answers, traces.finish, strict=True
        ):
            said = (
                {"answer": recorded.text if recorded else None} if text is None else {"text": text}
            )
            rows.append({**said, "votes": str(finish) == "stop"})
        found.append({"id": question.id, "gold": question.gold, "traces": rows})
    return answer or opened.meta.answers, found


def sources(version: str, folder: Path) -> Path:
    """The folder with the packages of a version."""
    if (Path(version) / "src").is_dir():
        return (Path(version) / "src").resolve()
    archive = subprocess.run(
        ["git", "archive", version, "src"], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")
    return folder / "src"


def readings(source: Path, answer: str, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a version finds in every question."""
    ran = subprocess.run(
        [sys.executable, "-c", READER, answer, str(source)],
        input="".join(json.dumps(one) + "\n" for one in asked),
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in ran.stdout.splitlines()]


def shown(value: str | None) -> str:
    """A value on one line."""
    if value is None:
        return "nothing"
    line = " ".join(value.split())
    return repr(line if len(line) <= _LONGEST else "…" + line[-_LONGEST:])


def classes(read: list[list[str] | None]) -> list[list[int]]:
    """The traces in the class of each trace; names of classes do not count."""
    members: dict[str, list[int]] = {}
    for number, one in enumerate(read):
        if one is not None:
            members.setdefault(one[2], []).append(number)
    return [[] if one is None else members[one[2]] for one in read]


def changes(
    asked: dict[str, Any], old: dict[str, Any], new: dict[str, Any], counts: Counter[str]
) -> Iterator[str]:
    """What changed in one question, a line each."""
    old_classes, new_classes = classes(old["read"]), classes(new["read"])
    for number, (before, after) in enumerate(zip(old["read"], new["read"], strict=True)):
        counts["traces"] += 1
        one, other = before and before[0], after and after[0]
        if one != other:
            counts["answers found otherwise"] += 1
        elif old_classes[number] != new_classes[number]:
            counts["answers in another class"] += 1
        else:
            counts["answers only shown otherwise"] += bool(
                before and after and before[1] != after[1]
            )
            continue
        trace = asked["traces"][number]
        end = f"   in {shown(trace['text'])}" if "text" in trace else ""
        keys = f" [{before and before[2]} -> {after and after[2]}]" if one == other else ""
        yield f"  trace {number}: {shown(one)} -> {shown(other)}{keys}{end}"
    if old["verdict"] != new["verdict"] or old["right"] != new["right"]:
        same_leader = old_classes == new_classes
        counts["verdicts only shown otherwise" if same_leader else "verdicts that changed"] += 1
        grades = {True: "right", False: "wrong", None: "not graded"}
        counts[f"verdicts {grades[old['right']]} -> {grades[new['right']]}"] += (
            old["right"] != new["right"]
        )
        yield (
            f"  verdict: {shown(old['verdict'])} ({grades[old['right']]}) -> "
            f"{shown(new['verdict'])} ({grades[new['right']]}); gold {shown(asked['gold'])}"
        )


def main() -> None:
    """Compare two versions on recordings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", help="a git reference, or a folder with a src")
    parser.add_argument("new", help="the same")
    parser.add_argument("pools", nargs="*", type=Path)
    parser.add_argument("--answer", help="kind of answer; default: the recording's, else math")
    told = parser.parse_args()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        before, after = sources(told.old, Path(old)), sources(told.new, Path(new))
        for pool in told.pools or sorted((ROOT / "examples").glob("*.parquet")):
            answer, asked = questions(pool, told.answer)
            pairs = [readings(source, answer, asked) for source in (before, after)]
            counts: Counter[str] = Counter(questions=len(asked))
            print(f"{pool.name}: answers of kind {answer}")
            for one, first, second in zip(asked, *pairs, strict=True):
                lines = list(changes(one, first, second, counts))
                if lines:
                    print(f" question {one['id']}", *lines, sep="\n")
            print(" " + "; ".join(f"{name}: {count}" for name, count in counts.items() if count))
            total += counts
    print("In all: " + "; ".join(f"{name}: {count}" for name, count in total.items()))


if __name__ == "__main__":
    main()
