"""The optimizer of a run: transformers' by its name, or torch's Muon, over groups of what trains.

Matrices decay, vectors do not; heads have a learning rate of their own, and with LoRA+ so have LoRA's B and vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer, TrainingArguments
from transformers.utils import is_galore_torch_available, is_schedulefree_available

from align.ground.errors import InputError
from align.ground.terminal import say
from align.models.roles import Roles
from align.recipe.optimizers import GALORE, SCHEDULE_FREE, UNPAGED

if TYPE_CHECKING:
    from align.recipe import TrainConfig

Groups: TypeAlias = "list[dict[str, object]]"
"""torch's groups of parameters: `params`, and what holds for them alone."""


def check(name: str, device: torch.device) -> None:
    """Raises: InputError for an optimizer that this machine has not, or that would be another one here."""
    if name in UNPAGED and device.type == "cpu":
        raise InputError(
            f"optimizer {name} moves what it holds from a GPU to main memory; this machine computes on the CPU. Take "
            f"{UNPAGED[name]}, which takes the same steps."
        )
    if name.startswith(SCHEDULE_FREE) and not is_schedulefree_available("1.4.0"):
        raise InputError(
            f"optimizer {name} needs the package schedulefree: pip install 'align-rlhf[schedule-free]', or take "
            "adamw_torch_fused."
        )
    if name.startswith(GALORE) and not is_galore_torch_available():
        raise InputError(
            f"optimizer {name} needs the package galore-torch: pip install 'align-rlhf[galore]', or take "
            "adamw_torch_fused."
        )


def create(config: TrainConfig, args: TrainingArguments, roles: Roles) -> Optimizer:
    """The optimizer of all that trains in `roles`. Raises: InputError for Muon or GaLore without a matrix."""
    groups = grouped(config, roles)
    if config.optimizer == "muon":
        return _muon(groups, args, roles)
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, roles.base)
    if config.optimizer.startswith(GALORE):
        torch.serialization.add_safe_globals([import_module(kind.__module__).GaLoreProjector])  # of checkpoints
        groups = _galore(groups, kwargs, roles)
    if config.optimizer == "galore_adamw":  # transformers leaves beta2 out
        kwargs |= {"betas": (args.adam_beta1, args.adam_beta2), "no_deprecation_warning": True}
    if "warmup_steps" in kwargs:
        kwargs["warmup_steps"] = 0  # the schedule warms up, as that of any other
    made: Optimizer = kind(groups, **kwargs)
    return made


def grouped(config: TrainConfig, roles: Roles) -> Groups:
    """What trains, by learning rate and weight decay: LoRA's A and other matrices, vectors, B, vectors under LoRA+,
    heads. LoRA+ is Hayou et al. 2024 (arXiv 2402.12354), with B and vectors as PEFT has them."""
    heads = {id(p) for p in roles.heads.parameters()}
    rate, ratio = config.learning_rate, config.loraplus_lr_ratio
    of_head = {"lr": getattr(config, "head_learning_rate", rate), "weight_decay": 0.0}
    found: dict[tuple[bool, bool, bool], list[Tensor]] = {}
    for name, p in roles.trainable().items():
        head, vector = id(p) in heads, p.ndim <= 1
        fast = bool(ratio) and ("lora_B" in name or vector)
        found.setdefault((True, False, False) if head else (False, fast, vector), []).append(p)
    groups: Groups = []
    for (head, fast, vector), params in sorted(found.items(), key=lambda item: item[0]):
        body = {"lr": rate * (ratio or 1.0) if fast else rate, "weight_decay": 0.0 if vector else config.weight_decay}
        groups.append({"params": params, **(of_head if head else body)})
    return groups


class Both(Optimizer):
    """Two optimizers as one: groups of the first, then those of the second, and one state."""

    def __init__(self, first: Optimizer, second: Optimizer):
        self.parts = first, second
        self.cut = len(first.param_groups)
        super().__init__([*first.param_groups, *second.param_groups], dict(first.defaults))

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Each on its own groups."""
        for part, groups in zip(
            self.parts, (self.param_groups[: self.cut], self.param_groups[self.cut :]), strict=True
        ):
            part.state, part.param_groups = self.state, groups  # which loading a state replaces
            part.step()


def _muon(groups: Groups, args: TrainingArguments, roles: Roles) -> Optimizer:
    """Muon (Jordan et al. 2024) of matrices, with steps as large as AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4),
    so that the same learning rates suit; AdamW of vectors, heads, embeddings and their rows, as there."""
    ends = (roles.base.get_input_embeddings(), roles.base.get_output_embeddings(), roles.heads)
    outside = {id(p) for p in chain.from_iterable(end.parameters() for end in ends)}
    matrices = _only(groups, lambda p: p.ndim == 2 and id(p) not in outside)
    rest = _only(groups, lambda p: p.ndim != 2 or id(p) in outside)
    if not matrices:
        raise InputError("optimizer is muon, which is for matrices, and none trains here. Take adamw_torch_fused.")
    muon = Muon(matrices, lr=args.learning_rate, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw")
    if not rest:
        return muon
    return Both(muon, AdamW(rest, lr=args.learning_rate, weight_decay=args.weight_decay))


def _galore(groups: Groups, kwargs: dict[str, object], roles: Roles) -> Groups:
    """Gradients of the matrices of linear layers are projected (Zhao et al. 2024, arXiv 2403.03507, algorithm 2), those
    of head, embeddings and vectors not, as in its authors' runs. transformers' groups, which leave weight decay out,
    say how and are taken out of `kwargs`."""
    theirs = kwargs.pop("params")
    assert isinstance(theirs, list)
    how = {name: value for name, value in theirs[1].items() if name != "params"}
    head = roles.base.get_output_embeddings()
    inside = {id(m.weight) for m in roles.base.modules() if isinstance(m, nn.Linear) and m is not head}
    projected: Groups = [{**group, **how} for group in _only(groups, lambda p: id(p) in inside)]
    if not projected:
        of_theirs = any(type(m).__name__ == "Conv1D" for m in roles.base.modules())
        others = "this base's are transformers' Conv1D, as in GPT-2" if of_theirs else "none but the head trains here"
        raise InputError(
            f"optimizer is GaLore, which is for matrices of torch's linear layers, and {others}. Take "
            "adamw_torch_fused."
        )
    every, in_full = (sum(p.numel() for g in groups for p in _params(g) if p.ndim > n) for n in (0, 2))
    if 100 * in_full >= every:
        say(
            f"optimizer is GaLore, which takes matrices alone: {in_full / every:.0%} of what trains lies in tensors of "
            "more dimensions, such as routed experts, and keeps its moments in full"
        )
    return [*projected, *_only(groups, lambda p: id(p) not in inside)]


def _only(groups: Groups, fits: Callable[[Tensor], bool]) -> Groups:
    """The groups with those of their tensors that fit."""
    found = ({**group, "params": [p for p in _params(group) if fits(p)]} for group in groups)
    return [group for group in found if group["params"]]


def _params(group: Mapping[str, object]) -> list[Tensor]:
    params = group["params"]
    assert isinstance(params, list)
    return params


@contextmanager
def averaged(optimizer: Optimizer | None, trained: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the weights that would come out: with a schedule-free optimizer (Defazio et al. 2024, arXiv 2405.15682,
    eq. 3-5) the average x, not y, where gradients are taken. Afterwards they are what they were, bit for bit."""
    if optimizer is None or not optimizer.param_groups[0].get("train_mode"):
        yield
        return
    before = {name: tensor.detach().clone() for name, tensor in trained.items()}
    to_average(optimizer)
    try:
        yield
    finally:
        to_gradients(optimizer)
        for name, tensor in trained.items():
            tensor.data.copy_(before[name])


def to_average(optimizer: Optimizer | None) -> None:
    """Weights become those that come out."""
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer.eval()


def to_gradients(optimizer: Optimizer | None) -> None:
    """Weights become those where the next gradient is taken."""
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer.train()


def warmed(theirs: LRScheduler, warmup: int) -> LambdaLR:
    """transformers' schedule, but in its warm-up over w steps, step k has k / w of the peak, not (k - 1) / w: there the
    first step of every run, and the only one of a short run, has a learning rate of 0."""
    assert isinstance(theirs, LambdaLR)

    def warm(rate: Callable[[int], float]) -> Callable[[int], float]:
        return lambda done: (done + 1) / warmup if done < warmup else rate(done)

    return LambdaLR(theirs.optimizer, [warm(rate) for rate in theirs.lr_lambdas])
