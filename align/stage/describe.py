"""What a stage is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.data.formats import Reader, Records, read_prompts
from align.data.records import Prompt
from align.ground.errors import AlignError
from align.recipe import StageConfig, files_of

if TYPE_CHECKING:
    from align.data.rendering.render import Renderer
    from align.stage.outcomes import Outcome
    from align.stage.workbench import Workbench


def nothing_to_store(bench: Workbench) -> Outcome:
    """Raises: AlignError, for a command that has no work of its own."""
    raise AlignError(f"{bench.title} stores nothing.")


@dataclass(frozen=True)
class Stage:
    """What a stage is: its name, the version of its results (raised when they change), its settings, which kinds of
    artifact each input may be, and its work."""

    name: str
    version: int
    config: type[StageConfig]
    inputs: Mapping[str, tuple[str, ...]]
    work: Callable[[Workbench], Outcome] = nothing_to_store
    """What it does; a command that stores nothing has none."""
    reads: Callable[[Any], Mapping[str, Reader]] = lambda config: {}
    """How each data file of a config is read."""
    encoder_decoders: bool = False
    """Whether it takes bases whose encoder reads the prompt."""
    ready: Callable[[Workbench, Mapping[str, Records[Any]]], None] = lambda bench, records: None
    """Raises InputError for what its work refuses, beside what all stages do, before it renders; told the records of
    its data files, those to come left out."""
    renderer: Callable[[Workbench, list[Any]], Renderer] = lambda bench, records: bench.load_renderer()
    """The renderer that its work takes, where it trains on these records."""
    prompts: Callable[[Workbench, Renderer, list[Prompt]], tuple[list[Prompt], list[list[int]]]] = (
        lambda bench, renderer, records: renderer.prompts(records, bench.config.max_new_tokens, bench.context)
    )
    """Prompts that leave room for an answer, and their token ids. Raises: InputError as its work does."""


def all_with(read: Reader) -> Callable[[Any], Mapping[str, Reader]]:
    """For `Stage.reads`: one reader for every data file but `hold_out`, which names prompts."""
    return lambda config: {name: read_prompts if name == "hold_out" else read for name in files_of(config)}
