"""`StageTrainer`, the only subclass of foreign training code: transformers' Trainer, fed by a step source.

Trainer brings the loop, schedulers, trackers, clipping and, where the base's own weights train, DDP. Ours are:
micro-batches of one optimizer step with one division by global counts, checkpoints in our own files, metrics as (sum,
count), and a NaN that stops the run and names where it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from align.ground.errors import Stopped
from align.ground.leaving import Interrupt
from align.ground.terminal import say
from align.models.precision import resolve_precision
from align.models.process import trim_heap
from align.models.roles import Roles
from align.store import News
from align.training import checkpoint, looking, optimizers, processes, weights
from align.training.arguments import arguments, check_launch
from align.training.checks.allocation import Allocating
from align.training.checks.finite import check_finite, loss_not_finite
from align.training.checks.reach import Reach, Start
from align.training.cost import Cost
from align.training.plan import Plan
from align.training.processes import average_gradients, barrier, meeting, rank_and_world, share_first
from align.training.step_module import LossFunction, StepModule
from align.training.steps import OptimizerStep, StepSource
from align.training.tally import Number, Tally, add, means, over_ranks, together
from align.training.telling import trackers
from align.training.telling.progress import ProgressLine
from align.training.telling.reporter import Reporter

if TYPE_CHECKING:
    from align.recipe import TrainConfig


class StageTrainer(Trainer):
    """Trainer over a step source. See `fit`, which builds and runs it."""

    def __init__(
        self,
        module: StepModule,
        args: TrainingArguments,
        source: StepSource,
        *,
        optimizer: torch.optim.Optimizer,
        resume_from: Path | None,
        callbacks: list[TrainerCallback],
        reporter: Reporter,
        sometimes_idle: bool = False,
    ):
        self.reporter = reporter
        self.looking: looking.Looking | None = None
        if isinstance(source, Plan) and source.watcher is not None:
            best = weights.Best(Path(str(args.output_dir)).parent, module.roles.trainable())
            self.looking = looking.Looking(source.watcher, best, self.note_held_out, self.averaged)
            callbacks = [self.looking, *callbacks]
        super().__init__(model=module, args=args, callbacks=[*callbacks, reporter], optimizers=(optimizer, None))
        if not any(p.requires_grad for _, p in module.roles.base_parameters()):  # DDP is for a base that trains
            self.accelerator.prepare_model = lambda model, **_: model
            share_first(list(module.roles.trainable().values()))
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.source = source
        self.roles = module.roles
        self.allocating = Allocating(module.roles, source.steps)
        self.add_callback(self.allocating)
        self.reach = Reach(
            module.roles.trainable(), may_be_idle=sometimes_idle, may_be_zero=not isinstance(source, Plan)
        )
        self.start = Start(module.roles.trainable())
        self.of_step: dict[str, float] = {}  # means of what the losses measured in the step in progress, over all ranks
        # of the newest steps, `logging_steps` of them, over all ranks: name -> sum and count
        self.sums: list[dict[str, list[float]]] = []
        self.logged = 0  # the step of the last log
        self.total_loss = 0.0  # of every step, over all ranks
        self.tokens, self.earlier, self.started = 0, 0.0, time.monotonic()
        self.history: list[dict[str, float]] = []
        if resume_from is not None:
            source.load_state_dict(torch.load(resume_from / "source.pt", weights_only=True))

    @property
    def seconds(self) -> float:
        """What training took so far, earlier runs included."""
        return self.earlier + time.monotonic() - self.started

    @property
    def stopped(self) -> bool:
        """Whether steps are left, and nothing that was measured ended it."""
        ended = self.looking is not None and self.looking.watcher.ended
        return self.state.global_step < self.source.steps and not ended

    def get_train_dataloader(self) -> StepSource:  # type: ignore[override]
        return self.source

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are those that would come out."""
        return optimizers.averaged(self.optimizer, self.roles.trainable())

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is None:
            theirs = super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = optimizers.warmed(theirs, self.args.get_warmup_steps(num_training_steps))
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: OptimizerStep, *_: object) -> Tensor:  # type: ignore[override]
        """Forward and backward of every micro-batch; each term is divided here, and only here, by its count over the
        step and all ranks."""
        optimizers.to_gradients(self.optimizer)
        world = processes.share()[1]
        total = torch.zeros((), device=self.args.device)
        measured: Tally = {}
        terms: dict[str, Tensor] = {}
        for i, batch in enumerate(inputs.batches):
            last = i == len(inputs.batches) - 1
            with nullcontext() if last or world == 1 else self.accelerator.no_sync(model):
                batch = batch.to(self.args.device)
                for loss in model.parts(batch) if isinstance(model, StepModule) else (model(batch),):
                    # gradients are averaged over ranks, the counts are global: hence times `world`
                    scalar = loss.scalar(inputs.counts) * (0.0 if batch.void else world)
                    self.accelerator.backward(scalar)
                    total += scalar.detach()
                    terms |= {name: value.detach() + terms.get(name, 0.0) for name, (value, _) in loss.terms.items()}
                    # void batches are added with weight 0, so that all ranks hold the same names when they add up their
                    # sums
                    add(measured, loss.metrics, 0 if batch.void else 1)
        for penalty in self.allocating.penalties():
            self.accelerator.backward(penalty)
            add(measured, {"orthogonality": (penalty.detach(), 1)})
        if isinstance(model, StepModule):
            average_gradients(list(self.roles.trainable().values()))
        if not torch.isfinite(total):  # once per step, and before the optimizer's: to ask a GPU is to wait for it
            title, kept = str(self.args.run_name), checkpoint.newest_step(Path(str(self.args.output_dir)).parent)
            raise loss_not_finite(title, self.state.global_step + 1, terms, self.roles.trainable(), kept)
        add(measured, {"loss": (total, 1)})
        of_step = over_ranks(measured, self.args.device)
        self.sums = [*self.sums, of_step][-int(self.args.logging_steps) :]
        self.of_step = means(of_step)
        self.total_loss += self.of_step["loss"]
        self.reach.look()
        self.tokens += inputs.tokens
        return total

    def _get_grad_norm(self, model: nn.Module, grad_norm: Number | None = None) -> Number | None:
        """The norm before clipping, which Trainer asks for once per step, when gradients are whole: the source hears of
        the step."""
        norm: Number | None = super()._get_grad_norm(model, grad_norm)
        self.source.feedback(self.of_step | ({} if norm is None else {"grad_norm": float(norm)}))
        return norm

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        return None  # counted in `OptimizerStep`

    def floating_point_ops(self, inputs: object) -> int:
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what the losses measured since the last log, over all ranks; at the last step, whose line is
        the run's figure, of `logging_steps` steps, however few of them are new."""
        step, per_epoch = self.state.global_step, getattr(self.source, "per_epoch", None)
        self.state.epoch = None  # type: ignore[assignment]  # theirs is the run's, and beside the summary too
        if "loss" in logs:  # neither held-out figures nor the summary
            new = self.sums if step == self.state.max_steps else self.sums[self.logged - step :]
            self.logged = step
            logs.update(means(together(new)) | self.source.metrics() | self.allocating.figures())
            self.note(logs, always=step == self.state.max_steps)
            if per_epoch:
                self.state.epoch = step / per_epoch
        if "train_runtime" in logs:  # their summary, of this process alone
            if self.stopped:
                return
            logs = trackers.summary(self.total_loss, self.seconds, step)
        super().log(logs, start_time)

    def note(self, figures: Mapping[str, float], *, always: bool) -> None:
        """Put figures into the history, in a row a step, and tell who looks on, `always` or where it is time to."""
        step = self.state.global_step
        if not self.history or self.history[-1]["step"] != step:
            self.history.append({"step": step})
        self.history[-1] |= figures
        self.reporter.tell(step, figures, always=always)

    def note_held_out(self, figures: Mapping[str, float]) -> None:
        """Put figures of held-out records into history and log; trackers know them by transformers' names."""
        self.note({f"eval/{name}": value for name, value in figures.items()}, always=True)
        self.log({f"eval_{name}": value for name, value in figures.items()})

    # ---- checkpoints: our own files ----------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Whole or not at all. Raises: AlignError where it cannot be written, or another rank has ended."""
        folder, step = Path(str(self.args.output_dir)).parent, self.state.global_step
        try:
            with meeting():
                super()._save_checkpoint(model, trial)
                barrier()  # every rank writes its own random state
                if rank_and_world()[0] == 0:
                    checkpoint.keep(folder, step)
                barrier()
        except (OSError, RuntimeError, SafetensorError) as error:
            raise checkpoint.not_written(folder, step, error) from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights.write(self.roles.trainable(), folder / "trainable.safetensors")
        torch.save(self.source.state_dict(), folder / "source.pt")
        self.allocating.save(folder)
        state = {name: getattr(self, name) for name in checkpoint.FIGURES}
        state |= {"reach": self.reach.state_dict(), "start": self.start.state_dict()}
        (folder / checkpoint.STATE).write_text(json.dumps(state))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights.read(self.roles.trainable(), folder / "trainable.safetensors")
        saved = checkpoint.read_state(folder)
        self.history, self.tokens, self.earlier = saved["history"], saved["tokens"], saved["seconds"]
        self.sums, self.logged, self.total_loss = saved["sums"], saved["logged"], saved["total_loss"]
        self.reach.load_state_dict(saved["reach"])
        self.start.load_state_dict(saved["start"])
        self.allocating.load(folder)


def fit(
    roles: Roles,
    loss: LossFunction,
    source: StepSource,
    config: TrainConfig,
    *,
    title: str,
    checkpoints: Path,
    show: tuple[str, ...] = (),
    sometimes_idle: bool = False,
) -> tuple[list[dict[str, float]], Cost]:
    """Train what is trainable in `roles` by `loss` over `source`; go on from the newest checkpoint in `checkpoints` if
    there is one.

    `sometimes_idle`: in some steps the loss does not reach every trained tensor; the optimizer then leaves those as
    they are.
    Returns: the logged history and the cost. Raises: Stopped after Ctrl-C (a checkpoint is kept; after a second one the
    one before), NotTrained on a NaN and where a tensor that is to be trained gets no gradient.
    """
    check_launch()
    if config.activation_checkpointing:
        roles.enable_activation_checkpointing()
    args = arguments(config, source.steps, checkpoint.unfinished(checkpoints), title, sometimes_idle)
    if rank_and_world()[0] == 0:
        checkpoint.clear(checkpoints)
    if newest := checkpoint.newest(checkpoints):
        say(f"{title}: goes on from step {checkpoint.step_of(newest):,} of {source.steps:,}")
    noise = getattr(config, "neftune_noise_alpha", None)
    when = checkpoint.Checkpoints(config.checkpoint_steps, config.checkpoint_minutes)
    line = ProgressLine(title, (*show, *looking.SHOWN), source.period)
    trainer = StageTrainer(
        StepModule(roles, loss, resolve_precision(config.precision), config.activation_offload, noise),
        args,
        source,
        optimizer=optimizers.create(config, args, roles),
        resume_from=newest,
        callbacks=[when, line],
        reporter=Reporter(News(checkpoints.parent), line),
        sometimes_idle=sometimes_idle,
    )
    trainer.loss_is_scaled_for_ga = True
    trackers.keep_events(trainer, title)
    trim_heap()  # of what loading, rendering and trying left, before what steps take lies between it
    try:
        with when, line, processes.rows_cut() if roles.rows_cut else nullcontext():
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except Interrupt as error:
        raise checkpoint.cut_off(checkpoints, title) from error
    optimizers.to_average(trainer.optimizer)
    roles.eval()  # Trainer leaves training mode on, and with it dropout
    check_trained(trainer, title, config.learning_rate)
    if trainer.looking is not None:
        trainer.looking.restore(trainer.state.global_step)
    return trainer.history, Cost(trainer.seconds, trainer.tokens, trainer.earlier)


def check_trained(trainer: StageTrainer, title: str, learning_rate: float) -> None:
    """Every step was taken and told something. Raises: Stopped, NotTrained."""
    if trainer.stopped:
        done, steps = trainer.state.global_step, trainer.source.steps
        raise Stopped(f"{title} stopped at step {done} of {steps}; run the same command to go on from there.")
    trainer.reach.end(title, trainer.source.metrics())
    trainer.start.end(title, learning_rate)
    check_finite(title, trainer.roles.trainable())
