"""What a person sees in the terminal: one message and an exit code for everything that goes wrong, and lines of progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from align.errors import AlignError, Stopped


def say(line: str) -> None:
    """One line of progress on stderr, from the first process alone."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, file=sys.stderr, flush=True)


def guarded(body: Callable[[], None]) -> None:
    """Run a command; an error that a person can act on is printed as its message alone. Exits with 0, 1, 2 or 75."""
    try:
        body()
    except AlignError as error:
        sys.stdout.flush()
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what was done", file=sys.stderr)
        sys.exit(Stopped.exit_code)
    except BrokenPipeError:  # `align ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
