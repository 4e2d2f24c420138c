"""What `align show NAME --settings` prints is what `--config` takes, and asks for the same artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import dpo, evaluate, merge
from align.cli.command import dispatch
from align.ground.errors import InputError
from align.recipe import parse_flags
from align.stage import catalogue
from align.stage.question import prepare
from align.store import Artifact, Store
from tests.conftest import Pipeline

FILES = {"pretrain": "texts", "sft": "sft", "reward": "pairs", "dpo": "pairs", "ppo": "prompts", "evaluate": "prompts"}


def printed(pipeline: Pipeline, name: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    dispatch(["show", name, "--settings", "--store", str(pipeline.store.path), *more])
    return capsys.readouterr().out


def answered(pipeline: Pipeline, stage: str, file: Path, *flags: str) -> Artifact | None:
    """What is there already for what `align STAGE --config FILE …` asks."""
    folder, store = pipeline.recipe.parent, Store(pipeline.store.path)
    data = ["--data", str(folder / f"{FILES[stage]}.jsonl")] if stage in FILES else []
    what = catalogue.stage_of(stage)
    config = parse_flags(what.config, ["--config", str(file), *data, *flags], prog=f"align {stage}").config
    return store.asked(prepare(what, config, store).key)


def test_each_stage_again(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage of the recipe, DPO that goes on with its parent's adapter, a merge, and a report with a judge."""
    store, folder = Store(pipeline.store.path), pipeline.recipe.parent
    sft, on = pipeline.made["sft"], {"precision": "fp32", "threads": 1}
    more = {"max_steps": 1, "batch_size": 4, "max_length": 96, "name": "more", "eval_fraction": 0.0}
    made = dict(pipeline.made)
    made["more"] = dpo.run(dpo.Config(parent=sft, data=str(folder / "pairs.jsonl"), **more, **on), store)
    made["merged"] = merge.run(merge.Config(parent=sft, name="merged"), store)
    judge = tmp_path / "judge.py"
    judge.write_text("def score(completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    asked = {"data": str(folder / "prompts.jsonl"), "judges": {"long": f"{judge}:score"}, "max_new_tokens": 4}
    made["report"] = evaluate.run(
        evaluate.Config(compare=["more", "tiny/sft"], limit=2, name="report", **asked, **on), store
    )
    for stage, artifact in made.items():
        name = store.names(artifact)[0]
        file = tmp_path / f"{stage}.yaml"
        file.write_text(printed(pipeline, name, capsys))
        flags = ["--judges.long", f"{judge}:score"] if stage == "report" else []
        found = answered(pipeline, artifact.stage, file, *flags)
        assert found is not None and found.digest == artifact.digest, (stage, file.read_text())
        if artifact.stage in ("sft", "dpo"):  # the control: another setting is another question
            assert answered(pipeline, artifact.stage, file, "--learning_rate", "0.5") is None
    assert "adapter" not in (tmp_path / "more.yaml").read_text().replace("parent_adapter", "")
    assert "adapter:\n" in (tmp_path / "dpo.yaml").read_text()  # a fresh one on the parent's has a shape of its own


def test_what_is_to_be_given_is_told(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = printed(pipeline, "tiny/sft", capsys).splitlines()
    assert head[0] == "# The settings of tiny/sft. Run it again: align sft --config FILE --data …"
    digest = pipeline.made["sft"].data["data"][:12]
    assert head[1] == f"# --data: not in the store; its content was sha256 {digest}"
    assert '"parent": "tiny/pretrain"' in printed(pipeline, "tiny/sft", capsys, "--json")
    file = tmp_path / "ppo.yaml"
    file.write_text(printed(pipeline, "tiny/ppo", capsys))
    with pytest.raises(InputError, match="data is missing"):
        parse_flags(catalogue.stage_of("ppo").config, ["--config", str(file)], prog="align ppo")
