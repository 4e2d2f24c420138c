"""`align launch`: a recipe in several processes."""

from __future__ import annotations

import argparse
import os

from align.cli import recipes
from align.cli.flags import Command
from align.ground import ranks
from align.ground.errors import InputError

PASSED = ("store", "from_", "until", "memory", "device")


def flags(parser: argparse.ArgumentParser) -> None:
    recipes.run_flags(parser)
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes on this machine; without it, one for each of its GPUs"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines; each is given this command")
    parser.add_argument("--node", type=int, default=0, metavar="I", help="which of them this is, from 0 on")
    parser.add_argument("--head", metavar="HOST:PORT", help="of the first one, where the others find it")
    parser.add_argument(
        "--straggler-timeout",
        default=str(ranks.LONGEST),
        metavar="SECONDS",
        help="end the run where the others have waited so long for a process that lives, and name it; 0: never "
        f"({ranks.LONGEST})",
    )
    parser.add_argument("--logs", metavar="DIR", help="where the lines of all but the first process go")


def launch(args: argparse.Namespace) -> None:
    """Run a recipe in several processes, as torchrun starts them. The first one's lines are shown, each other's go to
    a file. Where one dies all end, and what it was is said; SIGTERM and Ctrl-C leave a checkpoint and end with 75."""
    processes = args.processes if args.processes is not None else _gpus()
    if processes < 1 or args.nodes < 1 or not 0 <= args.node < args.nodes:
        raise InputError(
            f"launch: --processes {processes}, --nodes {args.nodes}, --node {args.node}: expected at least 1 process "
            "and node, and a node from 0 to nodes - 1."
        )
    if (args.nodes > 1) != (args.head is not None) or (args.head and not args.head.rpartition(":")[2].isdigit()):
        raise InputError(
            "launch: --nodes above 1 and --head HOST:PORT go together, such as --nodes 2 --head gpu01:29500."
        )
    ranks.checked_timeout(args.straggler_timeout, "launch: --straggler-timeout")
    if args.logs and os.path.exists(args.logs) and not os.path.isdir(args.logs):
        raise InputError(f"launch: --logs {args.logs} is a file; expected a folder.")
    if args.dry_run:  # one process says it for all
        os.environ["WORLD_SIZE"] = str(processes * args.nodes)
        recipes.run(args)
        return
    from align import pipeline

    # what is wrong with it is said before any process starts
    pipeline.load(args.recipe, args.set, store=recipes.store_given(args))
    from align.parallel import launch

    os.environ[ranks.STRAGGLER_TIMEOUT] = args.straggler_timeout
    words = ["run", args.recipe, *(word for value in args.set for word in ("--set", value))]
    for name in PASSED:
        value = getattr(args, name)
        words += [f"--{name.rstrip('_')}", value] if value is not None else []
    words += ["--json"] if args.json else []
    launch.launch(words, launch.environments(processes, args.nodes, args.node, args.head), args.logs)


def _gpus() -> int:
    """How many there are. Raises: InputError where there is none."""
    import torch

    if not (found := torch.cuda.device_count()):
        raise InputError("launch: this machine has no GPU to have a process each; say how many with --processes N.")
    return found


COMMANDS = {"launch": Command(flags, launch)}
