"""Bad input on the real command: what is good is used, what is not is counted and named; the exit code says which."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from detectors.detector import Settings
from streams.outcome import Outcome
from streams.problems import Exit, Problem
from streams.replay import replay
from tests.streams.tape import T0, accounting, asynchealth, beats, contents, lines, request, storm, write


def run(folder: Path, *paths: Path) -> Outcome:
    return replay([str(p) for p in paths], folder, Settings())


def refused(folder: Path, *paths: Path) -> list[str]:
    """The lines of the message with which nothing could be done."""
    with pytest.raises(Problem) as problem:
        run(folder, *paths)
    assert problem.value.code == Exit.NOTHING
    assert "\nNext: " in str(problem.value)
    return str(problem.value).splitlines()


def rejected(folder: Path) -> list[tuple[Any, ...]]:
    return contents(folder)["rejects"].select("source", "offset", "sub", "reason", "field").rows()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_uses_what_is_good_and_names_the_rest(tmp_path: Path) -> None:
    """A folder, a glob, standard input, and six things that are no recordings."""
    logs = tmp_path / "logs"
    logs.mkdir()
    write(logs / "requests-0.jsonl", lines(storm(300)))
    write(logs / "requests-1.jsonl.gz", lines(storm(300, tenant="a")))
    write(logs / "requests-2.jsonl.zst", lines(storm(300, tenant="b")))
    write(logs / "empty.jsonl", b"")
    write(logs / "notes.json", b'{"hello": "world"}\n')
    (logs / "broken.parquet").write_bytes(b"PAR1 and no more")
    pl.DataFrame({"service_name": ["s"], "when": ["now"]}).write_parquet(logs / "other.parquet")
    cut = gzip.compress(lines(storm(300, tenant="c")))
    (logs / "requests-3.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    arguments: list[str | Path] = [
        logs,
        tmp_path / "l?gs" / "*.zst",
        "-",
        tmp_path / "missing",
        "--state",
        tmp_path / "state",
    ]
    done = asynchealth("replay", *arguments, stdin=lines(beats(50)))
    assert done.returncode == Exit.FINE, done.stderr
    assert done.stderr == b""
    screen = done.stdout.decode()
    for note in (
        "empty.jsonl: empty\nNext: leave it out, or wait until it has records\n",
        "notes.json: not recognised: its first records have none of the fields of requests (service_name)",
        "broken.parquet: not a whole Parquet file: ",
        "other.parquet: has no column timestamp, node_id, which requests need\nNext: rename the columns",
        "requests-3.jsonl.gz: damaged: the end is missing; all records before were read\n",
        "requests-2.jsonl.zst: read before as requests-2.jsonl.zst, nothing new in it\n",
        f"{tmp_path / 'missing'}: no such file or folder\nNext: ls {tmp_path}\n",
    ):
        assert note in screen
    total = accounting(tmp_path / "state")
    part = total["used"] - 950
    assert 0 < part < 300
    assert total["rejected"] <= 1  # the line that the damage tore
    assert f"{total['read']:,} read = {total['used']:,} used" in screen


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["replay"], Exit.USAGE, "Missing argument"),
        (["replay", "{file}", "--no-such-option"], Exit.USAGE, "No such option"),
        (
            ["replay", "{file}", "--map", "no.toml"],
            Exit.USAGE,
            "no.toml: not readable: No such file or directory\nNext: ",
        ),
        (["replay", "{file}", "--lateness", "soon"], Exit.USAGE, "soon: not a span of time up to ten years\nNext: "),
        (["replay", "{file}", "--arrival", "node_id"], Exit.USAGE, "--arrival node_id: not a time that events have"),
        (["replay", "{file}", "--set", "retry_storm"], Exit.USAGE, "--set retry_storm: no value\nNext: "),
        (["replay", ""], Exit.USAGE, "an empty path"),
        (["report", "--state", ""], Exit.USAGE, "no folder named"),
        (["replay", "{file}", "--set", "retry_storm.warn_per_min=600"], Exit.USAGE, "so it would never warn"),
        (["replay", "{file}", "--set", "retry_storm=1"], Exit.USAGE, "no such setting; there are retry_storm."),
        (["replay", "{missing}"], Exit.NOTHING, "nothing to analyse: {missing}: no such file or folder\nNext: ls "),
        (["rebuild", "--state", "{state}"], Exit.NOTHING, "{state}: holds no rows\nNext: asynchealth replay PATH…"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_changes_nothing(
    tmp_path: Path, arguments: list[str], code: Exit, message: str
) -> None:
    names = {"file": write(tmp_path / "requests.jsonl", lines(storm(5)))}
    names |= {"missing": tmp_path / "missing", "state": tmp_path / "state"}
    done = asynchealth(*(a.format(**names) for a in arguments), cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout == b""
    assert message.format(**names) in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.duckdb"))


# ---- nothing usable -------------------------------------------------------------------------------------------------


def test_a_recording_without_one_good_event_is_a_failure_whose_reasons_can_be_looked_up(tmp_path: Path) -> None:
    bad = write(tmp_path / "requests.jsonl", lines([request(i, duration_ms=-1) for i in range(9)] + [[], None]))
    message = refused(tmp_path / "state", bad)
    assert message[0] == (
        "nothing to analyse: requests.jsonl: none of its 11 records could be used; "
        "9 times: duration_ms: expected `float` >= 0.0"
    )
    assert message[1].startswith('Next: asynchealth sql "SELECT source, field, reason, count(*) FROM rejects')
    assert accounting(tmp_path / "state") == {"read": 11, "rejected": 9, "tombstones": 2}
    run(tmp_path / "state", write(tmp_path / "more.jsonl", lines(storm(5))))
    assert accounting(tmp_path / "state") == {"read": 16, "used": 5, "rejected": 9, "tombstones": 2}


def test_files_without_any_event_are_a_failure(tmp_path: Path) -> None:
    nulls = write(tmp_path / "requests.jsonl", b"null\n[]\n")
    assert refused(tmp_path / "a", nulls)[0] == "nothing to analyse: requests.jsonl: holds no event"
    pl.DataFrame(storm(1)).clear().write_parquet(tmp_path / "requests.parquet")
    assert refused(tmp_path / "b", tmp_path / "requests.parquet")[0].endswith("requests.parquet: holds no event")
    refused(tmp_path / "c", write(tmp_path / "empty.jsonl", b""), tmp_path / "missing")
    assert not (tmp_path / "c" / "asynchealth.duckdb").exists()


def test_bad_input_leaves_the_old_state_as_it_was(tmp_path: Path) -> None:
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", lines(storm(5))))
    before = (tmp_path / "state" / "asynchealth.duckdb").read_bytes()
    refused(tmp_path / "state", write(tmp_path / "empty.jsonl", b""))
    assert (tmp_path / "state" / "asynchealth.duckdb").read_bytes() == before


# ---- bad records ----------------------------------------------------------------------------------------------------


def test_one_percent_of_garbage_costs_only_itself(tmp_path: Path) -> None:
    garbage = [b'"', b"{", b"\xff\xfe\x00", b"not json", b'{"timestamp": 1}', b"5", b"\x85\x1c\r\x0b"]
    records = lines(storm(2_000)).splitlines()
    for i in range(20):
        records.insert(97 * i, garbage[i % len(garbage)])
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", b"\n".join(records) + b"\n"))
    total = accounting(tmp_path / "state")
    assert total["used"] == 2_000
    assert {offset for _, offset, *_ in rejected(tmp_path / "state")} == {97 * i for i in range(20)}


def test_a_line_of_ten_megabytes_is_an_event_or_one_reject(tmp_path: Path) -> None:
    ten = 10 << 20
    events = [request(0), request(1, error="x" * ten), request(2)]
    content = lines(events) + b"[" * ten + b"\n" + b"\xff" * ten + b"\n" + lines([request(3)])
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", content))
    assert accounting(tmp_path / "state") == {"read": 6, "used": 4, "rejected": 2}
    state = contents(tmp_path / "state")
    assert state["requests"]["error"].str.len_bytes().max() == ten
    assert state["rejects"]["raw"].str.len_chars().max() == 200


def test_lists_nulls_and_bad_members_have_their_places(tmp_path: Path) -> None:
    batch = [request(1), request(2, status="fine"), request(3)]
    content = lines([request(0), batch, None, [], request(4, node_id=None)])
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", content))
    assert accounting(tmp_path / "state") == {"read": 7, "used": 3, "rejected": 2, "tombstones": 2}
    rows = contents(tmp_path / "state")["requests"].select("offset", "sub").sort("offset", "sub").rows()
    assert rows == [(0, 0), (1, 0), (1, 2)]
    assert rejected(tmp_path / "state") == [
        ("requests.jsonl", 1, 1, "invalid enum value 'fine'", "status"),
        ("requests.jsonl", 4, 0, "expected `str`, got `null`", "node_id"),
    ]


NUMBERS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "negative": -1.0}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_durations_that_are_none_are_rejected(tmp_path: Path, form: str) -> None:
    """JSON has no spelling for NaN and the infinities; those that writers use are no JSON."""
    events = [request(i, duration_ms=v) for i, v in enumerate([1.0, *NUMBERS.values(), 0.0])]
    path = tmp_path / f"requests.{form}"
    if form == "parquet":
        pl.DataFrame(events).write_parquet(path)
    else:
        spelt = [lines([e | {"duration_ms": 5.5}]) for e in events]
        names = [b"1", b"NaN", b"Infinity", b"-Infinity", b"-1", b"0"]
        path.write_bytes(b"".join(s.replace(b"5.5", n) for s, n in zip(spelt, names, strict=True)))
    run(tmp_path / "state", path)
    assert accounting(tmp_path / "state") == {"read": 6, "used": 2, "rejected": 4}
    assert [offset for _, offset, *_ in rejected(tmp_path / "state")] == [1, 2, 3, 4]
    if form == "parquet":
        assert {field for *_, field in rejected(tmp_path / "state")} == {"duration_ms"}


# ---- bad times ------------------------------------------------------------------------------------------------------


def test_units_may_be_mixed_and_the_impossible_is_kept_apart(tmp_path: Path) -> None:
    """The same instant in s, ms, µs, ns and RFC 3339; epoch 0, the year 9999, and a time without zone."""
    same = [T0, T0 * 10**3, T0 * 10**6, T0 * 10**9, "2026-01-26T17:00:00+09:00"]
    odd = [0, "9999-12-31T23:59:59.999999Z", "2026-01-26T08:00:00"]
    events = [request(0, timestamp=t, arrival=T0 + 1) for t in [*same, *odd]]
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", lines(events)))
    assert accounting(tmp_path / "state") == {"read": 8, "used": 5, "implausible": 2, "rejected": 1}
    rows = contents(tmp_path / "state")["requests"]
    used = rows.filter(pl.col("fate") == "used")["timestamp"].dt.epoch("us")
    assert set(used) == {T0 * 10**6}
    years = rows.filter(pl.col("fate") == "implausible")["timestamp"].dt.year().sort().to_list()
    assert years == [1970, 9999]
    [(*_, reason, field)] = rejected(tmp_path / "state")
    assert (reason, field) == ("not a time with a zone (RFC 3339, or epoch s, ms, µs, ns)", "timestamp")


def test_few_rows_of_all_ages_without_arrivals_are_used_and_end(tmp_path: Path) -> None:
    """Eight thousand years of empty windows are one step."""
    times = [0, T0, "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"]
    events = [{k: v for k, v in request(0, timestamp=t).items() if k != "arrival"} for t in times]
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", lines(events)))
    assert accounting(tmp_path / "state") == {"read": 4, "used": 4}
