"""Learning from examples in a seeded order: what is computed once and kept, and the fit itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from align import measures, models, training
from align.data import steps
from align.data.examples import Example
from align.data.examples import digest as digest_examples
from align.data.views import Picked
from align.ground.cost import libraries
from align.ground.errors import InputError
from align.ground.json import Json
from align.ground.progress import Task
from align.ground.ranks import is_first
from align.ground.terminal import counted, say
from align.inputs.fit import check_seen
from align.stage import trained_on, watched
from align.stage.workbench import Workbench
from align.store import digest_json

if TYPE_CHECKING:
    from align.guard.supervised import Guard
    from align.models.roles import Roles
    from align.models.trunk_cache import Keeper
    from align.training.cost import Cost
    from align.training.plan import Plan
    from align.training.step_module import LossFunction
    from align.training.whole_step import Prepare, Remembering


def plan(
    bench: Workbench,
    examples: Sequence[Example],
    guard: Guard | None = None,
    prepare: Prepare | None = None,
    carried: Remembering | None = None,
) -> Plan:
    """The seeded order in which training takes `examples`, watched by `guard`."""
    c = bench.config
    made = training.plan.Plan(
        examples,
        batch_size=c.batch_size,
        epochs=c.epochs,
        max_steps=c.max_steps,
        tokens_per_microbatch=c.tokens_per_microbatch,
        seed=c.seed,
        watcher=guard,
        prepare=prepare,
        carried=carried,
    )
    if few := steps.few(made.steps, c.max_steps):
        say(f"{bench.title}: {counted(made.steps, 'optimizer step')} of {counted(c.batch_size, 'record')}{few}")
    return made


def trunk_keeper(bench: Workbench, roles: Roles, passing: bool = False) -> Keeper:
    """Fills examples with what enters the first layer that the policy trains; leaves them as they are where nothing
    is to be kept.

    `passing`: files are for this run alone. Where `adapter.layers` asks for it and it cannot be, a line says why.
    """
    c, run = bench.config, bench.run
    if c.trunk_cache != "off" and (why := models.trunk_cache.find_trunk(roles, "policy")) and c.adapter.layers:
        went_on = (
            "parent" in bench.parents and c.parent_adapter == "continue" and bench.parents["parent"].kind != "model"
        )
        more = "; it goes on from the parent's adapter, `parent_adapter: stack` trains a fresh one" if went_on else ""
        say(f"{bench.title}: adapter.layers is {c.adapter.layers}, but no layer is run once alone: {why}{more}")

    def file(examples: Sequence[Example], parts: Iterable[memoryview]) -> AbstractContextManager[Path]:
        if passing:
            return models.trunk_cache.passing_file(run, parts)
        trunk = {"trunk": models.trunk_cache.digest_below(roles, "policy"), "kept": c.trunk_dtype}
        return bench.store.cached_file(digest_json(trunk | decides(bench, roles, examples)), parts)

    dtype = models.precision.DTYPES["bf16"] if c.trunk_dtype == "bf16" else None
    return models.trunk_cache.Keeper(
        roles, "policy", c.tokens_per_microbatch, dtype, file if c.trunk_cache == "disk" else None, bench.title
    )


def keeps_trunks(bench: Workbench, roles: Roles) -> bool:
    """Whether there may be something that examples are to be filled with."""
    c = bench.config
    if c.trunk_cache == "off" or getattr(c, "neftune_noise_alpha", None) or roles.rows_cut:
        return False
    return bench.kept is not None or bool(c.adapter.layers) or not models.trunk_cache.find_trunk(roles, "policy")


def with_trunk(
    bench: Workbench, roles: Roles, examples: Sequence[Example], looks: Callable[[], Counter[int]]
) -> Sequence[Example]:
    """The same examples, those that are looked at filled as `trunk_keeper` fills them, unless once is all. To be called
    when it is settled what trains. `looks` counts, and is asked only where there may be something to keep: it packs
    every step of the run."""
    if not keeps_trunks(bench, roles):
        return examples
    out = list(examples)
    counts = looks()
    if roles.shards is not None:  # whose forwards are those of all processes: all keep what any of them looks at
        counts = sum(training.processes.everyones(counts), Counter())
    if counts.total() > len(counts):
        bench.kept = bench.kept or trunk_keeper(bench, roles)
        for i, example in zip(sorted(counts), bench.kept([out[i] for i in sorted(counts)]), strict=True):
            out[i] = example
    return out


def fit(
    bench: Workbench,
    roles: Roles,
    loss: LossFunction,
    examples: Sequence[Example],
    guard: Guard,
    show: tuple[str, ...] = (),
    prepare: Prepare | None = None,
    carried: Remembering | None = None,
) -> tuple[list[dict[str, float]], Cost]:
    """Train over `examples` in seeded order, watched by `guard`: history and cost. `prepare` and `carried` as
    `training.plan.Plan` takes them."""
    if not any(any(counted) for e in examples for counted in e.supervised):
        raise InputError(
            f"{bench.title}: none of the {len(examples):,} records has a token that counts, so there is nothing to "
            "learn."
        )
    if keeps_trunks(bench, roles):  # else no plan is made for it
        examples = with_trunk(bench, roles, examples, plan(bench, examples).looks)
    if bench.config.watch_prompts and bench.config.answers:
        guard.answers, guard.sampler = watched.answers(bench), watched.sampler(bench, roles)
    planned = plan(bench, examples, guard, prepare, carried)
    with Task("loading libraries"):
        trained = training.trainer.fit
    found = trained(roles, loss, planned, bench.config, title=bench.title, checkpoints=bench.checkpoints, show=show)
    guard.end(bench.folder)
    bench.measured = guard.figures()
    trained_on.note(bench.folder, (examples[i].opening for i in planned.needed()))
    return found


def check_new_tokens(bench: Workbench, examples: Sequence[Example]) -> None:
    """Each new token is in some record. Raises: InputError."""
    if line := check_seen(dict(zip(bench.new_tokens, getattr(bench.config, "new_tokens", ()), strict=True)), examples):
        say(f"{bench.title}: new tokens in the records: {line}")


def with_reference(
    bench: Workbench, roles: Roles, examples: Sequence[Example], places: Sequence[int] | None = None
) -> Sequence[Example]:
    """The same examples, those at some places or all with the reference's log-probs as column `ref_logprobs`.

    They are computed once per store: what decides them (reference, base, tokens, precision) is the key under which
    they are kept.
    """
    parent = bench.parents.get("parent")
    budget = bench.config.tokens_per_microbatch
    reference = [parent.files[f]["sha256"] for f in sorted(parent.files) if f.startswith("adapters/")] if parent else []
    some = examples if places is None else Picked(examples, places)
    kept = sorted({str(e.trunk[1].dtype) for e in some if e.trunk is not None})
    key = digest_json({"reference": reference, "kept": kept, **decides(bench, roles, some)})

    def measured() -> bytes:
        return measures.passes.flat_logprobs(roles, "reference", some, budget).tobytes()

    made = once_for_all(bench, key, measured) if roles.shards is not None else bench.store.cached(key, measured)
    return measures.passes.with_column(examples, "ref_logprobs", made, places)


def once_for_all(bench: Workbench, key: str, make: Callable[[], bytes]) -> bytes:
    """What is kept under `key`, as the first process has it, else made by all of them together."""
    making = []

    def together() -> bytes:
        making.append(training.processes.from_first(True))
        return make()

    if is_first():
        made = bench.store.cached(key, together)
        if not making:
            training.processes.from_first(False)
    else:
        made = make() if training.processes.from_first(False) else b""
    return training.processes.from_first(made)


def decides(bench: Workbench, roles: Roles, examples: Sequence[Example]) -> Json:
    """What decides any result of a forward pass over `examples`, beside the adapters."""
    budget = bench.config.tokens_per_microbatch  # other packing rounds otherwise
    return {
        "base": [bench.base.digest, bench.base.quantize],
        "precision": [str(roles.base.dtype), str(roles.base.device.type), budget, libraries()],
        "examples": digest_examples(examples),
    }
