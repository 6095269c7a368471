# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Tune a threshold
# What other thresholds would have found in what was measured. Nothing is written; the last cell says what to write.

# %%
import os

import altair as alt
import polars as pl

from streams import tune
from streams.catalog import catalog
from streams.notebooks import look
from streams.notebooks.opened import opened, screen, told
from streams.report.sentences import count, duration
from streams.report.tune import screen as outcome

STATE = os.environ.get("ASYNCHEALTH_STATE", "asynchealth-state")  # a state folder, or a bundle
DETECTOR, THRESHOLD = "retry_storm", "warn_per_min"
FACTORS = (0.1, 0.2, 0.5, 1, 2, 5, 10)  # of what is set
TRY = None  # a number of your own; else what `asynchealth tune` would propose

look.show_png()
o = opened(STATE)
detector = catalog(o.config)[DETECTOR].detector
threshold = next(t for t in detector.thresholds if t.name == THRESHOLD)
now = o.settings.get(DETECTOR, THRESHOLD, threshold.default)
landed = o.landed(detector)
told(f"{DETECTOR}.{THRESHOLD} is {now:g} {threshold.unit}; it is judged again over {o.span.days}.")

# %% [markdown]
# ## How many findings each would give


# %%
def numbers(value: float) -> dict[str, float]:
    """A page is never below its warning."""
    own = [t for t in detector.thresholds if t.of == threshold.of and t.level == "page"]
    pages = {t.name: o.settings.get(DETECTOR, t.name, t.default) for t in own}
    return {f"{DETECTOR}.{n}": max(value, p) for n, p in pages.items()} | {f"{DETECTOR}.{THRESHOLD}": value}


tried = [(v, tune.trial_of(landed, o.settings, numbers(v), "")) for v in (now * f for f in FACTORS)]
sweep = pl.DataFrame([
    {"value": f"{v:g}", "level": level, "findings": t.level(level)} for v, t in tried for level in ("page", "warn")
])  # fmt: skip


def lasted(found: pl.DataFrame) -> str:
    return duration((found["last"] - found["onset"]).dt.total_seconds().sum()) if len(found) else "none"


lasting = pl.DataFrame([{"value": f"{v:g}", "findings": len(t.found), "says": lasted(t.found)} for v, t in tried])


def swept() -> alt.LayerChart:
    many = {v: len(t.found) for v, t in tried}
    other = next((v for v in many if v > now and many[v] < many[now]), None)
    then = f"{many[other]} at {other:g}" if other else f"no fewer at {max(many):g}"
    title = look.titled(
        f"{count(many[now], 'finding')} at {now:g} {threshold.unit}, as it is; {then}",
        f"{DETECTOR}, {o.span.days}, judged again; above the bars: how long they last together",
    )
    at = alt.X(
        "value:N", title=f"{THRESHOLD} ({threshold.unit})", sort=[f"{v:g}" for v in many], axis=alt.Axis(labelAngle=0)
    )
    scale = alt.Scale(domain=[0, 1.15 * max(many.values())], nice=False)
    number = alt.Y("findings:Q", title="findings", scale=scale, axis=alt.Axis(tickCount=min(5, max(many.values()))))
    colour = alt.Color("level:N", scale=look.LEVELS, title=None)
    drawn = alt.Chart(sweep).mark_bar(size=56).encode(at, number, colour)
    words = alt.Chart(lasting).mark_text(fontSize=13, dy=-10, color=look.INK).encode(at, number, text="says")
    return (drawn + words).properties(title=title, width=look.WIDTH)


swept() if sweep["findings"].sum() else told(f"None of these finds anything: no edge came near {DETECTOR}.")

# %% [markdown]
# ## What to write

# %%
tested = tune.tried(landed, detector, o.settings, numbers(TRY)) if TRY else tune.proposed(landed, detector, o.settings)
change = tune.difference(tested.proposed, o.config) if tested.proposed else []
screen(outcome(tested, o.span, change, o.book.invoke))
