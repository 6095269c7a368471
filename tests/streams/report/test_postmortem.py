"""A post-mortem has what the data tells, the damage row for row, and keeps every word that a person wrote into it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from detectors.detector import catalog
from streams.cli.incident import book_of
from streams.landing.state import open_readable, parts_of
from streams.report.answers import comma_separated
from streams.report.damage import COLUMNS, damage
from streams.report.evidence import fetch
from streams.report.found import all_findings
from streams.report.postmortem import actions, document, gather, html, parts, renewed
from tests.cases import at
from tests.cases.duplicate_key import case, ordinary, slow_and_retried
from tests.streams.report.states import of_case

MADE = {"summary": "# Title\n\nsaid", "timeline": "- one\n- two"}


def test_the_damage_list_is_the_generators_labels_row_for_row(demo_state: Path) -> None:
    labels = json.loads((demo_state.parent / "demo-tape" / "labels.json").read_text())
    (label,) = (f for f in labels["faults"] if f["kind"] == "applied_twice")
    wanted = {
        key: {f"requests/{source.rpartition('-')[2]}:{offset}" for source, offset in rows}
        for key, rows in label["keys"].items()
    }
    with open_readable(demo_state) as con:
        listed = damage(con, all_findings(con))
    rows = list(csv.DictReader(io.StringIO("\n".join(comma_separated(COLUMNS, (d.cells for d in listed))))))
    assert len(rows) == len(wanted) == label["count"] == 23
    for row in rows:
        proof = {row["first_record"], row["second_record"], *row["client_records"].split()}
        assert proof == wanted.pop(row["idempotency_key"])
        assert row["service_name"] == label["subject"] and row["first_attempt"] != row["second_attempt"]


def test_a_callers_line_that_came_hours_late_is_on_the_list(tmp_path: Path) -> None:
    """In a part of its own, where lines of that time are not expected."""
    on_time, slow = ordinary(range(800)), slow_and_retried({})
    late = [r | {"arrival": at(3 * 3600 + n)} if r["side"] == "client" else r for n, r in enumerate(slow)]
    folder = of_case(tmp_path, case([*on_time, *late]))
    with open_readable(folder) as con:
        assert len([p for p in parts_of(con) if p.stream == "requests"]) == 2
        listed = damage(con, all_findings(con))
        keys = {(r["record"], r["idempotency_key"]) for r in fetch(con, "requests", "fate = 'late'")}
    assert len(listed) == 23 and len(keys) == 46
    assert {(record, d.idempotency_key) for d in listed for record in d.client_records.split()} == keys


def test_doubled_effects_whose_rows_are_gone_are_still_said(demo_state: Path) -> None:
    with book_of(demo_state) as (some, book):
        known = gather(book.con, max(some, key=lambda i: len(i.findings)), book)
        assert known.gone == 0
        for left, gone in ((20, 3), (0, 23)):
            text = parts(replace(known, damage=known.damage[:left]), book)["damage"]
            assert f"\n{gone} effects made twice can't be listed: their rows are not in this state any more." in text
            assert "No effect was seen" not in text


def test_what_nobody_changed_is_renewed_and_the_rest_stays() -> None:
    old = document(MADE).replace("- two", "- two\n- and what ana saw") + "\n## Lessons\nours\n"
    text, kept, gone = renewed(old, {"summary": "# Title\n\nnew", "timeline": "- other", "damage": "none"})
    assert "new" in text and "said" not in text
    assert "- and what ana saw" in text and "- other" not in text and text.endswith("## Lessons\nours\n")
    assert (kept, gone) == (["timeline"], ["damage"])


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], include_characters="\n"), min_size=1)


@given(before=words, inside=words, after=words, made=st.fixed_dictionaries({"summary": words, "timeline": words}))
def test_no_word_of_a_person_is_lost(before: str, inside: str, after: str, made: dict[str, str]) -> None:
    """Outside of the marks or in a part, however often it is made again."""
    theirs = f"{before}\n{document(MADE)}\n{after}".replace("- one\n", f"- one\n{inside}\n")
    text, kept, gone = renewed(theirs, made)
    assert kept == ["timeline"] and gone == []
    assert text.startswith(before) and text.endswith(after) and f"- one\n{inside}\n" in text
    assert made["summary"] in text
    assert renewed(text, made) == (text, kept, gone)


def test_every_finding_has_something_to_do_about_it() -> None:
    known = {name.partition(".")[0] for name in actions()}
    assert known >= set(catalog())
    assert all(a.priority in ("P0", "P1") for some in actions().values() for a in some)


def test_what_a_log_or_a_person_wrote_is_no_markup_of_the_page() -> None:
    shown = html(document({"summary": "# T\n\n<script>alert(1)</script>\n\n- [x] done\n- [ ] not"}), "T")
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "☑ done" in shown and "☐ not" in shown and "summary" not in shown
