"""Settings without effect are refused where they are given, are no error as a recipe's defaults, and stand in no
manifest."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from align.ground.errors import InputError
from align.pipeline import load
from align.recipe import idle, parse_flags, resolved

RL = {"parent": "p", "data": "d", "reward": "r"}
START = {"sft": {"base": "b", "data": "d"}, "reward": {"base": "b", "data": "d"}, "dpo": {"parent": "p", "data": "d"}}
START |= {
    "pretrain": {"data": "d"},
    "evaluate": {"compare": ["a"], "texts": "t"},
    "ppo": RL,
    "grpo": RL,
    "rloo": RL,
    "reinforce_pp": RL,
}


def config(stage: str, **given: Any) -> Any:
    return importlib.import_module(f"align.{stage}").Config(**START[stage], **given)


ADAPTER, MODEL = "adapter", "model"
CASES: list[tuple[str, dict[str, Any], str | None, str, dict[str, Any]]] = [
    # stage, what is given, the parent's kind, the setting without effect, and what else is to be set for it to have one
    (
        "sft",
        {"warmup_ratio": 0.1, "lr_scheduler": "constant"},
        None,
        "warmup_ratio",
        {"lr_scheduler": "constant_with_warmup"},
    ),
    ("sft", {"adam_beta2": 0.9, "optimizer": "sgd"}, None, "adam_beta2", {"optimizer": "adamw_torch"}),
    ("sft", {"adam_beta2": 0.9, "optimizer": "adafactor"}, None, "adam_beta2", {"optimizer": "adamw_8bit"}),
    ("sft", {"adam_beta2": 0.9, "optimizer": "muon"}, None, "adam_beta2", {"optimizer": "lion_8bit"}),
    (
        "sft",
        {"lr_scheduler_kwargs": {"timescale": 3}, "lr_scheduler": "linear"},
        None,
        "lr_scheduler_kwargs",
        {"lr_scheduler": "inverse_sqrt"},
    ),
    (
        "sft",
        {"neftune_noise_alpha": 5.0, "trunk_cache": "disk", "adapter": {"layers": 1}},
        None,
        "trunk_cache",
        {"neftune_noise_alpha": None},
    ),
    ("pretrain", {"loraplus_lr_ratio": 16.0, "base": "b"}, None, "loraplus_lr_ratio", {"method": "lora"}),
    ("sft", {"checkpoint_minutes": 1.0, "checkpoint_steps": 0}, None, "checkpoint_minutes", {"checkpoint_steps": 1}),
    ("sft", {"eval_fraction": 0.2, "eval_data": "e"}, None, "eval_fraction", {"eval_data": None}),
    ("sft", {"epochs": 2.0, "max_steps": 3}, None, "epochs", {"max_steps": None}),
    ("sft", {"parent_adapter": "continue"}, None, "parent_adapter", {"base": None, "parent": "p"}),
    ("sft", {"trunk_cache": "disk"}, None, "trunk_cache", {"adapter": {"layers": 1}}),
    ("sft", {"trunk_dtype": "bf16"}, None, "trunk_dtype", {"adapter": {"layers": 1}}),
    (
        "sft",
        {"trunk_dtype": "bf16", "adapter": {"layers": 1}, "trunk_cache": "off"},
        None,
        "trunk_dtype",
        {"trunk_cache": "memory"},
    ),
    ("dpo", {"adapter": {"rank": 4}}, ADAPTER, "adapter.rank", {"parent_adapter": "stack"}),
    ("dpo", {"parent_adapter": "stack"}, MODEL, "parent_adapter", {}),
    ("reward", {"centre_max_new_tokens": 8, "centre_samples": 0}, None, "centre_max_new_tokens", {"centre_samples": 1}),
    ("pretrain", {"architecture": {"layers": 2}, "base": "b"}, None, "architecture.layers", {"base": None}),
    ("pretrain", {"adapter": {"rank": 4}, "base": "b"}, None, "adapter.rank", {"method": "lora"}),
    ("pretrain", {"save_dtype": "bf16", "method": "lora", "base": "b"}, None, "save_dtype", {"method": "full"}),
    ("pretrain", {"truncate": "cut", "base": "b"}, None, "truncate", {"learn": "answers"}),
    ("sft", {"keep": "best"}, None, "keep", {"eval_steps": 5}),
    ("sft", {"patience": 2}, None, "patience", {"eval_epochs": 0.1}),
    ("dpo", {"min_delta": 0.1, "eval_steps": 5}, None, "min_delta", {"patience": 2}),
    ("sft", {"keep": "best", "eval_steps": 5, "max_steps": 5}, None, "keep", {"max_steps": 6}),
    ("sft", {"patience": 2, "eval_steps": 5, "max_steps": 15}, None, "patience", {"max_steps": 16}),
    ("sft", {"patience": 3, "eval_epochs": 0.25}, None, "patience", {"epochs": 2.0}),
    ("sft", {"eval_steps": 5, "eval_fraction": 0.0}, None, "eval_steps", {"hold_out": 0.1}),
    ("sft", {"watch_prompts": 2, "eval_fraction": 0.0}, None, "watch_prompts", {"eval_data": "e"}),
    ("sft", {"watch_tokens": 9}, None, "watch_tokens", {"watch_prompts": 1}),
    ("reward", {"watch_prompts": 1}, None, "watch_prompts", {}),
    ("grpo", {"eval_steps": 5}, None, "eval_steps", {}),
    ("ppo", {"watch_tokens": 9}, None, "watch_tokens", {}),
    ("ppo", {"eval_fraction": 0.1}, None, "eval_fraction", {}),
    ("grpo", {"eval_data": "e"}, None, "eval_data", {}),
    ("ppo", {"truncate": "cut"}, None, "truncate", {"truncate": "drop"}),
    ("ppo", {"kl_horizon": 5000}, None, "kl_horizon", {"kl_target": 6.0}),
    ("rloo", {"kl_estimator": "k3", "kl_coef": 0.0}, None, "kl_estimator", {"kl_coef": 0.1}),
    ("ppo", {"trust_reward": True, "reward": None, "judges": {"j": "f.py:f"}}, None, "trust_reward", {"reward": "r"}),
    ("grpo", {"clip": 0.1, "rollout_size": 32, "batch_size": 32}, None, "clip", {"rollout_epochs": 2}),
    ("grpo", {"loss": "cispo", "rollout_size": 32}, None, "loss", {"rollout_epochs": 2}),
    ("grpo", {"clip": 0.1, "loss": "sapo"}, None, "clip", {"loss": "gmpo"}),
    ("grpo", {"clip": 0.1, "loss": "cispo", "clip_high": 4.0}, None, "clip", {"clip_high": None}),
    ("grpo", {"ratio": "sequence", "loss": "vespo"}, None, "ratio", {"loss": "sapo"}),
    ("grpo", {"ratio_max": 4.0, "loss": "cispo"}, None, "ratio_max", {"loss": "clip"}),
    ("grpo", {"sapo_temperature_neg": 2.0}, None, "sapo_temperature_neg", {"loss": "sapo"}),
    ("grpo", {"vespo_k_pos": 1.0, "loss": "gmpo"}, None, "vespo_k_pos", {"loss": "vespo"}),
    ("grpo", {"kl_by_ratio": True, "kl_coef": 0.0}, None, "kl_by_ratio", {"kl_coef": 0.1}),
    ("ppo", {"value_clip": 0.1, "rollout_size": 32, "ppo_epochs": 1}, None, "value_clip", {"rollout_size": 64}),
    ("reinforce_pp", {"max_approx_kl": 0.1, "rollout_size": 32}, None, "max_approx_kl", {"batch_size": 16}),
    ("grpo", {"guard": {"explained_variance": 0.5}}, None, "guard.explained_variance", {}),
    ("ppo", {"guard": {"no_variance": 0.5}}, None, "guard.no_variance", {}),
    ("ppo", {"guard": {"stop": ["reward_hacking"]}}, None, "guard.stop", {"weights": {"x": 0.0}}),
    ("rloo", {"guard": {"window": 3}}, None, "guard.window", {"weights": {"x": 0.0}}),
    ("evaluate", {"limit": 3}, None, "limit", {"data": "d"}),
    ("evaluate", {"pairs": "p"}, None, "pairs", {"reward": "r"}),
    ("evaluate", {"max_length": 8, "texts": None, "data": "p"}, None, "max_length", {"texts": "t"}),
]


@pytest.mark.parametrize(("stage", "given", "parent", "setting", "remedy"), CASES)
def test_each(stage: str, given: dict[str, Any], parent: str | None, setting: str, remedy: dict[str, Any]) -> None:
    values = {**START[stage], **given}
    kind = importlib.import_module(f"align.{stage}").Config
    found = dict((".".join(path), text) for path, text in idle(kind(**values), parent))
    assert (
        list(found) == [setting]
        and found[setting].startswith(f"{setting} has no effect: ")
        and found[setting].endswith(".")
    )
    with_effect = {**{name: value for name, value in values.items() if name not in remedy}, **remedy}
    if remedy:  # negative control
        assert setting not in [
            ".".join(path) for path, _ in idle(kind(**{k: v for k, v in with_effect.items() if v is not None}), parent)
        ]


def test_defaults_are_never_refused() -> None:
    for stage in START:
        for parent in (None, ADAPTER, MODEL):
            assert idle(config(stage), parent) == []


def test_what_is_recorded_is_what_holds() -> None:
    given = {"eval_fraction", "adapter", "parent_adapter", "warmup_ratio", "kl_horizon", "truncate"}
    recorded = resolved(config("ppo", lr_scheduler="constant", max_steps=5), ADAPTER)
    assert given & recorded.keys() == {"parent_adapter", "truncate"} and "epochs" not in recorded
    assert "explained_variance" in recorded["guard"] and "no_variance" not in recorded["guard"]
    assert given & resolved(config("ppo", kl_target=3.0)).keys() == given - {"eval_fraction"}
    # what has no effect is no part of what is asked
    assert resolved(config("sft", max_steps=2, epochs=1.0)) == resolved(config("sft", max_steps=2, epochs=9.0))


RECIPE = """\
base: b
adapter: {{rank: 8}}
eval_fraction: 0.2
truncate: cut
stages:
  sft: {{data: d.jsonl, epochs: 2}}
  reward: {{parent: sft, data: d.jsonl{reward}}}
  ppo: {{parent: sft, reward: reward, data: d.jsonl{ppo}}}
"""


def recipe(folder: Path, reward: str = "", ppo: str = "") -> Path:
    path = folder / "r.yaml"
    path.write_text(RECIPE.format(reward=reward, ppo=ppo))
    return path


def test_a_recipes_defaults_reach_the_stages_where_they_have_effect(tmp_path: Path) -> None:
    stages = load(recipe(tmp_path, reward=", adapter: {rank: 4}, parent_adapter: stack")).stages
    assert stages["sft"].config.adapter.rank == 8 and stages["reward"].config.adapter.rank == 4


def test_own_settings_of_a_stage_are_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, reward=", adapter: {rank: 4}")
    with pytest.raises(InputError) as error:
        load(path)
    text = str(error.value)
    assert text.startswith(
        f"{path}:7: stages.reward.adapter.rank has no effect: the parent's adapter is trained on as it is. Set "
        "`parent_adapter: stack`"
    )
    with pytest.raises(InputError) as error:
        load(recipe(tmp_path, ppo=", eval_fraction: 0.2"))
    assert str(error.value).startswith(
        f"{path}:8: stages.ppo.eval_fraction has no effect: reinforcement learning holds no prompts out."
    )


def test_what_is_laid_over_wins(tmp_path: Path) -> None:
    """--set max_steps takes the place of the file's epochs; two overrides that exclude each other are refused."""
    path = recipe(tmp_path)
    assert load(path, ["stages.sft.max_steps=3"]).stages["sft"].config.max_steps == 3
    with pytest.raises(InputError, match=r"^--set stages.sft.epochs=3: stages.sft.epochs has no effect: max_steps"):
        load(path, ["stages.sft.max_steps=3", "stages.sft.epochs=3"])


def test_flags(tmp_path: Path) -> None:
    from align import sft

    words = ["--base", "b", "--data", "d", "--warmup_ratio", "0.2", "--lr_scheduler", "constant"]
    with pytest.raises(InputError) as error:
        parse_flags(sft.Config, words, prog="align sft")
    assert str(error.value) == (
        "--warmup_ratio has no effect: lr_scheduler is constant, which has no warm-up. Take constant_with_warmup, or "
        "leave it out."
    )
    file = tmp_path / "c.yaml"
    file.write_text("warmup_ratio: 0.2\n")
    assert (
        parse_flags(sft.Config, [*words[:4], *words[6:], "--config", str(file)], prog="align sft").config.lr_scheduler
        == "constant"
    )
