"""What is appended to a pool is read from it again, whatever becomes of it on disk."""

import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_pools import old_pool, write_journal
from recorded import META, made_up

from conviction.answers import kind
from conviction.core import FinishReason, Question, Sampling
from conviction.errors import InvalidSettingError, RecordingError
from conviction.recordings import (
    Pool,
    PoolMeta,
    PoolWriter,
    RecordedTrace,
    import_files,
    pack,
    prompt_hash,
)
from conviction.recordings.rows import Labels


def recorded(path: Path, *rows: RecordedTrace, meta: PoolMeta = META) -> Path:
    """A pool of these rows."""
    with PoolWriter(path, meta) as writer:
        writer.append(*rows)
    return path


def packed(path: Path, *rows: RecordedTrace, meta: PoolMeta = META) -> Path:
    """A folder of an earlier version with these rows in one part; the part."""
    old_pool(path, rows, meta=meta)
    return path / "part-000000.parquet"


def assert_same(pool: Pool, rows: list[RecordedTrace]) -> None:
    """Check that a pool holds exactly these rows."""
    questions = dict.fromkeys(row.question_id for row in rows)
    assert [question.id for question in pool.questions] == list(questions)
    for question in pool.questions:
        expected = sorted(
            (row for row in rows if row.question_id == question.id), key=lambda row: row.number
        )
        traces = pool.traces(question.id)
        assert question.traces == len(traces) == len(expected)
        assert (question.gold, question.text) == (expected[0].gold, expected[0].question)
        assert pool.texts(question.id) == tuple(row.text for row in expected)
        assert traces.ids.tolist() == [row.number for row in expected]
        assert traces.seeds.tolist() == [row.seed for row in expected]
        assert traces.tokens.tolist() == [row.tokens for row in expected]
        assert traces.answers == tuple(row.answer for row in expected)
        assert traces.finish == tuple(row.finish for row in expected)
        assert traces.correct.tolist() == [bool(row.correct) for row in expected]
        assert traces.seconds.tolist() == [row.ended - row.started for row in expected]
        assert traces.confidences is not None
        for found, row in zip(traces.confidences, expected, strict=True):
            np.testing.assert_array_equal(found, row.confidences)
        for found, row in zip(pool.logprobs(question.id), expected, strict=True):
            np.testing.assert_array_equal(found, row.logprobs)


def logprobs(tokens: int, *, some: bool = True) -> np.ndarray | None:
    """Log-probabilities, one of them unknown."""
    values = -np.linspace(0, 9, tokens, dtype=np.float32)
    values[1:2] = np.nan
    return values if some else None


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations([(question, number) for question in "ab" for number in range(5)]),
    cuts=st.lists(st.integers(1, 9), max_size=3),
    with_logprobs=st.lists(st.booleans(), min_size=10, max_size=10),
)
def test_traces_come_back_however_appends_are_cut(
    order: list[tuple[str, int]],
    cuts: list[int],
    with_logprobs: list[bool],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = [
        made_up(question, number, tokens=number * 3, logprobs=logprobs(number * 3, some=some))
        for (question, number), some in zip(order, with_logprobs, strict=True)
    ]
    folder = tmp_path_factory.mktemp("pool")
    pieces = [
        rows[begin:end]
        for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(rows)], strict=True)
    ]
    for piece in pieces:
        with PoolWriter(folder / "pool", META) as writer:
            writer.append(*piece)
    assert_same(Pool.open(folder / "pool"), rows)
    *parts, last = pieces
    old = old_pool(folder / "old", *parts, meta=META, journal=last)
    assert_same(Pool.open(old), rows)
    # Converted, and told how.
    with pytest.raises(RecordingError, match=f"conviction record --import {old} -o {old}.db"):
        PoolWriter(old, META)
    import_files([old], folder / "new", answers=kind("number"))
    assert_same(Pool.open(folder / "new"), rows)


def test_a_reader_sees_what_is_recorded_while_the_writer_is_at_work(tmp_path: Path) -> None:
    rows = [made_up("a", number) for number in range(4)]
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(rows[0])
        before = Pool.open(tmp_path / "pool")
        writer.append(rows[1])
        writer.append(*rows[2:])
        assert_same(Pool.open(tmp_path / "pool"), rows)
        assert len(before.traces("a")) == 1


def test_a_packed_pool_is_one_file_that_says_the_same(tmp_path: Path) -> None:
    rows = [
        made_up(question, number, logprobs=logprobs(12, some=number != 2))
        for number in (3, 0, 2)
        for question in "ba"
    ]
    pool = Pool.open(recorded(tmp_path / "pool", *rows))
    pack(pool, tmp_path / "whole.parquet")
    pack(pool, tmp_path / "short.parquet", keep_text=False)
    packed = Pool.open(tmp_path / "whole.parquet")
    assert packed.meta == pool.meta
    assert_same(packed, rows)
    assert set(Pool.open(tmp_path / "short.parquet").texts("a")) == {None}


def test_a_pool_tells_model_k_sampling_and_kind_of_answer(tmp_path: Path) -> None:
    pool = Pool.open(recorded(tmp_path / "pool", made_up("a", 0)))
    assert (pool.model, pool.top_k, pool.answers) == ("made-up", 20, "number")
    assert pool.sampling == Sampling(max_tokens=64)
    assert pool.has_confidences
    assert pool.sampling_known


def test_a_pool_of_answers_has_no_confidences_and_refuses_who_needs_them(tmp_path: Path) -> None:
    meta = replace(META, top_k=0, sampling=None)
    pool = Pool.open(recorded(tmp_path / "pool", made_up("a", 0, confidences=None), meta=meta))
    traces = pool.traces("a")
    assert (pool.has_confidences, pool.sampling_known, traces.confidences) == (False, False, None)
    with pytest.raises(RecordingError, match="answers only") as refused:
        traces.require_confidences()
    assert "majority" in refused.value.remedy


def test_unknown_confidences_are_kept_and_a_trace_without_any_is_refused_where_they_count(
    tmp_path: Path,
) -> None:
    some = np.array([np.nan, 5.0, np.nan], np.float32)
    none = np.full(3, np.nan, np.float32)
    rows = [
        made_up("a", 0, tokens=3, confidences=some),
        made_up("a", 1, tokens=3, confidences=none, finish=FinishReason.CANCELLED),
        made_up("a", 2, tokens=0),
        made_up("b", 7, tokens=3, confidences=none),
    ]
    pool = Pool.open(recorded(tmp_path / "pool", *rows))
    assert_same(pool, rows)
    assert len(pool.traces("a").require_confidences()) == 3
    with pytest.raises(RecordingError, match="trace 7"):
        pool.traces("b").require_confidences()


def test_confidences_are_views_of_one_array(tmp_path: Path) -> None:
    traces = Pool.open(recorded(tmp_path / "pool", made_up("a", 0), made_up("a", 1))).traces("a")
    assert traces.confidences is not None
    assert traces.flat is not None
    assert traces.offsets.tolist() == [0, 12, 24]
    assert all(np.shares_memory(values, traces.flat) for values in traces.confidences)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidences": np.zeros(11, np.float32)}, r"\(11,\)"),
        ({"confidences": np.zeros(12, np.float64)}, "float64"),
        ({"confidences": None}, "none, and the pool's k is 20"),
        ({"confidences": np.full(12, np.inf, np.float32)}, "infinite"),
        ({"confidences": np.full(12, -1.0, np.float32)}, "negative"),
        ({"logprobs": np.zeros(11, np.float32)}, r"\(11,\)"),
        ({"logprobs": np.zeros(12, np.float64)}, "float64"),
        ({"logprobs": np.full(12, -np.inf, np.float32)}, "infinite"),
        ({"logprobs": np.full(12, 0.5, np.float32)}, "positive"),
        ({"number": -1}, "negative"),
        ({"prompt_hash": "another"}, "prompt hash"),
        ({"gold": "5"}, "gold"),
        ({"correct": None}, "does not tell whether it is right"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused_by_name_and_nothing_of_its_append_is_kept(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        with pytest.raises(RecordingError, match=message):
            writer.append(made_up("b", 0), replace(made_up("a", 1), **changes))
        assert not writer.numbers("b")
    assert_same(Pool.open(tmp_path / "pool"), [made_up("a", 0)])


def test_no_trace_is_recorded_twice(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        with pytest.raises(RecordingError, match="trace 0 of question 'a'"):
            writer.append(made_up("a", 0))
        with pytest.raises(RecordingError, match="trace 1 of question 'a'"):
            writer.append(made_up("a", 1), made_up("a", 1))
    assert_same(Pool.open(tmp_path / "pool"), [made_up("a", 0)])


def test_the_writer_knows_what_earlier_ones_recorded(tmp_path: Path) -> None:
    recorded(tmp_path / "pool", made_up("a", 0), made_up("a", 2))
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 3))
    with PoolWriter(tmp_path / "pool", META) as writer:
        assert writer.numbers("a") == {0, 2, 3}
        assert writer.seeds("a") == {1000, 1002, 1003}
        assert not writer.numbers("b")
        answers = {made_up("a", number).answer for number in (0, 2, 3)}
        assert writer.answers("a") == {answer.text: answer.key for answer in answers if answer}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(META, model="another"), "model another against made-up"),
        (replace(META, answers="math"), "kind of answer"),
        (replace(META, sampling=Sampling(temperature=0.1)), "sampling"),
        (replace(META, top_k=5), "k 5 against 20"),
    ],
)
def test_traces_of_other_settings_belong_into_another_pool(
    tmp_path: Path, other: PoolMeta, message: str
) -> None:
    recorded(tmp_path / "pool", made_up("a", 0))
    with pytest.raises(RecordingError, match=message):
        PoolWriter(tmp_path / "pool", other)


MEASURE = """
import json, sys, tracemalloc
import pyarrow as pa
from conviction.recordings import Pool
Pool.open(sys.argv[1])  # so that modules and their making are not counted
tracemalloc.start()
pool = Pool.open(sys.argv[1])
opened = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()
tokens = sum(int(pool.traces(question.id).tokens.sum()) for question in pool.questions)
read = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()
print(json.dumps([opened, tokens, read]))
"""


def test_reading_takes_memory_for_one_question_and_not_for_the_pool(tmp_path: Path) -> None:
    questions, traces, tokens = 20, 32, 50_000
    with PoolWriter(tmp_path / "pool", META) as writer:
        for question in map(str, range(questions)):
            writer.append(*(made_up(question, i, tokens=tokens) for i in range(traces)))
    # Arrow's memory is not Python's, so a process of its own counts both from nothing.
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "pool")],
        capture_output=True,
        check=True,
        timeout=60,
    )
    opened, read_tokens, read = json.loads(measured.stdout)
    one = 4 * traces * tokens
    assert read_tokens == questions * traces * tokens
    assert opened < one
    assert read < 6 * one  # of 20


def test_reading_one_question_touches_its_own_row_groups_only(tmp_path: Path) -> None:
    rows = [made_up(question, number, tokens=200_000) for question in "abc" for number in (0, 1)]
    part = packed(tmp_path / "old", *rows)
    assert pq.read_metadata(part).num_row_groups == 3
    damaged = bytearray(part.read_bytes())
    first = pq.read_metadata(part).row_group(0)
    offset = first.column(first.num_columns - 1).data_page_offset
    damaged[offset : offset + 4096] = bytes(4096)
    part.write_bytes(damaged)
    pool = Pool.open(tmp_path / "old")
    assert len(pool.traces("c")) == 2
    with pytest.raises(RecordingError, match=r"part-000000\.parquet"):
        pool.traces("a")


def test_reading_one_question_touches_no_confidences_of_others(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    rows = [made_up(question, number, tokens=20_000) for question in "abc" for number in (0, 1)]
    recorded(path, *rows)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE confidences SET data = zeroblob(9) WHERE id IN (1, 2)")
        other.execute("UPDATE texts SET data = zeroblob(9) WHERE id IN (1, 2)")
    other.close()
    pool = Pool.open(path)
    assert len(pool.traces("c")) == len(pool.texts("c")) == 2
    for read in (pool.traces, pool.texts):
        with pytest.raises(RecordingError, match=f"{path}.*row 1 of table"):
            read("a")


def test_a_single_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    rows = [
        made_up(question, number, tokens=90, logprobs=logprobs(90))
        for number in range(8)
        for question in "ab"
    ]
    recorded(path, *rows)
    whole = path.read_bytes()
    choose = random.Random(11)  # noqa: S311
    found = 0
    for place in (choose.randrange(len(whole) * 8) for _ in range(300)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert_same(Pool.open(path), rows)
        except RecordingError:
            found += 1
    assert found > 40


def overwrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(pq.read_table(path))
    pq.write_table(table, path)


def with_value(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value
        position = table.schema.get_field_index(column)
        field = table.schema.field(column)
        return table.set_column(position, field, pa.array(values, field.type))

    return change


def as_type(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(column)
        old = table.column(column)
        new = pa.nulls(len(table)) if pa.types.is_null(kind) else old.cast(kind)
        return table.set_column(position, column, new)

    return change


def with_metadata(version: int) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        description = table.schema.metadata[b"conviction"].replace(
            b'"schema_version":1', f'"schema_version":{version}'.encode()
        )
        return table.replace_schema_metadata({b"conviction": description})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_metadata(2), "version 2.*Upgrade"),
        (lambda table: table.replace_schema_metadata({}), "not one of recorded traces"),
        (lambda table: table.drop_columns(["seed", "tokens"]), "missing: seed, tokens"),
        (with_value("trace", 1, 0), r"row 2 of .*trace 0 of question 'a' is there already"),
        (with_value("model", 1, "another"), r"row 2 of .*model is another"),
        (with_value("top_k", 1, 5), r"row 2 of .*k is 5"),
        (with_value("sampling", 1, None), r"row 2 of .*sampling is None"),
        (with_value("gold", 1, "9"), r"row 2 of .*gold"),
        (with_value("question_id", 1, None), r"row 2 of .*no question_id"),
        (with_value("trace", 1, None), r"row 2 of .*no trace"),
        (with_value("confidences", 1, [1.0]), "trace 1 of question 'a' has 12 tokens and 1"),
        (with_value("confidences", 1, None), "trace 1 of question 'a' has 12 tokens and 0"),
        (with_value("confidences", 1, [-1.0] * 12), "question 'a'.*negative"),
        (with_value("finish", 1, "bored"), "'finish'.*bored"),
        (with_value("finish", 1, None), r"row 2 of .*no finish"),
        (with_value("seed", 1, None), r"row 2 of .*no seed"),
        (with_value("prompt_hash", 1, None), r"row 2 of .*no prompt_hash"),
        (with_value("question", 1, None), r"row 2 of .*no question"),
        (with_value("correct", 1, None), r"row 2 of .*no correct, .*has a gold"),
        (with_value("answer_key", 1, None), r"row 2 of .*an answer without its answer_key"),
        (with_value("answer", 1, None), r"row 2 of .*the key alone"),
        (with_value("started", 1, None), r"row 2 of .*trace 1 of question 'a' has no started"),
        (with_value("ended", 1, None), r"row 2 of .*trace 1 of question 'a' has no ended"),
        (with_value("prompt_tokens", 1, None), r"row 2 of .*trace 1 .*has no prompt_tokens"),
        (with_value("lost_tokens", 1, None), r"row 2 of .*trace 1 .*has no lost_tokens"),
        (as_type("tokens", pa.string()), "'tokens' holds values of type string, not whole"),
        (as_type("seed", pa.float64()), "'seed' holds values of type double, not whole"),
        (as_type("started", pa.string()), "'started' holds values of type string, not numbers"),
        (as_type("correct", pa.int8()), "'correct' holds values of type int8, not true and false"),
        (as_type("question_id", pa.binary()), "'question_id' holds values of type binary"),
        (lambda table: table.slice(0, 0), "no recorded trace"),
    ],
)
def test_a_bad_part_is_refused_naming_file_and_row(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    part = packed(tmp_path / "pool", made_up("a", 0), made_up("a", 1))
    overwrite(part, change)
    with pytest.raises(RecordingError, match=f"(?s){message}") as refused:
        Pool.open(tmp_path / "pool").traces("a")
    assert str(tmp_path) in str(refused.value)
    assert refused.value.remedy


def test_a_part_of_other_widths_that_lacks_what_may_be_missing_is_read(tmp_path: Path) -> None:
    rows = [
        made_up("a", number, gold=None, answer=None, correct=None, text=None) for number in (0, 1)
    ]
    part = packed(tmp_path / "pool", *rows)
    for column, width in (
        *((name, pa.int32()) for name in ("trace", "top_k", "seed", "tokens", "lost_tokens")),
        *((name, pa.null()) for name in ("gold", "answer", "answer_key", "correct", "text")),
        *((name, pa.large_string()) for name in ("question", "finish", "model")),
        ("question_id", pa.dictionary(pa.int32(), pa.string())),
        ("started", pa.float32()),
    ):
        overwrite(part, as_type(column, width))
    assert_same(Pool.open(tmp_path / "pool"), rows)


def test_a_question_tells_how_many_of_its_traces_are_complete(tmp_path: Path) -> None:
    ends = [FinishReason.STOP, FinishReason.LOW_CONFIDENCE, FinishReason.LENGTH]
    with PoolWriter(tmp_path / "pool", META) as writer:
        for number, finish in enumerate([*ends, FinishReason.CONSENSUS, *ends]):
            writer.append(made_up("a", number, finish=finish))
    (question,) = Pool.open(tmp_path / "pool").questions
    assert (question.traces, question.complete) == (7, 4)


def test_the_answer_that_founded_a_class_represents_it_again_whatever_was_recorded_first() -> None:
    # Keys of a version for which "50%" was 0.5; it is 50 today, and must not unite both.
    keys = {"50%": "0.5", "50": "50", "0.5": "0.5"}
    resumed = Labels(kind("number"), keys)
    assert resumed.answer("50.0").key == "50"
    assert resumed.answer("2/4").key == "0.5"


def test_parts_and_journals_from_before_there_were_log_probabilities_are_read(
    tmp_path: Path,
) -> None:
    rows = [made_up("a", number) for number in range(3)]
    path = tmp_path / "pool"
    overwrite(packed(path, *rows[:2]), lambda table: table.drop_columns(["logprobs"]))
    write_journal(path / "journal-000001", META, rows[2:], fields=17)
    assert_same(Pool.open(path), rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value("logprobs", 1, [-1.0]), "row 2 of .*trace 1 .* 12 tokens and 1 log-prob"),
        (with_value("logprobs", 1, [-1.0] * 13), "row 2 of .*trace 1 .* 12 tokens and 13 log-prob"),
        (with_value("logprobs", 1, [1.0] * 12), "row 2 of .*trace 1 .*positive"),
        (
            lambda table: table.drop_columns(["logprobs"]).append_column(
                "logprobs", [["-1.0"] * table.num_rows]
            ),
            "log-probabilities of type string",
        ),
    ],
)
def test_bad_log_probabilities_are_refused_to_whoever_reads_them_alone(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    rows = [made_up("a", number, logprobs=logprobs(12)) for number in range(2)]
    overwrite(packed(tmp_path / "pool", *rows), change)
    pool = Pool.open(tmp_path / "pool")
    assert len(pool.traces("a")) == 2
    with pytest.raises(RecordingError, match=message) as refused:
        pool.logprobs("a")
    assert "part-000000.parquet" in str(refused.value)


@pytest.mark.parametrize("size", [0, 3, 500, -1])
def test_a_truncated_part_is_refused(tmp_path: Path, size: int) -> None:
    part = packed(tmp_path / "pool", made_up("a", 0))
    part.write_bytes(part.read_bytes()[:size])
    with pytest.raises(RecordingError, match=r"part-000000\.parquet: it is no whole Parquet file"):
        Pool.open(tmp_path / "pool")


def test_the_same_part_twice_is_refused(tmp_path: Path) -> None:
    part = packed(tmp_path / "pool", made_up("a", 0))
    (part.parent / "part-000007.parquet").write_bytes(part.read_bytes())
    (part.parent / "journal-000001").unlink()
    with pytest.raises(RecordingError, match=r"row 1 of .*part-000007\.parquet"):
        Pool.open(tmp_path / "pool")


def test_parts_of_other_models_do_not_mix(tmp_path: Path) -> None:
    packed(tmp_path / "a", made_up("a", 0))
    packed(tmp_path / "b", made_up("b", 0), meta=replace(META, model="another", top_k=20))
    moved = tmp_path / "a" / "part-000001.parquet"
    (tmp_path / "a" / "journal-000001").unlink()
    moved.write_bytes((tmp_path / "b" / "part-000000.parquet").read_bytes())
    with pytest.raises(RecordingError, match=r"part-000001.*model another against made-up"):
        Pool.open(tmp_path / "a")


def test_what_is_no_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="nothing of that name"):
        Pool.open(tmp_path / "nowhere")
    with pytest.raises(RecordingError, match="no recorded trace"):
        Pool.open(tmp_path)
    with PoolWriter(tmp_path / "empty", META):
        pass
    with pytest.raises(RecordingError, match="no recorded trace"):
        Pool.open(tmp_path / "empty")
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    with pytest.raises(RecordingError, match="it is no JSON"):
        Pool.open(file)
    with pytest.raises(RecordingError, match="not an SQLite file"):
        PoolWriter(file, META)
    with pytest.raises(RecordingError, match=f"it is a folder.*--import {tmp_path} -o"):
        PoolWriter(tmp_path, META)


def test_an_unknown_question_is_refused(tmp_path: Path) -> None:
    pool = Pool.open(recorded(tmp_path / "pool", made_up("a", 0)))
    with pytest.raises(RecordingError, match="none of that id"):
        pool.traces("z")


def test_the_hash_of_a_prompt_depends_on_every_message() -> None:
    first = prompt_hash(Question.ask("What?"))
    assert first == prompt_hash(Question.ask("What?", id="another id"))
    assert first != prompt_hash(Question.ask("What"))
    assert len(first) == 16
