"""Seams: special tokens that come about where contents meet, such as "<|en" and "d|>" joined by a template, each
harmless alone."""

from __future__ import annotations

from collections.abc import Sequence

APART = chr(0xFFFFE)
"""Stands at both ends of a text, so that no token can reach across them; Unicode keeps it free of characters for
all."""
KINDS = ("role", "type")
"""Keys whose texts a template compares, and writes no others than it knows."""
INSIDE = {"arguments": "arguments", "properties": ""}
"""Keys of objects whose own keys are contents, though they may be called like those of a message, and what their values
stand under."""


class Seams:
    """The parts of some tokens' names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.heads = {name[:i] for name in names for i in range(1, len(name))}
        self.tails = {name[i:] for name in names for i in range(1, len(name))}
        self.sizes = range(1, max(map(len, names), default=0))
        self.names = "\n".join(names)
        self.firsts, self.lasts = {name[0] for name in names}, {name[-1] for name in names}
        self.most = max(self.sizes, default=0)

    def open(self, text: str) -> bool:
        """Whether a text begins as a name ends, ends as one begins, or stands within one."""
        core = text.strip()
        if len(core) > self.most and not self._may_open(core):
            return False
        joins = (core[:n] in self.tails or core[-n:] in self.heads for n in self.sizes if n <= len(core))
        return bool(core) and (any(joins) or (len(core) in self.sizes and core in self.names))

    def _may_open(self, core: str) -> bool:
        """Whether its end holds the first sign of a name, or its beginning the last: most texts have neither."""
        begin, end = core[: self.most], core[-self.most :]
        return any(sign in end for sign in self.firsts) or any(sign in begin for sign in self.lasts)

    def apart(self, value: object, key: str = "") -> object:
        """The value, which stands under `key`, with open texts shut at both ends, within the white space around
        them."""
        if isinstance(value, str) and key not in KINDS and self.open(value):
            core = value.strip()
            return value.replace(core, f"{APART}{core}{APART}", 1)
        if isinstance(value, dict) and key in INSIDE:
            return {self.apart(name): self.apart(inner, INSIDE[key]) for name, inner in value.items()}
        if isinstance(value, dict):
            return {name: self.apart(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.apart(item, key) for item in value]
        return value
