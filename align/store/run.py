"""What a stage needs while it runs: runs/<key>/ with its lock, resume checkpoints and, at the end, what it cost."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.store.artifact import Artifact, canonical_json
from align.store.files import write_file


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

    def finish(self, artifact: Artifact, cost: Mapping[str, Any]) -> None:
        """Keep the cost, remember the answer to the key, and only then remove the checkpoints: killed in between, nothing is lost."""
        finished = {"artifact": artifact.digest, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write_file(self.path / "cost.json", canonical_json({**cost, **finished}) + b"\n", mode=0o600)
        self.remember(self.key, artifact)
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def read_costs(runs: Path) -> dict[str, dict[str, Any]]:
    """Digest -> what its latest run cost. Runs of other users, which cannot be read, are left out."""
    found: dict[str, dict[str, Any]] = {}
    for path in runs.glob("*/cost.json"):
        try:
            cost = json.loads(path.read_bytes())
            latest = found.get(cost["artifact"])
            if latest is None or cost["finished"] > latest["finished"]:
                found[cost["artifact"]] = cost
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
