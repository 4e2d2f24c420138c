"""How does a run in several processes end when one of them is killed, or stopped?  `python -m tests.benchmarks.ranks
[--kills 10] [--signal KILL|STOP] [--processes 2] [--steps 120] [--early] [--seed 0]`

SFT of data/tiny-base by `align launch`: once undisturbed, then `--kills` times with the signal to a random process at a
random moment after the first checkpoint (`--early`: from the moment on that the processes are there, a checkpoint or
not), and the same command again. Prints after how many seconds all processes were gone and the command had ended,
whether it named the one that was struck, from which checkpoint it went on, and whether the artifact's digest is the
undisturbed one's. Exits with 1 where one took over 20 s, was not named, or is not equal.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from align.store import Store
from tests.benchmarks.kills import checkpoint_of, environment

ROOT = Path(__file__).parents[2]
LIMIT = 20
"""Seconds that all have to end in."""
EVERY = 10
"""Steps between two checkpoints."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--signal", choices=("KILL", "STOP"), default="KILL")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of the run")
    parser.add_argument("--early", action="store_true", help="from the start on, not from the first checkpoint on")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    number, draw, wrong = signal.Signals[f"SIG{args.signal}"], random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = written(folder, args.steps)
        seconds = undisturbed(recipe, folder / "whole", args.processes, args.early)
        whole = digest(folder / "whole")
        print(f"undisturbed: {whole}, {seconds:.1f} s from there on\n")
        print("process  after s  all gone s  ended s  named  went on after step  equal", flush=True)
        for trial in range(args.kills):
            store = folder / str(trial)
            victim, wait = trial % args.processes, draw.uniform(0, seconds)
            while (seen := struck(recipe, store, args.processes, args.early, number, victim, wait)) is None:
                wait /= 2  # this run was faster, and had ended
                shutil.rmtree(store)
            gone, ended, named = seen
            step = checkpoint_of(store)
            ended_well(started(recipe, store, args.processes))
            equal = digest(store) == whole
            wrong += not (named and equal and max(gone, ended) <= LIMIT)
            print(
                f"{victim:7}  {wait:7.1f}  {gone:10.1f}  {ended:7.1f}  {named!s:5}  {step:18}  {equal!s:5}", flush=True
            )
            shutil.rmtree(store)
    print(f"\n{args.kills - wrong} of {args.kills} as they should be")
    sys.exit(1 if wrong else 0)


def written(folder: Path, steps: int) -> Path:
    """The recipe: SFT that writes a checkpoint every few steps."""
    from tests.conftest import write_world

    write_world(folder)
    recipe = folder / "ranks.yaml"
    recipe.write_text(
        f"precision: fp32\nthreads: 1\nstages:\n  sft: {{base: {ROOT / 'data/tiny-base'}, data: sft.jsonl, max_steps: "
        f"{steps}, batch_size: 4, learning_rate: 0.0002, checkpoint_steps: {EVERY}, logging_steps: 1}}\n"
    )
    return recipe


def started(recipe: Path, store: Path, processes: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "align", "launch", str(recipe), "--processes", str(processes), "--store", str(store)]
    return subprocess.Popen(words, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def begins(process: subprocess.Popen[str], store: Path, processes: int, early: bool) -> dict[int, int]:
    """Wait for its processes, and for its first checkpoint unless it is `early`: their numbers by rank."""
    while process.poll() is None:
        ranks = ranks_of(process.pid)
        if len(ranks) == processes and (early or checkpoint_of(store)):
            return ranks
        time.sleep(0.02)
    raise RuntimeError(f"the run ended with {process.returncode}:\n{process.communicate()[1]}")


def ranks_of(launcher: int) -> dict[int, int]:
    """The processes that it started, by rank."""
    found: dict[int, int] = {}
    for pid in map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            found |= {int(word.split("=")[1]): pid for word in words if word.startswith("RANK=")}
    return found


def undisturbed(recipe: Path, store: Path, processes: int, early: bool) -> float:
    """The command up to its end: seconds from where on a process may be struck."""
    process = started(recipe, store, processes)
    begins(process, store, processes, early)
    begun = time.monotonic()
    ended_well(process)
    return time.monotonic() - begun


def ended_well(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}:\n{errors}")


def digest(store: Path) -> str:
    return Store(store).resolve("ranks/sft").digest


def struck(
    recipe: Path, store: Path, processes: int, early: bool, number: signal.Signals, victim: int, wait: float
) -> tuple[float, float, bool] | None:
    """The command, of which one process gets the signal: after how many seconds all processes were gone, and the
    command had ended, and whether it named that one. None where it had ended before."""
    process = started(recipe, store, processes)
    ranks = begins(process, store, processes, early)
    time.sleep(wait)
    if not all(map(lives, ranks.values())):
        process.communicate()
        return None
    begun = time.monotonic()
    os.kill(ranks[victim], number)
    while any(map(lives, ranks.values())):
        time.sleep(0.02)
    gone = time.monotonic() - begun
    process.wait()
    ended = time.monotonic() - begun
    _, errors = process.communicate()
    if os.environ.get("SHOW"):
        print(process.returncode, errors, file=sys.stderr)
    return gone, ended, process.returncode == 1 and f"process {victim} of {processes}" in errors


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    main()
