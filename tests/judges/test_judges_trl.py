"""Judges beside TRL's own `GRPOTrainer._calculate_rewards`: the same functions get the same values and give the same
scores.

The functions are the forms of TRL's documentation and tests: completions alone, with columns, with token ids, None for
no score, asynchronous, classes with `__call__`, and TRL's own rewards.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.trainer.utils import nanstd

from align import judges
from align.data.formats import read_prompts
from align.data.records import Message, Prompt
from align.rl import advantages
from align.rl.rewards import Reward, Samples, scored, total
from tests.conftest import write_rows

FORMS = """
import asyncio, copy, functools
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

SEEN = {}

def note(name, given):
    trainers_own = ("trainer_state", "log_extra", "log_metric")
    SEEN.setdefault(name, []).append(copy.deepcopy({k: v for k, v in given.items() if k not in trainers_own}))

def by_length(completions, **kwargs):
    note("by_length", {"completions": completions, **kwargs})
    return [float(len(completion[0]["content"])) for completion in completions]

def with_columns(prompts, completions, ground_truth, **kwargs):
    note("with_columns", {"prompts": prompts, "completions": completions, "ground_truth": ground_truth, **kwargs})
    return [1.0 if truth in c[0]["content"] else 0.0 for c, truth in zip(completions, ground_truth)]

def tokens(completion_ids, **kwargs):
    note("tokens", {"completion_ids": completion_ids, **kwargs})
    return [len(ids) for ids in completion_ids]

def some(completions, task, **kwargs):
    return [bool(len(c[0]["content"]) % 2) if t == "math" else None for c, t in zip(completions, task)]

def nobody(completions, **kwargs):
    return [None] * len(completions)

def logs(completions, log_extra=None, log_metric=None, trainer_state=None, **kwargs):
    return [0.5 for _ in completions]

async def slow(prompts, completions, **kwargs):
    note("slow", {"prompts": prompts, "completions": completions, **kwargs})
    await asyncio.sleep(0.01)
    return [None if i == 1 else float(i) for i in range(len(completions))]

class Waits:
    __name__ = "waits"

    async def __call__(self, completions, **kwargs):
        return [2.0] * len(completions)

class Counts:
    __name__ = "counts"

    def __call__(self, completions, **kwargs):
        return [3] * len(completions)

waits, counts, partial = Waits(), Counts(), functools.partial(by_length)
overlong, repetition = get_soft_overlong_punishment(4, 2), get_repetition_penalty_reward(2)
"""
NAMES = [
    "by_length",
    "with_columns",
    "tokens",
    "some",
    "logs",
    "slow",
    "waits",
    "counts",
    "partial",
    "overlong",
    "repetition",
]
NAMES += ["think_format_reward", "nobody"]

ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": "What is 3 plus 4?"}],
        "ground_truth": "7",
        "task": "math",
        "levels": [1, {"hard": True}],
    },
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}],
        **{"ground_truth": "blue", "task": "other", "levels": None, "completion": "kept back", "completion_ids": [9]},
    },
    {"prompt": [{"role": "user", "content": "What is 1 plus 1?"}], "ground_truth": "2", "task": "math", "levels": [2]},
]
ROWS[0] |= {"completion": "kept back", "completion_ids": [1]}
ROWS[2] |= {"completion": "kept back", "completion_ids": [2]}
TEXTS = ["It is 7.", "<think>\nclear\n</think>\nblue", "3"]
IDS = [[5, 6, 7, 2], [8, 8, 8, 8, 8, 2], [4]]
PROMPTS = [
    Prompt(
        tuple(Message(**m) for m in row["prompt"]),
        {k: v for k, v in row.items() if k != "prompt"},
        f"rows.jsonl:{i + 1}",
    )
    for i, row in enumerate(ROWS)
]


@contextmanager
def trainer(functions: list[Any]) -> Iterator[Any]:
    """What `_calculate_rewards` reads of its trainer."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        state=SimpleNamespace(global_step=0),
        reward_funcs=functions,
        reward_processing_classes=[None] * len(functions),
        reward_func_names=[str(i) for i in range(len(functions))],
        environments=None,
        async_loop=loop,
        _log_completion_extra=lambda *args: None,
        _log_metric=lambda *args: None,
    )
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def as_trl(functions: list[Any]) -> torch.Tensor:
    """(S, F): the rewards that TRL's trainer gets."""
    with trainer(functions) as fake:
        completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
        found: torch.Tensor = GRPOTrainer._calculate_rewards(
            fake, ROWS, [row["prompt"] for row in ROWS], completions, IDS
        )
    return found


@pytest.fixture
def loaded(tmp_path: Path) -> dict[str, judges.Judge]:
    (tmp_path / "forms.py").write_text(FORMS)
    return judges.load_all({name: f"{tmp_path}/forms.py:{name}" for name in NAMES}, PROMPTS)


def test_every_form_gets_what_trl_gives_it(loaded: dict[str, judges.Judge]) -> None:
    """The arguments, `completion` and `completion_ids` of the data left out, are equal to the last nested value; so are
    the scores."""
    ours = judges.call(loaded, PROMPTS, TEXTS, IDS)
    truth = as_trl([j.function for j in loaded.values()])
    seen = loaded["by_length"].function.__globals__["SEEN"]
    assert {name: len(calls) for name, calls in seen.items()} == {
        "by_length": 4,
        "with_columns": 2,
        "tokens": 2,
        "slow": 2,
    }
    for calls in seen.values():
        assert calls[0] == calls[-1] and calls[0].keys() >= {"task", "levels"}
    assert set(seen["with_columns"][0]) == {
        "prompts",
        "completions",
        "completion_ids",
        "ground_truth",
        "task",
        "levels",
    }
    for i, name in enumerate(NAMES):
        expected = [None if math.isnan(value) else value for value in truth[:, i].tolist()]
        assert ours[name] == pytest.approx(expected) if None not in expected else ours[name] == expected, name
    assert (
        ours["some"] == [0.0, None, 1.0] and ours["slow"] == [0.0, None, 2.0] and ours["overlong"] == [-1.0, -1.0, 0.0]
    )
    # Negative control: what TRL is given differs where a value does
    TEXTS[2], kept = "4?", TEXTS[2]
    try:
        as_trl([loaded["by_length"].function])
        assert seen["by_length"][-1] != seen["by_length"][0]
    finally:
        TEXTS[2] = kept


def test_the_sum_is_trls(loaded: dict[str, judges.Judge]) -> None:
    """nansum over functions by their weights; what nobody scores is nan (TRL's `unscorable_mask`)."""
    for names, weights in (
        (["some", "by_length", "slow"], [1.0, 0.5, -2.0]),
        (["some", "slow", "nobody"], [2.0, 1.0, 1.0]),
    ):
        rewards = [Reward(n, w, loaded[n]) for n, w in zip(names, weights, strict=True)]
        by_name = dict(zip(names, scored(rewards, Samples([], PROMPTS, TEXTS, IDS)), strict=True))
        per_function = as_trl([loaded[n].function for n in names])
        truth = (per_function * torch.tensor(weights)).nansum(dim=1)
        truth[torch.isnan(per_function).all(dim=1)] = torch.nan
        torch.testing.assert_close(torch.tensor(total(rewards, by_name)).float(), truth, equal_nan=True)
    assert torch.isnan(truth).tolist() == [False, True, False]


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_leave_out_what_has_no_score(scale: bool) -> None:
    """TRL's formulas of GRPO and RLOO on the same rewards: a sample without a score is no part of its group, and gets
    0."""
    nan = math.nan
    rewards = torch.tensor(
        [[1.0, nan, 3.0, 8.0], [nan, nan, 2.0, nan], [nan] * 4, [1.0, 2.0, 3.0, 5.0]], dtype=torch.float64
    )
    grpo = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    grpo = torch.nan_to_num(grpo / (nanstd(rewards, dim=1, keepdim=True) + 1e-4) if scale else grpo, nan=0.0)
    ours = advantages.group_relative(rewards.flatten().numpy(), 4, scale)
    torch.testing.assert_close(torch.tensor(ours), grpo.flatten())
    counts = (~torch.isnan(rewards)).sum(dim=1, keepdim=True)
    rloo = torch.nan_to_num(rewards - (torch.nansum(rewards, dim=1, keepdim=True) - rewards) / (counts - 1), nan=0.0)
    torch.testing.assert_close(torch.tensor(advantages.leave_one_out(rewards.flatten().numpy(), 4)), rloo.flatten())
    zeros = advantages.group_relative(torch.nan_to_num(rewards).flatten().numpy(), 4, scale)
    assert abs(zeros - ours).max() > 0.1  # negative control: None is not 0


def test_the_form_of_a_row_is_that_of_its_completion(tmp_path: Path) -> None:
    """As TRL decides it: a text for a text, messages for messages (`is_conversational`), row by row."""
    given: list[dict[str, Any]] = [
        {"prompt": "Sky?"},
        {"prompt": [{"role": "user", "content": "Sky?"}]},
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}]},
    ]
    prompts = list(read_prompts(write_rows(tmp_path / "rows.jsonl", given)))
    (tmp_path / "seen.py").write_text(
        "SEEN = []\ndef see(prompts, completions, **kw):\n    SEEN.append((prompts, completions))\n    return [1] * 3\n"
    )
    seen = judges.load(f"{tmp_path / 'seen.py'}:see", prompts)
    seen(prompts, ["Blue."] * 3)
    ((asked, answered),) = seen.function.__globals__["SEEN"]
    assert asked == [row["prompt"] for row in given]
    assert (
        [isinstance(completion, list) for completion in answered]
        == [is_conversational(row) for row in given]
        == [False, True, True]
    )
    assert answered[0] == "Blue." and answered[1] == answered[2] == [{"role": "assistant", "content": "Blue."}]
