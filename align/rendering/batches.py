"""Many records rendered part by part: what has been made lies in a file, and is made once.

Of a part's texts, offsets and lists nothing stays but its rows in the file, so memory does not grow with the data set;
the file is kept under the digest of the records and of all that decides what they are rendered as.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

from align.data.counts import Counts
from align.data.examples import Example
from align.data.records import Message, R
from align.ground.bounds import bounded_each
from align.ground.errors import InputError, NothingLeft
from align.ground.heap import set_aside
from align.ground.json import Json
from align.ground.progress import Task
from align.ground.terminal import say
from align.recipe import BadRows
from align.rendering.example_table import ExampleTable, Writer
from align.rendering.lengths import Truncate
from align.rendering.special import Policy
from align.rendering.turns import Turns

T = TypeVar("T")
PART = 1000
"""Records that are rendered at once."""
MANY = 10_000
"""Records from which what is made lies in a file."""
FORM = 2
"""Raised where other examples are made of the same records and settings."""

Keep = Callable[[str, Iterable[memoryview]], AbstractContextManager[Path]]
"""(key, what makes its content) -> the file of that key: `Store.cached_file`."""
Make = Callable[[Sequence[R]], list[Example]]


class Rendering(Protocol):
    """What renders, and all that decides what records are rendered as."""

    max_length: int
    truncate: Truncate
    special_tokens: Policy
    bad_rows: BadRows
    apart: bool
    turns: Turns
    counts: Counts
    keep: Keep | None

    def contract(self) -> Json: ...


def parts_of(records: Sequence[R], make: Make[R]) -> Iterator[list[Example]]:
    """Examples of each part of the records, told as a part of the work."""
    with Task("rendering", len(records), "records") as work, set_aside():
        for start in range(0, len(records), PART):
            part = records[start : start + PART]
            yield make(part)
            work.add(len(part))


def made(renderer: Rendering, kind: str, records: Sequence[R], make: Make[R]) -> Sequence[Example]:
    """Examples of records; of `MANY` of them, and of few beside them, in a file that later runs share."""
    if max(len(records), renderer.counts.records) < MANY:
        return [example for part in parts_of(records, make) for example in part]
    before, rendered = renderer.counts.copy(), False

    def content() -> Iterator[memoryview]:
        nonlocal rendered
        rendered = True
        writer = Writer()
        yield writer.opening()
        for part in parts_of(records, make):
            yield writer.part(part)
        yield writer.ending(renderer.counts.since(before))

    keep = renderer.keep or _in_passing
    with keep(_key(renderer, kind, records), content()) as path:
        table = ExampleTable(path)
    if not rendered:
        renderer.counts.add(table.counts)
        say(f"the tokens of {len(records):,} records were made before, and are taken from there")
    return table


def renderable(renderer: Rendering, render: Callable[[R], T], records: Sequence[R]) -> list[tuple[R, T]]:
    """(record, what it is rendered as), without those that cannot be rendered where `bad_rows: drop` is set."""
    rows, counts = [], renderer.counts
    with bounded_each():
        for record in records:
            before = counts.of_dialogues()
            try:
                rows.append((record, render(record)))
                counts.once(before)
            except InputError as error:
                if renderer.bad_rows == "error":
                    raise
                counts.once(before)
                counts.left_out.bad(record.where, error)
    return rows


def check_some(renderer: Rendering, records: Sequence[R], left_out: int) -> None:
    """Not all are left out. Raises: NothingLeft."""
    if records and left_out == len(records):
        raise NothingLeft(f"none of the {len(records):,} records can be rendered: {renderer.counts.left_out}")


@contextmanager
def _in_passing(key: str, content: Iterable[memoryview]) -> Iterator[Path]:
    """A file that is gone once nobody has it open."""
    descriptor, name = tempfile.mkstemp(prefix="align-", suffix=".arrow")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in content:
                file.write(part)
        yield Path(name)
    finally:
        os.unlink(name)


def _key(renderer: Rendering, kind: str, records: Iterable[object]) -> str:
    """sha256 of all that decides what records are rendered as."""
    settings = (renderer.max_length, renderer.truncate, renderer.special_tokens, renderer.bad_rows, renderer.apart)
    libraries = [version(name) for name in ("transformers", "tokenizers", "jinja2", "trl")]
    decides = [FORM, kind, renderer.contract(), settings, renderer.turns.special.rows, libraries]
    seen = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
    for record in records:
        seen.update(repr(_content(record)).encode("utf-8", "surrogatepass"))
    return seen.hexdigest()


def _content(record: object) -> object:
    """A record without its place, as what Python writes alike in every run."""
    if isinstance(record, tuple):
        return [_content(item) for item in record]
    if isinstance(record, Message):
        m = record
        return (m.role, m.content, m.reasoning, m.tool_calls, m.tool_call_id, m.name, m.learn)
    if hasattr(record, "__dataclass_fields__"):
        return [_content(getattr(record, f.name)) for f in fields(record) if f.compare]  # type: ignore[arg-type]
    return record
