"""What the guards share: a sign with its cause and remedy, and warnings that are told once, kept, and may end a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from align.ground.errors import NotTrained
from align.ground.terminal import say

Figures = Mapping[str, float]
"""What was measured: reward/mean, kl, loss … as they stand in the log."""


Warned = dict[str, int | str | None]
"""A row of guard.jsonl: when (`step` or `rollout`), `sign`, `message`, and `gone`, when the sign had gone away."""


@dataclass(frozen=True)
class Sign:
    """How something that goes wrong is seen (what is seen in words, or None), its likely cause, and what to do."""

    seen: Callable[..., str | None]
    cause: str
    remedy: str
    rest: str = ""
    """What is left to do where the weights of the best step are kept; "" where that changes nothing."""

    def told(self, *args: object, best_kept: bool = False) -> str | None:
        """The whole message; None where nothing is seen."""
        seen, remedy = self.seen(*args), (self.rest if best_kept else "") or self.remedy
        return f"{seen}. Likely cause: {self.cause}. What to do: {remedy}." if seen else None


class Watching:
    """The warnings of one run: rows of when (`unit`, counted from 0), sign, message, and `gone`, when the sign had gone
    away."""

    unit: ClassVar[str]

    def __init__(self, title: str, stop: Collection[str]):
        self.title, self.stop = title, stop
        self.warnings: list[Warned] = []

    def tell(self, now: int, seen: Mapping[str, str | None]) -> None:
        """Warn of the signs that are seen now and were not, and say which have gone away; None is a sign that was
        looked for in vain.

        Raises: NotTrained for a sign that is to stop the run.
        """
        active = {str(w["sign"]): w for w in self.warnings if w["gone"] is None}
        for name in active.keys() & {name for name, message in seen.items() if not message}:
            active[name]["gone"] = now
            say(f"{self.title}: {self.unit} {now + 1}: {name} is well again")
        for name, message in seen.items():
            if not message:
                continue
            if name not in active:
                self.warnings.append({self.unit: now, "sign": name, "message": message, "gone": None})
                say(f"{self.title}: {self.unit} {now + 1}: warning: {name}: {message}")
            if name in self.stop:
                raise NotTrained(
                    f"{self.title} was stopped by its guard in {self.unit} {now + 1}: {name}: {message} Nothing was "
                    f"committed; the last checkpoint, if one was written, is kept: without {name} in guard.stop the "
                    "run goes on from it, with other settings a new one starts."
                )

    def write(self, folder: Path) -> None:
        """Write `guard.jsonl`, the warnings, where there were any."""
        if self.warnings:
            (folder / "guard.jsonl").write_text(
                "".join(json.dumps(w, sort_keys=True) + "\n" for w in self.warnings), encoding="utf-8"
            )

    def metrics(self) -> dict[str, float]:
        return {"guard/warnings": len(self.warnings)}
