"""Every stage on every family: a tiny random base of each goes through sft, reward, dpo, grpo, merge and import as a
user would drive them.

`pytest -m slow tests/stages/test_families.py` runs all; what is refused is refused in one sentence by the first stage,
as docs/families.md says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align import dpo, grpo, merge, reward, sft
from align.data.formats import read_conversations
from align.exchange.transfer import checkout, import_adapter
from align.ground.errors import AlignError
from align.recipe import Base
from align.rendering.render import load_renderer
from align.store import Artifact, Store
from tests.conftest import write_rows
from tests.models.families import plain
from tests.models.family_models import FAMILIES, build
from tests.stages.helpers import history

QUICK = ("Llama",)
SHARED: dict[str, Any] = dict(
    seed=0, precision="fp32", threads=1, max_length=64, batch_size=4, max_steps=2, logging_steps=1, warmup_ratio=0.0
)
QUESTIONS = [f"Which colour is the {thing}?" for thing in ("ball", "hat", "cup", "box", "car", "pen", "key", "bag")]
PAGE = Path(__file__).parents[2] / "docs/families.md"


def through(base: Path, folder: Path) -> dict[str, Artifact]:
    """What each stage makes on `base`."""
    rows = [{"prompt": q, "completion": "It is red."} for q in QUESTIONS]
    answers = write_rows(folder / "sft.jsonl", rows)
    pairs = write_rows(
        folder / "pairs.jsonl", [{"prompt": q, "chosen": "It is red.", "rejected": "Who knows?"} for q in QUESTIONS]
    )
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": q} for q in QUESTIONS])
    judge = folder / "judge.py"
    judge.write_text(
        "def score(prompts, completions, **kwargs):\n    return [float(sum(map(ord, str(c))) % 97) for c in "
        "completions]\n",
        encoding="utf-8",
    )
    store = Store(folder / "store")
    made = {
        "sft": sft.run(
            sft.Config(base=Base(model=base), data=answers, eval_data=answers, learning_rate=0.01, **SHARED), store
        )
    }
    parent = made["sft"].digest
    made["reward"] = reward.run(
        reward.Config(
            parent=parent, data=pairs, centre_samples=4, centre_max_new_tokens=8, learning_rate=0.01, **SHARED
        ),
        store,
    )
    made["dpo"] = dpo.run(dpo.Config(parent=parent, data=pairs, learning_rate=0.01, **SHARED), store)
    drawn = {key: value for key, value in SHARED.items() if key != "batch_size"}
    sizes = dict(group_size=2, rollout_size=8, batch_size=8, max_new_tokens=8)
    made["grpo"] = grpo.run(
        grpo.Config(parent=parent, data=prompts, judges={"score": f"{judge}:score"}, **sizes, **drawn), store
    )
    made["merge"] = merge.run(merge.Config(parent=parent, out=str(folder / "merged"), dtype="fp32"), store)
    checkout(made["sft"], folder / "checkout", store)
    made["import"] = import_adapter(folder / "checkout/adapters/0", Base(model=base), store)
    return made


def loss_by_transformers(folder: Path, rows: Path) -> float:
    """Nats per counted token of a merged model, by transformers alone, one sequence at a time."""
    renderer, model = load_renderer(folder, None, 96), plain(folder)
    total, count = 0.0, 0
    for example in renderer.conversations(list(read_conversations(rows))):
        (ids,), (mask,) = example.sequences, example.supervised
        with torch.no_grad():
            logprobs = torch.log_softmax(
                model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double(), -1
            )
        picked = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0][torch.tensor(mask[1:])]
        total, count = total - float(picked.sum()), count + len(picked)
    return total / count


def check(name: str, folder: Path) -> None:
    build(name, folder / "base")
    try:
        made = through(folder / "base", folder)
    except AlignError as error:
        assert f"| {name} | refused" in PAGE.read_text(encoding="utf-8"), error
        assert not list((folder / "store/artifacts").rglob("*.json"))
        return
    assert f"| {name} | refused" not in PAGE.read_text(encoding="utf-8")
    store = Store(folder / "store")
    first = history(made["dpo"], store)[0]
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-5)
    said, rows = made["sft"].metrics["eval/loss"], folder / "sft.jsonl"
    assert said == pytest.approx(loss_by_transformers(folder / "merged", rows), abs=2e-4)
    assert abs(said - loss_by_transformers(folder / "base", rows)) > 1e-3  # before training it was another


@pytest.mark.parametrize("name", QUICK)
def test_a_family_of_each_kind_goes_through(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in QUICK])
def test_the_other_families_go_through(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
