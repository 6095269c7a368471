"""Lines of text: which pattern reads them, what is drafted from it, and what no pattern reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.problems import Exit, Problem
from streams.sources.draft import written
from streams.sources.fieldmap import parse
from streams.sources.files import look
from streams.sources.formats import of_text
from streams.sources.sample import drafted
from streams.sources.shapes import shape_of
from streams.sources.trial import tried

COMMON = '10.0.0.{i} - bob [26/Jan/2026:08:15:0{i} +0200] "GET /cart?token=s3cret HTTP/1.1" {code} 512'
COMBINED = COMMON + r' "http://x/\"q" "Mozilla/5.0 (X11; \"odd\")"'
JAVA = '2026-01-26 08:15:0{i},113 INFO [pay-{i}] service=pay status={code}, took=1{i}ms msg="all, fine" url=/x?a=1'
BARE = "[2026-01-26T08:15:0{i}.5Z] service=pay node=pay-{i} code={code}"
ALB = (
    "https 2026-01-26T08:15:0{i}.500Z app/shop/50dc 203.0.113.{i}:4000{i} 10.0.0.{i}:80"
    " 0.000 0.25{i} 0.000 {code} {code} 34 366"
    ' "GET https://shop.example:443/cart?id={i} HTTP/1.1" "curl/7.46 \\"odd\\"" ECDHE-RSA TLSv1.2'
    ' arn:aws:elasticloadbalancing:us-east-2:1:targetgroup/cart/73e2 "Root=1-5833-{i}" "shop.example" "arn:aws:acm:x" 0'
    ' 2026-01-26T08:15:0{i}.250Z "forward" "-" "-" "10.0.0.{i}:80" "{code}" "-" "-"'
)
LOGFMT = 'ts=2026-01-26T08:15:0{i}Z level=info svc=pay host=pay-{i} http.status={code} msg="a=b c"'
ODD = '10.0.0.9 - - [26/Jan/2026:08:15:09 +0200] "\\x16\\x03" 400 0'
HOST = 'service_name = { value = "edge" }\nnode_id = { value = "edge-1" }\n'


def log(path: Path, line: str) -> Path:
    codes = {0: 200, 1: 404, 2: 503, 3: 504, 4: 200}
    path.write_text("".join(line.format(i=i, code=code) + "\n" for i, code in codes.items()))
    return path


def draft_of(path: Path) -> str:
    _, draft = drafted(look(path, path.name))
    return "\n".join(written(draft, path.name, "asynchealth map --check MAP.toml LOG", "some events")) + "\n"


@pytest.mark.parametrize(
    ("line", "by_hand", "filled", "first"),
    [
        (COMMON, HOST, {"caller", "status"}, "2026-01-26 06:15:00"),
        (COMMON + " 0.01{i}", HOST, {"caller", "status", "duration_ms"}, "2026-01-26 06:15:00"),
        (COMBINED, HOST, {"caller", "status"}, "2026-01-26 06:15:00"),
        (COMBINED + " 0.01{i}", HOST, {"caller", "status", "duration_ms"}, "2026-01-26 06:15:00"),
        (JAVA, "", {"service_name", "node_id", "status", "duration_ms"}, "2026-01-26 08:15:00.113"),
        (BARE, "", {"service_name", "node_id", "status"}, "2026-01-26 08:15:00.500"),
        (ALB, "", {"service_name", "node_id", "caller", "trace_id", "duration_ms"}, "2026-01-26 08:15:00.250"),
        (LOGFMT, "", {"service_name", "node_id", "status"}, "2026-01-26 08:15:00"),
    ],
)
def test_lines_of_text_draft_a_map_that_reads_them(
    tmp_path: Path, line: str, by_hand: str, filled: set[str], first: str
) -> None:
    path = log(tmp_path / "some.log", line)
    text = draft_of(path)
    done = tried(look(path, "some.log"), parse(text.replace("[fields]\n", "[fields]\n" + by_hand), "draft"))
    assert done.counts == {"read": 5, "usable": 5, "rejected": 0, "empty": 0}
    assert filled <= done.filled.keys() and set(done.filled.values()) == {5}
    assert done.rows["status"].to_list() == ["ok", "error", "rejected", "timeout", "ok"]
    assert done.times and str(done.times[0]).startswith(first)
    assert 'format = "text"' in text and "# lines of " in text, "it says what the lines are"
    assert "s3cret" not in text, "drafts are kept and shown"


def test_a_call_that_a_balancer_did_not_bring_through_has_no_duration_and_stack_traces_no_say(tmp_path: Path) -> None:
    path, trace = log(tmp_path / "some.log", ALB), "java.net.SocketTimeoutException: timed out\n\tat a.B.c(B.java:1)\n"
    path.write_text(path.read_text().replace(" 0.000 0.253 0.000 504 504 ", " 0.000 -1 -1 504 - "))
    assert tried(look(path, "some.log"), parse(draft_of(path), "draft")).filled["duration_ms"] == 4
    path = log(tmp_path / "java.log", JAVA)
    path.write_text(path.read_text().replace("\n", "\n" + trace, 2))
    text = draft_of(path)
    done = tried(look(path, "java.log"), parse(text, "draft"))
    assert done.counts == {"read": 9, "usable": 5, "rejected": 4, "empty": 0}
    assert "pairs.took is not: log it as one" in text.replace("\n# ", " "), "its times are those of the ends"


@pytest.mark.parametrize("others", [1, 2])
def test_a_pattern_must_read_nearly_all_lines(tmp_path: Path, others: int) -> None:
    path = tmp_path / "some.log"
    lines = [COMBINED.format(i=i % 10, code=200) for i in range(20)]
    path.write_text("\n".join([*lines[others:], *["another frame"] * others]) + "\n")
    if others == 1:
        assert "combined format" in draft_of(path)
        return
    with pytest.raises(Problem) as problem:
        draft_of(path)
    assert "18 are lines of an access log in the combined format, and 95% are needed" in str(problem.value)
    assert 'Next: for lines of text write a map with format = "text"' in str(problem.value)
    assert problem.value.code == Exit.NOTHING


def test_what_is_no_request_is_a_line_of_an_access_log() -> None:
    assert (shape := shape_of([ODD.encode()])) and of_text(shape.line)(ODD.encode())[0]["request"] == "\\x16\\x03"


@pytest.mark.parametrize("line", [b'{"a": "x=1 y=2"}', b"[1, 2]", b"a,b", b"2026-01-26 08:15:02 INFO started", b"x=1"])
def test_other_lines_have_no_pattern(line: bytes) -> None:
    assert shape_of([line]) is None


@pytest.mark.parametrize("piece", ["y", " ", "[", '"', "a=", "\\", " x="])
def test_long_lines_are_read_as_fast_as_short_ones(piece: str) -> None:
    """None of the patterns goes back over what it has read: else this takes hours."""
    starts = ("", "2026-01-26 08:15:02", '10.0.0.1 - - [26/Jan/2026:08:15:02 +0000] "', "ts=1 msg=")
    assert not all(shape_of([f'{start}{piece * 200_000}"'.encode()]) for start in starts)
    assert "pairs" in of_text("(?P<pairs>.*)")(f"a=1 {piece * 200_000}".encode())[0]


WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["C"]))


@given(st.dictionaries(WORDS.map("k{}".format), st.one_of(WORDS, TEXTS.map('"{}"'.format)), min_size=2))
def test_pairs_are_read_as_they_were_written(pairs: dict[str, str]) -> None:
    line = " ".join(f"{key}={value}" for key, value in pairs.items())
    (found,) = of_text("(?P<pairs>.*)")(line.encode())
    assert found["pairs"] == {key: value.strip('"') for key, value in pairs.items()}
