"""What the commands read alike: a parser whose errors are ours, and the flags that several share."""

from __future__ import annotations

import argparse
import json
from typing import NoReturn

from align.ground.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}\n{self.format_usage().strip()}")


def none(parser: argparse.ArgumentParser) -> None:
    """For a command without flags of its own."""


def ref(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="a name, a digest, or the beginning of one")


def as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def to_json(value: object) -> str:
    """As `--json` prints it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
