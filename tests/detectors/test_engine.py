"""Tables know nothing of each other: whoever closes them, and in whatever order, they are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from detectors.engine import Close, Closed, Each, MatchState, match, reduce
from detectors.table import Table
from detectors.windows import MINUTE_US
from tests.cases.retry_storm import fires_storm
from tests.harness import Memory, everything, placed


def backwards(close: Close, tables: Sequence[Table]) -> Iterable[Closed]:
    return [*map(close, tables[::-1])][::-1]


def at_once(close: Close, tables: Sequence[Table]) -> Iterable[Closed]:
    with ThreadPoolExecutor(4) as threads:
        return threads.map(close, tables)


@pytest.mark.parametrize("each", [backwards, at_once])
def test_tables_are_the_same_whoever_closes_them(each: Each) -> None:
    tables, _ = everything()
    log = placed(fires_storm())
    news = [reduce(tables, stream, p) for stream, parts in log.items() for p in parts if len(p)]
    first = min(int(f["window"].min()) for p in news for f in p.values())  # type: ignore[arg-type]
    wanted, given = MatchState(), MatchState()
    for to in (first + MINUTE_US, first + 3 * MINUTE_US):
        final, wanted = match(tables, wanted, news, to, Memory())
        closed, given = match(tables, given, news, to, Memory(), each=each)
        news = []
        assert len(final) > 2
        assert [*closed] == [*final]
        assert all(closed[name].equals(final[name]) for name in final)
        assert given.open.keys() == wanted.open.keys()
        assert all(given.open[place].equals(wanted.open[place]) for place in wanted.open)
