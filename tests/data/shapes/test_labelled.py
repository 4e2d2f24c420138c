"""Answers with a label: every shape of them means the same, and an unpaired pair is what TRL makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import kto
from align.data.formats import read_conversations
from align.data.judged import read_labelled
from align.data.records import Labelled, Message
from align.data.tools.kinds import ReadAs
from align.ground.errors import InputError
from align.stage.ahead.dry_run import plan
from tests.conftest import Pipeline, write_rows

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
    assert read_labelled()(write({**row, key: good}, {**row, key: bad})) == [
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
        for r in read_labelled()(write(*rows))
    ]
    assert sorted(ours, key=str) == sorted(theirs, key=str)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "completion": "b"},
            '"label" is missing. A labelled answer needs prompt, completion and',
        ),
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
        read_labelled()(write(row))


def test_labels_are_read_alike_in_all_files_of_a_run(tmp_path: Path) -> None:
    """Beside -1 a 0 is neutral, in whichever file it stands. Negative controls: two kinds, pairs, and another run."""

    def written(name: str, *labels: object) -> Path:
        rows = [{"prompt": "Hi", "completion": f"{i}", "label": label} for i, label in enumerate(labels)]
        return write_rows(tmp_path / name, [*rows, {"prompt": "Hi", "chosen": "a", "rejected": "b"}])

    first, second, clear = written("a.jsonl", 1, 0), written("b.jsonl", -1, "1"), written("c.jsonl", True, False, "bad")
    told = (
        r'a.jsonl:2 has 0 in "label", and .*b.jsonl:1 has -1 in "label": beside -1, 0 means neutral, and an answer is'
    )
    for reader in (read_labelled(), ReadAs("labelled"), ReadAs(None)):
        assert [record.label for record in reader(first)] == [True, False, True, False]
        reader(clear)
        with pytest.raises(InputError, match=told):
            reader(second, "drop")
    assert [record.label for record in read_labelled()(second)] == [False, True, True, False]
    with pytest.raises(InputError, match="beside -1, 0 means neutral"):
        read_labelled()(written("d.jsonl", -1, 0, 1))


def test_a_mixture_and_what_it_is_measured_on_are_one_run(trained: Pipeline, tmp_path: Path) -> None:
    def written(name: str, bad: int) -> dict[str, str]:
        rows = [{"prompt": f"Is it {i}?", "completion": "Yes.", "label": 1 if i % 2 else bad} for i in range(8)]
        return {"file": str(write_rows(tmp_path / name, rows))}

    zero, minus = written("zero.jsonl", 0), written("minus.jsonl", -1)
    more = {"parent": "tiny/sft", "max_steps": 1, "precision": "fp32", "threads": 1, "name": "k"}
    for data in ({"data": [zero, minus]}, {"data": zero["file"], "eval_data": minus["file"]}):
        for dry_run in (True, False):
            with pytest.raises(InputError, match=r"zero.jsonl:1 has 0 in .label., and .*minus.jsonl:1 has -1"):
                config = kto.Config(**data, **more)  # type: ignore[arg-type]
                plan(kto.STAGE, config, trained.store) if dry_run else kto.run(config, trained.store)
