"""Each optimizer takes the steps of transformers' own, bit for bit, goes on from a checkpoint as if nothing had been,
and holds as many bytes as the plan of memory says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, get_scheduler

from align import reward, sft
from align.adapters.targets import lora_config
from align.ground.errors import InputError
from align.memory.sizes import OPTIMIZER_BYTES
from align.recipe.optimizers import GALORE, SCHEDULE_FREE, UNPAGED, OptimizerName
from align.training import optimizers
from align.training.arguments import arguments
from align.training.noise import apart
from align.training.plan import Plan
from align.training.trainer import StageTrainer, fit
from tests.models.models import make_roles, settings
from tests.training.test_invariants import pairs

NAMES = get_args(OptimizerName)
ON_CPU = [name for name in NAMES if name not in UNPAGED and not name.startswith(GALORE)]
STEPS = 4


def some(*quick: str) -> list[Any]:
    """All names; those that are computed by the same code as a quick one are slow tests."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in [*ON_CPU, "neftune"]]


def config(optimizer: str, **changes: Any) -> Any:
    free = {"lr_scheduler": "constant"} if optimizer.startswith(SCHEDULE_FREE) else {"lr_scheduler": "linear"}
    return settings(
        sft.Config, **{"optimizer": optimizer, "learning_rate": 0.02, "weight_decay": 0.1, **free, **changes}
    )


def start() -> Any:
    """An adapter of rank 128, large enough for moments of 8 bits, whose B are not zero."""
    roles = make_roles(dtype=torch.float32, adapters=())
    roles.add_adapter("policy", lora_config(128, 128, ["up_proj", "down_proj"], 0.0, roles.base))
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    draw = torch.Generator().manual_seed(3)
    for p in roles.trainable().values():
        p.data = 0.1 * torch.randn(p.shape, generator=draw)
    return roles


def trained(roles: Any, folder: Path, **changes: Any) -> dict[str, Tensor]:
    plan = Plan(
        pairs(6),
        batch_size=2,
        epochs=1,
        max_steps=STEPS,
        tokens_per_microbatch=64,
        seed=0,
        prepare=lambda some, step: apart(some),
    )
    fit(roles, sft.loss, plan, config(**changes), title="run", checkpoints=folder / "checkpoints")
    return {name: p.detach().clone() for name, p in roles.trainable().items()}


def of_transformers(name: str, module: nn.Module, folder: Path) -> torch.optim.Optimizer:
    """The optimizer that its Trainer makes for a module; Muon is torch's."""
    if name == "muon":
        return torch.optim.Muon(module.parameters(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    args = TrainingArguments(str(folder), optim=name, learning_rate=0.02, weight_decay=0.1, use_cpu=True)
    return Trainer(module, args).create_optimizer()


@pytest.mark.parametrize("name", some("adamw_8bit", "adafactor", "muon", "schedule_free_adamw")[:-1])
def test_steps_are_those_of_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's gradients, after clipping, taken again by the optimizer and the schedule that transformers makes."""
    taken: list[dict[str, Tensor]] = []
    create, roles = optimizers.create, start()
    before = {name: p.detach().clone() for name, p in roles.trainable().items()}

    def noting(*given: Any) -> Any:
        made = create(*given)
        grads = lambda *_: taken.append({n: p.grad.clone() for n, p in roles.trainable().items()})  # noqa: E731
        made.register_step_pre_hook(grads)
        return made

    monkeypatch.setattr(optimizers, "create", noting)
    found = trained(roles, tmp_path, optimizer=name)
    module = nn.Module()
    for i, tensor in enumerate(before.values()):
        module.register_parameter(f"p{i}", nn.Parameter(tensor.clone()))
    theirs = of_transformers(name, module, tmp_path)
    schedule = get_scheduler("constant" if name.startswith(SCHEDULE_FREE) else "linear", theirs, 0, STEPS)
    free: Any = theirs
    assert len(taken) == STEPS
    for grads in taken:
        if name.startswith(SCHEDULE_FREE):
            free.train()
        for p, grad in zip(module.parameters(), grads.values(), strict=True):
            p.grad = grad
        theirs.step()
        schedule.step()
    at_gradients = [p.detach().clone() for p in module.parameters()]
    if name.startswith(SCHEDULE_FREE):
        free.eval()
        # negative control: what comes out is the average, not where the last gradient was taken
        assert not any(map(torch.equal, found.values(), at_gradients))
    assert all(map(torch.equal, found.values(), module.parameters()))
    assert not any(map(torch.equal, found.values(), before.values()))


def test_a_schedule_free_warm_up_is_its_own(tmp_path: Path) -> None:
    """The warm-up of the schedule and that of the package give the same rates; both at once would be their square."""
    given = config("schedule_free_adamw", lr_scheduler="constant_with_warmup", warmup_ratio=0.5)
    args = arguments(given, STEPS, tmp_path, "run", False)
    assert args.warmup_steps == 2
    assert optimizers.create(given, args, start()).param_groups[0]["warmup_steps"] == 0


@pytest.mark.parametrize("name", some("muon", "schedule_free_adamw", "neftune"))
def test_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"optimizer": name, "checkpoint_steps": 2}
    if name == "neftune":
        changes |= {"optimizer": "adamw_torch", "neftune_noise_alpha": 5.0}
    whole = trained(start(), tmp_path / "whole", **changes)

    def interrupted(folder: Path) -> None:
        step = StageTrainer.training_step

        def dying(self: StageTrainer, *given: Any) -> Tensor:
            if self.state.global_step == 3:
                raise OSError("pulled the plug")
            return step(self, *given)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="pulled"):
            patch.setattr(StageTrainer, "training_step", dying)
            trained(start(), folder, **changes)

    interrupted(tmp_path / "again")
    resumed = trained(start(), tmp_path / "again", **changes)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    if name in ("schedule_free_adamw", "neftune"):  # negative control: the state is what makes them equal
        interrupted(tmp_path / "lost")
        lost = "rng_state.pth" if name == "neftune" else "optimizer.pt"
        (tmp_path / "lost" / "checkpoints" / "checkpoint-2" / lost).unlink()
        other = trained(start(), tmp_path / "lost", **changes)
        assert not all(torch.equal(other[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ON_CPU)
def test_memory_is_what_the_plan_counts(name: str, tmp_path: Path) -> None:
    """Of a matrix of 512 x 512; the scales of 8 bits and Adafactor's rows and columns are less than a sixteenth."""
    parameter = nn.Parameter(torch.ones(512, 512))
    module = nn.ParameterList([parameter])
    optimizer: Any = of_transformers(name, module, tmp_path)
    if name.startswith(SCHEDULE_FREE):
        optimizer.train()
    parameter.grad = torch.ones(512, 512)
    optimizer.step()
    held = sum(t.nbytes for t in optimizer.state[parameter].values() if isinstance(t, Tensor))
    assert held / parameter.numel() == pytest.approx(OPTIMIZER_BYTES[name], abs=0.06)


def test_muon_with_a_head_is_torchs_two() -> None:
    """Matrices take Muon's steps, a head AdamW's, and a state that was saved brings both back."""
    given = settings(reward.Config, optimizer="muon", learning_rate=0.02, weight_decay=0.1, head_learning_rate=0.3)
    draw = torch.Generator().manual_seed(0)
    gradients: list[list[Tensor]] = []

    def made(state: Any = None) -> tuple[Any, list[Tensor]]:
        roles = start()
        roles.assign("policy", ["policy"], roles.new_head().to(torch.float32))
        roles.train_only("policy", heads=["policy"])
        optimizer = optimizers.create(given, arguments(given, STEPS, Path("none"), "run", False), roles)
        return optimizer, list(roles.trainable().values())

    def steps(optimizer: Any, parameters: list[Tensor], which: list[int]) -> None:
        for i in which:
            for p, g in zip(parameters, gradients[i], strict=True):
                p.grad = g.clone()
            optimizer.step()

    whole, ours = made()
    gradients += [[torch.randn(p.shape, generator=draw) for p in ours] for _ in range(STEPS)]
    steps(whole, ours, [0, 1, 2, 3])
    _, twin = made()
    matrices, head = [p for p in twin if p.ndim == 2], [p for p in twin if p.ndim == 1]
    assert len(head) == 1
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(head, lr=0.3, weight_decay=0.0)
    for part in gradients:
        for p, g in zip(twin, part, strict=True):
            p.grad = g.clone()
        muon.step()
        adam.step()
    assert all(map(torch.equal, ours, twin))
    first, half = made()
    steps(first, half, [0, 1])
    second, rest = made()
    for p, q in zip(rest, half, strict=True):
        p.data = q.data.clone()
    second.load_state_dict(first.state_dict())
    steps(second, rest, [2, 3])
    assert all(map(torch.equal, ours, rest))


def test_loraplus_has_pefts_rates() -> None:
    roles = start()
    given = config("adamw_torch", loraplus_lr_ratio=16.0)
    ours = {id(p): g["lr"] for g in optimizers.grouped(given, roles) for p in g["params"]}  # type: ignore[attr-defined]
    theirs = create_loraplus_optimizer(roles.base, torch.optim.AdamW, lr=0.02, loraplus_lr_ratio=16.0)
    assert ours == {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    assert set(ours.values()) == {0.02, 0.32}
    assert {g["lr"] for g in optimizers.grouped(config("adamw_torch"), roles)} == {0.02}  # negative control


@pytest.mark.parametrize("name", UNPAGED)
def test_paged_is_for_gpus(name: str) -> None:
    with pytest.raises(InputError, match=f"computes on the CPU. Take {UNPAGED[name]}, which"):
        optimizers.check(name, torch.device("cpu"))
    optimizers.check(name, torch.device("cuda"))
    optimizers.check(UNPAGED[name], torch.device("cpu"))
    assert OPTIMIZER_BYTES[name] == OPTIMIZER_BYTES[UNPAGED[name]]


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers.check("schedule_free_sgd", torch.device("cpu"))
    monkeypatch.setattr(optimizers, "is_schedulefree_available", lambda least: False)
    with pytest.raises(InputError, match=r"pip install 'align-rlhf\[schedule-free\]'"):
        optimizers.check("schedule_free_sgd", torch.device("cpu"))


@pytest.mark.parametrize("name", ["schedule_free_adamw", "adamw_torch"])
def test_a_look_at_the_average_leaves_no_trace(name: str, tmp_path: Path) -> None:
    """Inside, x as the package has it; afterwards y, bit for bit, which there and back would round. Other optimizers
    have one set of weights."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (nn.ParameterDict({"w": torch.linspace(-1, 1, 999)}) for _ in range(2))
    optimizers_of = [of_transformers(name, module, tmp_path) for module in (ours, theirs)]
    whole, plain = AcceleratedOptimizer(optimizers_of[0]), optimizers_of[1]
    for _ in range(3):
        optimizers.to_gradients(whole)
        getattr(plain, "train", lambda: None)()
        ours["w"].grad = torch.randn(999, generator=draw)
        theirs["w"].grad = ours["w"].grad.clone()
        whole.step()
        plain.step()
    before = ours["w"].detach().clone()
    getattr(plain, "eval", lambda: None)()
    with optimizers.averaged(whole, dict(ours.named_parameters())):
        assert torch.equal(ours["w"], theirs["w"])
        assert torch.equal(ours["w"], before) == (name == "adamw_torch")
    assert torch.equal(ours["w"], before)
    if name == "schedule_free_adamw":  # negative control
        optimizers.to_average(whole)
        optimizers.to_gradients(whole)
        assert not torch.equal(ours["w"], before)
