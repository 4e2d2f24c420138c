"""The store as a rehearsal sees it: what is there, and beside it what stages are still to make, all but its weights."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import models
from align.data.split import opening
from align.folders.adapter import SHAPE, peft_names
from align.folders.config import CONFIG
from align.ground.json import Json
from align.inputs.adapters import adapter_of
from align.stage import trained_on
from align.stage.workbench import Workbench
from align.store import Artifact, Store
from align.store.artifact import FileRecord

if TYPE_CHECKING:
    from align.inputs.bases import BaseModel
    from align.rendering.render import Renderer
    from align.stage.ahead.rehearsal import Rehearsed

NO_FILE: FileRecord = {"size": 0, "sha256": trained_on.TO_COME}
WEIGHTS = ".safetensors"


@dataclass(frozen=True, eq=False)
class Promised(Artifact):
    """What a stage is to make."""

    name: str

    @property
    def short(self) -> str:
        return self.name


class Expected(Store):
    """A store that is not written to. Files that are asked for lie in `scratch`, a folder that goes when all is said;
    weights are links, and what is to be made has none."""

    def __init__(self, store: Store, scratch: Path) -> None:
        super().__init__(store.path)
        self.store, self.scratch = store, scratch
        self.promised: dict[str, Promised] = {}
        """By name and by digest."""
        self.places: dict[str, Path] = {}
        """Where bases lie that a run would note by then, by digest."""
        self.digests: dict[tuple[str, tuple[str, ...]], str] = {}
        """Of folders that were read: a store that is not there yet remembers none, and a base may be large."""

    def digest_folder(self, folder: str | Path, patterns: Sequence[str]) -> str:
        asked = (str(folder), tuple(patterns))
        if asked not in self.digests:
            self.digests[asked] = self.store.digest_folder(folder, patterns)
        return self.digests[asked]

    def place(self, digest: str) -> Path | None:
        return self.places.get(digest) or self.store.place(digest)

    def resolve(self, name: Artifact | str) -> Artifact:
        return self.promised.get(str(name)) or self.store.resolve(name)

    def know(self, base: BaseModel | None) -> None:
        """Where a base lies that a stage names: what builds on the stage finds it there."""
        if base is not None and not base.in_store:
            self.places[base.digest] = base.path

    def load(self, digest: str) -> Artifact:
        return self.promised.get(digest) or self.store.load(digest)

    def read(self, artifact: Artifact, path: str) -> bytes:
        return (
            (self.folder(artifact) / path).read_bytes()
            if artifact.digest in self.promised
            else self.store.read(artifact, path)
        )

    def folder(self, artifact: Artifact) -> Path:
        folder = self.scratch / artifact.digest
        if not folder.exists():
            for path in (path for path in artifact.files if not path.endswith(WEIGHTS)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(self.store.read(artifact, path))
            for path in (path for path in artifact.files if path.endswith(WEIGHTS)):  # whose types may be asked for
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).symlink_to(self.store.object_path(artifact.files[path]["sha256"]).absolute())
        return folder

    def called_now(self, artifact: Artifact | str) -> str:
        made = self.promised.get(str(artifact))
        return made.name if made else self.store.called_now(artifact)

    def promise(self, name: str, kind: str, rehearsed: Rehearsed) -> None:
        """Have `name` mean what a stage that was rehearsed is to make: its manifest as far as it is known, its
        tokenizer and template, its base's settings, and prompts that it will have trained on."""
        bench, renderer, answered = rehearsed.bench, rehearsed.renderer, rehearsed.answered
        digest = hashlib.sha256(name.encode()).hexdigest()
        folder = self.scratch / digest
        folder.mkdir()
        if renderer is not None and kind in ("adapter", "reward"):
            renderer.save(folder / "tokenizer")
            _write(folder / "adapters" / str(_adapters(bench) - 1) / SHAPE, _shape(bench))
        elif renderer is not None and kind == "model":
            renderer.save(folder / "model")
            _write_settings(folder / "model", bench, renderer)
        if answered:
            trained_on.note(folder, map(opening, answered))
            trained_on.note(folder, map(opening, rehearsed.drawn_on), trained_on.PERHAPS)
        files = {path.relative_to(folder).as_posix(): NO_FILE for path in folder.rglob("*") if path.is_file()}
        made = Promised(
            name=name,
            digest=digest,
            kind=kind,
            stage=bench.question.stage.name,
            version=bench.question.stage.version,
            config=bench.settings,
            parents={role: parent.digest for role, parent in bench.parents.items()},
            base=bench.question.base.manifest() if bench.question.base else None,
            text=renderer.contract() if renderer else None,
            data=bench.question.digests,
            metrics={},
            files=files or {"data.jsonl": NO_FILE},
        )
        self.promised |= {name: made, digest: made}
        self.know(bench.question.base)


def _adapters(bench: Workbench) -> int:
    """How many adapters lie on each other in what the stage makes."""
    if "adapter" not in type(bench.config).model_fields:
        return 1  # of several that it was given
    parent = bench.parents.get("parent")
    before = (
        max((1 + int(path.split("/")[1]) for path in parent.files if path.startswith("adapters/")), default=0)
        if parent
        else 0
    )
    if before and bench.config.parent_adapter != "stack":
        return before
    return before + (2 if bench.config.adapter.takes_off else 1)  # with what takes its start off


def _shape(bench: Workbench) -> dict[str, Any]:
    """What `inputs.adapters.adapter_of` and `folders.adapter.rows_needed` read of an adapter's settings."""
    shape: dict[str, Any] = bench.settings.get("adapter") or _blended(bench)
    rows = bench.token_rows
    return {
        **peft_names(shape["method"]),
        "r": shape.get("rank"),
        "lora_alpha": shape.get("alpha", 0),
        "target_modules": shape.get("targets"),
        "layers_to_transform": list(range(shape["layers"])) if shape.get("layers") else None,
        "target_parameters": ["experts"] if shape.get("experts") else None,
        "trainable_token_indices": [rows - 1] if rows else None,
    }


def _blended(bench: Workbench) -> Json:
    """The shape of several adapters as one: of the first, with the ranks' sum, or the one that is left."""
    shapes: list[dict[str, Any]] = [adapter_of(bench.store, artifact) for artifact in bench.parents.values()]
    ranks = [shape["rank"] for shape in shapes]
    config = bench.config
    return {**shapes[0], "rank": sum(ranks) if config.method == "cat" else config.rank or max(ranks)}


def _write_settings(folder: Path, bench: Workbench, renderer: Renderer) -> None:
    """config.json and generation_config.json of a model that is to be made, as far as they are read before weights
    are."""
    ends: Mapping[str, Any] = {"eos_token_id": list(renderer.stop_ids)}
    if bench.question.base is None:
        config = models.base.llama_config(bench.config.architecture, renderer.tokenizer).to_dict()
    else:
        config = {
            key: value for key, value in copy.deepcopy(dict(bench.base.config)).items() if key != "quantization_config"
        }
        part = next((config[key] for key in ("text_config", "decoder") if isinstance(config.get(key), dict)), config)
        part["vocab_size"] = bench.rows
    _write(folder / CONFIG, config)
    _write(folder / "generation_config.json", ends)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
