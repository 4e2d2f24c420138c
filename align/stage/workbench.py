"""A stage's workbench: the question that it answers, what it loads for that, and what it notes on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import models, packed, training
from align.data.files.sources import check_unchanged, read_template
from align.ground.errors import AlignError
from align.ground.progress import Task
from align.ground.terminal import say
from align.inputs.bases import BaseModel, check_length, vocabulary
from align.inputs.fit import check_text, origin, rows_of
from align.judges import Programs
from align.stage import layout
from align.stage.question import Question
from align.store import Artifact, Store, digest_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from align.data.formats import RecordReader
    from align.models.precision import Precision
    from align.models.roles import Roles
    from align.models.trunk_cache import Keeper
    from align.parallel.shards import Shards
    from align.rendering.render import Renderer


@dataclass
class Workbench:
    """Where a stage's work is done. What comes out lies in `folder`, which is empty at first; `run` is the folder of
    what outlives a process that is killed."""

    question: Question
    folder: Path = Path()
    run: Path = Path()
    kept: Keeper | None = None
    shards: bool = False
    """Whether the base is in shards, so that every forward is one of all processes."""
    narrow: str | None = None
    """The 16 bits in which a base that computes in fp32 stays."""
    held: dict[str, Any] = field(default_factory=dict)
    """Settings that were left to us, as they turned out: what the manifest records."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that were left out, by the file and the reason, and those that are measured though they were trained on:
    what the manifest counts."""
    held_out: list[Any] = field(default_factory=list)
    """Records that are held out of training, where there are any."""
    measured: dict[str, float] = field(default_factory=dict)
    """Figures of the training itself that the manifest records beside the stage's own."""
    renderer: Renderer | None = None
    new_tokens: dict[int, list[int]] = field(default_factory=dict)
    """Tokens that this stage adds, known once its tokenizer is loaded: id -> the ids that their text was read as
    before."""
    more_rows: int = 0
    """Rows of the embedding that an adapter from elsewhere needs."""
    programs: Programs = field(default_factory=dict)
    """Files of judges that have run already."""

    @cached_property
    def readers(self) -> Mapping[str, RecordReader[Any]]:
        """How each data file is read: by the same readers from first to last, which may compare files."""
        return self.question.stage.reads(self.config)

    @property
    def config(self) -> Any:
        return self.question.config

    @property
    def settings(self) -> dict[str, Any]:
        return self.question.settings

    @property
    def title(self) -> str:
        return self.question.title

    @property
    def store(self) -> Store:
        return self.question.store

    @property
    def parents(self) -> dict[str, Artifact]:
        return self.question.parents

    @property
    def base(self) -> BaseModel:
        """The base that adapters are on. Raises: AlignError where the stage begins without one."""
        if self.question.base is None:
            raise AlignError(f"{self.title}: there is no base yet.")
        return self.question.base

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"

    def load_base(self, in_fp32: bool = False) -> Roles:
        """The base model alone, ready for roles; `in_fp32` also dequantised, for merging and for training all
        weights."""
        with Task("loading libraries"):
            models.process.set_up_process(self.config.threads, self.config.seed)
        wanted: Precision = "fp32" if in_fp32 else self.config.precision
        dtype, why = layout.computes_in(self.question, wanted)
        precision = models.precision.name_of(dtype)
        if getattr(self.config, "precision", None) == "auto" and not in_fp32:
            self.held["precision"] = precision
        because = f" (precision: auto; {why})" if why else ""
        self.shards = not in_fp32 and layout.in_shards(self.question, self.token_rows)
        alone = dtype == models.precision.DTYPES["fp32"] and not (in_fp32 or self.shards)
        self.narrow = layout.in_16_bits(self.question, self.token_rows) if alone else None
        kept = self.base.quantize or self.narrow
        computing = f"{kept}, computing in " if kept else ""
        say(f"{self.title}: loading {self.base.label} in {computing}{precision}{because}")
        if self.base.quantize or self.shards or getattr(self.config, "activation_checkpointing", False):
            models.process.give_back_freed_memory()
        if self.token_rows:
            # which has them already
            self.held["embedding_rows"] = self.rows if self.rows > vocabulary(self.base.path) else "base"
        if self.shards and not self.base.quantize:
            in_parts = self._in_parts(dtype)
            if in_parts is not None:
                return in_parts
        if not self.shards:
            roles = self._roles(dtype, in_fp32)
            if not in_fp32 and layout.cuts_rows(self.question):
                with Task("checking rows cut in parts on a few tokens"):
                    roles.cut_rows(self.title)
            return roles
        for turn in training.processes.turns():  # so that one whole base at a time lies on a machine
            if turn:
                roles = self._roles(dtype, in_fp32)
                roles.shard(self.config.base_offload)
        return roles

    def _in_parts(self, dtype: torch.dtype) -> Roles | None:
        """The base in shards, of which no process ever holds all; None where it has to be read whole."""
        with Task(f"loading {self.base.label}"):
            found = models.in_parts.load_in_parts(self.base.path, dtype, self.config.base_offload)
            self.base.check_unchanged()
        return None if found is None else self._tried(*found)

    def _roles(self, dtype: torch.dtype, in_fp32: bool) -> Roles:
        with Task(f"loading {self.base.label}"):
            narrow = models.precision.DTYPES[self.narrow] if self.narrow else None
            base = models.base.load_base(
                self.base.path, quantize=self.base.quantize, dtype=dtype, dequantise=in_fp32, narrow=narrow
            )
            self.base.check_unchanged()
        if self.token_rows:
            packed.token_rows.enlarge(base, self.rows)
        packed.token_rows.start_rows(base, self.new_tokens)
        return self._tried(base)

    def _tried(self, base: PreTrainedModel, shards: Shards | None = None) -> Roles:
        with Task("checking packed rows on a few tokens"):
            roles = models.roles.Roles(base, shards)
        if not roles.packed:
            say(f"{self.title}: this base takes the padded path ({roles.why_padded})")
        return roles

    def load_renderer(self, max_length: int | None = None) -> Renderer:
        """Tokenizer and template: the parent's, so that they cannot drift, else the base's."""
        with Task("loading libraries"):
            from align.rendering.render import load_renderer

        parent = origin(self.parents)
        template = getattr(self.config, "chat_template", None)
        folder: Path = self.base.path
        if parent is not None and parent.text is not None:
            folder = self.store.folder(parent) / ("tokenizer" if parent.kind != "model" else "model")
        wanted: int = getattr(self.config, "max_length", self.context) if max_length is None else max_length
        check_length(self.base, wanted)
        if wanted > self.context:
            asked = f" (max_length is {wanted:,})" if "max_length" in self.config.model_fields_set else ""
            say(f"{self.title}: a row has at most {self.context:,} tokens, the context of {self.base.label}{asked}")
        passed = ("truncate", "special_tokens", "bad_rows", "template_date", "new_tokens")
        more = {key: getattr(self.config, key) for key in passed if hasattr(self.config, key)}
        length = min(wanted, self.context)
        with Task("loading the tokenizer"):
            renderer = load_renderer(folder, template, length, extra_stops_from=self.base.path, **more)
            if parent is not None and parent.text is not None:
                as_saved = (
                    load_renderer(folder, template, length, extra_stops_from=self.base.path)
                    if renderer.new_tokens
                    else renderer
                )
                check_text(parent, as_saved.contract(), folder)
        renderer.limit = "max_length" if wanted <= self.context else "the model's context"
        renderer.keep = self.store.cached_file
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

    @property
    def rows(self) -> int:
        """Rows of the embedding: the base's, and those that tokens bring."""
        return max(vocabulary(self.base.path), self.token_rows)

    @property
    def token_rows(self) -> int:
        """Rows that new tokens and those of the inputs' adapters need; 0 where there are none."""
        return max(self.more_rows, rows_of(self.parents, self.store), *(i + 1 for i in self.new_tokens))

    def counted(self) -> dict[str, int]:
        """What was left out, in reading and in rendering, by the reason."""
        if self.renderer is None:
            return self.left_out
        return self.left_out | self.renderer.counts.figures("left_out/rendering")

    @property
    def context(self) -> int:
        """Positions the base was built for."""
        return self.base.context
