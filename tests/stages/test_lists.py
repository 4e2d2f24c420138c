"""A reward model on lists of ranked answers: what is read, what is trained on, and what is measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from align import reward
from align.data.examples import in_pairs
from align.data.formats import read_preferences, read_rankings
from align.ground.errors import InputError
from align.packed.pack import pack
from align.recipe import idle
from tests.conftest import Pipeline, write_rows
from tests.models.models import make_roles, pairs
from tests.stages.helpers import history, run, settings

ROWS: list[dict[str, Any]] = [
    {"prompt": "Which colour is the sky?", "responses": ["Hm.", "Blue.", "Grey.", "None."], "scores": [1, 9, 5, 5]},
    {"prompt": "Which colour is grass?", "responses": ["Green.", "Red.", "Blue."], "ranks": [1, 3, 2]},
    {"prompt": "Which colour is snow?", "chosen": "White.", "rejected": "Black."},
]


def test_rows_are_lists(tmp_path: Path) -> None:
    """Best first; of two that are worth the same the first; pairs are lists of two. As pairs, six, three and one."""
    path = write_rows(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "?", "responses": ["A", "B"], "scores": [1, 1]}])
    found = read_rankings(path)
    said = [[answer[0].content for answer in record.ordered] for record in found]
    assert said == [["Blue.", "Grey.", "Hm."], ["Green.", "Blue.", "Red."], ["White.", "Black."]]
    told = str(found)
    assert "answers that are called as good as one before" in told and "all called equally good" in told
    assert len(read_preferences(path)) == 5 + 3 + 1  # negative control: without the tie
    with pytest.raises(InputError, match=r'"responses" holds 1 answers'):
        read_rankings(write_rows(tmp_path / "one.jsonl", [{"prompt": "?", "responses": ["A"], "scores": [1]}]))


def test_lists_train(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss starts at the mean of ln k!, as a head of zeros finds all orders alike likely, and falls."""
    rows = [{**row, "prompt": f"{i}. {row['prompt']}"} for i in range(6) for row in ROWS[:2]]
    data = write_rows(tmp_path / "lists.jsonl", rows)
    changes: dict[str, Any] = {"data": data, "lists": True, "eval_fraction": 0.2, "max_steps": 4, "batch_size": 4}
    made = run(pipeline, "reward", **changes)
    losses = [row["loss"] for row in history(made, pipeline.store)]
    assert losses[0] == pytest.approx(math.log(6), abs=1e-6) and losses[-1] < losses[0] - 1e-3
    assert made.kind == "reward" and 0 <= made.metrics["accuracy"] <= 1
    assert "pairs in them" in capsys.readouterr().err
    apart = run(pipeline, "reward", **changes | {"lists": False})  # negative control: pairs begin at ln 2
    assert history(apart, pipeline.store)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_lists_of_two_are_pairs() -> None:
    """On the same packed rows the two losses are equal, in value and gradient."""
    roles = make_roles()
    roles.assign("policy", ["policy"], roles.new_head().double())
    torch.nn.init.normal_(roles.heads["policy"].weight)
    roles.train_only("policy", heads=["policy"])
    examples = pairs(4)
    lists, both = pack(reward.placed(examples)), pack(examples)
    found = [
        reward.loss_of_lists(roles, lists).scalar({"lists": 4}),
        reward.loss(roles, both, 0.0).scalar({"pairs": 4}),
    ]
    gradients = [torch.autograd.grad(each, [*roles.trainable().values()]) for each in found]
    torch.testing.assert_close(found[0], found[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert [e.sequences for e in in_pairs(examples)] == [e.sequences for e in examples]


def test_centre_is_of_pairs(pipeline: Pipeline) -> None:
    given = settings(pipeline, "reward", lists=True, centre=0.1)
    assert [text for _, text in idle(given, "adapter")] == [
        "centre has no effect: lists is on, and centre is of pairs. Leave one of them out."
    ]
