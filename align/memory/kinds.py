"""The phases of stages, a function a kind: what a stage's `Footprint` names. The order within a function is that of
the stage."""

from __future__ import annotations

from dataclasses import replace

from align.memory import sizes
from align.memory.phases import (
    as_stored,
    base,
    blended,
    by_matmul,
    check,
    fresh,
    frozen,
    load,
    merged_copy,
    moved,
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
from align.memory.plan import MemoryPlan, Part, Phase, Workload

PROBE_ROWS = 16 * 48
"""Rows on which a merged model is compared with the unmerged one, in fp64: `merge.PROBES` of `merge.PROBE_TOKENS`."""
COUNTED = 0.5
"""Share of a conversation's tokens that count, which only the data says; in Anthropic HH's pairs it is about half."""
SCORED_TOKENS = 4096
"""Tokens of one packed row that a reward model reads where no policy trains."""
LISTED = 8
"""Answers of a list, at most, where only the data says how many."""
MANY = 1 << 40
"""Prompts, where only the data says how many."""


def plan(work: Workload) -> MemoryPlan:
    """Predict a stage."""
    return MemoryPlan(work, tuple(work.footprint.phases(work)))


# ---- learning from rows ----------------------------------------------------------------------------------------------


def pretrain(work: Workload, of_logits: int = sizes.TRAINED) -> list[Phase]:
    """All weights in fp32 (where hardware has bf16, products are computed in it from copies of the weights), or an
    adapter as in SFT. What is stored is loaded again, beside the model in memory."""
    if work.config.method == "lora":
        return supervised(work, 1, head=True, read=1.0)
    shape, tokens = work.shape, row(work, work.longest, work.config.batch_size)
    config = work.config
    state = round(sizes.optimizer_of_all(shape, config.optimizer, config.optim_args))
    whole = Part("model in fp32", 4 * shape.weights)
    copies = (
        [Part("weights in bf16", 2 * (shape.linear_weights + shape.vocabulary * shape.hidden))] if work.bf16 else []
    )
    head = Part("gradient of the head", 4 * shape.vocabulary * shape.hidden)
    fixed = [*process(work), whole, Part("gradients, optimizer", 4 * shape.weights + state), *copies, head]
    kept = sizes.kept_in_full_training(shape, bf16=work.bf16, by_matmul=by_matmul(work))
    written = {"fp32": 0, "bf16": 2}[work.config.save_dtype] * shape.weights
    return [
        *through_layers(work, fixed, kept, tokens, tokens, copies=of_logits, stream=4),
        *watching(work, fixed),
        Phase(
            "check",
            (
                *process(work),
                whole,
                Part("model, loaded again", 4 * shape.weights),
                Part("model as it is written", written),
            ),
        ),
    ]


def supervised(
    work: Workload,
    branches: int,
    head: bool,
    read: float,
    reference: bool | None = None,
    copies: int = sizes.LOGPROBS,
) -> list[Phase]:
    """SFT, reward, DPO and its kin, and pretraining of an adapter: one role in training, beside a `reference` where
    there are two branches; `read`: share of tokens read of the last layer; `copies` of a block of logits."""
    mine = policy(work)
    fixed = [*process(work), *base(work), *trained(work, {"policy": mine[-1]}), *frozen({"policy, below": mine[:-1]})]
    if branches == 2 if reference is None else reference:
        fixed += [*frozen({"reference": work.parent}), *moved(work)]
    tokens = row(work, branches * work.longest, work.config.batch_size)
    trained_on = passes(work, fixed, mine, tokens, tokens if head else 0, round(read * tokens), copies=copies)
    return [load(work), *trained_on, *watching(work, [*fixed, *merged_copy(work)]), *check(work, fixed)]


def watching(work: Workload, fixed: list[Part]) -> list[Phase]:
    """Answers to the watched prompts between steps; looks at held-out records take less than a step."""
    c = work.config
    return sampling(work, fixed, c.watch_prompts, 1, c.watch_tokens) if c.watch_prompts and c.answers else []


def sft(work: Workload) -> list[Phase]:
    return supervised(work, 1, head=True, read=COUNTED)


def distill(work: Workload) -> list[Phase]:
    """The teacher's pass over the rows, on its own base or as a role on the student's, then training, during which the
    teacher stays where the student answers, as it does where the two share a base."""
    c, teacher = work.config, work.teacher
    assert teacher is not None
    shared = c.method == "lora" and teacher.base == work.base != "" and teacher.quantize == work.quantize
    there = frozen({"teacher": teacher.parent})
    if not shared:
        there += [replace(part, name=f"teacher's {part.name}") for part in base(teacher.unsharded)]
    tokens = row(work, work.longest, c.batch_size)
    alone = [*process(work), *there, *(base(work) if shared else [])]
    counted = round(COUNTED * work.rows.count * work.rows.sequence) if work.rows and work.rows.count else 0
    kept = [Part("the teacher's likeliest tokens", 8 * (c.top_k + 1) * counted)]
    in_all = c.method == "full"
    training = (
        pretrain(work, sizes.DIVERGENCES)
        if in_all
        else supervised(work, 1, head=True, read=COUNTED, copies=sizes.DIVERGENCES)
    )
    stays = kept + (there if shared or c.lmbda else [])
    phases = [replace(phase, parts=(*phase.parts, *stays)) for phase in training]
    if c.lmbda:
        fixed = [*process(work), *base(work), *there, *frozen({"policy": policy(work)}), *merged_copy(work)]
        phases += sampling(work, fixed, c.batch_size, 1, min(c.max_new_tokens, work.longest))
    return [scoring(teacher, "teacher", alone, tokens, round(COUNTED * tokens), sizes.LIKELIEST), *phases]


def reward(work: Workload) -> list[Phase]:
    """Training, then samples of the parent, on whose scores the head is centred."""
    c = work.config
    branches = 1 if c.steps else LISTED if c.lists else 2
    phases = supervised(work, branches, head=False, read=0.0, reference=True)
    if c.centre_samples and not c.steps:
        fixed = [*process(work), *base(work), *frozen({"policy": policy(work), "reference": work.parent})]
        fixed += merged_copy(work) if work.parent else []
        phases += sampling(work, fixed, work.at_most(c.centre_samples), 1, c.centre_max_new_tokens)
    return phases


def dpo(work: Workload) -> list[Phase]:
    """A pass over the reference, then training."""
    tokens = row(work, 2 * work.longest, work.config.batch_size)
    fixed = [*process(work), *base(work), *frozen({"policy": policy(work), "reference": work.parent}), *moved(work)]
    return [
        *supervised(work, 2, head=True, read=COUNTED),
        scoring(work, "reference", fixed, tokens, tokens, sizes.LOGPROBS),
    ]


def kto(work: Workload) -> list[Phase]:
    """A pass over the reference, then training; KL is estimated in between, on as many tokens."""
    tokens = row(work, work.longest, work.config.batch_size)
    fixed = [*process(work), *base(work), *frozen({"policy": policy(work), "reference": work.parent})]
    return [
        *supervised(work, 1, head=True, read=COUNTED, reference=True),
        scoring(work, "reference", fixed, tokens, tokens, sizes.LOGPROBS),
    ]


def without_reference(work: Workload) -> list[Phase]:
    """Pairs and the policy alone."""
    return supervised(work, 2, head=True, read=COUNTED, reference=False)


# ---- learning from samples -------------------------------------------------------------------------------------------


def ppo(work: Workload) -> list[Phase]:
    """The value role is a copy of the first reward model, else of the parent, else fresh; it takes its turn after the
    policy. On the policy's trunk it is a head."""
    if work.config.value == "trunk":
        return experience(work, 1, {})
    value = work.rewards[0] if work.rewards else work.parent or (fresh(work),)
    return experience(work, 1, {"value": value})


def in_groups(work: Workload) -> list[Phase]:
    """GRPO, RLOO and REINFORCE++: answers to one prompt share it, and no role says what a state is worth."""
    return experience(work, work.config.group_size, {})


def experience(work: Workload, group: int, also: dict[str, tuple[int, ...]]) -> list[Phase]:
    """Sampling, measuring and training on `group` answers to a prompt; `also` are roles that train beside the
    policy."""
    c, mine = work.config, policy(work)
    others = {"policy, below": mine[:-1], "reference": work.parent, "judge": work.judge}
    others |= {"reward" if i == 0 else f"reward {i + 1}": adapters for i, adapters in enumerate(work.rewards)}
    training = {"policy": mine[-1], **{role: sum(adapters) for role, adapters in also.items()}}
    fixed = [*process(work), *base(work), *trained(work, training), *frozen(others), *moved(work)]
    new = min(c.max_new_tokens, work.longest)
    record = work.longest - new + group * new
    fixed += rows_below(work, c.rollout_size // group * record)
    tokens = row(work, record, c.batch_size // group, group * new)
    counted = tokens * group * new // record
    here = c.rollouts is None  # or a server draws them
    with_copy = [*fixed, *(merged_copy(work) if here else [])]  # dropped before the policy trains
    return [
        load(work),
        *(sampling(work, with_copy, c.rollout_size // group, group, new) if here else []),
        scoring(
            work,
            "measuring",
            with_copy,
            row(work, record, c.rollout_size // group, group * new),
            counted,
            sizes.ENTROPIES,
        ),
        *passes(work, fixed, mine, tokens, counted, counted, "policy" if also else ""),
        *(
            phase
            for role, adapters in also.items()
            for phase in passes(work, fixed, adapters, tokens, 0, counted, role)
        ),
        *check(work, fixed),
    ]


# ---- stages that do not train ----------------------------------------------------------------------------------------


def scored(work: Workload) -> list[Phase]:
    """Samples of the parent, or of the base, which a reward model or a judging one then reads, where there is one."""
    c = work.config
    fixed = [
        *process(work),
        *base(work),
        *frozen({"reference": work.parent}),
        *frozen({"reward": sum(work.rewards, ()), "judge": work.judge}),
        *(merged_copy(work) if work.parent else []),
    ]
    phases = [load(work), *sampling(work, fixed, work.at_most(c.limit or MANY), c.n, c.max_new_tokens)]
    if work.rewards or c.judge_prompt:
        group = work.longest + (c.n - 1) * c.max_new_tokens
        phases.append(scoring(work, "scoring", fixed, max(SCORED_TOKENS, group), 0, 0))
    return phases


def evaluate(work: Workload) -> list[Phase]:
    """One model after the other answers and is measured beside the one it is compared with; then the reward model
    scores."""
    c = work.config
    largest = max(work.compared, key=sum)
    there = [*process(work), *base(work), *frozen({"model": largest, "against": largest})]
    new = min(c.max_new_tokens, work.longest)
    phases = [load(work)]
    if c.data:
        phases += sampling(work, [*there, *merged_copy(work)], work.at_most(c.limit or MANY), 1, new)
    reads_all = bool(c.texts)
    tokens = row(work, (2 if c.pairs else 1) * work.longest, work.at_most(MANY), new)
    phases.append(
        scoring(work, "measuring", there, tokens, tokens if reads_all else tokens * new // work.longest, sizes.LOGPROBS)
    )
    if work.rewards:
        phases.append(scoring(work, "scoring", [*there, *frozen({"reward": work.rewards[0]})], tokens, 0, 0))
    if c.judge_prompt:
        held = frozen({"reward": sum(work.rewards, ()), "judge": work.judge})
        phases.append(scoring(work, "asking", [*there, *held], tokens, 0, 0))
    return phases


def blend(work: Workload) -> list[Phase]:
    """The adapters, what PEFT makes of them beside, and the blend on its base, once more where it is compared."""
    fixed = [*process(work), *base(work)]
    given = Part("adapters, twice", 2 * 4 * sum(map(sum, work.compared)))
    return [load(work), Phase("blending", (*fixed, given, Part("blend, three times", 3 * 4 * sum(blended(work)))))]


def merge(work: Workload) -> list[Phase]:
    """The base in fp32; beside it a merged copy while the probe's text is sampled, then what is written in the
    precision of the files; then that once more in fp32, alone, and the logits of both."""
    shape, wanted = work.shape, work.config.dtype
    stored = {"auto": shape.stored_bytes, "fp32": 4}.get(wanted, 2)
    whole = [*process(work), Part("base in fp32", 4 * shape.weights)]
    adapter = Part("adapter", 4 * sum(work.parent))
    logits = Part("logits of the probe", 4 * PROBE_ROWS * shape.vocabulary)
    written = [Part("model as it is written", stored * shape.weights)] if stored != 4 else []
    return [
        Phase("load", (*whole, *as_stored(work, 4))),
        Phase("sampling", (*whole, adapter, Part("merged copy for sampling", 4 * shape.linear_weights))),
        Phase("writing", (*whole, adapter, logits, *written)),
        Phase("load again", (*whole, logits, *as_stored(replace(work, shape=replace(shape, stored_bytes=stored)), 4))),
        Phase("comparison", (*whole, Part("logits of both models", 2 * logits.bytes))),
    ]
