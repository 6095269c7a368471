# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Anatomy of a retry storm
# How callers multiplied the load on a service that was slow already.

# %%
import os

import altair as alt
import polars as pl

from streams.notebooks import frames, look
from streams.notebooks.opened import opened, screen, told
from streams.report.incidents import explained
from streams.report.sentences import sentence

STATE = os.environ.get("ASYNCHEALTH_STATE", "asynchealth-state")  # a state folder, or a bundle
STORM = 0  # 0 is the worst

look.show_png()
o = opened(STATE)
storms = o.of("retry_storm")
storm = storms[STORM] if storms else None
quiet = told("No edge retried so much that it was load of its own: there is no storm here.")
told(f"{storm.name}, {o.span.between(storm)} UTC: {sentence(storm)}.") if storm else quiet

# %% [markdown]
# ## Attempts, and how many of them succeeded
# One point is a window of 10 s. The gap between all attempts and the good ones is what was spent in vain.

# %%
calls = frames.calls(o, storm) if storm else pl.DataFrame()
levels = frames.thresholds(o, storm.detector, storm.subject) if storm else pl.DataFrame()
NAMES = {"attempts": "attempts", "ok": "succeeded (goodput)", "retries": "retries", "timeouts": "timeouts"}


def anatomy() -> alt.Chart:
    during = calls.filter(pl.col("at").is_between(storm.onset, storm.last, closed="left"))
    good, every = during["ok"].sum(), during["attempts"].sum()
    title = look.titled(
        f"{1 - good / every:.0%} of what {storm.name} tried during the storm was in vain",
        f"calls in windows of 10 s; {every:,} attempts from {storm.onset:%H:%M:%S} to {storm.last:%H:%M:%S}",
    )
    long = calls.rename(NAMES).unpivot([*NAMES.values()], index="at", variable_name="calls", value_name="number")
    number = alt.Y("number:Q", title="calls per 10 s")
    colour = alt.Color("calls:N", sort=[*NAMES.values()], title=None, legend=alt.Legend(symbolType="stroke"))
    return alt.Chart(long).mark_line(strokeWidth=2.5).encode(look.clock(), number, colour).properties(title=title)


anatomy() if storm else quiet

# %% [markdown]
# ## Retries per minute, and what they are compared with


# %%
def retries() -> alt.LayerChart:
    worst = calls["a_minute"].max()
    warn = levels["at_least"].min()
    title = look.titled(
        f"Retries reached {worst:,} a minute, {worst / warn:.1f} times what is worth a warning",
        "the last six windows of 10 s; dashed: the thresholds that are set",
    )
    of = alt.Y("a_minute:Q", title="retries per minute")
    area = alt.Chart(calls).mark_area(opacity=0.35, line={"strokeWidth": 2.5}).encode(look.clock(), of)
    colour = alt.Color("level:N", scale=look.LEVELS, title=None, legend=alt.Legend(symbolType="stroke"))
    rules = alt.Chart(levels).mark_rule(strokeDash=[6, 4], strokeWidth=2).encode(y="at_least:Q", color=colour)
    return (area + rules).properties(title=title)


retries() if storm else quiet

# %% [markdown]
# ## Amplification: attempts for each first try


# %%
def amplification() -> alt.LayerChart:
    worst = calls.sort("load", "at", descending=[True, False], nulls_last=True).row(0, named=True)
    title = look.titled(
        f"At {worst['at']:%H:%M:%S} every call was tried {worst['load']:.1f} times",
        "attempts / first tries, in windows of 10 s; grey: one attempt a call, no retries",
    )
    scale = alt.Scale(zero=False)
    load = alt.Y("load:Q", title="attempts per first try", scale=scale)
    line = alt.Chart(calls).mark_line(strokeWidth=2.5).encode(look.clock(), load)
    one = alt.Chart(pl.DataFrame({"load": [1.0]})).mark_rule(color=look.QUIET, strokeWidth=2).encode(y="load:Q")
    return (one + line).properties(title=title)


amplification() if storm else quiet

# %% [markdown]
# ## Which try it was

# %%
tries = frames.tries(o, storm) if storm else pl.DataFrame()


def by_try() -> alt.Chart:
    deepest, every = tries["try"].max(), tries["attempts"].sum()
    lost = tries.filter(pl.col("status") != "ok")["attempts"].sum()
    title = look.titled(
        f"{lost / every:.0%} of {every:,} retries failed again; some calls were tried {deepest + 1} times",
        "retries of the storm in windows of 10 s, by the number of the try",
    )
    number = alt.Y("sum(attempts):Q", title="retries per 10 s")
    colour = alt.Color("try:O", title="retry", scale=alt.Scale(scheme="orangered"))
    return alt.Chart(tries).mark_bar(size=14).encode(look.clock(), number, colour).properties(title=title)


by_try() if len(tries) else quiet

# %% [markdown]
# ## What explains it

# %%
screen(explained(o.con, storm, o.found, o.book.invoke)) if storm else quiet
