"""Rows that meet: who has company, however the hashes of their keys fall."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.table import company
from detectors.windows import WINDOW_US

rows = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from([None, "x", "y"]), st.integers(0, 3), st.integers(0, 2)),
    max_size=12,
)


def _frame(found: list[tuple[str, str | None, int, int]], hashes: int, apart: int) -> pl.DataFrame:
    """hashes: how many different ones there are, and how far apart; with few of them keys share one."""
    keys = sorted({(tenant, key or "") for tenant, key, _, _ in found})
    columns = {
        "environment": ["" for _ in found],
        "tenant": [r[0] for r in found],
        "key": [r[1] for r in found],
        "t": [r[2] * WINDOW_US + r[3] for r in found],
        "coord": list(range(len(found))),
        "hash": [keys.index((tenant, key or "")) % hashes * apart % 2**64 for tenant, key, _, _ in found],
    }
    text = dict.fromkeys(("environment", "tenant", "key"), pl.String)
    shape = text | dict.fromkeys(("t", "coord"), pl.Int64) | {"hash": pl.UInt64}
    return pl.DataFrame(columns, schema=shape).with_columns(window=pl.col("t") // WINDOW_US * WINDOW_US)


@settings(deadline=None, max_examples=150)
@given(rows, st.sampled_from([1, 2, 100]), st.sampled_from([1, 2**62]), st.integers(0, 3), st.integers(0, 4))
def test_rows_with_company_come_key_by_key_in_time_whatever_hashes_their_keys_share(
    found: list[tuple[str, str | None, int, int]], hashes: int, apart: int, since: int, until: int
) -> None:
    wanted: dict[tuple[str, str | None], list[tuple[int, int]]] = {}
    for coord, (tenant, key, window, offset) in enumerate(found):
        if window < until:
            wanted.setdefault((tenant, key), []).append((window * WINDOW_US + offset, coord))
    some = company(_frame(found, hashes, apart), ("key",), since * WINDOW_US, until * WINDOW_US)
    got: list[tuple[tuple[str, str | None], list[tuple[int, int]]]] = []
    for tenant, key, t, coord in some.select("tenant", "key", "t", "coord").rows():
        if not got or got[-1][0] != (tenant, key):
            got.append(((tenant, key), []))
        got[-1][1].append((t, coord))
    assert len(dict(got)) == len(got)
    met = {k: sorted(members) for k, members in wanted.items() if len(members) > 1}
    asked = {k: members for k, members in met.items() if members[-1][0] >= since * WINDOW_US}
    assert {k: members for k, members in got if k in asked} == asked
    assert dict(got).items() <= met.items()
    assert some["now"].to_list() == [t >= since * WINDOW_US for t in some["t"]]
    numbers = some["group"].rle()
    assert numbers.struct.field("len").to_list() == [len(members) for _, members in got]
    assert numbers.struct.field("value").is_sorted()
