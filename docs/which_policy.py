"""Draws docs/which-policy.svg: accuracy against tokens, time as colour.

python docs/which_policy.py

It shows the means over pools in docs/results/recorded-answers.csv, which benchmarks/many_pools.py
writes. Text and axes are of a grey that reads on light and on dark.
"""

import csv
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

DOCS = Path(__file__).parent
GREY = "#7d8590"
FAST, EVEN, SLOW = "#2f8fd0", "#c9a227", "#d03a00"
RING = "Beta .95"
"""Drawn as a ring around the same by need: one trace after another."""

# Where the middles of labels stand beside their points: to the right and down, in pixels.
LABELS = {
    ("majority", 64): (0, -14),
    ("majority", 32): (0, 18),
    ("majority", 16): (64, 4),
    ("Beta .90, by need", 32): (-72, 0),
    ("Beta .90, by need", 64): (-4, -18),
    (RING, 64): (0, -22),
    ("Beta .95, by need", 64): None,
    ("Beta .99, by need", 64): (-4, 16),
    ("ESC 4", 64): (28, -8),
    ("settle-exact", 64): (52, 8),
    ("settle", 64): (-29, -2),
    ("settle-lean", 64): (-46, 2),
}


def points() -> list[dict[str, Any]]:
    with (DOCS / "results" / "recorded-answers.csv").open() as file:
        rows = {(row["policy"], int(row["budget"])): row for row in csv.DictReader(file)}
    found: list[dict[str, Any]] = []
    for (name, budget), place in LABELS.items():
        row = rows[name, budget]
        found.append(
            {
                "name": name,
                "label": name.removesuffix(", by need")
                + (f", {budget} traces" if budget < 64 else ""),
                "right": place[0] if place else None,
                "down": place[1] if place else None,
                "tokens": 100 * float(row["tokens"]),
                "time": float(row["path_64"]),
                **{key: float(row[key]) for key in ("difference", "low", "high")},
            }
        )
    return found


def chart() -> Any:
    x = alt.X(
        "tokens:Q",
        title="tokens, % of majority voting with 64 traces",
        scale=alt.Scale(type="log", domain=[9, 115], nice=False),
        axis=alt.Axis(values=[10, 15, 20, 30, 40, 50, 70, 100]),
    )
    y = alt.Y(
        "difference:Q",
        title="accuracy, points against majority",
        scale=alt.Scale(domain=[-1.2, 0.35], nice=False),
        axis=alt.Axis(format="+.2f", values=[-1, -0.75, -0.5, -0.25, 0, 0.25]),
    )
    colour = alt.Color(
        "time:Q",
        title="time, of majority's",
        scale=alt.Scale(
            type="log",
            domain=[0.75, 2.6, 9.2],
            range=[FAST, EVEN, SLOW],
            clamp=True,
            interpolate="rgb",
        ),
        legend=alt.Legend(values=[0.75, 1, 2, 4, 9], format="~r", gradientLength=230),
    )
    data = points()
    base = alt.Chart(alt.Data(values=data)).encode(x=x, y=y, color=colour)
    zero = alt.Chart(alt.Data(values=[{"difference": 0}]))
    layers = [
        zero.mark_rule(color=GREY, strokeDash=[4, 3]).encode(y=y),
        base.mark_rule(strokeWidth=1.5, opacity=0.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.transform_filter(alt.datum.name == RING).mark_point(
            size=330, strokeWidth=3.5, filled=False, opacity=1
        ),
        base.transform_filter(alt.datum.name != RING).mark_circle(size=130, opacity=1),
    ]
    for one in data:
        if one["right"] is None:
            continue
        weight = "bold" if one["name"].startswith("settle") else "normal"
        label = alt.Chart(alt.Data(values=[one])).mark_text(
            dx=one["right"], dy=one["down"], color=GREY, fontSize=13, fontWeight=weight
        )
        layers.append(label.encode(x=x, y=y, text="label:N"))
    return alt.layer(*layers).properties(
        width=680, height=340, background="transparent", padding=10
    )


def styled(picture: Any) -> Any:
    text = {"labelColor": GREY, "titleColor": GREY, "labelFontSize": 12, "titleFontSize": 13}
    lines = {"domainColor": GREY, "tickColor": GREY, "gridColor": GREY, "gridOpacity": 0.15}
    return (
        picture.configure(font="Arial, Helvetica, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(**text, **lines, titleFontWeight="normal")
        .configure_legend(**text, titleFontWeight="normal")
    )


def main() -> None:
    svg = vl_convert.vegalite_to_svg(styled(chart()).to_json())
    (DOCS / "which-policy.svg").write_text(svg + "\n")


if __name__ == "__main__":
    main()
