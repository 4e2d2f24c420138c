"""Faults planted in twenty small recipes, over stages early and late: `--dry-run` finds each, names its stage and says
what to do. The control is the same recipe without the fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.ground.errors import InputError
from tests.conftest import write_rows
from tests.stage.test_rehearsal import PPO, SAMPLED, TINY, dry_run, healthy

Stages = dict[str, dict[str, Any]]
Plant = Callable[[Path, dict[str, Any]], None]
SFT: Stages = {"sft": {"data": "sft.jsonl"}}
REWARD: Stages = SFT | {"reward": {"parent": "sft", "data": "pairs.jsonl"}}
REINFORCED: Stages = REWARD | {"ppo": PPO}


def pairwise(kind: str, **more: Any) -> Stages:
    return SFT | {"last": {"kind": kind, "parent": "sft", "data": "pairs.jsonl", **more}}


def judged(kind: str, **more: Any) -> Stages:
    taken = {"judges": {"gold": "judge.py:score"}, "rollout_size": 8, "group_size": 4}
    return SFT | {"last": {"kind": kind, "parent": "sft", "data": "prompts.jsonl", **taken, **SAMPLED, **more}}


RECIPES: dict[str, Stages] = {
    "sft": SFT,
    "pretrain": {"pre": {"kind": "pretrain", "data": "texts.jsonl"}, "sft": {"parent": "pre", "data": "sft.jsonl"}},
    "reward": REWARD,
    "ppo": REINFORCED,
    "dpo": pairwise("dpo"),
    "simpo": pairwise("simpo"),
    "cpo": pairwise("cpo"),
    "orpo": pairwise("orpo"),
    "kto": pairwise("kto"),
    "bco": pairwise("bco"),
    "grpo": judged("grpo"),
    "rloo": judged("rloo"),
    "reinforce_pp": judged("reinforce_pp"),
    "online_dpo": judged("online_dpo"),
    "pairs": SFT
    | {
        "pairs": {"parent": "sft", "data": "prompts.jsonl", "judge": "judge.py:score", **SAMPLED},
        "last": {"kind": "dpo", "parent": "sft", "data": "pairs"},
    },
    "best_of_n": SFT
    | {
        "best": {"kind": "best_of_n", "parent": "sft", "data": "prompts.jsonl", "judge": "judge.py:score", **SAMPLED},
        "last": {"kind": "sft", "parent": "sft", "data": "best"},
    },
    "distill": pairwise("dpo")
    | {"student": {"kind": "distill", "parent": "sft", "teacher": "last", "data": "sft.jsonl"}},
    "dora": {**pairwise("dpo"), "sft": SFT["sft"] | {"adapter": {"method": "dora", "rank": 4}}},
    "merge": REINFORCED | {"last": {"kind": "merge", "parent": "ppo"}},
    "after a merge": SFT
    | {"merged": {"kind": "merge", "parent": "sft"}, "last": {"kind": "sft", "parent": "merged", "data": "sft.jsonl"}},
    "evaluate": pairwise("dpo")
    | {
        "report": {
            "kind": "evaluate",
            "compare": ["sft", "last"],
            "data": "heldout.jsonl",
            "judges": {"gold": "judge.py:score"},
            **SAMPLED,
        }
    },
    "stack": pairwise("dpo", parent_adapter="stack"),
    "looked at": SFT | {"last": {"kind": "sft", "parent": "sft", "data": "sft.jsonl", "eval_data": "sft.jsonl"}},
    "two bases": {**REWARD, "other": {"kind": "sft", "base": "./copy", "data": "sft.jsonl"}},
}
"""Twenty-four recipes; the stage of interest is most often the last."""


def last(**changes: Any) -> Plant:
    """Other settings of the recipe's last stage."""
    return lambda folder, recipe: list(recipe["stages"].values())[-1].update(changes)


def first(**changes: Any) -> Plant:
    return lambda folder, recipe: next(iter(recipe["stages"].values())).update(changes)


def beside(**changes: Any) -> Plant:
    """What stands beside `stages`."""
    return lambda folder, recipe: recipe.update(changes)


def lines(name: str, text: str, *plants: Plant) -> Plant:
    def plant(folder: Path, recipe: dict[str, Any]) -> None:
        (folder / name).write_text(text)
        for other in plants:
            other(folder, recipe)

    return plant


def row_900(folder: Path, recipe: dict[str, Any]) -> None:
    rows = [json.dumps({"prompt": f"What is {i}?", "completion": "Who knows."}) for i in range(1000)]
    rows[899] = rows[899][:-3]
    (folder / "sft.jsonl").write_text("\n".join(rows))


def unreadable(folder: Path, recipe: dict[str, Any]) -> None:
    (folder / "pairs.jsonl").write_bytes(b'{"prompt": "\xff\xfe", "chosen": "a", "rejected": "b"}\n')


def other_base(folder: Path, recipe: dict[str, Any]) -> None:
    """PPO on the copy, with a reward model of the shipped base."""
    recipe["stages"]["last"] = PPO | {"kind": "ppo", "parent": "other"}


METHOD = {"oft": {"block_size": 48}, "boft": {"block_size": 7}, "c3a": {"block_size": 50}, "road": {"block_size": 6}}
SIZES = {"miss": {"rank": 500}, "fourierft": {"frequencies": 10**7}, "gralora": {"rank": 7}, "hra": {"rank": 3}}
DIVIDES = r"adapter.block_size is \d+, which does not divide the widths of .* Take a divisor"
ROOM = r"adapter\.\w+ is \d+, and .* has room for \d+ .* Take no more|adapter.*rank is \d, and \w+ needs an even one"

FAULTS: list[tuple[str, Plant, str]] = [
    *[("after a merge", last(adapter={"method": m, **s}), f"stages.last.{DIVIDES}") for m, s in METHOD.items()],
    *[("after a merge", last(adapter={"method": m, **s}), ROOM) for m, s in SIZES.items()],
    (
        "stack",
        last(adapter={"targets": ["q_proj", "nope"]}),
        r"stages\.last\.adapter.targets: 'nope' .* It has down_proj",
    ),
    (
        "stack",
        last(adapter={"experts": True}),
        r"stages\.last\.adapter.experts is true, but .* no routed experts; leave it",
    ),
    ("stack", last(adapter={"method": "oft"}), r"r/last: .*oft cannot be active together .*Merge the parent first"),
    ("sft", first(adapter={"rank": 0}), r"stages.sft.adapter.rank: expected .* found 0"),
    ("dpo", last(data="sft.jsonl"), r"stages.last.data: .*sft.jsonl:1: .*(chosen|rejected)"),
    ("after a merge", last(data="prompts.jsonl"), r"stages.last.data: .*prompts.jsonl:1: .*completion"),
    ("reward", last(data="sft.jsonl"), r"stages.reward.data: .*sft.jsonl:1: .*(chosen|rejected)"),
    ("kto", last(data="sft.jsonl"), r"stages.last.data: .*sft.jsonl:1: .*label"),
    ("grpo", last(data="texts.jsonl"), r"stages.last.data: .*texts.jsonl:1: .*prompt"),
    ("pretrain", first(data="pairs.jsonl"), r"stages.pre.data: .*pairs.jsonl:1: "),
    ("two bases", other_base, r"reward .*another base|r/last: reward .* was trained on base .*"),
    ("two bases", last(data="nowhere-*.jsonl"), r"stages\.other\.data: there is no file .*nowhere-"),
    ("dpo", last(loss="ipo", label_smoothing=0.1), r"stages.last.*label_smoothing.* (no effect|ipo)"),
    ("simpo", last(gama=1.0), r"stages.last.gama is not a setting of simpo; did you mean gamma"),
    ("cpo", last(parent="last"), r"stages.last.parent: .*(itself|earlier stage)"),
    ("orpo", first(parent="last"), r"stages.sft.parent: last .*(earlier|after|comes)"),
    (
        "looked at",
        lines("none.jsonl", "", last(eval_data="none.jsonl")),
        r"r/last: .*none.jsonl.*(empty|no rows|no rec)",
    ),
    ("sft", row_900, r"stages.sft.data: .*sft.jsonl:900: .*JSON"),
    ("reward", unreadable, r"stages.reward.data: .*pairs.jsonl:1: .*UTF-8"),
    ("evaluate", last(max_new_tokens=250), r"stages.report.data: .*heldout.jsonl:1: .*250 more .* context is 256"),
    ("rloo", last(max_new_tokens=95), r"stages.last.data: .*prompts.jsonl:1: .*95 more are to be sampled"),
    ("evaluate", last(report_to=["wandb"]), r"report_to is not a setting of evaluate"),
    ("grpo", last(report_to=["wandb"]), r"stages\.last\.report_to: .*wandb.*pip install"),
    ("grpo", last(group_size=3), r"stages.last: batch_size .*multiple of group_size"),
    (
        "rloo",
        lines("j.py", "raise RuntimeError('no key')\n", last(judges={"g": "j.py:score"})),
        r"stages\.last\.judges\.g: .*no key",
    ),
    ("grpo", last(judges={"g": "nowhere.py:score"}), r"stages\.last\.judges\.g: .*nowhere.py"),
    ("reinforce_pp", last(judges={}), r"(r/|stages\.)last.*judge"),
    ("merge", last(parent="pop"), r"stages.last.parent: .*pop.*did you mean ppo|pop is not an earlier stage"),
    ("evaluate", last(compare=["sft", "lst"]), r"stages.report.compare: lst is not an earlier stage"),
    ("sft", beside(base=str(TINY / "nowhere")), r":2: base: .*nowhere"),
    ("reward", last(eval_fraction=1.5), r"stages.reward.eval_fraction: expected"),
]


def recipe_of(name: str, folder: Path) -> dict[str, Any]:
    """A recipe of `RECIPES` with its files in `folder`."""
    recipe = healthy(folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    if name in ("kto", "bco"):
        both = [
            {"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"}
            for r in rows
            for k in r
            if k != "prompt"
        ]
        write_rows(folder / "pairs.jsonl", both)
    if name == "two bases":
        (folder / "copy").mkdir()
        for file in TINY.iterdir():
            (folder / "copy" / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "copy/config.json").read_text())
        (folder / "copy/config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    recipe["stages"] = json.loads(json.dumps(RECIPES[name]))
    return recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_without_a_fault_is_rehearsed(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control of all faults."""
    recipe = recipe_of(name, tmp_path)
    dry_run(tmp_path, recipe)
    printed = capsys.readouterr().out
    assert all(f"r/{stage}: run, nothing has its name yet\n" in printed for stage in recipe["stages"])


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_a_fault_is_found(tmp_path: Path, fault: int) -> None:
    name, plant, said = FAULTS[fault]
    recipe = recipe_of(name, tmp_path)
    plant(tmp_path, recipe)
    with pytest.raises(InputError, match=said) as error:
        dry_run(tmp_path, recipe)
    assert not (tmp_path / "store").exists() and "Traceback" not in str(error.value)
