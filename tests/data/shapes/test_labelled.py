"""Answers with a label: every shape of them means the same, and an unpaired pair is what TRL makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from align.data.formats import read_conversations, read_labelled
from align.data.records import Labelled, Message
from align.ground.errors import InputError

HI, HELLO = Message("user", "Hi"), Message("assistant", "Hello!")
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello!"},
        {"instruction": "Hi", "input": "", "output": "Hello!"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"messages": CHAT},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"messages": CHAT[:1], "completion": "Hello!"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("key", "good", "bad"), [("label", True, False), ("kto_tag", 1, 0), ("label", "desirable", "Undesirable")]
)
def test_every_shape_means_the_same(write: Callable[..., str], row: Any, key: str, good: Any, bad: Any) -> None:
    assert read_labelled(write({**row, key: good}, {**row, key: bad})) == [
        Labelled((HI,), (HELLO,), True),
        Labelled((HI,), (HELLO,), False),
    ]
    with pytest.raises(InputError, match=f'has "{key}", but answers with such a label'):
        read_conversations(write({**row, key: bad}))  # sft learns no bad answer


def test_a_pair_is_unpaired_as_trl_does(write: Callable[..., str]) -> None:
    from datasets import Dataset
    from trl import unpair_preference_dataset

    rows = [{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, {"prompt": "3?", "chosen": "Y", "rejected": "N"}]
    theirs = unpair_preference_dataset(Dataset.from_list(rows)).to_list()
    ours = [
        {"prompt": r.prompt[0].content, "completion": r.completion[0].content, "label": r.label}
        for r in read_labelled(write(*rows))
    ]
    assert sorted(ours, key=str) == sorted(theirs, key=str)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, '"label" is missing. A labelled answer needs prompt and label'),
        ({"prompt": "a", "completion": "b", "label": None}, '"label" says nothing'),
        ({"prompt": "a", "completion": "b", "label": 0.5}, '"label" is 0.5; expected true'),
        ({"prompt": "a", "completion": "b", "label": True, "kto_tag": False}, "has label and kto_tag, which differ"),
        ({"prompt": "a", "label": True}, '"completion" is missing'),
        ({"messages": CHAT[:1], "label": True}, '"completion" is missing'),
        ({"prompt": "a", "completion": " ", "label": True}, '"completion" is empty'),
        ({"prompt": "a", "completion": "b", "label": True, "weight": 0}, 'has "weight", but all rows count alike'),
    ],
    ids=str,
)
def test_what_is_wrong_is_told(write: Callable[..., str], row: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^rows.jsonl:1: {message}"):
        read_labelled(write(row))
