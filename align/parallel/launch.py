"""The processes of a run, started and watched by torchrun's own engine: the first one's lines are the terminal's, each
other's go to files; where one dies, all end, and what it was is said; a signal to stop reaches all."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    ProcessFailure,
    SignalException,
    Std,
    start_processes,
)
from torch.distributed.elastic.utils.distributed import get_free_port

from align.ground.errors import AlignError, Stopped
from align.ground.ranks import GONE, LAUNCHER
from align.ground.terminal import say

SECONDS = 30
"""What processes have to end in by themselves once they are asked to."""
IN_VAIN = 8
"""Seconds that they have once one of them has died, which some may be waiting for where no signal reaches them."""
LAST = 3
"""Lines of a dead process that are shown."""


def environments(here: int, nodes: int, node: int, head: str | None) -> dict[int, dict[str, str]]:
    """What each of the `here` processes of this machine, number `node` of `nodes`, is told. `head`: HOST:PORT of the
    first machine, where there are several."""
    address, port = head.rsplit(":", 1) if head else ("127.0.0.1", str(get_free_port()))
    shared = {
        "WORLD_SIZE": here * nodes,
        "LOCAL_WORLD_SIZE": here,
        "GROUP_RANK": node,
        "TORCHELASTIC_RUN_ID": "align",  # in the names of log files
        LAUNCHER: os.getpid(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // here)),
    }
    each = {local: {**shared, "LOCAL_RANK": local, "RANK": node * here + local} for local in range(here)}
    return {local: {name: str(value) for name, value in told.items()} for local, told in each.items()}


def command(words: Sequence[str]) -> tuple[str, ...]:
    """What Python is given."""
    return ("-m", "align", *words)


def launch(words: Sequence[str], told: Mapping[int, dict[str, str]], logs: str | None) -> None:
    """Run `align WORDS` in each of these environments until all have ended.

    Raises: AlignError naming the process that died. Exits as the first process does where that says itself what was
    wrong, and with 75 after a signal that all answered.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    folder = logs or tempfile.mkdtemp(prefix="align-")
    quiet = {local: Std.ALL for local, of in told.items() if of["RANK"] != "0"}
    if quiet:
        say(f"{told[0]['WORLD_SIZE']} processes; what all but the first say is in {folder}")
    context = start_processes(
        "align",
        sys.executable,
        dict.fromkeys(told, command(words)),
        dict(told),
        DefaultLogsSpecs(log_dir=folder, redirects=quiet or Std.NONE),
        start_method="spawn",
    )
    dead = _noted(context)
    try:
        result = context.wait()
    except SignalException as stop:
        context.close(death_sig=signal.Signals(stop.sigval), timeout=SECONDS)
        handlers = context.subprocess_handlers.items()  # type: ignore[attr-defined]
        codes = {told[local]["RANK"]: handler.proc.returncode for local, handler in handlers}
        if set(codes.values()) <= {0, Stopped.exit_code}:
            sys.exit(Stopped.exit_code)  # the first has said so
        others = [f"process {r} {_how(code)}" for r, code in codes.items() if code not in (0, Stopped.exit_code)]
        raise AlignError(
            f"stopped, but {', '.join(others)}: what all but the first said is in {folder}. The same command goes on "
            "from what was done."
        ) from stop
    finally:
        context.close()
    if result is not None and result.failures:
        _explain(context, min(result.failures.values(), key=lambda failure: _blame(context, failure, dead)), told)


def _noted(context: PContext) -> set[int]:
    """Those that will be found dead when the others are first asked to end, which have `IN_VAIN` for it."""
    dead: set[int] = set()
    close = context.close

    def noting(death_sig: signal.Signals | None = None, timeout: int = IN_VAIN) -> None:
        if not dead:
            handlers = context.subprocess_handlers.items()  # type: ignore[attr-defined]
            dead.update(local for local, handler in handlers if handler.proc.poll())
        close(death_sig, timeout)

    context.close = noting  # type: ignore[method-assign]
    return dead


def _blame(context: PContext, failure: ProcessFailure, dead: set[int]) -> tuple[bool, bool, bool, bool, bool, int]:
    """What was `dead` before anyone was asked to end comes first, then what was not asked, a signal before what missed
    its sender, and what failed alone, with words of its own, before the first process, which says what is wrong with
    all."""
    code, words = failure.exitcode, _last(context, failure)
    alone = words and not words[-1].startswith(GONE)
    asked_to = code in (-signal.SIGTERM, Stopped.exit_code)
    return failure.local_rank not in dead, asked_to, code >= 0, not alone, failure.local_rank != 0, failure.timestamp


def _last(context: PContext, failure: ProcessFailure) -> list[str]:
    """Its last lines, where they went to a file."""
    file = context.stderrs[failure.local_rank]
    return Path(file).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST:] if file else []


def _explain(context: PContext, failure: ProcessFailure, told: Mapping[int, dict[str, str]]) -> None:
    rank, code = told[failure.local_rank]["RANK"], failure.exitcode
    if code == Stopped.exit_code or (rank == "0" and code > 0):
        sys.exit(code)  # it has said why
    file = context.stderrs[failure.local_rank]
    last = "".join([".", *(f"\n  {line}" for line in _last(context, failure))])
    raise AlignError(
        f"process {rank} of {told[0]['WORLD_SIZE']} {_how(code)}, and with it the run; the same command goes on from "
        f"what was done.{f' Its lines are in {file}{last}' if file else ''}"
    )


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
