"""The first step trains: rates against a list made by hand, gradients of all that is to be trained, and runs in which
nothing can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from align import reward, sft
from align.ground.errors import AlignError, InputError
from align.losses import loss
from align.store import News
from align.training.arguments import arguments
from align.training.checks.reach import Reach, Start
from align.training.plan import Plan
from align.training.step_module import StepModule
from align.training.telling.progress import ProgressLine
from align.training.telling.reporter import Reporter
from align.training.trainer import StageTrainer, fit
from tests.models.models import make_roles, settings
from tests.training.test_invariants import pairs


def trained(
    folder: Path, loss: Any = sft.loss, steps: int = 1, roles: Any = None, heads: tuple[str, ...] = (), **changes: Any
) -> Any:
    """Roles after `steps` steps, and the history."""
    roles = roles or make_roles()
    roles.train_only("policy", heads=heads)
    plan = Plan(pairs(6), batch_size=2, epochs=1, max_steps=steps, tokens_per_microbatch=64, seed=0)
    config = settings(sft.Config, **{"learning_rate": 0.5, "lr_scheduler": "cosine", "warmup_ratio": 0.25, **changes})
    return roles, fit(roles, loss, plan, config, title="run", checkpoints=folder / "checkpoints")[0]


# 8 steps, a quarter of them warm-up, a peak of 0.5: half of it, all of it, and then each schedule as transformers has
# it
COS = [0.5, 0.4665063509461097, 0.375, 0.25, 0.125, 0.0334936490538903]  # 0.25 (1 + cos(pi i / 6))
RATES = {
    "linear": [0.25, 0.5, 0.5, 0.5 * 5 / 6, 0.5 * 4 / 6, 0.25, 0.5 * 2 / 6, 0.5 / 6],
    "cosine": [0.25, 0.5, *COS],
    "constant_with_warmup": [0.25, *[0.5] * 7],
    "constant": [0.5] * 8,
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rates(name: str, tmp_path: Path) -> None:
    _, history = trained(tmp_path, steps=8, lr_scheduler=name, optimizer="sgd")
    assert [row["learning_rate"] for row in history] == pytest.approx(RATES[name], abs=1e-12)


KWARGS: dict[str, dict[str, Any]] = {
    "cosine": {"num_cycles": 1.5},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "polynomial": {"power": 2.0, "lr_end": 0.01},
    "inverse_sqrt": {"timescale": 3},
    "warmup_stable_decay": {"num_decay_steps": 3, "decay_type": "linear", "min_lr_ratio": 0.2},
}


def trainer(optimizer: torch.optim.Optimizer, config: Any, steps: int, folder: Path) -> StageTrainer:
    args = arguments(config, steps, folder, "run", False)
    source = Plan(pairs(2), batch_size=2, epochs=1, max_steps=steps, tokens_per_microbatch=64, seed=0)
    module = StepModule(make_roles(), sft.loss, torch.float64)
    reporter = Reporter(News(folder), ProgressLine("run", (), source.period))
    return StageTrainer(module, args, source, optimizer=optimizer, resume_from=None, callbacks=[], reporter=reporter)


@pytest.mark.parametrize("name", KWARGS)
def test_other_schedules_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """After a warm-up of two steps, and with what the schedule takes."""
    given: dict[str, Any] = {"lr_scheduler": name, "lr_scheduler_kwargs": KWARGS[name], "learning_rate": 0.5}
    config = settings(sft.Config, warmup_ratio=0.25, **given)
    ours, theirs, plain = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(3))
    schedule = trainer(ours, config, 8, tmp_path).create_scheduler(8)
    of_transformers = get_scheduler(name, theirs, 2, 8, scheduler_specific_kwargs=KWARGS[name])
    without = get_scheduler("constant_with_warmup", plain, 2, 8)
    rates = []
    for step in range(8):
        if step >= 2:
            assert schedule.get_last_lr() == of_transformers.get_last_lr()
        rates.append(schedule.get_last_lr() == without.get_last_lr())
        for each in (ours, theirs, plain, schedule, of_transformers, without):
            each.step()
    assert not all(rates[2:])  # negative control: it is not constant


def test_warm_up_stable_decay_by_hand(tmp_path: Path) -> None:
    """Two steps up, three at the peak, three down to a tenth of it: 1 - 0.9 k / 3."""
    kwargs = {"num_decay_steps": 3, "decay_type": "linear", "min_lr_ratio": 0.1}
    _, history = trained(
        tmp_path, steps=8, lr_scheduler="warmup_stable_decay", lr_scheduler_kwargs=kwargs, optimizer="sgd"
    )
    assert [row["learning_rate"] for row in history] == pytest.approx([0.25, *[0.5] * 4, 0.5, 0.35, 0.2], abs=1e-12)
    with pytest.raises(InputError, match=r"num_decay_steps is 3 after 1 of warm-up, but the run has 3 steps. Lower it"):
        trained(tmp_path, steps=3, lr_scheduler="warmup_stable_decay", lr_scheduler_kwargs=kwargs)


def test_transformers_starts_at_zero() -> None:
    """Negative control: its own warm-up, which this one is not."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=8)
    assert scheduler.get_last_lr() == [0.0]


def test_without_warmup_the_schedule_is_transformers_own(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=5)
    expected = []
    for _ in range(5):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    _, history = trained(tmp_path, steps=5, warmup_ratio=0.0)
    assert [row["learning_rate"] for row in history] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_one_step_trains_at_the_full_rate(ratio: float, tmp_path: Path) -> None:
    """SGD without clipping moves every tensor by rate x gradient."""
    before = {k: p.detach().clone() for k, p in make_roles().adapter_state("policy").items()}
    roles, history = trained(tmp_path, warmup_ratio=ratio, optimizer="sgd", max_grad_norm=0.0)
    assert history[0]["learning_rate"] == 0.5
    for name, p in roles.adapter_state("policy").items():
        assert not torch.equal(p, before[name]), name


def test_a_schedule_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the warm-up: the rates after it are those of a run that was not."""
    _, whole = trained(tmp_path / "a", steps=8, warmup_ratio=0.5, checkpoint_steps=1)
    step, taken = StageTrainer.training_step, [0]

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageTrainer, "training_step", dying)
        trained(tmp_path / "b", steps=8, warmup_ratio=0.5, checkpoint_steps=1)
    _, resumed = trained(tmp_path / "b", steps=8, warmup_ratio=0.5, checkpoint_steps=1)
    rates = [[row["learning_rate"] for row in rows] for rows in (whole, resumed)]
    assert rates[0] == rates[1] and len(set(rates[0])) > 4
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]


def test_a_head_of_zeros_holds_the_adapter_back_for_a_step(tmp_path: Path) -> None:
    """The score head starts at zero, so in the first step nothing but the head gets a gradient; that is no reason to
    stop."""
    from align.models.heads import ScoreHead

    roles = make_roles()
    roles.assign("policy", ["policy"], ScoreHead(32).double())
    before = roles.heads["policy"].weight.detach().clone()
    roles, _ = trained(tmp_path, lambda r, b: reward.loss(r, b, 0.0), roles=roles, heads=("policy",), steps=4)
    assert not torch.equal(roles.heads["policy"].weight, before)


def test_what_gets_no_gradient_stops_the_run(tmp_path: Path) -> None:
    """A tensor that the forward leaves out, by name; the same run without it goes through
    (`test_one_step_trains_at_the_full_rate`)."""
    roles = make_roles()
    roles.assign("other", ["policy"])
    roles.base.register_module("unused", nn.ModuleDict({"lora_B": nn.ModuleDict({"policy": nn.Linear(2, 2)})}))
    with pytest.raises(
        AlignError,
        match=r"base.unused.lora_B.policy.bias \(and 1 more\) is to be trained but gets no gradient.*adapter.targets",
    ):
        trained(tmp_path, roles=roles)


def test_a_run_in_which_nothing_moves_is_refused(tmp_path: Path) -> None:
    def nothing(roles: Any, batch: Any) -> loss.Loss:
        loss = sft.loss(roles, batch)
        return replace(loss, terms={name: (0.0 * value, unit) for name, (value, unit) in loss.terms.items()})

    with pytest.raises(AlignError, match="run: every gradient of the run was zero, so nothing was trained"):
        trained(tmp_path, nothing)


def test_steps_too_small_for_fp32_are_refused(tmp_path: Path) -> None:
    """B starts at zero, so that it holds any step, however small. Negative control: a rate that moves little, but
    moves."""
    with pytest.raises(
        AlignError, match=r"^run: no trained tensor changed .* nothing was trained.*learning_rate is 1e-30: raise it"
    ):
        trained(tmp_path / "lost", learning_rate=1e-30)
    trained(tmp_path / "small", learning_rate=1e-8)


def test_what_a_run_started_from() -> None:
    """Of the largest number, 1, a 2**-34 shows in fp32 beside 2**-10, half of that does not; it is known after a
    checkpoint too."""
    tensors = {"a": torch.tensor([1.0, 0.0]), "b": torch.zeros(3, 2)}
    start = Start(tensors)
    tensors["b"][2, 1] = 2.0**-35
    with pytest.raises(AlignError, match="nothing was trained"):
        start.end("run", 1.0)
    tensors["b"][2, 1] = 2.0**-33
    start.end("run", 1.0)
    again = Start(tensors)
    again.load_state_dict(json.loads(json.dumps(start.state_dict())))
    again.end("run", 1.0)
    with pytest.raises(AlignError, match="nothing was trained"):
        Start(tensors).end("run", 1.0)


def tensors(**gradients: Any) -> dict[str, Tensor]:
    out = {}
    for name, gradient in gradients.items():
        p = nn.Parameter(torch.zeros(2))
        p.grad = None if gradient is None else torch.full((2,), float(gradient))
        out[name.replace("_dot_", ".")] = p
    return out


def test_reach() -> None:
    """What stops a run and when: zeros for three steps, a missing gradient at once, experts never, and late where steps
    may be idle."""
    look = tensors(a=1, b=0)
    reach = Reach(look)
    reach.look()
    reach.look()
    with pytest.raises(AlignError, match=r"^b is to be trained"):
        reach.look()
    with pytest.raises(AlignError, match=r"^b \(and 1 more\) is to be trained"):
        Reach(tensors(a=1, b=None, c=None)).look()
    experts = Reach(tensors(a=1, mlp_dot_experts_dot_3=None))
    for _ in range(5):
        experts.look()
    experts.end("run")
    rewards = Reach(tensors(a=1, b=0), may_be_zero=True)
    for _ in range(5):
        rewards.look()
    rewards.end("run")
    still = Reach(tensors(a=0), may_be_zero=True)
    still.look()
    with pytest.raises(AlignError, match="88% of the last rollout's answers got no score"):
        still.end("run", {"unscored": 0.875})
    with pytest.raises(AlignError, match="All answers to a prompt got the same reward"):
        still.end("run", {"reward/mean": 1.0})
    warmup = Reach(tensors(a=1, b=None), may_be_idle=True)
    warmup.look()
    with pytest.raises(AlignError, match=r"^b is to be trained"):
        warmup.end("run")
    again = Reach(tensors(a=None, b=None), may_be_idle=True)
    again.load_state_dict(warmup.state_dict())
    with pytest.raises(AlignError, match=r"^b is to be trained"):  # a had its gradient before the checkpoint
        again.end("run")
