"""What a stage needs while it runs: runs/<key>/ with its lock, resume checkpoints and, at the end, what it cost."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from align.ground.disk import write_file
from align.ground.errors import InputError
from align.store.artifact import Artifact, canonical_json, digest_json
from align.store.live import FILE, News, read_live

COST = "cost.json"
"""In the folder of a run that is done."""


class CostRecord(TypedDict, total=False):
    """What a run cost, and what it made; machine and versions stand there too."""

    artifact: str
    finished: str
    """ISO time in UTC."""
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Run:
    """One asked key at work. Made by `Store.run`, which holds the lock."""

    key: str
    path: Path
    remember: Callable[[str, Artifact], None]

    @property
    def checkpoints(self) -> Path:
        """Folder for resume checkpoints; what a stopped run left there is still there. Removed by `finish`."""
        return self.path / "checkpoints"

    @property
    def news(self) -> News:
        """Tells people who look on how it goes. Removed by `finish`, for the artifact tells it then."""
        return News(self.path)

    def refuse(self) -> None:
        """Forget what was told of a run that was refused before it trained: nothing of it is there to go on from."""
        told = read_live(self.path)
        if told and not told.steps:
            (self.path / FILE).unlink(missing_ok=True)

    def finish(self, artifact: Artifact, cost: Mapping[str, object]) -> None:
        """Keep the cost, remember the answer to the key, and only then remove the checkpoints: killed in between,
        nothing is lost."""
        finished = {"artifact": artifact.digest, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write_cost(self.path / COST, {**cost, **finished})
        self.remember(self.key, artifact)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.path / FILE).unlink(missing_ok=True)


def write_cost(path: Path, cost: Mapping[str, object]) -> None:
    """Write what a run cost with a sha256 of its own, for no file name proves it."""
    write_file(path, canonical_json({**cost, "sha256": digest_json(cost)}) + b"\n", mode=0o600)


def read_cost(path: Path) -> CostRecord | None:
    """What a run cost; None when the file is missing or damaged. Raises: PermissionError for another user's."""
    try:
        content = path.read_bytes()
        cost = json.loads(content)
        digest = cost.pop("sha256")
        whole = canonical_json({**cost, "sha256": digest}) + b"\n" == content
        sound = whole and digest == digest_json(cost) and isinstance(cost["artifact"], str)
        return cast(CostRecord, cost) if sound else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None


def read_costs(runs: Path) -> dict[str, CostRecord]:
    """Digest -> what its latest run cost. Runs of other users, which cannot be read, are left out."""
    found: dict[str, CostRecord] = {}
    for path in runs.glob("*/cost.json"):
        try:
            cost = read_cost(path)
        except OSError:
            continue
        if cost and ((latest := found.get(cost["artifact"])) is None or cost["finished"] > latest["finished"]):
            found[cost["artifact"]] = cost
    return found
