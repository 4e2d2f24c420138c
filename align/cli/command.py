"""The console script: which command is meant, and who does it."""

from __future__ import annotations

import difflib
import importlib
import runpy
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext

from align.cli.flags import Command
from align.ground.errors import InputError
from align.ground.progress import Work
from align.ground.terminal import ANEW, GOES_ON, guarded
from align.stage import catalogue

COMMANDS = {
    **dict.fromkeys(("run", "sweep"), "recipes"),
    "launch": "launch",
    **dict.fromkeys(("ls", "show", "lineage", "diff", "compare", "combine", "tag", "rm", "gc", "verify"), "artifacts"),
    **dict.fromkeys(("watch", "board"), "looking"),
    **dict.fromkeys(("data inspect", "data show"), "data"),
    **dict.fromkeys(("checkout", "push", "pull", "import", "locate"), "remotes"),
}
"""Commands that are no stages -> the file of this room that has them, imported when one is asked for."""

MEANT = {"list": "ls", "log": "ls", "remove": "rm", "delete": "rm", "train": "sft"}
MEANT |= dict.fromkeys(("eval", "report"), "evaluate")
"""What other tools call a command of ours, where the words are not near."""

GO_ON = ("run", "sweep", "launch", "push", "pull")
"""Those that, once stopped, go on from what was done; stages alone say it themselves."""

REST = (
    "`align help COMMAND` explains one. REF is a name, a digest, or the beginning of one. The store is --store, else "
    "$ALIGN_STORE, else .align/ in the working folder. Exit codes: 0 done or skipped, 1 failed, 2 bad input, 75 "
    "stopped and can go on."
)


def command_of(name: str) -> Command:
    """What a command of `COMMANDS` reads and does."""
    command: Command = importlib.import_module(f"align.cli.{COMMANDS[name]}").COMMANDS[name]
    return command


def help_text() -> str:
    """What `align --help` says."""
    others = {name: text for name, text in catalogue.commands().items() if name not in catalogue.DATA}
    stages = "\n".join(f"  {name:<20}{text}" for name, text in others.items())
    made = "\n".join(f"  {f'data {name}':<20}{text}" for name, text in catalogue.DATA.items())
    text = f"""usage: align COMMAND …

LoRA alignment on one frozen base: pretrain, SFT, reward, DPO, PPO, GRPO, merge and evaluate, from one recipe.

recipes
  run RECIPE          run a recipe's stages that are not done yet
  sweep RECIPE        run it for each of several values: --set stages.dpo.beta=0.05,0.1,0.2
  launch RECIPE       run it in several processes: --processes 2, or one for each GPU

looking on
  watch [REF]         the curves of a run at work, in the terminal of another window
  board               a local page: the runs of the store, their curves over each other

data
  data inspect FILE   what a file holds: shape, lengths, turns, duplicates, garbled characters; tokens with --base
  data show FILE      its first records; with --mask --base MODEL as a model reads them, what counts in colour
{made}

artifacts
  ls                  the named artifacts of the store
  show REF            one artifact: where it came from, what it cost, how to load it
  lineage REF         its ancestors as a tree
  compare A B …       runs beside each other: settings that differ, figures, curves
  diff A B            how two artifacts differ, from settings to files
  combine REF REF …   several runs of one thing, such as seeds: means and their intervals
  tag REF NAME        give an artifact a name; a taken name moves
  rm NAME …           take names away; their artifacts stay until gc
  gc                  say what no name reaches any more; --delete removes it
  verify              read the whole store and name what is damaged
  checkout REF DIR    copy its files into a folder
  push URL [REF …]    send artifacts, with what they were made from, to s3://…, file://… or hf://user/name
  pull URL [REF …]    fetch them from there
  import DIR          take in an adapter that PEFT saved
  locate DIR          tell the store where a base lies now

stages alone (also python -m align.STAGE)
{stages}

{REST}"""
    return _wrapped(text)


def _wrapped(text: str, column: int = 22) -> str:
    """A list of commands within the terminal's width: what goes on stands below what a command does, from a column
    on."""
    columns = min(shutil.get_terminal_size().columns, 100)
    wrapped = [
        textwrap.wrap(line, columns, subsequent_indent=" " * column * line.startswith(" "))
        for line in text.splitlines()
    ]
    return "\n".join("\n".join(lines) for lines in wrapped)


def main() -> None:
    """The console script. Exits with 0, 1, 2 or 75."""
    words = sys.argv[1:]
    command = words[0] if words else ""
    looks_on = command == "chat" or COMMANDS.get(command) in ("looking", "artifacts")
    guarded(lambda: dispatch(words), "stopped" if looks_on else GOES_ON if command in GO_ON else ANEW)


def dispatch(argv: Sequence[str]) -> None:
    """Run one command line. Raises: AlignError."""
    command, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if command == "data" and rest and rest[0] in catalogue.DATA:
        command = rest.pop(0)
    elif command == "data" and rest and f"data {rest[0]}" in COMMANDS:
        command = f"data {rest.pop(0)}"
    if command == "help" and rest not in ([], ["all"]):
        words = 2 if rest[0] == "data" else 1
        dispatch([*rest[:words], "--help", *rest[words:]])
    elif command in ("-h", "--help", "help"):
        print(help_text())
    elif command == "data" and not {*rest} - {"-h", "--help"}:
        known = {name: str(command_of(name).body.__doc__) for name in COMMANDS if name.startswith("data ")}
        known |= {f"data {name}": text for name, text in catalogue.DATA.items()}
        print(_wrapped("\n".join(f"  align {name:<20}{does}" for name, does in known.items()), 28))
    elif command == "--version":
        from importlib.metadata import version

        print(f"align {version('align-rlhf')}")
    elif command in catalogue.commands():
        sys.argv = [f"align {command}", *rest]
        runpy.run_module(f"align.{command}", run_name="__main__", alter_sys=True)
    elif command in COMMANDS:
        found = command_of(command)
        args = found.parser(command).parsed(rest)
        with Work(command) if command.startswith("data ") else nullcontext():  # other commands tell of their own work
            found.body(args)
    else:
        command = f"data {rest[0]}" if command == "data" else command
        names = [*COMMANDS, *catalogue.commands(), *(f"data {name}" for name in catalogue.DATA)]
        near = difflib.get_close_matches(MEANT.get(command, command), names, 1, 0.6)
        raise InputError(
            f"align has no command {command!r}; "
            + (f"did you mean {near[0]}?" if near else "`align --help` lists them.")
        )
