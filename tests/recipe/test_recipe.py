"""A recipe is read strictly: defaults reach the stages that have them, names find stages, all problems are told at once
by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import ValidationError

from align.ground.errors import InputError
from align.recipe import Adapter, Base, Recipe, Settings, files_of, load_recipe, resolved
from align.recipe.telling.meaning import meaning
from tests.recipe.kinds import KINDS, Dpo, Evaluate, Pretrain, Sft

GOOD = """
    seed: 3
    base: {model: meta-llama/Llama-3.1-8B, revision: main, quantize: nf4}
    adapter: {rank: 8, alpha: 8}
    learning_rate: 5e-6
    stages:
      sft:    {data: dolly.jsonl, adapter: {alpha: 64}}
      pairs:  {kind: sft, parent: sft, data: ../more/p.jsonl}
      dpo:    {parent: sft, data: pairs, chat_template: plain, learning_rate: 1e-4}
      report: {kind: evaluate, compare: [sft, dpo], data: heldout.jsonl, judges: {gold: judges/gold.py:judge}}
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """A recipe from its text, in recipes/ of the working folder, so that messages are short."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()

    def read(text: str, *overrides: str) -> Recipe:
        Path("recipes/r.yaml").write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return load_recipe("recipes/r.yaml", KINDS, overrides)

    return read


def problems(read: Callable[..., Recipe], text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as error:
        read(text, *overrides)
    return str(error.value).split("\n")


# ---- what a recipe means ---------------------------------------------------------------------------------------------


def test_defaults_reach_the_stages_that_have_them(read: Callable[..., Recipe]) -> None:
    recipe = read(GOOD)
    stages = recipe.stages
    assert (recipe.name, list(stages)) == ("r", ["sft", "pairs", "dpo", "report"])
    assert [type(stage.config) for stage in stages.values()] == [Sft, Sft, Dpo, Evaluate]
    assert [stage.config.name for stage in stages.values()] == ["r/sft", "r/pairs", "r/dpo", "r/report"]
    assert {stage.config.seed for stage in stages.values()} == {3}
    sft, dpo = stages["sft"].config, stages["dpo"].config
    assert sft.base == Base(model="meta-llama/Llama-3.1-8B", revision="main", quantize="nf4")
    assert dpo.base is None  # it has a parent, which is on a base already
    assert (sft.adapter, dpo.adapter) == (Adapter(rank=8, alpha=64.0), Adapter(rank=8, alpha=8.0))
    assert (sft.learning_rate, dpo.learning_rate) == (5e-6, 1e-4)  # YAML 1.1 reads 5e-6 as text


def test_a_stage_with_its_own_model_takes_no_revision_from_the_default(read: Callable[..., Recipe]) -> None:
    text = """
        base: {model: one, revision: abc}
        stages:
          a: {kind: sft, data: x.jsonl, base: {model: two}}
          b: {kind: sft, data: x.jsonl, base: {quantize: nf4}}
    """
    configs = [stage.config for stage in read(text).stages.values()]
    assert [c.base for c in configs] == [Base(model="two"), Base(model="one", revision="abc", quantize="nf4")]


def test_paths_are_relative_to_the_recipe(read: Callable[..., Recipe]) -> None:
    stages = read(GOOD).stages
    assert stages["sft"].config.data == "recipes/dolly.jsonl"
    assert stages["pairs"].config.data == "more/p.jsonl"
    assert (stages["dpo"].config.data, stages["dpo"].config.chat_template) == ("pairs", "plain")  # a stage; a word
    assert stages["report"].config.judges == {"gold": "recipes/judges/gold.py:judge"}
    text = "stages: {sft: {base: %s, data: /abs/x.jsonl, chat_template: t.jinja}}"
    config = read(text % "../model").stages["sft"].config
    assert (config.base.model, config.data, config.chat_template) == ("model", "/abs/x.jsonl", "recipes/t.jinja")
    assert read(text % "org/model").stages["sft"].config.base.model == "org/model"
    Path("recipes/org/model").mkdir(parents=True)
    # a folder beside the recipe wins over the hub
    assert read(text % "org/model").stages["sft"].config.base.model == "recipes/org/model"


def test_names_of_stages_become_what_they_made(read: Callable[..., Recipe]) -> None:
    stages = read(GOOD).stages
    assert {name: dict(stage.inputs) for name, stage in stages.items()} == {
        "sft": {},
        "pairs": {"parent": ("sft",)},
        "dpo": {"parent": ("sft",), "data": ("pairs",)},
        "report": {"compare": ("sft", "dpo")},
    }
    made = {"sft": "d1", "pairs": "d2", "dpo": "d3"}
    dpo = stages["dpo"].bind(made)
    assert (dpo.parent, dpo.data) == ("d1", "d2") and dpo.model_copy(
        update={"parent": "sft", "data": "pairs"}
    ) == stages["dpo"].config
    assert stages["report"].bind(made).compare == ["d1", "d3"]
    assert stages["sft"].bind(made) == stages["sft"].config


@pytest.mark.parametrize("name", ["quickstart/sft", "0e9e39f2a1b4", "./adapter"])
def test_a_parent_may_be_an_artifact_of_the_store(read: Callable[..., Recipe], name: str) -> None:
    stage = read(f"stages: {{dpo: {{parent: {name}, data: x.jsonl}}}}").stages["dpo"]
    assert stage.config.parent == ("recipes/adapter" if name.startswith(".") else name) and stage.inputs == {}


def test_a_text_alone_is_a_list_of_one(read: Callable[..., Recipe]) -> None:
    """Beside `stages` and in a stage; the same as the list. Negative control: two are not."""
    text = GOOD.replace("    seed: 3\n", "    seed: 3\n    report_to: tensorboard\n")
    alone = read(text.replace("compare: [sft, dpo]", "compare: dpo"))
    dpo = alone.stages["dpo"].config
    assert isinstance(dpo, Dpo) and dpo.report_to == ["tensorboard"]
    listed = read(text.replace("compare: [sft, dpo]", "compare: [dpo]"))
    assert alone.stages == listed.stages != read(text).stages


def test_overrides(read: Callable[..., Recipe]) -> None:
    stages = read(
        GOOD,
        "stages.dpo.beta=0.2",
        "stages.sft.adapter.rank=2",
        "adapter.alpha=1",
        "base=tiny",
        "stages.dpo.chat_template=null",
    ).stages
    assert (stages["dpo"].config.beta, stages["dpo"].config.chat_template) == (0.2, None)
    assert (stages["sft"].config.adapter, stages["dpo"].config.adapter) == (
        Adapter(rank=2, alpha=64.0),
        Adapter(rank=8, alpha=1.0),
    )
    assert stages["sft"].config.base == Base(model="tiny")


def test_yaml_is_version_1_2(read: Callable[..., Recipe]) -> None:
    """`no` is a word there, and 5e-6 a number."""
    text = "stages: {sft: {base: no, data: x.jsonl, learning_rate: 5e-6}}"
    config = read(text).stages["sft"].config
    assert (config.base.model, config.learning_rate) == ("no", 5e-6)


# ---- what is wrong with one ------------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once_in_order(read: Callable[..., Recipe]) -> None:
    text = """
        name: a b
        sed: 3
        base: {modl: x, quantize: nf5}
        precision: fp33
        stages:
          sft:     {data: 3, epochs: two, max_steps: 0}
          dpo:
            parent: sfft
            betta: 0.2
            adapter: {rnk: 3}
            label_smoothing: 0.5
            beta: true
            data: dpo
          dpa: {}
          report:  {kind: evaluate, compare: [sft, late]}
          late: {kind: sft, data: x.jsonl, base: y, parent: sft, name: u}
          more: [1]
    """
    assert problems(read, text) == [
        "recipes/r.yaml:1: name: expected letters, digits, '.', '_' and '-', found the text \"a b\".",
        "recipes/r.yaml:2: sed is not a setting of any stage here; did you mean seed?",
        "recipes/r.yaml:3: base.model is missing; sft needs it: a model folder in the Hugging Face layout, a model "
        "artifact, or a hub id.",
        'recipes/r.yaml:3: base.quantize: expected nf4, int8 or null, found the text "nf5".',
        "recipes/r.yaml:3: base.modl is not a setting of base; did you mean model?",
        'recipes/r.yaml:4: precision: expected auto, fp32 or bf16, found the text "fp33".',
        "recipes/r.yaml:6: stages.sft.data: expected text, found 3.",
        'recipes/r.yaml:6: stages.sft.epochs: expected a number above 0, found the text "two".',
        "recipes/r.yaml:6: stages.sft.max_steps: expected a whole number above 0 or null, found 0.",
        "recipes/r.yaml:8: stages.dpo.parent: sfft is not an earlier stage of this recipe; did you mean sft?",
        "recipes/r.yaml:9: stages.dpo.betta is not a setting of dpo; did you mean beta?",
        "recipes/r.yaml:10: stages.dpo.adapter.rnk is not a setting of adapter; did you mean rank?",
        "recipes/r.yaml:11: stages.dpo.label_smoothing: expected a number of at least 0 and below 0.5, found 0.5.",
        "recipes/r.yaml:12: stages.dpo.beta: expected a number above 0, found true.",
        "recipes/r.yaml:13: stages.dpo.data: dpo is this stage itself; name an earlier one.",
        "recipes/r.yaml:14: stages.dpa: dpa is not a kind of stage; did you mean dpo?",
        "recipes/r.yaml:15: stages.report.compare: late comes later; move late above report.",
        "recipes/r.yaml:16: stages.late.name: in a recipe a stage is named by its key; remove it.",
        "recipes/r.yaml:16: stages.late: both base and parent are set; a parent already says which base it is on, so "
        "leave out base.",
        "recipes/r.yaml:17: stages.more: expected a mapping of settings, found a list.",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", ":2: not YAML: expected ',' or ']', but got ':'."),
        ("stages:\n  sft: {}\n  sft: {}\n", ':3: not YAML: found duplicate key "sft".'),
        (
            "seed: &a 1\nstages: &a {}\n",
            ": not YAML: found duplicate anchor 'a' first occurrence in recipes/r.yaml, line 1, column 7: seed: &a 1 "
            "^ (line: 1) second occurrence in recipes/r.yaml, line 2, column 9: stages: &a {} ^ (line: 2).",
        ),
        ("- a\n", ": expected a mapping of settings, found a list."),
        ("", ": expected a mapping of settings, found null."),
        (
            "seed: 1\n",
            ": stages: expected a mapping of at least one stage, such as `sft: {data: sft.jsonl}`; found none.",
        ),
        ("stages:\n  my-sft: {}\n", ":2: stages.my-sft: my-sft is not a kind of stage; did you mean sft?"),
        (
            "stages:\n  x: {}\n",
            ":2: stages.x: x is not a kind of stage; add `kind:` with one of sft, dpo, pretrain, evaluate.",
        ),
        (
            "stages:\n  x:\n    kind: 3\n",
            ":3: stages.x.kind: 3 is not a kind of stage; add `kind:` with one of sft, dpo, pretrain, evaluate.",
        ),
        (
            "stages:\n  sft: {base: x, data: x.jsonl}\n  dpo: {base: sft, data: x.jsonl}\n",
            ":3: stages.dpo.base: sft is a stage of this recipe, and a stage goes under parent. Write parent: sft.",
        ),
        ("stages:\n  sft: {base: x}\n", ":2: stages.sft.data is missing; sft needs it: records to train on."),
        (
            "stages:\n  sft: {data: x.jsonl}\n",
            ":2: stages.sft: neither base nor parent is set; give base to start from a model, or parent to go on from "
            "an artifact.",
        ),
        (
            "stages:\n  sft: {base: x, data: x.jsonl, learning_rate: .nan}\n",
            ":2: stages.sft.learning_rate: expected a number above 0, found nan.",
        ),
        (
            "stages:\n  sft: {base: b, data: x.jsonl}\n  dpo: {parent: sfft, data: x.jsonl}\n",
            ":3: stages.dpo.parent: sfft is not an earlier stage of this recipe; did you mean sft?",
        ),
        (
            "beta: 1\nstages:\n  sft: {base: x, data: x.jsonl}\n",
            ":1: beta is not a setting of any stage here; stages such as dpo and orpo have it.",
        ),
        (
            "zzz: 1\nstages:\n  sft: {base: x, data: x.jsonl}\n",
            ":1: zzz is not a setting of any stage here; remove it.",
        ),
        (
            "stages:\n  evaluate: {compare: []}\n",
            ":2: stages.evaluate.compare: expected a list of at least one text, found an empty list.",
        ),
        (
            "stages:\n  evaluate: {compare: 3}\n",
            ":2: stages.evaluate.compare: expected a list of at least one text, found 3.",
        ),
        (
            "stages:\n  sft: {base: x, data: x.jsonl, trunk_cache: memroy}\n",
            ':2: stages.sft.trunk_cache: expected memory, disk or off, found the text "memroy". Did you mean memory?',
        ),
    ],
)
def test_one_problem(read: Callable[..., Recipe], text: str, message: str) -> None:
    assert problems(read, text) == [f"recipes/r.yaml{message}"]


def test_problems_of_overrides_name_the_override(read: Callable[..., Recipe]) -> None:
    assert problems(read, GOOD, "stages.dpo.beta=x", "seed=-1") == [
        "--set seed=-1: seed: expected a whole number of at least 0 and below 4294967296, found -1.",
        '--set stages.dpo.beta=x: stages.dpo.beta: expected a number above 0, found the text "x".',
    ]
    assert problems(read, GOOD, "stages.dop.beta=1") == [
        "--set stages.dop.beta=1: dop is not a stage of this recipe; did you mean dpo?"
    ]
    assert problems(read, GOOD, "dpo.beta=1") == [
        "--set dpo.beta=1: settings of a stage stand under stages: did you mean stages.dpo.beta=1?"
    ]
    assert problems(read, GOOD, "beta") == [
        '--set takes KEY=VALUE, such as stages.dpo.beta=0.2; found the text "beta".'
    ]
    assert problems(read, GOOD, "seed=[")[0].startswith("--set seed=[: not a YAML value: ")


def test_missing_and_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("binary.yaml").write_bytes(b"\xff")
    for name, message in {
        "none.yaml": "there is no file none.yaml. Check the path.",
        "binary.yaml": "binary.yaml: cannot be read: byte 0xff at offset 0 is not UTF-8. ",
    }.items():
        with pytest.raises(InputError) as error:
            load_recipe(name, KINDS)
        assert str(error.value).startswith(message)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_resolved_is_what_decides_the_result() -> None:
    """Runtime fields, nested or not, take no part; a whole number where a number is wanted gives the same text."""
    config = Sft(base="tiny", data="x.jsonl")
    assert resolved(config) == resolved(
        config.model_copy(update={"name": "n", "threads": 2, "tokens_per_microbatch": 1, "store": "s"})
    )
    assert resolved(config) != resolved(config.model_copy(update={"seed": 1}))
    settings = resolved(config)
    assert settings["adapter"] == {
        "method": "lora",
        "rank": 16,
        "alpha": 32.0,
        "init_lora_weights": None,
        "targets": "all-linear",
        "layers": None,
        "experts": False,
        "dropout": 0.0,
    }
    assert not {"name", "store", "threads", "tokens_per_microbatch", "report_to"} & settings.keys()
    assert "logging_steps" in settings  # the stored history has a line for each
    assert repr(resolved(Sft(base="tiny", data="x.jsonl", adapter=Adapter(alpha=32)))) == repr(settings)


def test_settings_take_what_python_code_has_at_hand(tmp_path: Path) -> None:
    class Made:
        digest = "d" * 64

    config = Dpo(parent=Made(), data=tmp_path / "x.jsonl", eval_data=Made())
    assert (config.parent, config.data, config.eval_data) == ("d" * 64, str(tmp_path / "x.jsonl"), "d" * 64)
    assert Sft(base=tmp_path, data="x").base == Base(model=str(tmp_path))
    assert files_of(config) == ["data", "eval_data", "hold_out"] and files_of(Evaluate(compare=["x"])) == ["data"]
    assert files_of(config.model_copy(update={"hold_out": 0.1})) == ["data", "eval_data"]  # a share is no file


def test_settings_are_strict_and_frozen() -> None:
    for wrong in (
        {"rank": "16"},
        {"rank": 1.5},
        {"rank": True},
        {"rank": 0},
        {"ranc": 1},
        {"alpha": float("nan")},
        {"targets": "some"},
    ):
        with pytest.raises(ValidationError):
            Adapter(**wrong)
    with pytest.raises(ValidationError):
        Adapter().rank = 3
    assert Adapter(rank=1, alpha=1, targets=["q_proj"]).targets == ["q_proj"]


def test_exactly_one_start_unless_a_stage_says_otherwise() -> None:
    for start in ({}, {"base": "x", "parent": "y"}):
        with pytest.raises(ValidationError, match="neither base nor parent" if not start else "both base and parent"):
            Sft(data="x", **start)
    assert Pretrain(data="x").base is None
    with pytest.raises(ValidationError, match="both base and parent"):
        Pretrain(data="x", base="x", parent="y")


@pytest.mark.parametrize("config", [*KINDS.values(), Base, Adapter])
def test_every_setting_says_what_it_is(config: type[Settings]) -> None:
    undocumented = [name for name in config.model_fields if not meaning(config, name)]
    assert undocumented == []


def test_older_names_and_numbers(read: Callable[..., Recipe]) -> None:
    """A group that was renamed, a word of another setting, a number that is no whole one, an empty target."""
    with pytest.raises(InputError) as error:
        read("""
            base: x
            lora: {rank: 4}
            stages:
              sft: {data: a.jsonl, batch_size: 1e3, adapter: {targets: [q_proj, ""]}}
              dpo: {parent: sft, data: a.jsonl, adapter: stack, lora: {rank: 4}}
        """)
    told = str(error.value).split("\n")
    assert told[0] == "recipes/r.yaml:2: lora is not a setting of any stage here; did you mean adapter?"
    assert set(told[1:]) == {
        "recipes/r.yaml:4: stages.sft.batch_size: expected a whole number above 0, found 1000.0.",
        "recipes/r.yaml:4: stages.sft.adapter.targets: expected all-linear or a list of at least one text, "
        "found an empty text in it.",
        "recipes/r.yaml:5: stages.dpo.adapter: expected a mapping with "
        f'{", ".join(Adapter.model_fields)}, found the text "stack". '
        "Did you mean stages.dpo.parent_adapter, which takes it?",
        "recipes/r.yaml:5: stages.dpo.lora is not a setting of dpo; did you mean adapter?",
    }
    again = read("base: x\nstages:\n  sft: {data: a.jsonl, adapter: {targets: [q_proj]}}")  # negative control
    assert again.stages["sft"].config.adapter == Adapter(targets=["q_proj"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 2}\n', "r.yaml:2: not YAML: a second value begins here, as in a file of rows; "),
        ("seed: 1\n---\nseed: 2\n", "r.yaml:2: not YAML: a second document begins here; "),
        (f"seed: {'9' * 5000}\n", "r.yaml: not YAML: it holds a whole number of more than 4,300 digits"),
    ],
)
def test_words_of_libraries_are_ours(tmp_path: Path, text: str, message: str) -> None:
    """Nothing of ruamel's parser or of Python's settings in what is said; a folder is told as one."""
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_recipe(path, KINDS)
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    assert not [sign for sign in ("<", "Errno", "set_int") if sign in str(error.value)]
    with pytest.raises(InputError, match=rf"^{tmp_path} is a folder; expected a YAML file of settings\.$"):
        load_recipe(tmp_path, KINDS)
    path.write_text("stages:\n  sft: {base: x, data: a.jsonl}\n")  # negative control
    assert [*load_recipe(path, KINDS).stages] == ["sft"]


# ---- what stands beside stages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("default", "said"),
    [
        ("learning_rate: fast", "no stage takes it, as each that has it sets its own. Remove it, or set it there."),
        ("max_steps: 3", None),
        ("adapter: {rank: 2, alpha: 4}", None),
        (
            "base: other",
            "no stage takes it, as each that has it has a base of its own, or a parent, which is on one. Remove it, or "
            "set it there.",
        ),
    ],
)
def test_what_no_stage_takes_is_refused(read: Callable[..., Recipe], default: str, said: str | None) -> None:
    """The controls are taken by one of the stages, or by a group that sets another part of it itself."""
    text = f"""
        {default}
        stages:
          sft: {{parent: a/b, data: x.jsonl, learning_rate: 1e-3, adapter: {{alpha: 64}}}}
          dpo: {{parent: sft, data: x.jsonl, learning_rate: 1e-3, max_steps: 1}}
    """
    if said is None:
        return read(text) and None
    assert problems(read, text) == [f"recipes/r.yaml:1: {default.partition(':')[0]}: {said}"]


def test_what_has_no_effect_in_any_stage_is_refused(read: Callable[..., Recipe]) -> None:
    """max_steps beside it says how long every run is. Control: a stage whose own max_steps is none."""
    text = "{epochs: 2, max_steps: 3, base: b, stages: {sft: {data: x.jsonl}, more: {kind: sft, data: y.jsonl%s}}}"
    assert problems(read, text % "") == [
        "recipes/r.yaml:1: epochs has no effect in any stage: max_steps says how long it trains. Leave one of them out."
    ]
    assert read(text % ", max_steps: null").stages["more"].config.model_dump()["epochs"] == 2


def test_what_is_wrong_in_a_group_is_told_where_it_is_written(read: Callable[..., Recipe]) -> None:
    text = """
        base: b
        adapter:
          rank: 4
          alhpa: 2
        stages:
          sft:
            data: x.jsonl
            adapter: {alpha: 64, rnak: 3}
          more: {kind: sft, data: x.jsonl}
    """
    assert problems(read, text) == [
        "recipes/r.yaml:4: adapter.alhpa is not a setting of adapter; did you mean alpha?",
        "recipes/r.yaml:8: stages.sft.adapter.rnak is not a setting of adapter; did you mean rank?",
    ]


@pytest.mark.parametrize("key", ["3", "null", "true", "0.5", "2026-01-01"])
def test_a_key_that_is_no_text_is_told_with_its_line(read: Callable[..., Recipe], key: str) -> None:
    """Control: the same in quotes, which is a name."""
    text = "base: b\nstages:\n  sft: {data: x.jsonl}\n  %s: {kind: sft, data: x.jsonl}\n"
    found = problems(read, text % key)
    assert len(found) == 1 and found[0].startswith("recipes/r.yaml:4: a key is ")
    assert found[0].endswith("; expected a name, in quotes if need be.")
    if key != "0.5":
        assert key in read(text % f'"{key}"').stages


def test_a_setting_is_laid_over_once(read: Callable[..., Recipe]) -> None:
    assert problems(read, GOOD, "seed=1", "stages.dpo.beta=0.3", "seed=2") == [
        "--set seed=1 and --set seed=2: seed is given twice; give it once."
    ]
    assert read(GOOD, "seed=1", "stages.dpo.seed=2").stages["dpo"].config.seed == 2


def test_a_list_where_one_value_is_taken_is_told_of_sweeps(read: Callable[..., Recipe]) -> None:
    """Controls: other values that are wrong."""
    sweep = " Several values are a sweep: {sweep: [1, 2]}."
    for value, said in (("[0.1, 0.3]", sweep), ("high", ""), ("{a: 1}", "")):
        (found,) = problems(read, f"stages: {{dpo: {{parent: a/b, data: x.jsonl, beta: {value}}}}}")
        assert found.endswith(said) and (sweep in found) == bool(said)


def test_each_part_of_a_setting_that_is_wrong_is_told(read: Callable[..., Recipe]) -> None:
    """The control is the part that is right."""
    files = "[{file: a.jsonl, weigth: 1}, b.jsonl, {file: /p.jsonl, limit: -1}, {weight: 1}]"
    text = (
        f"stages: {{sft: {{base: b, data: {files}}}, r: {{kind: evaluate, compare: sft, data: x.jsonl, judges: %s}}}}"
    )
    assert problems(read, text % "{right: j.py:f, wrong: 3}") == [
        "recipes/r.yaml:1: stages.sft.data: file 1 has weigth, which is none of file, weight, epochs, limit, columns.",
        "recipes/r.yaml:1: stages.sft.data: /p.jsonl: limit is -1; expected a whole number above 0.",
        "recipes/r.yaml:1: stages.sft.data: file 4 names no file. Expected one such as {file: a.jsonl, weight: 0.7}.",
        "recipes/r.yaml:1: stages.r.judges: expected a mapping of names to text, found 3 in it.",
    ]


def test_set_may_take_the_effect_of_what_the_file_says(read: Callable[..., Recipe]) -> None:
    """One tries something once, and the file stays. Negative controls: without it, and what --set says in vain."""
    text = "{epochs: 2, seed: 1, base: b, stages: {sft: {data: x.jsonl%s}}}"
    assert read(text % "", "max_steps=4", "stages.sft.seed=2").stages["sft"].config.seed == 2
    assert len(problems(read, text % ", seed: 3, max_steps: 4")) == 2
    assert problems(read, text % ", seed: 3", "seed=4") == [
        "--set seed=4: seed: no stage takes it, as each that has it sets its own. Remove it, or set it there."
    ]
    dead = ", checkpoint_steps: 0, checkpoint_minutes: 5"  # what another --set leaves as dead as it was
    assert problems(read, text % dead, "stages.sft.seed=2") == problems(read, text % dead)
    assert "given twice" in problems(read, GOOD, "adapter.rank=4", "adapter={alpha: 8}")[0]


def test_what_others_are_a_copy_of_may_stand_beside_stages(read: Callable[..., Recipe]) -> None:
    """Negative control: without an anchor."""
    text = "learning_rate: %s1e-3\nstages:\n  sft: {base: b, data: x.jsonl, learning_rate: %s}\n"
    assert read(text % ("&lr ", "*lr")).stages["sft"].config.model_dump()["learning_rate"] == 1e-3
    assert "no stage takes it" in problems(read, text % ("", "1e-3"))[0]
