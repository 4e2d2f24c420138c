"""GaLore, by transformers' names, where all weights train: the steps that transformers' own Trainer takes with the
package, settings that it leaves out, checkpoints, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, Trainer, TrainingArguments

from align import pretrain
from align.ground.errors import InputError
from align.ground.terminal import overheard
from align.memory import sizes
from align.memory.shapes import Shape
from align.models.roles import Roles
from align.training import optimizers
from align.training.plan import Plan
from align.training.trainer import StageTrainer, fit
from tests.models.models import CONFIGS, SIZES, make_base, settings
from tests.training.test_invariants import pairs

pytest.importorskip("galore_torch")
pytestmark = pytest.mark.filterwarnings("ignore:This implementation of AdamW is deprecated:FutureWarning")
NAMES = ("galore_adamw", "galore_adafactor")
STEPS, RATE = 4, 0.01
ARGS: dict[str, Any] = {"rank": 4, "update_proj_gap": 2, "scale": 0.5}


def config(name: str, **changes: Any) -> Any:
    given = {"optimizer": name, "optim_args": ARGS, "learning_rate": RATE, "weight_decay": 0.0}
    return settings(pretrain.Config, **{**given, "lr_scheduler": "constant", **changes})


def trained(folder: Path, name: str, family: str = "llama", **changes: Any) -> dict[str, Tensor]:
    roles = Roles(make_base(family, changes.pop("dtype", torch.float64)))
    roles.assign("policy", [])
    roles.train_base()
    plan = Plan(pairs(6), batch_size=2, epochs=1, max_steps=STEPS, tokens_per_microbatch=64, seed=0)
    fit(roles, pretrain.loss, plan, config(name, **changes), title="run", checkpoints=folder / "checkpoints")
    return {name: p.detach().clone() for name, p in roles.base.named_parameters()}


def of_transformers(name: str, model: Any, folder: Path) -> torch.optim.Optimizer:
    """What its Trainer makes: of modules named as in the authors' runs, attention's and the feed-forward's."""
    args = TrainingArguments(
        str(folder),
        optim=name,
        optim_target_modules=["attn", "mlp"],
        optim_args="rank=4,update_proj_gap=2,scale=0.5",
        learning_rate=RATE,
        use_cpu=True,
    )
    return Trainer(model, args).create_optimizer()


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's gradients, after clipping, taken again by the optimizer that transformers makes."""
    taken: list[dict[str, Tensor]] = []
    create = optimizers.create

    def noting(given: Any, args: Any, roles: Any) -> Any:
        made = create(given, args, roles)
        of = lambda: {n: p.grad.clone() for n, p in roles.base.named_parameters() if p.grad is not None}  # noqa: E731
        made.register_step_pre_hook(lambda *_: taken.append(of()))
        return made

    monkeypatch.setattr(optimizers, "create", noting)
    found = trained(tmp_path, name)
    model = make_base()
    theirs = of_transformers(name, model, tmp_path)
    assert len(taken) == STEPS
    for grads in taken:
        for key, p in model.named_parameters():
            p.grad = grads.get(key)
        theirs.step()
    assert all(torch.equal(found[key], p) for key, p in model.named_parameters())
    # negative controls: without a projection, and with the weight decay and the beta2 that transformers leaves out
    plain = trained(tmp_path / "plain", name.removeprefix("galore_").replace("adamw", "adamw_torch"), optim_args={})
    decayed = trained(tmp_path / "decayed", name, weight_decay=0.5)
    assert not any(torch.equal(found[key], plain[key]) for key in found if "proj" in key)
    assert not any(torch.equal(found[key], decayed[key]) for key in found if "proj" in key)
    if name == "galore_adamw":
        other = trained(tmp_path / "other", name, adam_beta2=0.5)
        assert not any(torch.equal(found[key], other[key]) for key in found if "proj" in key)


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three steps of a projection that changes every second one."""
    whole, step = trained(tmp_path / "whole", name, checkpoint_steps=1), StageTrainer.training_step

    def dying(self: StageTrainer, *given: Any) -> Tensor:
        if self.state.global_step == 3:
            raise OSError("pulled the plug")
        return step(self, *given)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="pulled"):
        patch.setattr(StageTrainer, "training_step", dying)
        trained(tmp_path / "again", name, checkpoint_steps=1)
    assert (tmp_path / "again/checkpoints/checkpoint-3").is_dir()
    resumed = trained(tmp_path / "again", name, checkpoint_steps=1)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_what_the_plan_counts(name: str, tmp_path: Path) -> None:
    """Adafactor's rows and columns, and vectors, are left out of the plan."""
    model = make_base(dtype=torch.float32)
    optimizer = of_transformers(name, model, tmp_path)
    for p in model.parameters():
        p.grad = torch.randn(p.shape)
    optimizer.step()
    held = 0
    for state in optimizer.state.values():
        projector = getattr(state.get("projector"), "ortho_matrix", None)
        held += sum(t.nbytes for t in (*state.values(), projector) if isinstance(t, Tensor) and t.ndim > 1)
    shape = Shape.from_config(model.config.to_dict())
    assert isinstance(shape, Shape)
    assert held == pytest.approx(sizes.optimizer_of_all(shape, name, {"rank": 4}), rel=0.05)


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    """GPT-2, whose layers are all Conv1D, would have no gradient projected."""
    with pytest.raises(InputError, match="this base's are transformers' Conv1D, as in GPT-2"):
        trained(tmp_path, "galore_adamw", "gpt2")


def test_what_is_not_projected_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routed experts lie in tensors of three dimensions; negative control: a base of matrices alone."""
    monkeypatch.setitem(CONFIGS, "mixtral", MixtralConfig(**SIZES, num_local_experts=4))
    with overheard() as said:
        trained(tmp_path / "experts", "galore_adamw", "mixtral", dtype=torch.float32)
    assert [line for line in said if "such as routed experts, and keeps its moments in full" in line]
    with overheard() as said:
        trained(tmp_path / "plain", "galore_adamw")
    assert not [line for line in said if "routed experts" in line]


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers.check("galore_adamw", torch.device("cpu"))
    monkeypatch.setattr(optimizers, "is_galore_torch_available", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'align-rlhf\[galore\]'"):
        optimizers.check("galore_adamw", torch.device("cpu"))
