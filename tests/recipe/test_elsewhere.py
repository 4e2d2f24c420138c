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
ALL = {name: catalogue.module_of(name).Config for name in ("sft", "reward", "evaluate")}
NEEDED = ["--base", "b", "--data", "d"]


def told(stage: str, *argv: str) -> str:
    with pytest.raises(InputError) as error:
        parse_flags(catalogue.module_of(stage).Config, [*NEEDED, *argv], prog=f"align {stage}")
    return str(error.value)


@pytest.mark.parametrize(
    "heading",
    [
        "## TRL",
        "## axolotl",
        "## LLaMA-Factory",
        "## Unsloth",
        "## older transformers and TRL",
        "## other tools",
        "## What has nothing to set",
    ],
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
        (
            "evaluation_strategy",
            "evaluation_strategy of older transformers and TRL is --eval_steps or --eval_epochs here",
        ),
        ("per_gpu_train_batch_size", "is --batch_size here (of all processes together)."),
        ("model_max_length", "is --max_length here (prompt and completion together)."),
        ("torch_dtype", "torch_dtype of older transformers and TRL is --precision here."),
        ("no_eval", "is --eval_fraction here (0 holds none out)."),
        ("tokenizer", "there is nothing to set: it is the base's own, or the parent's."),
        ("no_cuda", "there is nothing to set: a CUDA device is taken where there is one, else the CPU;"),
        ("response_template", "there is nothing to set: answers are learnt, prompts are not"),
        ("use_peft", "there is nothing to set: an adapter is what trains"),
        ("dataset_text_field", "there is nothing to set: what a row means is told from its keys"),
        ("adam_beta1", "there is nothing to set: AdamW has transformers' own, 0.9 and 1e-8;"),
        ("num_epochs", "num_epochs of axolotl is --epochs here."),
        ("packing", "there is nothing to set: rows are packed wherever the model allows it, and exactly"),
        ("top_p", "there is nothing to set: answers are drawn from the model's own distribution"),
        ("trust_remote_code", "there is nothing to set: code that comes with a model is never run."),
        ("num_generations", "num_generations of TRL and axolotl is group_size, which grpo and rloo have."),
        ("lora_dropout", "lora_dropout of TRL, axolotl, LLaMA-Factory and Unsloth is --adapter.dropout here."),
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


def test_what_a_stage_refuses_is_not_what_its_hint_names(tmp_path: Path) -> None:
    """Every setting that only some stages may have, for each stage that trains; nor what only shares the name. Negative
    control: sft, above, has dropout."""
    dropout = "lora_dropout of TRL, axolotl, LLaMA-Factory and Unsloth is adapter.dropout, which sft and pretrain have."
    for stage in ("reward", "dpo", "simpo", "cpo", "orpo", "kto", "bco", "ppo", "grpo", "rloo", "distill"):
        assert told(stage, "--lora_dropout", "0.1").splitlines()[0].endswith(dropout), stage
        refused = told(stage, "--adapter.dropout", "0.1", *(["--parent", "p"] if stage == "kto" else []))
        assert "which only sft and pretrain may have" in refused or "adapter.dropout" not in refused, stage
    best = told("best_of_n", "--load_best_model_at_end", "true").splitlines()[0]
    assert best.endswith("is keep, which sft, reward, dpo and pretrain have.")
    assert "is method, which pretrain has." in told("blend", "--full_finetuning", "true")
    path = tmp_path / "r.yaml"
    for stage in ("ppo", "grpo", "rloo", "reinforce_pp", "online_dpo"):
        said = told(stage, "--val_set_size", "0.1").splitlines()[0]
        assert said.endswith("of axolotl is eval_fraction, which stages that train on records have."), stage
    path.write_text("base: b\nstages: {sft: {data: d}, reward: {parent: sft, data: d, lora_dropout: 0.05}}")
    with pytest.raises(
        InputError, match=r"^\S+: stages.reward.lora_dropout is not a .*, which sft and pretrain have\.$"
    ):
        load_recipe(path, ALL)


AXOLOTL = "base_model: b\nadapter: {}\nlearning_rate: 0.0002\noutput_dir: ./out\n"


def test_a_file_of_another_tool_is_told_of_key_by_key(tmp_path: Path) -> None:
    """Run as a recipe, and taken as a stage's settings. Negative control: a word that no adapter is called."""
    path = tmp_path / "axo.yml"

    def read(adapter: str) -> list[str]:
        path.write_text(AXOLOTL.format(adapter))
        with pytest.raises(InputError) as error:
            load_recipe(path, KINDS)
        return [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()]

    alone, base, adapter, name = read("lora")
    assert alone.endswith("; found none. What may stay as it is, beside `stages` and for all of them: learning_rate.")
    assert base.startswith("1: base_model ") and adapter.startswith("2: adapter: expected a mapping with method, rank")
    assert adapter.endswith('found the text "lora". Write {method: lora}, or nothing: it is the default.')
    assert name.endswith("output_dir of TRL, axolotl and LLaMA-Factory is the stage's key below `stages` here.")
    assert read("dora")[2].endswith('found the text "dora". Write {method: dora}.')
    assert read("qlora")[2].endswith('"qlora". adapter: qlora of axolotl is base.quantize here (`nf4`).')
    assert read("zzz")[2].endswith('found the text "zzz".')
    path.write_text("adapter: lora")
    assert "Write {method: lora}, or nothing" in told("sft", "--config", str(path))
    assert told("sft", "--adapter", "dora").endswith("Did you mean --adapter.method dora?")


def test_a_stage_of_a_recipe_says_what_it_says_of_strangers_on_its_command_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("base: b\nstages: {sft: {data: d}, evaluate: {compare: sft, data: d, tasks: gsm8k, run_name: r}}")
    with pytest.raises(InputError) as error:
        load_recipe(path, ALL)
    tasks, name = str(error.value).splitlines()
    assert "tasks of lm-eval are not here" in tasks and name.endswith(
        "run_name of TRL is the stage's key below `stages` here."
    )


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
        for stage in row.stages or (
            "sft",
            "dpo",
            "reward",
            *(("ppo", "grpo") if row.all == "stages that train" else ()),
        ):
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
