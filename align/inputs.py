"""What a stage is given, found and checked before anything heavy: artifacts, base and data that fit together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.bases import BaseModel, find_base, locate_base, stored_base
from align.data.formats import data_digest
from align.errors import InputError
from align.recipe import Base
from align.store import Artifact, Store


def label_of(name: str, artifact: Artifact) -> str:
    """How an input is called in results: the end of its ref, or its stage where it was given by digest."""
    return artifact.stage if artifact.digest.startswith(name) else name.rsplit("/", 1)[-1]


def input_artifact(stage: str, role: str, name: str, allowed: tuple[str, ...], store: Store) -> Artifact:
    artifact = store.resolve(name)
    if artifact.kind not in allowed:
        remedy = "Train one with `python -m align.reward`." if allowed == ("reward",) else "`align ls` shows what there is."
        raise InputError(
            f"{role}: {name} is a {artifact.kind} artifact (stage {artifact.stage}), but {stage} needs {' or '.join(allowed)} there. "
            f"{remedy}"
        )
    return artifact


def origin(parents: Mapping[str, Artifact]) -> Artifact | None:
    """The input that says which base and which tokenizer: the parent, or the first of what is compared."""
    return next((a for role, a in parents.items() if role == "parent" or role.startswith("compare/")), None)


def base_of(stage: str, config: Any, store: Store, parents: Mapping[str, Artifact]) -> BaseModel | None:
    wanted: Base | None = getattr(config, "base", None)
    parent = origin(parents)
    if wanted is not None and "parent" in parents:
        raise InputError(f"{stage}: both base and parent are set; the parent already says which base it is on. Leave out base.")
    if wanted is not None:
        return find_base(wanted, store)
    if parent is None:
        return None
    if parent.kind == "model":
        return stored_base(parent, None, store)
    if parent.base is None:
        return None
    return locate_base(parent.base, store)


def check_fits(role: str, artifact: Artifact, base: BaseModel | None, parent: Artifact | None) -> None:
    if base is None or artifact.base is None or artifact.kind in ("model", "data", "report") or role == "parent":
        return
    if (artifact.base["digest"], artifact.base["quantize"]) != (base.digest, base.quantize):
        describe = lambda b: f"{b['model']} ({b['quantize'] or 'not quantised'}, weights {b['digest'][:12]})"  # noqa: E731
        raise InputError(
            f"{role} {artifact.short} was trained on base {describe(artifact.base)}, the parent on {describe(base.manifest())}. "
            f"They share one base: train the {role} with --parent set to the same artifact."
        )
    if parent is not None and parent.text and artifact.text and parent.text["tokenizer"] != artifact.text["tokenizer"]:
        raise InputError(
            f"{role} {artifact.short} reads another tokenizer than the parent {parent.short}; "
            "train it with --parent set to the same artifact."
        )
    if parent is not None and parent.text and artifact.text and parent.text["chat_template"] != artifact.text["chat_template"]:
        raise InputError(
            f"{role} {artifact.short} was trained with another chat template than the parent {parent.short}; train it from that parent."
        )


def find_data(store: Store, name: str, value: str) -> tuple[Path, str]:
    path = Path(value).expanduser()
    if path.exists():
        return path, data_digest(path)
    try:
        artifact = store.resolve(value)
    except InputError as error:
        raise InputError(f"{name}: there is no file {value}, and no data artifact of that name in {store.path}.") from error
    if artifact.kind != "data":
        raise InputError(f"{name}: {value} is a {artifact.kind} artifact (stage {artifact.stage}); expected a file or a data artifact.")
    return store.folder(artifact) / "data.jsonl", artifact.files["data.jsonl"]["sha256"]
