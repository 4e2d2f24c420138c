"""Where bases come from: a folder, a `model` artifact or the hub; each named by the digest of its files, found again by
that digest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from align.folders.config import CONFIG, is_encoder_decoder, quantisation, read_json, text_part
from align.folders.model import MODEL_FILES, check_folder
from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.ground.paths import near
from align.recipe import Base
from align.store import Artifact, Store
from align.store.artifact import BaseRecord

Stamps = dict[str, tuple[int, int, int]]
"""Size, time of change and inode of each file of a base, by its name: what shows that it was written to or replaced."""


@dataclass(frozen=True)
class BaseModel:
    """A base as a manifest names it, and where it lies on this machine."""

    model: str
    revision: str | None
    digest: str
    quantize: str | None
    folder: Path | Callable[[], Path]
    """Where it lies; a base in the store is laid out, and verified, when it is first needed."""
    stamps: Stamps | None = None
    """Of its files when they were hashed; None in the store, which never changes."""
    settings: Mapping[str, object] | None = None
    """Its config.json, where that is read already."""

    @cached_property
    def path(self) -> Path:
        return self.folder if isinstance(self.folder, Path) else self.folder()

    @property
    def config(self) -> Mapping[str, object]:
        """Its config.json; a base in the store is not laid out for it."""
        return read_json(self.path / CONFIG) if self.settings is None else self.settings

    @property
    def text_config(self) -> Json:
        """What config.json says of the part that writes text."""
        return text_part(self.config)

    @property
    def is_encoder_decoder(self) -> bool:
        return is_encoder_decoder(self.config)

    @property
    def context(self) -> int:
        """Positions it was built for; with longrope those that are computed alike in short and long sequences."""
        return _context(self.text_config)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"artifact {self.digest[:12]}" if self.in_store else self.model

    @property
    def in_store(self) -> bool:
        return self.model.startswith("artifact:")

    def manifest(self) -> BaseRecord:
        """The base as a manifest names it."""
        return {"model": self.model, "revision": self.revision, "digest": self.digest, "quantize": self.quantize}

    def check_unchanged(self) -> None:
        """What was read is what was hashed. Raises: AlignError naming a file that is another one now."""
        if self.stamps is None:
            return
        before, now = self.stamps, _stamps(self.path)
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            raise AlignError(
                f"{self.path / changed[0]} changed while this run was reading the base. "
                "Run it again when nobody writes there."
            )


def find_base(wanted: Base, store: Store) -> BaseModel:
    """A base from a folder, a `model` artifact, or a hub id (resolved to a commit; with a revision it is always the
    hub's).

    Raises: InputError where there is none, and for a revision of a folder.
    """
    folder = Path(os.path.expanduser(wanted.model))
    if folder.is_dir():
        if wanted.revision is not None:
            raise InputError(
                f"base: revision is {wanted.revision!r}, but {wanted.model} is a folder here, which has no revisions. "
                "Leave it out, or name a model of the hub."
            )
        name, commit = folder.resolve().name, None
    elif folder.is_file():
        raise InputError(f"base: {folder} is a file. Expected a model's folder, an artifact or a hub id.")
    elif wanted.model.startswith((".", "/", "~")):
        raise InputError(f"base: there is no folder {folder}.{near(folder)}")
    elif wanted.revision is None and (artifact := _known(wanted.model, store)) is not None:
        if artifact.kind == "classifier":
            raise InputError(
                f"base: {wanted.model} is a reward that was merged into a sequence classifier, which writes no text."
            )
        if artifact.kind != "model":
            raise InputError(
                f"base: {wanted.model} is {artifact.described}, but a base is a model. Go on from it with "
                "--parent, or merge it first: python -m align.merge."
            )
        return stored_base(artifact, wanted.quantize, store)
    else:
        folder, commit = _hub_folder(wanted.model, wanted.revision)
        name = wanted.model
    quantize = settled(wanted.model, wanted.quantize, quantisation(check_folder(folder), folder))
    return _hashed(name, commit, quantize, folder.absolute(), store)


def settled(model: str, wanted: str | None, own: str | None) -> str | None:
    """How a base is quantised: as its checkpoint is, else as it is wanted. Raises: InputError where the two contradict
    each other."""
    if own and wanted and wanted != own:
        raise InputError(
            f"base: quantize is {wanted}, but {model} is quantised already, in {own}. Leave out quantize, or name the "
            "unquantised model that it was made from."
        )
    return own or wanted


def locate_base(recorded: BaseRecord, store: Store) -> BaseModel:
    """Where the base that an artifact names lies on this machine, its digest checked.

    Raises: InputError when it is not found or has changed.
    """
    model, digest = recorded["model"], recorded["digest"]
    if model.startswith("artifact:"):
        return stored_base(store.resolve(model.removeprefix("artifact:")), recorded["quantize"], store)
    path = store.place(digest)
    if path is None and recorded["revision"]:
        path = _hub_folder(model, recorded["revision"])[0]
    if path is None or not path.is_dir():
        raise InputError(
            f"the base {model} (digest {digest[:12]}) is not where it was "
            f"({path or 'no place is recorded in this store'}). Tell this store where it is: align locate DIR."
        )
    base = _hashed(model, recorded["revision"], recorded["quantize"], path, store)
    if base.digest != digest:
        raise InputError(
            f"the base at {path} has changed: its digest was {digest[:12]}, now {base.digest[:12]}. "
            "Adapters only fit the base they were trained on."
        )
    return base


def _hashed(name: str, commit: str | None, quantize: str | None, folder: Path, store: Store) -> BaseModel:
    """The base in a folder; its stamps are older than its digest, so that a file which changes while it is hashed
    shows."""
    stamps = _stamps(folder)
    return BaseModel(name, commit, store.digest_folder(folder, MODEL_FILES), quantize, folder, stamps)


def _stamps(folder: Path) -> Stamps:
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    found = {path.relative_to(folder).as_posix(): path.stat() for path in sorted(files)}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def stored_base(artifact: Artifact, quantize: str | None, store: Store) -> BaseModel:
    """A `model` artifact as a base."""
    settings = json.loads(store.read(artifact, f"model/{CONFIG}"))
    quantize = settled(artifact.short, quantize, quantisation(settings, Path(artifact.short)))

    def folder() -> Path:
        return store.folder(artifact) / "model"

    return BaseModel(f"artifact:{artifact.digest}", None, artifact.digest, quantize, folder, settings=settings)


LENGTHS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "model_max_length", "context_length")
UNBOUNDED = 1 << 30
"""The context of a model that has none of its own, as with ALiBi or T5's relative positions."""


def _context(config: Mapping[str, object]) -> int:
    if "relative_attention_num_buckets" in config:  # T5 reads the distance between two tokens, no position
        return UNBOUNDED
    lengths = (longrope_switch(config), *(config.get(key) for key in LENGTHS))
    return next((n for n in lengths if isinstance(n, int)), UNBOUNDED)


def longrope_switch(config: Mapping[str, object]) -> int | None:
    """The original context of a base with longrope (Phi-3, Phi-4-mini): for a sequence that is longer transformers
    takes other rotary factors, for all of its tokens, so that packed beside a short one, or sampled from there, it
    would be another model's."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict) or "longrope" not in (rope.get("rope_type"), rope.get("type")):
        return None
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return original if isinstance(original, int) else None


def check_length(base: BaseModel, max_length: int) -> None:
    """Raises: InputError where sequences of `max_length` would be on both sides of a base's switch."""
    switch = longrope_switch(base.text_config)
    if switch is not None and max_length > switch:
        raise InputError(
            f"max_length is {max_length:,}, but beyond {switch:,} tokens {base.label} computes with other rotary "
            "factors (longrope): shorter sequences beside longer ones would be wrong. "
            f"Set max_length to at most {switch:,}."
        )


def layer_count(base: BaseModel) -> int | None:
    """Layers of the base's decoder; None where its configuration names them otherwise."""
    return _number(base, "num_hidden_layers", "n_layer", "n_layers")


def width(base: BaseModel) -> int | None:
    """Numbers of a token's hidden state; None where its configuration names them otherwise."""
    return _number(base, "hidden_size", "n_embd", "d_model")


def _number(base: BaseModel, *names: str) -> int | None:
    """The first of these settings that the base's decoder has."""
    return next((value for value in map(base.text_config.get, names) if isinstance(value, int)), None)


def vocabulary(model: Path) -> int:
    """Rows of the base's embedding; where its config.json leaves that to its family's default, as Gemma 3's does,
    that."""
    rows = text_part(read_json(model / CONFIG)).get("vocab_size")
    if isinstance(rows, int):
        return rows
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config().vocab_size)


def _known(name: str, store: Store) -> Artifact | None:
    """The artifact of that name, if there is one."""
    try:
        return store.resolve(name)
    except InputError:
        return None


def _hub_folder(model: str, revision: str | None) -> tuple[Path, str]:
    """A model of the hub at a commit: as it lies in the hub's cache where it is complete there, else fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder: str | None = None
    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=MODEL_FILES, local_files_only=True)
        check_folder(Path(folder))
    # the cache may hold a part of it, as other programs fetch
    except (InputError, LocalEntryNotFoundError, ValueError):
        try:
            folder = snapshot_download(model, revision=revision, allow_patterns=MODEL_FILES)
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
            if folder is None:
                raise InputError(
                    f"base: {model} is neither a folder here, nor a model artifact of this store, nor a model that the "
                    f"hub gives ({type(error).__name__}).{near(model) or ' Check the spelling and the network.'}"
                ) from error
    return Path(folder), Path(folder).name
