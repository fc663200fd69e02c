"""Candidates on the same draws of recorded traces."""

from collections import Counter
from dataclasses import replace
from multiprocessing.process import BaseProcess

import lab_traces
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction.errors import InvalidSettingError, RecordingError
from conviction.lab import workers
from conviction.lab.candidates import parse
from conviction.lab.comparison import compare, distinct, find_front, halves, remarks, runnable
from conviction.lab.replay import replay
from conviction.lab.sources import PoolTraces, TracesInMemory
from conviction.lab.statistics import Estimate, wilson
from conviction.lab.trials import draw, run_trials
from conviction.lab.workers import each_question

EVERYTHING = [
    "majority",
    "single",
    "adaptive-consistency",
    "deepconf-low:warmup=4,window=8",
    "deepconf-offline:keep=0.5,window=8",
]


def assert_same(first: np.ndarray, second: np.ndarray) -> None:
    for name in first.dtype.names or ():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_run_is_the_replay_of_its_draw() -> None:
    source = lab_traces.in_memory()
    candidates = parse(EVERYTHING, budgets=[8], concurrencies=[3])
    trials = run_trials(source, candidates, repeats=5, seed=7)
    assert trials.runs.shape == (5, 6, 5)
    for question, question_id in enumerate(source.question_ids):
        traces = source.traces(question_id)
        for repeat in range(5):
            order = draw(12, 8, seed=7, question_id=question_id, repeat=repeat)
            drawn = [traces[position] for position in order]
            for number, candidate in enumerate(candidates):
                outcome = replay(candidate.policy, drawn, concurrency=3)
                run = trials.runs[number, question, repeat]
                assert run["correct"] == outcome.correct
                assert run["tokens"] == outcome.tokens
                assert run["path"] == outcome.path
                assert run["started"] == outcome.started
                assert run["stopped"] == outcome.stopped
                assert run["cancelled"] == outcome.cancelled
                assert run["empty"] == outcome.empty
                assert run["full_tokens"] == sum(trace.tokens for trace in drawn)


@settings(max_examples=20)
@given(st.permutations(EVERYTHING), st.permutations(range(6)), st.booleans())
def test_what_is_beside_a_candidate_or_a_question_changes_nothing(
    specs: list[str],
    order: list[int],
    replacement: bool,  # noqa: FBT001  # drawn
) -> None:
    source = lab_traces.in_memory()
    alone = run_trials(
        source, parse(EVERYTHING[3:4], budgets=[8]), repeats=3, with_replacement=replacement
    )
    shuffled = TracesInMemory(
        {source.question_ids[i]: source.traces(source.question_ids[i]) for i in order}
    )
    among = run_trials(
        shuffled,
        parse([*specs, "majority:budget=12"], budgets=[8]),
        repeats=3,
        with_replacement=replacement,
    )
    assert_same(among.runs[specs.index(EVERYTHING[3])], alone.runs[0][order])


def test_several_processes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTHWHILE_SECONDS", 0.0)
    source = lab_traces.in_memory()
    candidates = parse(EVERYTHING, budgets=[8])
    told: list[tuple[int, int]] = []
    one = run_trials(source, candidates, repeats=4)
    two = run_trials(
        source,
        candidates,
        repeats=4,
        processes=2,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert_same(one.runs, two.runs)
    assert told == [(done, 6) for done in range(1, 7)]


def test_a_pool_is_read_by_several_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(workers, "WORTHWHILE_SECONDS", 0.0)
    memory = lab_traces.in_memory()
    pool = PoolTraces.open(lab_traces.on_disk(tmp_path_factory.mktemp("pool"), memory))
    candidates = parse(EVERYTHING, budgets=[8])
    assert_same(
        run_trials(pool, candidates, repeats=3, processes=2).runs,
        run_trials(memory, candidates, repeats=3).runs,
    )


@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (lab_traces.die_unless_first, RecordingError, "exit code 3"),
        (lab_traces.fail_unless_first, LookupError, "question"),
    ],
)
def test_what_goes_wrong_in_another_process_is_told(
    monkeypatch: pytest.MonkeyPatch, work: workers.Work[str], error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(workers, "WORTHWHILE_SECONDS", 0.0)
    with pytest.raises(error, match=words):
        list(each_question(work, lab_traces.in_memory(), processes=2))


def test_a_process_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: BaseProcess) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers, "WORTHWHILE_SECONDS", 0.0)
    monkeypatch.setattr(BaseProcess, "start", refused)
    with pytest.raises(RecordingError, match=r"could not be started .*temporarily unavailable"):
        list(each_question(lab_traces.die_unless_first, lab_traces.in_memory(), processes=2))


@given(st.integers(1, 40), st.data(), st.integers(0, 5), st.text(max_size=5))
def test_a_draw_takes_each_trace_once_and_begins_like_a_larger_one(
    count: int, data: st.DataObject, repeat: int, question_id: str
) -> None:
    size = data.draw(st.integers(0, count))
    drawn = draw(count, size, seed=1, question_id=question_id, repeat=repeat)
    assert set(Counter(drawn.tolist()).values()) <= {1}
    whole = draw(count, count, seed=1, question_id=question_id, repeat=repeat)
    assert drawn.tolist() == whole[:size].tolist()
    assert sorted(whole.tolist()) == list(range(count))


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 50))
def test_a_draw_with_replacement_begins_like_a_larger_one(count: int, size: int, more: int) -> None:
    small, large = (
        draw(count, n, seed=1, question_id="q", repeat=0, with_replacement=True)
        for n in (size, size + more)
    )
    assert small.tolist() == large[:size].tolist()
    assert set(large.tolist()) <= set(range(count))


def test_seeds_questions_and_repeats_draw_differently() -> None:
    draws = [
        tuple(draw(50, 50, seed=seed, question_id=question, repeat=repeat).tolist())
        for seed in (0, 1)
        for question in ("a", "b")
        for repeat in (0, 1)
    ]
    assert len(set(draws)) == 8


def test_a_budget_above_the_pool_names_the_question_and_its_traces() -> None:
    source = lab_traces.in_memory()
    few = {**source.questions, "short": lab_traces.recorded(9, 3)}
    candidates = parse(["majority"], budgets=[4])
    with pytest.raises(InvalidSettingError, match="question 'short': 3 complete traces"):
        run_trials(TracesInMemory(few), candidates)
    trials = run_trials(TracesInMemory(few), candidates, repeats=2, with_replacement=True)
    assert (trials["started"] == 4).all()
    assert (trials.least_traces, trials.most_traces) == (3, 12)


def test_the_baseline_differs_from_itself_by_nothing_and_savings_are_against_majority() -> None:
    candidates = parse(["majority", "single", "deepconf-low:warmup=4,window=8"], budgets=[8])
    trials = run_trials(lab_traces.in_memory(), candidates, repeats=8)
    majority, single, low = compare(trials)
    assert majority.difference.value == majority.difference.low == majority.difference.high == 0
    assert majority.saving.value == pytest.approx(0)
    assert single.difference.value == pytest.approx(single.accuracy.value - majority.accuracy.value)
    assert single.saving.value == pytest.approx(
        1 - trials["tokens"][1].sum() / trials["tokens"][0].sum()
    )
    assert low.difference.low <= low.difference.value <= low.difference.high
    assert low.saving.low <= low.saving.value <= low.saving.high
    assert low.tokens.value == pytest.approx(trials["tokens"][2].mean())
    assert low.stopped == pytest.approx(trials["stopped"][2].mean())
    assert low.stopped > 0


def test_the_front_is_chosen_on_one_half_of_the_questions_and_reported_on_the_other() -> None:
    trials = run_trials(
        lab_traces.in_memory(7), parse(["majority", "single", "esc"], budgets=[8]), repeats=4
    )
    front = find_front(trials, seed=3)
    half = halves(7, seed=3)
    assert front.questions == (3, 4)
    for number in range(3):
        here, there = front.where_chosen[number], front.elsewhere[number]
        assert here.tokens.value == pytest.approx(trials["tokens"][number, half].mean())
        assert there.tokens.value == pytest.approx(trials["tokens"][number, ~half].mean())
        assert here.accuracy.value == pytest.approx(trials["correct"][number, half].mean())
        assert there.accuracy.value == pytest.approx(trials["correct"][number, ~half].mean())
    cheapest = min(front.where_chosen, key=lambda row: row.tokens.value)
    assert front.chosen[front.where_chosen.index(cheapest)]
    with pytest.raises(InvalidSettingError, match="1 question"):
        halves(1)


def test_the_front_knows_only_the_costs_of_the_half_that_chose() -> None:
    half = halves(6, seed=3)[:, None]
    tokens = np.array([np.where(half, 50, 500), np.full((6, 1), 100)])
    trials = lab_traces.trials(["majority", "esc"], correct=np.ones((2, 6, 1)), tokens=tokens)
    assert find_front(trials, seed=3).chosen.tolist() == [True, False]


def test_savings_are_against_majority_with_the_same_budget_whatever_the_baseline() -> None:
    candidates = ["single", "majority:budget=4", "majority:budget=8"]
    trials = run_trials(lab_traces.in_memory(), parse(candidates, budgets=[8]), repeats=4)
    single, four, eight = compare(trials)
    for row in (four, eight):
        assert (row.saving.value, row.saving.low, row.saving.high) == pytest.approx((0, 0, 0))
    assert 0.8 < single.saving.low < single.saving.value < single.saving.high < 0.95


def test_accuracies_on_which_all_questions_agree_are_not_certain() -> None:
    trials = lab_traces.trials(["majority", "esc", "single"], correct=np.ones((3, 6, 2)))
    trials.runs["correct"][2] = False
    majority, esc, single = compare(trials)
    assert majority.accuracy == Estimate(1.0, *wilson(1.0, 6))
    assert single.accuracy == Estimate(0.0, *wilson(0.0, 6))
    assert majority.difference == Estimate(0.0, 0.0, 0.0)
    assert np.isnan(esc.difference.low)
    assert single.difference.low == -1.0 < single.difference.high < 0
    alone = compare(trials, questions=np.arange(6) == 0)
    assert np.isnan([alone[2].tokens.low, alone[2].saving.low, alone[2].path.low]).all()
    assert alone[2].difference.high > 0


def test_tokens_in_total_are_those_of_all_questions() -> None:
    trials = lab_traces.trials(["majority"], tokens=np.array([[[10, 20], [30, 40]]]))
    (row,) = compare(trials)
    assert row.tokens_in_total == row.record()["tokens_in_total"] == 50


def test_candidates_that_come_to_the_same_in_every_run_are_left_out() -> None:
    specs = ["majority", "adaptive-consistency:wave=8", "adaptive-consistency:wave=16", "single"]
    trials = run_trials(lab_traces.in_memory(), parse(specs, budgets=[8]), repeats=3)
    found = distinct(trials)
    assert [one.label for one in found.candidates] == ["majority@8", "single"]
    assert_same(found.runs, trials.runs[[0, 3]])


def test_one_question_and_one_trace_are_remarked_upon_in_their_own_words() -> None:
    source = TracesInMemory({"only": lab_traces.recorded(0, 1)})
    few = " ".join(remarks(run_trials(source, parse(["majority"], budgets=[1]), repeats=2)))
    assert "takes the only recorded trace of a question" in few
    assert "A single question" in few
    assert "1 questions" not in few


def test_answers_alone_refuse_what_needs_confidence_with_a_reason() -> None:
    candidates = parse(EVERYTHING, budgets=[8])
    able, refused = runnable(candidates, lab_traces.in_memory(top_k=0))
    assert [one.policy.name for one in able] == ["majority", "single", "adaptive-consistency"]
    assert [one.candidate.policy.name for one in refused] == ["deepconf-low", "deepconf-offline"]
    assert all("answers only" in one.reason for one in refused)
    assert runnable(candidates, lab_traces.in_memory()) == (candidates, [])


def test_draws_that_share_most_traces_are_remarked_upon() -> None:
    source = lab_traces.in_memory(30)

    def remarked(budget: int, *, with_replacement: bool = False) -> str:
        trials = run_trials(source, parse(["majority"], budgets=[budget]), repeats=1)
        return " ".join(remarks(trials, with_replacement=with_replacement))

    assert "takes all 12 recorded" in remarked(12)
    assert "takes 7 of the 12 recorded" in remarked(7)
    assert not remarked(6)
    assert not remarked(12, with_replacement=True)


def test_a_pool_with_questions_of_unknown_answer_is_refused_unless_they_are_left_out(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = lab_traces.on_disk(tmp_path_factory.mktemp("pool"), ungraded=["question 2"])
    with pytest.raises(RecordingError, match=r"1 of 6 questions have no right answer.*question 2"):
        PoolTraces.open(folder)
    source = PoolTraces.open(folder, only_graded=True)
    assert source.ungraded == ("question 2",)
    assert "question 2" not in source.question_ids
    everything = lab_traces.in_memory().question_ids
    with pytest.raises(RecordingError, match="6 of 6"):
        PoolTraces.open(
            lab_traces.on_disk(tmp_path_factory.mktemp("pool"), ungraded=everything),
            only_graded=True,
        )


def test_traces_that_did_not_complete_are_left_out(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    memory = lab_traces.in_memory(2)
    traces = list(memory.traces("question 0"))
    stopped = replace(traces[0], finish=lab_traces.FinishReason.LOW_CONFIDENCE)
    mixed = TracesInMemory({**memory.questions, "question 0": [stopped, *traces[1:]]})
    source = PoolTraces.open(lab_traces.on_disk(tmp_path_factory.mktemp("pool"), mixed))
    assert len(source.traces("question 0")) == 11
    with pytest.raises(InvalidSettingError, match=r"question 0.*11 complete"):
        run_trials(source, parse(["majority"], budgets=[12]), repeats=1)
