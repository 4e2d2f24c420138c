"""What a stage is given, found and checked before anything heavy: artifacts, base and data that fit together."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from align.data.examples import Example
from align.data.files import hub, remote
from align.data.files.sources import data_digest, data_files
from align.folders.adapter import SHAPE, rows_needed
from align.ground.errors import InputError
from align.ground.paths import near
from align.inputs.bases import BaseModel, find_base, locate_base, stored_base
from align.recipe import Base, StageConfig
from align.recipe.hub_data import NAME
from align.store import Artifact, Store
from align.store.artifact import STORED, BaseRecord

TEXT = {
    "tokenizer": "tokenizer",
    "tokenizer_options": "way to use its tokenizer",
    "chat_template": "chat template",
    "bos_token_id": "BOS token",
    "eos_token_id": "EOS token",
    "stop_ids": "set of tokens that end an answer",
}
"""What two inputs must share, by its key in the text contract, in words. Which token pads does not matter: padding is
masked by length."""

HELD = TEXT | {"pad_token_id": "padding token"}
"""What the files of one artifact must give again, by its key in the text contract."""


def label_of(name: str, artifact: Artifact) -> str:
    """How an input is called in results: the end of its ref, or, where it was given by digest, its stage and that."""
    return f"{artifact.stage}-{artifact.digest[:8]}" if artifact.digest.startswith(name) else name.rsplit("/", 1)[-1]


def input_artifact(stage: str, role: str, name: str, allowed: tuple[str, ...], store: Store) -> Artifact:
    """The artifact of an input. Raises: InputError for one of another kind than those allowed."""
    if (role, name) == ("compare", "base") and name not in store.refs():
        raise InputError(
            "compare: base is no artifact; the base of what is compared is measured anyway (include_base). Leave it "
            "out."
        )
    if "*" in name:
        raise InputError(f"{role}: {name} is a pattern, as `align compare` takes one; here name each artifact.")
    try:
        artifact = store.resolve(name)
    except InputError as error:
        raise InputError(f"{role}: {error}") from error
    if artifact.kind not in allowed:
        remedy = "`align ls` shows what there is."
        if artifact.kind == "reward" and (writer := artifact.parents.get("parent")):
            remedy = f"It scores what {store.label(store.load(writer))} writes: name that."
        if artifact.kind == "report":
            remedy = f"A report is read: `align show {name}`."
        if allowed == ("reward",):
            remedy = "Train one with `python -m align.reward`."
        if role == "compare" and artifact.kind == "model":
            merged = artifact.parents.get("parent") if artifact.stage == "merge" else None
            instead = "name an adapter on it, and the model is measured beside it as the base (include_base)."
            if merged:
                instead = f"name what it was merged from, {store.label(store.load(merged))}, whose answers are its own."
            remedy = f"What is compared are adapters on one base, and a model is a base of its own: {instead}"
        raise InputError(
            f"{role}: {name} is {artifact.described}, but {stage} needs {' or '.join(allowed)} there. {remedy}"
        )
    return artifact


def origin(parents: Mapping[str, Artifact]) -> Artifact | None:
    """The input that says which base and which tokenizer: the parent, or the first of what is compared or blended."""
    several = ("compare/", "adapters/")
    return next((a for role, a in parents.items() if role == "parent" or role.startswith(several)), None)


def base_of(stage: str, config: StageConfig, store: Store, parents: Mapping[str, Artifact]) -> BaseModel | None:
    """The base of a stage: its own, or its parent's; None where it has neither. Raises: InputError for both."""
    wanted: Base | None = getattr(config, "base", None)
    parent = origin(parents)
    if wanted is not None and "parent" in parents:
        raise InputError(
            f"{stage}: both base and parent are set; the parent already says which base it is on. Leave out base."
        )
    if wanted is not None:
        return find_base(wanted, store)
    if parent is None:
        return None
    if parent.kind == "model":
        return stored_base(parent, None, store)
    if parent.base is None:
        return None
    return locate_base(parent.base, store)


def check_fits(role: str, artifact: Artifact, base: BaseModel | None, first: Artifact | None) -> None:
    """Whether an input can be used with this base and with the input that says which tokenizer, `first`.

    Raises: InputError where it was trained on another base or quantisation, or with another tokenizer, chat template or
    end of turn.
    """
    if (
        base is None
        or artifact.base is None
        or artifact.kind in ("model", "classifier", "data", "report")
        or artifact is first
    ):
        return
    setting, _, several = role.partition("/")
    this = f"{setting}: {several} {artifact.short}" if several else f"{role} {artifact.short}"
    if (artifact.base["digest"], artifact.base["quantize"]) != (base.digest, base.quantize):
        other = "the parent"
        remedy = f"Both are to be on one base: train the {role} with --parent set to the same artifact."
        if several and first is not None:
            other = f"{first.stage} {first.short}"
            remedy = f"What {setting} names is to be on one base: what is on others has a run of its own."
        raise InputError(
            f"{this} was trained on base {_describe(artifact.base)}, {other} on {_describe(base.manifest())}. {remedy}"
        )
    if first is None or not first.text or not artifact.text:
        return
    for key, what in TEXT.items():
        # older artifacts lack some
        if key in first.text and key in artifact.text and first.text[key] != artifact.text[key]:
            raise InputError(
                f"{this} has another {what} than {first.stage} {first.short}; train it with --parent "
                "set to the same artifact."
            )


def check_text(artifact: Artifact, found: Mapping[str, object], folder: Path) -> None:
    """Whether the tokenizer and template in `folder`, whose contract is `found`, are those that an artifact was made
    with.

    Raises: InputError naming what differs: ids would mean other tokens than in its training.
    """
    recorded = artifact.text or {}
    other = [key for key in HELD if key in recorded and recorded[key] != found[key]]  # older artifacts lack some
    if other:
        said = ", ".join(f"{HELD[key]} is {_brief(found[key])} and not {_brief(recorded[key])}" for key in other)
        raise InputError(
            f"{folder}: these files are not what {artifact.stage} {artifact.short} was made with, by its manifest: the "
            f"{said}. Ids would mean other tokens. Pull it from where it was made, or make it anew."
        )


def _brief(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _describe(base: BaseRecord) -> str:
    name = f"artifact {base['digest'][:12]}" if base["model"].startswith(STORED) else base["model"]
    return f"{name} ({base['quantize'] or 'not quantised'}, weights {base['digest'][:12]})"


def check_template(stage: str, config: StageConfig, first: Artifact | None) -> None:
    """A template is set where a line of artifacts starts. Raises: InputError where one is set beside a parent."""
    for key in ("chat_template", "template_date"):
        if getattr(config, key, None) is not None and first is not None and first.text is not None:
            raise InputError(
                f"{key} is set, but {config.name or stage} has a parent, whose template it must keep. "
                "Set it where the line starts."
            )


def check_out(out: str | Path, *, folder: bool, setting: str = "out") -> None:
    """Whether a new file, or a folder and those above it, can be written at `out`; found out by writing beside it. A
    pipe or a device is written to as it is. `setting` is what errors call it.

    Raises: InputError.
    """
    path = Path(os.path.expanduser(out)).absolute()
    if not folder and (path.is_file() or path.is_symlink()):
        raise InputError(
            f"{setting}: {out} is there already. Name another file, or move that one away; nothing is overwritten."
        )
    if not folder and path.exists() and not path.is_dir():
        if not os.access(path, os.W_OK):
            raise InputError(f"{setting}: {out} may not be written. Name another file.")
        return
    if not folder and path.is_dir():
        raise InputError(f"{setting}: {out} is a folder; expected a file to write to.")
    if not folder and not path.parent.is_dir():
        raise InputError(
            f"{setting}: there is no folder {path.parent} to write {path.name} in. Make it, or name another file."
        )
    check_place(path, f"{setting}: {out}")


def check_place(path: Path, named: str) -> None:
    """Whether a folder is one to write in, or it and those above it can be made; found out by writing there.

    Raises: InputError.
    """
    above = path if path.is_dir() else next(parent for parent in path.parents if os.path.exists(parent))
    try:
        with tempfile.TemporaryDirectory(dir=above, prefix=".align-"):
            pass
    except OSError as error:
        cannot = "cannot be written to" if above == path else f"cannot be made in {above}"
        raise InputError(f"{named} {cannot} ({error.strerror}). Name another place.") from error


def check_architecture(stage: str, encoder_decoders: bool, base: BaseModel | None) -> None:
    """Raises: InputError for an encoder-decoder where a stage takes none."""
    if base is not None and base.is_encoder_decoder and not encoder_decoders:
        raise InputError(
            f"{stage}: the base {base.label} is an encoder-decoder ({base.config['model_type']}), which {stage} does "
            "not take: sft, dpo, simpo, cpo, orpo, grpo, rloo and reinforce_pp do, and evaluate, merge, pairs, "
            "generate and chat. Give a decoder-only base."
        )


def rows_of(parents: Mapping[str, Artifact], store: Store) -> int:
    """Rows of the embedding that tokens of the inputs' adapters need; 0 where there are none."""
    files = [(artifact, file) for artifact in parents.values() for file in artifact.files if file.endswith(f"/{SHAPE}")]
    settings = (json.loads(store.read(artifact, file)) for artifact, file in files)
    return max(map(rows_needed, settings), default=0)


def check_seen(names: Mapping[int, str], examples: Sequence[Example]) -> str:
    """How often the records hold each new token, by its id, in words; "" where there are none.

    Raises: InputError for one that they never do, whose row nothing would teach.
    """
    seen = Counter(i for e in examples for ids in e.sequences for i in ids if i in names)
    absent = [name for i, name in names.items() if not seen[i]]
    if absent:
        raise InputError(
            f"new_tokens: no record to train on ({len(examples):,} examples) holds {' or '.join(map(repr, absent))}, "
            "whose row would learn nothing. Give records that hold it, or leave it out."
        )
    return ", ".join(f"{name} (id {i}) {seen[i]:,}" for i, name in names.items())


def find_file(value: str) -> Path | None:
    """What a setting names as data, where that is a file, a folder, or a pattern that files match."""
    path = Path(os.path.expanduser(value))
    try:
        return path if os.path.exists(path) or data_files(path) else None
    except InputError:
        return None


class Data(NamedTuple):
    """Where the data of a setting lie, and their digest; of the hub's also which, with the commit."""

    path: Path
    digest: str
    source: str | None = None


def find_data(store: Store, name: str, value: str) -> Data:
    """The data of a setting: a file's, also at a URL, a data artifact's, or a data set of the hub. Raises:
    InputError."""
    if not value.strip():
        raise InputError(f"{name}: {value!r} is blank. Give a file, or the name of a data artifact.")
    path = find_file(value)
    if path is not None:
        return Data(path, data_digest(path))
    if remote.is_url(value) and not NAME.fullmatch(value):
        there = remote.fetched(value)
        return Data(there.path, data_digest(there.path), there.source)
    try:
        artifact = store.resolve(value)
    except InputError as error:
        nowhere = f"{name}: there is no file {value}, and no data artifact of that name in {store.path}"
        try:
            found = hub.fetched(value)
        except hub.NotHad as missing:
            raise InputError(f"{nowhere}; {missing}.{near(value)}") from missing
        if found is None:
            raise InputError(f"{nowhere}.{near(value)}") from error
        return Data(found.path, data_digest(found.path), found.source)
    if artifact.kind != "data":
        raise InputError(f"{name}: {value} is {artifact.described}; expected a file or a data artifact.")
    return Data(store.folder(artifact) / "data.jsonl", artifact.files["data.jsonl"]["sha256"])


def root(name: str) -> str:
    """The setting that a data file is of: data, of data/1."""
    return name.partition("/")[0]
