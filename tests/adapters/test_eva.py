"""EVA's start on packed rows of a base that stays as it is, beside PEFT's `initialize_lora_eva_weights`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from pydantic import ValidationError
from torch import Tensor

from align import ppo
from align.adapters import eva
from align.adapters.methods import config_of
from align.data.examples import Example
from align.models.roles import Roles
from align.packed.attention import native_attention
from align.recipe import Adapter
from tests.conftest import Pipeline
from tests.models.models import VOCAB, make_base, settings
from tests.stages.helpers import run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ROWS = torch.randint(3, VOCAB, (24, 12), generator=torch.Generator().manual_seed(5))
GIVEN = Adapter(rank=4, alpha=8.0, init_lora_weights="eva")


def ours(rows: Tensor) -> tuple[Roles, dict[str, Tensor]]:
    roles = Roles(make_base(dtype=torch.float32))
    examples = [Example((row,), ([False] + [True] * 11,)) for row in rows.tolist()]
    found = eva.directions(roles.base, GIVEN, examples, lambda batch: roles.hidden_as("base", batch))
    roles.add_adapter("policy", config_of(GIVEN, roles.base))
    eva.start(roles.base, "policy", found)
    return roles, found


def span(a: Tensor) -> Tensor:
    """The projection onto the rows of A, whatever their signs and order."""
    q = torch.linalg.qr(a.double().T)[0]
    return q @ q.T


def test_directions_are_those_of_peft() -> None:
    roles, found = ours(ROWS)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
    )
    theirs: Any = get_peft_model(make_base(dtype=torch.float32), config, low_cpu_mem_usage=True)
    batch = {"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS)}
    with native_attention(theirs.base_model.model):
        initialize_lora_eva_weights(theirs, [batch], show_progress_bar=False)
    state = {key: tensor for key, tensor in theirs.named_parameters() if "lora_A" in key}
    other = ours(ROWS.flip(1))[1]
    assert len(state) == len(found) > 10
    for layer, mine in found.items():
        truth = state[f"base_model.model.{layer}.lora_A.default.weight"].detach()
        torch.testing.assert_close(span(mine), span(truth), rtol=0, atol=1e-3)
        module: Any = roles.base.get_submodule(layer)
        held = module.lora_A["policy"].weight
        assert torch.equal(held, mine.to(held.dtype))
    assert max((span(other[n]) - span(found[n])).abs().max() for n in found) > 1e-2  # negative control: other rows
    assert not any(bool(t.any()) for key, t in roles.adapter_state("policy").items() if "lora_B" in key)


def test_reinforcement_learning_has_no_records() -> None:
    with pytest.raises(ValidationError, match="eva, which looks at records, and here are prompts alone"):
        settings(ppo.Config, reward="r", adapter=GIVEN)


@pytest.mark.slow
def test_a_parent_of_others(pipeline: Pipeline) -> None:
    """One adapter, on a base whose digest is that of any other's; DPO and PPO go on from it as from any."""
    made = run(pipeline, "sft", adapter={"rank": 4, "alpha": 8.0, "init_lora_weights": "eva"}, name="tiny/eva")
    plain = pipeline.made["sft"]
    assert made.base == plain.base and made.files.keys() == plain.files.keys()
    assert made.files["adapters/0/adapter_model.safetensors"] != plain.files["adapters/0/adapter_model.safetensors"]
    for stage in ("dpo", "ppo"):
        more: dict[str, Any] = {"reward": None, "judges": None} if stage == "none" else {}
        on = run(pipeline, stage, parent="tiny/eva", name=f"tiny/eva-{stage}", **more)
        assert on.parents["parent"] == made.digest
