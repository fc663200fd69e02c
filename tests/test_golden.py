"""The numbers of the reference implementation (facebookresearch/deepconf at 675529d)."""

import math
from typing import Any

import anyio
import numpy as np
import pytest
from reference import reference

from conviction.answers import kind
from conviction.confidence import Metric, measure, measure_pool
from conviction.core import Answer, FinishReason, Question, Trace
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.policies import (
    Conditions,
    DeepConfHigh,
    DeepConfLow,
    DeepConfOffline,
    Majority,
    Policy,
)
from conviction.thinking import deliberate
from conviction.verdict import Verdict
from conviction.voting import threshold_for

CASES = 24

every_case = pytest.mark.parametrize("number", range(CASES))

METRICS = {
    "mean": Metric.MEAN,
    "tail": Metric.TAIL,
    "bottom_10": Metric.BOTTOM_10,
    "lowest_group": Metric.LOWEST_GROUP,
}
KEPT = {"top10": 0.1, "top50": 0.5, "top90": 0.9}
ANYWHERE = Conditions(concurrency=64, max_tokens=1024, top_k=20)


def cases() -> list[dict[str, Any]]:
    return reference()["cases"]


def confidences(case: dict[str, Any], kind: type) -> list[np.ndarray]:
    return [np.array(trace["token_confidences"], kind) for trace in case["traces"]]


def traces(case: dict[str, Any]) -> list[Trace]:
    """The case's traces as an engine would have delivered them: float32."""
    return [
        Trace(
            id=number,
            finish=FinishReason.STOP,
            tokens=values.size,
            confidences=values,
            answer=Answer(trace["answer"], trace["answer"]),
        )
        for number, (trace, values) in enumerate(
            zip(case["traces"], confidences(case, np.float32), strict=True)
        )
    ]


def vote(policy: Policy, case: dict[str, Any]) -> tuple[str, int]:
    """The answer that a policy finds, steering the case's traces, and how many it let vote."""

    async def think() -> Verdict:
        scripts = [
            Script(f"The answer is {trace['answer']}", values)
            for trace, values in zip(case["traces"], confidences(case, np.float32), strict=True)
        ]
        # Whole traces as single chunks end in the order of starting, which decides ties.
        engine = ScriptedEngine(scripts, concurrency=policy.budget, chunk_tokens=1000)
        return await deliberate(
            Question.ask("?"), engine=engine, policy=policy, answers=kind("number")
        )

    verdict = anyio.run(think)
    assert verdict.answer is not None
    return verdict.answer, len(verdict.tally.voters)


def test_all_cases_are_there() -> None:
    assert len(cases()) == CASES


@every_case
@pytest.mark.parametrize("name", METRICS)
def test_every_trace_measures_as_the_reference_measures_it(number: int, name: str) -> None:
    case = cases()[number]
    values = confidences(case, np.float64)
    expected = pytest.approx([trace[name] for trace in case["per_trace"]], rel=1e-9, abs=0)
    assert [measure(METRICS[name], trace, case["window"]) for trace in values] == expected
    offsets = np.cumsum([0, *(trace.size for trace in values)])
    pool = measure_pool(METRICS[name], np.concatenate(values), offsets, case["window"])
    assert pool.tolist() == expected


@every_case
def test_the_majority_is_the_references(number: int) -> None:
    case = cases()[number]
    size = len(case["traces"])
    assert vote(Majority(budget=size), case) == (case["votes"]["majority"], size)


@every_case
@pytest.mark.parametrize("name", METRICS)
def test_votes_weighted_by_confidence_are_the_references(number: int, name: str) -> None:
    case = cases()[number]
    size = len(case["traces"])
    policy = DeepConfOffline(budget=size, metric=METRICS[name], keep=1.0, window=case["window"])
    assert vote(policy, case) == (case["votes"][f"{name}_weighted"], size)


@every_case
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("share", KEPT)
def test_filtered_votes_and_the_traces_kept_are_the_references(
    number: int, name: str, share: str
) -> None:
    case = cases()[number]
    policy = DeepConfOffline(
        budget=len(case["traces"]), metric=METRICS[name], keep=KEPT[share], window=case["window"]
    )
    expected = case["votes"][f"{name}_{share}"]
    assert vote(policy, case) == (expected["answer"], expected["kept"])


@every_case
def test_warm_up_thresholds_are_the_references_after_its_rounding(number: int) -> None:
    # The reference keeps a trace's group confidences rounded to three decimals and takes the
    # percentile of those. A threshold and what is compared with it should not be rounded apart,
    # so conviction does not; the rounding is applied here to compare the percentile exactly.
    case = cases()[number]
    rounded = np.array([t["lowest_group_rounded_3"] for t in case["per_trace"][:16]])
    ours = [threshold_for(rounded, 0.1), threshold_for(rounded, 0.9)]
    theirs = case["warmup_first_16_thresholds"]
    assert ours == [theirs["deepconf_low_p90"], theirs["deepconf_high_p10"]]


@every_case
@pytest.mark.parametrize(
    ("policy_type", "name"),
    [(DeepConfLow, "deepconf_low_p90"), (DeepConfHigh, "deepconf_high_p10")],
)
def test_a_warm_up_sets_the_references_threshold_but_for_that_rounding(
    number: int, policy_type: type[DeepConfLow | DeepConfHigh], name: str
) -> None:
    case = cases()[number]
    warmup = min(16, len(case["traces"]))
    policy = policy_type(budget=warmup + 1, warmup=warmup, window=case["window"], quorum=warmup + 1)
    policy.begin(ANYWHERE)
    for trace in traces(case)[:warmup]:
        actions = policy.on_finished(trace)
    threshold = policy.standing().threshold
    assert threshold == pytest.approx(case["warmup_first_16_thresholds"][name], abs=0.000_51)
    assert actions[0].gate.threshold == threshold
    assert math.isfinite(threshold)
