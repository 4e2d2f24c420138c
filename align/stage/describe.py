"""What a stage is, said once: the command line, recipes, memory plans, model cards and what is known of training data
read it from the `STAGE` in the stage's own file (align/stage/catalogue.py finds that)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from align.data.formats import Reader
from align.recipe import StageConfig

C = TypeVar("C", bound=StageConfig)


def no_files(config: StageConfig) -> Mapping[str, Reader]:
    """For a stage that reads no data file."""
    return {}


@dataclass(frozen=True)
class Stage(Generic[C]):
    """What a stage is: its name, the version of its results (raised when they change), its settings, which kinds of
    artifact each input may be, and its work (none where nothing is stored).

    Functions that take a job are given what `align.stage.job` makes of the settings: it builds on this module.
    """

    name: str
    version: int
    config: type[C]
    inputs: Mapping[str, tuple[str, ...]]
    work: Callable[..., Any] | None = None
    """Job -> Outcome."""
    reads: Callable[[C], Mapping[str, Reader]] = no_files
    """How each data file of a config is read."""
    encoder_decoders: bool = False
    """Whether it takes bases whose encoder reads the prompt."""
    ready: Callable[..., None] = lambda job, records: None
    """Raises InputError for what its work refuses, beside what all stages do, before it renders; told the records of
    its data files, those to come left out."""
    renderer: Callable[..., Any] = lambda job, records: job.load_renderer()
    """The renderer that its work takes, where it trains on these records."""
    prompts: Callable[..., Any] = lambda job, renderer, records: renderer.prompts(
        records, job.config.max_new_tokens, job.context
    )
    """(job, renderer, prompts) -> prompts that leave room for an answer, and their token ids. Raises: InputError as its
    work does."""
