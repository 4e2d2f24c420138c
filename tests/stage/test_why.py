"""A change runs again what depends on it and nothing else, and a dry run says which change that is; the stage alone
says the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import align
from align import pairs, ppo, sft
from align.ground.errors import AlignError
from align.models.precision import explain_precision, name_of, resolve_precision
from align.stage import catalogue, layout
from align.stage.ahead import dry_run as stages
from align.store import Store
from align.training.trainer import StageTrainer
from tests.conftest import Pipeline
from tests.stages.helpers import run, settings

JUDGE = "def score(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"


def plan(stage: Any, config: Any, store: Store) -> str:
    """Whether and why a stage alone is to run."""
    return "\n".join(stages.plan(stage, config, store).says)


def planned(pipeline: Pipeline, capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, str]:
    """What a dry run says of each stage."""
    align.run(pipeline.recipe, pipeline.store, overrides=overrides, dry_run=True)
    return dict(
        line.removeprefix("tiny/").split(": ", 1) for line in capsys.readouterr().out.partition("\n\n")[0].splitlines()
    )


def reruns(said: dict[str, str]) -> dict[str, str]:
    return {stage: line.removeprefix("run, ") for stage, line in said.items() if line.startswith("run, ")}


@pytest.mark.parametrize(
    ("overrides", "reasons"),
    [
        ([], {}),
        (
            [
                "stages.sft.checkpoint_steps=7",
                "stages.ppo.tokens_per_microbatch=99",
                "stages.dpo.report_to=[tensorboard]",
            ],
            {},
        ),
        (["stages.dpo.beta=0.3"], {"dpo": "beta 0.2 -> 0.3"}),
        (["stages.dpo.adapter.rank=2", "stages.dpo.seed=4"], {"dpo": "adapter.rank 4 -> 2; seed 3 -> 4"}),
        (
            ["stages.reward.centre=0.1", "stages.ppo.kl_coef=0.1"],
            {"reward": "centre 0.0 -> 0.1", "ppo": "its reward is made anew by tiny/reward; kl_coef 0.05 -> 0.1"},
        ),
        (
            ["stages.sft.weight_decay=0.1"],
            {
                "sft": "weight_decay 0.0 -> 0.1",
                "reward": "its parent is made anew by tiny/sft",
                "dpo": "its parent is made anew by tiny/sft",
                "ppo": "its parent is made anew by tiny/sft; its reward is made anew by tiny/reward",
            },
        ),
        (["stages.dpo.eval_data=pairs.jsonl"], {"dpo": "eval_fraction 0.1 -> not set; eval_data is a new input"}),
        (["stages.dpo.chat_template=plain"], None),
    ],
)
def test_which_setting(
    overrides: list[str], reasons: dict[str, str] | None, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    if reasons is None:  # a parent's template is kept, so this is refused before anything runs
        with pytest.raises(
            align.InputError, match="chat_template is set, but tiny/dpo has a parent, whose template it must keep"
        ):
            planned(pipeline, capsys, *overrides)
        return
    assert reruns(planned(pipeline, capsys, *overrides)) == reasons


def test_which_file(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """A row more in a data set: the stages that read it, and those after them."""
    data = pipeline.recipe.parent / "pairs.jsonl"
    data.write_text(data.read_text() + data.read_text().splitlines()[0] + "\n")
    found = reruns(planned(pipeline, capsys))
    old = {stage: pipeline.made[stage].data["data"][:12] for stage in ("reward", "dpo")}
    assert found.keys() == {"reward", "dpo", "ppo"} and found["ppo"] == "its reward is made anew by tiny/reward"
    for stage in ("reward", "dpo"):
        assert found[stage].startswith(f"the content of data changed ({old[stage]} -> ")
        assert (
            plan(catalogue.stage_of(stage), settings(pipeline, stage), pipeline.store)
            == f"tiny/{stage}: run, {found[stage]}"
        )
    prompts = pipeline.recipe.parent / "prompts.jsonl"
    prompts.write_text(prompts.read_text() * 2)
    said = reruns(planned(pipeline, capsys))["ppo"]
    assert said.startswith("its reward is made anew by tiny/reward; the content of data changed (")


def test_what_was_left_to_us_is_compared_as_it_holds(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Which of the models a report compares with is written down by name. Negative control: another one."""
    report = "{kind: evaluate, compare: [sft, dpo], data: prompts.jsonl, limit: 2, max_new_tokens: 2}"
    pipeline.recipe.write_text(f"{pipeline.recipe.read_text()}  report: {report}\n")
    assert align.run(pipeline.recipe, pipeline.store)["report"].config["against"] == "sft"
    capsys.readouterr()
    beta, anew = "stages.dpo.beta=0.3", "run, its compare is made anew by tiny/dpo"
    assert planned(pipeline, capsys, beta)["report"] == anew
    assert planned(pipeline, capsys, beta, "stages.report.against=dpo")["report"] == f"{anew}; against sft -> dpo"


def test_which_parent_and_why_it_is_another(pipeline: Pipeline) -> None:
    """Stages alone, by name: the new parent is told, and what made it another, as far up as it goes."""
    old, made = pipeline.made["sft"], run(pipeline, "sft", learning_rate=0.02)
    config = settings(pipeline, "dpo")
    changed = f"its parent is another one ({old.short} -> tiny/sft {made.short}: learning_rate 0.01 -> 0.02)"
    assert plan(align.dpo.STAGE, config, pipeline.store) == f"tiny/dpo: run, {changed}"
    reward = run(pipeline, "reward")
    said = plan(ppo.STAGE, settings(pipeline, "ppo"), pipeline.store)
    was = pipeline.made["reward"].short
    assert (
        said.splitlines()[0]
        == f"tiny/ppo: run, {changed}; its reward is another one ({was} -> tiny/reward {reward.short}: {changed})"
    )
    assert plan(align.dpo.STAGE, settings(pipeline, "dpo", parent="tiny/dpo"), pipeline.store).endswith(": sft -> dpo)")


def test_which_base(pipeline: Pipeline, tmp_path: Path) -> None:
    base = pipeline.store.materialise(pipeline.made["pretrain"], tmp_path / "base", "model")
    common: dict[str, Any] = {
        "data": pipeline.recipe.parent / "sft.jsonl",
        "precision": "fp32",
        "threads": 1,
        "max_steps": 1,
        "name": "mine",
    }
    sft.run(sft.Config(base=base, **common), pipeline.store)  # type: ignore[arg-type]

    def said(**given: Any) -> str:
        return plan(sft.STAGE, sft.Config(base=given, **common), pipeline.store).removeprefix("mine: ")  # type: ignore[arg-type]

    assert said(model=base).startswith("skip, ")
    assert said(model=base, quantize="nf4") == "run, base.quantize none -> nf4"
    assert said(model="tiny/pretrain").startswith(f"run, base base -> artifact:{pipeline.made['pretrain'].digest} (")
    (base / "generation_config.json").write_text("{}")
    assert said(model=base).startswith("run, the files of its base base changed (")


def test_which_judge(pipeline: Pipeline) -> None:
    judge = pipeline.recipe.with_name("judge.py")
    judge.write_text(JUDGE + JUDGE.replace("score", "other"))
    given: dict[str, Any] = {
        "parent": "tiny/sft",
        "data": pipeline.recipe.parent / "prompts.jsonl",
        "max_new_tokens": 4,
        "n": 2,
        "threads": 1,
    }
    pairs.run(pairs.Config(judge=f"{judge}:score", **given), pipeline.store)

    def said(function: str) -> str:
        return plan(pairs.STAGE, pairs.Config(judge=f"{judge}:{function}", **given), pipeline.store)

    assert said("score").startswith("pairs: skip, ")
    assert said("other") == "pairs: run, judge: function score -> other"
    judge.write_text(judge.read_text() + "\n")
    assert said("score").startswith("pairs: run, judge: the file's content changed (")


def test_which_version(pipeline: Pipeline) -> None:
    newer = replace(sft.STAGE, version=sft.STAGE.version + 1)
    assert plan(newer, settings(pipeline, "sft"), pipeline.store) == (
        f"tiny/sft: run, sft gives other results since version {newer.version} (it was made by version "
        f"{sft.STAGE.version})"
    )


def test_a_name_of_something_else(pipeline: Pipeline) -> None:
    pipeline.store.tag("tiny/dpo", "tiny/sft")
    said = plan(align.dpo.STAGE, settings(pipeline, "dpo", beta=0.3), pipeline.store)
    assert (
        said
        == f"tiny/dpo: run, its name stands for what sft made, {pipeline.made['sft'].short}, and moves to the new one"
    )
    assert plan(align.dpo.STAGE, settings(pipeline, "dpo"), pipeline.store).startswith("tiny/dpo: skip, ")


def test_a_run_that_goes_on_says_from_where(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise OSError("pulled the plug")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(StageTrainer, "training_step", training_step)
        for precision in ("fp32", "auto"):
            with pytest.raises(OSError, match="pulled"):
                run(pipeline, "sft", max_steps=4, checkpoint_steps=2, precision=precision)
    assert (
        plan(sft.STAGE, settings(pipeline, "sft", max_steps=4), pipeline.store)
        == "tiny/sft: run, max_steps 2 -> 4; it goes on from step 2"
    )
    auto = settings(pipeline, "sft", max_steps=4, precision="auto")
    assert plan(sft.STAGE, auto, pipeline.store).endswith("; it goes on from step 2")
    other = settings(pipeline, "sft", max_steps=5, precision="auto")
    assert "goes on" not in plan(sft.STAGE, other, pipeline.store), "the control"
    assert "goes on" not in capsys.readouterr().err, "the control"
    states = [*pipeline.store.path.glob("runs/*/checkpoints/checkpoint-2/history.json")]
    whole = {state: json.loads(state.read_text()) for state in states}
    for state, saved in whole.items():  # as an Align left it that kept less
        state.write_text(json.dumps({key: value for key, value in saved.items() if key not in ("sums", "total_loss")}))
    with pytest.raises(AlignError, match=r"another version of Align: it holds no sums and no total_loss, "):
        run(pipeline, "sft", max_steps=4, checkpoint_steps=2)
    for damage in ('{"history": [', json.dumps({**next(iter(whole.values())), "reach": None})):
        for state in whole:
            state.write_text(damage)
        with pytest.raises(AlignError, match=r"history.json is damaged.* begins anew"):
            run(pipeline, "sft", max_steps=4, checkpoint_steps=2)
    for state, saved in whole.items():
        state.write_text(json.dumps(saved))
    run(pipeline, "sft", max_steps=4, checkpoint_steps=2)
    assert "tiny/sft: goes on from step 2 of 4\n" in capsys.readouterr().err


def test_what_auto_turns_out_to_be_is_there(pipeline: Pipeline) -> None:
    """A dry run says of `auto` what a run would find, that its precision was asked for by name. Negative control: the
    other precision is to run."""
    here = name_of(resolve_precision("auto"))
    made = run(pipeline, "sft", max_steps=1, precision=here)
    auto = settings(pipeline, "sft", max_steps=1, precision="auto")
    assert plan(sft.STAGE, auto, pipeline.store) == f"tiny/sft: skip, {made.short} is there"
    other = settings(pipeline, "sft", max_steps=1, precision="bf16" if here == "fp32" else "fp32")
    assert plan(sft.STAGE, other, pipeline.store).startswith("tiny/sft: run, ")


def test_what_auto_was_answered_is_found_without_libraries(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once `auto` itself was asked for, nobody asks again what it turns out to be, for which torch is loaded. Negative
    control: where only its precision was asked for by name, it is asked."""
    asked: list[Any] = []
    monkeypatch.setattr(layout, "computes_in", lambda *given: asked.append(given) or explain_precision(given[1]))
    here = name_of(resolve_precision("auto"))
    run(pipeline, "sft", max_steps=1, precision=here)
    auto = settings(pipeline, "sft", max_steps=1, precision="auto")
    assert ": skip, " in plan(sft.STAGE, auto, pipeline.store) and asked
    run(pipeline, "sft", max_steps=1, precision="auto")
    asked.clear()
    assert ": skip, " in plan(sft.STAGE, auto, pipeline.store) and not asked
