"""Every adapter method through the stages: trained, continued, its own reward and value roles beside it, merged; and
what is refused before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from align import dpo, merge, ppo, reward, sft
from align.adapters.methods import METHODS
from align.folders.adapter import IN_FEW_BITS, method_name
from align.ground.errors import InputError
from align.ground.json import Json
from align.memory import Inquiry
from align.recipe import Adapter, Base
from align.stage.ahead.dry_run import memory_plan
from align.stage.question import prepare
from align.store import Artifact, Store
from tests.conftest import ROOT, write_rows

BASE = ROOT / "data/tiny-base"
SUMS = [(f"What is {a} plus {b}?", f"It is {a + b}.") for a in range(4) for b in range(4)]
SIZES: dict[str, Json] = {name: {"block_size": 16} for name in ("oft", "boft", "road", "c3a")}
SIZES |= {name: {"frequencies": 50} for name in ("fourierft", "waveft")}
QUICK = ("oft",)
IDS = torch.arange(3, 40)[None]
# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class World:
    """A store, and rows of every kind."""

    def __init__(self, folder: Path):
        self.folder, self.store = folder, Store(folder / "store")
        write_rows(folder / "rows.jsonl", [{"prompt": asked, "completion": said} for asked, said in SUMS])
        pairs = [{"prompt": asked, "chosen": said, "rejected": "Who knows?"} for asked, said in SUMS]
        write_rows(folder / "pairs.jsonl", pairs)
        write_rows(folder / "prompts.jsonl", [{"prompt": asked} for asked, _ in SUMS])

    def config(self, stage: Any, data: str, **settings: Any) -> Any:
        shared = dict(batch_size=8, max_steps=3, learning_rate=0.01, precision="fp32", threads=1)
        return stage.Config(data=str(self.folder / data), **{**shared, **settings})

    def run(self, stage: Any, data: str, **settings: Any) -> Artifact:
        made: Artifact = stage.run(self.config(stage, data, **settings), self.store)
        return made

    def sft(self, method: str, name: str = "sft", **base: Any) -> Artifact:
        adapter = Adapter(method=method, **SIZES.get(method, {}))  # type: ignore[arg-type]
        whole = Base(model=str(BASE), **base)
        return self.run(sft, "rows.jsonl", base=whole, adapter=adapter, name=name, learning_rate=0.05)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_every_stage(method: str, world: World) -> None:
    """SFT, reward model, DPO and PPO from it, and a merge that plain transformers loads to what PEFT computes."""
    made = world.sft(method)
    assert made.config["adapter"]["method"] == method
    world.run(reward, "pairs.jsonl", parent="sft", name="rm")
    preferred = world.run(dpo, "pairs.jsonl", parent="sft", name="dpo", learning_rate=0.02)
    shared = dict(trust_reward=True, rollout_size=16, max_new_tokens=8, learning_rate=0.001)
    world.run(ppo, "prompts.jsonl", parent="sft", reward=["rm"], **shared)
    merged = merge.run(merge.Config(parent="dpo", precision="fp32", threads=1), world.store)
    assert merged.metrics["verdict"] == "equal"

    def logits(artifact: Artifact, folder: str) -> torch.Tensor:
        place = world.store.folder(artifact) / folder
        whole = BASE if folder != "model" else place
        model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
        if folder != "model":
            model = PeftModel.from_pretrained(model, place).eval()
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=IDS).logits
        return found

    trained = logits(preferred, "adapters/0")
    torch.testing.assert_close(logits(merged, "model"), trained, rtol=0, atol=1e-3)
    assert (logits(made, "adapters/0") - trained).abs().max() > 1e-2  # negative control


@pytest.mark.slow
@pytest.mark.parametrize("method", IN_FEW_BITS)
def test_a_base_in_four_bits(method: str, world: World) -> None:
    world.sft(method, quantize="nf4")
    world.run(dpo, "pairs.jsonl", parent="sft", name="dpo")


def refused(world: World, stage: Any, data: str, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        prepare(stage.STAGE, world.config(stage, data, **settings), world.store)
    return str(error.value)


def test_what_cannot_be_together_is_refused_before_loading(world: World) -> None:
    world.sft("ia3")
    world.sft("lora", "plain")
    base = Base(model=str(BASE))
    stack: Any = dict(parent_adapter="stack")
    said = refused(world, dpo, "pairs.jsonl", parent="sft", **stack)
    assert said.startswith("this stage: an adapter of ia3 cannot be active together with another (ia3, lora)")
    said = refused(world, dpo, "pairs.jsonl", parent="plain", adapter=Adapter(method="dora"), **stack)
    assert "an adapter of dora cannot be active together with another (lora, dora)" in said
    prepare(dpo.STAGE, world.config(dpo, "pairs.jsonl", parent="plain", **stack), world.store)  # negative control

    world.run(reward, "pairs.jsonl", parent="plain", name="rm")
    said = refused(world, ppo, "prompts.jsonl", parent="sft", reward=["rm"])
    assert said.startswith("adapters of different methods cannot lie on one base: parent ia3, reward lora")

    said = refused(world, sft, "rows.jsonl", base=Base(model=str(BASE), quantize="nf4"), adapter=Adapter(method="loha"))
    assert said.startswith("adapter.method loha does not work on a base in nf4")
    said = refused(world, sft, "rows.jsonl", base=base, adapter=Adapter(method="oft", rank=8, dropout=0.1))
    assert said.count("adapter.method oft has none") == 2


def test_no_memory_is_planned_where_it_was_never_counted(world: World) -> None:
    config = world.config(sft, "rows.jsonl", base=Base(model=str(BASE)), adapter=Adapter(method="oft", block_size=16))
    asked = Inquiry(device="cpu", budget=None)
    plan = memory_plan(sft.STAGE, config, world.store, asked)
    assert plan["sft"] == "memory is planned for adapters of lora alone, and this is oft, computed by PEFT's own layers"


def test_names_of_methods() -> None:
    assert method_name({"peft_type": "LORA", "use_dora": True}) == "dora"
    assert method_name({"peft_type": "OFT"}) == "oft"
