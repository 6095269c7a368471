# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Open an incident
# What belongs together, what caused what, and when it was.

# %%
import os

import altair as alt

from streams.notebooks import frames, look
from streams.notebooks.opened import opened, screen, told
from streams.report.incidents import listing, show
from streams.report.sentences import count, duration

STATE = os.environ.get("ASYNCHEALTH_STATE", "asynchealth-state")  # a state folder, or a bundle
INCIDENT = ""  # the beginning of an id; else the one with most findings

look.show_png()
o = opened(STATE)
screen(listing(o.incidents, o.book))

# %% [markdown]
# ## The chain
# Each finding stands under what explains it.

# %%
incident = o.incident(INCIDENT)
screen(show(incident, o.book)) if incident else told("There is no incident here.")

# %% [markdown]
# ## When it was

# %%
review = o.review(incident) if incident else None
found = review.found if review else []
entries = review.timeline.entries if review else ()
bars = frames.bars(o, found)
signals = frames.lines(entries, "signal")


def gantt() -> alt.LayerChart:
    first, last = bars["begins"].min(), bars["ends"].max()
    changed = count(len(signals), "signal")
    root, lasted = bars["finding"][0], duration((last - first).total_seconds())
    title = look.titled(
        f"{root} explains {count(len(found) - 1, 'other finding')}, within {lasted}" if len(found) > 1 else root,
        f"{incident.incident_id}; causes above their effects" + (f"; dashed: {changed}" if len(signals) else ""),
    )
    row = alt.Y("finding:N", sort=bars["finding"].to_list(), title=None)
    colour = alt.Color("level:N", scale=look.LEVELS, title=None)
    when = look.clock("begins")
    drawn = alt.Chart(bars).mark_bar(height=20, cornerRadius=2).encode(when, row, x2="ends:T", color=colour)
    words = alt.Chart(bars).mark_text(align="left", dy=20, fontSize=12, color="#5a6b78").encode(when, row, text="words")
    changes = alt.Chart(signals).mark_rule(color=look.QUIET, strokeDash=[3, 3]).encode(x="at:T")
    return (changes + drawn + words).properties(title=title, width=look.WIDTH, height=alt.Step(58))


gantt() if incident else told("Nothing is over a threshold, so there is nothing to draw.")

# %% [markdown]
# ## What happened, in order
# Signals and findings; the rows that prove them are in `asynchealth timeline`.

# %%
happened = frames.lines(entries, "signal", "finding", "note", "silence")
happened if len(happened) else told("Nothing happened that a timeline would tell of.")
