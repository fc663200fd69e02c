"""The lab's findings as one HTML file that loads nothing."""

from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite

from conviction.lab import figures
from conviction.lab.columns import COLUMNS, count, percentage
from conviction.lab.comparison import Row
from conviction.lab.diagnosis import Diagnosis
from conviction.lab.study import Study

_INTERVALS = (
    "Intervals are 95%, by bootstrap over questions and draws; where all questions agree, of "
    "shares Wilson's, and of differences none if no question differs."
)
_PLAIN = (
    " The log-probability, the mean over a trace's tokens, is there for comparison: no policy "
    "filters by it."
)
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.facts, figcaption, .note { color: color-mix(in srgb, CanvasText 70%, transparent); }
.advice { border-left: 4px solid #2f8fd0; padding: .3rem 0 .3rem .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  margin: .8rem 0; }
th, td { text-align: right; padding: .25rem .7rem .25rem 0; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
small { color: var(--soft); }
figure { margin: .8rem 0; }
svg { max-width: 100%; height: auto; overflow: visible; }
"""


def study_page(study: Study, *, model: str, source: str) -> str:
    """A comparison of replays of a model's traces from some source as a page.

    Raises:
        MissingExtraError: what draws the figures is not installed.
    """
    at_once = ", ".join(count(one) if isfinite(one) else "all" for one in study.concurrencies)
    facts = (
        f"{len(study.trials.question_ids)} questions, {study.traces} recorded traces each "
        f"({source}); {study.repeats} random draws per question, the same for every policy; "
        f"{at_once} traces at once. {_INTERVALS} Differences are paired."
    )
    refused = [f"{one.candidate.label} was left out: {one.reason}." for one in study.refused]
    parts = [f'<p class="facts">{escape(facts)}</p>', *_notes((*study.notes, *refused))]
    if study.front:
        parts += _front_parts(study)
    else:
        parts += [
            "<h2>What each policy gets right, and what it costs</h2>",
            _figure(
                figures.accuracy_against("tokens", study.rows),
                "Up is more often right, left is cheaper. Bars are 95% intervals.",
            ),
            _figure(
                figures.accuracy_against("path", study.rows),
                "The same against time: tokens that have to be generated one after another.",
            ),
        ]
        if len(study.rows) > 1:
            parts += [
                f"<h2>Is the difference to {escape(study.baseline.label)} real?</h2>",
                _figure(
                    figures.differences(study.rows),
                    "Differences on the same draws. Where the bar crosses the dashed line, none "
                    "could be shown.",
                ),
            ]
        parts += ["<h2>All figures</h2>", _study_table(study.rows, study)]
    return _page(f"{model}: policies compared on recorded traces", parts)


def diagnosis_page(diagnosis: Diagnosis, *, model: str, source: str) -> str:
    """A diagnosis of a model's traces from some source as a page.

    Raises:
        MissingExtraError: what draws the figures is not installed.
    """
    facts = (
        f"{diagnosis.questions} questions ({source}), {diagnosis.mixed} of them with both right "
        f"and wrong votes; {diagnosis.repeats} draws of {diagnosis.budget} traces per question. "
        f"{_INTERVALS}"
    )
    header = ("metric", "window", "kept", "better", "worse", "gain, points")
    rows = [
        (
            str(one.metric),
            str(one.window or "-"),
            f"{one.keep:.0%}",
            percentage(one.better),
            percentage(one.worse),
            percentage(one.difference, signed=True),
        )
        for one in diagnosis.filters
    ]
    chose, others = diagnosis.choice.questions
    filters = (
        f"Share of {others} questions, in percent, whose verdict becomes right (better) or wrong "
        f"(worse) against majority. The windows are those that rank best on the {chose} others."
    )
    parts = [
        f'<p class="facts">{escape(facts)}</p>',
        *_notes(diagnosis.notes),
        f'<p class="advice">{escape(diagnosis.advice)}</p>',
        "<h2>Does confidence rank right traces above wrong ones?</h2>",
        _ranking_part(diagnosis),
        "<h2>What does keeping the most confident traces change?</h2>",
        f"<p>{escape(filters)}</p>",
        _table(header, rows),
        "<h2>How far can the share of the vote be trusted?</h2>",
        _calibration_part(diagnosis),
    ]
    return _page(f"{model}: does confidence help?", parts)


def _ranking_part(diagnosis: Diagnosis) -> str:
    if not diagnosis.mixed:
        return "<p>No question has both right and wrong votes, so there is nothing to rank.</p>"
    return _figure(
        figures.rankings(diagnosis),
        "Among the votes on one question, mean over all questions (AUROC). This describes these "
        "traces: the best of so many looks better than it is."
        + (_PLAIN if diagnosis.log_probability else ""),
    )


def _calibration_part(diagnosis: Diagnosis) -> str:
    if not diagnosis.calibration:
        return "<p>No trace voted, so there is nothing to compare.</p>"
    return _figure(
        figures.calibration(diagnosis),
        "On the dashed line, majority is right as often as its leader's share says. Mean "
        f"distance from it: {100 * diagnosis.calibration_error:.0f} points.",
    )


def _front_parts(study: Study) -> list[str]:
    front = study.front
    assert front is not None  # noqa: S101  # the caller looked
    chosen, others = front.questions
    caption = (
        f"Large: the policies that no other beat on the {chosen} questions that chose them; all "
        f"are drawn as they came out on the {others} other questions, with 95% intervals."
    )
    picked = sorted((there for _, there in front.rows), key=lambda row: row.tokens.value)
    return [
        f"<h2>The front of {len(study.rows)} policies: accuracy and tokens</h2>",
        _figure(figures.accuracy_against("tokens", study.rows, front), caption),
        _figure(
            figures.accuracy_against("path", study.rows, front),
            "The same policies against time: tokens generated one after another.",
        ),
        f"<h2>The front on the {others} questions that did not choose it</h2>",
        _study_table(picked, study),
        f"<h2>All {len(study.rows)} policies on all questions</h2>",
        '<p class="note">The best of so many looks better here than it is.</p>',
        _study_table(study.rows, study),
    ]


def _notes(notes: Iterable[str]) -> list[str]:
    return [f'<p class="note">{escape(note)}</p>' for note in notes]


def _study_table(rows: Sequence[Row], study: Study) -> str:
    several = len(study.concurrencies) > 1
    headings = [one.page_heading or one.heading for one in COLUMNS]
    header = (
        "policy",
        *(("at once",) if several else ()),
        *(one.format(baseline=study.baseline.label) for one in headings),
    )
    body = [
        (
            row.candidate.label,
            *((f"{row.candidate.concurrency:,.0f}",) if several else ()),
            *((one.page_text or one.text)(row.figures[one.name]) for one in COLUMNS),
        )
        for row in rows
    ]
    return _table(header, body)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    value, bracket, interval = escape(text).partition(" [")
    return f"{value} <small>[{interval}</small>" if bracket else value


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _page(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
