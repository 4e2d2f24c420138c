"""Does a stage that is killed end where it would have ended?  `python -m tests.benchmarks.kills [--kills 5] [--steps
12] [--seed 0]`

Runs the small recipe of the tests, then every stage that trains for `--steps` optimizer steps: once undisturbed, then
`--kills` times with `kill -9` at a random moment of a random step (while it computes, or while the checkpoint after it
is written), and the same command again. Prints the steps at which each was killed, from which checkpoint it went on,
and whether the artifact's digest is the undisturbed one's. Exits with 1 when one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
EVERY = {"checkpoint_steps": 3, "logging_steps": 2}
"""Steps between two checkpoints, and between two lines of metrics, so that a kill falls into the middle of either."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="per stage")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of a stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES)
    args = parser.parse_args()
    draw, wrong = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        recipe, store = prepared(Path(folder))
        print(f"{'stage':10} {'killed in step':24} {'went on after step':24} equal")
        for stage in args.stages:
            words = command(recipe, stage, args.steps)
            whole, seconds = undisturbed(words, stage, store, Path(folder) / "whole")
            killed_at, resumed_at, equal = [], [], 0
            for trial in range(args.kills):
                copy = shutil.copytree(store, Path(folder) / f"{stage}-{trial}")
                step, wait = draw.randint(1, args.steps), draw.uniform(0, 1.5 * seconds)
                killed(words, copy, step, wait)
                killed_at.append(step)
                resumed_at.append(checkpoint_of(copy))
                equal += run(words, stage, copy) == whole
                shutil.rmtree(copy)
            wrong += args.kills - equal
            print(f"{stage:10} {_row(killed_at):24} {_row(resumed_at):24} {equal} of {args.kills}", flush=True)
    sys.exit(1 if wrong else 0)


def _row(numbers: list[int]) -> str:
    return " ".join(f"{n:3}" for n in numbers)


def prepared(folder: Path) -> tuple[Path, Path]:
    """The tests' world and a store in which its recipe was run."""
    from tests.conftest import write_world

    recipe, store = write_world(folder), folder / "store"
    subprocess.run(
        [sys.executable, "-m", "align", "run", recipe, "--store", store],
        check=True,
        capture_output=True,
        env=environment(),
    )
    return recipe, store


def command(recipe: Path, stage: str, steps: int, **more: int) -> list[str]:
    """One stage of the recipe as its own run, longer than the recipe has it, with `more` settings."""
    changes = {"max_steps": steps, **EVERY, **more}
    sets = [word for key, value in changes.items() for word in ("--set", f"stages.{stage}.{key}={value}")]
    return ["run", str(recipe), "--from", stage, "--until", stage, "--json", *sets]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(words: Sequence[str], stage: str, store: Path) -> str:
    """The command in a process of its own: the digest of what the stage made."""
    words = [sys.executable, "-m", "align", *words, "--store", str(store)]
    made = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, env=environment()).stdout)
    return str(made[f"tiny/{stage}"]["digest"])


def undisturbed(words: Sequence[str], stage: str, store: Path, copy: Path) -> tuple[str, float]:
    """The digest of the run that nobody disturbs, and seconds per optimizer step."""
    shutil.copytree(store, copy)
    whole = run(words, stage, copy)
    costs = [json.loads(path.read_text()) for path in copy.glob("runs/*/cost.json")]
    shutil.rmtree(copy)
    (seconds,) = (cost["train_seconds"] for cost in costs if cost["artifact"] == whole)
    return whole, seconds / int(next(w for w in words if "max_steps=" in w).rpartition("=")[2])


def checkpoint_of(store: Path) -> int:
    """The step of the whole checkpoint that a killed run left; 0 where there is none."""
    return max((int(path.name.split("-")[1]) for path in store.glob("runs/*/checkpoints/checkpoint-*")), default=0)


def killed(words: Sequence[str], store: Path, step: int, wait: float) -> None:
    """The command, killed `wait` seconds after its optimizer step `step` begins. It must not have ended before."""
    words = [
        sys.executable,
        "-m",
        "tests.benchmarks.kills",
        "--die-in",
        str(step),
        str(wait),
        *words,
        "--store",
        str(store),
    ]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run ended with {done.returncode} before it was killed:\n{done.stderr}")


def die_in(step: int, wait: float, words: Sequence[str]) -> None:
    """`align WORDS` in this process, which dies by SIGKILL."""
    from align.cli import dispatch
    from align.training.trainer import StageTrainer

    original, left = StageTrainer.training_step, [step]

    def die() -> None:
        time.sleep(wait)
        os.kill(os.getpid(), signal.SIGKILL)

    def training_step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] == 0:
            threading.Thread(target=die, daemon=True).start()
        return original(self, *args, **kwargs)

    StageTrainer.training_step = training_step  # type: ignore[method-assign]
    dispatch(words)
    time.sleep(wait)  # in the last step the run may end first; what it committed is then there


if __name__ == "__main__":
    if sys.argv[1:2] == ["--die-in"]:
        die_in(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
    else:
        main()
