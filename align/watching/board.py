"""`align board`: a page on this machine that shows the runs of a store, those at work and those that are done.

Nothing but this machine can reach it: it listens on 127.0.0.1 alone, answers no other host name, and its address has a
secret part, so that neither another user nor another page can read it. All that a store holds may come from elsewhere:
the page gets it as JSON and puts it in as text, never as HTML, and is told (Content-Security-Policy) to run no script
and to fetch nothing but its own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.report.glossary import kind_of
from align.store import Store, live_runs
from align.watching.shown import Curve, Shown, of_artifact, of_live

HOST = "127.0.0.1"
POINTS = 400
"""Points of a curve that are sent: as many as a screen shows."""
LOOKS = 12
"""Answers to a prompt that are sent: the first, and the newest."""
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
    """What the page asks of a store. Runs that are done are read once: their artifacts do not change."""

    def __init__(self, store: Store) -> None:
        self.store = store
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
        """The runs without their curves."""
        return {"store": str(self.store.path), "runs": [_listed(shown) for shown in self.runs()]}

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
        "why": shown.why,
        "settings": shown.settings,
        "metrics": list(shown.curves),
        "kinds": {name: kind_of(name, shown.stage, shown.settings.get("loss")) for name in shown.curves},
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
        ours = secrets.compare_digest(folder.encode(), self.server.secret.encode())
        if self.headers.get("Host") not in hosts or not ours:
            self._answer(404, "text/plain", b"There is nothing here.\n")
        elif path in PAGE:
            file, kind = PAGE[path]
            self._answer(200, kind, files(__package__).joinpath(file).read_bytes())
        elif path == "runs.json":
            self._json(self.server.board.listed())
        elif path == "curves.json":
            self._json(self.server.board.curves(parse_qs(address.query).get("key", [""])[0]))
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
