"""Direct preference optimisation with LoRA.  `python -m align.dpo --parent my-sft --data pairs.jsonl --name my-dpo`

Loss: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, over completion tokens only. The reference is the parent artifact,
frozen; its log-probabilities are computed once, before training. Left out: f-divergences, length-desensitised and
reference-free variants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import losses, memory
from align.data.formats import read_pairs
from align.guard import limits
from align.preference import settings, setup
from align.stage.command import main
from align.stage.describe import Outcome, Stage, all_with
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch


class Config(settings.PreferenceConfig):
    """Settings of direct preference optimisation."""

    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """Pairwise loss of the implicit rewards' margin, a function of align/losses/preference.py: DPO's own, or RSO's
    hinge, which leaves a pair alone once its margin is 1."""
    beta: PositiveFloat = 0.1
    """Inverse temperature of the implicit reward; larger stays closer to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round (conservative DPO)."""
    sft_coef: NonNegativeFloat = 0.0
    """Weight of the chosen completions' mean next-token loss beside DPO's (RPO, arXiv 2404.19733, eq. 1)."""
    guard: limits.PolicyLimits = limits.PolicyLimits()


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    logprobs = roles.logprobs("policy", batch)
    ref = batch.per_sequence(batch.columns["ref_logprobs"])
    sums, lengths = batch.per_sequence(logprobs), batch.per_sequence(batch.loss_mask.to(logprobs.dtype))
    pairwise = getattr(losses.preference, config.loss)
    parts = [
        losses.preference.dpo(sums, ref, config.beta, config.label_smoothing, pairwise),
        losses.preference.chosen_shift(sums, ref, lengths),
    ]
    if config.sft_coef:
        parts.append(losses.preference.chosen_nll(logprobs, batch, config.sft_coef))
    return losses.loss.combine(*parts)


def run(config: Config, store: Store) -> Artifact:
    """Train on preference pairs against the parent as reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    return setup.train_on_pairs(bench, lambda r, b: loss(r, b, config), lambda gained, tokens: config.beta * gained)


STAGE = Stage(
    "dpo",
    version=4,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=train,
    makes=("adapter",),
    reads=all_with(read_pairs),
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.dpo, memory.rows.preference),
    does="direct preference optimisation on preference pairs",
    tags=("dpo",),
    encoder_decoders=True,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
