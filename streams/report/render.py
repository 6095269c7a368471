"""Lines of a screen enter, lines that any terminal can show leave: plain ASCII where asked for, colour where it helps.

Documents, too: one HTML page that asks no other host, and text that Markdown takes for text. What a log holds is not
trusted: a control character in a name is shown, never sent; a tag or an asterisk stays what it is.
"""

from __future__ import annotations

import re
from html import escape

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
    "←": "<-",
    "└ ": "`-",
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "–": "-",
    "…": "...",
    **dict.fromkeys("╔╗╚╝╠╣", "+"),
    "═": "=",
    "║": "|",
}
COLOURS = {"PAGE": "\x1b[31;1m", "WARN": "\x1b[33m"}


def plain(line: str, ascii_only: bool = False, colour: bool = False) -> str:
    """One line as it goes to the terminal."""
    shown = harmless(line)
    if ascii_only:
        for fancy, simple in ASCII.items():
            shown = shown.replace(fancy, simple)
        shown = shown.encode("ascii", "backslashreplace").decode()
    if colour:
        shown = re.sub(r"\b(PAGE|WARN)\b", lambda m: f"{COLOURS[m[1]]}{m[1]}\x1b[0m", shown)
    return shown


JOINERS = "\ufe0f"  # the variation selector of ⚠️ and ⏱️ prints nothing by itself


def harmless(text: str) -> str:
    """With its control characters spelled out."""
    return "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in text)


# ---- documents -------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #5f6670; --line: #d7dbe0;
  --page: #b42318; --warn: #92600a; --ok: #1a7f37; --unknown: #5f6670; --box: #f5f6f8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #16181b; --soft: #9aa2ad; --line: #34383e;
  --page: #ff8a80; --warn: #f0b849; --ok: #5ccf7c; --unknown: #9aa2ad; --box: #1f2226 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0 0 1rem } h2 { font-size: 1.05rem; margin: 0 0 .4rem }
section { border-top: 1px solid var(--line); padding: .9rem 0; break-inside: avoid }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .15rem 1rem; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.page { color: var(--page) } .warn { color: var(--warn) } .ok { color: var(--ok) } .unknown { color: var(--unknown) }
code, pre { font-family: ui-monospace, monospace; font-size: .875rem }
pre { background: var(--box); padding: .6rem .8rem; margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
@media print { body { max-width: none; padding: 0; font-size: 10pt } }
"""


def page(title: str, body: str, style: str = STYLE, scripts: bool = False) -> str:
    """A whole page in one file: `body` is HTML, styles are inside, nothing is fetched from anywhere.

    scripts: whether those in the body may run; such a page has an icon, empty, so that no browser asks for one.
    """
    allowed = "img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    policy, icon = (allowed, '<link rel="icon" href="data:,">\n') if scripts else ("style-src 'unsafe-inline'", "")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {policy}">
{icon}<title>{html(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>"""


def html(text: str) -> str:
    """Text as HTML shows it."""
    return escape(harmless(text))


def markdown(text: str) -> str:
    """Text as Markdown shows it: what would be markup there is not."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", harmless(text))
