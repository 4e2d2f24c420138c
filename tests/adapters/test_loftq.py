"""LoftQ on a base in nf4 that stays as it is, beside PEFT's `replace_lora_weights_loftq`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, replace_lora_weights_loftq
from peft.utils import loftq_utils
from pydantic import ValidationError
from torch import Tensor

from align import bco, dpo, kto, ppo, sft
from align.adapters import starts
from align.adapters.methods import config_of
from align.ground.errors import InputError
from align.models.base import load_base, load_whole, prepare
from align.models.roles import Roles
from align.packed import forward
from align.packed.attention import native_attention
from align.recipe import Adapter
from tests.conftest import Pipeline
from tests.models.models import make_base, settings
from tests.stages.helpers import forget, run

ROW = [1, 5, 9, 33, 7, 8, 9, 10, 4]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("whole")
    make_base(dtype=torch.float32).save_pretrained(found)
    (found / "tokenizer.json").write_text("{}")  # a model folder has one
    return found


def in_4_bits(folder: Path) -> Any:
    return load_base(folder, quantize="nf4", dtype=torch.float32)


def started(folder: Path, alpha: float = 4.0, method: str = "lora") -> Roles:
    """As `on_base.correct_quantised` starts the policy."""
    roles = Roles(in_4_bits(folder))
    given = Adapter(method=method, rank=4, alpha=alpha, init_lora_weights="loftq")  # type: ignore[arg-type]
    roles.add_adapter("policy", config_of(given, roles.base))
    roles.assign("policy", ["policy"])
    whole = load_whole(folder)
    layers = {name: m for name, m in roles.base.named_modules() if m in roles.adapted}
    starts.correct(layers, "policy", lambda name: starts.matrix(whole.get_submodule(name)))
    return roles


def factors(model: torch.nn.Module, name: str) -> dict[str, Tensor]:
    return {
        key.replace("base_model.model.", "").replace("base.", "", 1).replace(f".{name}.", "."): p.detach()
        for key, p in model.named_parameters()
        if "lora_" in key
    }


class OnCpu:
    """A stored matrix that PEFT would move to a GPU, where it computes."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def to(self, device: str, dtype: torch.dtype) -> Tensor:
        return self.tensor.to(dtype)


def of_peft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    model = get_peft_model(in_4_bits(folder), LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
    stored = loftq_utils._SafetensorLoader.get_tensor
    monkeypatch.setattr(loftq_utils._SafetensorLoader, "get_tensor", lambda self, name: OnCpu(stored(self, name)))
    replace_lora_weights_loftq(model, model_path=str(folder / "model.safetensors"))
    return factors(model, "default")


@pytest.mark.parametrize(("method", "alpha"), [("lora", 4.0), ("lora", 8.0), ("rslora", 4.0)])
def test_it_starts_where_peft_starts(method: str, alpha: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factors are PEFT's bit for bit where alpha / rank is 1; elsewhere s B A is still what PEFT means."""
    roles, theirs = started(folder, alpha, method), of_peft(folder, monkeypatch)
    ours = factors(roles, "policy")
    assert ours.keys() == theirs.keys() and len(ours) == 28
    scale = 1 if alpha == 4 and method == "lora" else 2
    for key in (key for key in ours if "lora_A" in key):
        other = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(scale * ours[other] @ ours[key], theirs[other] @ theirs[key], rtol=0, atol=1e-6)
        assert torch.equal(ours[key], theirs[key]) is (scale == 1)


def logits(roles: Roles, role: str) -> Tensor:
    with roles.use(role), torch.no_grad(), native_attention(roles.base):
        return forward.logits(roles.base, torch.tensor([ROW]))


def test_it_is_nearer_to_the_whole_base(folder: Path) -> None:
    """Each matrix by what eq. 7's rank takes off the error, and with them the logits; the base in 4 bits stays."""
    roles, whole = started(folder, alpha=8.0), Roles(prepare(load_whole(folder)))
    plain = dict(in_4_bits(folder).named_parameters())
    assert all(torch.equal(p, plain[name]) for name, p in roles.base_parameters())
    for name, layer in ((n, m) for n, m in roles.base.named_modules() if m in roles.adapted):
        made: Any = layer
        lost = starts.matrix(whole.base.get_submodule(name)) - starts.matrix(made)
        after = lost - made.get_delta_weight("policy")
        best = torch.linalg.svdvals(lost)[4:].square().sum().sqrt()  # Eckart-Young
        torch.testing.assert_close(after.norm(), best, rtol=1e-4, atol=0)
        assert after.norm() < 0.9 * lost.norm()
    truth = logits(whole, "base")
    assert (logits(roles, "policy") - truth).norm() < 0.9 * (logits(roles, "base") - truth).norm()


@pytest.mark.parametrize("stage", [dpo, kto, bco, ppo])
def test_a_base_in_4_bits_is_no_reference_of_it(stage: Any) -> None:
    more = {"reward": "r"} if stage is ppo else {}
    for start in ("loftq", "pissa"):  # the second is the negative control
        given = {"adapter": Adapter(init_lora_weights=start), **more}
        if start == "pissa":
            settings(stage.Config, **given)
            continue
        with pytest.raises(ValidationError, match="loftq, which starts off the base in 4 bits, and here that base is"):
            settings(stage.Config, **given)
    settings(sft.Config, adapter=Adapter(init_lora_weights="loftq"))


def test_a_base_that_lost_nothing_is_refused(pipeline: Pipeline) -> None:
    for more, said in (
        ({}, "base.quantize is None. Set it to nf4"),
        ({"parent": "tiny/sft", "base": None, "parent_adapter": "stack"}, "stack, whose parent has learned to do"),
    ):
        with pytest.raises(InputError, match=f"loftq, which starts at what 4 bits take from .*, and .*{said}"):
            run(pipeline, "sft", adapter={"rank": 4, "init_lora_weights": "loftq"}, name="x", **more)


@pytest.mark.slow
def test_it_is_a_parent(pipeline: Pipeline, tmp_path: Path) -> None:
    """One adapter on the base in 4 bits; DPO and PPO start at it, which they check, and the base is that of any other
    run. A run that is asked for again finds the same."""
    base = pipeline.store.materialise(pipeline.made["pretrain"], tmp_path / "base", "model")
    quantised = {"base": {"model": str(base), "quantize": "nf4"}, "parent": None, "max_steps": 2}
    shape = {"rank": 4, "alpha": 8.0}
    plain = run(pipeline, "sft", **quantised, adapter=shape, name="tiny/plain4")
    changes = {**quantised, "adapter": {**shape, "init_lora_weights": "loftq"}, "name": "tiny/loftq"}
    made = run(pipeline, "sft", **changes)
    assert made.base == plain.base and made.files.keys() == plain.files.keys()
    run(pipeline, "reward", parent="tiny/loftq", name="tiny/loftq-reward", max_steps=2)
    more: dict[str, Any] = {"parent": "tiny/loftq", "parent_adapter": "continue", "adapter": None, "max_steps": 2}
    for stage in ("dpo", "ppo"):
        on = run(pipeline, stage, **more, **({"reward": "tiny/loftq-reward"} if stage == "ppo" else {}), name="x")
        assert on.base == made.base and on.parents["parent"] == made.digest
    forget(pipeline.store, made)
    assert run(pipeline, "sft", **changes).digest == made.digest
