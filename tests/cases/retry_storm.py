"""gateway->payment: retries rise from 1 % to a storm for two minutes; the quiet ones are steady or small."""

from detectors.detector import Settings
from tests.cases import Case, at, partitions


def _calls(per_s: int, storm: range, retried: int, base: int = 100) -> list[dict[str, object]]:
    rows = []
    for i in range(per_s * 400):
        start = i / per_s
        one_in = retried if int(start) in storm else base
        rows.append(
            {
                "timestamp": at(start),
                "arrival": at(start + 1.0),
                "service_name": "payment",
                "caller": "gateway",
                "node_id": f"gateway-{i % 3}",
                "side": "client",
                "status": "ok",
                "retry_count": 1 if i % one_in == 0 else 0,
                "duration_ms": 30.0 + i % 11,
            }
        )
    return rows


def fires_storm() -> Case:
    rows = _calls(20, range(235, 355), 2)
    return Case({"requests": partitions("requests", rows)}, frozenset({("gateway->payment", "", "page")}))


def fires_small_storm() -> Case:
    rows = _calls(10, range(200, 320), 3)
    return Case({"requests": partitions("requests", rows)}, frozenset({("gateway->payment", "", "warn")}))


def fires_storm_older_than_the_recording() -> Case:
    """What came before is not known; it is there to the end."""
    rows = _calls(8, range(0, 400), 2)
    return Case({"requests": partitions("requests", rows)}, frozenset({("gateway->payment", "", "warn")}))


def fires_over_what_is_set_for_the_service_called() -> Case:
    """200 a minute: over what is set for payment, under what is set for all; the caller's settings are its own."""
    rows = _calls(10, range(200, 320), 3)
    own = {"payment": {"retry_storm.warn_per_min": 150.0}, "gateway": {"retry_storm.warn_per_min": 1e6}}
    expect = frozenset({("gateway->payment", "", "warn")})
    return Case({"requests": partitions("requests", rows)}, expect, Settings({"retry_storm.warn_per_min": 300.0}, own))


def quiet_under_what_is_set_for_the_service_called() -> Case:
    rows = _calls(10, range(200, 320), 3)
    own = {"payment": {"retry_storm.warn_per_min": 400.0}}
    return Case({"requests": partitions("requests", rows)}, settings=Settings(per_service=own))


def quiet_always_many_retries() -> Case:
    """One in four all the time: many once the load rises, but never twice its own past."""
    rows = [r for i, r in enumerate(_calls(20, range(0), 1, base=4)) if i > 20 * 200 or i % 20 < 4]
    return Case({"requests": partitions("requests", rows)})


def quiet_few_of_many() -> Case:
    """110 retries a minute, but under 5 % of the attempts."""
    return Case({"requests": partitions("requests", _calls(60, range(100, 300), 33))})


def _uncounted(refused: range) -> list[dict[str, object]]:
    """A source that counts no retries: what is refused comes again half a second later, with the same payload."""
    rows = []
    for i in range(10 * 400):
        start = i / 10
        outcome = "rejected" if int(start) in refused and i % 2 == 0 else "ok"
        call = {"caller": "gateway", "service_name": "payment", "node_id": f"gateway-{i % 3}", "side": "client"}
        tries = [(start, outcome), (start + 0.5, "ok")] if outcome == "rejected" else [(start, outcome)]
        for at_s, status in tries:
            seen = {"timestamp": at(at_s), "arrival": at(at_s + 1.0), "status": status, "payload_hash": f"h{i}"}
            rows.append({**call, **seen, "duration_ms": 20.0})
    return sorted(rows, key=lambda r: str(r["arrival"]))


def overloaded(recovers: bool) -> list[dict[str, object]]:
    """Two calls a second; twice as many for a minute, and most attempts fail from then on, or only meanwhile."""
    rows = []
    for second in range(1200):
        surge = 1000 <= second < 1060
        failing = second >= 1000 if not recovers else surge
        for i in range(4 if surge else 2):
            call = {"caller": "gateway", "service_name": "payment", "node_id": f"gateway-{i % 3}", "side": "client"}
            for attempt in range(4 if failing else 1):
                start = second + i / 10 + attempt / 40
                status = "error" if attempt < 3 and failing else "ok"
                seen = {"timestamp": at(start), "arrival": at(start + 1.0), "status": status, "retry_count": attempt}
                rows.append({**call, **seen, "duration_ms": 20.0})
    return rows


def fires_metastable_where_the_load_is_back_and_success_is_not() -> Case:
    rows = overloaded(recovers=False)
    expect = frozenset({("gateway->payment", "", "page"), ("gateway->payment", "metastable", "warn")})
    return Case({"requests": partitions("requests", rows)}, expect)


def waiting(waits_s: tuple[float, ...], spread: float = 0.0, per_s: int = 8, **also: object) -> list[dict[str, object]]:
    """Calls of which, for two minutes, each fails until its last try, and waits so long before each of them; spread is
    the share of a wait by which one may be shorter, from call to call."""
    rows = []
    for i in range(per_s * 400):
        start, tries = i / per_s, 1 + (len(waits_s) if 200 <= i / per_s < 320 else 0)
        for attempt in range(tries):
            call = {"caller": "gateway", "service_name": "payment", "node_id": f"gateway-{i % 3}", "side": "client"}
            end = start + 0.02
            seen = {
                "timestamp": at(start),
                "arrival": at(end + 0.5),
                "status": "ok" if attempt == tries - 1 else "error",
            }
            tried = {"request_id": f"r{i}", "retry_count": attempt, "duration_ms": 20.0}
            rows.append({**call, **seen, **tried, **also})
            start = end + (waits_s[attempt] * (1 - spread * (i * 7 % 64) / 64) if attempt < tries - 1 else 0)
    return sorted(rows, key=lambda r: str(r["arrival"]))


def fires_with_exponential_backoff_and_full_jitter_over_windows() -> Case:
    rows = waiting((2.0, 4.0, 8.0), spread=1.0)
    return Case({"requests": partitions("requests", rows)}, frozenset({("gateway->payment", "", "page")}))


def fires_with_a_fixed_wait_between_attempts() -> Case:
    rows = waiting((0.1, 0.1))
    return Case({"requests": partitions("requests", rows)}, frozenset({("gateway->payment", "", "page")}))


def fires_on_calls_that_repeat_what_was_refused_where_nobody_counts_retries() -> Case:
    rows = _uncounted(range(200, 320))
    return Case({"requests": partitions("requests", rows)}, frozenset({("gateway->payment", "", "warn")}))


def quiet_equal_calls_that_repeat_nothing_that_failed() -> Case:
    rows = [{**r, "payload_hash": "same"} for r in _uncounted(range(0))]
    return Case({"requests": partitions("requests", rows)})
