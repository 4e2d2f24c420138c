"""Every consumer refuses what does not fit together, by its reason and before torch is imported."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from align import generate
from align.ground.errors import InputError
from align.store import Artifact, Store
from tests.conftest import ROOT, Pipeline, write_world

PROGRAM = """
import importlib, json, sys
import align
from align import Store, InputError

store, found = Store(sys.argv[1]), []
for module, words in json.loads(sys.stdin.read()):
    try:
        if module == "load":
            align.load(words["parent"], store)
        elif module == "chat":
            from align import chat
            from align.stage.workbench import Workbench
            chat.talk(Workbench(align.stage.question.prepare(chat.STAGE, chat.Config(**words), store)))
        elif module == "run":
            align.run(words["recipe"], store)
        elif module == "import":
            from align.recipe import Base
            from align.exchange.transfer import import_adapter
            import_adapter(words["folder"], Base(model=words["base"]), store)
        else:
            stage = importlib.import_module(f"align.{module}")
            stage.run(stage.Config(**words), store)
        found.append("not refused")
    except InputError as error:
        found.append(str(error))
heavy = {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes"} & set(sys.modules)
print(json.dumps([found, sorted(heavy)]))
"""


def refusals(store: Store, asked: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What each call is refused with, in one process that must not have loaded a tensor library at the end."""
    words = [sys.executable, "-c", PROGRAM, str(store.path)]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    return found


def twin(pipeline: Pipeline, name: str, folder: Path, **changes: Any) -> Artifact:
    """The artifact `name` once more, but for what its manifest says."""
    made = pipeline.made[name]
    files = pipeline.store.materialise(made, folder)
    said = {key: value for key, value in made.manifest.items() if key not in ("format", "files", "parents")}
    return pipeline.store.put(files, **{**said, "parents": {}, **changes})


def right_calls(recipe: Path) -> dict[str, dict[str, Any]]:
    """Of every consumer of an adapter on the base."""
    files = {kind: str(recipe.parent / f"{kind}.jsonl") for kind in ("texts", "sft", "pairs", "prompts")}
    judge = recipe.with_name("judge.py")
    judge.write_text("def score(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n")
    return {
        "pretrain": {"parent": "tiny/sft", "data": files["texts"], "method": "lora"},
        "sft": {"parent": "tiny/sft", "data": files["sft"]},
        "reward": {"parent": "tiny/sft", "data": files["pairs"]},
        "dpo": {"parent": "tiny/sft", "data": files["pairs"]},
        "ppo": {"parent": "tiny/sft", "reward": "tiny/reward", "data": files["prompts"]},
        "pairs": {"parent": "tiny/sft", "data": files["prompts"], "judge": f"{judge}:score"},
        "merge": {"parent": "tiny/sft"},
        "evaluate": {"compare": ["tiny/sft", "tiny/dpo"], "reward": "tiny/reward", "texts": files["sft"]},
        "generate": {"parent": "tiny/sft", "data": files["prompts"]},
        "chat": {"parent": "tiny/sft"},
    }


TEXTS = {
    "tokenizer": ("0" * 64, "has another tokenizer than"),
    "tokenizer_options": ("0" * 64, "has another way to use its tokenizer than"),
    "chat_template": ("0" * 64, "has another chat template than"),
    "bos_token_id": (7, "has another BOS token than"),
    "eos_token_id": (7, "has another EOS token than"),
    "stop_ids": ([1, 7], "has another set of tokens that end an answer than"),
}
"""A key of the text contract: another value, and the refusal."""


def test_another_text_contract(pipeline: Pipeline, tmp_path: Path) -> None:
    """A reward model for PPO and evaluation, and an artifact to compare with, that read or end text in another way than
    the first."""
    asked = right_calls(pipeline.recipe)
    calls: list[tuple[str, dict[str, Any]]] = []
    expected: list[str] = []
    for key, (value, message) in TEXTS.items():
        for stage, name in (("ppo", "reward"), ("evaluate", "reward"), ("evaluate", "dpo")):
            text = {**pipeline.made[name].text, key: value}  # type: ignore[dict-item]
            other = twin(pipeline, name, tmp_path / f"{stage}-{name}-{key}", text=text)
            inputs = {"reward": other.digest} if name == "reward" else {"compare": ["tiny/sft", other.digest]}
            calls.append((stage, {**asked[stage], **inputs}))
            role = "reward" if name == "reward" else f"compare: dpo-{other.digest[:8]}"
            expected.append(f"{role} {other.short} {message} sft {pipeline.made['sft'].short}; train it with --parent")
    found = refusals(pipeline.store, calls)
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected
    padded = twin(pipeline, "reward", tmp_path / "pad", text={**pipeline.made["reward"].text, "pad_token_id": 7})  # type: ignore[dict-item]
    (passed,) = refusals(
        pipeline.store, [("evaluate", {**asked["evaluate"], "reward": padded.digest, "texts": "gone"})]
    )
    assert passed.startswith("texts: there is no file gone")  # negative control: what pads does not matter


@pytest.mark.parametrize("change", [{"quantize": "nf4"}, {"digest": "0" * 64, "model": "another"}])
def test_another_base_or_quantisation(change: dict[str, str], pipeline: Pipeline, tmp_path: Path) -> None:
    asked = right_calls(pipeline.recipe)
    calls: list[tuple[str, dict[str, Any]]] = []
    for stage, name in (("ppo", "reward"), ("evaluate", "reward"), ("evaluate", "dpo")):
        base = {**pipeline.made[name].base, **change}  # type: ignore[dict-item]
        other = twin(pipeline, name, tmp_path / f"{stage}-{name}", base=base)
        inputs = {"reward": other.digest} if name == "reward" else {"compare": ["tiny/sft", other.digest]}
        calls.append((stage, {**asked[stage], **inputs}))
    found = refusals(pipeline.store, calls)
    assert len(found) == 3 and all("was trained on base " in line and "to be on one base" in line for line in found)
    assert found[2].startswith("compare: dpo-") and "parent" not in found[2]


def test_another_template_beside_a_parent(pipeline: Pipeline) -> None:
    """Where a parent says the template, none may be set."""
    asked = right_calls(pipeline.recipe)
    stages = [stage for stage in asked if stage not in ("merge", "evaluate")]
    found = refusals(pipeline.store, [(stage, {**asked[stage], "chat_template": "plain"}) for stage in stages])
    assert found == [
        f"chat_template is set, but {stage} has a parent, whose template it must keep. Set it where the line starts."
        for stage in stages
    ]


def test_columns_that_fit_no_stage(pipeline: Pipeline) -> None:
    """Of every stage that reads rows, alone and as the last of a recipe whose others are right."""
    odd = pipeline.recipe.with_name("odd.jsonl")
    odd.write_text('{"foo": "a", "bar": "b"}\n' * 3)
    policy: dict[str, Any] = {"parent": "tiny/sft", "data": str(odd)}
    rewarded = {**policy, "reward": "tiny/reward"}
    calls: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("pretrain", "sft", "reward", "dpo", "simpo", "cpo", "orpo", "kto", "bco"), policy),
        **dict.fromkeys(("ppo", "grpo", "rloo", "reinforce_pp", "online_dpo", "pairs", "best_of_n"), rewarded),
        "distill": {**policy, "teacher": "tiny/dpo"},
        "evaluate": {"compare": ["tiny/sft"], "reward": "tiny/reward", "data": str(odd)},
        "generate": policy,
    }
    recipe = pipeline.recipe.with_name("late.yaml")
    text = pipeline.recipe.read_text().replace("seed: 3\n", "seed: 4\n")
    recipe.write_text(f"{text}  last: {{kind: dpo, parent: sft, data: odd.jsonl}}\n")
    found = refusals(pipeline.store, [*calls.items(), ("run", {"recipe": str(recipe)})])
    assert all("odd.jsonl:1: " in line and "found foo, bar" in line for line in found), found
    assert found[-1].startswith(f"{recipe}:22: stages.last.data: ")


def test_what_the_work_asks_is_asked_before_it_loads(pipeline: Pipeline) -> None:
    """Another teacher than the student, something to train on, a policy that trains after the warm-up."""
    asked = right_calls(pipeline.recipe)
    sft, ppo = asked["sft"], asked["ppo"]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("distill", {**sft, "teacher": "tiny/sft"}),
        ("sft", {**sft, "hold_out": sft["data"]}),
        ("ppo", {**ppo, "max_steps": 1, "value_warmup": 9}),
    ]
    same, nothing, warm = refusals(pipeline.store, calls)
    assert " is what the student starts as" in same
    assert nothing == "sft: hold_out leaves nothing to train on of 40 records."
    assert warm.startswith("value_warmup (9) leaves nothing of ")


@pytest.fixture
def moved(tmp_path: Path) -> Pipeline:
    """Artifacts on a base in a folder, whose files a test may change."""
    import align
    from align import reward, sft

    recipe = write_world(tmp_path)
    store = Store(tmp_path / "store")
    model = align.run(recipe, store, until="pretrain")["pretrain"]
    base = store.materialise(model, tmp_path / "base", "model")
    common: dict[str, Any] = {"precision": "fp32", "threads": 1, "max_steps": 1}
    made = sft.run(sft.Config(base=base, data=tmp_path / "sft.jsonl", name="tiny/sft", **common), store)  # type: ignore[arg-type]
    data = tmp_path / "pairs.jsonl"
    scored = reward.run(
        reward.Config(parent=made.digest, data=data, name="tiny/reward", centre_samples=0, **common), store
    )  # type: ignore[arg-type]
    store.tag("tiny/dpo", made)
    return Pipeline(recipe, store, {"sft": made, "reward": scored})


def test_a_base_that_changed(moved: Pipeline, tmp_path: Path) -> None:
    """One byte of the weights, the tokenizer or the settings: whoever would load the base is told, and whoever only
    copies files is not."""
    base = tmp_path / "base"
    calls = {**right_calls(moved.recipe), "load": {"parent": "tiny/sft"}}
    calls["evaluate"]["compare"] = ["tiny/sft"]
    for file in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        whole = (base / file).read_bytes()
        (base / file).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        found = refusals(moved.store, list(calls.items()))
        assert all(line.startswith(f"the base at {base} has changed: its digest was ") for line in found), found
        (base / file).write_bytes(whole)
    shutil.move(base, tmp_path / "elsewhere")
    found = refusals(moved.store, list(calls.items()))
    assert all("is not where it was" in line and "align locate DIR" in line for line in found)


def test_what_is_no_adapter_is_not_imported(moved: Pipeline, tmp_path: Path) -> None:
    """Empty, cut short, or of another kind: refused before a library is loaded. What does not fit its base is found by
    loading it."""
    source = moved.store.materialise(moved.made["sft"], tmp_path / "saved", "adapters/0")
    weights = (source / "adapter_model.safetensors").read_bytes()
    expected = []
    calls = []
    for name, content, message in (
        ("cut", weights[:-40], "is no complete safetensors file"),
        ("stub", weights[:40], "is no complete safetensors file"),
        ("nothing", b"", "is no complete safetensors file"),
        ("hollow", (2).to_bytes(8, "little") + b"{}", "it holds no tensor"),
    ):
        folder = shutil.copytree(source, tmp_path / name)
        (folder / "adapter_model.safetensors").write_bytes(content)
        calls.append(("import", {"folder": str(folder), "base": str(tmp_path / "base")}))
        expected.append(message)
    found = refusals(moved.store, calls)
    assert [message in line for message, line in zip(expected, found, strict=True)] == [True] * 4


def test_files_are_held_against_the_text_contract(pipeline: Pipeline, tmp_path: Path):
    """An artifact whose tokenizer or template is not the one that its manifest records, as a remote could hand it out,
    is refused by all that would render with it. Control: the same files under the same manifest, and those of an older
    one that records less."""
    recipe, store = pipeline.recipe.parent, pipeline.store
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "<|end|>": 2}, unk_token="[UNK]"))
    for what, name, content, differs in (
        ("words", "tokenizer.json", words.to_str(), ("tokenizer is", "EOS token is")),
        ("template", "chat_template.jinja", "{{ messages[0].content }}<|end|>", ("chat template is",)),
    ):
        folder = store.materialise(pipeline.made["sft"], tmp_path / what)
        (folder / "tokenizer" / name).write_text(content, encoding="utf-8")
        said = {k: v for k, v in pipeline.made["sft"].manifest.items() if k not in ("format", "files")}
        store.tag(what, store.put(folder, **said))
        for command, data, more in (
            ("generate", "prompts", {}),
            ("sft", "sft", {"max_steps": 1}),
            ("dpo", "pairs", {"max_steps": 1}),
            ("reward", "pairs", {"max_steps": 1}),
        ):
            stage = importlib.import_module(f"align.{command}")
            with pytest.raises(InputError, match=r"not what sft .* was made with") as refused:
                stage.run(stage.Config(parent=what, data=recipe / f"{data}.jsonl", **more), store)
            assert all(word in str(refused.value) for word in differs)
    older = {
        k: v for k, v in (pipeline.made["sft"].text or {}).items() if k not in ("tokenizer_options", "template_date")
    }
    store.tag("older", twin(pipeline, "sft", tmp_path / "older", text=older, parents=pipeline.made["sft"].parents))
    for name in ("tiny/sft", "older"):
        assert generate.run(
            generate.Config(parent=name, data=recipe / "prompts.jsonl", limit=1, max_new_tokens=1), store
        )
