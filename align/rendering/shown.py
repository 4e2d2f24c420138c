"""What a model reads of a row: its tokens decoded, with «…» around those that count; in a terminal and as a page of
HTML, in colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from align.data.examples import Example
from align.data.records import Preference, Ranking
from align.ground.terminal import one_line, printable

WIDTH, LINES = 80, 6
OPEN, CLOSE = "«", "»"
ESCAPED = {ord(OPEN): "\\u00ab", ord(CLOSE): "\\u00bb"}
"""How a row's own guillemets are shown."""
COLOUR, PLAIN = "\x1b[30;42m", "\x1b[0m"
STYLE = """
body { font: 15px/1.5 ui-sans-serif, system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; unicode-bidi: plaintext; text-align: start;
      border: 1px solid #8886; border-radius: 6px; padding: .6em .8em }
mark { background: #b6f0c2; color: inherit } small { color: #777 } h2 { font-size: 1em; margin: 1em 0 -.6em }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } mark { background: #1d5a2c } }
"""


def marked(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], counts: Sequence[bool]) -> str:
    """The text of `ids`, special tokens as they are called, with marks around what counts."""
    out, before = "", ""
    at = 0
    for counted, run in groupby(counts):
        at += len(list(run))
        text = str(tokenizer.decode(list(ids[:at]), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        # of the whole so far: a piece alone may lose its first blank
        piece, before = text[len(before) :].translate(ESCAPED), text
        out += f"{OPEN}{piece}{CLOSE}" if counted else piece
    return out


def example_as_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[str]:
    """Each sequence of an example, marked, in the order of `titles_of` its record."""
    return [marked(tokenizer, ids, counts) for ids, counts in zip(example.sequences, example.supervised, strict=True)]


def titles_of(record: object) -> list[str]:
    """What the sequences of a record are called: of a pair chosen and rejected; of one alone nothing."""
    return list(record.answers) if isinstance(record, Preference | Ranking) else [""]


def block(title: str, text: str, lines: int = LINES, indent: str = "") -> list[str]:
    """A text behind a title, on at most so many lines of `WIDTH` columns: breaks and what a terminal would obey are
    escaped, and of one that is too long the middle is left out."""
    body = WIDTH - len(indent) - 2
    first = body - len(title)
    shown, room = one_line(text), first + (lines - 1) * body
    if len(shown) > room:
        shown = f"{shown[: room // 3]} … {shown[-(room - room // 3 - 3) :]}"
    rest = (shown[at : at + body] for at in range(first, len(shown), body))
    return [f"{indent}{title}: {shown[:first]}", *(f"{indent}  {part}" for part in rest)]


def in_terminal(text: str, colour: bool) -> str:
    """A marked text (see `marked`) line by line; in colour in place of marks."""
    shown = printable(text)
    return shown.replace(OPEN, COLOUR).replace(CLOSE, PLAIN) if colour else shown


def page(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """A page of (where a record stands, its marked texts behind what each is called); each paragraph runs in the
    direction of its own letters."""
    parts = []
    for where, texts in rows:
        parts.append(f"<p><small>{escape(where)}</small></p>")
        for called, text in texts:
            parts += [f"<h2>{escape(called)}</h2>"] if called else []
            inside = escape(text).replace(OPEN, "<mark>").replace(CLOSE, "</mark>")
            parts.append(f'<pre dir="auto">{inside}</pre>')
    head = (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>'
    )
    legend = "<p><mark>What is marked</mark> is learnt; all else is only read.</p>"
    return f"{head}<body><h1>{escape(title)}</h1>{legend}{''.join(parts)}</body></html>\n"
