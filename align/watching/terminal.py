"""`align watch`: the curves of a run at work, in the terminal of another window."""

from __future__ import annotations

import difflib
import math
import os
import sys
import time
from dataclasses import replace

from align.ground.errors import InputError, Stopped
from align.ground.progress import clock, cut, fitted, remaining
from align.ground.terminal import counted, one_line, printable, prose, say
from align.store import LiveRun, Store, live_runs
from align.store.live import read_live
from align.store.read import PREFIX, is_name
from align.store.run import COST
from align.watching.plot import number, plot
from align.watching.shown import Shown, named_artifact, of_artifact, of_live

EVERY, SELDOM = 1.0, 10.0
"""Seconds between two drawings, and between two lines where nothing is drawn."""
BETWEEN = 60.0
"""Seconds that a recipe may take from one stage to the next."""
PANEL, LOWEST, HIGHEST, MOST = 36, 3, 8, 8
"""Columns of a curve, at least; its lines; and how many curves."""


def watch(store: Store, ref: str | None) -> None:
    """Draw the run of that name, or those of the recipe of that name one after the other, or the newest one, until it
    ends or Ctrl-C; a run that is done or was stopped once; one that is not there yet is waited for.

    Raises: InputError for what is no name; Stopped where the run ended, or looking on did, before it was done.
    """
    run = None
    try:
        run = at_work(store, ref) or awaited(store, ref)
        if run is None:
            return at_rest(store, ref)
        draw(store, ref, run)
    except KeyboardInterrupt:  # how one stops looking on; what waits behind && is not to begin
        goes_on = "; what is at work goes on" if run else ""
        raise Stopped(f"no longer looking on{goes_on}.") from None


def draw(store: Store, ref: str | None, run: LiveRun) -> None:
    """Draw a run at work, and of a recipe those after it, until it ends. Raises: Stopped where that was too early."""
    canvas, since = Canvas(), time.monotonic()
    while True:
        ended = not run.works
        shown = last_seen(store, run) if ended else of_live(run)
        canvas.show(store, shown, last=ended)
        since = time.monotonic() if not ended else since
        follows = "/" in run.name and run.name != ref and run.goes_on and time.monotonic() - since < BETWEEN
        if ended and not follows:
            return check_done(shown)
        time.sleep(EVERY)
        run = at_work(store, ref) or read_live(run.path) or run


def awaited(store: Store, ref: str | None) -> LiveRun | None:
    """A run of that name once it begins; None where there is something else to show. Raises: InputError for what can be
    no run's name."""
    since, said = time.monotonic(), -1.0
    while ref is not None and not begun(store, ref):
        try:
            store.resolve(ref)
            return None
        except InputError as error:
            if not is_name(ref) or PREFIX.fullmatch(ref):
                raise
            waited = time.monotonic() - since
            if said < 0:
                say(f"{mistyped(store, ref) or error}\nThis waits until a run of that name begins; Ctrl-C ends it.")
                said = 0.0
            elif waited - said >= SELDOM and not Canvas().redraws:
                print(f"{ref} has not begun · {clock(waited)} so far", flush=True)
                said = waited
        time.sleep(EVERY)
    return at_work(store, ref)


def mistyped(store: Store, ref: str) -> str:
    """The names of runs and recipes that one of nothing was probably meant to be, in a sentence; "" without any."""
    names = [*(run.name for run in live_runs(store)), *store.pointers("refs")]
    known = dict.fromkeys(part for name in names for part in (name.partition("/")[0], name))
    near = difflib.get_close_matches(ref, known, 3, 0.6)
    return f"{ref!r} is no run and no recipe in {store.path}; did you mean {' or '.join(near)}?" if near else ""


def begun(store: Store, ref: str) -> list[str]:
    """Names of runs, at work, stopped or done, that have this name or are of the recipe of that name."""
    names = [*(run.name for run in live_runs(store)), *store.sound_refs()]
    return [name for name in names if name == ref or name.startswith(f"{ref}/")]


def at_work(store: Store, ref: str | None) -> LiveRun | None:
    """The newest run at work: of that name, or of the recipe of that name."""
    found = live_runs(store, at_work=True)
    return next((run for run in found if ref is None or run.name == ref or run.name.startswith(f"{ref}/")), None)


def last_seen(store: Store, run: LiveRun) -> Shown:
    """A run that has just ended: what it made, or where it was stopped."""
    if read_live(run.path) or run.name not in store.sound_refs() or not (run.path / COST).is_file():
        return of_live(run)  # stopped, or refused, whatever else has that name
    return named_artifact(store, run.name) or replace(of_live(run), state="done")  # whose name was taken away


def at_rest(store: Store, ref: str | None) -> None:
    """Print what there is to see where no such run is at work: of a recipe, what came last. Raises: Stopped where it
    ended before it was done; InputError for a name of nothing."""
    if ref is None:
        with prose():
            print(
                f"Nothing is at work in {store.path}. align watch NAME draws a run that is done; align ls names them."
            )
        return
    size, names = Canvas().size(), made_last(store, ref)
    name, finished = names[0]
    stopped = [
        run for run in live_runs(store) if run.name == ref or (run.name in begun(store, ref) and began(run) > finished)
    ]
    if stopped:
        others = [run.name for run in live_runs(store, at_work=True)]
        shown = of_live(stopped[0])
        print("\n".join(picture(shown, *size, others=others)))
        check_done(shown)
        return
    shown = as_called(store, name)
    if not shown.curves:
        with prose():
            print(f"{name} is done, and has no curves: nothing was trained. align show {name}")
        made = (as_called(store, other) for other, _ in names)
        shown = next((one for one in made if one.curves), shown)
    if shown.curves:
        print("\n".join(picture(shown, *size)))


def as_called(store: Store, name: str) -> Shown:
    """What is done of that name, by the name that it was asked for by. Raises: InputError for a name of nothing."""
    artifact = store.resolve(name)
    return of_artifact(store, artifact, store.called.get(artifact.digest, name))


def made_last(store: Store, ref: str) -> list[tuple[str, str]]:
    """Names of what a recipe made, the newest first, and when; of anything else its name."""
    refs, costs = store.sound_refs(), store.costs()
    names = [] if ref in refs else [name for name in begun(store, ref) if name in refs]
    times = {name: costs[refs[name]]["finished"] if refs[name] in costs else "" for name in names}
    # moments are whole seconds: of what was made within one, the name that was written last
    written = {name: os.stat(path).st_mtime_ns for name, path in store.pointers("refs").items() if name in times}
    return sorted(times.items(), key=lambda one: (one[1], written.get(one[0], 0)), reverse=True) or [(ref, "")]


def began(run: LiveRun) -> str:
    """When, as costs say when a run finished."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.began))


def check_done(shown: Shown) -> None:
    """Raises: Stopped where a run ended before it was done, so that what waits for its end hears of it."""
    if shown.state == "stopped":
        raise Stopped(f"{shown.name} ended before it was done.")


class Canvas:
    """Lines of stdout that are drawn anew in their place; whole lines now and then where stdout is no terminal."""

    def __init__(self) -> None:
        self.redraws = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.lines, self.said = 0, -math.inf

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            found = os.get_terminal_size(sys.stdout.fileno())
        except (OSError, ValueError):
            return 80, 24
        return found.columns or 80, found.lines or 24

    def show(self, store: Store, shown: Shown, *, last: bool) -> None:
        """Draw a run, which has ended where this is its `last` picture."""
        if self.redraws and sys.__stdout__:
            lines = picture(shown, *self.size(), others=[r.name for r in live_runs(store, at_work=True)])
            up = f"\x1b[{self.lines}A" if self.lines else ""
            print(up + "\r\x1b[J" + "\n".join(map(printable, lines)), file=sys.__stdout__, flush=True)
            self.lines = len(lines)
        elif last or time.monotonic() - self.said >= SELDOM:
            latest = [f"{name} {number(curve[-1][1])}" for name, curve in list(shown.curves.items())[:4]]
            print(" · ".join([headline(shown, None), *latest]), flush=True)
            self.said = time.monotonic()


def headline(shown: Shown, columns: int | None) -> str:
    """Name, how far it is, and since when."""
    since = clock(max(0.0, time.time() - shown.when))
    far = [f"step {shown.step:,}/{shown.steps:,}", *remaining(shown.left)]
    if not shown.steps:
        far = one_line(shown.at or "at work; it draws no curves yet").split(" · ")
    stopped = f"ended before it was done: {shown.why or 'its own window says why'}"
    if shown.steps and shown.why:
        stopped = f"ended at step {shown.step:,} of {shown.steps:,}: {shown.why}"
    elif shown.steps:
        stopped = f"stopped at step {shown.step:,} of {shown.steps:,}; the same command goes on"
    parts = {
        "runs": [*far, f"{since} so far"],
        "stopped": [stopped],
        "done": [f"done, {shown.steps:,} steps" if shown.steps else "done"],
    }[shown.state]
    share = shown.step / shown.steps if shown.steps else None
    return fitted(one_line(shown.name), parts, share, columns)


def picture(shown: Shown, columns: int, lines: int, others: list[str] | None = None) -> list[str]:
    """A run as lines of a terminal: how far it is, and as many of its curves as there is room for."""
    width = columns - 1
    head = [headline(shown, width)]
    others = [one_line(name) for name in others or () if name != shown.name]
    tail = [cut(f"also at work: {', '.join(others)}; align watch NAME", width)] if others else []
    if not shown.curves:
        return head + tail
    across = max(1, min(3, width // (PANEL + 2), len(shown.curves)))
    room = lines - len(head) - len(tail) - 2
    most = min(len(shown.curves), MOST, across * max(1, room // (LOWEST + 2)))
    down = math.ceil(most / across)
    height = max(LOWEST, min(HIGHEST, room // down - 2))
    each = width // across - 2
    last = max(shown.step, 1)
    names, hidden = list(shown.curves)[:most], len(shown.curves) - most
    if hidden:
        tail.insert(0, cut(f"{counted(hidden, 'curve')} more than fit here; align board shows all", width))
    drawn = []
    for start in range(0, len(names), across):
        panels = [
            plot(one_line(name), shown.curves[name], last, each, height) for name in names[start : start + across]
        ]
        drawn += ["", *("  ".join(line).rstrip() for line in zip(*panels, strict=True))]
    return [*head, *drawn, *tail]
