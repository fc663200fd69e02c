"""Damage to any stored file is read as what was written, or told; never as something else."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flips, lost_blocks
from old_pools import old_pool
from recorded import META, made_up

from conviction.cli.main import run
from conviction.core import Answer
from conviction.engines.openai.facts import FactsCache, Route, ServerFacts
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import ConvictionError
from conviction.evaluation.results import QuestionResult, RunData, RunDescription
from conviction.evaluation.stored import RunWriter, read_run
from conviction.history import History
from conviction.models.cache import read_note, write_note
from conviction.recordings import Pool, PoolWriter, RecordedTrace
from conviction.recordings.transfer import pack
from conviction.verdict import Usage, Verdict

URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Stored:
    """A kind of file that conviction stores.

    Attributes:
        write: Fills an empty folder.
        name: The file of it that is damaged.
        read: Everything that the folder holds.
        may_be_absent: Whether what is damaged may count as never kept: it can be found out again.
        grows: Whether what is added comes behind all else, so that of a file whose end was lost,
            as by a loss of power, what came before is read.
        has_checksums: Earlier versions wrote files without; there, only errors are shown here.
    """

    write: Callable[[Path], None]
    name: str
    read: Callable[[Path], Any]
    may_be_absent: bool = False
    grows: bool = False
    has_checksums: bool = True


def traces() -> list[RecordedTrace]:
    """Of three questions, with texts of a few kinds, and with and without log-probabilities."""
    return [
        made_up(
            question,
            number,
            tokens=40,
            text=None if number == 4 else f"{'Let us think. ' * number}It is {question}, 7 ü.",
            answer=None if number == 3 else Answer("7.0", "7"),
            correct=False,
            logprobs=-made_up(question, number, tokens=40).confidences if number % 2 else None,
        )
        for number in range(5)
        for question in ("a", "b", "c")
    ]


def record(path: Path) -> None:
    with PoolWriter(path / "pool.db", META) as writer:
        for row in traces():
            writer.append(row)


def killed_recording(path: Path) -> None:
    """The files that a killed writer leaves."""
    with PoolWriter(path / "pool.db", META) as writer:
        for row in traces()[:6]:
            writer.append(row)
        copies = {name: (path / name).read_bytes() for name in ("pool.db", "pool.db-wal")}
    for name, data in copies.items():
        (path / name).write_bytes(data)


def export(path: Path) -> None:
    record(path)
    pack(Pool.open(path / "pool.db"), path / "pool.parquet")


def contents(place: Path) -> Any:
    pool = Pool.open(place)
    found: list[Any] = [pool.meta, pool.questions]
    for question in pool.questions:
        columns = pool.traces(question.id)
        plain = (values for name, values in vars(columns).items() if name not in ("place", "flat"))
        found += [one.tolist() if isinstance(one, np.ndarray) else one for one in plain]
        assert columns.flat is not None
        found += [columns.flat.tobytes(), pool.texts(question.id)]
        found += [None if one is None else one.tobytes() for one in pool.logprobs(question.id)]
    return found


def numbers(place: Path) -> list[Any]:
    """The traces of a pool in the order of `traces`, as far as they were recorded."""
    pool = Pool.open(place)
    read = {one.id: (pool.traces(one.id), pool.texts(one.id)) for one in pool.questions}
    found = [
        (question, number, read[question][1][number], read[question][0].seeds.tolist()[number])
        for number in range(5)
        for question in ("a", "b", "c")
        if question in read and number < len(read[question][1])
    ]
    assert len(found) == sum(question.traces for question in pool.questions)
    return found


def evaluate(path: Path) -> None:
    data = RunData("questions.jsonl", 20, "0" * 64, "1" * 64)
    description = RunDescription({"answers": "math", "total_tokens": 9_000}, "m", 20, data)
    with RunWriter(path / "run.db", description) as writer:
        for number in range(20):
            usage = Usage(prompt=9, voted=number)
            result = QuestionResult(
                *(f"q{number}", "0" * 16, "7", str(number), number == 7, 0.5, "budget"),
                *(number, usage, 4, 1.5),
            )
            writer.append(result)
            writer.spend(number)


def results(place: Path) -> Any:
    run = read_run(place)
    return [run.description, *run.results]


def old_run(path: Path) -> None:
    from kept_runs import as_folder

    evaluate(path)
    as_folder(path / "run.db", path / "run")


def think(path: Path) -> None:
    import conviction

    engine = ScriptedEngine([Script.even("Let us see. Answer: 7")])
    verdict: Verdict = conviction.think(
        "How many?", engine=engine, policy="majority", budget=2, answers="number"
    )
    for number in range(4):
        History(path / "history.db").add(verdict, question=f"How many {number}?", page=b"page" * 99)


def past(path: Path) -> Any:
    history = History(path / "history.db")
    entries = history.entries()
    return [(one, history.verdict(one.id), history.page(one.id)) for one in entries]


def find_out(path: Path) -> None:
    facts = ServerFacts("m", ("m", "n"), top_k=5, raw=False, seen=4e9)
    FactsCache(path).save(URL, Route.CHAT, facts)


def known(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("time.time", lambda: 4e9)
    return FactsCache(path).load(URL, "m", Route.CHAT)


def verify(path: Path) -> None:
    write_note(
        path / "m.json", {"name": "m", "size": 812, "mtime_ns": 17 << 60, "sha256": "5e" * 32}
    )


KINDS = {
    "recording": Stored(record, "pool.db", lambda path: contents(path / "pool.db")),
    "log of a killed writer": Stored(
        killed_recording, "pool.db-wal", lambda path: numbers(path / "pool.db"), grows=True
    ),
    "exported recording": Stored(
        export, "pool.parquet", lambda path: contents(path / "pool.parquet")
    ),
    "journal of an earlier version": Stored(
        lambda path: old_pool(path, meta=META, journal=traces()) and None,
        "journal-000000",
        contents,
        grows=True,
    ),
    "part of an earlier version": Stored(
        lambda path: old_pool(path, traces()[:9], meta=META, journal=traces()[9:]) and None,
        "part-000000.parquet",
        contents,
    ),
    "evaluation": Stored(evaluate, "run.db", lambda path: results(path / "run.db")),
    "evaluation of an earlier version": Stored(
        old_run, "run/results.jsonl", lambda path: results(path / "run"), has_checksums=False
    ),
    "history": Stored(think, "history.db", past),
    "facts of a server": Stored(
        find_out, "facts.db", lambda path: known(path, pytest.MonkeyPatch()), may_be_absent=True
    ),
    "note of a model": Stored(
        verify, "m.json", lambda path: read_note(path / "m.json") or None, may_be_absent=True
    ),
}


@pytest.fixture(params=KINDS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Stored, Path, int]]:
    """A kind of file, where one lies, and how often to damage it."""
    kind = KINDS[request.param]
    (tmp_path / "whole").mkdir()
    kind.write(tmp_path / "whole")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("time.time", lambda: 4e9)
    yield kind, tmp_path, 3_000 if request.config.getoption("--attack-long") else 60
    monkeypatch.undo()


def undamaged(kind: Stored, folder: Path) -> tuple[bytes, Any]:
    """The file as it was written, and what is read then; reading may change what lies there."""
    shutil.copytree(folder / "whole", folder / "copy")
    return (folder / "whole" / kind.name).read_bytes(), kind.read(folder / "copy")


def after(
    kind: Stored, folder: Path, damages: Iterator[tuple[str, bytes]]
) -> Iterator[tuple[str, Any]]:
    """What is read after each damage; None where it is refused with a proper error."""
    damaged = folder / "damaged"
    for what, data in damages:
        shutil.copytree(folder / "whole", damaged)
        (damaged / kind.name).write_bytes(data)
        try:
            yield what, kind.read(damaged)
        except ConvictionError as error:
            says_where_and_what_to_do = str(damaged) in str(error) and error.remedy
            yield what, None if says_where_and_what_to_do else str(error)
        shutil.rmtree(damaged)


def test_a_flipped_bit_is_told_or_changes_nothing(stored: tuple[Stored, Path, int]) -> None:
    kind, folder, count = stored
    data, whole, refused = *undamaged(kind, folder), 0
    for what, found in after(kind, folder, flips(data, count, random.Random(1))):  # noqa: S311
        refused += found is None
        assert not kind.has_checksums or found is None or repr(found) == repr(whole), what
    assert refused


def test_lost_blocks_are_told_or_change_nothing(stored: tuple[Stored, Path, int]) -> None:
    kind, folder, count = stored
    data, whole, refused = *undamaged(kind, folder), 0
    for what, found in after(kind, folder, lost_blocks(data, count, random.Random(2))):  # noqa: S311
        refused += found is None
        before = kind.grows and isinstance(found, list) and whole[: len(found)] == found
        assert not kind.has_checksums or found is None or before or repr(found) == repr(whole), what
    assert refused or kind.grows


def test_check_says_what_is_whole_and_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for write in (export, evaluate, think, find_out):
        write(tmp_path)
    names = ["pool.db", "pool.parquet", "run.db", "history.db", "facts.db"]
    assert run(["check", *(str(tmp_path / name) for name in names)]) == 0
    assert capsys.readouterr().err.count("whole: ") == 5
    for name in names:
        data = bytearray((tmp_path / name).read_bytes())
        data[200::150] = bytes(byte ^ 4 for byte in data[200::150])
        (tmp_path / name).write_bytes(data)
    assert run(["check", *(str(tmp_path / name) for name in names)]) == 1
    told = capsys.readouterr().err
    assert "whole: " not in told
    assert all(f"damaged: {tmp_path / name}" in told.replace("\n", "") for name in names), told


def test_check_does_not_take_a_file_that_was_just_made_for_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pool.db").touch()  # as a full disk or a kill leaves it
    assert run(["check", str(tmp_path / "pool.db")]) == 0
    assert "nothing was written" in capsys.readouterr().err
    record(tmp_path)
    assert run(["check", str(tmp_path / "pool.db")]) == 0
    assert "15 traces" in capsys.readouterr().err


def test_check_says_which_files_carry_no_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_run(tmp_path)
    assert run(["check", str(tmp_path / "run"), str(tmp_path / "run.db")]) == 0
    old, new = capsys.readouterr().err.splitlines()
    assert "no checksums" in old
    assert "no checksums" not in new


def test_the_examples_are_whole_and_carry_checksums(capsys: pytest.CaptureFixture[str]) -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.parquet"))
    assert run(["check", *map(str, examples)]) == 0
    said = capsys.readouterr().err
    assert said.count("whole: ") == len(examples) > 2
    assert "no checksums" not in said


def test_check_refuses_what_is_not_there_or_is_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert run(["check", str(tmp_path / "nothing")]) == 2
    assert run(["check"]) == 2
    assert run(["check", str(tmp_path / "notes.txt")]) == 1
    assert "notes.txt" in capsys.readouterr().err


def test_a_damaged_last_transaction_of_a_log_is_told_once(tmp_path: Path) -> None:
    killed_recording(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "copy")
    whole, log = numbers(tmp_path / "copy" / "pool.db"), tmp_path / "pool.db-wal"
    data = bytearray(log.read_bytes())
    data[-2000] ^= 1
    log.write_bytes(data)
    with pytest.raises(ConvictionError, match="its last transaction is damaged") as told:
        numbers(tmp_path / "pool.db")
    assert "Run the same command again" in told.value.remedy
    assert numbers(tmp_path / "pool.db") == whole[:-1]
    assert (tmp_path / "pool.db-wal.damaged").read_bytes() == data
