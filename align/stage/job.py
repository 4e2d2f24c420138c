"""What a stage works with: its inputs, found and checked, and the steps that stages share, from loading a base to
saving a role.

`align.stage.execute` makes a `Job` of a stage's settings and hands it to the stage's work; up to that no torch is
imported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import adapters, measures, models, packed, training
from align.data.examples import Example
from align.data.examples import digest as digest_examples
from align.data.files.sources import check_unchanged, data_digest, read_template
from align.data.formats import Reader, Records, read_prompts
from align.data.records import Prompt
from align.data.split import at_most, leave_out, opening, split_by_prompt
from align.ground.cost import libraries
from align.ground.errors import AlignError, InputError
from align.ground.terminal import say
from align.inputs import trained_on
from align.inputs.bases import BaseModel, check_length, vocabulary
from align.inputs.fit import check_seen, check_text, origin, rows_of
from align.recipe import StageConfig, files_of
from align.stage.why import why
from align.store import Artifact, Inputs, Run, Store, digest_json, question

if TYPE_CHECKING:
    from align.data.rendering.render import Renderer
    from align.models.roles import Roles
    from align.models.trunk_cache import Keeper


@dataclass(frozen=True)
class Stage:
    """What a stage is: its name, the version of its results (raised when they change), its settings, which kinds of
    artifact each input may be, and its work (none where nothing is stored)."""

    name: str
    version: int
    config: type[StageConfig]
    inputs: Mapping[str, tuple[str, ...]]
    work: Callable[[Job], Outcome] | None = None
    reads: Callable[[Any], Mapping[str, Reader]] = lambda config: {}
    """How each data file of a config is read."""
    encoder_decoders: bool = False
    """Whether it takes bases whose encoder reads the prompt."""
    ready: Callable[[Job, Mapping[str, Records[Any]]], None] = lambda job, records: None
    """Raises InputError for what its work refuses, beside what all stages do, before it renders; told the records of
    its data files, those to come left out."""
    renderer: Callable[[Job, list[Any]], Renderer] = lambda job, records: job.load_renderer()
    """The renderer that its work takes, where it trains on these records."""
    prompts: Callable[[Job, Renderer, list[Prompt]], tuple[list[Prompt], list[list[int]]]] = (
        lambda job, renderer, records: renderer.prompts(records, job.config.max_new_tokens, job.context)
    )
    """Prompts that leave room for an answer, and their token ids. Raises: InputError as its work does."""


@dataclass
class Outcome:
    """What a stage's work leaves for the store. `check` gets the folder as the store gives it back, and raises unless
    it reloads equal."""

    folder: Path
    kind: str
    text: dict[str, Any] | None
    metrics: dict[str, Any]
    check: Callable[[Path], None] | None = None
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """One stage with its inputs found and checked. `key` names what is asked: equal keys give equal results."""

    stage: Stage
    config: Any
    store: Store
    base: BaseModel | None
    parents: dict[str, Artifact]
    data: dict[str, Path]
    digests: dict[str, str]
    settings: dict[str, Any]
    folder: Path = Path()  # empty, for what comes out
    run: Run | None = None
    kept: Keeper | None = None
    held: dict[str, Any] = field(default_factory=dict)
    """Settings that were left to us, as they turned out: what the manifest records."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that were left out, by the file and the reason, and those that are measured though they were trained on:
    what the manifest counts."""
    renderer: Renderer | None = None
    new_tokens: dict[int, list[int]] = field(default_factory=dict)
    """Tokens that this stage adds, known once its tokenizer is loaded: id -> the ids that their text was read as
    before."""
    more_rows: int = 0
    """Rows of the embedding that an adapter from elsewhere needs."""

    @property
    def asked(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "settings": self.settings,
            "parents": {role: a.digest for role, a in self.parents.items()},
            "data": self.digests,
            "base": self.base.manifest() if self.base else None,
        }

    @property
    def key(self) -> str:
        return question(**self.asked)

    @property
    def why(self) -> str:
        """Why it is to run."""
        return why(self.asked, self.key, self.title, self.store)

    @property
    def inputs(self) -> Inputs:
        """What must stay in the store while this works."""
        base = [self.base.digest] if self.base and self.base.in_store else []
        return Inputs((*base, *(artifact.digest for artifact in self.parents.values())), tuple(self.digests.values()))

    @property
    def title(self) -> str:
        return self.config.name or self.stage.name

    @property
    def checkpoints(self) -> Path:
        assert self.run is not None
        return self.run.checkpoints

    @property
    def rows(self) -> int:
        """Rows of the embedding: the base's, and those that tokens bring."""
        assert self.base is not None
        return max(vocabulary(self.base.path), self.token_rows)

    @property
    def token_rows(self) -> int:
        """Rows that new tokens and those of the inputs' adapters need; 0 where there are none."""
        return max(self.more_rows, rows_of(self.parents, self.store), *(i + 1 for i in self.new_tokens))

    # ---- loading (torch from here on) --------------------------------------------------------------------------------

    def load_base(self, in_fp32: bool = False) -> Roles:
        """The base model alone, ready for roles; `in_fp32` also dequantised, for merging and for training all
        weights."""
        assert self.base is not None
        models.process.set_up_process(self.config.threads, self.config.seed)
        if self.base.quantize or getattr(self.config, "activation_checkpointing", False):
            models.process.give_back_freed_memory()
        dtype, why = models.precision.explain_precision("fp32" if in_fp32 else self.config.precision)
        precision = {torch_dtype: name for name, torch_dtype in models.precision.DTYPES.items()}[dtype]
        if getattr(self.config, "precision", None) == "auto" and not in_fp32:
            self.held["precision"] = precision
        because = f" (precision: auto; {why})" if why else ""
        kept = f"{self.base.quantize}, computing in " if self.base.quantize else ""
        say(f"{self.title}: loading {self.base.label} in {kept}{precision}{because}")
        base = models.base.load_base(self.base.path, quantize=self.base.quantize, dtype=dtype, dequantise=in_fp32)
        self.base.check_unchanged()
        if self.token_rows:
            # which has them already
            self.held["embedding_rows"] = self.rows if self.rows > vocabulary(self.base.path) else "base"
            packed.token_rows.enlarge(base, self.rows)
        packed.token_rows.start_rows(base, self.new_tokens)
        roles = models.roles.Roles(base)
        if not roles.packed:
            say(f"{self.title}: this base takes the padded path ({roles.why_padded})")
        return roles

    def load_renderer(self, max_length: int | None = None) -> Renderer:
        """Tokenizer and template: the parent's, so that they cannot drift, else the base's."""
        from align.data.rendering.render import load_renderer

        assert self.base is not None
        parent = origin(self.parents)
        template = getattr(self.config, "chat_template", None)
        folder: Path = self.base.path
        if parent is not None and parent.text is not None:
            folder = self.store.folder(parent) / ("tokenizer" if parent.kind != "model" else "model")
        wanted: int = getattr(self.config, "max_length", self.context) if max_length is None else max_length
        check_length(self.base, wanted)
        if wanted > self.context:
            say(
                f"{self.title}: max_length is {wanted:,}; the context of {self.base.label} is {self.context:,} "
                f"tokens, and so is the limit"
            )
        passed = ("special_tokens", "bad_rows", "template_date", "new_tokens")
        more = {key: getattr(self.config, key) for key in passed if hasattr(self.config, key)}
        length = min(wanted, self.context)
        renderer = load_renderer(
            folder, template, length, getattr(self.config, "truncate", "error"), extra_stops_from=self.base.path, **more
        )
        if parent is not None and parent.text is not None:
            as_saved = (
                load_renderer(folder, template, length, extra_stops_from=self.base.path)
                if renderer.new_tokens
                else renderer
            )
            check_text(parent, as_saved.contract(), folder)
        renderer.limit = "max_length" if wanted <= self.context else "the model's context"
        self.rendering(renderer)
        if renderer.template.note:
            say(f"{self.title}: {renderer.template.note}")
        self.new_tokens = renderer.new_tokens
        renderer.check_vocabulary(self.rows, folder)
        return renderer

    def rendering(self, renderer: Renderer) -> None:
        """Note what this renders with. Raises: AlignError where the template's file is no longer the one that was
        hashed."""
        template = getattr(self.config, "chat_template", None)
        if template not in (None, "plain"):
            check_unchanged(template, self.settings["chat_template"], digest_json(read_template(template)))
        self.renderer = renderer

    def say_counts(self, renderer: Renderer) -> None:
        """What rendering did to prompts beside rendering them."""
        if not renderer.counts.plain:
            say(f"{self.title}: {renderer.counts}")

    def adapters(self, role: str) -> list[Path]:
        """Folders of an input artifact's adapters, in order; none for a full model."""
        artifact = self.parents[role]
        return [] if artifact.kind == "model" else adapter_folders(self.store.folder(artifact))

    def add_policy(self, roles: Roles) -> str:
        """The trainable adapter of this stage, as role "policy": a copy of the parent's (`parent_adapter: continue`),
        or a fresh one on top of the parent's (`stack`), or a fresh one on the base. Returns its name."""
        folders = self.adapters("parent") if "parent" in self.parents else []
        keep = folders if self.config.parent_adapter == "stack" or not folders else folders[:-1]
        names = [f"parent_{i}" for i in range(len(keep))]
        for name, folder in zip(names, keep, strict=True):
            roles.load_adapter(name, folder)
        if len(keep) < len(folders):
            roles.load_adapter("policy", folders[-1])
        else:
            config = adapters.methods.config_of(self.config.adapter, roles.base)
            if self.new_tokens:
                assert self.base is not None
                ids = {*self.new_tokens, *range(vocabulary(self.base.path), self.rows)}  # ids between need rows as well
                config.trainable_token_indices = packed.token_rows.indices(roles.base, ids)  # type: ignore[attr-defined]
                say(f"{self.title}: {len(ids)} rows of embedding and head train beside the adapter, for new_tokens")
            roles.add_adapter("policy", config)
            if line := adapters.targets.left_out(roles.base, roles.configs["policy"]):
                say(f"{self.title}: {line}")
        roles.assign("policy", [*names, "policy"])
        return "policy"

    def add_role(self, roles: Roles, role: str, folder: Path | None) -> None:
        """An artifact's adapters and head as `role`, frozen; None is the bare base."""
        folders = adapter_folders(folder) if folder else []
        for i, adapter in enumerate(folders):
            roles.load_adapter(f"{role}_{i}", adapter)
        head = (
            models.heads.ScoreHead.load(folder / "head.safetensors")
            if folder and (folder / "head.safetensors").exists()
            else None
        )
        roles.assign(role, [f"{role}_{i}" for i in range(len(folders))], head)

    def add_reference(self, roles: Roles) -> None:
        """Role "reference", pinned: the parent's adapters loaded a second time and frozen, or the bare base where there
        is no parent."""
        parent = self.parents.get("parent")
        self.add_role(roles, "reference", self.store.folder(parent) if parent and parent.kind != "model" else None)

    # ---- working -----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> Records[Any]:
        """The records of an input; rows that were left out are never silent.

        Raises: InputError for a row that cannot be used; AlignError where the file is no longer the one that was
        hashed.
        """
        path = self.data[name]
        records = self.stage.reads(self.config)[name](path, self.config.bad_rows)
        check_unchanged(path, self.digests[name], data_digest(path))
        say(f"{self.title}: {name}: {records}")
        self.left_out |= records.dropped.figures(f"left_out/{name}")
        return records

    def counted(self) -> dict[str, int]:
        """What was left out, in reading and in rendering, by the reason."""
        if self.renderer is None:
            return self.left_out
        return self.left_out | self.renderer.counts.figures("left_out/rendering")

    @property
    def context(self) -> int:
        """Positions the base was built for."""
        assert self.base is not None
        return self.base.context

    def split(self) -> tuple[list[Any], list[Any]]:
        """Records to train on and records held out: `eval_data` if given, else those of `hold_out`, or a share of the
        prompts by hash."""
        records, held_out = self.held_out(self.read("data"))
        own: set[str] = set()
        if "eval_data" in self.data:
            held_out, own = self.read("eval_data"), {opening(record) for record in records}
        elif isinstance(self.config.hold_out, float):
            held_out = at_most(held_out)
        else:
            records, held_out = split_by_prompt(records, self.config.eval_fraction)
        self.say_seen("held_out", held_out, "held-out prompts", self.parents.values(), {self.title: own})
        return records, held_out

    def say_seen(
        self,
        name: str,
        records: Sequence[Any],
        what: str,
        artifacts: Iterable[Artifact],
        own: Mapping[str, Collection[str]] | None = None,
    ) -> list[str]:
        """Which of the records that are measured `artifacts`, or what they come from, was trained on: counted, said,
        and given back."""
        found, lines = trained_on.seen(self.store, artifacts, records, what, own or {})
        for line in lines:
            say(f"{self.title}: {line}")
        if found:
            self.left_out[f"trained_on/{name}"] = found
        return lines

    def held_out(self, records: list[Any]) -> tuple[list[Any], list[Any]]:
        """Records to train on, and those that `hold_out` keeps from training, counted. Raises: InputError where none is
        left."""
        held = self.config.hold_out
        if held is None:
            return records, []
        kept, left = leave_out(
            records, held if isinstance(held, float) else {opening(p) for p in self.read("hold_out")}
        )
        nothing = (
            "" if left else ": no record has one of its prompts, compared character by character up to the first answer"
        )
        say(f"{self.title}: hold_out: {len(left):,} of {len(records):,} records are left out{nothing}")
        self.left_out["hold_out/records"] = len(left)
        check_kept(kept, len(records), self.title)
        return kept, left

    def plan(self, examples: list[Any], guard: Any = None) -> Any:
        """The seeded order in which training takes `examples`, watched by `guard`."""
        c = self.config
        return training.plan.Plan(
            examples,
            batch_size=c.batch_size,
            epochs=c.epochs,
            max_steps=c.max_steps,
            tokens_per_microbatch=c.tokens_per_microbatch,
            seed=c.seed,
            watcher=guard,
        )

    def keeper(self, roles: Roles, passing: bool = False) -> Keeper:
        """Fills examples with what enters the first layer that the policy trains; leaves them as they are where nothing
        is to be kept.

        `passing`: files are for this run alone. Where `adapter.layers` asks for it and it cannot be, a line says why.
        """
        c, run = self.config, self.run
        if c.trunk_cache != "off" and (why := models.trunk_cache.find_trunk(roles, "policy")) and c.adapter.layers:
            went_on = (
                "parent" in self.parents and c.parent_adapter == "continue" and self.parents["parent"].kind != "model"
            )
            more = (
                "; it goes on from the parent's adapter, `parent_adapter: stack` trains a fresh one" if went_on else ""
            )
            say(f"{self.title}: adapter.layers is {c.adapter.layers}, but no layer is run once alone: {why}{more}")

        def file(examples: Sequence[Example], parts: Iterable[memoryview]) -> AbstractContextManager[Path]:
            if passing:
                assert run is not None
                return models.trunk_cache.passing_file(run.path, parts)
            trunk = {"trunk": models.trunk_cache.digest_below(roles, "policy"), "kept": c.trunk_dtype}
            return self.store.cached_file(digest_json(trunk | self.decides(roles, examples)), parts)

        dtype = models.precision.DTYPES["bf16"] if c.trunk_dtype == "bf16" else None
        return models.trunk_cache.Keeper(
            roles, "policy", c.tokens_per_microbatch, dtype, file if c.trunk_cache == "disk" else None, self.title
        )

    def keep(self, roles: Roles, examples: list[Example], looks: Callable[[], Counter[int]]) -> list[Example]:
        """The same examples, those that are looked at filled as `keeper` fills them, unless once is all. To be called
        when it is settled what trains. `looks` counts, and is asked only where there may be something to keep: it packs
        every step of the run."""
        out, c = list(examples), self.config
        if c.trunk_cache == "off" or (
            self.kept is None and not c.adapter.layers and models.trunk_cache.find_trunk(roles, "policy")
        ):
            return out
        if (counts := looks()).total() > len(counts):
            self.kept = self.kept or self.keeper(roles)
            for i, example in zip(sorted(counts), self.kept([out[i] for i in sorted(counts)]), strict=True):
                out[i] = example
        return out

    def fit(
        self, roles: Roles, loss: Any, examples: list[Any], guard: Any, show: tuple[str, ...] = ()
    ) -> tuple[list[dict[str, float]], Any]:
        """Train over `examples` in seeded order, watched by `guard`: history and cost."""
        if not any(any(counted) for e in examples for counted in e.supervised):
            raise InputError(
                f"{self.title}: none of the {len(examples):,} records has a token that counts, so there is nothing to "
                f"learn."
            )
        examples = self.keep(roles, examples, self.plan(examples).looks)
        plan = self.plan(examples, guard)
        found = training.trainer.fit(
            roles, loss, plan, self.config, title=self.title, checkpoints=self.checkpoints, show=show
        )
        guard.end(self.folder)
        trained_on.note(self.folder, (examples[i].opening for i in plan.needed()))
        return found

    def check_new_tokens(self, examples: Sequence[Example]) -> None:
        """Each new token is in some record. Raises: InputError."""
        if line := check_seen(
            dict(zip(self.new_tokens, getattr(self.config, "new_tokens", ()), strict=True)), examples
        ):
            say(f"{self.title}: new tokens in the records: {line}")

    def reference_logprobs(self, roles: Roles, examples: list[Any]) -> list[Any]:
        """The same examples with the reference's log-probs as column `ref_logprobs`.

        They are computed once per store: what decides them (reference, base, tokens, precision) is the key under which
        they are kept.
        """
        parent = self.parents.get("parent")
        budget = self.config.tokens_per_microbatch
        reference = (
            [parent.files[f]["sha256"] for f in sorted(parent.files) if f.startswith("adapters/")] if parent else []
        )
        kept = sorted({str(e.trunk[1].dtype) for e in examples if e.trunk is not None})
        key = digest_json({"reference": reference, "kept": kept, **self.decides(roles, examples)})
        made = self.store.cached(
            key, lambda: measures.passes.flat_logprobs(roles, "reference", examples, budget).tobytes()
        )
        return measures.passes.with_column(examples, "ref_logprobs", made)

    def decides(self, roles: Roles, examples: Sequence[Example]) -> dict[str, Any]:
        """What decides any result of a forward pass over `examples`, beside the adapters."""
        assert self.base is not None
        budget = self.config.tokens_per_microbatch  # other packing rounds otherwise
        return {
            "base": [self.base.digest, self.base.quantize],
            "precision": [str(roles.base.dtype), str(roles.base.device.type), budget, libraries()],
            "examples": digest_examples(examples),
        }

    # ---- what comes out ----------------------------------------------------------------------------------------------

    def save_role(self, roles: Roles, role: str, folder: Path) -> None:
        """Write a role's adapters in order, and its head."""
        assert self.base is not None
        for i, name in enumerate(roles.adapters[role]):
            roles.save_adapter(name, folder / "adapters" / str(i), self.base.model)
        if role in roles.heads:
            folder.mkdir(parents=True, exist_ok=True)
            roles.heads[role].save(folder / "head.safetensors")

    def reload_check(self, roles: Roles, renderer: Renderer, **places: str) -> Callable[[Path], None]:
        """For `Outcome`: the tokenizer and each of these roles, in its place inside the artifact, reload equal."""

        def check(folder: Path) -> None:
            for role, place in places.items():
                self.check_role(roles, role, folder / place)
            models.reloads_equal.check_text(folder / "tokenizer", renderer)

        return check

    def check_role(self, roles: Roles, role: str, folder: Path) -> None:
        """A role's adapters and head in `folder` are the live ones bit for bit, and give the same outputs from a spare
        slot on the base.

        Raises: AlignError naming what does not reload equal.
        """
        assert self.base is not None
        written, live = adapter_folders(folder), roles.adapters[role]
        if len(written) != len(live):
            raise AlignError(
                f"{folder} holds {len(written)} adapters, the {role} has {len(live)}. Nothing was committed."
            )
        for name, adapter in zip(live, written, strict=True):
            models.reloads_equal.check_adapter(
                adapter, roles.adapter_state(name), roles.adapter_config(name, self.base.model)
            )
        if role in roles.heads:
            models.reloads_equal.check_head(folder / "head.safetensors", roles.heads[role])
        self.add_role(roles, "check", folder)
        try:
            models.reloads_equal.check_outputs(roles, role, roles, "check", role)
        finally:
            roles.remove("check")

    def adapter_outcome(
        self, roles: Roles, renderer: Renderer, metrics: dict[str, Any], history: list[dict[str, float]], cost: Any
    ) -> Outcome:
        """An `adapter` artifact from role "policy"."""
        self.save_role(roles, "policy", self.folder)
        renderer.save(self.folder / "tokenizer")
        write_history(self.folder, history)
        check = self.reload_check(roles, renderer, policy="")
        return Outcome(self.folder, "adapter", renderer.contract(), metrics, check, cost_record(cost))


def check_kept(kept: Sequence[Any], records: int, title: str) -> None:
    """Some records are not held out. Raises: InputError."""
    if not kept:
        raise InputError(f"{title}: hold_out leaves nothing to train on of {records:,} records.")


def all_with(read: Reader) -> Callable[[Any], Mapping[str, Reader]]:
    """For `Stage.reads`: one reader for every data file but `hold_out`, which names prompts."""
    return lambda config: {name: read_prompts if name == "hold_out" else read for name in files_of(config)}


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """The training curves, one object per logged step."""
    (folder / "history.jsonl").write_text(
        "".join(json.dumps(row, sort_keys=True) + "\n" for row in history), encoding="utf-8"
    )


def cost_record(cost: Any) -> dict[str, Any]:
    """`earlier_seconds` is the part of runs that were stopped or killed before this one."""
    return {
        "train_seconds": cost.seconds,
        "earlier_seconds": cost.earlier,
        "tokens": cost.tokens,
        "tokens_per_second": cost.tokens_per_second,
    }


def adapter_folders(folder: Path) -> list[Path]:
    """The adapters of a materialised artifact, in the order they are stacked."""
    return sorted((folder / "adapters").iterdir(), key=lambda p: int(p.name)) if (folder / "adapters").is_dir() else []
