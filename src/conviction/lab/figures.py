"""Figures of the lab as SVG, drawn with altair, for pages that load nothing.

Text and axes take the colour of the surrounding text, so that they read on light and on dark.
"""

import re
from collections.abc import Sequence
from importlib import import_module
from math import floor, isfinite, log10
from typing import Any, Literal

from conviction.errors import MissingExtraError
from conviction.lab.comparison import Front, Row
from conviction.lab.diagnosis import Diagnosis
from conviction.lab.statistics import Estimate

Cost = Literal["tokens", "path"]

WIDTH = 620
_COSTS = {
    "tokens": "tokens per question (logarithmic)",
    "path": "tokens one after another before the verdict (logarithmic)",
}
# Okabe and Ito's colours that stand out from white and from black, for eyes of all kinds.
_COLOURS = (
    "#2f8fd0",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8a8a8a",
    "#9467bd",
    "#a0522d",
)
_TEXT = "#010203"
"""Stands for the colour of the surrounding text until the figure is rendered."""


def check_installed() -> None:
    """Find out before minutes of work whether the figures can be drawn.

    Raises:
        MissingExtraError: what draws them is not installed.
    """
    _altair()
    _extra("vl_convert")


def accuracy_against(cost: Cost, rows: Sequence[Row], front: Front | None = None) -> str:
    """Accuracy against what it costs, one point per policy.

    With the front of a sweep, on the questions that did not choose it.
    """
    altair = _altair()
    if front is not None:
        rows = front.elsewhere
    marked = front.chosen.tolist() if front else [True] * len(rows)
    data: list[dict[str, Any]] = [
        {
            "family": row.candidate.policy.name,
            "label": row.candidate.label,
            "cost": getattr(row, cost).value,
            "marked": mark,
            **_percent(row.accuracy),
        }
        for row, mark in zip(rows, marked, strict=True)
        if getattr(row, cost).value > 0
    ]
    chart = altair.Chart(altair.Data(values=data))
    x = altair.X(
        "cost:Q",
        title=_COSTS[cost],
        scale=altair.Scale(type="log", nice=False, padding=16),
        axis=altair.Axis(values=_round_numbers([row["cost"] for row in data]), format=",d"),
    )
    colour = altair.Color(
        "family:N",
        title="policy",
        sort=list(dict.fromkeys(row["family"] for row in data)),
        scale=altair.Scale(range=list(_COLOURS)),
        legend=altair.Legend(symbolOpacity=1, symbolType="circle", symbolStrokeWidth=0),
    )
    marked_only = chart.transform_filter("datum.marked")
    layers = [
        marked_only.mark_rule(strokeWidth=1.5, opacity=0.75).encode(
            x=x, y=_y("low", "accuracy, %"), y2="high:Q", color=colour
        ),
        chart.transform_filter("!datum.marked")
        .mark_circle(size=22, opacity=0.35)
        .encode(x=x, y=_y("value", "accuracy, %"), color=colour),
        marked_only.mark_circle(size=90, opacity=1).encode(
            x=x, y=_y("value", "accuracy, %"), color=colour
        ),
    ]
    if front is not None and cost == "tokens":
        line = marked_only.mark_line(strokeWidth=1, strokeDash=[4, 3], color=_TEXT, opacity=0.5)
        layers.insert(0, line.encode(x=x, y=_y("value", "accuracy, %"), order="cost:Q"))
    return _rendered(altair.layer(*layers), height=340)


def differences(rows: Sequence[Row]) -> str:
    """Each policy's accuracy less the baseline's, with its interval."""
    return _dots(
        [(row.candidate.label, row.difference) for row in rows[1:]],
        "points of accuracy against the baseline",
        0.0,
    )


def rankings(diagnosis: Diagnosis) -> str:
    """AUROC by metric and window, and that of plain likelihood where it was recorded."""
    plain = diagnosis.log_probability
    return _dots(
        [
            *(
                (f"{one.metric}, window {one.window}" if one.window else str(one.metric), one.votes)
                for one in diagnosis.rankings
            ),
            *([("log-probability (for comparison)", plain.votes)] if plain else ()),
        ],
        "pairs in which the right trace is the more confident, % (chance: 50)",
        50.0,
    )


def calibration(diagnosis: Diagnosis) -> str:
    """How often majority is right against its leader's share of the vote."""
    altair = _altair()
    data = [
        {"share": 100 * one.share, "questions": one.questions, **_percent(one.accuracy)}
        for one in diagnosis.calibration
    ]
    ends = altair.Chart(altair.Data(values=[{"x": 0, "y": 0}, {"x": 100, "y": 100}]))
    percent = altair.Scale(domain=[0, 100])
    x = altair.X("share:Q", title="leader's share of the vote, %", scale=percent)
    y = altair.Y("value:Q", title="questions that majority gets right, %", scale=percent)
    chart = altair.Chart(altair.Data(values=data))
    return _rendered(
        altair.layer(
            ends.mark_line(strokeDash=[4, 3], strokeWidth=1, color=_TEXT, opacity=0.5).encode(
                x="x:Q", y="y:Q"
            ),
            chart.mark_rule(strokeWidth=1.5, opacity=0.75, color=_COLOURS[0]).encode(
                x=x, y=altair.Y("low:Q", scale=percent), y2="high:Q"
            ),
            chart.mark_circle(opacity=1, color=_COLOURS[0]).encode(
                x=x,
                y=y,
                size=altair.Size(
                    "questions:Q", title="questions", scale=altair.Scale(range=[20, 320])
                ),
            ),
        ),
        height=340,
    )


def _dots(estimates: Sequence[tuple[str, Estimate]], title: str, reference: float) -> str:
    """One line per name: a dot, its interval, and a line for what means no difference."""
    altair = _altair()
    data = [
        {"label": label, **_percent(estimate)}
        for label, estimate in estimates
        if isfinite(estimate.value)
    ]
    chart = altair.Chart(altair.Data(values=data))
    y = altair.Y("label:N", title=None, sort=None, axis=altair.Axis(labelLimit=360))
    zero = altair.Chart(altair.Data(values=[{"x": reference}]))
    return _rendered(
        altair.layer(
            zero.mark_rule(strokeDash=[4, 3], strokeWidth=1, color=_TEXT, opacity=0.5).encode(
                x="x:Q"
            ),
            chart.mark_rule(strokeWidth=2, opacity=0.75, color=_COLOURS[0]).encode(
                x=altair.X("low:Q", title=title, scale=altair.Scale(zero=False, padding=12)),
                x2="high:Q",
                y=y,
            ),
            chart.mark_circle(size=70, opacity=1, color=_COLOURS[0]).encode(x="value:Q", y=y),
        ),
        height=max(24 * len(data), 48),
    )


def _round_numbers(values: Sequence[float]) -> list[int]:
    """1, 2 and 5 times powers of ten that cover the values."""
    if not values:
        return []
    powers = range(floor(log10(min(values))), floor(log10(max(values))) + 1)
    steps = [step * 10 ** max(power, 0) for power in powers for step in (1, 2, 5)]
    return [step for step in dict.fromkeys(steps) if min(values) / 2 <= step <= max(values) * 2]


def _percent(estimate: Estimate) -> dict[str, float]:
    known = isfinite(estimate.low)
    return {
        "value": 100 * estimate.value,
        "low": 100 * (estimate.low if known else estimate.value),
        "high": 100 * (estimate.high if known else estimate.value),
    }


def _y(field: str, title: str) -> Any:
    altair = _altair()
    return altair.Y(f"{field}:Q", title=title, scale=altair.Scale(zero=False, padding=12))


def _rendered(chart: Any, *, height: int) -> str:
    """The chart as SVG without an XML header or a namespace, which HTML does not need."""
    plain = {"labelColor": _TEXT, "titleColor": _TEXT}
    styled = (
        chart.properties(width=WIDTH, height=height, background="transparent")
        # Room for fonts that are wider than the one that was measured.
        .properties(padding={"left": 30, "right": 60, "top": 8, "bottom": 8})
        .configure(font="Arial, Helvetica, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            **plain,
            domainColor=_TEXT,
            tickColor=_TEXT,
            domainOpacity=0.5,
            tickOpacity=0.5,
            tickCount=8,
            gridColor=_TEXT,
            gridOpacity=0.12,
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            titlePadding=10,
        )
        .configure_legend(**plain, labelFontSize=12, titleFontSize=13, titleFontWeight="normal")
    )
    svg: str = _extra("vl_convert").vegalite_to_svg(styled.to_json())
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<\?xml[^>]*>|<!DOCTYPE[^>]*>", "", svg)
    return svg.replace(_TEXT, "currentColor")


def _altair() -> Any:
    return _extra("altair")


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            tried="draw the figures of a report",
            found=f"{module.replace('_', '-')} is not installed",
            remedy='pip install "conviction[lab]"',
        ) from error
