"""Settings that training stages share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat

from align.folders.adapter import STACKABLE
from align.ground.errors import InputError
from align.recipe import optimizers
from align.recipe.adapters import Adapter
from align.recipe.mixture import MixedFile, sources
from align.recipe.processes import Passes, Processes
from align.recipe.settings import Count, File, FromZero, RowSettings, Runtime, Texts, TextStage


class TrainConfig(TextStage, RowSettings, Processes):
    """Training"""

    apart: ClassVar[frozenset[str]] = frozenset({"adapter.dropout"})
    """Settings that are refused here, or are not what others call so."""
    may_start_off: ClassVar[bool] = True
    """Whether the policy may start elsewhere than the base does: nothing holds it to the base as reference."""
    answers: ClassVar[bool] = True
    """Whether what is trained answers prompts."""
    unread: ClassVar[frozenset[str]] = frozenset()
    """Settings that its kin have and it never reads: they are no part of its help."""

    adapter: Adapter = Adapter()
    """The adapter, where a fresh one is made."""
    parent_adapter: Literal["continue", "stack"] = "continue"
    """With a parent: train a copy of its adapter on (continue), or freeze its adapters and train a fresh one on top
    (stack)."""
    data: Annotated[File | tuple[MixedFile, ...], BeforeValidator(sources)]
    """Records to train on: a .jsonl, .json, .csv, .tsv or .parquet file, several by a pattern (shards/*.jsonl), a
    folder of `datasets`, or a data artifact. In YAML also a list of these, which are mixed: [{file:
    a.jsonl, weight: 0.7}, {file: b.jsonl, epochs: 2, limit: 5000}]."""
    eval_data: File | None = None
    """Held-out records; without them, a share of the prompts in data."""
    eval_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts (not of rows) held out by their hash, at most 1,000 of them."""
    hold_out: Annotated[float, Field(gt=0.0, lt=1.0)] | File | None = None
    """Prompts that no stage trains on which is told the same: a share of them by their hash, which is measured instead
    of eval_fraction, or those in a file. For a whole recipe, set it beside stages; how many records were left out is
    counted."""
    eval_steps: Count | None = None
    """Look at all held-out records after so many optimizer steps, again and again, at the start and at the end: loss,
    and of pairs accuracy. Without it the guard alone looks, at a few of them."""
    eval_epochs: Passes | None = None
    """The same by passes over the data: 0.5 looks twice in each."""
    keep: Literal["last", "best"] = "last"
    """Which weights come out: the last, or those of the look with the lowest held-out loss (transformers'
    load_best_model_at_end)."""
    patience: Count | None = None
    """End the run after so many looks without a held-out loss below the lowest so far (transformers'
    early_stopping_patience)."""
    min_delta: NonNegativeFloat = 0.0
    """Of a gain no greater than this patience takes no notice (transformers' early_stopping_threshold)."""
    watch_prompts: FromZero = 0
    """Prompts of held-out records that are answered at every look, greedily, so that it goes the same without; kept in
    the result."""
    watch_tokens: Count = 64
    """Longest such answer, in tokens."""
    max_length: Count = 1024
    """Longest sequence in tokens, prompt and completion together (TRL's default)."""
    truncate: Literal["error", "drop", "cut"] = "error"
    """What to do with longer ones: stop, leave them out, or cut their end; what was done is counted."""
    epochs: Passes = 1.0
    """Passes over the data."""
    max_steps: Count | None = None
    """Optimizer steps, in place of epochs."""
    batch_size: Count = 16
    """Records per optimizer step over all processes (Dettmers et al. 2023, table 9, up to 13B)."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate (Dettmers et al. 2023, table 9, up to 13B); ten times the 2e-5 usual in full fine-tuning, as
    LoRA wants."""
    lr_scheduler: optimizers.ScheduleName = "cosine"
    """How the learning rate falls, by transformers' name (cosine: the alignment handbook's Zephyr recipes)."""
    lr_scheduler_kwargs: dict[str, optimizers.Value] = Field(default_factory=dict)
    """What transformers' schedule takes beside its warm-up, such as num_decay_steps of warmup_stable_decay or
    min_lr_rate of cosine_with_min_lr; docs/optimizers.md has them."""
    warmup_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the steps over which the learning rate rises (the alignment handbook's Zephyr recipes)."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay (none, as in transformers)."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm (transformers' default)."""
    adam_beta2: float = Field(default=0.999, gt=0.0, lt=1.0)
    """Decay of Adam's second moment (transformers' default); 0.95 to 0.99 is usual in pretraining."""
    optimizer: Annotated[optimizers.OptimizerName, BeforeValidator(optimizers.to_be_had)] = "adamw_torch_fused"
    """Optimizer, by transformers' name (its default), or muon, which is torch's."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1.0)] | None = None
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of LoRA's B as a multiple of A's, which is
    learning_rate; 16 there, with a lower learning_rate."""
    tokens_per_microbatch: Annotated[Count, Runtime] = 4096
    """Tokens in one packed row, which decides how much memory a step takes. On a CPU, unless it is set, fewer where the
    base is wide: 524,288 / its hidden size, at least 512."""
    activation_checkpointing: Annotated[bool, Runtime] = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    activation_offload: Annotated[bool, Runtime] = False
    """Keep activations in CPU memory between forward and backward (GPUs only): less GPU memory, more time."""
    trunk_cache: Annotated[Literal["memory", "disk", "off"], Runtime] = "memory"
    """Where layers below the first trained one leave what they give, to run once per row: tokens x width numbers. disk:
    a file in the store's cache, which later runs on the same rows read; off: they run every time."""
    trunk_dtype: Literal["base", "bf16"] = "base"
    """What is kept: the base's own precision, or bf16, which takes half of fp32's room and rounds what the trained
    layers see."""
    logging_steps: Count = 10
    """Optimizer steps between two lines of metrics; the history is stored, so it is part of the result."""
    checkpoint_steps: Annotated[FromZero, Runtime] = 100
    """Optimizer steps between two checkpoints to go on from; 0 writes none, unless the run is stopped."""
    checkpoint_minutes: Annotated[PositiveFloat, Runtime] = 10.0
    """Minutes after which a checkpoint is written, however few steps that were."""
    report_to: Annotated[list[str], Runtime] = Field(default_factory=list)
    """Trackers of transformers to report to, such as tensorboard, whose events are then in runs/NAME (or
    $TENSORBOARD_LOGGING_DIR/NAME)."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        adapter = given.get("adapter")
        shape = adapter if isinstance(adapter, Mapping) else vars(adapter) if isinstance(adapter, Adapter) else {}
        dropout = shape.get("dropout")
        found = super().conflicts(given)
        if dropout and "adapter.dropout" in cls.apart:
            why = "here equal models would differ by chance"
            found.append(f"adapter.dropout is {dropout}, which only sft and pretrain may have: {why}. Set it to 0.")
        if dropout and given.get("parallel") == "context":
            found.append("adapter.dropout: parallel is context, whose parts of a row would drop alike. Set it to 0.")
        if not cls.may_start_off and shape.get("init_lora_weights") == "loftq":
            found.append(
                "adapter.init_lora_weights is loftq, which starts off the base in 4 bits, and here that base is the "
                "reference, where the policy has to start. Start sft so and go on from it, or take pissa or olora."
            )
        found += optimizers.conflicts(given)
        if given.get("eval_steps") is not None and given.get("eval_epochs") is not None:
            found.append("eval_steps and eval_epochs both say when to look at held-out records. Leave one of them out.")
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        found |= {f"adapter.{name}": why for name, why in self.adapter.idle().items()}
        if self.parent is None or parent == "model":
            found["parent_adapter"] = (
                "it says what becomes of a parent's adapter, and there is none here. Leave it out."
            )
        elif parent == "adapter" and self.parent_adapter == "continue":
            stacks = self.adapter.method in STACKABLE
            fresh = "Set `parent_adapter: stack`" if stacks else "Merge the parent first (`align merge`)"
            found["adapter"] = (
                f"the parent's adapter is trained on as it is. {fresh} for a fresh one of this shape on top, or leave "
                "it out."
            )
        if (found.get("parent_adapter") or self.parent_adapter == "stack") and self.adapter.layers is None:
            why = (
                "every layer has an adapter, so there is none below to run once alone. Set adapter.layers, or leave "
                "it out."
            )
            found |= {"trunk_dtype": why} | ({} if self.trunk_cache == "off" else {"trunk_cache": why})
        if self.trunk_cache == "off":
            found["trunk_dtype"] = "trunk_cache is off, so nothing is kept. Leave one of them out."
        found |= optimizers.without_effect(self.optimizer, self.lr_scheduler)
        if self.checkpoint_steps == 0:
            found["checkpoint_minutes"] = (
                "checkpoint_steps is 0, so no checkpoints are written while it runs. Leave one of them out."
            )
        if self.eval_data is not None:
            found["eval_fraction"] = "eval_data holds what is held out. Leave one of them out."
        elif isinstance(self.hold_out, float):
            found["eval_fraction"] = "hold_out says which prompts are held out. Leave one of them out."
        if self.max_steps is not None:
            found["epochs"] = "max_steps says how long it trains. Leave one of them out."
        return found | self._looks_without_effect()

    def without_adapter(self) -> dict[str, str]:
        """Settings without effect where `method` is full."""
        why = "method is full, which trains all weights and no adapter. Set `method: lora`, or leave it out."
        found = dict.fromkeys(("adapter", "parent_adapter", "loraplus_lr_ratio", "trunk_dtype"), why)
        whole = "method is full: all weights train, and each process has a copy. Set `method: lora`, or leave it out."
        found |= dict.fromkeys(("parallel", "base_offload"), whole)
        return found if self.trunk_cache == "off" else found | {"trunk_cache": why}

    def check_length(self, steps: int) -> None:
        """Raises: InputError where the schedule is longer than a run of `steps`."""
        schedule = self.lr_scheduler, self.lr_scheduler_kwargs, self.warmup_ratio
        if wrong := optimizers.decays_too_long(*schedule, steps):
            raise InputError(*wrong)

    @property
    def looks(self) -> int | None:
        """Looks after the first step, as far as the settings tell; 0 where they ask for none."""
        if self.eval_steps is None and self.eval_epochs is None:
            return 0
        if self.max_steps is not None and self.eval_steps is not None:
            return math.ceil(self.max_steps / self.eval_steps)
        if self.max_steps is None and self.eval_epochs is not None:
            return math.ceil(self.epochs / self.eval_epochs)
        return None

    def _looks_without_effect(self) -> dict[str, str]:
        found, looks = {}, self.looks
        if self.eval_fraction == 0 and self.eval_data is None and not isinstance(self.hold_out, float):
            why = "no records are held out. Set eval_data, eval_fraction or a share as hold_out, or leave it out."
            return dict.fromkeys((*LOOKS, "watch_prompts", "watch_tokens"), why)
        if self.patience is None:
            found["min_delta"] = "patience is not set, so the run does not end early. Set it, or leave this out."
        if not self.answers:
            why = "what is trained here scores answers and gives none. Leave it out."
            found |= dict.fromkeys(("watch_prompts", "watch_tokens"), why)
        elif not self.watch_prompts:
            found["watch_tokens"] = "watch_prompts is 0, so nothing is answered. Leave one of them out."
        if looks == 0:
            why = "held-out records are not looked at while it trains. Set eval_steps or eval_epochs, or leave it out."
            found |= dict.fromkeys(("keep", "patience", "min_delta"), why)
        elif looks == 1:
            why = "there is one look, after the last step. Look more often, or leave it out."
            found |= dict.fromkeys(("keep", "patience", "min_delta"), why)
        elif looks is not None and self.patience is not None and self.patience + 1 >= looks:
            why = f"of {looks} looks the last is at the end, so {self.patience} without a gain cannot end it earlier. "
            why += "Look more often, or leave it out."
            found |= dict.fromkeys(("patience", "min_delta"), why)
        return found


LOOKS = ("eval_steps", "eval_epochs", "keep", "patience", "min_delta")
"""Settings that say when held-out records are looked at, and what follows from it."""


class NextTokenConfig(TrainConfig):
    """Training on text"""

    new_tokens: Texts = Field(default_factory=list)
    """Texts that the tokenizer is to read as one token each, such as <tool>; their rows in embedding and head train
    with the adapter. The flag once for each; set where a line of adapters starts, what goes on from it has them."""

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if not self.new_tokens:
            found["new_tokens"] = "it names none. Leave it out."
        elif parent == "adapter":
            found["new_tokens"] = (
                "the parent's tokenizer and its tokens' rows are gone on with. Set it where the line of adapters "
                "starts, or merge the parent first (`python -m align.merge`) and start from that model."
            )
        return found


FP32 = 2.0**-24
"""Half of what two neighbouring numbers in fp32 are apart, relative to them."""


class ReferenceConfig(TrainConfig):
    """Reference"""

    may_start_off: ClassVar[bool] = False

    ref_model_sync_steps: Count | None = None
    """Bring the reference to the policy after so many optimizer steps, again and again (TR-DPO, arXiv 2404.09656;
    iterated GRPO, arXiv 2402.03300, algorithm 1), as TRL does by this name; with sampled answers before the next
    rollout. Without it the reference stays where the run began."""
    ref_model_mixup_alpha: float = Field(default=1.0, gt=0.0, le=1.0)
    """How far it is brought: reference <- alpha policy + (1 - alpha) reference, in the model's weights; 1 is the policy
    itself (TRL's default is 0.6)."""

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.ref_model_sync_steps is None:
            why = "ref_model_sync_steps is not set, so the reference stays. Set it, or leave this out."
            found["ref_model_mixup_alpha"] = why
        return found

    def check_length(self, steps: int) -> None:
        """Raises: InputError where the schedule is longer than a run of `steps`, or its reference would never move."""
        super().check_length(steps)
        every, last = self.ref_model_sync_steps, self.last_move(steps)
        if every is not None and every > last:
            rollouts = f"last rollout begins after {last} of {steps} steps"
            found = f"run has {steps} steps" if last == steps - 1 else rollouts
            raise InputError(
                f"ref_model_sync_steps is {every}, but the {found}, so the reference would stay where it is. "
                f"{'Lower it' if last else 'Train longer'}, or leave it out."
            )

    def last_move(self, steps: int) -> int:
        """The last of so many optimizer steps after which the reference may move."""
        return steps - 1

    @property
    def snapshots(self) -> int:
        """Adapters that the reference is made of, at most: one where it becomes the policy, else those whose share is
        above fp32's rounding, and no more than there are times that it moves."""
        if self.ref_model_sync_steps is None:
            return 0
        if self.ref_model_mixup_alpha == 1.0:
            return 1
        shares = 1 + math.ceil(math.log(FP32) / math.log1p(-self.ref_model_mixup_alpha))
        steps = self.max_steps
        return shares if steps is None else min(shares, 1 + (steps - 1) // self.ref_model_sync_steps)
