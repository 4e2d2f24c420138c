"""Several LoRA adapters as one, or one of a lower rank.  `python -m align.blend a b --method ties --density 0.5`

By PEFT's `add_weighted_adapter`. `cat` puts the factors side by side and is exact; `svd` cuts their sum to a rank or to
a share of its energy; `linear` adds A and B one by one, which is not the sum of what the adapters do; TIES is Yadav et
al. 2023 (arXiv 2306.01708), DARE Yu et al. 2023 (arXiv 2311.03099). Of an adapter that is stacked on others all are
taken: alone, `cat` makes one plain adapter of them, which the methods that are no sum then take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align import adapters, memory
from align.folders.adapter import STACKABLE, method_name
from align.ground.errors import InputError
from align.ground.progress import Task
from align.ground.terminal import counted, say
from align.recipe import Count, Positional, Refs, Runtime, StageConfig, Threads, Weights
from align.recipe.adapters import BlendMethod
from align.stage import on_base, outcomes
from align.stage.command import main
from align.stage.describe import Outcome, Stage
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

SUMS = ("cat", "svd")
"""Methods by which parts of an adapter may be blended one by one."""
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Config(StageConfig):
    """Blending"""

    apart: ClassVar[frozenset[str]] = frozenset({"method", "weights"})
    """As in `TrainConfig`."""

    adapters: Annotated[Refs, Positional]
    """Artifacts to blend, all on one base: names, digests, or their beginnings."""
    method: BlendMethod = "cat"
    """How, by PEFT's name. cat is the exact sum and has the ranks' sum; with _svd at the end the sum itself is pruned
    and cut to a rank, without it each factor."""
    weights: Weights = Field(default_factory=dict)
    """How much of each is taken, 1 where it is not named: --weights.my-sft 0.5; below 0 takes it off."""
    rank: Count | None = None
    """Rank of what svd leaves; without it, the largest rank of the adapters."""
    energy: Share | None = None
    """The rank of svd as the share of squared singular values that it keeps, over all layers."""
    density: Share | None = None
    """The share of numbers that TIES and DARE keep."""
    majority_sign_method: Literal["total", "frequency"] = "total"
    """By what TIES elects a sign: magnitude or number."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What it is checked in."""
    threads: Annotated[Threads | None, Runtime] = None
    """CPU threads; without it, as many as torch takes."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, method = super().conflicts(given), str(given.get("method"))
        if given.get("rank") and given.get("energy"):
            found.append("rank and energy both say which rank is left. Leave one of them out.")
        if method.startswith(("ties", "dare")) and not given.get("density"):
            found.append(f"method {method} needs density, the share of numbers that it keeps: --density 0.5.")
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if not self.method.endswith("svd"):
            found["rank"] = f"method is {self.method}, which cuts nothing to a rank. Take svd, or leave it out."
        if self.method != "svd":
            found["energy"] = f"method is {self.method}, and energy is that of a plain sum. Take svd, or leave it out."
        if not self.method.startswith(("ties", "dare")):
            found["density"] = f"method is {self.method}, which leaves no numbers out. Leave it out."
        if "ties" not in self.method:
            found["majority_sign_method"] = f"method is {self.method}, which elects no signs. Leave it out."
        if not self.method.startswith("dare"):
            found["seed"] = f"method is {self.method}, which draws nothing. Leave it out."
        return found


def run(config: Config, store: Store) -> Artifact:
    """Blend `config.adapters`; an `adapter` artifact."""
    return execute(STAGE, config, store)


def named(parents: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """What is blended, by the names that weights go by."""
    return {role.removeprefix("adapters/"): artifact for role, artifact in parents.items()}


def ready(bench: Workbench, records: Mapping[str, object]) -> None:
    """All are LoRA of linear layers alone, each is one where the method is no sum, and every weight is of one of them.
    Raises: InputError."""
    artifacts = named(bench.parents)
    if strangers := sorted(bench.config.weights.keys() - artifacts.keys()):
        raise InputError(
            f"weights.{strangers[0]} is of none that is blended; there are {', '.join(artifacts)}, by the ends of "
            "their names."
        )
    parts = 0
    for name, artifact in artifacts.items():
        paths = [p for p in artifact.files if p.startswith("adapters/") and p.endswith("/adapter_config.json")]
        for path in paths:
            check_plain(name, json.loads(bench.store.read(artifact, path)))
        check_apart(name, len(paths), bench.config.method)
        parts += len(paths)
    if parts == 1 and bench.config.method not in (*SUMS, "linear"):
        raise InputError(
            f"method {bench.config.method} holds adapters against each other, and {next(iter(artifacts))} is one. "
            "Name another beside it, or take svd, which cuts it to a rank."
        )


def check_plain(name: str, settings: Mapping[str, object]) -> None:
    """Raises: InputError for an adapter that is more than two factors of linear layers."""
    more = {"target_parameters": "routed experts", "trainable_token_indices": "rows of tokens"}
    has = next((what for key, what in more.items() if settings.get(key)), None)
    if (method := method_name(settings)) not in STACKABLE or has:
        raise InputError(
            f"{name} is an adapter of {method}{f' with {has}' if has else ''}, and LoRA's factors of linear layers "
            "alone can be blended. Merge it (`align merge`) instead."
        )


def check_apart(name: str, parts: int, method: str) -> None:
    """Raises: InputError for an artifact of several adapters and a method that is no sum."""
    if parts > 1 and method not in SUMS:
        raise InputError(
            f"{name} has {parts} adapters that act as their sum, and method {method} would take each by itself. Take "
            f"cat or svd, or make one of them first: `align blend {name} --name one`."
        )


def work(bench: Workbench) -> Outcome:
    config = bench.config
    ready(bench, {})
    renderer = bench.load_renderer()
    parts = [
        adapters.arithmetic.part(folder, config.weights.get(name, 1.0))
        for name, artifact in named(bench.parents).items()
        for folder in on_base.adapter_folders(bench.store.folder(artifact))
    ]
    roles = bench.load_base()
    order = [name for name, _ in roles.base.named_modules()]
    metrics: dict[str, float] = {}
    rank = config.rank
    with Task(f"blending {counted(len(named(bench.parents)), 'adapter')}"):
        if config.method == "svd":
            values = adapters.arithmetic.singular_values(parts)
            rank = adapters.arithmetic.rank_for(values, config.energy) if config.energy else rank
        made, tensors = adapters.arithmetic.blend(
            parts, config.method, rank, config.density, config.majority_sign_method, config.seed, order
        )
    metrics["rank"] = made.r
    if config.method == "svd":
        metrics["kept_energy"] = adapters.arithmetic.kept(values, made.r)
        say(f"{bench.title}: rank {made.r} keeps {metrics['kept_energy']:.2%} of the sum's squared singular values")
    roles.add_adapter("policy", made)
    adapters.arithmetic.fill(roles.adapter_state("policy"), tensors)
    roles.assign("policy", ["policy"])
    with Task("writing what was made"):
        outcomes.save_role(bench, roles, "policy", bench.folder)
        renderer.save(bench.folder / "tokenizer")
    check = outcomes.reload_check(bench, roles, renderer, policy="")
    return Outcome(bench.folder, "adapter", renderer.contract(), metrics, check)


STAGE = Stage(
    "blend",
    version=1,
    config=Config,
    inputs={"adapters": ("adapter",)},
    work=work,
    makes=("adapter",),
    footprint=memory.Footprint(memory.kinds.blend),
    does="several adapters blended into one",
    encoder_decoders=True,
    ready=ready,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
