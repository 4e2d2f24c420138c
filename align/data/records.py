"""Records: what a row of a data set means, as text. Frozen; `where` ("file:line") says where it came from and takes no
part in equality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, TypeVar, get_args

from align.ground.json import Json

Row = dict[str, object]
"""A row as a file holds it: its keys, and what stands under each."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


class Pickled:
    """Pickled as the call that makes it: what dataclasses do of themselves takes three times as long."""

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), tuple(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class Message(Pickled):
    """One turn of a dialogue."""

    role: Role
    content: str
    reasoning: str = ""
    """What an assistant thought before it spoke, where the data hold it apart from the content."""
    tool_calls: str = ""
    """Calls of an assistant, as the JSON of a list of {"type": "function", "function": {"name", "arguments"}}."""
    tool_call_id: str = ""
    name: str = ""
    learn: bool = True
    """Whether what an assistant says here is learnt; False for `weight: 0` and `train: false`."""

    def plain(self) -> Json:
        """The message as chat templates take it and data files hold it: role, content, and what else it has."""
        more = {"reasoning_content": self.reasoning, "tool_call_id": self.tool_call_id, "name": self.name}
        said: Json = {"role": self.role, "content": self.content}
        said |= {key: value for key, value in more.items() if value}
        if self.tool_calls:
            said["tool_calls"] = json.loads(self.tool_calls)
        return said


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Conversation(Pickled):
    """A dialogue to imitate; what the assistant says is learnt."""

    messages: Messages
    prompt: int = 0
    """Messages at the start that are only read: what the assistant says there is not learnt."""
    where: str = field(default="", compare=False)
    tools: str = ""
    """Tools that the assistant may call, as the JSON of a list of their schemas; so in the records below."""


@dataclass(frozen=True, slots=True)
class Preference(Pickled):
    """Two ways to go on after one prompt, the better one first. `margin` says by how much, where the data says so."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float | None = None
    cut: tuple[bool, bool] = (False, False)
    """Whether chosen and rejected were cut off before their end, as samples are at a length limit: then no end-of-turn
    token follows."""
    where: str = field(default="", compare=False)
    tools: str = ""

    @property
    def answers(self) -> dict[str, Messages]:
        """Its answers, best first, by what they are called."""
        return {"chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True, slots=True)
class Ranking(Pickled):
    """Several ways to go on after one prompt, the best one first."""

    prompt: Messages
    ordered: tuple[Messages, ...]
    cut: tuple[bool, ...]
    """As of a `Preference`."""
    where: str = field(default="", compare=False)
    tools: str = ""

    @property
    def margin(self) -> None:
        """By how much one is better than the next is not said."""

    @property
    def answers(self) -> dict[str, Messages]:
        """As of a `Preference`."""
        return {f"answer {i}": answer for i, answer in enumerate(self.ordered, 1)}


@dataclass(frozen=True, slots=True)
class Labelled(Pickled):
    """An answer to a prompt, and whether it is desirable (Ethayarajh et al. 2024, arXiv 2402.01306)."""

    prompt: Messages
    completion: Messages
    label: bool
    where: str = field(default="", compare=False)
    tools: str = ""

    @property
    def messages(self) -> Messages:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Stepwise(Pickled):
    """An answer in steps, and whether each is right (Lightman et al. 2023, arXiv 2305.20050)."""

    prompt: Messages
    steps: tuple[str, ...]
    labels: tuple[bool, ...]
    separator: str = "\n"
    """What stands between two steps."""
    where: str = field(default="", compare=False)
    tools: str = ""

    @property
    def completion(self) -> Messages:
        return (Message("assistant", self.separator.join(self.steps)),)

    @property
    def messages(self) -> Messages:
        return self.prompt + self.completion

    @property
    def ends(self) -> list[int]:
        """Where in the answer each step ends, its separator included: the first character after it."""
        lengths = [len(step) + len(self.separator) for step in self.steps]
        return [*accumulate(lengths[:-1]), len(self.completion[0].content)]


@dataclass(frozen=True, slots=True)
class Prompt(Pickled):
    """A dialogue to be answered. `columns` holds the row's other keys, for a judge."""

    messages: Messages
    columns: Mapping[str, object] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    tools: str = ""
    as_text: bool = field(default=False, compare=False)
    """Whether the row holds it as one text and not as messages: then that is how judges get it and its answers, as in
    TRL."""

    @property
    def given(self) -> str | list[Json]:
        """The prompt in the form in which the row holds it."""
        if self.as_text:
            return self.messages[0].content
        return [m.plain() for m in self.messages]

    def row(self) -> Row:
        """The prompt as a data file holds it, text where it was one text."""
        row: Row = {"prompt": self.given}
        if self.tools:
            row["tools"] = json.loads(self.tools)
        return row


@dataclass(frozen=True, slots=True)
class Text(Pickled):
    """A document of plain text."""

    text: str
    where: str = field(default="", compare=False)


Record = Conversation | Preference | Ranking | Labelled | Stepwise | Prompt | Text
R = TypeVar("R", bound=Record)


def characters(record: Record) -> int:
    """About how long a record is: the longest of several answers counts."""
    if isinstance(record, Text):
        return len(record.text)
    if isinstance(record, Preference | Ranking):
        messages = record.prompt + max(record.answers.values(), key=str)
    else:
        messages = record.messages
    return sum(len(m.content) + len(m.reasoning) + len(m.tool_calls) for m in messages)
