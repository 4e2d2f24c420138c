"""The phases of stages, a function a kind: what a stage's `Footprint` names. The order within a function is that of
the stage."""

from __future__ import annotations

from align.memory import parts
from align.memory.phases import (
    base,
    by_matmul,
    fresh,
    frozen,
    load,
    mapped,
    merged_copy,
    passes,
    policy,
    process,
    row,
    rows_below,
    sampling,
    scoring,
    through_layers,
    trained,
)
from align.memory.plan import Part, Phase, Plan, Setup

PROBE_ROWS = 16 * 48
"""Rows on which a merged model is compared with the unmerged one, in fp64: `merge.PROBES` of `merge.PROBE_TOKENS`."""
COUNTED = 0.5
"""Share of a conversation's tokens that count, which only the data says; in Anthropic HH's pairs it is about half."""
MANY = 1 << 40
"""Prompts, where only the data says how many."""


def plan(setup: Setup) -> Plan:
    """Predict a stage."""
    return Plan(setup, tuple(setup.footprint.phases(setup)))


# ---- learning from rows ----------------------------------------------------------------------------------------------


def pretrain(setup: Setup) -> list[Phase]:
    """All weights in fp32 (where hardware has bf16, products are computed in it from copies of the weights), or an
    adapter as in SFT. What is stored is loaded again, beside the model in memory."""
    if setup.config.method == "lora":
        return supervised(setup, 1, head=True, read=1.0)
    shape, tokens = setup.shape, row(setup, setup.longest, setup.config.batch_size)
    state = parts.OPTIMIZER_BYTES[setup.config.optimizer]
    whole = Part("model in fp32", 4 * shape.weights)
    copies = (
        [Part("weights in bf16", 2 * (shape.linear_weights + shape.vocabulary * shape.hidden))] if setup.bf16 else []
    )
    head = Part("gradient of the head", 4 * shape.vocabulary * shape.hidden)
    fixed = [*process(setup), whole, Part("gradients, optimizer", (4 + state) * shape.weights), *copies, head]
    kept = parts.kept_in_full_training(shape, bf16=setup.bf16, by_matmul=by_matmul(setup))
    written = {"fp32": 0, "bf16": 2}[setup.config.save_dtype] * shape.weights
    return [
        *through_layers(setup, fixed, kept, tokens, tokens, copies=parts.TRAINED, stream=4),
        Phase(
            "check",
            (
                *process(setup),
                whole,
                Part("model, loaded again", 4 * shape.weights),
                Part("model as it is written", written),
            ),
        ),
    ]


def supervised(setup: Setup, branches: int, head: bool, read: float) -> list[Phase]:
    """SFT, reward, DPO and pretraining of an adapter: one role in training; `read`: share of tokens read of the last
    layer."""
    mine = policy(setup)
    fixed = [
        *process(setup),
        *base(setup),
        *trained(setup, {"policy": mine[-1]}),
        *frozen({"policy, below": mine[:-1]}),
    ]
    if branches == 2:
        fixed += frozen({"reference": setup.parent})
    tokens = row(setup, branches * setup.longest, setup.config.batch_size)
    return [load(setup), *passes(setup, fixed, mine, tokens, tokens if head else 0, round(read * tokens))]


def sft(setup: Setup) -> list[Phase]:
    return supervised(setup, 1, head=True, read=COUNTED)


def reward(setup: Setup) -> list[Phase]:
    """Training, then samples of the parent, on whose scores the head is centred."""
    c, phases = setup.config, supervised(setup, 2, head=False, read=0.0)
    if c.centre_samples:
        fixed = [*process(setup), *base(setup), *frozen({"policy": policy(setup), "reference": setup.parent})]
        fixed += merged_copy(setup) if setup.parent else []
        phases += sampling(setup, fixed, setup.at_most(c.centre_samples), 1, c.centre_max_new_tokens)
    return phases


def dpo(setup: Setup) -> list[Phase]:
    """A pass over the reference, then training."""
    tokens = row(setup, 2 * setup.longest, setup.config.batch_size)
    fixed = [*process(setup), *base(setup), *frozen({"policy": policy(setup), "reference": setup.parent})]
    return [
        *supervised(setup, 2, head=True, read=COUNTED),
        scoring(setup, "reference", fixed, tokens, tokens, parts.LOGPROBS),
    ]


# ---- learning from samples -------------------------------------------------------------------------------------------


def ppo(setup: Setup) -> list[Phase]:
    """The value role is a copy of the first reward model, else of the parent, else fresh; it takes its turn after the
    policy (with torchrun both graphs are kept at a time). On the policy's trunk it is a head."""
    if setup.config.value == "trunk":
        return experience(setup, 1, {})
    value = setup.rewards[0] if setup.rewards else setup.parent or (fresh(setup),)
    return experience(setup, 1, {"value": value})


def in_groups(setup: Setup) -> list[Phase]:
    """GRPO, RLOO and REINFORCE++: answers to one prompt share it, and no role says what a state is worth."""
    return experience(setup, setup.config.group_size, {})


def experience(setup: Setup, group: int, also: dict[str, tuple[int, ...]]) -> list[Phase]:
    """Sampling, measuring and training on `group` answers to a prompt; `also` are roles that train beside the
    policy."""
    c, mine = setup.config, policy(setup)
    others = {"policy, below": mine[:-1], "reference": setup.parent}
    others |= {"reward" if i == 0 else f"reward {i + 1}": adapters for i, adapters in enumerate(setup.rewards)}
    training = {"policy": mine[-1], **{role: sum(adapters) for role, adapters in also.items()}}
    fixed = [*process(setup), *base(setup), *trained(setup, training), *frozen(others)]
    new = min(c.max_new_tokens, setup.longest)
    record = setup.longest - new + group * new
    fixed += rows_below(setup, c.rollout_size // group * record)
    tokens = row(setup, record, c.batch_size // group, group * new)
    counted = tokens * group * new // record
    with_copy = [*fixed, *merged_copy(setup)]  # dropped before the policy trains
    return [
        load(setup),
        *sampling(setup, with_copy, c.rollout_size // group, group, new),
        scoring(
            setup,
            "measuring",
            with_copy,
            row(setup, record, c.rollout_size // group, group * new),
            counted,
            parts.ENTROPIES,
        ),
        *passes(setup, fixed, mine, tokens, counted, counted, "policy" if also else ""),
        *(
            phase
            for role, adapters in also.items()
            for phase in passes(setup, fixed, adapters, tokens, 0, counted, role)
        ),
    ]


# ---- stages that do not train ----------------------------------------------------------------------------------------


def pairs(setup: Setup) -> list[Phase]:
    """Samples of the parent, or of the base."""
    c = setup.config
    fixed = [
        *process(setup),
        *base(setup),
        *frozen({"reference": setup.parent}),
        *(merged_copy(setup) if setup.parent else []),
    ]
    return [load(setup), *sampling(setup, fixed, setup.at_most(c.limit or MANY), c.n, c.max_new_tokens)]


def evaluate(setup: Setup) -> list[Phase]:
    """One model after the other answers and is measured beside the one it is compared with; then the reward model
    scores."""
    c = setup.config
    largest = max(setup.compared, key=sum)
    there = [*process(setup), *base(setup), *frozen({"model": largest, "against": largest})]
    new = min(c.max_new_tokens, setup.longest)
    phases = [load(setup)]
    if c.data:
        phases += sampling(setup, [*there, *merged_copy(setup)], setup.at_most(c.limit or MANY), 1, new)
    reads_all = bool(c.texts)
    tokens = row(setup, (2 if c.pairs else 1) * setup.longest, setup.at_most(MANY), new)
    phases.append(
        scoring(
            setup, "measuring", there, tokens, tokens if reads_all else tokens * new // setup.longest, parts.LOGPROBS
        )
    )
    if setup.rewards:
        phases.append(scoring(setup, "scoring", [*there, *frozen({"reward": setup.rewards[0]})], tokens, 0, 0))
    return phases


def merge(setup: Setup) -> list[Phase]:
    """The base in fp32; beside it a merged copy while the probe's text is sampled, then what is written in the
    precision of the files; then that once more in fp32, alone, and the logits of both."""
    shape, wanted = setup.shape, setup.config.dtype
    stored = {"auto": shape.stored_bytes, "fp32": 4}.get(wanted, 2)
    whole = [*process(setup), Part("base in fp32", 4 * shape.weights)]
    adapter = Part("adapter", 4 * sum(setup.parent))
    logits = Part("logits of the probe", 4 * PROBE_ROWS * shape.vocabulary)
    written = [Part("model as it is written", stored * shape.weights)] if stored != 4 else []
    return [
        Phase("load", (*whole, *mapped(setup, shape.stored_bytes, 4))),
        Phase("sampling", (*whole, adapter, Part("merged copy for sampling", 4 * shape.linear_weights))),
        Phase("writing", (*whole, adapter, logits, *written)),
        Phase("load again", (*whole, logits, *mapped(setup, stored, 4))),
        Phase("comparison", (*whole, Part("logits of both models", 2 * logits.bytes))),
    ]
