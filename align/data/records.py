"""Records: what a row of a data set means, as text. Frozen; `where` ("file:line") says where it came from and takes no part in equality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue to imitate; what the assistant says is learnt."""

    messages: Messages
    prompt: int = 0
    """Messages at the start that are only read: what the assistant says there is not learnt."""
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two ways to go on after one prompt, the better one first. `margin` says by how much, where the data says so."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float | None = None
    cut: tuple[bool, bool] = (False, False)
    """Whether chosen and rejected were cut off before their end, as samples are at a length limit: then no end-of-turn token follows."""
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialogue to be answered. `columns` holds the row's other keys, for a judge."""

    messages: Messages
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A document of plain text."""

    text: str
    where: str = field(default="", compare=False)
