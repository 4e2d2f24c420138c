"""What the pages for readers hold: README.md, CHANGELOG.md and docs/, their blocks, commands, links and headings."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align import cli
from align.ground.errors import InputError
from align.recipe import parse_flags
from align.stage import catalogue
from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
"""In the order in which their blocks run: later pages use what the README's commands made."""
FENCED = re.compile(r"```.*?```", re.DOTALL)
CALL = re.compile(r"(^|time )align \w|-m align\.\w")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, its text, and the line of prose before it."""

    language: str
    tags: tuple[str, ...]
    text: str
    before: str


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"(?:^|\n)([^\n]*)\n+```(\w+)([^\n]*)\n(.*?)\n```", text, re.DOTALL)
    return [
        Block(language, tuple(tags.split()), body, before)
        for before, language, tags, body in (m.groups() for m in found)
    ]


def prose(text: str) -> list[str]:
    """Lines outside code, tables and pictures."""
    return [line for line in FENCED.sub("", text).splitlines() if not line.startswith(("|", "!["))]


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, headings included, each as its cells."""
    lines = [line for line in FENCED.sub("", text).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.count("#")
    rest = text.partition(f"{heading}\n")[2]
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def names(cell: str) -> list[str]:
    """The code spans of a cell."""
    return re.findall(r"`([^`]+)`", cell)


# ---- commands --------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Every line of a shell block, every line after a `$`, and every code span that calls Align with something; those
    with an ellipsis are no whole commands, nor those with a word in capitals for a name of the reader's."""
    shown = [(block, line) for block in blocks(text) for line in block.text.splitlines()]
    lines = [line.removeprefix("$ ") for block, line in shown if block.language == "sh" or line.startswith("$ ")]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
    for command in [*lines, *spans]:
        if CALL.search(command) and "…" not in command and not command.endswith(("--help", "--help all")):
            yield command


def parse(command: str) -> None:
    """Read a command as Align would, without doing it. Raises: InputError."""
    name, rest = called(command)
    if name in catalogue.commands():
        parse_flags(importlib.import_module(f"align.{name}").Config, rest, prog=f"align {name}")
    elif name in cli.COMMANDS:
        cli.command_of(name).parser(name).parse_intermixed_args(rest)
    else:
        raise InputError(f"align has no command {name!r}")


def called(command: str) -> tuple[str, list[str]]:
    """The name of Align's command, and what is given to it."""
    words = shlex.split(command, comments=True)
    at = words.index("-m") + 1 if "-m" in words else words.index("align") + 1
    at += words[at] == "align"  # python -m align data …
    if words[at] == "data" and words[at + 1] in catalogue.DATA:
        at += 1
    elif words[at] == "data":
        return " ".join(words[at : at + 2]), words[at + 2 :]
    return words[at].removeprefix("align."), words[at + 1 :]


# ---- links -----------------------------------------------------------------------------------------------------------


def links(text: str) -> list[tuple[str, str]]:
    """(path, heading) of every link inside the project; either may be empty."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text))
    return [(path, at) for path, _, at in (link.partition("#") for link in found if "://" not in link)]


def anchors(text: str) -> set[str]:
    """Headings as GitHub names them in an address."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
