"""What the commands read alike: a parser whose errors are ours, and the flags that several share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from align.ground.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}\n{self.format_usage().strip()}")


class Command(NamedTuple):
    """A command: what reads its flags, and what it does; the docstring of that is its help."""

    flags: Callable[[argparse.ArgumentParser], None]
    body: Callable[[argparse.Namespace], None]

    def parser(self, name: str) -> Parser:
        """Reads `align NAME …`."""
        parser = Parser(prog=f"align {name}", description=self.body.__doc__)
        parser.add_argument(
            "--store", metavar="DIR", help="the store; without it, $ALIGN_STORE, else .align/ in the working folder"
        )
        self.flags(parser)
        return parser


def none(parser: argparse.ArgumentParser) -> None:
    """For a command without flags of its own."""


def ref(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="a name, a digest, or the beginning of one")


def as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def to_json(value: object) -> str:
    """As `--json` prints it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
