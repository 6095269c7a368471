# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Clocks of the fleet, with bounds
# No clock is trusted: messages between nodes bound how far each is from the clock that most of them agree on.

# %%
import os

import altair as alt
import polars as pl

from streams.notebooks import frames, look
from streams.notebooks.opened import opened, told
from streams.report.sentences import count, sentence

STATE = os.environ.get("ASYNCHEALTH_STATE", "asynchealth-state")  # a state folder, or a bundle
ZOOM_MS = 150  # what the picture of the calm clocks reaches to

look.show_png()
o = opened(STATE)
fleet = frames.clocks(o)
known = fleet.intervals
both = known.filter(pl.col("lower_ms").is_not_null() & pl.col("upper_ms").is_not_null())
wrong = [f for mine in fleet.outside.values() for f in mine]
blind = told("No two clocks are linked by messages here: nothing can be said of any of them.")
nodes, bounded = known["node"].n_unique(), both["node"].n_unique()
bounds = told(
    f"{count(nodes, 'clock')}, {bounded} of them bounded on both sides, by the clock of "
    f"{' or '.join(sorted(known['reference'].unique()))}.",
    *(f"{f.name}, {o.span.between(f)} UTC: {sentence(f)}." for f in wrong),
)
bounds if nodes else blind

# %% [markdown]
# ## Over the hour
# A band holds the truth: the node's clock is off by something inside it. Where it is open there is only its edge.


# %%
def course() -> alt.LayerChart:
    names = [*fleet.outside]
    worst = max(wrong, key=lambda f: f.peak, default=None)
    calm = both.filter(~pl.col("node").is_in(names))
    width = (calm["upper_ms"] - calm["lower_ms"]).median()
    says = f"{worst.name}: {sentence(worst).partition(' (')[0]}" if worst else "No clock was found to be wrong"
    title = look.titled(
        says, f"grey: {count(calm['node'].n_unique(), 'other clock')} bounded on both sides"
        + (f", their bands {width:.0f} ms wide (median)" if width is not None else ""),
    )  # fmt: skip
    off = alt.Y("lower_ms:Q", title="ahead of the reference (ms)")
    grey = (
        alt.Chart(calm)
        .mark_area(color=look.QUIET, opacity=0.25, interpolate="step-after")
        .encode(look.clock(), off, y2="upper_ms:Q", detail="node")
    )
    each = known.select("at").unique().join(pl.DataFrame({"node": names}, {"node": pl.String}), how="cross")
    own = each.join(known, on=["at", "node"], how="left").sort("node", "at")  # where nothing is known there is a gap
    colour = alt.Color("node:N", title=None, sort=names, scale=alt.Scale(range=look.COLOURS[1:]))
    band = (
        alt.Chart(own.with_columns(pl.when(pl.col("upper_ms").is_not_null()).then("lower_ms")))
        .mark_area(opacity=0.45, interpolate="step-after")
        .encode(look.clock(), off, colour, y2="upper_ms:Q")
    )
    open_above = own["upper_ms"].null_count() == len(own)
    line = alt.Chart(own).mark_line(strokeWidth=1.5, interpolate="step-after")
    edges = [
        line.encode(look.clock(), alt.Y(n), colour) for n in ("lower_ms:Q", "upper_ms:Q")[: 1 if open_above else 2]
    ]
    return alt.layer(grey, band, *edges).properties(title=title)


course() if nodes else blind

# %% [markdown]
# ## Each clock, at its last moment
# The wider a bar, the less is known of that clock; one that reaches the end of the picture is open on that side.

# %%
last = known.sort("at", "node").group_by("node", maintain_order=True).last()


def bars() -> alt.LayerChart:
    warn = frames.thresholds(o, "clock_skew")["at_least"].min()
    inside = last.filter((pl.col("lower_ms").fill_null(0) <= warn) & (pl.col("upper_ms").fill_null(0) >= -warn))
    title = look.titled(
        f"{count(len(last) - len(inside), 'clock')} of {len(last)} must be off by more than {warn:g} ms",
        f"red: all between the bounds is beyond ±{warn:g} ms; what lies beyond ±{ZOOM_MS} ms is drawn at the edge",
    )
    ends = last.with_columns(
        lower=pl.col("lower_ms").fill_null(-1e18).clip(-ZOOM_MS, 0.98 * ZOOM_MS),
        upper=pl.col("upper_ms").fill_null(1e18).clip(-0.98 * ZOOM_MS, ZOOM_MS),
        right=pl.col("node").is_in(inside["node"].to_list()),
    )
    at = alt.X("lower:Q", title="ahead of the reference (ms)", scale=alt.Scale(domain=[-ZOOM_MS, ZOOM_MS], nice=False))
    row = alt.Y("node:N", title=None, sort=ends.sort("lower", "upper", "node")["node"].to_list())
    colour = alt.condition("datum.right", alt.value("#1f5a94"), alt.value("#c0392b"))
    drawn = alt.Chart(ends).mark_bar(height=9).encode(at, row, x2="upper:Q", color=colour)
    zero = alt.Chart(pl.DataFrame({"lower": [0]})).mark_rule(color=look.INK, strokeDash=[3, 3]).encode(x="lower:Q")
    return (drawn + zero).properties(title=title, height=alt.Step(15))


bars() if nodes else blind

# %% [markdown]
# ## Steps and drifts

# %%
moved = o.of("clock_drift")
steps = told(*(f"{f.name}, {f.onset:%H:%M:%S} UTC: {sentence(f)}." for f in moved))
steps if moved else told("No clock was seen to be set, or to run faster or slower than the others.")
