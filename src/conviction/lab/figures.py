"""Figures of the lab as SVG, drawn with altair, for pages that load nothing.

Text and axes take the colour of the surrounding text, so that they read on light and on dark.
"""

import re
from collections.abc import Mapping, Sequence
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
# fmt: off
_COLOURS = (
    "#2f8fd0", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#9467bd",
    "#a0522d",
)
# fmt: on
_TEXT = "#010203"
"""Stands for the colour of the surrounding text until the figure is rendered."""
_FOR_FILES = re.compile(r' xmlns(:\w+)?="[^"<]*"|<\?xml[^<>]*>|<!DOCTYPE[^<>]*>')
"""What an SVG needs as a file of its own, and not within a page."""
_DASHED: dict[str, Any] = {
    "strokeDash": [4, 3],
    "strokeWidth": 1,
    "color": _TEXT,
    "opacity": 0.5,
}


def check_installed() -> None:
    """Find out before minutes of work whether the figures can be drawn.

    Raises:
        MissingExtraError: what draws them is not installed.
    """
    for module in ("altair", "vl_convert"):
        _library(module)


def accuracy_against(cost: Cost, rows: Sequence[Row], front: Front | None = None) -> str:
    """Accuracy against what it costs, one point per policy.

    With the front of a sweep, on the questions that did not choose it.
    """
    altair = _library("altair")
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
    scale = altair.Scale(zero=False, padding=12)
    low, value = (
        altair.Y(f"{one}:Q", title="accuracy, %", scale=scale) for one in ("low", "value")
    )
    chart = _chart(data)
    large, small = (chart.transform_filter(which) for which in ("datum.marked", "!datum.marked"))
    layers = [
        large.mark_rule(strokeWidth=1.5, opacity=0.75).encode(
            x=x, y=low, y2="high:Q", color=colour
        ),
        small.mark_circle(size=22, opacity=0.35).encode(x=x, y=value, color=colour),
        large.mark_circle(size=90, opacity=1).encode(x=x, y=value, color=colour),
    ]
    if front is not None and cost == "tokens":
        layers.insert(0, large.mark_line(**_DASHED).encode(x=x, y=value, order="cost:Q"))
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
    altair = _library("altair")
    data = [
        {"share": 100 * one.share, "questions": one.questions, **_percent(one.accuracy)}
        for one in diagnosis.calibration
    ]
    ends = _chart([{"x": 0, "y": 0}, {"x": 100, "y": 100}])
    percent = altair.Scale(domain=[0, 100])
    x = altair.X("share:Q", title="leader's share of the vote, %", scale=percent)
    y = altair.Y("value:Q", title="questions that majority gets right, %", scale=percent)
    low = altair.Y("low:Q", scale=percent)
    size = altair.Size("questions:Q", title="questions", scale=altair.Scale(range=[20, 320]))
    chart = _chart(data)
    rule = chart.mark_rule(strokeWidth=1.5, opacity=0.75, color=_COLOURS[0])
    circle = chart.mark_circle(opacity=1, color=_COLOURS[0])
    return _rendered(
        altair.layer(
            ends.mark_line(**_DASHED).encode(x="x:Q", y="y:Q"),
            rule.encode(x=x, y=low, y2="high:Q"),
            circle.encode(x=x, y=y, size=size),
        ),
        height=340,
    )


def _dots(estimates: Sequence[tuple[str, Estimate]], title: str, reference: float) -> str:
    """One line per name: a dot, its interval, and a line for what means no difference."""
    altair = _library("altair")
    data = [
        {"label": label, **_percent(estimate)}
        for label, estimate in estimates
        if isfinite(estimate.value)
    ]
    x = altair.X("low:Q", title=title, scale=altair.Scale(zero=False, padding=12))
    y = altair.Y("label:N", title=None, sort=None, axis=altair.Axis(labelLimit=360))
    chart = _chart(data)
    rule = chart.mark_rule(strokeWidth=2, opacity=0.75, color=_COLOURS[0])
    circle = chart.mark_circle(size=70, opacity=1, color=_COLOURS[0])
    return _rendered(
        altair.layer(
            _chart([{"x": reference}]).mark_rule(**_DASHED).encode(x="x:Q"),
            rule.encode(x=x, x2="high:Q", y=y),
            circle.encode(x="value:Q", y=y),
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


def _chart(rows: Sequence[Mapping[str, Any]]) -> Any:
    altair = _library("altair")
    return altair.Chart(altair.Data(values=rows))


def _rendered(chart: Any, *, height: int) -> str:
    """The chart as SVG without an XML header or a namespace, which HTML does not need."""
    text: dict[str, Any] = {
        "labelColor": _TEXT,
        "titleColor": _TEXT,
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
    }
    styled = (
        chart.properties(width=WIDTH, height=height, background="transparent")
        # Room for fonts that are wider than the one that was measured.
        .properties(padding={"left": 30, "right": 60, "top": 8, "bottom": 8})
        .configure(font="Arial, Helvetica, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            **text,
            domainColor=_TEXT,
            tickColor=_TEXT,
            domainOpacity=0.5,
            tickOpacity=0.5,
            tickCount=8,
            gridColor=_TEXT,
            gridOpacity=0.12,
            titlePadding=10,
        )
        .configure_legend(**text)
    )
    svg: str = _library("vl_convert").vegalite_to_svg(styled.to_json())
    svg = _FOR_FILES.sub("", svg)
    return svg.replace(_TEXT, "currentColor")


def _library(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            tried="draw the figures of a report",
            found=f"{module.replace('_', '-')} is not installed",
            remedy='pip install "conviction[lab]"',
        ) from error
