"""What leaves the store is whole: plain transformers and PEFT stop where Align stops, and score as Align scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import align
from align import measures, merge, models, reward, sampling, sft
from align.exchange.transfer import checkout
from align.ground.errors import InputError
from align.models.save import end_by_contract
from align.rendering.render import load_renderer
from align.report.code import hub, plain_code
from align.stage.on_base import adapter_folders
from align.store import Artifact, Store
from tests.conftest import ROOT, Pipeline, write_rows

# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

COMMON: dict[str, Any] = {"precision": "fp32", "threads": 1, "batch_size": 4, "eval_fraction": 0.0}
ASKED = [(3, 4), (2, 2), (1, 8), (5, 1)]


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact, Path, Path]:
    """An adapter on a base whose template ends turns with <|end|>, while its EOS is another token, as of Qwen's base
    models."""
    folder = tmp_path_factory.mktemp("turned")
    base = folder / "base"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny-base")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", tokenizer.eos_token)
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "data/tiny-base", dtype=torch.float32)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.update(do_sample=True, top_p=0.9)
    model.save_pretrained(base)
    rows = [{"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b}."} for a, b in ASKED]
    pairs = [
        {"prompt": f"What is {a} plus {b}?", "chosen": f"It is {a + b}.", "rejected": "Who knows?"} for a, b in ASKED
    ]
    store = Store(folder / "store")
    data = write_rows(folder / "sft.jsonl", rows)
    made = sft.run(
        sft.Config(base=str(base), data=str(data), max_steps=20, learning_rate=2e-3, name="sft", **COMMON), store
    )  # type: ignore[arg-type]
    return store, made, base, write_rows(folder / "pairs.jsonl", pairs)


def answer(model: Any, tokenizer: Any) -> int:
    """Tokens of an answer that is cut at 24."""
    asked = [{"role": "user", "content": "What is 3 plus 4?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return len(model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]) - prompt["input_ids"].shape[1]


def test_a_merged_model_stops_by_itself(turned: tuple[Store, Artifact, Path, Path], tmp_path: Path) -> None:
    """`generate` of plain transformers; how the checkpoint samples stays. Negative control: with the base's EOS alone
    it never stops."""
    store, made, _, _ = turned
    assert made.text and len(made.text["stop_ids"]) == 2
    merge.run(merge.Config(parent="sft", out=tmp_path / "out", threads=1), store)  # type: ignore[arg-type]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert model.generation_config.eos_token_id == made.text["stop_ids"] == model.config.eos_token_id
    assert (model.generation_config.do_sample, model.generation_config.top_p) == (True, 0.9)
    assert answer(model, tokenizer) < 12
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert answer(model, tokenizer) == 24


def test_the_code_of_an_adapter_stops(turned: tuple[Store, Artifact, Path, Path], tmp_path: Path) -> None:
    """Negative control: PEFT's own loading, without the line that the card adds."""
    store, made, base, _ = turned
    folder = checkout(made, tmp_path / "out", store)
    card = (folder / "README.md").read_text()
    assert "`BASE` the folder of its base. That was a folder called `base` where this was made" in card and made.base
    assert made.base["digest"] in card
    code = card.split("```python\n")[1].split("\n```")[0].replace("DIR", str(folder)).replace('"BASE"', repr(str(base)))
    found: dict[str, Any] = {}
    exec(code, found)
    assert answer(found["model"], found["tokenizer"]) < 12 and len(found["answer"]) < 64
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder / "adapters/0"
    )
    assert answer(plain, found["tokenizer"]) == 24


def test_sampling_settings_that_transformers_does_not_save(tmp_path: Path) -> None:
    """A temperature without sampling, as in old checkpoints: it is loaded, and saving it raises."""
    model = AutoModelForCausalLM.from_pretrained(ROOT / "data/tiny-base")
    model.generation_config.update(do_sample=False, temperature=0.6)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.save_pretrained(tmp_path / "plain")
    end_by_contract(model, {"stop_ids": [1, 5], "pad_token_id": 2})
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (again.temperature, again.do_sample, again.eos_token_id, again.pad_token_id) == (0.6, True, [1, 5], 2)


def test_a_pretrained_model_holds_its_stop_ids(trained: Pipeline) -> None:
    made = trained.made["pretrain"]
    model = AutoModelForCausalLM.from_pretrained(trained.store.folder(made) / "model")
    assert made.text and [model.generation_config.eos_token_id] == made.text["stop_ids"]


def test_literals_in_shown_code_are_quoted(trained: Pipeline) -> None:
    """Whatever a base is called, the code names it and does nothing else."""
    made = trained.made["sft"]
    name = 'x"); import os; os.system("touch PWNED"); ("\\\n'
    made = Artifact(
        digest=made.digest,
        **{k: v for k, v in made.manifest.items() if k != "format"} | {"base": {**made.base, "model": name}},
    )  # type: ignore[dict-item]

    assert made.base is not None
    arguments = hub({**made.base, "revision": name})
    (line,) = [line for line in plain_code(made, "DIR", lambda base: str(arguments)) if line.startswith("base = ")]
    found: dict[str, Any] = {
        "AutoModelForCausalLM": type("A", (), {"from_pretrained": staticmethod(lambda *a, **k: (a, k))})
    }
    exec(line, found)
    assert found["base"] == ((name,), {"revision": name, "dtype": "float32"})


# ---- a reward as a sequence classifier -------------------------------------------------------------------------------


def by_align(artifact: Artifact, store: Store, base: Path, rows: list[list[int]]) -> torch.Tensor:
    roles = models.roles.Roles(models.base.load_base(base, quantize=None, dtype=torch.float32))
    folder = store.folder(artifact)
    for i, adapter in enumerate(adapter_folders(folder)):
        roles.load_adapter(f"a{i}", adapter)
    roles.assign("reward", list(roles.configs), models.heads.ScoreHead.load(folder / "head.safetensors"))
    examples = [sampling.rollout.as_example(row[:1], [row[1:]]) for row in rows]
    return torch.as_tensor(measures.passes.scores(roles, "reward", examples, 512), dtype=torch.float32)


@torch.no_grad()
def by_transformers(folder: Path, rows: list[list[int]]) -> torch.Tensor:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == model.config.pad_token_id
    return model(**tokenizer.pad({"input_ids": rows}, return_tensors="pt")).logits[:, 0]


@pytest.mark.parametrize("parent", [pytest.param("base", marks=pytest.mark.slow), "sft"])
def test_a_reward_leaves_as_a_classifier(
    parent: str, turned: tuple[Store, Artifact, Path, Path], tmp_path: Path
) -> None:
    """Scores of a padded batch of dialogues, by transformers alone, are the reward's but for its bias; the base's
    padding token is its EOS, so another one pads. Negative control: the score head of another reward."""
    store, _, base, pairs = turned
    start = {"base": str(base)} if parent == "base" else {"parent": "sft"}
    more: dict[str, Any] = {
        "max_steps": 3,
        "learning_rate": 5e-3,
        "head_learning_rate": 0.05,
        "centre_samples": 4,
        **COMMON,
    }
    made = reward.run(reward.Config(data=str(pairs), name=f"reward-{parent}", **start, **more), store)
    out = tmp_path / "out"
    left = merge.run(merge.Config(parent=f"reward-{parent}", out=out, threads=1), store)  # type: ignore[arg-type]
    assert (
        left.kind == "classifier" and left.metrics["verdict"] == "equal" and left.metrics["preference_agreement"] == 1.0
    )
    renderer = load_renderer(base, None, 96)
    rows = [
        renderer.tokenizer(text)["input_ids"] + [s]
        for text in ("It is 7.", "What is 3 plus 4? It is 12.")
        for s in renderer.stop_ids
    ]
    expected = by_align(made, store, base, rows)
    bias = left.metrics["bias_left_out"]
    assert (
        abs(bias) > 1e-4
        and torch.allclose(by_transformers(out, rows) + bias, expected, atol=1e-5)
        and expected.std() > 1e-3
    )
    alone = torch.cat([by_transformers(out, [row]) for row in rows])
    assert torch.allclose(alone + bias, expected, atol=1e-5)
    more["head_learning_rate"] = 0.02
    other = by_align(
        reward.run(reward.Config(data=str(pairs), name="other", **start, **more), store), store, base, rows
    )
    assert not torch.allclose(expected - expected.mean(), other - other.mean(), atol=1e-5)


def test_a_classifier_is_no_base(turned: tuple[Store, Artifact, Path, Path], tmp_path: Path) -> None:
    """Refused where text is to be written; its card's code scores a dialogue."""
    store, _, base, pairs = turned
    reward.run(reward.Config(data=str(pairs), base=str(base), name="r", max_steps=1, **COMMON), store)  # type: ignore[arg-type]
    left = merge.run(merge.Config(parent="r", name="left", threads=1), store)
    with pytest.raises(
        InputError, match="base: left is a reward that was merged into a sequence classifier, which writes no text"
    ):
        sft.run(sft.Config(base="left", data=str(pairs)), store)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"parent: left is a classifier artifact \(stage merge\), but sft needs"):
        sft.run(sft.Config(parent="left", data=str(pairs)), store)
    with pytest.raises(InputError, match=r"left is a classifier artifact .* plain transformers loads"):
        align.load("left", store)
    folder = checkout(left, tmp_path / "out", store)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("\n```")[0].replace("DIR", str(folder))
    found: dict[str, Any] = {}
    exec(code, found)
    ids = found["inputs"]["input_ids"][0].tolist()
    assert ids[-1] == found["tokenizer"].convert_tokens_to_ids("<|end|>")
    assert torch.allclose(
        found["model"](**found["inputs"]).logits[:, 0], by_transformers(folder / "model", [ids]), atol=1e-6
    )
