"""A wish to stop that came in the last moment of some work, which was done all the same: it holds for what comes
after."""

from __future__ import annotations


class Wish:
    """One for the process."""

    def __init__(self) -> None:
        self.stop = False

    def taken(self) -> bool:
        """Whether there was one; it is heard once."""
        there, self.stop = self.stop, False
        return there


WISH = Wish()
