"""`align board`: a page on this machine that shows the runs of a store, those at work and those that are done.

Nothing but this machine can reach it: it listens on 127.0.0.1 alone, answers no other host name, and its address has a
secret part, so that neither another user nor another page can read it. All that a store holds may come from elsewhere:
the page gets it as JSON and puts it in as text, never as HTML, and is told (Content-Security-Policy) to run no script
and to fetch nothing but its own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.report.diff import ABSENT, Defaults, apart
from align.report.glossary import by_importance, explained, kind_of, known_as
from align.report.text import SHORT, told_apart, value_text
from align.store import Store, live_runs
from align.watching.shown import Curve, Shown, of_artifact, of_live

HOST = "127.0.0.1"
POINTS = 400
"""Points of a curve that are sent: as many as a screen shows."""
LOOKS = 12
"""Answers to a prompt that are sent: the first, and the newest."""
NAME = 20
"""Characters of a name beside a value, unless it takes more to tell names apart."""
UNKNOWN = "not known yet"
INPUTS = ("version of the stage", "base", "parents", "data")
"""What any run is made with, beside its settings."""
PAGE = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "draw.js": ("draw.js", "text/javascript"),
}
"""Path -> the file of this room, and what it is."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Board:
    """What the page asks of a store. Runs that are done are read once: their artifacts do not change. `defaults` are
    those of a stage's settings."""

    def __init__(self, store: Store, defaults: Defaults = lambda _: {}) -> None:
        self.store, self.defaults = store, defaults
        self.done: dict[tuple[str, str], Shown | None] = {}

    def runs(self) -> list[Shown]:
        """Runs at work or stopped, the newest first, then those that are done, the newest first."""
        refs = self.store.sound_refs().items()
        fresh = [name for name in refs if name not in self.done]
        costs = self.store.costs() if fresh else {}
        for name, digest in fresh:
            self.done[name, digest] = None
            with suppress(AlignError, OSError):  # `align verify` says what is wrong with it
                finished = str(costs.get(digest, {}).get("finished", ""))
                self.done[name, digest] = of_artifact(self.store, self.store.load(digest), name, finished)
        done = [shown for ref in refs if (shown := self.done[ref])]
        return [*map(of_live, live_runs(self.store)), *sorted(done, key=lambda shown: -shown.when)]

    def listed(self) -> Json:
        """The runs without their curves, and the names of these in the order in which people look at them,
        each with what it means, where we know it."""
        runs = self.runs()
        metrics = by_importance({name for shown in runs for name in shown.curves})
        listed = [{**_listed(shown), "title": title} for shown, title in zip(runs, titles(runs), strict=True)]
        meanings = {name: dict(explained([name])).get(known_as(name), "") for name in metrics}
        return {"store": str(self.store.path), "runs": listed, "metrics": metrics, "meanings": meanings}

    def beside(self, keys: Sequence[str]) -> Json:
        """What is to be said of runs beside each other: how they are called in little room, and, of two or more, the
        settings that differ, as `align compare` finds them."""
        runs = self.runs()
        known = {identity(shown): (shown, title) for shown, title in zip(runs, titles(runs), strict=True)}
        found = {key: known[key] for key in keys if key in known}
        called = dict(zip(found, told_apart([title for _, title in found.values()], NAME), strict=True))
        if len(found) < 2:
            return {"called": called}
        picked = [shown for shown, _ in found.values()]
        rows, same, alone = apart(self.store, [shown.made for shown in picked], self.defaults)
        texts = {key: [self._said(key, value, of) for value, of in zip(rows[key], picked, strict=True)] for key in rows}
        some = dict.fromkeys(key for keys in alone.values() for key in keys)
        return {"called": called, "settings": {"runs": [*called], "rows": texts, "same": same, "alone": list(some)}}

    def _said(self, key: str, value: object, shown: Shown) -> str:
        """A setting of a run; what its stage may have, and is not there before the run is done, is to come."""
        if value != ABSENT or shown.state == "done":
            return value_text(value)
        own = self.defaults(shown.stage)
        comes = not own or key in own or key.partition(".")[0] in INPUTS
        return UNKNOWN if comes else ABSENT

    def curves(self, key: str) -> Json:
        """The curves and answers of one run; empty where it is gone."""
        for shown in self.runs():
            if identity(shown) == key:
                found = {name: thinned(curve) for name, curve in shown.curves.items()}
                times = list(shown.answers)
                answers = [[when, shown.answers[when]] for when in [*times[:1], *times[1:][1 - LOOKS :]]]
                return {"curves": found, "answers": answers}
        return {"curves": {}, "answers": []}


def identity(shown: Shown) -> str:
    """Names a run on the page: two names may have one artifact."""
    return f"{shown.key} {shown.name}"


def titles(runs: Sequence[Shown]) -> list[str]:
    """What runs are called: one that is not done may have the name of another one."""
    names = [shown.name for shown in runs]
    several = {name for name in names if names.count(name) > 1}
    return [f"{s.name} ({s.key[:SHORT]})" if s.name in several and s.state != "done" else s.name for s in runs]


def _listed(shown: Shown) -> Json:
    return {
        "key": identity(shown),
        "name": shown.name,
        "stage": shown.stage,
        "state": shown.state,
        "when": shown.when,
        "step": shown.step,
        "steps": shown.steps,
        "left": shown.left,
        "at": shown.at,
        "why": shown.why,
        "metrics": list(shown.curves),
        "kinds": {name: kind_of(name, shown.stage, shown.made.config.get("loss")) for name in shown.curves},
    }


def thinned(curve: Curve) -> list[tuple[float, float]]:
    """At most `POINTS` points: the means of neighbours."""
    size = -(-len(curve) // POINTS)
    if size <= 1:
        return [(float(step), value) for step, value in curve]
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


class BoardServer(ThreadingHTTPServer):
    """Serves one board. Raises: InputError for a port that is taken."""

    daemon_threads = True

    def __init__(self, board: Board, port: int = 0) -> None:
        self.board, self.secret = board, secrets.token_urlsafe(12)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--port {port}: {str(error).rstrip('.')}. Leave it out, and a free one is taken."
            ) from error

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.secret}/"


class _Handler(BaseHTTPRequestHandler):
    server: BoardServer
    server_version, sys_version = "align", ""

    def do_GET(self) -> None:
        """One of the page's files, or what it asks of the store; 404 for all else."""
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        address = urlsplit(self.path)
        folder, _, path = address.path.lstrip("/").partition("/")
        keys = parse_qs(address.query).get("key", [])
        ours = secrets.compare_digest(folder.encode(), self.server.secret.encode())
        if self.headers.get("Host") not in hosts or not ours:
            self._answer(404, "text/plain", b"There is nothing here.\n")
        elif path in PAGE:
            file, kind = PAGE[path]
            self._answer(200, kind, files(__package__).joinpath(file).read_bytes())
        elif path == "runs.json":
            self._json(self.server.board.listed())
        elif path == "curves.json":
            self._json(self.server.board.curves(keys[0] if keys else ""))
        elif path == "beside.json":
            self._json(self.server.board.beside(keys))
        else:
            self._answer(404, "text/plain", b"There is nothing here.\n")

    def _json(self, value: Mapping[str, object]) -> None:
        self._answer(200, "application/json", json.dumps(value, allow_nan=False).encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        with suppress(ConnectionError):  # the page was closed
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": f"{kind}; charset=utf-8"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that polls would fill the terminal."""
