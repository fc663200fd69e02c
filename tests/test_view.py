"""What people see, fed with the events of real runs on the scripted engine."""

import io
import re

import anyio
import numpy as np
import pytest
from rich.console import Console

from conviction.answers import kind
from conviction.cli.progress import PlainView, summary
from conviction.cli.view import Curve, LiveView
from conviction.core import Question
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import StreamError
from conviction.events import Listener
from conviction.policies import DeepConfLow, Majority, Policy
from conviction.thinking import deliberate
from conviction.verdict import Verdict

CONTROL = re.compile(r"\x1b|\r|\x08")


def traces() -> list[Script]:
    random = np.random.default_rng(3)
    answers = [5, 5, 4, 5, 3, 5, 5, 4, 5, 5, 7, 5]
    return [
        Script(
            f"Answer: {answer}",
            random.gamma(9.0, 1.2 if answer == 5 else 0.7, 60).astype(np.float32),
        )
        for answer in answers
    ]


def run(policy: Policy, listener: Listener, scripts: list[Script] | None = None) -> Verdict:
    async def main() -> Verdict:
        return await deliberate(
            Question.ask("How many?"),
            engine=ScriptedEngine(scripts or traces(), concurrency=4),
            policy=policy,
            answers=kind("number"),
            on_event=listener,
        )

    return anyio.run(main)


def terminal(width: int = 100, height: int = 40) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, height=height), out


def last_picture(console: Console, view: LiveView) -> str:
    with console.capture() as capture:
        console.print(view.picture())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get())


def test_the_live_view_shows_every_trace_its_curve_the_threshold_and_the_vote() -> None:
    console, _ = terminal()
    with LiveView(console) as view:
        verdict = run(DeepConfLow(budget=12), view.on_event)
    picture = last_picture(console, view)
    assert "stopped: low confidence" in picture
    assert f"threshold {verdict.threshold:.2f}" in picture
    assert f"window {verdict.window}" in picture
    assert "█" in picture
    for trace in verdict.traces:
        assert re.search(rf"^ +{trace.id} +[▁-█]+ +{trace.tokens} ", picture, re.MULTILINE)
    assert f"{verdict.usage.generated:,} tokens of about" in picture


def test_a_wide_terminal_also_shows_how_safe_the_lead_is() -> None:
    for width, shown in ((110, True), (100, False)):
        console, _ = terminal(width)
        with LiveView(console) as view:
            run(Majority(4), view.on_event, [Script.even("Answer: 5")])
        words = "asked on and on, it would lead, right or wrong: 97%"
        assert (words in last_picture(console, view)) == shown


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 14), (40, 10), (120, 20)])
def test_the_picture_always_fits_the_terminal(width: int, height: int) -> None:
    console, _ = terminal(width, height)
    scripts = [Script.even(f"Answer: {n // 3}") for n in range(40)]
    with LiveView(console) as view:
        run(Majority(40), view.on_event, scripts)
    lines = last_picture(console, view).splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert "tokens" in lines[-1]
    assert any("█" in line for line in lines[-6:])


@pytest.mark.parametrize("height", [10, 14])
def test_a_small_terminal_shows_the_latest_traces_and_says_how_many_are_hidden(
    height: int,
) -> None:
    console, _ = terminal(height=height)
    with LiveView(console) as view:
        run(Majority(12), view.on_event)
    picture = last_picture(console, view)
    assert re.search(r"… and \d+ more", picture)
    assert re.search(r"^ +11 ", picture, re.MULTILINE)


def test_answers_that_vote_stand_out_from_those_that_do_not() -> None:
    console, _ = terminal()
    weak = [Script.even("Answer: 4", confidence=3.0)]
    with LiveView(console) as view:
        run(DeepConfLow(budget=4, warmup=4), view.on_event, [Script.even("Answer: 5")] * 3 + weak)
    with console.capture() as capture:
        console.print(view.picture())
    rows = [line for line in capture.get().splitlines() if "done" in line]
    assert [("\x1b[1m5" in row, "\x1b[2m4" in row) for row in rows] == [(True, False)] * 3 + [
        (False, True)
    ]


def test_text_from_the_model_cannot_draw_on_the_terminal() -> None:
    evil = "Answer: [bold red]5[/] \x1b[2J \x9b2J \u202e"
    scripts = [Script.even(evil)]
    for make in (PlainView, LiveView):
        console, out = terminal()
        view = make(console)

        async def main(view: PlainView | LiveView = view) -> None:
            await deliberate(
                Question.ask("How many?"),
                engine=ScriptedEngine(scripts),
                policy=Majority(1),
                answers=kind("text"),
                on_event=view.on_event,
            )

        anyio.run(main)
        if isinstance(view, LiveView):
            console.print(view.picture())
        assert not re.search("\x1b\\[2J|\x9b|\u202e", out.getvalue())


def test_plain_lines_hold_no_control_codes_and_name_each_fate() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    verdict = run(DeepConfLow(budget=12), PlainView(console).on_event)
    text = out.getvalue()
    assert not CONTROL.search(text)
    assert len(re.findall(r"^trace \d+: ", text, re.MULTILINE)) == len(verdict.traces)
    assert f"threshold {verdict.threshold:.2f} over groups of {verdict.window} tokens" in text


def test_the_summary_adds_up_and_calls_an_estimate_an_estimate() -> None:
    verdict = run(DeepConfLow(budget=12), lambda _: None)
    line = summary(verdict)
    counts = [int(n) for n in re.findall(r"(\d+) (?:finished|stopped|cancelled)", line)]
    assert sum(counts) == len(verdict.traces)
    assert f"{verdict.usage.generated:,} tokens" in line
    assert "(estimate)" in line


def test_a_majority_claims_no_saving() -> None:
    line = summary(run(Majority(12), lambda _: None))
    assert "no tokens saved" in line
    assert "estimate" not in line


def test_a_curve_keeps_its_beginning_and_a_bounded_number_of_points() -> None:
    curve = Curve(4)
    for value in np.linspace(1.0, 9.0, 5000, dtype=np.float32):
        curve.push(np.array([value], np.float32))
    line = curve.draw(1.0, 9.0)
    assert 8 <= len(line) <= 32
    assert line[0] == "▁"
    assert line[-1] == "█"
    assert list(line) == sorted(line)


def test_a_curve_of_unknown_confidences_is_empty() -> None:
    curve = Curve(4)
    curve.push(np.full(9, np.nan, np.float32))
    assert curve.draw(0.0, 1.0) == ""


def test_a_trace_that_is_begun_again_starts_from_nothing_and_its_lost_tokens_stay_in_the_sum() -> (
    None
):
    cut = StreamError(tried="read", found="the line was cut", remedy="Wait.")
    broken = Script("Answer: 5", np.ones(40, np.float32), fault=cut, fault_after=30)
    console, _ = terminal()
    with LiveView(console) as view:
        verdict = run(Majority(budget=2), view.on_event, [broken, *traces()[:1]])
    lost = verdict.traces[0].lost_tokens
    assert lost == 60
    picture = last_picture(console, view)
    assert re.search(r"^ +0 .* 30 +failed", picture, re.MULTILINE)
    assert f"{60 + 30 + 60} tokens" in picture
    out = io.StringIO()
    run(Majority(budget=2), PlainView(Console(file=out)).on_event, [broken, *traces()[:1]])
    assert out.getvalue().count("trace 0: begun again after 30 tokens: read: the line was cut") == 2
