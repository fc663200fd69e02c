"""The live page in a real browser: ask, watch, read, go back and forth, save."""

import os
import re
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import axe
import page_runs
import pytest
from chromium import Watched, executable, running_browser
from cutting_proxy import in_front_of
from playwright.sync_api import Browser, Page, expect
from server_app import asking, served_in_thread

from conviction.cli.main import run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.timeout(120),
]

expect.set_options(timeout=20_000)

EXAMPLES = Path(__file__).parents[1] / "examples"
CLASS = re.compile(r"\bdecided\b")


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def folder() -> Path | None:
    """Where pictures are kept: what CONVICTION_SCREENSHOTS names; None for nowhere."""
    wanted = os.environ.get("CONVICTION_SCREENSHOTS")
    if not wanted:
        return None
    kept = Path(wanted)
    kept.mkdir(parents=True, exist_ok=True)
    return kept


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Generator[Serve]:
    """Starts servers, which outlive their pages; gives their addresses."""
    with ExitStack() as running:

        def start(held: page_runs.Held | None = None, **settings: Any) -> str:
            engine = settings.pop("engine", None) or page_runs.engine(held)
            return f"{running.enter_context(served_in_thread(engine, **settings))}/"

        yield start


@pytest.fixture
def opened(browser: Browser, serve: Serve) -> Generator[Callable[..., Watched]]:
    """Opens pages, and looks afterwards whether they misbehaved."""
    del serve  # Pages are closed before their servers.
    pages: list[Watched] = []
    contexts: list[Any] = []

    def open_page(url: str, *, home: str | None = None, **options: Any) -> Watched:
        options = {"viewport": {"width": 1280, "height": 860}, **options}
        context = browser.new_context(**options)
        contexts.append(context)
        watched = Watched.of(context.new_page(), home)
        pages.append(watched)
        watched.page.goto(url)
        return watched

    yield open_page
    for context in contexts:
        context.close()
    for watched in pages:
        assert watched.errors == []
        assert watched.strayed == []


def ask(
    page: Page,
    question: str = page_runs.QUESTION,
    *,
    policy: str = "deepconf-high",
    budget: int = 16,
) -> None:
    page.fill("#question", question)
    page.select_option("#policy", policy)
    page.fill("#budget", str(budget))
    page.click("#think")


def decided(page: Page) -> None:
    expect(page.locator("#run")).to_have_class(CLASS)


def rows(page: Page) -> list[str]:
    return page.locator(".row:visible").evaluate_all("all => all.map(row => row.ariaLabel)")


def test_a_question_is_asked_watched_and_answered(
    opened: Callable[..., Watched], serve: Serve, folder: Path | None
) -> None:
    held = page_runs.Held(after=650, seconds=0.002)
    url = serve(held)
    watched = opened(url, home=url)
    page = watched.page
    watched.keep(folder, "welcome")
    ask(page)
    expect(page.locator("#asked")).to_have_text(page_runs.QUESTION)
    expect(page.get_by_role("heading", name="Leading so far")).to_be_visible()
    expect(page.locator("#chart canvas")).to_be_visible()
    expect(page.get_by_role("img", name="threshold")).to_be_visible()
    watched.keep(folder, "watching")
    held.released.set()
    decided(page)
    expect(page.locator("#answer")).to_have_text("36")
    expect(page.locator("#standing")).to_contain_text("of the vote")
    expect(page.locator("#lead")).to_contain_text("right or wrong")
    expect(page.locator("#said")).to_contain_text("Verdict: 36")
    told = rows(page)
    assert any("voted" in row and "answer 36" in row for row in told)
    assert any("stopped: low confidence" in row for row in told)
    expect(page.locator("#past-list button")).to_have_count(1)
    expect(page.locator("#past-list")).to_contain_text("36")
    watched.keep(folder, "verdict")


def test_a_trace_is_read_with_its_least_sure_passages_marked(
    opened: Callable[..., Watched], serve: Serve, folder: Path | None
) -> None:
    url = serve()
    watched = opened(url, home=url)
    page = watched.page
    ask(page, policy="majority")
    decided(page)
    page.locator("#row-4").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    text = page.locator("#trace-text")
    expect(text).to_contain_text("The answer is \\boxed{34}.")
    marked = text.locator("mark.least").all_inner_texts()
    assert marked
    assert any("sure" in one or "third" in one or "maybe" in one for one in marked)
    watched.keep(folder, "reading")
    page.get_by_role("button", name="Trace after").click()
    expect(page.locator("#trace-title")).to_have_text("Trace 5")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#traces")).to_be_focused()


def test_what_a_model_writes_is_text_and_never_markup(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    from conviction.engines.scripted import Script, ScriptedEngine

    evil = "<img src=x onerror=\"document.title='taken'\"></script><b>bold</b>"
    scripts = [Script.even(f"{evil} Answer: {evil}", tokens=60)]
    url = serve(engine=ScriptedEngine(scripts))
    watched = opened(url, home=url)
    page = watched.page
    page.fill("#question", evil)
    page.get_by_text("More", exact=True).click()
    page.select_option("#answers", "text")
    page.click("#think")
    decided(page)
    page.locator("#row-0").click()
    expect(page.locator("#trace-text")).to_contain_text(evil)
    expect(page.locator("#asked")).to_have_text(evil)
    assert page.locator("#run img, #run b:not(#fates b), #trace-text img").count() == 0
    assert page.title() == "conviction"
    page.keyboard.press("Escape")
    saved = save(page)
    played = opened(saved.as_uri(), offline=True)
    expect(played.page.locator("#asked")).to_have_text(evil)
    assert played.page.title() == "conviction"


def save(page: Page) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as one file").click()
    path = Path(download.value.path())
    return path.rename(path.with_suffix(".html"))


def test_everything_can_be_done_with_the_keyboard_alone(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    url = serve()
    page = opened(url, home=url).page
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("How many rolls are left?")
    page.keyboard.press("Enter")
    decided(page)
    expect(page.locator("#traces")).to_be_focused()
    page.reload()
    decided(page)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#traces")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    active = page.locator("#traces").get_attribute("aria-activedescendant")
    assert active == "row-2"
    expect(page.locator("#row-2")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    # At its own pace the run would be over before anybody looks.
    page.evaluate("document.querySelector('#speed option:checked').value = '0.001'")
    page.keyboard.press(" ")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    page.keyboard.press(" ")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")


def test_a_run_is_cancelled_and_ends_with_the_votes_it_has(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    held = page_runs.Held(after=1000)
    url = serve(held)
    page = opened(url, home=url).page
    ask(page, policy="majority")
    expect(page.get_by_role("heading", name="Leading so far")).to_be_visible()
    page.get_by_role("button", name="End now").click()
    decided(page)
    expect(page.locator("#ended")).to_contain_text("cancelled")
    assert any("cancelled" in row for row in rows(page))
    held.released.set()


def test_a_page_that_is_loaded_again_in_the_middle_catches_up(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    held = page_runs.Held(after=650)
    url = serve(held)
    watched = opened(url, home=url)
    page = watched.page
    ask(page)
    expect(page.get_by_role("heading", name="Leading so far")).to_be_visible()
    page.reload()
    expect(page.locator("#asked")).to_have_text(page_runs.QUESTION)
    expect(page.get_by_role("heading", name="Leading so far")).to_be_visible()
    held.released.set()
    decided(page)
    expect(page.locator("#answer")).to_have_text("36")


def test_a_run_that_is_over_has_the_axes_that_it_has_when_it_is_opened_again(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    axes = "(({ tokens, low, high }) => [tokens, low, high])(conviction.stage.scales)"
    held = page_runs.Held(after=650)
    url = serve(held)
    page = opened(url, home=url).page
    ask(page)
    expect(page.get_by_role("heading", name="Leading so far")).to_be_visible()
    held.released.set()
    decided(page)
    watched_live = page.evaluate(axes)
    page.reload()
    decided(page)
    assert page.evaluate(axes) == watched_live


def test_a_broken_connection_is_made_again(opened: Callable[..., Watched], serve: Serve) -> None:
    held = page_runs.Held(after=650)
    with in_front_of(serve(held)) as proxy:
        watched = opened(proxy.url, home=proxy.url)
        page = watched.page
        ask(page)
        expect(page.get_by_role("heading", name="Leading so far")).to_be_visible()
        assert proxy.cut() > 0
        expect(page.locator("#said")).to_contain_text("Connected again")
        held.released.set()
        decided(page)
        expect(page.locator("#answer")).to_have_text("36")
        streams = [one for one in watched.asked if one.endswith("/events")]
        assert len(streams) == 2
        # The browser itself reports the connection that broke.
        assert all("net::ERR" in one for one in watched.errors)
        page.close()
        watched.errors.clear()


def test_a_past_verdict_is_shown_again_and_played_back(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    url = serve()
    page = opened(url, home=url).page
    for policy in ("majority", "deepconf-high"):
        ask(page, policy=policy)
        expect(page.locator("#facts")).to_contain_text(policy)
        decided(page)
    page.locator("#past-list button").nth(1).click()
    expect(page.locator("#facts")).to_contain_text("majority")
    decided(page)
    page.locator("#scrub").fill("300")
    expect(page.locator("#run")).not_to_have_class(CLASS)
    page.select_option("#speed", "64")
    page.get_by_role("button", name="Play", exact=True).click()
    decided(page)


def test_what_others_ask_comes_into_the_list_by_itself_and_takes_no_focus_away(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    url = serve()
    page = opened(url, home=url).page
    runs = page.locator("#past-list button")
    for count in (1, 2):
        program = page.request.post(f"{url}v1/chat/completions", data=asking(f"Question {count}"))
        assert program.ok
        expect(runs).to_have_count(count)
        if count == 1:
            runs.focus()
    expect(page.get_by_role("button", name="Question 1")).to_be_focused()
    page.keyboard.press("Enter")
    decided(page)
    expect(page.locator("#asked")).to_have_text("Question 1")


def test_the_list_shows_only_those_that_were_asked_for(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    url = serve()
    page = opened(url, home=url).page
    ask(page)
    decided(page)
    button = page.get_by_role("button", name=re.compile("^Stopped"))
    count = int(button.locator("span").inner_text())
    button.click()
    assert count > 0
    expect(page.locator(".row:visible")).to_have_count(count)
    assert all("stopped: low confidence" in row for row in rows(page))


def test_what_the_server_refuses_is_said(opened: Callable[..., Watched], serve: Serve) -> None:
    url = serve()
    watched = opened(url, home=url)
    page = watched.page
    page.fill("#question", "How many?")
    page.get_by_text("More", exact=True).click()
    page.fill("#settings", "bar=7")
    page.click("#think")
    expect(page.get_by_role("alert")).to_contain_text("bar must be")
    assert all("400" in error for error in watched.errors)
    watched.errors.clear()


def test_a_server_with_keys_asks_for_one(
    opened: Callable[..., Watched], serve: Serve, folder: Path | None
) -> None:
    url = serve(keys={"sesame-open": "ali"})
    watched = opened(url, home=url)
    page = watched.page
    page.fill("#key", "wrong-key-here")
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("alert")).to_contain_text("does not know")
    page.fill("#key", "sesame-open")
    watched.keep(folder, "key")
    page.get_by_role("button", name="Use this key").click()
    ask(page)
    decided(page)
    assert all("401" in error for error in watched.errors)
    watched.errors.clear()
    assert not [one for one in watched.asked if "sesame" in one]


def test_a_saved_run_plays_from_one_file_without_a_network(
    opened: Callable[..., Watched], serve: Serve, folder: Path | None
) -> None:
    url = serve()
    page = opened(url, home=url).page
    ask(page)
    decided(page)
    saved = save(page)
    watched = opened(saved.as_uri(), offline=True)
    page = watched.page
    decided(page)
    expect(page.locator("#answer")).to_have_text("36")
    page.locator("#scrub").fill("500")
    expect(page.locator("#run")).not_to_have_class(CLASS)
    watched.keep(folder, "saved")
    page.locator("#row-1").click()
    expect(page.locator("#trace-text")).to_contain_text("The answer is")
    assert [one for one in watched.asked if not one.startswith("data:")] == [saved.as_uri()]


def test_a_recording_is_played_from_one_file(
    opened: Callable[..., Watched], folder: Path | None, tmp_path: Path
) -> None:
    path = tmp_path / "recording.html"
    pool = str(EXAMPLES / "gsm8k-qwen2.5-coder-0.5b.parquet")
    assert run(["view", pool, "--policy", "deepconf-low", "--html", str(path), "--quiet"]) == 0
    watched = opened(path.as_uri(), offline=True)
    page = watched.page
    decided(page)
    expect(page.locator("#gold")).to_contain_text("18")
    page.locator("#row-1").click()
    expect(page.locator("#trace-note")).to_contain_text("does not hold what its traces wrote")
    page.keyboard.press("Escape")
    page.select_option("#speed", "1")
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.locator("#run")).not_to_have_class(CLASS)
    watched.keep(folder, "recording")
    page.select_option("#speed", "64")
    decided(page)


SPOKEN = {
    "en-US": ("page", page_runs.QUESTION, "Verdict", "평결"),
    "ko-KR": ("page.ko", page_runs.QUESTION_IN_KOREAN, "평결", "Verdict"),
}
"""By the browser's language: picture, question, a word of the page, the same after a switch."""


@pytest.mark.parametrize("locale", SPOKEN)
def test_the_page_speaks_the_languages_of_the_pictures_in_the_readmes(
    opened: Callable[..., Watched], serve: Serve, folder: Path | None, locale: str
) -> None:
    picture, question, title, other = SPOKEN[locale]
    url = serve(page_runs.Held(seconds=0.002))
    watched = opened(url, home=url, locale=locale)
    page = watched.page
    expect(page.locator("html")).to_have_attribute("lang", locale[:2])
    ask(page, question)
    decided(page)
    expect(page.locator("#verdict-title")).to_have_text(title)
    watched.keep(folder, picture)
    page.locator("#language").click()
    expect(page.locator("#verdict-title")).to_have_text(other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(
    opened: Callable[..., Watched], serve: Serve, folder: Path | None, scheme: str
) -> None:
    url = serve()
    watched = opened(url, home=url, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = watched.page
    ask(page)
    decided(page)
    watched.keep(folder, f"narrow-{scheme}", full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide == 0
    outside = page.evaluate(
        """() => [...document.querySelectorAll('#run *')].filter(one => {
          const box = one.getBoundingClientRect();
          return box.width && box.right > innerWidth + 1 && !one.closest('.rows, .chart, .sr');
        }).map(one => one.id || one.className)"""
    )
    assert outside == []


def test_light_and_dark_can_be_chosen_and_are_remembered(
    opened: Callable[..., Watched], serve: Serve, folder: Path | None
) -> None:
    url = serve()
    watched = opened(url, home=url, color_scheme="light")
    page = watched.page
    ask(page)
    decided(page)
    page.locator("#theme").click()
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    assert page.evaluate(scheme) == "dark"
    watched.keep(folder, "dark")
    page.reload()
    decided(page)
    assert page.evaluate(scheme) == "dark"


PLAYED = """() => {
  const { stage } = window.conviction;
  const draw = stage.draw.bind(stage);
  let drawn = 0;
  stage.draw = (now) => { drawn += 1; draw(now); };
  window.requestAnimationFrame = () => 0;
  stage.player.seek(0);
  stage.player.speed = stage.tape.at / 3000;
  stage.player.play(stage.tape);
  stage.wake();
  for (let now = 0; now <= 3000; now += 20) stage.frame(stage.last + 20);
  return drawn;
}"""
"""Plays a run in three seconds of fifty frames, on a clock of its own; how often it was drawn."""


def test_whoever_wants_less_motion_gets_fewer_pictures(
    opened: Callable[..., Watched], serve: Serve
) -> None:
    counts = {}
    for motion in ("no-preference", "reduce"):
        url = serve()
        page = opened(url, home=url, reduced_motion=motion).page
        ask(page, policy="majority")
        decided(page)
        counts[motion] = page.evaluate(PLAYED)
    assert counts["no-preference"] > 100
    assert counts["reduce"] < 10


AXE = """async () => {
  const runOnly = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"];
  const { violations } = await axe.run(document, { runOnly });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map((node) => `${id}: ${node.target} ${node.failureSummary}`));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_from_using_it(
    opened: Callable[..., Watched], serve: Serve, tmp_path: Path, scheme: str
) -> None:
    try:
        script = axe.source(tmp_path)
    except axe.UnavailableError as error:
        pytest.skip(str(error))
    url = serve()
    watched = opened(url, home=url, color_scheme=scheme)
    page = watched.page
    page.get_by_text("More", exact=True).click()
    assert found_by_axe(page, script) == []
    ask(page)
    decided(page)
    assert found_by_axe(page, script) == []
    page.locator("#row-4").click()
    expect(page.locator("#trace-text")).to_contain_text("A third")
    assert found_by_axe(page, script) == []


def found_by_axe(page: Page, script: str) -> list[str]:
    page.evaluate(script)
    return page.evaluate(AXE)
