import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core import Answer, FinishReason, Question, Tally, Trace
from conviction.policies import DeepConfLow, DeepConfOffline
from conviction.verdict import SCHEMA_VERSION, Right, Usage, Verdict, caveats, percent
from conviction.voting import Ballot


def trace(
    number: int,
    answer: str | None = "a",
    finish: FinishReason = FinishReason.STOP,
    confidences: tuple[float, ...] = (8.0, 12.0),
    **more: object,
) -> Trace:
    return Trace(
        id=number,
        finish=finish,
        tokens=len(confidences),
        confidences=np.array(confidences, np.float32),
        answer=None if answer is None else Answer(answer, answer),
        **more,  # type: ignore[arg-type]
    )


def tally_of(*traces: Trace) -> Tally:
    ballot = Ballot()
    for item in traces:
        if item.answer and item.finish is FinishReason.STOP:
            ballot.cast(item.id, item.answer)
    return ballot.tally()


def verdict_of(*traces: Trace, budget: int = 8, **more: object) -> Verdict:
    tally = tally_of(*traces)
    values: dict[str, object] = {
        "question": Question.ask("why?"),
        "answer": tally.leader.text if tally.leader else None,
        "tally": tally,
        "ended": "budget",
        "policy": DeepConfOffline().settings(),
        "traces": traces,
        "usage": Usage.of(traces, voters=tally.voters, budget=budget),
        "budget": budget,
        **more,
    }
    return Verdict(**values)  # type: ignore[arg-type]


confidences = st.lists(
    st.one_of(st.floats(0, 30, width=32), st.sampled_from([math.nan, math.inf])), max_size=9
).map(tuple)
traces = st.builds(
    trace,
    st.just(0),
    st.sampled_from(["a", "b", None]),
    st.sampled_from(FinishReason),
    confidences,
    prompt_tokens=st.integers(0, 99),
    cached_tokens=st.integers(0, 9),
    text=st.text(),
    error=st.text(),
)
pools = st.lists(traces, max_size=12).map(
    lambda items: tuple(
        Trace(**{**item.__dict__, "id": number}) for number, item in enumerate(items)
    )
)


class TestUsage:
    @given(pools, st.integers(1, 99))
    def test_every_token_has_exactly_one_fate(self, pool: tuple[Trace, ...], budget: int) -> None:
        voters = tally_of(*pool).voters
        usage = Usage.of(pool, voters=voters, budget=budget)
        assert usage.generated == sum(item.tokens for item in pool)
        assert usage.voted == sum(item.tokens for item in pool if item.id in voters)
        assert usage.unvoted == sum(t.tokens for t in pool if t.complete and t.id not in voters)
        assert usage.prompt == sum(item.prompt_tokens for item in pool)
        assert usage.cached_prompt == sum(item.cached_tokens for item in pool)

    def test_each_way_of_ending_has_its_column(self) -> None:
        ends = {
            FinishReason.STOP: "unvoted",
            FinishReason.LENGTH: "unvoted",
            FinishReason.LOW_CONFIDENCE: "stopped",
            FinishReason.CONSENSUS: "cancelled",
            FinishReason.CANCELLED: "cancelled",
            FinishReason.ERROR: "failed",
        }
        assert set(ends) == set(FinishReason)
        for finish, column in ends.items():
            usage = Usage.of([trace(0, None, finish)], voters=frozenset(), budget=1)
            assert getattr(usage, column) == usage.generated == 2

    def test_the_saving_is_estimated_from_the_traces_that_were_not_stopped(self) -> None:
        whole = [trace(i, confidences=(9.0,) * 10) for i in range(4)]
        cut = trace(4, None, FinishReason.LOW_CONFIDENCE, (1.0,) * 5)
        usage = Usage.of([*whole, cut], voters=frozenset(range(4)), budget=10)
        assert usage.full_budget_estimate == 100
        assert usage.saving_estimate == pytest.approx(0.55)

    def test_without_stopping_nothing_is_saved(self) -> None:
        pool = [trace(i, confidences=(9.0,) * (i + 1)) for i in range(4)]
        assert Usage.of(pool, voters=frozenset(), budget=4).saving_estimate == 0.0

    def test_nothing_is_estimated_where_no_trace_is_complete(self) -> None:
        pool = [trace(0, None, FinishReason.ERROR), trace(1, None, FinishReason.CANCELLED)]
        usage = Usage.of(pool, voters=frozenset(), budget=4)
        assert (usage.full_budget_estimate, usage.saving_estimate) == (None, None)
        assert Usage().saving_estimate is None

    def test_traces_without_tokens_save_nothing_that_can_be_told(self) -> None:
        usage = Usage.of([trace(0, confidences=())], voters=frozenset({0}), budget=4)
        assert usage.saving_estimate is None


class TestPlainData:
    @given(pools)
    def test_is_strict_json(self, pool: tuple[Trace, ...]) -> None:
        plain = verdict_of(*pool).to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain

    def test_holds_what_the_verdict_holds(self) -> None:
        verdict = verdict_of(trace(0), trace(1, "b"), trace(2), threshold=9.5, window=16, seed=3)
        plain = verdict.to_dict()
        assert plain["schema_version"] == SCHEMA_VERSION
        assert (plain["answer"], plain["share"]) == ("a", 2 / 3)
        assert plain["tally"][0] == {"answer": "a", "weight": 2.0, "count": 2, "traces": [0, 2]}
        assert (plain["threshold"], plain["window"], plain["seed"]) == (9.5, 16, 3)
        assert plain["usage"]["generated"] == plain["usage"]["voted"] == 6
        assert [item["finish"] for item in plain["traces"]] == ["stop"] * 3
        assert plain["traces"][0]["mean_confidence"] == 10.0

    def test_tells_an_unknown_confidence_from_a_confidence_of_nothing(self) -> None:
        pool = (trace(0, confidences=(math.nan,)), trace(1, confidences=(0.0, 0.0)))
        shown = [item["mean_confidence"] for item in verdict_of(*pool).to_dict()["traces"]]
        assert shown == [None, 0.0]

    def test_policies_name_themselves(self) -> None:
        verdict = verdict_of(trace(0), policy=DeepConfLow(budget=9).settings())
        assert verdict.to_dict()["policy"]["name"] == "deepconf-low"

    def test_a_calibrated_probability_comes_with_its_interval_and_source(self) -> None:
        right = Right(0.84, 0.75, 0.9, "pool <b>", 104)
        verdict = verdict_of(trace(0), right=right)
        assert verdict.to_dict()["right"] == {
            "value": 0.84,
            "low": 0.75,
            "high": 0.9,
            "pool": "pool <b>",
            "questions": 104,
        }
        html = verdict._repr_html_()
        assert "right with a calibrated probability of 84% (95% interval 75% to 90%)" in html
        assert "104 questions of pool &lt;b&gt;" in html
        assert verdict_of(trace(0)).to_dict()["right"] is None

    def test_ties_are_named(self) -> None:
        assert verdict_of(trace(0), trace(1, "b")).to_dict()["tied"] == ["a", "b"]


class TestNotebookView:
    @pytest.mark.parametrize("place", ["answer", "warning", "ended"])
    def test_escapes_what_came_from_outside(self, place: str) -> None:
        evil = "<script>alert('x')</script>&"
        html = verdict_of(
            trace(0, evil if place == "answer" else "a"),
            warnings=(evil,) if place == "warning" else (),
            ended=evil if place == "ended" else "budget",
        )._repr_html_()
        assert "<script>" not in html
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;" in html

    def test_shows_answer_votes_share_and_cost(self) -> None:
        html = verdict_of(trace(0), trace(1), trace(2, "b"))._repr_html_()
        assert "<b>a</b>" in html
        assert "<td>a</td><td>2</td><td>67%</td>" in html
        assert "<td>b</td><td>1</td><td>33%</td>" in html
        assert "3 traces, 6 tokens" in html

    @given(pools)
    def test_never_fails(self, pool: tuple[Trace, ...]) -> None:
        html = verdict_of(*pool)._repr_html_()
        assert ("no answer" in html) == (not tally_of(*pool).voters)


class TestHowSafeTheLeadIs:
    def test_it_comes_from_the_votes_of_leader_and_runner_up(self) -> None:
        votes = [trace(number, answer) for number, answer in enumerate("aaaabcc")]
        # P(p > 1/2) under Beta(4 + 1, 2 + 1): the sum of C(7, k) over k from 0 to 4, over 2^7.
        assert verdict_of(*votes).lead == pytest.approx(99 / 128)
        assert verdict_of(*votes[:2]).lead == pytest.approx(7 / 8)
        assert verdict_of(*votes[3:5]).lead == pytest.approx(1 / 2)

    def test_without_votes_there_is_none(self) -> None:
        verdict = verdict_of(trace(0, None))
        assert verdict.lead is None
        assert verdict.to_dict()["lead"] is None
        assert "lead" not in verdict._repr_html_()

    def test_an_answer_that_leads_by_weight_alone_would_not_stay_in_front(self) -> None:
        ballot = Ballot()
        ballot.cast(0, Answer("a", "a"), weight=9.0)
        ballot.cast(1, Answer("b", "b"), weight=1.0)
        ballot.cast(2, Answer("b", "b"), weight=1.0)
        verdict = verdict_of(trace(0), tally=ballot.tally())
        assert verdict.share > 0.5
        assert verdict.lead == pytest.approx(1 - 11 / 16)

    def test_nobody_takes_it_for_a_probability_of_being_right(self) -> None:
        html = verdict_of(*(trace(number) for number in range(3)))._repr_html_()
        assert "asked on and on, it would lead, right or wrong: 94%" in html
        assert "right with" not in html

    def test_no_figure_claims_certainty(self) -> None:
        many = verdict_of(*(trace(number) for number in range(40)))
        assert "right or wrong: &gt;99%" in many._repr_html_()
        assert (percent(0.5), percent(0.001), percent(0.9951)) == ("50%", "<1%", ">99%")


class TestTheTraceToShow:
    def test_is_the_most_confident_of_those_that_voted_for_the_answer(self) -> None:
        pool = [
            trace(0, confidences=(5.0,)),
            trace(1, confidences=(9.0, math.nan)),
            trace(2, "b", confidences=(30.0,)),
            trace(3, finish=FinishReason.LENGTH, confidences=(30.0,)),
        ]
        assert verdict_of(*pool).best_trace is pool[1]

    def test_is_none_without_an_answer(self) -> None:
        assert verdict_of(trace(0, None)).best_trace is None


class TestCaveats:
    def test_a_tie_a_lone_voter_and_failures_are_said(self) -> None:
        failed = [
            trace(number, None, FinishReason.ERROR, error=error)
            for number, error in ((2, "it broke"), (3, "it broke"), (4, "no route"))
        ]
        pool = [trace(0), trace(1, "b"), *failed]
        assert list(caveats(pool, tally_of(*pool))) == [
            "Tied: a, b. The answer that was seen first is shown.",
            "3 of 5 traces failed: it broke; no route",
        ]
        assert next(caveats(pool[1:], tally_of(pool[1]))) == "Only one trace voted."

    def test_agreement_needs_none(self) -> None:
        pool = [trace(0), trace(1)]
        assert list(caveats(pool, tally_of(*pool))) == []

    def test_a_single_trace_that_was_asked_for_needs_none(self) -> None:
        assert list(caveats([trace(0)], tally_of(trace(0)))) == []


def test_endings_are_counted() -> None:
    pool = (trace(0), trace(1), trace(2, None, FinishReason.ERROR))
    assert verdict_of(*pool).finishes() == {FinishReason.STOP: 2, FinishReason.ERROR: 1}
    assert verdict_of(*pool).share == 1.0
