"""Any text enters a screen; what must leave can be shown by any terminal and steers none."""

from __future__ import annotations

import re
from html import unescape

from hypothesis import example, given
from hypothesis import strategies as st

from streams.report.render import harmless, html, markdown, plain

ANY = st.text(alphabet=st.characters(codec="utf-8"))


@given(line=ANY)
@example(line="🌅 ⏱️ ━ → ⚠️ WARN ✅ … café")
def test_plain_output_is_pure_ascii(line: str) -> None:
    assert plain(line, ascii_only=True).isascii()


@given(line=ANY)
@example(line="\x1b[2J\x07\r\u202e")
def test_no_control_character_of_a_log_reaches_the_terminal(line: str) -> None:
    assert all(c.isprintable() or c == "\ufe0f" for c in plain(line))


@given(line=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_what_is_plain_already_stays_as_it_is(line: str) -> None:
    assert plain(line) == plain(line, ascii_only=True) == line


def test_colour_is_only_decoration() -> None:
    assert plain("1 PAGE, 2 WARN, PAGER", colour=True) == "1 \x1b[31;1mPAGE\x1b[0m, 2 \x1b[33mWARN\x1b[0m, PAGER"


@given(text=ANY)
@example(text="<b>&amp;\x00 \"'")
def test_a_text_is_shown_by_a_page_as_it_is_and_is_no_markup(text: str) -> None:
    shown = html(text)
    assert unescape(shown) == harmless(text)
    assert not set(shown) & set("<>\"'")


@given(text=ANY)
@example(text="`**[x](y) | # ~")
def test_a_text_is_no_markup_in_markdown(text: str) -> None:
    shown = markdown(text)
    assert not re.search(r"(?<!\\)(\\\\)*[`*\[\]<>|#~_]", re.sub(r"\\[\\`*_\[\]<>|#~]", "", shown))
