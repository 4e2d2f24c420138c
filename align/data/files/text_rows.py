"""Documents of a text file.

Once upon a time
<|endoftext|>
Another one
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from align.data.files.sources import Table, as_they_are, whole_text
from align.data.records import Row

END_OF_TEXT = "<|endoftext|>"


def text_rows(path: Path) -> Table:
    """Documents between lines of <|endoftext|>, or, without any, between blank lines. Raises: InputError."""
    text, words = whole_text(path)
    lines = io.StringIO(text, newline=None).read().split("\n")  # a line ends with \n, \r\n or \r, and with nothing else
    marked = any(line.strip() == END_OF_TEXT for line in lines)
    form = f"plain text, documents between {END_OF_TEXT if marked else 'blank lines'}{words}"
    return Table(form, as_they_are(_documents(path, lines, marked)))


def _documents(path: Path, lines: list[str], marked: bool) -> Iterator[tuple[str, Row]]:
    start, document = 1, list[str]()
    for number, line in enumerate([*lines, END_OF_TEXT], 1):
        if line.strip() == END_OF_TEXT or (not marked and not line.strip(" \t")):
            if any(map(str.strip, document)):
                yield f"{path}:{start}", {"text": "\n".join(document).strip("\n")}
            document = []
        else:
            if not document:
                start = number
            document.append(line)
