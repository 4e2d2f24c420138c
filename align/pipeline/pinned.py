"""The store as one run of a recipe sees it."""

from __future__ import annotations

from pathlib import Path

from align.store import Artifact, Hold, Store


class Pinned(Store):
    """The store as one recipe sees it: its stages' names mean what it makes, and that stays, wherever another process
    moves them."""

    def __init__(self, store: Store, held: Hold | None = None) -> None:
        super().__init__(store.path)
        self.made: dict[str, Artifact] = {}
        self.held = held
        self.places: dict[str, Path] = {}
        """Where bases lie that the recipe names, by digest: a store that was pulled does not know."""

    def place(self, digest: str) -> Path | None:
        return self.places.get(digest) or super().place(digest)

    def resolve(self, name: Artifact | str) -> Artifact:
        return super().resolve(self.made.get(name, name) if isinstance(name, str) else name)

    def tag(self, name: str, artifact: Artifact | str) -> str | None:
        if self.held:
            self.held.add(artifact)
        return super().tag(name, artifact)
