"""What a run says of itself while it works, for people who look on: `live.jsonl` in its folder of runs/, a line a
piece of news, only ever added to. `Run.finish` removes it, for what it told is in the artifact then.

```text
{"run": "quickstart/ppo", "stage": "ppo", "began": 1795.0, "pid": 7, "settings": {…}, "inputs": {…}}   it is begun
{"work": "sampling 26,192/51,200 answers · 2:25 left"}   what it is at, while it does not train; "" for nothing
{"steps": 120, "from": 40}                         it trains; lines of steps after 40 are of a process that was killed
{"step": 41, "time": 1811.5, "left": 95.1, "figures": {}}   a step was taken
{"step": 41, "time": 1811.5, "left": 95.1, "figures": {"loss": 0.31}}   of a row of the history
{"after": "rollout 3", "answers": [["the prompt", "the answer"]]}
{"failed": "why"}                                  it ended by an error; a process that was killed tells nothing
```

A line is written by one call, so that it is there whole or not at all; one that a crash cut short is passed over, and
cut off by who writes next. Nothing here can stop a run: it is news, and results do not depend on it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from align.ground import ranks
from align.ground.disk import is_alive, is_locked
from align.ground.json import Json
from align.ground.terminal import say
from align.store.layout import StoreLayout

FILE, LOCK = "live.jsonl", "lock"
LIMIT = 64 * 2**20
"""Bytes that are read of one such file, at most."""

LARGEST, MOST_STEPS, LAST_MOMENT = 1e300, 2**53, 253402300800.0
"""Of a figure; of steps; of seconds since 1970, which is the end of the year 9999, the last that Python can name."""

Figures = dict[str, float]
Answers = list[tuple[str, str]]
"""Prompts and what was answered."""


class News:
    """Writes the file of one run, from the first of its processes. Where it cannot be written, a line says so once."""

    def __init__(self, folder: Path) -> None:
        self.path, self.lost = folder / FILE, False

    def begin(
        self, run: str, stage: str, settings: Mapping[str, object], inputs: Mapping[str, object] | None = None
    ) -> None:
        """This process begins to work. `inputs`: version, base, parents and data, as a manifest has them."""
        with suppress(OSError):
            self._cut_off()
        made_with = {"settings": dict(settings), "inputs": dict(inputs or {})}
        self._add({"run": run, "stage": stage, "began": time.time(), "pid": os.getpid(), **made_with})

    def work(self, how_far: str) -> None:
        """What it is at, and how far that is; not of a run that has not begun or is done."""
        self._add({"work": how_far}, anew=False)

    def train(self, steps: int, first: int) -> None:
        """It is to take `steps` optimizer steps, of which `first` are taken."""
        self._add({"steps": steps, "from": first})

    def step(self, step: int, left: float | None, figures: Mapping[str, float]) -> None:
        """A step was taken; `left` seconds are, if that is known. `figures` are those of the history's row, if it has
        one; what is no finite number is left out."""
        finite = {name: value for name, value in figures.items() if is_figure(value)}
        self._add({"step": step, "time": time.time(), "left": left, "figures": finite})

    def answers(self, after: str, answers: Sequence[tuple[str, str]]) -> None:
        """Prompts that are watched were answered."""
        self._add({"after": after, "answers": [list(pair) for pair in answers]})

    def failed(self, why: str) -> None:
        """It ended by an error."""
        self._add({"failed": why})

    def _add(self, line: Json, *, anew: bool = True) -> None:
        if not ranks.is_first():
            return
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | (os.O_CREAT if anew else 0), 0o600)
            try:
                os.write(descriptor, json.dumps(line, allow_nan=False).encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self.lost and anew:
                say(f"{self.path} cannot be written ({error.strerror}): align watch and board miss what comes now")
            self.lost = self.lost or anew

    def _cut_off(self) -> None:
        """Remove a last line that is not whole."""
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)


@dataclass
class LiveRun:
    """A run as its file tells it."""

    key: str
    path: Path
    name: str
    stage: str
    began: float
    """Seconds since 1970, of the newest process that works on it."""
    settings: Json
    inputs: Json = field(default_factory=dict)
    """version, base, parents and data, as far as they are told."""
    pid: int = 0
    """Of that process."""
    steps: int = 0
    """0 where it does not train, or not yet."""
    step: int = 0
    """The newest step that is told of."""
    left: float | None = None
    at: str = ""
    """What it is at, and how far that is, while it does not train."""
    rows: list[tuple[int, Figures]] = field(default_factory=list)
    """Figures by step, in ascending order."""
    answers: dict[str, Answers] = field(default_factory=dict)
    """By when they were given."""

    why: str = ""
    """By what error the newest process that worked on it ended; "" where none is told."""

    def note(self, step: int, figures: Figures) -> None:
        """What is told of one step may come in several lines."""
        if self.rows and self.rows[-1][0] == step:
            self.rows[-1][1].update(figures)
        else:
            self.rows.append((step, figures))

    @property
    def works(self) -> bool:
        """Whether a process works on it now."""
        return is_locked(self.path / LOCK)

    @property
    def goes_on(self) -> bool:
        """Whether the process that worked on it last is still there, as that of a recipe is between two stages."""
        return bool(self.pid) and is_alive(self.pid)


def read_live(path: Path) -> LiveRun | None:
    """What the file in a folder of runs/ tells; None where there is none that can be read. Lines that are no news are
    passed over."""
    run: LiveRun | None = None
    for line in _lines(path / FILE):
        match line:
            case {"run": str(name), "stage": str(stage), "began": began, "settings": dict(settings)} if is_time(began):
                run = run or LiveRun(path.name, path, name, stage, began, settings)
                run.began, run.left, run.pid, run.inputs = float(began), None, pid_of(line), inputs_of(line)
                run.why = run.at = ""
            case {"failed": str(why)} if run:
                run.why = why
            case {"work": str(how_far)} if run:
                run.at = how_far
            case {"steps": steps, "from": first} if run and is_count(steps) and is_count(first):
                run.steps, run.step, run.rows = steps, first, [row for row in run.rows if row[0] <= first]
            case {"step": step, "figures": dict(figures)} if run and is_count(step):
                if found := {name: float(value) for name, value in figures.items() if is_figure(value)}:
                    run.note(step, found)
                run.step, left = step, line.get("left")
                run.left = float(left) if is_time(left) else None
            case {"after": str(after), "answers": list(pairs)} if run:
                run.answers[after] = [(pair[0], pair[1]) for pair in pairs if _is_answer(pair)]
    return run


def live_runs(store: StoreLayout, *, at_work: bool = False) -> list[LiveRun]:
    """Runs of a store that have not finished, those at work and, unless `at_work`, those that were stopped or failed;
    the newest first."""
    folder = store.path / "runs"
    paths = list(folder.iterdir()) if folder.is_dir() else []
    found = [read_live(path) for path in paths if not at_work or is_locked(path / LOCK)]
    return sorted((run for run in found if run), key=lambda run: -run.began)


def pid_of(line: Json) -> int:
    pid = line.get("pid")
    return pid if isinstance(pid, int) and 0 < pid < 2**31 else 0


def inputs_of(line: Json) -> Json:
    """What is told of a run's inputs, as a manifest has it."""
    told = line.get("inputs")
    found: Json = {}
    for key, value in told.items() if isinstance(told, dict) else ():
        match key, value:
            case ("version", int()) | ("base", None | {"model": str(), "quantize": str() | None}):
                found[key] = value
            case ("parents" | "data", dict()) if all(isinstance(digest, str) for digest in value.values()):
                found[key] = value
    return found


def is_figure(value: object) -> TypeGuard[float]:
    """Whether it is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is a number of steps."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_STEPS


def is_time(value: object) -> TypeGuard[float]:
    """Whether it is a moment, or what is left until one, that can be shown."""
    return is_figure(value) and 0 <= value < LAST_MOMENT


def _is_answer(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _lines(path: Path) -> Iterator[Json]:
    """The objects of a file's whole lines; none where it is not there, or another user's."""
    with suppress(OSError), open(path, "rb") as file:
        for line in file.read(LIMIT).split(b"\n")[:-1]:
            with suppress(ValueError, RecursionError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield found
