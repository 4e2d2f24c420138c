"""Direct preference optimisation with LoRA.  `python -m align.dpo --parent my-sft --data pairs.jsonl --name my-dpo`

Loss: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, over completion tokens only, or another function of
align/losses/preference.py, or several, each with a weight: `--loss.sigmoid 0.8 --loss.bco_pair 0.2`. The reference is
the parent artifact, frozen; its log-probabilities are computed once, before training. With `ref_model_sync_steps` it
follows the policy (TR-DPO, arXiv 2404.09656), and they are computed anew in each step. Without a reference: simpo, cpo,
orpo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import losses, memory, preference
from align.data.formats import read_pairs
from align.guard import limits
from align.preference import settings, setup
from align.recipe.training import ReferenceConfig
from align.stage.command import main
from align.stage.describe import Outcome, Stage, all_with
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from torch import Tensor

    from align.data.examples import Example
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch

PairLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "aot",
    "aot_unpaired",
]
SMOOTHED = {"sigmoid", "hinge", "robust", "exo_pair", "aot", "aot_unpaired"}
"""Losses that read label_smoothing."""
OF_DIFFERENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "discopop"}
"""Losses of what chosen is above rejected, for which alone another divergence means something (as in TRL)."""
WITH_A_GOAL = {"ipo", "sppo_hard"}
"""Losses that have a margin to reach, beyond which they rise again."""
SORTED = ("aot", "aot_unpaired")
"""Losses that sort a whole optimizer step."""


class Config(settings.PreferenceConfig, ReferenceConfig):
    """Settings of direct preference optimisation."""

    loss: PairLoss | Annotated[dict[PairLoss, PositiveFloat], Field(min_length=1)] = "sigmoid"
    """Pairwise loss, by TRL's names (papers: align/losses/preference.py), or several with a weight each:
    `loss: {sigmoid: 0.8, bco_pair: 0.2}`."""
    beta: PositiveFloat = 0.1
    """Inverse temperature of the implicit reward; larger stays closer to the reference. IPO's tau."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round: conservative DPO with sigmoid, hinge and aot; what
    robust allows for; exo_pair's epsilon (1e-3 in its paper)."""
    discopop_tau: PositiveFloat = 0.05
    """Temperature at which discopop goes over from one loss to the other (its paper's)."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """What holds the policy to the reference (f-DPO, arXiv 2309.16240); DPO's own is reverse KL."""
    f_alpha: float = 0.5
    """Alpha of the alpha divergence."""
    wpo: bool = False
    """Weigh pairs by how likely the policy finds both answers (WPO, arXiv 2406.11827)."""
    ld_alpha: float | None = Field(default=None, ge=0.0, le=1.0)
    """Weight of tokens beyond the length of the shorter answer (LD-DPO, arXiv 2409.06411); without it 1."""
    dynamic_beta: PositiveFloat | None = None
    """Another beta in each step (beta-DPO, arXiv 2407.08639; its alpha, 0.6 there): 1 + dynamic_beta (mean margin -
    running mean) times beta. One more pass of the policy in each step."""
    beta_momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Share of the running mean of margins that stays at each step (its paper's)."""
    sft_coef: NonNegativeFloat = 0.0
    """Weight of the chosen completions' mean next-token loss beside DPO's (RPO, arXiv 2404.19733, eq. 1)."""
    guard: limits.PolicyLimits = limits.PolicyLimits()

    @property
    def losses(self) -> dict[PairLoss, float]:
        """Each loss and its weight."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, loss = super().conflicts(given), given.get("loss", "sigmoid")
        names = [str(name) for name in loss] if isinstance(loss, Mapping) else [str(loss)]
        sort = [name for name in names if name in SORTED]
        divergence = given.get("f_divergence", "reverse_kl")
        if "exo_pair" in names and not given.get("label_smoothing"):
            found.append("exo_pair takes the logarithm of label_smoothing; set it above 0, such as 0.001.")
        if divergence != "reverse_kl" and (other := [name for name in names if name not in OF_DIFFERENCE]):
            takes = f"only {', '.join(sorted(OF_DIFFERENCE))} take another one"
            found.append(
                f"f_divergence is {divergence}, but {other[0]} has no such form: {takes}. Leave one of them out."
            )
        if divergence == "alpha_divergence" and given.get("f_alpha") == 1:
            found.append("f_alpha is 1, where the alpha divergence is reverse KL. Set f_divergence: reverse_kl.")
        if given.get("wpo") and sort:
            found.append(f"{sort[0]} sorts the two sides apart, so there are no pairs for wpo to weigh. Leave one out.")
        if given.get("dynamic_beta") and divergence != "reverse_kl":
            found.append(
                f"dynamic_beta is measured by log ratios, and f_divergence is {divergence}. Leave one of them out."
            )
        if len(sort) > 1:
            found.append("aot and aot_unpaired sort a step in two ways. Leave one of them out.")
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found, names = super().without_effect(parent), self.losses.keys()
        if not names & SMOOTHED:
            found["label_smoothing"] = f"{' and '.join(names)} does not read it. Leave it out."
        if "discopop" not in names:
            found["discopop_tau"] = "loss is not discopop. Leave it out."
        if self.dynamic_beta is None:
            found["beta_momentum"] = "dynamic_beta is not set, so that beta stays. Set it, or leave this out."
        if self.f_divergence != "alpha_divergence":
            found["f_alpha"] = "f_divergence is not alpha_divergence. Leave it out."
        return found


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    logprobs, importance = policy_of(roles, batch, config)
    sums, ref = per_sequence(logprobs, batch, config), per_sequence(batch.columns["ref_logprobs"], batch, config)
    lengths = batch.lengths
    scores = getattr(losses.divergence, config.f_divergence)(sums - ref, config.f_alpha)
    beta: float | Tensor = config.beta
    if config.dynamic_beta and not batch.void:  # which counts nothing, and whose columns are 0
        beta = batch.columns["beta"][batch.ends[:1] - 1]
    pairs = losses.preference.Pairs(
        scores[0::2],
        scores[1::2],
        lengths[0::2],
        lengths[1::2],
        beta,
        config.label_smoothing,
        config.discopop_tau,
        batch.columns["coupled"][batch.ends - 1] if "coupled" in batch.columns else None,
    )
    wanted = {getattr(losses.preference, name): weight for name, weight in config.losses.items()}
    parts = [
        losses.preference.dpo(pairs, wanted, importance),
        losses.preference.rewards(config.beta * (sums - ref)),
        losses.preference.chosen_shift(sums, ref, lengths),
    ]
    if config.dynamic_beta:
        parts.append(losses.preference.beta_of_step(beta, len(sums) // 2))
    if config.sft_coef:
        parts.append(losses.preference.chosen_nll(logprobs, batch, config.sft_coef))
    return losses.loss.combine(*parts)


def policy_of(roles: Roles, batch: Batch, config: Config) -> tuple[Tensor, Tensor | float]:
    """The policy's log-probs (T), and how much each pair counts."""
    if config.wpo:
        return preference.policy.logprobs_and_importance(roles, batch)
    return roles.logprobs("policy", batch), 1.0


def per_sequence(values: Tensor, batch: Batch, config: Config) -> Tensor:
    """`values (T)` summed over each sequence (S), as `ld_alpha` weighs them."""
    if config.ld_alpha is None:
        return batch.per_sequence(values)
    return batch.per_sequence(values * losses.preference.desensitised(batch, config.ld_alpha))


def run(config: Config, store: Store) -> Artifact:
    """Train on preference pairs against the parent as reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    sort, budget = [name for name in config.losses if name in SORTED], config.tokens_per_microbatch
    dynamic = None
    if config.dynamic_beta:
        dynamic = preference.dynamic_beta.DynamicBeta(config.beta, config.dynamic_beta, config.beta_momentum)

    def summed(values: Tensor, batch: Batch) -> Tensor:
        return per_sequence(values, batch, config)

    def prepare(roles: Roles, examples: list[Example]) -> list[Example]:
        if dynamic:
            examples = dynamic.fill(roles, examples, budget, summed)
        return preference.policy.coupled(roles, examples, budget, sort[0], summed) if sort else examples

    def own_loss(gained: Tensor, lengths: Tensor) -> Tensor:
        scores = getattr(losses.divergence, config.f_divergence)(gained, config.f_alpha)
        pairs = losses.preference.Pairs(scores[0::2], scores[1::2], lengths[0::2], lengths[1::2], config.beta)
        first, *others = (getattr(losses.preference, name)(pairs) * weight for name, weight in config.losses.items())
        return sum(others, first)

    return setup.train_on_pairs(
        bench,
        lambda r, b: loss(r, b, config),
        lambda gained, tokens: config.beta * gained,
        prepare if sort or dynamic else None,
        carried=dynamic,
        own_loss=own_loss if config.losses.keys() <= WITH_A_GOAL else None,
    )


STAGE = Stage(
    "dpo",
    version=5,
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
