"""Eight nodes beat every 5 s for ten minutes; some fall silent."""

from typing import Any

from tests.cases import Case, at, partitions

NODES = 8
SECONDS = 600


def _beat(node: int, t: float, observer: str = "collector", **more: Any) -> dict[str, Any]:
    received = t + 0.002
    return {
        "node_id": f"node-{node}",
        "client_time": at(t),
        "server_time": at(received),
        "arrival": at(received + 0.2 + (node * 7 + int(t)) % 5 / 10),
        "observer": observer,
        "role": None,
    } | more


def _fleet(silent: dict[int, tuple[float, float]], every: float = 5.0, **more: Any) -> list[dict[str, Any]]:
    rows = []
    for node in range(NODES):
        begin, end = silent.get(node, (SECONDS, SECONDS))
        for i in range(int(SECONDS / every)):
            t = i * every + node * 0.6
            if not begin <= t < end:
                rows.append(_beat(node, t, **more))
    return rows


def _case(rows: list[dict[str, Any]], expect: frozenset[tuple[str, str, str]] = frozenset()) -> Case:
    return Case({"heartbeats": partitions("heartbeats", rows)}, expect)


def fires_short_and_long_silence() -> Case:
    """Five intervals, more than a minute, and one that lasts until the end."""
    silent = {2: (300.0, 330.0), 3: (300.0, 420.0), 5: (500.0, 700.0)}
    levels = {"node-2": "warn", "node-3": "page", "node-5": "page"}
    return _case(_fleet(silent), frozenset((n, "", level) for n, level in levels.items()))


def fires_where_one_of_two_observers_still_hears_others() -> Case:
    rows = _fleet({1: (240.0, 400.0)}, every=2.0) + _fleet({1: (240.0, 400.0)}, every=2.0, observer="watch-b")
    return _case(rows, frozenset({("node-1", "", "page")}))


def quiet_after_a_goodbye() -> Case:
    leaving = [_beat(2, 301.0, role="leaving"), _beat(4, 250.3, role="leaving")]
    return _case(_fleet({2: (301.0, 420.0), 4: (250.0, 700.0)}) + leaving)


def quiet_at_the_end_of_the_tape() -> Case:
    return _case(_fleet(dict.fromkeys(range(NODES), (500.0, 700.0))))


def quiet_where_the_observer_heard_nobody() -> Case:
    """One of two observers is deaf for two minutes: that all its nodes are silent is more likely its own fault."""
    deaf = _fleet(dict.fromkeys(range(NODES), (300.0, 420.0)), observer="watch-b")
    return _case([r | {"node_id": "b" + r["node_id"]} for r in deaf] + _fleet({}))


def quiet_where_another_observer_hears_the_node() -> Case:
    return _case(_fleet({1: (240.0, 400.0)}) + _fleet({}, observer="watch-b"))


def quiet_for_a_slow_beat_that_misses_one() -> Case:
    rows = [r for r in _fleet({3: (300.0, 320.0)}, every=10.0) if r["node_id"] == "node-3"]
    return _case(rows + _fleet({3: (0.0, 700.0)}))


def quiet_where_beats_are_sampled() -> Case:
    return _case(_fleet({3: (300.0, 420.0)}, weight=2))
