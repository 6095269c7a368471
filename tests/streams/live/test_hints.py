"""What the live commands say to type next: it goes to the Kafka, with the settings, that the user named."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

import streams
from detectors.detector import Settings
from streams.landing.state import BROKER, LANDING
from streams.live import land
from streams.live.connect import Connection, connection
from streams.live.topics import names
from streams.problems import Problem
from streams.replay import rebuild

HOUSE = Path(streams.__file__).parent
FILES = [*(HOUSE / "live").glob("*.py"), *(HOUSE / "watch").glob("*.py"), HOUSE / "report/lag.py", HOUSE / "rejudge.py"]
FILES += [HOUSE / f"cli/{name}.py" for name in ("live", "up", "notify", "work", "incident")]
HINT = re.compile(r"(?:asynchealth|\{program\(\)\}) (topics (?:create|check|grow)|worker|land|lag|notify)\b(.{0,60})")
NAMED = re.compile(r" ?\{[^}]*(?:options|where|_lag)[^}]*\}")
ELSE = {"notify": (" --test: nothing is wrong", ", with the same options")}  # no hint; addresses may be secrets


def texts(file: Path) -> Iterator[str]:
    """Of the code: docstrings are for who reads it. What is put into a text stands in braces."""
    tree = ast.parse(file.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(_shown, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | spoken:
            yield node.value


def _shown(part: ast.expr) -> str:
    return f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else ast.literal_eval(part)


def test_every_hint_names_the_kafka_that_was_given() -> None:
    hints = [(file.name, *h.groups()) for file in FILES for text in texts(file) for h in HINT.finditer(text)]
    assert len(hints) >= 20
    short = [h for h in hints if not NAMED.match(h[2]) and not h[2].startswith(ELSE.get(h[1], "?"))]
    assert short == []


PATH = re.compile(r"(?:--state|\b(?:ls(?: -ld?)?|df -h|fuser|mv|cd)) \{([^}]*)\}")
TYPED = re.compile(r"(?:shell|shlex\.quote|_cron)\(|[A-Z]+$")


def test_every_path_in_a_hint_can_be_typed() -> None:
    """Folders have spaces in their names."""
    loose = {"report/sql.py": 1}  # no hint for a shell: an error of Python's
    every = [(str(f.relative_to(HOUSE)), p) for f in HOUSE.rglob("*.py") for t in texts(f) for p in PATH.findall(t)]
    assert len(every) > 20
    assert Counter(f for f, p in every if not TYPED.match(p)) == loose


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
SETTINGS = st.fixed_dictionaries({}, optional={"username": WORDS, "scope": WORDS, "mechanism": st.just("PLAIN")})
NOBODY = {"ASYNCHEALTH_KAFKA_PASSWORD": "secret", "ASYNCHEALTH_KAFKA_MECHANISM": "PLAIN"}


@given(WORDS, SETTINGS, st.one_of(st.just(""), WORDS))
def test_options_that_are_typed_again_are_the_same_connection(broker: str, said: dict[str, str], prefix: str) -> None:
    environment = NOBODY | {"ASYNCHEALTH_KAFKA_USERNAME": "somebody"}
    nowhere = Path("no such file")
    at = connection(broker, [f"{n}={v}" for n, v in said.items()], environment, nowhere)
    words = shlex.split(at.options(prefix))
    pairs = list(zip(words[::2], words[1::2], strict=True))
    again = connection(dict(pairs)["--broker"], [v for o, v in pairs if o == "--kafka"], environment, nowhere)
    assert again == at and dict(pairs).get("--prefix", "") == prefix
    assert "secret" not in words and len(words) == 2 * (1 + len(said) + bool(prefix))


def test_what_was_given_is_no_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "asynchealth.toml"
    file.write_text('[kafka]\nbroker = "a:9092"\ngiven = ["tls=true"]\n')
    with pytest.raises(Problem, match=r"unknown field `given`(.|\n)*its names are broker, (?!.*given)"):
        connection("", (), {}, file)


def test_a_lander_that_needs_another_state_says_so_for_its_own_kafka(tmp_path: Path) -> None:
    at = Connection(broker="a:9093,b:9093", given=("tls=true", "username=my name"))
    landing = land.Landing(tmp_path, at, [], {}, 1, "blue.", "asynchealth land --metrics 1")
    (tmp_path / "asynchealth.duckdb").touch()
    with pytest.raises(Problem) as problem:
        land.opened(landing.folder, landing.anew)
    then = (
        "asynchealth land --broker a:9093,b:9093 --kafka tls=true --kafka 'username=my name' --prefix blue. --state NEW"
    )
    assert str(problem.value).endswith(f"\nNext: {then}")
    gone = land.cut(TopicPartition(names("blue.").events, 0), 9, 20, 3, landing.anew)
    assert str(gone).endswith(f"\nNext: {then}")


def test_a_rebuild_names_the_lander_of_its_state(tmp_path: Path) -> None:
    (tmp_path / BROKER).write_text("a:9092,b:9092\nblue.\n")
    with duckdb.connect(str(tmp_path / LANDING)) as con:
        con.execute("CREATE TABLE meta AS SELECT 1 AS schema_version")
    with pytest.raises(Problem) as problem:
        rebuild(tmp_path, Settings())
    assert str(problem.value).endswith("\nNext: asynchealth land --broker a:9092,b:9092 --prefix blue. --state NEW")
