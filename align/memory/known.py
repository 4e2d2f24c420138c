"""Where the shapes come from: small files of bases and artifacts, and, for what a recipe is still to make, its
settings. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from align.folders.adapter import STACKABLE, method_name, rows_needed
from align.folders.adapter_settings import SHAPE
from align.folders.config import CONFIG, is_encoder_decoder, quantisation, read_json
from align.ground.errors import InputError
from align.ground.ranks import world
from align.inputs.bases import BaseModel, find_base, locate_base
from align.inputs.narrow import stored_in
from align.memory.budget import parse_size
from align.memory.phases import blended, policy
from align.memory.plan import Footprint, Workload
from align.memory.rows import AROUND_DIALOGUE, Measured, ReadRows
from align.memory.shapes import LlamaSizes, Shape, headers, norms_in, weights_in
from align.recipe.processes import with_rows_for
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.recipe import ModelStage, StageConfig

ADAPTER, TOKENIZER = "adapter_model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Known:
    """What planning has to know of a model: its base, and the weights of each adapter on it."""

    shape: Shape
    quantize: str | None
    adapters: tuple[int, ...] = ()
    tokenizer: Callable[[], bytes] | None = None
    """Reads its tokenizer.json, where there is one."""
    base: str = ""
    """The digest of its base, where that is there."""
    opening: int = AROUND_DIALOGUE
    """Tokens that its template puts before a dialogue."""
    in_fp32: bool = False
    """Whether it was trained in fp32."""


class Planned(Protocol):
    """What is read of every stage's settings."""

    @property
    def precision(self) -> str: ...


class FromScratch(Protocol):
    """The settings that say what random weights are made."""

    @property
    def architecture(self) -> LlamaSizes: ...
    @property
    def save_dtype(self) -> str: ...


class Unknown(Exception):
    """Why a stage cannot be planned, in words."""


def device() -> str:
    """cuda where the driver shows a card that is not hidden, else cpu."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return "cuda" if Path("/dev/nvidia0").exists() and not hidden else "cpu"


def computes_bf16(precision: str, where: str, looked_at: Sequence[Known] = ()) -> bool:
    """What `layout.computes_in` will choose for a stage that looks at these models."""
    if precision != "auto" or any(known.in_fp32 for known in looked_at):
        return precision == "bf16"
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8").split() if where == "cpu" and cpu.exists() else []
    return where == "cuda" or bool({"amx_bf16", "avx512_bf16"} & set(flags))


def workload_of(
    footprint: Footprint,
    config: StageConfig,
    store: Store,
    made: Mapping[str, Known],
    where: str,
    looked: Mapping[str, ReadRows] | None = None,
    whole: bool = False,
    measured: Measured | None = None,
    looks: bool = False,
) -> Workload:
    """A stage as the plan takes it. `made`: what stages before it are to make, by the names that `config` calls them;
    `looked`: the rows of its data files, as far as they are there; `whole`: it makes a model of its own weights;
    `measured`: what those of other stages were found to be; `looks`: it trains none of its models, so that `auto` goes
    by what they were trained in.

    Raises: Unknown where a base does not say its shape, and for adapters that are not planned.
    """

    def input_of(name: str) -> Known:
        return made[name] if name in made else known_artifact(store, store.resolve(name))

    compared = [input_of(name) for key in ("compare", "adapters") for name in getattr(config, key, [])]
    reward = getattr(config, "reward", None) or []
    judge: str | None = getattr(config, "judge_model", None)
    start = compared[0] if compared else _start(cast("ModelStage", config), store, input_of)
    adapter = getattr(config, "adapter", None)
    if adapter is not None and (not start.adapters or getattr(config, "parent_adapter", None) == "stack"):
        _check_planned(adapter.method)
    data = (looked or {}).get("data")
    tokenizer = start.tokenizer() if start.tokenizer else None
    rows = None
    if footprint.parts and data and tokenizer:
        rows = (measured or Measured()).of(footprint.parts, data, tokenizer, start.opening)
    several = reward if isinstance(reward, list) else [reward]
    looked_at = [start, *compared, *(input_of(name) for name in [*several, judge] if name)] if looks else []
    teacher: str | None = getattr(config, "teacher", None)
    work = Workload(
        footprint=footprint,
        config=with_rows_for(config, start.shape.hidden, where),
        shape=start.shape,
        quantize=start.quantize,
        device=where,
        bf16=computes_bf16(cast(Planned, config).precision, where, looked_at),
        parent=start.adapters,
        rewards=tuple(input_of(name).adapters for name in several),
        judge=input_of(judge).adapters if judge else (),
        compared=tuple(known.adapters for known in compared),
        rows=rows,
        tokenizer=start.tokenizer,
        tokenizer_bytes=len(tokenizer) if tokenizer else 0,
        whole=whole,
        base=start.base,
        processes=world(),
    )
    if teacher is None:
        return work
    known = input_of(teacher)
    there = replace(work, shape=known.shape, quantize=known.quantize, parent=known.adapters, base=known.base)
    return replace(work, teacher=there)


def _start(config: ModelStage, store: Store, input_of: Callable[[str], Known]) -> Known:
    """What a stage starts from."""
    if config.parent is not None:
        return input_of(config.parent)
    if config.base is not None:
        return known_base(store, find_base(config.base, store))
    return from_scratch(cast(FromScratch, config))


def from_scratch(config: FromScratch) -> Known:
    """What `pretrain` makes of random weights: a Llama of the size in `architecture`."""
    a = config.architecture
    head_size = a.hidden_size // a.heads
    stored = 2 if config.save_dtype == "bf16" else 4
    shape = Shape(
        kind="llama",
        hidden=a.hidden_size,
        layers=a.layers,
        heads=a.heads,
        kv_heads=a.kv_heads,
        head_size=head_size,
        intermediate=a.intermediate_size,
        vocabulary=a.vocab_size,
        tied=a.tie_embeddings,
        context=a.context,
        stored_bytes=stored,
    )
    return Known(shape, None)


def _check_planned(method: str) -> None:
    """Raises: Unknown for adapters whose activations were never counted."""
    if method not in STACKABLE:
        raise Unknown(
            f"memory is planned for adapters of lora alone, and this is {method}, computed by PEFT's own layers"
        )


def outcome(work: Workload) -> Known:
    """What a planned stage makes, for those that build on it."""
    shape, quantize, adapters = work.shape, work.quantize, work.parent
    if work.whole:
        quantize, adapters = None, ()
        if hasattr(work.config, "save_dtype"):
            shape = replace(shape, stored_bytes={"fp32": 4, "bf16": 2}[work.config.save_dtype])
    elif hasattr(work.config, "adapter"):
        adapters = policy(work)
    elif hasattr(work.config, "adapters"):
        adapters = blended(work)
    base = "" if work.whole else work.base
    return Known(shape, quantize, adapters, work.tokenizer, base, in_fp32=not work.bf16)


def known_base(store: Store, base: BaseModel) -> Known:
    if base.in_store:
        return replace(_known_model(store, store.resolve(base.model.removeprefix("artifact:"))), quantize=base.quantize)
    # files of a quantised checkpoint hold several weights in one entry
    packed = quantisation(read_json(base.path / CONFIG), base.path)
    held = headers(base.path)
    counted = None if packed else weights_in(held)
    shape = _shape((base.path / CONFIG).read_bytes(), counted, norms_in(held))
    shape = replace(shape, may_stay=not packed and stored_in(base.path) is not None)
    tokenizer = base.path / TOKENIZER
    return Known(
        shape,
        base.quantize,
        tokenizer=tokenizer.read_bytes if tokenizer.is_file() else None,
        base=base.digest,
        opening=AROUND_DIALOGUE if _has_template(base.path) else 0,
    )


def _has_template(folder: Path) -> bool:
    """Whether a base has a chat template; Align's default one puts nothing before a dialogue."""
    settings = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (settings.is_file() and "chat_template" in read_json(settings))


def known_artifact(store: Store, artifact: Artifact) -> Known:
    if artifact.kind == "model":
        return _known_model(store, artifact)
    if artifact.base is None:
        raise Unknown(f"{artifact.short} has no base")
    files = sorted(path for path in artifact.files if path.startswith("adapters/") and path.endswith(ADAPTER))
    settings = [json.loads(store.read(artifact, path.replace(ADAPTER, SHAPE))) for path in files]
    for found in settings:
        _check_planned(method_name(found))
    base = known_base(store, locate_base(artifact.base, store))
    if any(map(rows_needed, settings)):
        base = replace(base, shape=replace(base.shape, may_stay=False))
    in_fp32 = artifact.config.get("precision") == "fp32"
    return replace(base, adapters=tuple(artifact.files[path]["size"] // 4 for path in files), in_fp32=in_fp32)


def _known_model(store: Store, artifact: Artifact) -> Known:
    tokenizer = f"model/{TOKENIZER}"
    reads = (lambda: store.read(artifact, tokenizer)) if tokenizer in artifact.files else None
    return Known(_shape(store.read(artifact, "model/config.json"), None), None, tokenizer=reads, base=artifact.digest)


def _shape(config: bytes, counted: int | None, norms: Mapping[str, int] | None = None) -> Shape:
    read = json.loads(config)
    if is_encoder_decoder(read):
        raise Unknown("the base is an encoder-decoder, whose memory Align does not plan")
    shape = Shape.from_config(read, counted, norms)
    if isinstance(shape, str):
        raise Unknown(f"config.json of the base has no {shape}")
    return shape


@dataclass(frozen=True)
class Inquiry:
    """What `--dry-run` is asked about memory: for which device, within which budget in bytes."""

    device: str
    budget: int | None = None

    @staticmethod
    def asked(memory: str | None, where: str | None, dry_run: bool) -> Inquiry:
        """From `--memory` and `--device`. Raises: InputError for what they cannot be, or without `--dry-run`."""
        if not dry_run and (memory or where):
            raise InputError(
                f"--{'memory' if memory else 'device'} goes with --dry-run: it asks what a run would take."
            )
        if where not in (None, "cpu", "cuda"):
            raise InputError(f"--device takes cpu or cuda, found {where!r}.")
        return Inquiry(where or device(), parse_size(memory) if memory else None)
