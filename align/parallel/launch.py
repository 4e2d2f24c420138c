"""The processes of a run, told what torchrun tells its own: the first one's lines are the terminal's, each other's go
to a file; where one dies or stands still all end, and what it was is said; a signal to stop reaches all.

No torch is loaded here: whoever only waits starts at once, takes little memory and ends at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from align.ground.errors import AlignError, Stopped
from align.ground.leaving import stopping_signals
from align.ground.ranks import GONE, LATE, LAUNCHER
from align.ground.terminal import GOES_ON, on_stderr, redraws, say

LOOK = 0.1
"""Seconds between two looks at the processes."""
SECONDS = 30
"""What processes have to end in by themselves once they are asked to."""
IN_VAIN = 8
"""Seconds that they have once one of them has died, which some may be waiting for where no signal reaches them."""
STILL = 10
"""Seconds for which one may be suspended, as by SIGSTOP: the others wait for it meanwhile."""
STOPS = (0, Stopped.exit_code, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)
"""How a process may end that was asked to stop: as Python itself does where it is interrupted, too."""
LAST = 3
"""Lines of a dead process that are shown."""


def environments(here: int, nodes: int, node: int, head: str | None) -> dict[int, dict[str, str]]:
    """What each of the `here` processes of this machine, number `node` of `nodes`, is told. `head`: HOST:PORT of the
    first machine, where there are several."""
    address, port = head.rsplit(":", 1) if head else ("127.0.0.1", str(_free_port()))
    shared = {
        "WORLD_SIZE": here * nodes,
        "LOCAL_WORLD_SIZE": here,
        "GROUP_RANK": node,
        LAUNCHER: os.getpid(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # what one misses whose first has ended
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // here)),
    }
    each = {local: {**shared, "LOCAL_RANK": local, "RANK": node * here + local} for local in range(here)}
    return {local: {name: str(value) for name, value in told.items()} for local, told in each.items()}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(words: Sequence[str]) -> tuple[str, ...]:
    """What Python is given."""
    return ("-m", "align", *words)


@dataclass(eq=False)
class Process:
    """One of them, in a session of its own, so that a signal reaches all that it starts. `file`: where its lines go,
    None for the terminal."""

    words: Sequence[str]
    told: Mapping[str, str]
    file: Path | None
    still: int = 0
    """Looks in a row that found it suspended."""
    by: int = 0
    """The signal that suspended it."""
    taken: bool = False
    """Whether it was killed here, as it did not end."""
    work: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        given, environment = [sys.executable, *command(self.words)], {**os.environ, **self.told}
        lines = self.file.open("wb") if self.file else None
        with lines or nullcontext():
            self.work = subprocess.Popen(given, env=environment, stdout=lines, stderr=lines, start_new_session=True)

    @property
    def rank(self) -> str:
        return self.told["RANK"]

    @property
    def code(self) -> int | None:
        """How it ended: its exit code, a signal's number below 0; None while it works."""
        return self.work.poll()

    def send(self, number: int) -> None:
        if self.code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.work.pid, number)

    def look(self) -> None:
        """Whether it is suspended, and by which signal. Looks are counted, not seconds: of a machine that slept, or a
        launcher that was suspended too, the first look says nothing."""
        found = None
        if hasattr(os, "waitid") and self.code is None:  # macOS has none
            with suppress(ChildProcessError):
                found = os.waitid(os.P_PID, self.work.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        self.still, self.by = (self.still + 1, found.si_status) if found else (0, 0)

    def how(self) -> str:
        """It ended."""
        if self.code is None:
            return "did not end, killed though it was"
        if self.by:
            return f"was suspended by {signal.Signals(self.by).name} and did not go on for {STILL:g} seconds"
        code = self.code
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def last(self) -> list[str]:
        """Its last lines, where they went to a file."""
        text = self.file.read_text(encoding="utf-8", errors="replace") if self.file else ""
        return text.strip().splitlines()[-LAST:]


def launch(words: Sequence[str], told: Mapping[int, dict[str, str]], logs: str | None) -> None:
    """Run `align WORDS` in each of these environments until all have ended.

    Raises: AlignError naming the process that died. Exits as the first process does where that says itself what was
    wrong, and with 75 after a signal that all answered.
    """
    folder = _folder(logs) if len(told) > 1 or told[0]["RANK"] != "0" else None
    if folder:
        say(f"{told[0]['WORLD_SIZE']} processes; what all but the first say is in {folder}")
    processes: list[Process] = []
    try:
        with _heard() as asked:
            for of in told.values():
                file = folder / f"process-{of['RANK']}.log" if folder and of["RANK"] != "0" else None
                processes.append(Process(words, of, file))
            dead = _watched(processes, asked)
    finally:
        _end(processes, signal.SIGKILL, IN_VAIN)
        on_stderr("", end="", redraw=redraws())  # the line that a process drew that was killed
    failed = [process for process in processes if process.code != 0]
    if failed and asked:
        _all_stopped(processes, folder)
    elif failed:
        _explain(min(failed, key=lambda process: _blame(process, dead)))


def _folder(logs: str | None) -> Path:
    """A new one, in that of `logs` where one is given."""
    if logs:
        Path(logs).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-%H%M%S-") if logs else "align-", dir=logs))


@contextmanager
def _heard() -> Iterator[list[int]]:
    """The signals to stop that come inside, in their order."""
    came: list[int] = []
    interrupts = [signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else []
    before = {
        number: signal.signal(number, lambda n, _: came.append(n)) for number in (*interrupts, *stopping_signals())
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watched(processes: Sequence[Process], asked: Sequence[int]) -> set[str]:
    """Wait until all have ended, and pass on what is `asked`: the ranks of those that were found dead, or standing
    still, before anyone was asked to end."""
    while any(process.code is None for process in processes):
        if asked:
            say(f"stopping: the processes are asked to end, and have {SECONDS:g} seconds")
            # not SIGINT, of which Python ends with 1 and a traceback while it starts
            _end(processes, signal.SIGTERM if signal.SIGTERM in stopping_signals() else asked[0], SECONDS, asked)
            return set()
        still = _still(processes)
        dead = {process.rank for process in processes if process.code or process in still}
        if dead:
            _end(still, signal.SIGKILL, IN_VAIN)  # nothing else reaches them
            _end(processes, signal.SIGTERM, IN_VAIN)
            return dead
        time.sleep(LOOK)
    return {process.rank for process in processes if process.code}


def _still(processes: Sequence[Process]) -> list[Process]:
    """Those that others have waited for too long; where all of the run are suspended, nobody waits."""
    for process in processes:
        process.look()
    at_work = [process for process in processes if process.code is None]
    if int(processes[0].told["WORLD_SIZE"]) == len(processes) and all(process.still for process in at_work):
        for process in at_work:
            process.still = 0
    return [process for process in processes if process.still * LOOK >= STILL]


def _end(processes: Sequence[Process], number: int, seconds: float, asked: Sequence[int] = ()) -> None:
    """Ask them to end, again with each further signal that is `asked`, and take those that have not after `seconds`;
    what even that does not end, as where a disk or a GPU does not answer, is left behind."""
    for rest, how in ((seconds, number), (IN_VAIN, signal.SIGKILL)):
        for process in processes:
            process.taken |= process.code is None and number != signal.SIGKILL == how
            process.send(how)
        heard, until = len(asked), time.monotonic() + rest
        while any(process.code is None for process in processes) and time.monotonic() < until:
            for _ in asked[heard:]:
                for process in processes:
                    process.send(number)
            heard = len(asked)
            time.sleep(LOOK)


def _all_stopped(processes: Sequence[Process], folder: Path | None) -> None:
    """Exit with 75 where all did, as asked, or were killed for it. Raises: AlignError naming those that ended
    otherwise."""
    taken = [process.rank for process in processes if process.taken and process.code == -signal.SIGKILL]
    ended = [process for process in processes if process.code not in STOPS and process.rank not in taken]
    if others := [f"process {process.rank} {process.how()}" for process in ended]:
        where = f": what all but the first said is in {folder}" if folder else ""
        raise AlignError(f"stopped, but {', '.join(others)}{where}. The same command goes on from what was done.")
    for rank in taken:
        say(f"process {rank} did not end within {SECONDS:g} seconds and was killed; whole checkpoints stay")
    if taken or (processes[0].code or 0) < 0:  # before it could say anything
        say(GOES_ON)
    sys.exit(Stopped.exit_code)


def _blame(process: Process, dead: set[str]) -> tuple[bool, bool, bool, bool, bool]:
    """What was `dead` before anyone was asked to end comes first, then what was not asked, a signal before what missed
    its sender, and what failed alone, with words of its own, before the first process, which says what is wrong with
    all."""
    code, words = process.code or 0, process.last()
    alone = words and not words[-1].startswith((GONE, LATE))
    asked_to = code in (-signal.SIGTERM, Stopped.exit_code)
    return process.rank not in dead, asked_to, code >= 0, not alone, process.rank != "0"


def _explain(process: Process) -> None:
    code = process.code or 0
    if code == Stopped.exit_code or (process.rank == "0" and code > 0):
        sys.exit(code)  # it has said why
    last = "".join([".", *(f"\n  {line}" for line in process.last())])
    raise AlignError(
        f"process {process.rank} of {process.told['WORLD_SIZE']} {process.how()}, and with it the run; the same "
        f"command goes on from what was done.{f' Its lines are in {process.file}{last}' if process.file else ''}"
    )
