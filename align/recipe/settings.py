"""What a user may set: the base classes of every stage's `Config`.

Defaults live here and in the stage files, nowhere else. The docstring under a field is its help text on the command
line. Values are strict: "16" is no number. Markers inside `Annotated` say what a field is beyond its type, and the
recipe and the command line act on them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from align.recipe.hub_data import spelled

if TYPE_CHECKING:
    from align.store import Artifact


class Runtime:
    """Marks a field that cannot change what comes out: it takes no part in the key of what is asked."""


class Positional:
    """Marks a field that a bare word on the command line fills, several in their order."""


class Verbatim:
    """Marks a list of texts that may hold commas and blanks: each comes with a flag of its own."""


class IsFile:
    """Marks a data file: relative to the recipe, its content is digested; or the name of a data artifact, of an earlier
    stage, or of a data set of the hub."""


class IsPath:
    """Marks any other path: relative to the recipe."""


class IsTemplate:
    """Marks a chat template: a file relative to the recipe, or a name."""


class IsRef:
    """Marks an artifact of the store, or an earlier stage of the recipe."""


class IsModel:
    """Marks a model: a hub id, an artifact, or a folder relative to the recipe."""


def _plain(value: object) -> object:
    """An artifact stands for its digest, a `Path` for its text, so that Python code can pass either."""
    if isinstance(value, str) and value.isspace():
        raise ValueError(f"{value!r} is blank. Give it a value, or leave it out.")
    digest = getattr(value, "digest", value)
    return os.fspath(digest) if isinstance(digest, os.PathLike) else digest


def _once(refs: list[str]) -> list[str]:
    if twice := [ref for i, ref in enumerate(refs) if ref in refs[:i]]:
        raise ValueError(f"{twice[0]} is given twice. Name it once.")
    return refs


def _day(value: object) -> object:
    """A day as text; YAML reads 2026-11-28 as a date."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        with suppress(ValueError):
            if date.fromisoformat(value).isoformat() == value:
                return value
        raise ValueError(f"{value!r} is no day; expected YYYY-MM-DD, such as 2024-07-26")
    return value


def _finite_logits(temperature: float) -> float:
    """Logits are divided by it, in 32 bits."""
    if 0 < temperature < 1e-3:
        wanted = "expected 0, which takes the likeliest token, or at least 0.001"
        raise ValueError(f"{temperature:g} is too small to divide logits by; {wanted}")
    return temperature


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
"""What stages, recipes and figures may be called."""
LONGEST_NAME, WANTED = 100, "at most 100 letters, digits, '.', '_' and '-'"


def _named(given: dict[str, object]) -> dict[str, object]:
    """What becomes the name of a figure, which stores and remotes take."""
    for name in given:
        if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            last = f", such as its last part, {name.rpartition('/')[2]}" if "/" in name else ""
            raise ValueError(f"{name[:LONGEST_NAME]!r} cannot be the name of a figure; expected {WANTED}{last}.")
        if name.endswith("_ci95"):
            raise ValueError(f"{name} ends in _ci95, which intervals of figures do; call it something else.")
    return given


Named = Annotated[str, BeforeValidator(_plain), Field(min_length=1)]
"""An empty text would be the working folder."""
File = Annotated[Named, BeforeValidator(spelled), IsFile]
Place = Annotated[Named, IsPath]
ChatTemplate = Literal["plain"] | Annotated[Named, IsTemplate]
Ref = Annotated[Named, IsRef]
Refs = Annotated[list[Ref], Field(min_length=1), AfterValidator(_once)]
Model = Annotated[Named, IsModel]
Day = Annotated[str, BeforeValidator(_day)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes
Count = Annotated[int, Field(gt=0, le=1_000_000_000)]  # what is beyond was mistyped, and would run for ever
FromZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Samples = Annotated[int, Field(ge=1, le=1024)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Temperature = Annotated[float, Field(ge=0, le=1e3), AfterValidator(_finite_logits)]
SpecialTokens = Literal["error", "text", "keep"]
BadRows = Literal["error", "drop"]
Judges = Annotated[dict[str, Place], AfterValidator(_named)]
Weights = Annotated[dict[str, float], AfterValidator(_named)]
Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Verbatim]


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,  # groups and classes that others derive from are never built alone
    )

    shorthand: ClassVar[str | None] = None
    """The key that a plain value stands for: `base: NAME` is `base: {model: NAME}`."""

    @model_validator(mode="before")
    @classmethod
    def _from_shorthand(cls, given: object) -> object:
        if cls.shorthand and isinstance(given, str | os.PathLike):
            return {cls.shorthand: given}
        return cls.listed(given) if isinstance(given, Mapping) else given

    @classmethod
    def listed(cls, given: Mapping[str, object]) -> dict[str, object]:
        """A text alone is a list of one where a list is all that is taken."""
        lists = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is list}
        return {key: [value] if key in lists and isinstance(value, str) else value for key, value in given.items()}

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        """What is wrong with these values together, one sentence each; single values are checked by their types."""
        return []

    def without_effect(self, parent: str | None) -> dict[str, str]:
        """Settings, or groups of them, that have no effect beside the others: why, and what to do, one or two sentences
        each. `parent`: the kind of artifact that the stage's parent is; None where there is none, or it is not known.
        """
        return {}

    @model_validator(mode="after")
    def _no_conflicts(self) -> Self:
        if found := self.conflicts(dict(self)):
            raise ValueError("\n".join(found))
        return self


class Base(Settings):
    """The frozen model that adapters are trained on."""

    shorthand = "model"

    model: Model
    """A model folder in the Hugging Face layout, a model artifact, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the commit it resolves to is recorded."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the frozen weights in 4 bits (NF4, double quantisation; Dettmers et al. 2023, arXiv 2305.14314) or in 8."""


class StageConfig(Settings):
    """Every stage"""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {}
    """Settings of which at least one has to be given -> what is said where none is."""

    name: Annotated[str | None, Runtime] = None
    """Name of what comes out; without it, the stage's kind. A taken name moves."""
    seed: Seed = 0
    """Seed of everything that is drawn: adapter, order of records, samples."""
    store: Annotated[str | None, Runtime] = None
    """Where artifacts live; without it, $ALIGN_STORE, else .align/ in the working folder."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        lacking = [said for names, said in cls.needs_one_of.items() if not any(given.get(name) for name in names)]
        return [*super().conflicts(given), *lacking]

    def check_parents(self, parents: Mapping[str, Artifact]) -> list[str]:
        """What is to be said of the artifacts that the stage builds on, by role, before they are used; from their
        manifests alone.

        Raises: InputError where one is not fit for it.
        """
        return []


class ModelStage(StageConfig):
    """Model"""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {
        ("base", "parent"): "neither base nor parent is set; give base to start from a model, or parent to go on from "
        "an artifact."
    }

    base: Base | None = None
    """Model to start from."""
    parent: Ref | None = None
    """Artifact to start from: a name, a digest, or its beginning. Give either base or parent."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """The base's precision; auto: bf16 where hardware has it, else fp32; what only samples keeps a parent's fp32."""
    threads: Annotated[Threads | None, Runtime] = None
    """CPU threads; without it, as many as torch takes."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found = super().conflicts(given)
        if given.get("base") is not None and given.get("parent") is not None:
            found.append("both base and parent are set; a parent already says which base it is on, so leave out base.")
        return found


class TextStage(ModelStage):
    """Model and its text"""

    chat_template: ChatTemplate | None = None
    """Without it, the model's own template, else a default one. `plain` joins the contents; a file is read as Jinja; a
    name such as qwen3 is that of a template in TRL."""
    template_date: Day | None = None
    """The day (YYYY-MM-DD) given to a template that prints today's date; without it 2024-07-26, so that runs repeat."""
    special_tokens: SpecialTokens = "error"
    """What to do with rows that hold special tokens, such as <|im_end|>, as text: stop, read them as plain text, or
    keep them as what they are; what was done is counted."""


class Sampling(Settings):
    """Sampling"""

    max_new_tokens: Count = 128
    """Longest answer in tokens."""
    temperature: Temperature = 1.0
    """1 is the model's own distribution; 0 takes the likeliest token each time."""
    stop: Texts = Field(default_factory=list)
    """Texts that end an answer, beside every end-of-turn token; files and judges get it without them, log-probs and
    reward models with them. The flag once for each."""


class RowSettings(Settings):
    """Rows"""

    bad_rows: BadRows = "error"
    """What to do with rows that cannot be used, such as one that is no JSON, has an empty answer, or is refused by the
    chat template: stop, or leave them out, counted by the reason."""
    columns: dict[str, Named] = Field(default_factory=dict)
    """What the files call the keys of docs/data.md where they call them otherwise: `columns: {prompt: query}`, or
    --columns.prompt query; a.b is b inside a."""
    shape: str | None = None
    """The dialect that the rows are in, where keys alone cannot tell: ranked, for answers that stand best first, ours,
    for none, or a name of docs/data.md; without it, what the keys say."""


MARKERS = (Runtime, Positional, Verbatim, IsFile, IsPath, IsTemplate, IsRef, IsModel)


def markers(field: FieldInfo) -> set[type]:
    """The marker classes of a field, also those inside `| None` and `list[...]`."""
    found: set[type] = set()
    todo: list[object] = [*field.metadata, field.annotation]
    while todo:
        item = todo.pop()
        if isinstance(item, type) and item in MARKERS:
            found.add(item)
        todo.extend(getattr(item, "__metadata__", ()))
        todo.extend(get_args(item))
    return found


def files_of(config: Settings) -> list[str]:
    """Names of the fields that hold data files; one that may be a number holds none where it is."""
    fields = type(config).model_fields.items()
    return [name for name, field in fields if IsFile in markers(field) and not isinstance(getattr(config, name), float)]
