# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Double effects and their proof
# What was done twice, by which two attempts, and in what order, as far as that can be known.

# %%
import os

import altair as alt
import polars as pl

from streams.notebooks import frames, look
from streams.notebooks.opened import opened, told
from streams.report.damage import DOUBLED, damage
from streams.report.sentences import count, sentence

STATE = os.environ.get("ASYNCHEALTH_STATE", "asynchealth-state")  # a state folder, or a bundle
KEYS = 4  # how many are drawn

look.show_png()
o = opened(STATE)
doubled = sorted((f for f in o.of("duplicate_key") if f.kind == DOUBLED), key=lambda f: f.onset)
none = told("No effect was seen to be made twice.")
told(*(f"{f.name}, {o.span.between(f)} UTC: {sentence(f)}." for f in doubled)) if doubled else none

# %% [markdown]
# ## The damage list
# One line is one effect that was made twice: who made it, when by its own clock, and the rows that prove it.

# %%
rows = damage(o.con, doubled)
listed = frames.listed(rows)
listed if len(listed) else none

# %% [markdown]
# ## When each attempt ran
# Times are corrected to the clock that the majority of nodes agrees on. The thin line is the error: what is shown may
# have begun and ended that much earlier or later.

# %%
attempts = frames.attempts(o, doubled, KEYS)


def proof() -> alt.FacetChart:
    certain = sum(d.certain for d in rows)
    keys = attempts["key"].unique(maintain_order=True).to_list()
    gave_up = attempts.filter(pl.col("status") == "timeout")["key"].n_unique()
    title = look.titled(
        f"{count(len(rows), 'effect')} made twice, {'all' if certain == len(rows) else certain} of them certain",
        f"in {gave_up} of the {len(keys)} that are drawn the caller had given up and tried again",
        "thin lines: each bar with its error; diamonds: the effects",
    )
    seconds = attempts.with_row_index("rank").with_columns(
        begins=pl.col("begins_ms") * 0.001, ends=pl.col("ends_ms") * 0.001,
        early=(pl.col("begins_ms") - pl.col("half_ms")) * 0.001, late=(pl.col("ends_ms") + pl.col("half_ms")) * 0.001,
    )  # fmt: skip
    at = alt.X("begins:Q", title="corrected time from the first line of each key (s)", scale=alt.Scale(nice=False))
    row = alt.Y("line:N", title=None, sort=alt.EncodingSortField("rank", op="min"))
    colour = alt.Color(
        "side:N", title=None, scale=alt.Scale(domain=["client", "server"], range=[look.QUIET, "#1f5a94"])
    )
    base = alt.Chart(seconds)
    ran = base.mark_bar(height=14).encode(at, row, colour, x2="ends:Q")
    error = base.mark_rule(color=look.INK).encode(x="early:Q", x2="late:Q", y=row)
    effect = base.transform_filter("datum.effect").mark_point(
        shape="diamond", filled=True, size=170, color="#c0392b", opacity=1
    ).encode(x="ends:Q", y=row)  # fmt: skip
    layers = alt.layer(ran, error, effect).properties(width=look.WIDTH, height=alt.Step(24))
    by_key = alt.Row("key:N", title=None, sort=keys, header=alt.Header(labelOrient="top"))
    return layers.facet(row=by_key).resolve_scale(y="independent").properties(title=title)


proof() if len(attempts) else none
