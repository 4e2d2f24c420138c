"""PiSSA and OLoRA on a base that stays as it is: PEFT's own models, which rewrite theirs, are the truth."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from align.adapters import starts
from align.adapters.methods import config_of
from align.ground.errors import InputError
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.packed import forward
from align.packed.attention import native_attention
from align.recipe import Adapter
from align.training.checks.start import added, same_weights, takes_off
from tests.conftest import Pipeline
from tests.models.models import make_base
from tests.stages.helpers import forget, run
from tests.training.test_first_step import trained

ROW = [1, 5, 9, 33, 7, 8, 9, 10, 4]
KINDS = ("pissa", "pissa_niter_16", "olora")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def started(kind: str, family: str = "llama", dtype: torch.dtype = torch.float32, **more: Any) -> Roles:
    """A base with PiSSA's adapter as `on_base.add_policy` puts it there."""
    roles = Roles(make_base(family, dtype))
    config = config_of(Adapter(rank=4, alpha=8.0, init_lora_weights=kind, **more), roles.base)  # type: ignore[arg-type]
    roles.add_adapter("start", deepcopy(config))
    roles.add_adapter("policy", config)
    torch.manual_seed(3)
    starts.take_off(roles.adapted, kind, "policy", "start")
    roles.assign("policy", ["start", "policy"])
    return roles


def logits(roles: Roles, role: str) -> Tensor:
    with roles.use(role), torch.no_grad(), native_attention(roles.base):
        return forward.logits(roles.base, torch.tensor([ROW]))


def of_peft(kind: str, rslora: bool) -> Any:
    """PEFT's own model, whose base it has rewritten."""
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=rslora,
        init_lora_weights=kind,
        target_modules="all-linear",  # type: ignore[arg-type]
    )
    return get_peft_model(make_base(dtype=torch.float32), config)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_pefts_on_a_base_that_stays(kind: str, rslora: bool, tmp_path: Path) -> None:
    """The factors are PEFT's bit for bit, and after training the function is PEFT's, where PEFT changed its base."""
    roles, theirs = started(kind, method="rslora" if rslora else "lora"), of_peft(kind, rslora)
    base = make_base(dtype=torch.float32)
    before = {name: p for name, p in base.named_parameters()}
    assert all(torch.equal(p, before[name]) for name, p in roles.base_parameters())
    own = theirs.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert not torch.equal(own, before["model.layers.0.mlp.up_proj.weight"])  # negative control
    factors = {name: p for name, p in theirs.named_parameters() if "lora_" in name}
    for name, p in factors.items():
        ours = roles.get_parameter(name.replace("base_model.model.", "base.").replace(".default.", ".policy."))
        if kind != "pissa_niter_16":  # whose draws follow the order of the layers
            assert torch.equal(ours, p)
        with torch.no_grad():
            p.copy_(ours)
    torch.testing.assert_close(logits(roles, "policy"), logits(roles, "base"), rtol=0, atol=2e-5)
    if kind == "pissa_niter_16":
        return
    trained(tmp_path, roles=roles, learning_rate=0.02)
    for name, p in factors.items():
        with torch.no_grad():
            p.copy_(roles.get_parameter(name.replace("base_model.model.", "base.").replace(".default.", ".policy.")))
    with torch.no_grad(), native_attention(theirs.base_model.model):
        want = theirs(torch.tensor([ROW])).logits
    torch.testing.assert_close(logits(roles, "policy"), want, rtol=0, atol=1e-4)
    assert (want - logits(roles, "base")).abs().max() > 0.01  # negative control
    merged = Roles(MergedCopy(roles, "policy").merged())
    torch.testing.assert_close(logits(merged, "base"), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_starts_at_the_base(family: str) -> None:
    """To rounding: in fp64 twelve digits. Policy and reference are the same, and a start half taken off is not."""
    roles = started("pissa", family, torch.float64)
    torch.testing.assert_close(logits(roles, "policy"), logits(roles, "base"), rtol=0, atol=1e-11)
    assert added(roles, "policy") == [] and same_weights(roles, "policy", "base")
    one, other = (roles.adapter_state(name) for name in ("policy", "start"))
    assert takes_off(one, other)
    with torch.no_grad():  # negative control
        next(p for name, p in roles.named_parameters() if "lora_B.start" in name)[0, 0] += 1e-3
    assert len(added(roles, "policy")) == 2 and not same_weights(roles, "policy", "base")


def test_what_it_cannot_be() -> None:
    with pytest.raises(InputError, match=r"adapter.rank is 40, and .* has no more than 32 parts, of which init_lora"):
        config_of(Adapter(rank=40, init_lora_weights="pissa"), make_base())
    for name, value in (("dropout", 0.1), ("experts", True)):
        with pytest.raises(ValueError, match=f"init_lora_weights is olora, which goes without {name}. Leave one"):
            Adapter(init_lora_weights="olora", **{name: value})  # type: ignore[arg-type]
    assert "init_lora_weights" in Adapter(method="dora", init_lora_weights="pissa").idle()
    assert "init_lora_weights" not in Adapter(method="rslora", init_lora_weights="pissa").idle()  # negative control


CHANGES: dict[str, Any] = {"adapter": {"rank": 4, "init_lora_weights": "pissa"}, "max_steps": 2, "name": "tiny/pissa"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "ppo"])
def test_it_is_a_parent(stage: str, pipeline: Pipeline) -> None:
    """Two adapters, of which the second trains on; what takes the start off stays, bit for bit, and so does the base,
    which policy and reference share. A run that is asked for again finds the same."""
    first = run(pipeline, "sft", **CHANGES)
    assert len([path for path in first.files if path.endswith("adapter_model.safetensors")]) == 2
    more = {"parent": "tiny/pissa", "parent_adapter": "continue", "adapter": None, "max_steps": 2, "name": "x"}
    second = run(pipeline, stage, **more)
    start, policy = (f"adapters/{i}/adapter_model.safetensors" for i in (0, 1))
    assert second.files[start]["sha256"] == first.files[start]["sha256"]
    assert second.files[policy]["sha256"] != first.files[policy]["sha256"]
    assert first.base == second.base == pipeline.store.resolve("tiny/sft").base
    forget(pipeline.store, first)
    assert run(pipeline, "sft", **CHANGES).digest == first.digest
