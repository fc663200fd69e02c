"""Probabilities of being right: learned from a recording, and told of a verdict."""

import json
from dataclasses import replace
from itertools import pairwise

import lab_traces
import numpy as np
import pytest
import virtual_time
from hypothesis import given
from hypothesis import strategies as st

from conviction.answers import Grouping, kind
from conviction.core import FinishReason, Question
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import InvalidSettingError, RecordingError
from conviction.lab.calibration import FEWEST, Calibration, _Verdicts, calibrate, check_source
from conviction.lab.candidates import Candidate
from conviction.lab.isotonic import Steps
from conviction.lab.replay import PlayedTrace
from conviction.lab.sources import PoolTraces, TracesInMemory
from conviction.lab.statistics import wilson
from conviction.lab.trials import draw
from conviction.policies import policy
from conviction.policies.base import Policy
from conviction.policies.deepconf_online import DeepConfHigh
from conviction.policies.majority import Majority
from conviction.policies.settle import Settle
from conviction.thinking import deliberate
from conviction.verdict import Right, Verdict

NUMBERS = kind("number")


@st.composite
def verdicts(drawing: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What verdicts show, whether they are right, and whether there is one."""
    questions, draws = drawing(st.integers(1, 60)), drawing(st.integers(1, 4))
    random = np.random.default_rng(drawing(st.integers(0, 1 << 32)))
    levels = drawing(st.integers(1, 40))
    shown = np.round(random.integers(1, levels + 1, (questions, draws)) / levels, 9)
    right = random.random(shown.shape) < shown ** drawing(st.sampled_from([-1, 0, 0.3, 1, 5]))
    voted = random.random(shown.shape) < drawing(st.sampled_from([0.1, 0.9, 1.0]))
    return shown, right, voted


class TestSteps:
    @given(verdicts())
    def test_they_never_fall_and_stay_inside_their_intervals(
        self, data: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        shown, _, voted = data
        steps = Steps.fit(*data)
        assert bool(steps.steps) == bool(voted.any())
        found = [steps.at(at) for at in np.linspace(0, 1.2, 61)]
        told = [one for one in found if one is not None]
        for one in told:
            assert 0 <= one.low <= one.value <= one.high <= 1
            assert 0 < one.value < 1
        assert all(a.value <= b.value + 1e-12 for a, b in pairwise(told))
        if voted.any():
            assert steps.at(float(np.nextafter(shown[voted].min(), -1))) is None
            assert all(steps.at(float(one)) for one in shown[voted])

    @given(verdicts(), st.randoms(use_true_random=False))
    def test_neither_the_order_nor_copies_of_draws_change_anything(
        self, data: tuple[np.ndarray, np.ndarray, np.ndarray], random: object
    ) -> None:
        order = list(range(len(data[0])))
        random.shuffle(order)  # type: ignore[attr-defined]
        first = Steps.fit(*data)
        second = Steps.fit(*(np.repeat(values[order], 3, axis=1) for values in data))
        assert len(first.steps) == len(second.steps)
        for one, other in zip(first.steps, second.steps, strict=True):
            assert (one.low, one.high) == (other.low, other.high)
            ours, theirs = one.right, other.right
            assert (ours.value, ours.low, ours.high) == pytest.approx(
                (theirs.value, theirs.low, theirs.high)
            )

    def test_a_step_is_the_part_that_was_right_drawn_to_what_is_shown(self) -> None:
        shown = np.repeat([0.6, 0.9], [20, 40])[:, None]
        right = np.concatenate((np.arange(20) < 6, np.arange(40) < 38))[:, None]
        low, high = Steps.fit(shown, right, np.ones_like(right)).steps
        # Two more questions, right as often as is shown, which itself is drawn to one half.
        assert low.right.value == pytest.approx((6 + 2 * 0.59) / 22)
        assert high.right.value == pytest.approx((38 + 2 * 0.86) / 42)
        assert (high.right.low, high.right.high) == pytest.approx(wilson(38 / 40, 40))
        assert (low.questions, high.questions) == pytest.approx((20, 40))

    def test_where_nothing_is_known_the_share_of_the_vote_is_the_best_guess(self) -> None:
        shown = np.array([[0.4], [0.9]])
        right = np.array([[False], [True]])
        low, high = Steps.fit(shown, right, np.ones_like(right)).steps
        assert (low.right.value, high.right.value) == pytest.approx((2 * 0.41 / 3, 2.72 / 3))
        assert (low.right.low, high.right.high) == (0, 1)
        assert low.right.high > 0.79

    def test_between_two_steps_it_rises_in_a_line_and_above_the_last_no_more(self) -> None:
        shown = np.repeat([0.6, 0.9], [20, 40])[:, None]
        right = np.concatenate((np.arange(20) < 6, np.arange(40) < 38))[:, None]
        steps = Steps.fit(shown, right, np.ones_like(right))
        middle, last, above = (steps.at(at) for at in (0.75, 0.9, 0.99))
        assert middle is not None
        assert last == above == steps.steps[1].right
        for name in ("value", "low", "high"):
            ends = [getattr(step.right, name) for step in steps.steps]
            assert getattr(middle, name) == pytest.approx(sum(ends) / 2)

    def test_what_falls_as_the_lead_grows_becomes_one_step(self) -> None:
        shown = np.repeat([0.6, 0.9], [20, 20])[:, None]
        right = (shown < 0.7) & (np.arange(40) % 5 > 0)[:, None]
        (step,) = Steps.fit(shown, right, np.ones_like(right)).steps
        assert (step.low, step.high) == (0.6, 0.9)
        assert (step.right.low, step.right.high) == pytest.approx(wilson(16 / 40, 40))

    def test_everything_right_is_no_certainty(self) -> None:
        right = np.ones((30, 2), np.bool_)
        (step,) = Steps.fit(np.ones(right.shape), right, right).steps
        assert 0.95 < step.right.value < 1
        assert step.right.low == pytest.approx(wilson(1.0, 30)[0])

    def test_its_intervals_hold_the_truth_about_as_often_as_they_say(self) -> None:
        held = total = 0
        for world in range(60):
            random = np.random.default_rng(world)
            ability = random.random((100, 1))
            shown = np.round(np.clip(ability + random.normal(0, 0.1, (100, 4)), 0, 1), 2)
            steps = Steps.fit(shown, random.random(shown.shape) < ability, shown >= 0)
            for at in (0.2, 0.35, 0.5, 0.65, 0.8):
                # As abilities are even, what is shown in the middle is the ability in the mean.
                found = steps.at(at)
                assert found is not None
                held += found.low <= at <= found.high
                total += 1
        assert held / total > 0.9


def source(questions: int = 40, count: int = 12, **more: float) -> TracesInMemory:
    """Easy questions and hard ones."""
    return TracesInMemory(
        {
            f"question {number}": lab_traces.recorded(
                number, count, odds=0.95 if number % 2 else 0.25, **more
            )
            for number in range(questions)
        }
    )


def scripts(random: np.random.Generator, count: int) -> list[Script]:
    odds = random.random()
    answers = ["4" if random.random() < odds else str(random.integers(5, 7)) for _ in range(count)]
    return [
        Script(
            "Hm." if random.random() < 0.1 else f"Answer: {answer}",
            random.gamma(9.0, 1.2, int(random.integers(8, 30))).astype(np.float32),
        )
        for answer in answers
    ]


def recorded(wanted: list[Script]) -> list[PlayedTrace]:
    grouping = Grouping(NUMBERS)
    traces: list[PlayedTrace] = []
    for script in wanted:
        found = NUMBERS.extract(script.text)
        answer = grouping.classify(found) if found else None
        right = answer is not None and answer.text == "4"
        tokens = script.confidences.size
        traces.append(
            PlayedTrace(tokens, FinishReason.STOP, answer, right, confidences=script.confidences)
        )
    return traces


def live(steering: Policy, wanted: list[Script], concurrency: int) -> Verdict:
    async def main() -> Verdict:
        return await deliberate(
            Question.ask("?"),
            engine=ScriptedEngine(wanted, concurrency=concurrency, delay=1.0),
            policy=steering,
            answers=NUMBERS,
        )

    return virtual_time.run(main)


@pytest.mark.parametrize(
    "spec", ["majority", "settle", "adaptive-consistency:wave=2", "deepconf-high:warmup=3,window=8"]
)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_what_it_learns_from_is_what_happens_live(spec: str, concurrency: int) -> None:
    random = np.random.default_rng(3)
    questions = {f"question {number}": scripts(random, 10) for number in range(FEWEST)}
    memory = TracesInMemory({name: recorded(wanted) for name, wanted in questions.items()})
    steering = policy(spec, budget=8)
    found = calibrate(memory, steering, concurrency=concurrency, pool="made-up")
    for name, wanted in questions.items():
        order = draw(10, 8, seed=0, question_id=name, repeat=0).tolist()
        verdict = live(steering, [wanted[position] for position in order], concurrency)
        share, right, votes = first_draw(memory, name, steering, concurrency)
        assert share == round(verdict.share, 9)
        assert votes == len(verdict.tally.voters)
        assert right == (verdict.answer == "4")
        told = found.applied(verdict)
        assert isinstance(told.right, Right)
        assert told.right == found.right(share, votes, "budget")
        assert (told.right.pool, told.right.questions) == ("made-up", FEWEST)


def first_draw(
    memory: TracesInMemory, name: str, steering: Policy, concurrency: int
) -> tuple[float, bool, bool]:
    """The first draw of a question as the calibration replays it."""
    work = _Verdicts(Candidate(steering, steering.budget, concurrency), seed=0)
    return tuple(work(memory, name)[0].tolist())


class TestCalibration:
    def test_a_greater_share_is_more_probable_to_be_right(self) -> None:
        found = calibrate(source(), Majority(8))
        small, great = found.right(0.5, 8, "budget"), found.right(1.0, 8, "budget")
        assert isinstance(small, Right)
        assert isinstance(great, Right)
        assert small.value < 0.75
        assert great.value > 0.9

    def test_it_says_nothing_of_runs_that_no_replay_was_like(self) -> None:
        found = calibrate(source(), Majority(8))
        assert found.right(0.0, 0, "budget") == "no trace voted"
        for ended in ("time", "interrupted", "tokens"):
            assert "cut short" in str(found.right(0.9, 8, ended))
        assert "so small a share" in str(found.right(0.25, 8, "budget"))

    def test_it_says_nothing_of_runs_most_of_whose_traces_failed(self) -> None:
        found = calibrate(source(), Majority(8))
        assert found.fewest == 8
        assert found.right(1.0, 2, "budget") == (
            "2 votes are too few beside the 8 or more of every replay"
        )
        for votes in (6, 8, None):
            assert isinstance(found.right(1.0, votes, "budget"), Right)

    def test_a_verdict_without_a_probability_says_why(self) -> None:
        found = calibrate(source(), Majority(4))
        verdict = live(Majority(4), [Script.even("Hm.")], 2)
        told = found.applied(verdict)
        assert told.right is None
        assert any("no trace voted" in warning for warning in told.warnings)

    def test_verdicts_of_another_policy_are_refused(self) -> None:
        found = calibrate(source(), Majority(8))
        for other, words in ((Majority(6), "budget 6, not 8"), (Settle(8), "'settle', not")):
            verdict = live(other, [Script.even("Answer: 4")], 4)
            with pytest.raises(InvalidSettingError, match=words):
                found.applied(verdict)

    def test_what_a_policy_chose_itself_does_not_make_it_another(self) -> None:
        steering = DeepConfHigh(budget=8)
        found = calibrate(source(tokens=80), steering)
        verdict = live(steering, [Script.even("Answer: 4", tokens=60)], 4)
        assert verdict.policy["window"] is not None
        assert found.applied(verdict).right is not None

    def test_questions_with_too_few_traces_are_left_out_and_counted(self) -> None:
        few = {f"short {number}": lab_traces.recorded(number, 3) for number in range(5)}
        memory = source()
        mixed = replace(memory, questions={**memory.questions, **few})
        found = calibrate(mixed, Majority(8))
        assert found.questions == 40
        assert any("5 of 45 questions" in note for note in found.notes)
        assert any("40 questions alone" in note for note in found.notes)
        assert found.steps == calibrate(memory, Majority(8)).steps

    def test_progress_is_told_for_every_question(self) -> None:
        told: list[tuple[int, int]] = []
        calibrate(source(20), Majority(2), on_progress=lambda done, of: told.append((done, of)))
        assert told == [(done, 20) for done in range(1, 21)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("recording", "steering", "words"),
        [
            (source(FEWEST - 1), Majority(8), f"{FEWEST - 1} questions.*fewer than {FEWEST}"),
            (source(), Majority(13), r"only 0 of 40 questions.*20 of them have 12"),
            (source(), Majority(13), r"--budget 12"),
            (replace(source(), top_k=0), DeepConfHigh(budget=8), "holds answers only"),
        ],
    )
    def test_what_teaches_nothing_is_refused_before_it_is_replayed(
        self, recording: TracesInMemory, steering: Policy, words: str
    ) -> None:
        with pytest.raises(InvalidSettingError, match=words):
            check_source(recording, steering)
        with pytest.raises(InvalidSettingError, match=words):
            calibrate(recording, steering)

    def test_answers_alone_are_enough_for_a_policy_that_needs_no_confidence(self) -> None:
        found = calibrate(replace(source(), top_k=0), Settle(8))
        assert isinstance(found, Calibration)
        assert isinstance(found.right(1.0, 4, "settled"), Right)

    def test_a_question_whose_confidences_are_all_unknown_is_refused_as_live(self) -> None:
        blind = {
            name: [replace(trace, confidences=None) for trace in traces]
            for name, traces in source().questions.items()
        }
        with pytest.raises(RecordingError, match="not one token"):
            calibrate(TracesInMemory(blind), DeepConfHigh(budget=8))

    def test_a_pool_without_right_answers_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        memory = source(4)
        folder = lab_traces.on_disk(
            tmp_path_factory.mktemp("pool"), memory, ungraded=memory.question_ids
        )
        with pytest.raises(RecordingError, match="4 of 4 questions have no right answer"):
            PoolTraces.open(folder, only_graded=True)


class TestAbstaining:
    def verdict(self, right: float | None) -> Verdict:
        verdict = live(Majority(2), [Script.even("Answer: 4")], 2)
        return replace(verdict, right=right and Right(right, 0.0, 1.0, "pool", 40))

    @pytest.mark.parametrize(("right", "abstained"), [(0.59, True), (0.6, False), (None, True)])
    def test_an_answer_that_is_not_probable_enough_is_withheld(
        self, right: float | None, *, abstained: bool
    ) -> None:
        verdict = self.verdict(right).abstaining(0.6)
        assert (verdict.abstained, verdict.answer) == (abstained, None if abstained else "4")
        plain = json.loads(json.dumps(verdict.to_dict()))
        assert plain["abstained"] is abstained
        assert plain["tally"][0]["answer"] == "4"
        assert ("<b>abstained</b>" in verdict._repr_html_()) == abstained

    @pytest.mark.parametrize("below", [0.0, -0.1, 60.0, float("nan")])
    def test_a_percentage_or_nonsense_is_refused_before_it_withholds_everything(
        self, below: float
    ) -> None:
        with pytest.raises(InvalidSettingError, match="below must be between"):
            self.verdict(0.9).abstaining(below)

    def test_no_answer_is_no_abstention(self) -> None:
        verdict = live(Majority(2), [Script.even("Hm.")], 2).abstaining(0.6)
        assert (verdict.abstained, verdict.answer) == (False, None)
