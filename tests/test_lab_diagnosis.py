"""Whether confidence helps, on traces of which that is known."""

from dataclasses import replace
from pathlib import Path

import lab_traces
import numpy as np
import pytest
from recorded import META, made_up

from conviction.cli.lab_tables import ranking_table
from conviction.confidence import Metric, measure
from conviction.core import FinishReason
from conviction.errors import InvalidSettingError
from conviction.lab.candidates import parse
from conviction.lab.comparison import halves
from conviction.lab.diagnosis import Diagnosis, LogprobRanking, diagnose
from conviction.lab.replay import PlayedTrace
from conviction.lab.report import diagnosis_page
from conviction.lab.sources import PoolTraces, TracesInMemory
from conviction.lab.statistics import Estimate, auroc, wilson
from conviction.policies import DeepConfOffline
from conviction.recordings import PoolWriter

RARELY_RIGHT = 0.3


def find_out(bonus: float, odds: float = RARELY_RIGHT, questions: int = 24) -> Diagnosis:
    return diagnose(lab_traces.in_memory(questions, 16, bonus=bonus, odds=odds), repeats=4)


def test_where_right_traces_are_more_confident_a_filter_is_recommended() -> None:
    found = find_out(bonus=4.0)
    mean = found.rankings[0]
    assert mean.metric is Metric.MEAN
    assert mean.votes.value == 1.0
    assert mean.votes.low > 0.85
    assert found.choice.elsewhere.low > 0
    assert found.advice.startswith("Confidence helps here: use deepconf-offline:")
    (candidate,) = parse([found.use], budgets=[16])
    assert isinstance(candidate.policy, DeepConfOffline)
    assert candidate.policy.metric is found.choice.metric
    assert candidate.policy.keep == found.choice.keep
    assert candidate.policy.window == found.choice.window


@pytest.mark.parametrize("bonus", [0.0, -4.0])
def test_where_they_are_not_majority_is_recommended(bonus: float) -> None:
    found = find_out(bonus=bonus, odds=0.6)
    assert found.use == "majority"
    assert found.advice.startswith("Use majority")
    assert found.choice.elsewhere.low <= 0
    mean = found.rankings[0].votes
    assert mean.low < 0.5
    assert mean.high > 0.5 if bonus == 0 else mean.high < 0.15


def test_what_helps_one_half_alone_is_not_recommended() -> None:
    chooses = halves(20, seed=5)
    source = TracesInMemory(
        {
            f"question {number}": lab_traces.recorded(
                number, 16, bonus=4.0 if helped else -4.0, odds=RARELY_RIGHT if helped else 0.7
            )
            for number, helped in enumerate(chooses.tolist())
        }
    )
    found = diagnose(source, repeats=2, seed=5)
    assert found.choice.where_chosen.low > 0
    assert found.choice.elsewhere.high < 0
    assert found.use == "majority"
    assert "does harm" in found.advice


def test_where_all_traces_agree_there_is_nothing_to_tell() -> None:
    found = find_out(bonus=2.0, odds=1.0, questions=4)
    assert found.mixed == 0
    assert found.use == "majority"
    assert "nothing that confidence could tell apart" in found.advice
    assert np.isnan(found.rankings[0].votes.value)
    assert found.to_dict()["rankings"][0]["votes"]["value"] is None


def test_the_ranking_is_that_of_each_question_by_itself() -> None:
    # Between questions the order is reversed: right traces of the one lie below wrong of the other.
    def trace(level: float, *, correct: bool) -> PlayedTrace:
        right, wrong = (lab_traces.recorded(0, 30, odds=odds)[0] for odds in (1.0, 0.0))
        values = np.full(20, level, np.float32)
        return replace(right if correct else wrong, tokens=20, confidences=values)

    low = [trace(4.0, correct=True), trace(3.0, correct=False)]
    high = [trace(9.0, correct=True), trace(8.0, correct=False)]
    found = diagnose(TracesInMemory({"low": low, "high": high}), repeats=1)
    assert {one.votes.value for one in found.rankings} == {1.0}


def test_silent_and_cut_traces_rank_among_all_traces_but_not_among_votes() -> None:
    traces = lab_traces.recorded(1, 12)
    silent = replace(traces[0], answer=None, correct=False, confidences=None)
    silent.confidences = np.full(silent.tokens, 30, np.float32)
    cut = replace(silent, finish=FinishReason.LENGTH, answer=traces[1].answer)
    found = diagnose(TracesInMemory({"a": [*traces, silent, cut], "b": traces}), repeats=1)
    mean = found.rankings[0]
    assert mean.all.value < mean.votes.value
    scores = [
        measure(Metric.MEAN, one.confidences, 1) for one in traces if one.confidences is not None
    ]
    right = [one.correct for one in traces]
    pairs = [
        a > b
        for a, r in zip(scores, right, strict=True)
        if r
        for b, s in zip(scores, right, strict=True)
        if not s
    ]
    assert mean.votes.value == pytest.approx(np.mean(pairs))


def test_better_and_worse_account_for_the_difference() -> None:
    for effect in find_out(bonus=1.0, questions=8).filters:
        assert effect.difference.value == pytest.approx(effect.better.value - effect.worse.value)


def test_the_calibration_holds_every_question_once() -> None:
    found = find_out(bonus=0.0, questions=8)
    assert sum(one.questions for one in found.calibration) == pytest.approx(8)
    assert all(one.low <= one.share <= one.high + 1e-6 for one in found.calibration)
    distances = [abs(one.share - one.accuracy.value) * one.questions for one in found.calibration]
    assert found.calibration_error == pytest.approx(sum(distances) / 8)


def test_the_same_seed_finds_the_same_in_one_process_or_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conviction.lab.workers.WORTHWHILE_SECONDS", 0.0)
    source = lab_traces.in_memory()
    told: list[tuple[int, int]] = []
    alone = diagnose(source, repeats=2)
    together = diagnose(
        source, repeats=2, processes=2, on_progress=lambda *how_far: told.append(how_far)
    )
    assert alone.to_dict() == together.to_dict()
    assert told == [(done, 12) for done in range(1, 13)]


def with_logprobs(source: TracesInMemory, gap: float) -> TracesInMemory:
    """Traces of which right ones are likelier than wrong ones by `gap`, and none like another."""
    logprobs = {
        name: np.array([-5.0 - 0.01 * i + gap * one.correct for i, one in enumerate(traces)])
        for name, traces in source.questions.items()
    }
    return replace(source, logprobs=logprobs)


@pytest.mark.parametrize(("gap", "area"), [(4.0, 1.0), (-4.0, 0.0)])
def test_plain_likelihood_is_ranked_beside_the_metrics_and_never_chosen(
    gap: float, area: float
) -> None:
    plain = lab_traces.in_memory(24, 16, bonus=0.0, odds=0.6)
    without = diagnose(plain, repeats=1)
    found = diagnose(with_logprobs(plain, gap), repeats=1)
    assert without.log_probability is None
    ranked = Estimate(area, *wilson(area, 24))
    assert found.log_probability == LogprobRanking(votes=ranked, all=ranked)
    assert replace(found, log_probability=None) == without
    assert found.use == "majority"


def test_likelihood_ranks_silent_traces_among_all_but_not_among_votes() -> None:
    traces = lab_traces.recorded(1, 12)
    silent = replace(traces[0], answer=None, correct=False)
    source = with_logprobs(TracesInMemory({"a": [*traces, silent], "b": traces}), 4.0)
    source.logprobs["a"][-1] = 0.0
    plain = diagnose(source, repeats=1).log_probability
    assert plain is not None
    assert plain.votes.value == 1.0
    wrong = sum(not one.correct for one in traces)
    assert plain.all.value == pytest.approx((wrong / (wrong + 1) + 1) / 2)


def test_likelihood_is_shown_in_the_table_the_json_and_the_report() -> None:
    source = lab_traces.in_memory(4, 8)
    found, without = diagnose(with_logprobs(source, 4.0), repeats=1), diagnose(source, repeats=1)
    name = "log-probability (for comparison)"

    def shown(diagnosis: Diagnosis) -> list[bool]:
        rows = list(ranking_table(diagnosis).columns[0].cells)
        page = diagnosis_page(diagnosis, model="a model", source="a pool")
        return [name in rows, name in page, "no policy filters by it" in page]

    assert shown(found) == [True] * 3
    assert shown(without) == [False] * 3
    votes = found.to_dict()["log_probability"]["votes"]
    assert (votes["value"], votes["high"]) == (1.0, 1.0)
    assert 0 < votes["low"] < 1
    assert without.to_dict()["log_probability"] is None


@pytest.mark.parametrize(
    ("lacking", "finish", "ranked"),
    [
        (None, FinishReason.STOP, True),
        (2, FinishReason.CANCELLED, True),
        (2, FinishReason.STOP, False),
        (2, FinishReason.LENGTH, False),
    ],
)
def test_likelihood_is_ranked_if_all_complete_traces_of_a_pool_have_it(
    tmp_path: Path, lacking: int | None, finish: FinishReason, *, ranked: bool
) -> None:
    rows = [
        made_up(
            question,
            number,
            correct=number % 2 == 0,
            logprobs=None if number == lacking else np.full(12, -1.0 - number % 2, np.float32),
            finish=finish if number == lacking else FinishReason.STOP,
        )
        for question in ("a", "b")
        for number in range(6)
    ]
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(*rows)
    plain = diagnose(PoolTraces.open(tmp_path / "pool"), budget=4, repeats=1).log_probability
    assert (plain is not None) == ranked
    if plain is not None:
        assert (plain.votes.value, plain.all.value) == (1.0, 1.0)


def test_answers_alone_cannot_be_diagnosed() -> None:
    with pytest.raises(InvalidSettingError, match="answers only"):
        diagnose(lab_traces.in_memory(top_k=0))


def few_right_but_confident(questions: int) -> TracesInMemory:
    """Majority is wrong everywhere, and keeping the most confident three of eight is right."""
    right, wrong = (lab_traces.recorded(0, 1, odds=odds)[0] for odds in (1.0, 0.0))
    traces = [
        replace(one, tokens=20, confidences=np.full(20, level, np.float32))
        for one, level in [(right, 20.0)] * 3 + [(wrong, 5.0)] * 5
    ]
    return TracesInMemory({f"question {number}": traces for number in range(questions)})


def test_what_one_other_question_shows_is_not_called_help() -> None:
    found = diagnose(few_right_but_confident(2), repeats=2)
    assert found.choice.elsewhere.value == 1.0
    assert found.choice.elsewhere.low < 0
    assert found.use == "majority"
    assert found.advice.startswith("Use majority: there are too few questions to tell.")
    assert "at least 6 others, and there is 1" in found.advice


@pytest.mark.parametrize(("questions", "helps"), [(10, False), (11, True), (12, True)])
def test_help_is_shown_from_six_other_questions_on(questions: int, *, helps: bool) -> None:
    found = diagnose(few_right_but_confident(questions), repeats=2)
    assert (found.use != "majority") == helps
    assert (found.choice.better, found.choice.worse) == (questions - questions // 2, 0)


def test_what_a_reader_should_know_is_in_the_json_and_the_report() -> None:
    found = diagnose(replace(few_right_but_confident(3), dropped=2), repeats=1)
    notes = found.to_dict()["notes"]
    page = diagnosis_page(found, model="a model", source="a pool")
    for words in ("2 of 26 recorded traces", "takes all 8 recorded traces", "3 questions resolve"):
        assert any(words in note for note in notes)
        assert words in page


def test_each_window_is_measured_with_its_own_width() -> None:
    traces = lab_traces.recorded(3, 24, tokens=200, bonus=0.3)
    found = diagnose(TracesInMemory({"a": traces, "b": traces}), repeats=1)
    right = np.array([one.correct for one in traces])
    areas: dict[int, float] = {}
    for one in found.rankings:
        if one.metric is Metric.LOWEST_GROUP and one.window:
            scores = [
                measure(one.metric, trace.confidences, one.window)
                for trace in traces
                if trace.confidences is not None
            ]
            areas[one.window] = auroc(np.array(scores), right)
            assert one.votes.value == pytest.approx(areas[one.window])
    assert list(areas) == [16, 32, 64]
    assert len(set(areas.values())) == 3


def test_each_metric_is_filtered_by_at_one_window() -> None:
    source = TracesInMemory(
        {name: lab_traces.recorded(seed, 12, tokens=200) for seed, name in enumerate("abcd")}
    )
    found = diagnose(source, repeats=1)
    shown = [(one.metric, one.keep) for one in found.filters]
    assert shown == [(metric, keep) for metric in Metric for keep in (0.1, 0.5, 0.9)]


def test_filters_are_reported_on_the_half_that_did_not_choose_their_window() -> None:
    chooses = halves(4, seed=1)
    confident, agreeing = few_right_but_confident(1), lab_traces.recorded(0, 8, odds=1.0)
    source = TracesInMemory(
        {
            str(number): agreeing if chosen else confident.questions["question 0"]
            for number, chosen in enumerate(chooses.tolist())
        }
    )
    found = diagnose(source, repeats=1, seed=1)
    assert {one.better.value for one in found.filters if one.keep == 0.1} == {1.0}


def test_a_pool_in_which_nothing_votes_has_a_report_without_figures_that_are_none() -> None:
    silent = [replace(one, answer=None, correct=False) for one in lab_traces.recorded(1, 6)]
    found = diagnose(TracesInMemory({"a": silent, "b": silent}), repeats=1)
    page = diagnosis_page(found, model="a model", source="a pool")
    assert "No trace voted, so there is nothing to compare." in page
    assert "nan" not in page.lower()


def test_a_budget_of_none_is_not_the_usual_one() -> None:
    with pytest.raises(InvalidSettingError, match="budget"):
        diagnose(lab_traces.in_memory(), budget=0)


def test_negative_seeds_are_seeds() -> None:
    source = lab_traces.in_memory(bonus=0.0)
    first, again, other = (diagnose(source, repeats=1, seed=seed) for seed in (-5, -5, -4))
    assert first.to_dict() == again.to_dict() != other.to_dict()
    assert halves(20, seed=-5).tolist() != halves(20, seed=-4).tolist()
