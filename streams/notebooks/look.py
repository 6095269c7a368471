"""The look of the notebooks' charts: readable on a slide, drawn as PNG without a browser."""

from __future__ import annotations

from typing import Any

import altair as alt

LEVELS = alt.Scale(domain=["page", "warn"], range=["#c0392b", "#e69f00"])
COLOURS = ["#1f5a94", "#c0392b", "#2a9d6f", "#e69f00", "#7b5ea7", "#50b4d8"]
QUIET, INK = "#b8c0c8", "#22303c"
WIDTH = 860


@alt.theme.register("asynchealth", enable=True)
def theme() -> alt.theme.ThemeConfig:
    axis: dict[str, Any] = {"labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal", "labelLimit": 420}
    lines: dict[str, Any] = {"gridColor": "#eceff1", "domainColor": "#90a0ac", "tickColor": "#90a0ac"}
    title: dict[str, Any] = {"fontSize": 20, "subtitleFontSize": 14, "subtitleColor": "#5a6b78", "color": INK}
    config: Any = {
        "background": "white",
        "padding": 18,
        "font": "DejaVu Sans, Arial, sans-serif",
        "title": {**title, "anchor": "start", "frame": "group", "offset": 16, "subtitlePadding": 6},
        "axis": {**axis, **lines, "labelColor": INK, "titleColor": "#5a6b78"},
        "legend": {"labelFontSize": 13, "titleFontSize": 13, "symbolType": "square", "orient": "top"},
        "header": {"labelFontSize": 14, "titleFontSize": 13, "labelAnchor": "start", "labelFontWeight": "bold"},
        "view": {"stroke": None, "continuousWidth": WIDTH, "continuousHeight": 260},
        "range": {"category": COLOURS},
    }
    return {"config": config}


def show_png() -> None:
    """Charts as pictures of twice the size on paper, which every viewer of a notebook shows."""
    alt.renderers.enable("png", scale_factor=2)


def clock(column: str = "at") -> alt.X:
    """A time of day on the axis below."""
    whole = "seconds(datum.value) ? '' : utcFormat(datum.value, '%H:%M')"  # no minute stands there twice
    return alt.X(f"{column}:T", title="time of day (UTC)", scale=alt.Scale(type="utc"), axis=alt.Axis(labelExpr=whole))


def titled(says: str, *more: str) -> alt.TitleParams:
    """A chart's title says what it shows; what it is made of stands below."""
    return alt.TitleParams(says, subtitle=[*more]) if more else alt.TitleParams(says)
