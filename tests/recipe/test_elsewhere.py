"""Names of other tools are understood as hints, from the tables that docs/coming-from.md shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import dpo, grpo, ppo, pretrain, sft
from align.ground.errors import InputError
from align.recipe import load_recipe, parse_flags
from align.recipe.telling import elsewhere
from align.recipe.telling.problems import holds
from align.stage import catalogue
from tests.conftest import ROOT
from tests.pages import rows, section, text_of
from tests.recipe.kinds import KINDS

PAGE, FILE = ROOT / "docs/coming-from.md", ROOT / "align/recipe/telling/elsewhere.md"
NEEDED = ["--base", "b", "--data", "d"]


def told(stage: str, *argv: str) -> str:
    with pytest.raises(InputError) as error:
        parse_flags(catalogue.module_of(stage).Config, [*NEEDED, *argv], prog=f"align {stage}")
    return str(error.value)


@pytest.mark.parametrize(
    "heading",
    ["## TRL", "## axolotl", "## LLaMA-Factory", "## Unsloth", "## other tools", "## What has nothing to set"],
)
def test_the_page_shows_the_tables_that_errors_read(heading: str) -> None:
    page, file = (rows(section(text_of(path), heading)) for path in (PAGE, FILE))
    shown = [row for row in page if row[0].startswith("`")]
    assert len(shown) > 5 and shown == [row for row in file if row[0].startswith("`")]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("num_train_epochs", "num_train_epochs of TRL and LLaMA-Factory is --epochs here."),
        ("per-device-train-batch-size", "is --batch_size here (their product, times processes)."),
        ("gradient_accumulation_steps", "is --batch_size here (their product, times processes)."),
        ("micro_batch_size", "micro_batch_size of axolotl is --batch_size here (their product, times processes)."),
        ("lora_r", "lora_r of TRL and axolotl is --adapter.rank here."),
        ("lora_alpha", "is --adapter.alpha here."),
        ("lora_target_modules", "is --adapter.targets here (all linear layers by default)."),
        ("use_dora", "use_dora of TRL, LLaMA-Factory and Unsloth is --adapter.method here (`rslora`, `dora`)."),
        ("peft_use_rslora", "peft_use_rslora of axolotl is --adapter.method here"),
        ("model_name_or_path", "is --base here (or `parent`, to go on)."),
        ("dataset_name", "is --data here"),
        ("bf16", "is --precision here."),
        ("load_in_4bit", "is --base.quantize here (`nf4`, always with double quantisation)."),
        ("cutoff_len", "cutoff_len of LLaMA-Factory is --max_length here."),
        ("sequence_len", "sequence_len of axolotl is --max_length here."),
        ("max_seq_length", "max_seq_length of Unsloth is --max_length here."),
        ("output_dir", "is --name here."),
        ("lr", "lr of other tools is --learning_rate here."),
        ("output", "output of other tools is --name here (what is made lies in the store;"),
        ("num_epochs", "num_epochs of axolotl is --epochs here."),
        ("packing", "there is nothing to set: rows are packed wherever the model allows it, and exactly"),
        ("top_p", "there is nothing to set: answers are drawn from the model's own distribution"),
        ("trust_remote_code", "there is nothing to set: code that comes with a model is never run."),
        ("num_generations", "num_generations of TRL and axolotl is group_size, which grpo and rloo have."),
    ],
)
def test_flags_of_other_tools(name: str, hint: str) -> None:
    said = told("sft", f"--{name}", "3")
    assert said.startswith(f"--{name} is not a setting of sft; ") and hint in said
    assert len(said.splitlines()) == 1


def test_what_another_name_is_for_is_not_missing_too(tmp_path: Path) -> None:
    """Neither on the command line nor in a recipe. Negative controls: what no given name is for is asked for."""

    def lines(*argv: str) -> list[str]:
        with pytest.raises(InputError) as error:
            parse_flags(sft.Config, argv, prog="align sft")
        return [line.split()[0] for line in str(error.value).splitlines()]

    assert lines("--model_name", "b", "--datasets", "d") == ["--model_name", "--datasets"]
    assert lines("--model_name", "b", "--num_epochs", "1") == ["--model_name", "--num_epochs", "--data"]
    assert lines("--datasets", "d") == ["--datasets", "neither"]
    assert lines("--base_modl", "b") == ["--base_modl", "--data", "neither"]
    path = tmp_path / "r.yaml"
    for written, expected in {
        "base_model: b\nstages: {sft: {datasets: d}}": ["base_model", "stages.sft.datasets"],
        "base: b\ndatasets: d\nstages: {sft: {}, dpo: {parent: sft}}": ["datasets"],
        "num_epochs: 1\nstages: {sft: {}}": ["num_epochs", "stages.sft.data", "stages.sft:"],
    }.items():
        path.write_text(written)
        with pytest.raises(InputError) as error:
            load_recipe(path, KINDS)
        assert sorted(line.split()[1] for line in str(error.value).splitlines()) == sorted(expected)


def test_what_no_tool_calls_so() -> None:
    """Negative controls: another name, and one of ours that another tool has too."""
    assert told("sft", "--zzz", "3") == "--zzz is not a setting of sft; see align sft --help all."
    assert told("sft", "--betta", "3") == told("sft", "--zzz", "3").replace("zzz", "betta")
    assert parse_flags(sft.Config, [*NEEDED, "--learning_rate", "1e-3"], prog="align sft").config.learning_rate == 1e-3


def test_one_name_of_several_settings_is_that_of_the_stage() -> None:
    """`beta` is DPO's, and in GRPO the price of KL; what is for some values alone is named for them. Negative
    controls: another value, and a stage that has the one alone."""
    assert "beta of TRL and axolotl is --kl_coef here." in told("grpo", "--beta", "3")
    said = told("grpo", "--loss_type", "dapo").splitlines()[0]
    assert "loss_type of TRL is --normalise for grpo, dapo, dr_grpo or luspo (`sequence`," in said
    assert "loss_type of TRL is --loss for cispo, sapo or vespo (" in told("grpo", "--loss_type", "cispo")
    assert told("dpo", "--loss_type", "hinge").endswith("loss_type of TRL is --loss here.")
    assert "loss_type of TRL is --sft_coef for sft (" in told("dpo", "--loss_type", "sft")
    assert told("kto", "--loss_type", "apo").endswith("loss_type of TRL is --loss here.")


def test_keys_of_other_tools_in_a_recipe(tmp_path: Path) -> None:
    """Beside the stages, with a stage and in a group of settings."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "base: b\nnum_epochs: 3\nstages:\n  sft:\n    data: d.jsonl\n    lora_r: 8\n    adapter: {r: 8}\n"
        "    sample_packing: true\n"
    )
    with pytest.raises(InputError) as error:
        load_recipe(path, KINDS)
    assert str(error.value).splitlines() == [
        f"{path}:2: num_epochs is not a setting of any stage here; num_epochs of axolotl is epochs here.",
        f"{path}:6: stages.sft.lora_r is not a setting of sft; lora_r of TRL and axolotl is stages.sft.adapter.rank "
        "here.",
        f"{path}:7: stages.sft.adapter.r is not a setting of adapter; r of Unsloth is stages.sft.adapter.rank here.",
        f"{path}:8: stages.sft.sample_packing is not a setting of sft; there is nothing to set: rows are packed "
        "wherever the model allows it, and exactly.",
    ]


def test_what_hints_name_exists() -> None:
    """Truth: the settings of the stages beside them; `tests/test_pages.py` has TRL's own names for theirs."""
    found = [row for row in elsewhere._rows() if row.ours]
    assert len(found) > 100
    for row in found:
        for stage in row.stages or ("sft", "dpo", "ppo"):
            assert holds(catalogue.module_of(stage).Config, str(row.ours)), row


def test_a_setting_is_held_by_its_keys() -> None:
    assert holds(dpo.Config, "adapter.rank") and holds(grpo.Config, "judges") and holds(pretrain.Config, "base.model")
    assert not any(holds(ppo.Config, name) for name in ("adapter.r", "rank", "adapter.rank.x", "group_size"))


@pytest.mark.parametrize(
    ("stage", "argv", "said"),
    [
        ("evaluate", ["--judge", "j.py:f"], "did you mean --judges.NAME j.py:f?"),
        ("evaluate", ["--judges", "j.py:f"], "Give each a name: --judges.NAME j.py:f."),
        ("evaluate", ["--judges.right", "j.py:f", "--weight", "1"], ""),
        ("grpo", ["--weights", "0.5"], "Give each a name: --weights.NAME 0.5."),
        ("grpo", ["--reward_funcs", "j.py:f"], "reward_funcs of TRL and axolotl is --judges.NAME here"),
        ("dpo", ["--loss", "sigmoidd"], "expected sigmoid"),
        ("sft", ["--save_strategy", "no"], "save_strategy of TRL is --checkpoint_steps here"),
        ("evaluate", ["--tasks", "gsm8k"], "tasks of lm-eval are not here"),
        ("evaluate", [], "the base of what is compared is measured anyway"),
        ("merge", ["--tasks", "gsm8k"], "--tasks is not a setting of merge; see align merge --help all."),
    ],
)
def test_mappings_and_what_a_stage_says_of_strangers(stage: str, argv: list[str], said: str) -> None:
    """The controls: a named judge is not complained about, and what evaluate says of a flag holds there alone."""
    found = told(stage, *argv)
    assert said in found and ("Give each a name" in found) is ("Give each a name" in said)
