"""A dry run rehearses every stage: faults that a run would meet, late ones too, are found before anything trains, and
none is made up."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import align
from align import generate, sft
from align.data import steps
from align.data.formats import read_prompts
from align.data.split import opening
from align.ground.errors import InputError
from align.stage.ahead.dry_run import plan
from align.store import Store
from tests.conftest import ROOT, write_rows, write_world

TINY = ROOT / "data/tiny-base"
JUDGE = "def score(completions, **kwargs):\n    return [float(len(c)) for c in completions]\n"
LATE_JUDGE = """calls = []
def score(completions, **kwargs):
    calls.append(completions)
    return [float(i if len(calls) > 2 else 0) for i in range(len(completions))]
"""
TEMPLATE = (TINY / "chat_template.jinja").read_text()

SAMPLED = {"max_new_tokens": 8}
PPO = {
    "parent": "sft",
    "reward": "reward",
    "data": "prompts.jsonl",
    "rollout_size": 8,
    "trust_reward": True,
    **SAMPLED,
}


def healthy(folder: Path) -> dict[str, Any]:
    """A recipe of every kind of stage on the shipped base, with its files in `folder`."""
    write_world(folder).unlink()
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    write_rows(
        folder / "heldout.jsonl", [{"prompt": f"Once more: {row['prompt']}", "best": "It is red."} for row in rows]
    )
    (folder / "judge.py").write_text(JUDGE)
    (folder / "template.jinja").write_text(TEMPLATE)
    return {
        "name": "r",
        "base": str(TINY),
        "precision": "fp32",
        "max_length": 96,
        "batch_size": 8,
        "stages": {
            "sft": {"data": "sft.jsonl"},
            "pairs": {"parent": "sft", "data": "prompts.jsonl", "judge": "judge.py:score", **SAMPLED},
            "reward": {"parent": "sft", "data": "pairs.jsonl"},
            "dpo": {"parent": "sft", "data": "pairs"},
            "more": {"kind": "dpo", "parent": "dpo", "data": "pairs.jsonl", "parent_adapter": "stack"},
            "ppo": dict(PPO),
            "merged": {"kind": "merge", "parent": "ppo"},
            "again": {"kind": "sft", "parent": "merged", "data": "sft.jsonl"},
            "report": {
                "kind": "evaluate",
                "compare": ["sft", "dpo", "ppo"],
                "reward": "reward",
                "pairs": "pairs",
                "data": "heldout.jsonl",
                "judges": {"gold": "judge.py:score"},
                **SAMPLED,
            },
        },
    }


def dry_run(folder: Path, recipe: dict[str, Any], dry: bool = True) -> Store:
    YAML().dump(recipe, folder / "r.yaml")
    store = Store(folder / "store")
    align.run(folder / "r.yaml", store, dry_run=dry)
    return store


def setting(stage: str, **changes: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda folder, recipe: recipe["stages"][stage].update(changes)


def file(name: str, text: str, stage: str = "report", **changes: Any) -> Callable[[Path, dict[str, Any]], None]:
    def plant(folder: Path, recipe: dict[str, Any]) -> None:
        (folder / name).write_text(text)
        recipe["stages"][stage].update(changes)

    return plant


def row(name: str, **changes: Any) -> Callable[[Path, dict[str, Any]], None]:
    """The third row of a file with other keys."""

    def plant(folder: Path, recipe: dict[str, Any]) -> None:
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        rows[2] |= changes
        write_rows(folder / name, rows)

    return plant


def template(text: str, rows: dict[str, Any] | None = None) -> Callable[[Path, dict[str, Any]], None]:
    def plant(folder: Path, recipe: dict[str, Any]) -> None:
        (folder / "template.jinja").write_text(text)
        recipe["stages"]["sft"]["chat_template"] = "template.jinja"
        if rows:
            row("pairs.jsonl", **rows)(folder, recipe)

    return plant


def broken_base(file: str | None) -> Callable[[Path, dict[str, Any]], None]:
    """A base whose index names a tensor that is not there, or a file."""

    def plant(folder: Path, recipe: dict[str, Any]) -> None:
        shutil.copytree(TINY, folder / "base")
        (folder / "base/model.safetensors").rename(folder / "base/model-00001-of-00001.safetensors")
        from align.folders.weights import tensors

        held = dict.fromkeys(
            tensors(folder / "base/model-00001-of-00001.safetensors"), "model-00001-of-00001.safetensors"
        )
        held["model.layers.9.mlp.up_proj.weight"] = file or "model-00001-of-00001.safetensors"
        (folder / "base/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": held}))
        recipe["base"] = "./base"

    return plant


def exported(folder: Path, recipe: dict[str, Any]) -> None:
    (folder / "out").mkdir()
    (folder / "out/mine.txt").write_text("x")
    recipe["stages"]["merged"]["out"] = "out"


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}{% endfor %}"
    + TEMPLATE
)
UNENDED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}{% endgeneration "
    "%}{% else %}Q: "
)
UNENDED += "{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
LONG = "The ball is red. " * 40

FAULTS: dict[str, tuple[Callable[[Path, dict[str, Any]], None], str]] = {
    "compared with nobody": (
        setting("report", against="nobody"),
        r"stages\.report\.against: 'nobody' is not among what is compared \(sft, dpo, ppo, ",
    ),
    "no such stage compared": (
        setting("report", compare=["sft", "dop"]),
        r"stages.report.compare: dop is not an earlier stage .*did you mean",
    ),
    "two columns of one name": (
        setting("report", baselines=["sft"]),
        r"stages\.report\.baselines: a column of data and an artifact .* called sft",
    ),
    "a column that is not there": (
        setting("report", baselines=["worst"]),
        r"heldout.jsonl:1: 'worst' is among baselines, but this row has only",
    ),
    "a judge with a slip": (
        file("judge2.py", "def score(:", judges={"g": "judge2.py:score"}),
        r"stages\.report\.judges\.g: .*judge2.py:1 is no Python",
    ),
    "a judge's missing library": (
        file("judge2.py", "import no_such_library\n" + JUDGE, judges={"g": "judge2.py:score"}),
        r"stages\.report\.judges\.g: .*judge2.py does not run: ModuleNotFoundError: No module named 'no_such_library' "
        r"\(.*judge2.py:1\)",
    ),
    "a judge's missing function": (
        setting("report", judges={"g": "judge.py:scores"}),
        r"judge.py has no function 'scores'; it has score",
    ),
    "a judge that asks for more": (
        file("judge2.py", "def score(completions, answer, **kwargs): ...", "pairs", judge="judge2.py:score"),
        r"stages\.pairs\.judge: .*judge2.py:1\) needs 'answer', which it does not get",
    ),
    "a judge called by position": (
        file("judge2.py", "def score(completions, /): ...", judges={"g": "judge2.py:score"}),
        r"stages\.report\.judges\.g: .* takes 'completions' by position alone",
    ),
    "a template without system turns": (
        template(NO_SYSTEM, {"system": "Be brief."}),
        r"stages.reward.data: .*pairs.jsonl:3: the chat template refuses this dialogue: no system turns",
    ),
    "a template that ends no answer": (
        template(UNENDED),
        r"stages.sft.data: .*sft.jsonl:1: message 2 \(assistant\): no end-of-turn token follows",
    ),
    "a template that is none": (template("{% for m in"), r"r/sft: chat_template .*template.jinja is no valid Jinja"),
    "a template beside a parent": (
        setting("more", chat_template="plain"),
        r"stages\.more\.chat_template is set, but r/more has a parent",
    ),
    "a special token in a late file": (
        row("pairs.jsonl", chosen="It is <|end|> red."),
        r"pairs.jsonl:3: .*holds the special token '<\|end\|>'",
    ),
    "a row that is too long": (
        row("pairs.jsonl", chosen=LONG),
        r"stages.reward.data: .*pairs.jsonl:3: \d+ tokens, but max_length is 96",
    ),
    "no room to answer": (
        setting("ppo", max_length=40, max_new_tokens=30),
        r"stages.ppo.data: .*prompts.jsonl:1: the prompt has \d+ tokens and 30 more .*, but max_length is 40",
    ),
    "no room in the context": (
        setting("report", max_new_tokens=250),
        r"stages.report.data: .*heldout.jsonl:1: the prompt has .* 250 more .* context is 256",
    ),
    "no room for pairs": (
        setting("pairs", max_new_tokens=250),
        r"stages.pairs.data: .*prompts.jsonl:1: the prompt has \d+ tokens and 250 more",
    ),
    "a token that no row holds": (
        setting("sft", new_tokens=["<tool>"]),
        r"stages\.sft\.new_tokens: no record to train on .* holds '<tool>'",
    ),
    "a tensor that is not there": (
        broken_base(None),
        r"model.layers.9.mlp.up_proj.weight is in model-00001-of-00001.safetensors, and it is not",
    ),
    "a file that is not there": (
        broken_base("model-00002-of-00002.safetensors"),
        r"lacks 1 of 2 weight files: model-00002-of-00002.safetensors",
    ),
    "a place that is taken": (exported, r"stages\.merged\.out: .*out is not empty"),
    "a weight of nothing": (
        setting("ppo", weights={"gold": 1.0}),
        r"stages\.ppo\.weights: gold is no reward of this stage; it has reward",
    ),
    "a warm-up without end": (
        setting("ppo", value_warmup=3),
        r"r/ppo: value_warmup \(3\) leaves nothing of 1 rollouts",
    ),
    "a decay longer than the run": (
        setting("more", lr_scheduler="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 9}),
        r"stages\.more\.lr_scheduler_kwargs.num_decay_steps is 9 after 1 of warm-up, but the run has 5 steps",
    ),
    "no such tracker": (
        setting("more", report_to=["tensorbord"]),
        r"stages\.more\.report_to: tensorbord is no tracker .*did you mean tensorboard",
    ),
    "a reward of another template": (
        lambda folder, recipe: recipe["stages"].update(reward={"data": "pairs.jsonl", "chat_template": "plain"}),
        r"r/ppo: reward r/reward has another chat template than sft r/sft",
    ),
    "measured on what was trained on": (
        setting("report", data="prompts.jsonl"),
        r"stages.report.data: .*prompts.jsonl:1: r/ppo was trained on this prompt, one of 8 of 8 here",
    ),
    "more layers than there are": (
        setting("more", adapter={"layers": 9}),
        r"stages\.more\.adapter.layers is 9, but the base .* has 4 layers",
    ),
    "a late file that is not there": (
        setting("more", data="nowhere.jsonl"),
        r"stages\.more\.data: there is no file .*nowhere.jsonl",
    ),
    "nothing left to train on": (
        setting("ppo", hold_out="prompts.jsonl"),
        r"r/ppo: hold_out leaves nothing to train on of 8 records",
    ),
    "a device that is not there": (
        setting("more", activation_offload=True),
        r"r/more: activation_offload moves activations from a GPU",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_before_anything_trains(tmp_path: Path, fault: str) -> None:
    plant, said = FAULTS[fault]
    recipe = healthy(tmp_path)
    plant(tmp_path, recipe)
    with pytest.raises(InputError, match=said) as error:
        dry_run(tmp_path, recipe)
    assert not (tmp_path / "store").exists() and "Traceback" not in str(error.value)


def test_a_run_finds_it_too_before_its_first_stage(tmp_path: Path) -> None:
    recipe = healthy(tmp_path)
    setting("report", against="nobody")(tmp_path, recipe)
    with pytest.raises(InputError, match=r"stages\.report\.against: 'nobody' is not among"):
        dry_run(tmp_path, recipe, dry=False)
    assert not list(Store(tmp_path / "store").artifacts())


def test_a_row_of_a_file_in_a_folder_that_is_called_as_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as a row of any file is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data/long.jsonl", [{"prompt": "Why? " * 200, "completion": "No."}] * 12)
    text = f"stages:\n  sft:\n    base: {TINY}\n    max_steps: 1\n    data: data/long.jsonl\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^r\.yaml:5: stages\.sft\.data: data/long\.jsonl:1: "):
        align.run(Path("r.yaml"), Store("store"), dry_run=True)


def test_a_healthy_recipe_is_rehearsed_to_its_last_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control of all faults; and what it says of rows is what the run's own renderer and plan do."""
    recipe = healthy(tmp_path)
    store = dry_run(tmp_path, recipe)
    printed = capsys.readouterr().out
    assert not store.path.exists()
    for stage in recipe["stages"]:
        assert f"r/{stage}: run, nothing has its name yet\n" in printed
    assert "r/more: 37 to train on, 3 held out; 5 optimizer steps of 8 records; that is few to learn from: " in printed
    assert "r/ppo: 8 prompts, 1 rollout of 8 samples, 4 optimizer steps\n" in printed
    one_line = " ".join(printed.split())
    assert "rejected: <|begin|>" in one_line and "«Who knows?<|end|>»" in one_line.replace(" ", "").replace(
        "Whoknows", "Who knows"
    )
    assert max(len(line) for line in printed.splitlines() if line.startswith("  ")) <= 100


def test_a_sample_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lengths are those of the first rows and the longest; negative control: of a few rows, of all."""
    recipe = healthy(tmp_path)
    recipe["stages"] = {"sft": recipe["stages"]["sft"]}
    dry_run(tmp_path, recipe)
    assert "r/sft: data: lengths of the first 20 rows and the longest one: median " in capsys.readouterr().out
    file = tmp_path / "sft.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:10]))
    dry_run(tmp_path, recipe)
    printed = capsys.readouterr().out
    assert re.search(r"r/sft: data: lengths of \d rows: median ", printed) and "the first 20" not in printed


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    """As the run, so its rehearsal; what stores nothing needs no store. Negative control: one that can be."""
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    healthy(tmp_path)
    config = sft.Config(base=str(TINY), data=str(tmp_path / "sft.jsonl"), threads=1)
    for attempt in (lambda: plan(sft.STAGE, config, Store("/proc/x")), lambda: sft.run(config, Store("/proc/x"))):
        with pytest.raises(InputError, match=r"/proc/x.* can\w* be made in /proc"):
            attempt()
    asked = generate.Config(base=str(TINY), data=str(tmp_path / "prompts.jsonl"), threads=1)
    assert plan(generate.STAGE, asked, Store("/proc/x")).says == ["generate: run, nothing has its name yet"]
    assert plan(sft.STAGE, config, Store(tmp_path / "new")).says and not (tmp_path / "new").exists()


def test_data_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows that are looked at are those that memory is planned for."""
    from align.data import formats

    recipe, read = healthy(tmp_path), []
    recipe["stages"] = {"sft": recipe["stages"]["sft"]}
    real = formats.collect
    monkeypatch.setattr(
        formats, "collect", lambda path, *more, **how: read.append(Path(path).name) or real(path, *more, **how)
    )
    dry_run(tmp_path, recipe)
    assert read == ["sft.jsonl"] and "\nrows as in the data; within" in capsys.readouterr().out


@pytest.mark.parametrize("needs", ["answer", "nothing"])
def test_a_column_that_only_rows_in_the_middle_have(tmp_path: Path, needs: str) -> None:
    """A judge gets it: rows that were not looked at are read before a judge is refused. Negative control: one that no
    row has."""
    recipe = healthy(tmp_path)
    rows: list[dict[str, Any]] = [{"prompt": f"Which colour is ball {i}?"} for i in range(2100)]
    rows[1050]["answer"] = "red"
    write_rows(tmp_path / "many.jsonl", rows)
    (tmp_path / "judge2.py").write_text(f"def score(completions, {needs}, **kwargs): ...")
    recipe["stages"] = {name: recipe["stages"][name] for name in ("sft", "pairs")}
    recipe["stages"]["pairs"] |= {"data": "many.jsonl", "judge": "judge2.py:score"}
    if needs == "nothing":
        with pytest.raises(InputError, match="needs 'nothing', which it does not get"):
            dry_run(tmp_path, recipe)
    else:
        dry_run(tmp_path, recipe)


def test_rows_that_are_left_out_at_the_front_are_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the first rows are too long and dropped; the others are not. Negative control: where none is left, it is a
    fault."""
    recipe = healthy(tmp_path)
    recipe["stages"] = {"sft": {"data": "rows.jsonl", "truncate": "drop", "eval_fraction": 0.0}}
    long = [{"prompt": f"{i} {LONG}", "completion": "No."} for i in range(30)]
    write_rows(tmp_path / "rows.jsonl", [*long, *({"prompt": f"What is {i}?", "completion": "No."} for i in range(10))])
    dry_run(tmp_path, recipe)
    assert "100% are left out" in capsys.readouterr().out
    write_rows(tmp_path / "rows.jsonl", long)
    with pytest.raises(InputError, match="r/sft: all 30 records are longer than max_length"):
        dry_run(tmp_path, recipe)


def test_what_counts_is_marked(tmp_path: Path) -> None:
    """Against the tokenizer's own text and the mask: without marks it is the row, inside them what is learnt. Terminals
    obey nothing."""
    from align.data.records import Conversation, Message
    from align.rendering.render import load_renderer
    from align.rendering.shown import LINES, WIDTH, block, example_as_text

    renderer = load_renderer(TINY, None, 256)
    said = (
        Message("user", "Hi \x1b[31m«you»"),
        Message("assistant", "It is red."),
        Message("user", "And?"),
        Message("assistant", "No."),
    )
    (example,) = renderer.conversations([Conversation(said)])
    (text,) = example_as_text(renderer.tokenizer, example)
    bare = renderer.tokenizer.decode(list(example.sequences[0]))
    assert text.replace("«", "").replace("»", "") == bare.replace("«", "\\u00ab").replace("»", "\\u00bb")
    assert [part.partition("»")[0] for part in text.split("«")[1:]] == ["It is red.<|end|>", "No.<|end|>"]
    shown = block("first row", text * 40)
    assert (
        len(shown) <= LINES
        and max(map(len, shown)) <= WIDTH
        and "\x1b" not in "".join(shown)
        and "\\u001b[31m" in shown[0]
    )
    assert "".join(line.strip() for line in shown).endswith("«No.<|end|>»") and "…" in "".join(shown)


def reinforced(folder: Path) -> dict[str, Any]:
    """A recipe whose grpo takes two of eight prompts, and a report on heldout.jsonl."""
    recipe = healthy(folder)
    grpo = {"parent": "sft", "data": "prompts.jsonl", "judges": {"g": "judge.py:score"}, "max_steps": 1, **SAMPLED}
    recipe["stages"] = {
        "sft": {"data": "sft.jsonl", "max_steps": 1},
        "grpo": {**grpo, "group_size": 2, "batch_size": 4, "rollout_size": 4},
        "report": {"kind": "evaluate", "compare": ["sft", "grpo"], "data": "heldout.jsonl", **SAMPLED},
    }
    return recipe


def test_which_prompts_a_short_run_will_take(tmp_path: Path) -> None:
    """They are those that the run notes, so a report on one of them is refused before anything trains. Negative
    control: a report on all others is not."""
    recipe = reinforced(tmp_path)
    made = Store(tmp_path / "store")
    dry_run(tmp_path, recipe | {"stages": {k: v for k, v in recipe["stages"].items() if k != "report"}}, dry=False)
    noted = {*map(json.loads, made.read(made.resolve("r/grpo"), "trained_on.jsonl").splitlines())}
    shutil.rmtree(made.path)
    prompts = list(read_prompts(tmp_path / "prompts.jsonl"))
    taken = [p for p in prompts if opening(p) in noted]
    assert len(taken) == 2 and len(prompts) == 8
    recipe["stages"]["report"]["data"] = "prompts.jsonl"
    with pytest.raises(InputError, match=rf"{re.escape(taken[0].where)}: r/grpo was trained on .* one of 2 of 8 here"):
        dry_run(tmp_path, recipe)
    write_rows(tmp_path / "heldout.jsonl", [p.row() for p in prompts if p not in taken])
    recipe["stages"]["report"]["data"] = "heldout.jsonl"
    assert not dry_run(tmp_path, recipe).path.exists()


def test_prompts_that_may_be_refused_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file too long to be read ahead it is not known which prompts are taken, nor of one that is still to be
    made. Negative control: measured on another file."""
    recipe = reinforced(tmp_path)
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Which colour is ball {i}?"} for i in range(2100)])
    told = "r/report: r/grpo trains on prompts of the same file, and which ones is known only then: "
    for drop, fate in (
        ("error", "those are refused here, after all training"),
        ("drop", "those are left out here, too"),
    ):
        setting("report", data="prompts.jsonl", trained_on=drop)(tmp_path, recipe)
        dry_run(tmp_path, recipe)
        assert f"{told}{fate}" in " ".join(capsys.readouterr().out.split())
    setting("report", data="heldout.jsonl", trained_on="error")(tmp_path, recipe)
    setting("grpo", hold_out="heldout.jsonl")(tmp_path, recipe)
    dry_run(tmp_path, recipe)
    assert told not in (said := " ".join(capsys.readouterr().out.split())) and "still to be made" not in said
    stages = recipe["stages"]
    recipe["stages"] = {"made": {"kind": "convert", "data": "prompts.jsonl", "read_as": "prompts"}, **stages}
    setting("grpo", data="made")(tmp_path, recipe)
    dry_run(tmp_path, recipe)
    said = " ".join(capsys.readouterr().out.split())
    assert "r/report: r/grpo trains on prompts that are still to be made; should some of these be among them, " in said


def test_prompts_that_groups_drawn_anew_may_take_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a run whose groups are equal until the last draw, so that it takes as many as it may. Negative control:
    nothing is drawn anew."""
    recipe = reinforced(tmp_path)
    (tmp_path / "judge.py").write_text(LATE_JUDGE)
    prompts = list(read_prompts(tmp_path / "prompts.jsonl"))
    order = [prompts[i] for i in steps.in_seeded_passes(range(8), 8, seed=0)]
    write_rows(tmp_path / "heldout.jsonl", [p.row() for p in order[2:]])
    dry_run(tmp_path, recipe)
    assert "may come to train on" not in capsys.readouterr().out
    setting("grpo", resample=2, missing_eos_penalty=0)(tmp_path, recipe)
    dry_run(tmp_path, recipe)
    told = "r/report: r/grpo may come to train on 4 of 6 prompts, and which ones is known only then: those are "
    assert f"{told}refused here, after all training" in " ".join(capsys.readouterr().out.split())
    setting("report", trained_on="drop")(tmp_path, recipe)
    dry_run(tmp_path, recipe)
    assert f"{told}left out here, too" in " ".join(capsys.readouterr().out.split())
    short = recipe | {"stages": {k: v for k, v in recipe["stages"].items() if k != "report"}}
    made = dry_run(tmp_path, short, dry=False)
    noted = {*map(json.loads, made.read(made.resolve("r/grpo"), "trained_on.jsonl").splitlines())}
    assert noted == {*map(opening, order[:6])}
