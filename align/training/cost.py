"""What training took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """What training took, over all the runs that it needed, for the artifact's cost record."""

    seconds: float
    tokens: int
    earlier: float
    """Of the seconds, those that runs before this one took up to the checkpoint it went on from."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)
