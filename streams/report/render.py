"""Lines of a screen enter, lines that any terminal can show leave: plain ASCII where asked for, colour where it helps.

What a log holds is not trusted: a control character in a name is shown, never sent to the terminal.
"""

from __future__ import annotations

import re

ASCII = {
    "🌅 ": "",
    "⏰": " *",
    "🔄": " *",
    "🔀": " *",
    "⏱️": " *",
    "🎯": " *",
    "🔎": " *",
    "🚨 ": "",
    "⚠️ ": "",
    " ✅": "",
    "━": "-",
    "→": "->",
    "±": "+/-",
    "–": "-",
    "…": "...",
    **dict.fromkeys("╔╗╚╝╠╣", "+"),
    "═": "=",
    "║": "|",
}
COLOURS = {"PAGE": "\x1b[31;1m", "WARN": "\x1b[33m"}


def plain(line: str, ascii_only: bool = False, colour: bool = False) -> str:
    """One line as it goes to the terminal."""
    shown = "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in line)
    if ascii_only:
        for fancy, simple in ASCII.items():
            shown = shown.replace(fancy, simple)
        shown = shown.encode("ascii", "backslashreplace").decode()
    if colour:
        shown = re.sub(r"\b(PAGE|WARN)\b", lambda m: f"{COLOURS[m[1]]}{m[1]}\x1b[0m", shown)
    return shown


JOINERS = "\ufe0f"  # the variation selector of ⚠️ and ⏱️ prints nothing by itself
