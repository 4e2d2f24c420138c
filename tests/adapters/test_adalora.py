"""AdaLoRA in a run of Align's trainer beside PEFT's own model and loop; checkpoints; what PEFT saved of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from torch import Tensor

from align import sft
from align.adapters import adalora
from align.adapters.methods import config_of
from align.data.examples import Example
from align.exchange import foreign
from align.ground.errors import InputError
from align.models import reloads_equal
from align.models.roles import Roles
from align.packed.attention import native_attention
from align.recipe import Adapter
from align.training.checks.allocation import FILE
from align.training.plan import Plan
from align.training.trainer import fit
from tests.conftest import Pipeline
from tests.models.models import VOCAB, make_base, settings
from tests.stages.helpers import run

STEPS, RATE = 10, 0.3
IDS = torch.randint(3, VOCAB, (STEPS, 9), generator=torch.Generator().manual_seed(5)).tolist()
GIVEN = Adapter(method="adalora", rank=4, alpha=8.0, target_rank=2)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),  # of PEFT, loading its own
]


def fresh() -> Roles:
    torch.manual_seed(7)
    roles = Roles(make_base())
    roles.add_adapter("policy", config_of(GIVEN, roles.base))
    roles.assign("policy", ["policy"])
    return roles


def plan() -> Plan:
    examples = [Example((row,), ([False] + [True] * 8,)) for row in IDS]
    return Plan(examples, batch_size=1, epochs=1, max_steps=STEPS, tokens_per_microbatch=64, seed=0)


def trained(roles: Roles, folder: Path, loss: Any = sft.loss, **changes: Any) -> list[dict[str, float]]:
    roles.train_only("policy")
    plain = {"optimizer": "sgd", "learning_rate": RATE, "max_grad_norm": 0.0}
    config = settings(sft.Config, **{**plain, **changes})
    return fit(roles, loss, plan(), config, title="run", checkpoints=folder / "checkpoints")[0]


def of_peft(roles: Roles) -> Any:
    """PEFT's model, started where ours is, after its own loop over the same steps."""
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, total_step=STEPS, tinit=1, tfinal=3, target_modules="all-linear"
    )
    model: Any = get_peft_model(make_base(), config)
    for name, p in tensors(roles).items():
        model.get_parameter(f"base_model.model.{name}.default").data.copy_(p)
    own = [p for p in model.parameters() if p.requires_grad]
    for step, (chosen,) in enumerate((plan().chosen(i) for i in range(STEPS)), 1):
        ids = torch.tensor([IDS[chosen]])
        with native_attention(model.base_model.model):
            model.base_model(input_ids=ids, labels=ids).loss.backward()  # in fp32, with the term for P and Q
        with torch.no_grad():
            for p in own:
                p -= RATE * p.grad
        model.base_model.update_and_allocate(step)
        model.zero_grad()
    return model


def tensors(roles: Roles) -> dict[str, Tensor]:
    ours = ((key, p) for key, p in roles.base.named_parameters() if key.endswith(".policy"))
    return {key.removesuffix(".policy"): p.detach().clone() for key, p in ours}


def logits(model: Any) -> Tensor:
    with native_attention(model.base_model.model), torch.no_grad():
        return torch.as_tensor(model(torch.tensor(IDS)).logits)


def test_it_trains_as_pefts_own_loop(tmp_path: Path) -> None:
    """Loss, orthogonality, importance and masks of ten steps; of four ranks two are left on average."""
    roles, start = fresh(), fresh()
    theirs, history = of_peft(start), trained(roles, tmp_path)
    mine = tensors(roles)
    for key, p in mine.items():
        truth = theirs.get_parameter(f"base_model.model.{key}.default")
        torch.testing.assert_close(p, truth.detach(), rtol=0, atol=1e-6)
    left = [int((p != 0).sum()) for key, p in mine.items() if key.endswith("lora_E")]
    assert sum(left) == 2 * len(left) and len({*left}) > 1
    assert history[0]["ranks"] == 4 and history[-1]["ranks"] == 2
    assert all(row["orthogonality"] > 0 for row in history)
    # negative control: without the term of the loss it would be another adapter
    other = fresh()
    other.configs["policy"].orth_reg_weight = 0.0  # type: ignore[attr-defined]
    trained(other, tmp_path / "other")
    assert max((p - tensors(other)[key]).abs().max() for key, p in mine.items()) > 1e-4

    # what PEFT saves leaves masked ranks out; with them it is the same function
    theirs.save_pretrained(tmp_path / "peft")
    settings_, weights = (tmp_path / "peft" / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    pattern = json.loads(settings_.read_text())["rank_pattern"]
    (tmp_path / "full").mkdir()
    shutil.copy(settings_, tmp_path / "full")
    foreign.write_in_full(weights, pattern, tmp_path / "full/adapter_model.safetensors")
    again = Roles(make_base())
    again.load_adapter("policy", tmp_path / "full")
    again.assign("policy", ["policy"])
    plain = PeftModel.from_pretrained(make_base(), str(tmp_path / "peft"))
    with again.use("policy"), native_attention(again.base), torch.no_grad():
        found = again.base(torch.tensor(IDS)).logits
    torch.testing.assert_close(found, logits(plain), rtol=0, atol=1e-5)
    with again.use("base"), native_attention(again.base), torch.no_grad():
        assert (again.base(torch.tensor(IDS)).logits - found).abs().max() > 1e-3
    with pytest.raises(InputError, match=r"does not hold what adapter_config.json's rank_pattern names"):
        foreign.write_in_full(weights, {"no.such.lora_E": [True]}, tmp_path / "x")


def test_a_matrix_without_a_rank_still_trains() -> None:
    """What is put back of it is nothing in the sum, and something that gradients reach."""
    shapes = {"lora_A": (0, 6), "lora_E": (0, 1), "lora_B": (4, 0)}
    empty = {f"base_model.model.q.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    found = adalora.in_full(empty, {"q.lora_E": [False, False]})
    a, e, b = (found[f"base_model.model.q.{name}"] for name in shapes)
    assert (a.shape, e.shape, b.shape) == ((2, 6), (2, 1), (4, 2))
    assert not e.any() and a.all() and b.all()


def test_copies_agree_in_16_bits(tmp_path: Path) -> None:
    """The first adapter of a base and a copy of it beside, whose numbers are large, as in what PEFT trained long. PEFT
    has the ranks of the first in bf16 and of the second in fp32, and divides by 4 and by 4.00001."""
    torch.manual_seed(7)
    roles = Roles(make_base().to(torch.bfloat16))
    roles.add_adapter("policy", config_of(GIVEN, roles.base))
    with torch.no_grad():
        for p in roles.adapter_parameters("policy"):
            p.normal_(std=3.0)
    roles.save_adapter("policy", tmp_path / "saved", "base")
    roles.load_adapter("second", tmp_path / "saved")
    for role, name in (("policy", "policy"), ("reference", "second")):
        roles.assign(role, [name])
    assert reloads_equal.probe_difference(roles, "policy", roles, "reference") == 0.0
    for layer in roles.adapted:  # negative control
        layer.ranknum["policy"] = layer.ranknum["policy"].to(torch.bfloat16)
    assert reloads_equal.probe_difference(roles, "policy", roles, "reference") > 0.0


def test_what_was_stopped_goes_on(tmp_path: Path) -> None:
    """Bit for bit, with what the allocator remembers."""
    whole, first, second = fresh(), fresh(), fresh()
    trained(whole, tmp_path / "whole", checkpoint_steps=0)
    asked = []

    def dies(roles: Roles, batch: Any) -> Any:
        asked.append(batch)
        if len(asked) == 6:
            raise RuntimeError("the machine went down")
        return sft.loss(roles, batch)

    with pytest.raises(RuntimeError, match="went down"):
        trained(first, tmp_path / "run", dies, checkpoint_steps=4)
    (kept,) = (tmp_path / "run/checkpoints").glob("checkpoint-*")
    saved = torch.load(kept / FILE, weights_only=True)
    trained(second, tmp_path / "run", checkpoint_steps=4)
    assert all(torch.equal(p, tensors(second)[key]) for key, p in tensors(whole).items())
    # negative control: without what it remembers, other ranks would be kept
    assert saved["policy"]["ipt"] and any(not torch.equal(p, tensors(first)[key]) for key, p in tensors(whole).items())


@pytest.mark.slow
def test_what_goes_on_from_it_keeps_its_ranks(tmp_path: Path) -> None:
    roles = fresh()
    trained(roles, tmp_path / "first")
    before = {key: p != 0 for key, p in tensors(roles).items() if key.endswith("lora_E")}
    history = trained(roles, tmp_path / "second")
    after = tensors(roles)
    assert all(torch.equal(kept, after[key] != 0) for key, kept in before.items())
    assert {row["ranks"] for row in history} == {2.0}


def test_what_it_cannot_be(pipeline: Pipeline) -> None:
    for rank, left, said in ((4, 4, "rank is 4, and adalora is to leave 4"), (1, None, "to leave 1, so that none")):
        with pytest.raises(ValidationError, match=said):
            Adapter(method="adalora", rank=rank, target_rank=left)
    assert "target_rank" in Adapter(method="lora").idle() and "target_rank" not in GIVEN.idle()
    shape = {"parent": None, "base": {"model": "data/tiny-base"}, "adapter": {"method": "adalora", "rank": 4}}
    for more, said in (
        ({"keep": "best", "eval_steps": 1}, "keep: best gives out other weights than the last"),
        ({"optimizer": "schedule_free_adamw", "lr_scheduler": "constant"}, "optimizer schedule_free_adamw gives out"),
    ):
        with pytest.raises(InputError, match=said):
            run(pipeline, "sft", **shape, **more, name="x")
    with pytest.raises(InputError, match="takes ranks away by what the steps before show, and 1 is to be taken"):
        run(pipeline, "sft", **shape, max_steps=1, name="x")
