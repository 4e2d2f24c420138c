"""Commands that look on while runs go: in a terminal, and on a local page."""

from __future__ import annotations

import argparse
from contextlib import suppress

from align.cli.flags import Command
from align.ground.terminal import say
from align.store import Store


def watch_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ref", metavar="REF", nargs="?", help="a run's name, or a recipe's; without it, the newest run at work"
    )


def watch(args: argparse.Namespace) -> None:
    """Draw the curves of a run at work, from another window, until it ends; Ctrl-C stops looking, not the run. A run
    that is done is drawn once, one that has not begun is waited for. Exits with 0 when it is done, and with 75 when it
    ended before."""
    from align.watching import terminal

    terminal.watch(Store(args.store), args.ref)


def board_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=0, help="where it listens; without it, at a port that is free")
    parser.add_argument("--open", action="store_true", help="open it in a browser")


def board(args: argparse.Namespace) -> None:
    """A page of this machine alone that shows the runs of the store, at work and done: curves over each other, answers
    to the same prompts over time, settings that differ. Ctrl-C ends it."""
    import webbrowser

    from align.stage import catalogue
    from align.watching.board import Board, BoardServer

    with BoardServer(Board(Store(args.store), catalogue.defaults), args.port) as server, suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        say("Ctrl-C ends the board; runs go on.")
        if args.open:
            webbrowser.open(server.url)
        server.serve_forever()


COMMANDS = {"watch": Command(watch_flags, watch), "board": Command(board_flags, board)}
