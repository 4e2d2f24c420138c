"""What the commands read alike: a parser whose errors are ours, and the flags that several share."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from align.ground.errors import InputError

UNKNOWN = "unrecognized arguments: "
MEANT = {
    **dict.fromkeys(("--nproc_per_node", "--nproc-per-node", "--num_processes", "--num-processes"), "--processes"),
    **dict.fromkeys(("--nnodes", "--num_machines"), "--nodes"),
    **dict.fromkeys(("--node_rank", "--node-rank", "--machine_rank"), "--node"),
    **dict.fromkeys(("--master_addr", "--master-addr", "--rdzv_endpoint", "--main_process_ip"), "--head"),
    **dict.fromkeys(("--n", "--limit"), "--rows"),
}
"""What torchrun, accelerate and other commands of ours call a flag."""
SAYS_SO = ("store", "url", "set")
"""What is looked at elsewhere, where more is said of an empty one."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours, which takes no half of a flag for it, and nothing empty."""

    def error(self, message: str) -> NoReturn:
        flag = message.removeprefix(UNKNOWN).split()[0] if message.startswith(UNKNOWN) else ""
        name, known = flag.partition("=")[0], self._option_string_actions
        meant = [MEANT[name]] if MEANT.get(name) in known else []
        near = meant or difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if flag.startswith("--") and near else ""
        raise InputError(f"{self.prog}: {message}{hint}\n{self.format_usage().strip()}")

    def parsed(self, words: Sequence[str]) -> argparse.Namespace:
        """The command line. Raises: InputError."""
        found = self.parse_intermixed_args(words)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            if action.dest not in SAYS_SO and "" in (given if isinstance(given, list) else [given]):
                self.error(f"{action.option_strings[0] if action.option_strings else action.metavar} is empty")
        return found


class Command(NamedTuple):
    """A command: what reads its flags, and what it does; the docstring of that is its help."""

    flags: Callable[[argparse.ArgumentParser], None]
    body: Callable[[argparse.Namespace], None]

    def parser(self, name: str) -> Parser:
        """Reads `align NAME …`."""
        parser = Parser(prog=f"align {name}", description=self.body.__doc__, allow_abbrev=False)
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
