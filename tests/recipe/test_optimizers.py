"""What is wrong with an optimizer or a schedule is said before anything is loaded."""

from __future__ import annotations

from typing import get_args

import pytest
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from align import pretrain, sft
from align.ground.errors import InputError
from align.recipe import parse_flags
from align.recipe.optimizers import NOT_OURS, SCHEDULES, OptimizerName, ScheduleName

WRONG = [
    (["--optimizer", "galore_adamw"], "optimizer galore_adamw: it projects gradients of whole matrices to a low rank"),
    (["--optimizer", "galore_adamw_8bit"], "galore_adamw_8bit is not to be had here: its package computes it on CUDA"),
    (["--optimizer", "galore_adafactor_layerwise"], "here: it steps inside the backward pass"),
    (["--optimizer", "apollo_adamw"], "--optimizer: apollo_adamw is not to be had here: it projects gradients of"),
    (["--optimizer", "adamw_8bits"], 'found the text "adamw_8bits".'),
    (["--lr_scheduler", "warmup_stable_decay"], "lr_scheduler warmup_stable_decay needs num_decay_steps in lr_sch"),
    (["--lr_scheduler", "cosine_with_min_lr"], "takes one of min_lr and min_lr_rate in lr_scheduler_kwargs."),
    (
        ["--lr_scheduler", "inverse_sqrt", "--lr_scheduler_kwargs.timescale", "few"],
        "lr_scheduler_kwargs.timescale is 'few'; expected a whole number above 0.",
    ),
    (
        ["--lr_scheduler", "inverse_sqrt", "--lr_scheduler_kwargs.power", "2"],
        "lr_scheduler_kwargs.power is not taken by inverse_sqrt, which has timescale.",
    ),
    (
        ["--lr_scheduler", "warmup_stable_decay", "--lr_scheduler_kwargs.num_decay_steps", "9", "--max_steps", "9"],
        "num_decay_steps is 9 after 1 of warm-up, but the run has 9 steps. Lower it, or warmup_ratio.",
    ),
    (
        ["--lr_scheduler", "polynomial", "--lr_scheduler_kwargs.lr_end", "2e-4"],
        "lr_scheduler_kwargs.lr_end is 0.0002, where the learning rate ends; expected a number below learning_rate",
    ),
    (["--lr_scheduler", "polynomial", "--learning_rate", "1e-7"], "lr_end is 1e-07, where the learning rate ends"),
    (
        ["--lr_scheduler", "cosine_with_min_lr", "--lr_scheduler_kwargs.min_lr", "1"],
        "min_lr is 1, where the learning rate ends; expected a number at most learning_rate, 0.0002.",
    ),
    (["--lr_scheduler", "cosine_with_min_lr", "--lr_scheduler_kwargs.min_lr_rate", "2"], "expected a number at most 1"),
    (["--lr_scheduler", "cosine_with_min_lr", "--lr_scheduler_kwargs.min_lr", "2e-4"], None),
    (["--lr_scheduler", "polynomial", "--lr_scheduler_kwargs.lr_end", "1e-4"], None),
    (["--optimizer", "schedule_free_sgd"], "lr_scheduler is cosine. Set it to constant_with_warmup or constant."),
    (["--loraplus_lr_ratio", "0.5"], "loraplus_lr_ratio"),
    (["--lr_scheduler_kwargs.num_cycles", "1"], None),
    (["--optimizer", "schedule_free_sgd", "--lr_scheduler", "constant"], None),
]


WHOLE = ["--optimizer", "galore_adamw", "--data", "d"]
WRONG_ARGS = [
    (["--base", "b", "--method", "lora"], "which an adapter's already have. Take adamw_torch_fused, or train all weig"),
    (["--optim_args.ranks", "4"], "optim_args.ranks is not taken by GaLore, which has rank, update_proj_gap, scale, p"),
    (["--optim_args.rank", "0.5"], "optim_args.rank is 0.5; expected a whole number above 0."),
    (["--optim_args.proj_type", "up"], "optim_args.proj_type is 'up'; expected one of std, reverse_std, left, right,"),
    (["--optim_args.scale", "0"], "optim_args.scale is 0; expected a number above 0."),
    (["--optim_args.rank", "4", "--optim_args.scale", "1", "--optim_args.proj_type", "left"], None),
]


@pytest.mark.parametrize(("words", "said"), WRONG_ARGS)
def test_what_galore_takes(words: list[str], said: str | None) -> None:
    if said is None:
        parse_flags(pretrain.Config, [*WHOLE, *words], prog="align pretrain")
        return
    with pytest.raises(InputError) as error:
        parse_flags(pretrain.Config, [*WHOLE, *words], prog="align pretrain")
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("words", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_it_is_said(words: list[str], said: str | None) -> None:
    argv = ["--base", "b", "--data", "d", *words]
    if said is None:
        parse_flags(sft.Config, argv, prog="align sft")
        return
    with pytest.raises(InputError) as error:
        parse_flags(sft.Config, argv, prog="align sft")
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


def test_names_are_those_of_transformers() -> None:
    """But for muon, which is torch's."""
    theirs = {name.value for name in OptimizerNames}
    assert set(get_args(OptimizerName)) - theirs == {"muon"}
    assert set(get_args(ScheduleName)) == set(SCHEDULES) <= {name.value for name in SchedulerType}
    assert all(any(name.startswith(family) for name in theirs) for family in NOT_OURS)
