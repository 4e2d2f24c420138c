"""Rendered records with what counts in colour: for a terminal, and as a page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from align.data.rendering.shown import CLOSE, OPEN
from align.ground.terminal import printable

COLOUR, PLAIN = "\x1b[30;42m", "\x1b[0m"
ISOLATE, END = "\u2068", "\u2069"
"""Around a text whose direction its own letters say, in a terminal that knows directions."""


def in_terminal(text: str, colour: bool) -> str:
    """A marked text (`align.data.rendering.shown.marked`) line by line; in colour in place of marks."""
    shown = printable(text)
    return shown.replace(OPEN, COLOUR).replace(CLOSE, PLAIN) if colour else shown


STYLE = """
body { font: 15px/1.5 ui-sans-serif, system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; unicode-bidi: plaintext; text-align: start;
      border: 1px solid #8886; border-radius: 6px; padding: .6em .8em }
mark { background: #b6f0c2; color: inherit } small { color: #777 }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } mark { background: #1d5a2c } }
"""


def page(title: str, rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A page of (where a record stands, its marked texts); each paragraph runs in the direction of its own letters."""
    parts = []
    for where, texts in rows:
        parts.append(f"<p><small>{escape(where)}</small></p>")
        for text in texts:
            inside = escape(text).replace(OPEN, "<mark>").replace(CLOSE, "</mark>")
            parts.append(f'<pre dir="auto">{inside}</pre>')
    head = (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>'
    )
    legend = "<p><mark>What is marked</mark> is learnt; all else is only read.</p>"
    return f"{head}<body><h1>{escape(title)}</h1>{legend}{''.join(parts)}</body></html>\n"
