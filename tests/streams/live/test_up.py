"""`asynchealth up` on the broker inside: a played tape says what replay says, and however it ends nothing runs on."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from typer.testing import CliRunner

from detectors.detector import Settings
from detectors.events import STREAMS
from detectors.windows import MINUTE_US
from streams.cli import app
from streams.landing.state import begin_anew
from streams.live.follow import Follower
from streams.live.play import Player, last_us, read_tape
from streams.live.system import RESTARTS, ROLES, Parts, System, run_as
from streams.live.up import QUEUES, broker_inside, finish, fitting, play_through
from streams.problems import Exit, Problem
from streams.replay import rebuild, replay
from streams.said import ACKS
from streams.sources.files import READABLE
from tests.streams.report.test_queries import COLUMNS
from tests.streams.report.test_sql_shut_in import PLAYBOOK
from tests.streams.tape import (
    COMMAND,
    ROOT,
    T0,
    asked,
    asynchealth,
    beats,
    contents,
    differing,
    lines,
    request,
    storm,
    write,
)

PATIENCE_S = 60
STILL_S = 15


def silent(_line: str = "") -> None:
    pass


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retry storm; the last call was logged by a clock that is ahead, so that its window begins after the end."""
    folder = tmp_path_factory.mktemp("tape")
    ahead = request(8_000, timestamp=T0 + 415.0, arrival=T0 + 401.0)
    write(folder / "requests-0.jsonl", lines([*storm(), ahead]))
    write(folder / "heartbeats-0.jsonl", lines(beats()))
    write(folder / "about.txt", b"recorded in March\nby hand\n")
    return folder


def test_of_a_folder_what_cannot_be_played_is_said_and_the_rest_is_played_once(tape: Path, tmp_path: Path) -> None:
    folder, said = tmp_path / "tape", list[str]()
    shutil.copytree(tape, folder)
    write(folder / "requests-1.jsonl.gz", lines(storm(50, arrival=None)))
    write(folder / "requests-2.jsonl.zst", (tape / "requests-0.jsonl").read_bytes())
    write(folder / "requests-3.jsonl.gz", lines(storm(50, caller="web")))
    packed = folder / "requests-3.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    none = pl.DataFrame(schema={"timestamp": pl.Datetime, "service_name": pl.String, "node_id": pl.String})
    none.write_parquet(folder / "requests-4.parquet")
    logs = read_tape([str(folder)], tmp_path / "none", said.append)
    assert [(log.stream, log.partition) for log in logs] == [("heartbeats", 0), ("requests", 0), ("requests", 1)]
    assert logs[1].values == read_tape([str(tape)], tmp_path / "none")[1].values
    assert [line.partition(": ")[0] for line in said] == ["about.txt", *(f"requests-{i}" + end for i, end in ENDS)]
    with pytest.raises(Problem, match=r"about\.txt: not recognised"):
        read_tape([str(folder / "about.txt")], tmp_path / "none")


ENDS = [(1, ".jsonl.gz"), (2, ".jsonl.zst"), (3, ".jsonl.gz"), (4, ".parquet")]


def begun(*arguments: str, said: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with said.open("wb") as out:
        return subprocess.Popen([*COMMAND, "up", *arguments], stdout=out, stderr=out, env=environment)


def ran(*arguments: str, said: Path) -> str:
    up = begun(*arguments, said=said)
    assert up.wait(PATIENCE_S) == 0, said.read_text()
    return said.read_text()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def waited(until: object, patience_s: float = PATIENCE_S) -> bool:
    end = time.monotonic() + patience_s
    assert callable(until)
    while time.monotonic() < end and not until():
        time.sleep(0.2)
    return bool(until())


def others_read(live: Path) -> None:
    """From other terminals, while it runs: plain DuckDB with the playbook's queries word for word, sql and report."""
    with duckdb.connect(str(live / READABLE), read_only=True) as con:
        columns = {name: [c[0] for c in con.execute(PLAYBOOK[name]).description or ()] for name in COLUMNS}
    assert columns == COLUMNS
    assert b"yes" in asynchealth("sql", "SELECT 'yes' FROM requests LIMIT 1", "--state", live).stdout
    assert b" read = " in asynchealth("report", "--state", live).stdout


def test_a_played_tape_is_reported_as_replay_reports_it(tape: Path, tmp_path: Path) -> None:
    live, replayed = tmp_path / "live", tmp_path / "replayed"
    shown = ran(str(tape), "--once", "--state", str(live), said=tmp_path / "said")
    assert "retry_storm  gateway->payment" in shown and "about.txt: not recognised" in shown
    assert "\x1b" not in shown and "\b" not in shown  # a file is no terminal
    asynchealth("replay", str(tape), "--state", replayed)
    for command in (("findings", "--json"), ("report",)):
        said = [asynchealth(*command, "--state", folder).stdout for folder in (live, replayed)]
        assert b"retry" in said[0].lower()
        assert said[0].replace(bytes(live), b"") == said[1].replace(bytes(replayed), b"")
    ours, theirs = contents(live), contents(replayed)
    assert len(ours["requests"]) == 8_001
    shared = {name: frame for name, frame in ours.items() if name in theirs}
    assert differing(shared, theirs, but=["source"]) == []  # which is a topic, not a file


def test_one_that_stood_still_with_all_its_processes_goes_on_where_it_was(tape: Path, tmp_path: Path) -> None:
    live, said = tmp_path / "live", tmp_path / "said"
    up = begun(str(tape), "--once", "--state", str(live), said=said)
    try:
        assert waited((live / "landing.duckdb").exists), said.read_text()
        every = [up.pid, *children(up.pid)]
        assert len(every) >= 3
        for how in (signal.SIGSTOP, signal.SIGCONT):
            for pid in every:
                os.kill(pid, how)
            time.sleep(STILL_S if how == signal.SIGSTOP else 0)
        assert up.wait(2 * PATIENCE_S) == 0, said.read_text()
    finally:
        up.kill()
        up.wait()
    asynchealth("replay", str(tape), "--state", tmp_path / "replayed")
    ours, theirs = contents(live), contents(tmp_path / "replayed")
    shared = {name: frame for name, frame in ours.items() if name in theirs}
    assert len(ours["requests"]) == 8_001 and differing(shared, theirs, but=["source"]) == []


def test_one_signal_ends_all_and_what_was_found_stays(tmp_path: Path) -> None:
    live, said = tmp_path / "live", tmp_path / "said"
    up = begun("--minutes", "3", "--state", str(live), said=said)
    try:
        assert waited(lambda: b"from here the fleet is live" in said.read_bytes()), said.read_text()
        mine = children(up.pid)
        assert len(mine) >= 2
        others_read(live)
        up.send_signal(signal.SIGINT)
        assert up.wait(PATIENCE_S) == 0, said.read_text()
        assert waited(lambda: not any(map(runs, mine)))
    finally:
        up.kill()
        up.wait()
    assert b"Traceback" not in said.read_bytes()
    assert b" read = " in asynchealth("report", "--state", live).stdout


@pytest.mark.parametrize("landed", [False, True])
def test_what_to_type_when_it_has_ended_can_be_typed(
    landed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a row has landed there is nothing to report."""
    here, rows = tmp_path / "my state", [request(t) for t in range(60)]

    def until_ctrl_c(*_: object) -> None:
        if landed:
            replay([str(write(tmp_path / "requests.jsonl", lines(rows)))], here, Settings())
        raise KeyboardInterrupt

    monkeypatch.setattr("streams.live.up.inside", until_ctrl_c)
    command = ["asynchealth", "up", "--minutes", "5", "--state", str(here)]
    monkeypatch.setattr("sys.argv", command)
    ended = CliRunner().invoke(app, command[1:])
    then = shlex.split(ended.output.splitlines()[-1].partition("Next: ")[2])
    assert (ended.exit_code, then) == (0, ["asynchealth", "report", "--state", str(here)] if landed else command)
    assert landed or "Ended before any row had landed.\n" in ended.output
    assert not landed or CliRunner().invoke(app, then[1:]).exit_code == 0


def test_an_acknowledgement_lands_and_stays(tape: Path, tmp_path: Path) -> None:
    """While it runs no broker is named; when its lander was killed, has ended, and judged again, it is still known."""
    live = tmp_path / "live"
    logs = read_tape([str(tape)], tmp_path / "none")
    sources = {s: max(1, sum(log.stream == s for log in logs)) for s in STREAMS}
    with broker_inside(sources) as at:
        parts = Parts(at, Settings(), live, sources, QUEUES, "up", played=True, ends_us=last_us(logs))
        system, player, follower = System(parts, silent, silent), Player(at, logs), Follower(at, QUEUES)
        with system.running():
            play_through(system, player, follower, fitting(logs))
            finish(system, player, follower)
            assert waited(lambda: incidents(live))
            (one,) = incidents(live)
            spoken = asynchealth("incident", "ack", one["incident_id"], "--by", "anna", "--state", live)
            assert spoken.returncode == 0, spoken.stderr
            kill_the_lander(system)
            assert incidents(live)[0]["said"] == [], "it has not landed yet"
            begin_a_lander(system)
            player.tick(time.time_ns() // 1_000 + MINUTE_US)  # the tape is of long ago, the word is of now
            assert waited(lambda: incidents(live)[0]["said"])
        follower.close()
    assert not (live / ACKS).exists()
    for again in (False, True):
        if again:
            rebuild(live, Settings())
        (word,) = incidents(live)[0]["said"]
        assert (word["what"], word["by"]) == ("ack", "anna")
        assert b"\nAcknowledged by anna at " in asynchealth("incident", "show", "in-", "--state", live).stdout


def kill_the_lander(system: System) -> None:
    lander = system.children["lander"]
    lander.kill()
    lander.join(PATIENCE_S)
    assert lander.exitcode == -signal.SIGKILL


def begin_a_lander(system: System) -> None:
    spawn = multiprocessing.get_context("spawn")
    system.children["lander"] = spawn.Process(target=run_as, args=("lander", system.parts), name="lander")
    system.children["lander"].start()


def incidents(live: Path) -> list[dict[str, Any]]:
    shown = asynchealth("incident", "list", "--json", "--state", live)
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_of_one_that_was_killed_nothing_runs_on_and_the_next_begins_anew(tape: Path, tmp_path: Path) -> None:
    live, said = tmp_path / "live", tmp_path / "said"
    up = begun(str(tape), "--state", str(live), said=said)
    try:
        assert waited((live / "landing.duckdb").exists), said.read_text()
        mine = children(up.pid)
    finally:
        up.kill()
        up.wait()
    assert len(mine) >= 2
    assert waited(lambda: not any(map(runs, mine)))
    begin_anew(live)
    assert not (live / "landing.duckdb").exists()


@pytest.mark.parametrize("name", ROLES)
def test_a_child_that_is_killed_is_begun_again_and_all_is_as_without(name: str, tape: Path, tmp_path: Path) -> None:
    live, replayed, said = tmp_path / "live", tmp_path / "replayed", list[str]()
    logs = read_tape([str(tape)], tmp_path / "none")
    sources = {s: max(1, sum(log.stream == s for log in logs)) for s in STREAMS}
    end_ms = last_us(logs) // 1_000 + 1
    with broker_inside(sources) as at:
        parts = Parts(at, Settings(), live, sources, QUEUES, "up", played=True, ends_us=last_us(logs))
        system, player, follower = System(parts, silent, said.append), Player(at, logs), Follower(at, QUEUES)
        with system.running():
            play_through(system, player, follower, [end_ms - 200_000])
            assert follower.judged_us and player.left
            player.play(end_ms - 100_000)
            system.children[name].kill()
            system.children[name].join()
            play_through(system, player, follower, [end_ms])
            finish(system, player, follower)
        follower.close()
    assert said == [f"The {name} ended with -9 and is started again where its commits end."]
    asynchealth("replay", str(tape), "--state", replayed)
    ours, theirs = contents(live), contents(replayed)
    assert len(ours["requests"]) == 8_001 and len(ours["findings"])
    shared = {name: frame for name, frame in ours.items() if name in theirs}
    assert differing(shared, theirs, but=["source"]) == []


def test_a_child_that_ends_each_time_ends_all_with_a_word(tmp_path: Path) -> None:
    said: list[str] = []
    sources = dict.fromkeys(STREAMS, 1)
    with broker_inside(sources) as at:
        parts = Parts(at, Settings(), tmp_path / "live", sources, QUEUES, "up", played=True)
        system = System(parts, silent, said.append)
        with pytest.raises(Problem, match="lander: ended with -9"), system.running():
            for _ in range(RESTARTS + 1):
                system.children["lander"].kill()
                system.children["lander"].join()
                system.pause(0)
    assert len(said) == RESTARTS
    assert not any(child.is_alive() for child in system.children.values())


def test_what_ends_the_lander_is_said_as_a_command_says_it_and_not_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    live, said = tmp_path / "live", list[str]()
    live.mkdir()
    write(live / "landing.duckdb", b"no database")
    sources = dict.fromkeys(STREAMS, 1)
    with broker_inside(sources) as at:
        system = System(Parts(at, Settings(), live, sources, QUEUES, "up", played=True), silent, said.append)
        with pytest.raises(Problem, match="lander: ended with 4") as ended, system.running():
            system.wait(lambda: False)
    assert ended.value.code == Exit.STATE and said == []
    shown = capfd.readouterr().err
    assert f"{live / 'landing.duckdb'}: " in shown and "\nNext: mv " in shown and "Traceback" not in shown


def test_a_worker_that_is_killed_when_the_broker_inside_has_let_go_of_what_it_needs_ends_all_with_the_reason(
    tmp_path: Path,
) -> None:
    """Of the hour that its successor reads again the broker has the last 5 MiB of each partition."""
    dice, folder = random.Random(1), tmp_path / "tape"
    folder.mkdir()
    for p in range(2):
        rows = [
            request(i, timestamp=T0 + i / 50, arrival=T0 + i / 50 + 1, idempotency_key=key(dice))
            for i in range(50 * LONG_S)
        ]
        write(folder / f"requests-{p}.jsonl", lines(rows))
    live, said = tmp_path / "live", tmp_path / "said"
    up = begun(str(folder), "--state", str(live), said=said)
    try:
        late = 2 * 50 * LONG_S * 3 // 4
        assert waited(lambda: rows_read(live) > late, 5 * PATIENCE_S), said.read_text()
        os.kill(worker_of(up.pid, live), signal.SIGKILL)
        assert up.wait(2 * PATIENCE_S) == Exit.STATE, said.read_text()
    finally:
        up.kill()
        up.wait()
    text = said.read_text()
    assert "The worker ended with -9 and is started again" in text
    assert re.search(r"ah\.slices/[01]: begins at .* as the broker inside keeps 5 MiB of a partition", text), text
    assert "worker: ended with 4" in text and "Traceback" not in text


LONG_S = 360


def key(dice: random.Random) -> str:
    """Nothing that can be compressed much."""
    return base64.b85encode(dice.randbytes(300)).decode()


def rows_read(live: Path) -> int:
    if not (live / READABLE).exists():
        return 0
    return int(asked(live, "SELECT coalesce(sum(read), 0) FROM accounting")[0][0])


def worker_of(up: int, live: Path) -> int:
    """The process that is no lander, which has its database open."""
    spawned = [p for p in children(up) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    lander = [
        p for p in spawned if any(f.resolve() == live / "landing.duckdb" for f in Path(f"/proc/{p}/fd").iterdir())
    ]
    assert (len(spawned), len(lander)) == (2, 1)
    return next(p for p in spawned if p not in lander)


def test_a_state_that_came_otherwise_is_refused_and_kept(tape: Path, tmp_path: Path) -> None:
    asynchealth("replay", str(tape), "--state", tmp_path / "state")
    before = asynchealth("findings", "--json", "--state", tmp_path / "state").stdout
    up = asynchealth("up", str(tape), "--once", "--state", tmp_path / "state")
    assert up.returncode == Exit.STATE and b"asynchealth up --state NEW" in up.stderr
    assert before and asynchealth("findings", "--json", "--state", tmp_path / "state").stdout == before


def test_a_tape_that_the_broker_inside_cannot_hold_is_refused_before_anything_runs(tmp_path: Path) -> None:
    many = [request(i, timestamp=T0 + i / 500, arrival=T0 + i / 500 + 1, request_id="x" * 300) for i in range(20_000)]
    dense = write(tmp_path / "requests-0.jsonl", lines(many))
    up = asynchealth("up", str(dense), "--once", "--state", tmp_path / "state")
    assert up.returncode != 0 and b"can't hold" in up.stderr and b"asynchealth replay" in up.stderr
    assert not (tmp_path / "state" / "landing.duckdb").exists()
