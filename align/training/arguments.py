"""A stage's settings as the arguments of transformers' Trainer, and how a process may be launched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from align.ground.errors import InputError
from align.ground.ranks import local_rank
from align.models.process import device
from align.recipe import optimizers
from align.training.telling.trackers import Arguments

if TYPE_CHECKING:
    from align.recipe import TrainConfig


def check_launch() -> None:
    """Raises: InputError for a launch that would train otherwise than one process or DDP does."""
    if torch.cuda.device_count() > 1 and local_rank() is None:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible; one process would use nn.DataParallel, which is wrong for "
            "packed batches. Use `torchrun --nproc-per-node N -m align.…`, or CUDA_VISIBLE_DEVICES=0 for one."
        )
    for engine, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise InputError(
                f"accelerate's {engine} shards adapters too, so that what it saves is not whole. Use torchrun; "
                "`parallel: shard` cuts the base over the processes."
            )


def arguments(config: TrainConfig, steps: int, folder: Path, title: str, sometimes_idle: bool) -> Arguments:
    """Arguments of a run of `steps` steps whose checkpoints are written in `folder`.

    Raises: InputError where the schedule is longer than the run.
    """
    config.check_length(steps)
    low_rank, args = config.optimizer.startswith(optimizers.GALORE), getattr(config, "optim_args", {})
    return Arguments(
        settings=config.model_dump(mode="json"),
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        ignore_data_skip=True,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        lr_scheduler_kwargs=dict(config.lr_scheduler_kwargs),
        warmup_steps=optimizers.warmup(config.lr_scheduler, config.warmup_ratio, steps),
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        optim_target_modules="all-linear" if low_rank else None,
        optim_args=",".join(f"{name}={value}" for name, value in args.items()) if low_rank else None,
        optim="adamw_torch" if config.optimizer == "muon" else config.optimizer,  # which transformers has not
        seed=config.seed,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",  # `Checkpoints` says when
        report_to=list(config.report_to),
        run_name=title,
        use_cpu=device().type == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=sometimes_idle,
        dataloader_pin_memory=False,
        log_level="error",
    )
