"""Optimizers and schedules by transformers' names: which of them are to be had, and what they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

Value = int | float | str
OptimizerName = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "muon",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "rmsprop",
    "adagrad",
    "adafactor",
    "sgd",
    "galore_adamw",
    "galore_adafactor",
]
ScheduleName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]

SCHEDULE_FREE = "schedule_free_"
"""What the names begin with of optimizers that need no schedule."""
UNPAGED = {
    "paged_adamw_32bit": "adamw_torch",
    "paged_adamw_8bit": "adamw_8bit",
    "paged_ademamix_32bit": "ademamix",
    "paged_ademamix_8bit": "ademamix_8bit",
    "paged_lion_32bit": "lion_32bit",
    "paged_lion_8bit": "lion_8bit",
}
"""Optimizers whose moments move to main memory where a GPU is full, and those that leave them where they are."""
GALORE = "galore_"
"""What the names begin with of optimizers that project gradients of whole matrices to a low rank."""
GALORE_ARGS: dict[str, type] = {"rank": int, "update_proj_gap": int, "scale": float, "proj_type": str}
"""What `optim_args` may hold of GaLore, and of which type."""
PROJECTIONS = ("std", "reverse_std", "left", "right", "full")
"""GaLore's names for the sides on which a gradient is projected."""
NOT_EVERYWHERE = (
    *UNPAGED,
    *(name for name in get_args(OptimizerName) if name.startswith((SCHEDULE_FREE, GALORE))),
)
"""Optimizers for which a machine has to have a GPU, or a package."""
WITHOUT_BETA2 = ("muon", "schedule_free_sgd", "rmsprop", "adagrad", "adafactor", "sgd", "galore_adafactor")
"""Optimizers without Adam's second moment, or with a decay of their own for it."""
SCHEDULES: dict[str, dict[str, type]] = {
    "linear": {},
    "cosine": {"num_cycles": float},
    "cosine_with_restarts": {"num_cycles": int},
    "cosine_with_min_lr": {"num_cycles": float, "min_lr": float, "min_lr_rate": float},
    "polynomial": {"lr_end": float, "power": float},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": int},
    "warmup_stable_decay": {"num_decay_steps": int, "decay_type": str, "min_lr_ratio": float, "num_cycles": float},
}
"""What transformers' schedules take, and of which type; the warm-up is ours."""
LR_END = 1e-7
"""The rate at which transformers' polynomial ends by itself."""
OF_MATRICES = "it projects gradients of whole matrices to a low rank"
IN_BACKWARD = "it steps inside the backward pass, before the gradient of a whole step is there"
NOT_OURS = {
    "galore_adamw_layerwise": IN_BACKWARD,
    "galore_adamw_8bit_layerwise": IN_BACKWARD,
    "galore_adafactor_layerwise": IN_BACKWARD,
    "galore_adamw_8bit": "its package computes it on CUDA alone, where it was not tried",
    "apollo": f"{OF_MATRICES}, and its package was not tried",
    "lomo": IN_BACKWARD,
    "adalomo": IN_BACKWARD,
}
"""What the names of optimizers begin with that transformers has, and why they are not to be had."""


def to_be_had(name: object) -> object:
    """The optimizer's name as it is. Raises: ValueError for one that transformers has and Align has not."""
    why = next((why for family, why in NOT_OURS.items() if str(name).startswith(family)), None)
    if why is not None:
        raise ValueError(f"{name} is not to be had here: {why}. Take adamw_torch_fused, or adamw_8bit.")
    return name


def conflicts(given: Mapping[str, object]) -> list[str]:
    """What is wrong with the schedule beside the other settings."""
    schedule, kwargs = str(given.get("lr_scheduler")), given.get("lr_scheduler_kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    takes = SCHEDULES.get(schedule, {})
    found = [_unfit(schedule, name, value) for name, value in kwargs.items() if takes and not _fits(takes, name, value)]
    if schedule == "cosine_with_min_lr" and ("min_lr" in kwargs) == ("min_lr_rate" in kwargs):
        found.append("lr_scheduler cosine_with_min_lr takes one of min_lr and min_lr_rate in lr_scheduler_kwargs.")
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in kwargs:
        found.append("lr_scheduler warmup_stable_decay needs num_decay_steps in lr_scheduler_kwargs.")
    steps, ratio, peak = given.get("max_steps"), given.get("warmup_ratio"), given.get("learning_rate")
    if isinstance(steps, int) and isinstance(ratio, int | float):
        found += decays_too_long(schedule, kwargs, ratio, steps)
    if isinstance(peak, int | float):
        found += ends_too_high(schedule, {name: kwargs[name] for name in kwargs if name in takes}, peak)
    optimizer = str(given.get("optimizer"))
    if optimizer.startswith(GALORE) and given.get("method") != "full":
        found.append(
            f"optimizer {optimizer}: {OF_MATRICES}, which an adapter's already have. Take adamw_torch_fused, or train "
            "all weights: pretrain or distill with `method: full`."
        )
    args = given.get("optim_args")
    found += unfit_args(args) if isinstance(args, Mapping) else []
    if optimizer.startswith(SCHEDULE_FREE) and schedule not in ("constant", "constant_with_warmup"):
        found.append(
            f"optimizer {optimizer} takes averages in place of a schedule, and lr_scheduler is {schedule}. Set it to "
            "constant_with_warmup or constant."
        )
    return found


def unfit_args(given: Mapping[str, Value]) -> list[str]:
    """What is wrong with `optim_args`."""
    return [
        f"optim_args.{name} is not taken by GaLore, which has {', '.join(GALORE_ARGS)}."
        if name not in GALORE_ARGS
        else f"optim_args.{name} is {value!r}; expected {_what(GALORE_ARGS[name])}."
        for name, value in given.items()
        if not _is_one(GALORE_ARGS.get(name), value)
    ]


def _is_one(wanted: type | None, value: Value) -> bool:
    if wanted is str:
        return value in PROJECTIONS
    number = isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return wanted is not None and number and float(value) > 0


def _what(wanted: type) -> str:
    return {int: "a whole number above 0", float: "a number above 0", str: f"one of {', '.join(PROJECTIONS)}"}[wanted]


def warmup(schedule: str, ratio: float, steps: int) -> int:
    """Steps of a run of `steps` over which the learning rate rises."""
    return 0 if schedule == "constant" else math.ceil(ratio * steps)


def decays_too_long(schedule: str, kwargs: Mapping[str, object], ratio: float, steps: int) -> list[str]:
    """A sentence where warm-up and decay are longer than a run of `steps`: its peak would never be reached."""
    decay, rising = kwargs.get("num_decay_steps", 0), warmup(schedule, ratio, steps)
    if not isinstance(decay, int) or rising + decay <= steps:
        return []
    return [
        f"lr_scheduler_kwargs.num_decay_steps is {decay} after {rising} of warm-up, but the run has {steps} steps. "
        "Lower it, or warmup_ratio."
    ]


def ends_too_high(schedule: str, kwargs: Mapping[str, object], peak: float) -> list[str]:
    """A sentence where the learning rate would end above its peak, or, of a polynomial, not below it."""
    given = {"lr_end": LR_END, **kwargs} if schedule == "polynomial" else kwargs
    ends = {
        "lr_end": (math.nextafter(peak, 0.0), f"below learning_rate, {peak:g}"),
        "min_lr": (peak, f"at most learning_rate, {peak:g}"),
        **dict.fromkeys(("min_lr_rate", "min_lr_ratio"), (1.0, "at most 1, which is learning_rate")),
    }
    return [
        f"lr_scheduler_kwargs.{name} is {value:g}, where the learning rate ends; expected a number {ends[name][1]}."
        for name, value in given.items()
        if name in ends and isinstance(value, int | float) and value > ends[name][0]
    ]


def without_effect(optimizer: str, schedule: str) -> dict[str, str]:
    """Settings that this optimizer and this schedule do not read -> why."""
    found = {}
    if schedule == "constant":
        found["warmup_ratio"] = (
            "lr_scheduler is constant, which has no warm-up. Take constant_with_warmup, or leave it out."
        )
    if not SCHEDULES[schedule]:
        found["lr_scheduler_kwargs"] = f"lr_scheduler is {schedule}, which takes none. Leave it out."
    if not optimizer.startswith(GALORE):
        found["optim_args"] = f"optimizer is {optimizer}, which takes none. Leave it out."
    if optimizer in WITHOUT_BETA2:
        found["adam_beta2"] = f"optimizer is {optimizer}, which has no such moment. Leave it out."
    return found


def _fits(takes: Mapping[str, type], name: str, value: object) -> bool:
    wanted = takes.get(name)
    if wanted is None or isinstance(value, bool):
        return False
    if wanted is str:
        return value in ("linear", "cosine", "1-sqrt")
    if wanted is int:
        return isinstance(value, int) and value > 0
    return isinstance(value, int | float) and value >= 0


def _unfit(schedule: str, name: str, value: object) -> str:
    wanted = SCHEDULES[schedule].get(name)
    if wanted is None:
        return f"lr_scheduler_kwargs.{name} is not taken by {schedule}, which has {', '.join(SCHEDULES[schedule])}."
    what = {int: "a whole number above 0", float: "a number of at least 0", str: "linear, cosine or 1-sqrt"}
    return f"lr_scheduler_kwargs.{name} is {value!r}; expected {what[wanted]}."
