"""Texts in the form of Anthropic's HH data (Bai et al. 2022, arXiv 2204.05862).

{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: What?"}
"""

from __future__ import annotations

import re
from typing import TypeGuard

from align.data.records import Message, Messages, Role

SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
HH_START = re.compile(r"\s*Human:")
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def is_hh(value: object) -> TypeGuard[str]:
    """Whether a value is a text of this form."""
    return isinstance(value, str) and HH_START.match(value) is not None and "\n\nAssistant:" in value


def is_dialogue(value: object) -> bool:
    """Whether a value holds turns: messages, or a text of this form."""
    return isinstance(value, list) or is_hh(value)


def hh_turns(text: str) -> Messages:
    """The turns of a text; a bare "Assistant:" at the end is no turn."""
    parts = HH_TURN.split("\n\n" + text.strip())[1:]
    turns = zip(parts[::2], parts[1::2], strict=True)  # (who speaks, what is said)
    messages = tuple(Message(SPEAKERS[speaker], said.strip()) for speaker, said in turns)
    is_bare = messages[-1].role == "assistant" and not messages[-1].content
    return messages[:-1] if is_bare else messages
