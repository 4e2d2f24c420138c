"""What a stage is, said once: the command line, recipes, memory plans, model cards and what is known of training data
read it from the `STAGE` in the stage's own file (align/stage/catalogue.py finds that)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from align import memory
from align.data.formats import RecordReader, read_prompts
from align.ground.errors import AlignError
from align.recipe import StageConfig, files_of
from align.store import Artifact

C = TypeVar("C", bound=StageConfig)


def all_with(read: RecordReader) -> Callable[[StageConfig], Mapping[str, RecordReader]]:
    """For `Stage.reads`: one reader for every data file but `hold_out`, which names prompts."""
    return lambda config: {name: read_prompts if name == "hold_out" else read for name in files_of(config)}


def no_files(config: StageConfig) -> Mapping[str, RecordReader]:
    """For a stage that reads no data file."""
    return {}


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


def nothing_to_store(*_: object) -> Outcome:
    """Raises: AlignError, for a command that has no work of its own."""
    raise AlignError("this command stores nothing.")


@dataclass(frozen=True)
class Stage(Generic[C]):
    """What a stage is: its name, the version of its results (raised when they change), its settings, which kinds of
    artifact each input may be, and its work.

    Functions that take a bench are given an `align.stage.workbench.Workbench`, which builds on this module.
    """

    name: str
    version: int
    config: type[C]
    inputs: Mapping[str, tuple[str, ...]]
    work: Callable[..., Outcome] = nothing_to_store
    """What it does at its workbench."""
    own_base: tuple[str, ...] = ()
    """Inputs that may be on another base than the parent."""
    makes: tuple[str, ...] | Callable[[C, str | None], tuple[str, ...]] = ()
    """The kinds of artifact that it may make; or a function of its settings and the kind of its parent, None where that
    is not known."""
    reads: Callable[[C], Mapping[str, RecordReader]] = no_files
    """How each data file of a config is read."""
    learns_from: Literal["nothing", "examples", "rewards"] = "nothing"
    """What it trains on; what learnt from rewards may not be measured on the same prompts."""
    footprint: memory.Footprint | None = None
    """Its memory, from the functions of `align.memory`; none where it is not planned."""
    does: str = ""
    """What it does, for model cards: what follows "made by Align's `sft` stage: "."""
    feeds: str = ""
    """The stage that one would usually have take the data, or go on from the adapter, that it makes; none where data
    may be of any kind, and where an adapter is measured next."""
    tags: tuple[str, ...] = ()
    """What the hub calls its method."""
    encoder_decoders: bool = False
    """Whether it takes bases whose encoder reads the prompt."""
    ready: Callable[..., None] = lambda bench, records: None
    """Raises InputError for what its work refuses, beside what all stages do, before it renders; told the records of
    its data files, those to come left out."""
    settled: Callable[[C, Mapping[str, Artifact]], Mapping[str, object]] = lambda config, parents: {}
    """Settings that were left to us, as these parents make them. Raises: InputError for one that they do not fit."""
    renderer: Callable[..., Any] = lambda bench, records: bench.load_renderer()
    """The renderer that its work takes, where it trains on these records."""
    prompts: Callable[..., Any] = lambda bench, renderer, records: renderer.prompts(
        records, bench.config.max_new_tokens, bench.context
    )
    """(bench, renderer, prompts) -> prompts that leave room for an answer, and their token ids. Raises: InputError as
    its work does."""

    @property
    def stores(self) -> bool:
        """Whether it makes something that is kept."""
        return self.work is not nothing_to_store

    @property
    def measures(self) -> bool:
        """Whether it only looks at models, or has them answer: it stores nothing, a report, or data."""
        return not self.stores or self.makes in (("report",), ("data",))

    def kinds(self, config: C, parent: str | None = None) -> tuple[str, ...]:
        """The kinds of artifact that it may make of these settings, on a parent of this kind."""
        return self.makes(config, parent) if callable(self.makes) else self.makes
