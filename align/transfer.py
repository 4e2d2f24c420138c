"""Into the store and out of it: a PEFT folder becomes an artifact, an artifact a folder, and a moved base is found again."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from align.console import say
from align.errors import InputError
from align.job import Job, Outcome, Stage
from align.model_files import MODEL_FILES
from align.recipe import Base, File, ModelStage, Place
from align.report.card import exported
from align.stage import execute
from align.store import Artifact, Store

WEIGHTS, SHAPE = "adapter_model.safetensors", "adapter_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class Config(ModelStage):
    """Import of one adapter; `weights` and `shape` are the two files of a PEFT folder."""

    weights: File
    shape: File
    tokenizer: File | None = None
    chat_template: Literal["plain"] | Place | None = None


def import_adapter(folder: str | Path, base: Base, store: Store, *, name: str | None = None, chat_template: str | None = None) -> Artifact:
    """A folder that PEFT saved, as an `adapter` artifact on `base`. Its own tokenizer is kept if it brings one, else the base's.

    Raises: InputError with the reason for a folder that is empty, cut short, no LoRA, or trained on another model; nothing is stored then.
    """
    folder = Path(os.path.expanduser(folder))
    check_folder(folder)
    config = Config(
        base=base,
        name=name or re.sub(r"[^A-Za-z0-9._-]+|^[.-]+", "-", folder.resolve().name).strip("-."),
        weights=str(folder / WEIGHTS),
        shape=str(folder / SHAPE),
        tokenizer=str(folder / TOKENIZER[0]) if all((folder / file).is_file() for file in TOKENIZER) else None,
        chat_template=chat_template,
    )
    return execute(STAGE, config, store)


def check_folder(folder: Path) -> None:
    """Refuse what cannot be a LoRA adapter of PEFT, without torch.

    Raises: InputError with the reason.
    """
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}. Expected one that PEFT saved, with {SHAPE} and {WEIGHTS}.")
    for file in (SHAPE, WEIGHTS):
        if not (folder / file).is_file():
            remedy = "Expected a folder that PEFT saved."
            if file == WEIGHTS and (folder / "adapter_model.bin").is_file():
                remedy = "Its weights are a pickle, adapter_model.bin: load it with PEFT and save it again, which writes safetensors."
            raise InputError(f"{folder} has no {file}. {remedy}")
    try:
        shape = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / SHAPE} is not JSON: {error}.") from error
    if not isinstance(shape, dict) or shape.get("peft_type") != "LORA":
        found = shape.get("peft_type") if isinstance(shape, dict) else type(shape).__name__
        raise InputError(f"{folder / SHAPE}: peft_type is {found!r}; only LORA adapters can be imported.")
    for key in ("modules_to_save", "trainable_token_indices", "target_parameters", "use_dora", "bias"):
        if shape.get(key) and shape[key] != "none":
            raise InputError(
                f"{folder / SHAPE}: {key} is {shape[key]!r}, which changes more than LoRA's two factors; only plain LoRA can be imported. "
                "Merge it into its base with PEFT (merge_and_unload) and start from that model with --base."
            )
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        size = (folder / WEIGHTS).stat().st_size
        what = f"{folder / WEIGHTS} ({size:,} bytes) is no complete safetensors file"
        raise InputError(f"{what}: {error}. It was cut short; copy it again.") from error
    empty = [key for key, dims in shapes.items() if 0 in dims]
    if not shapes or empty:
        what = f"{empty[0]} is empty" if empty else "it holds no tensor"
        raise InputError(f"{folder / WEIGHTS}: {what}. It was saved without its weights, as sharded training can do; save it again.")


def work(job: Job) -> Outcome:
    """Load the adapter on its base, which proves that it fits, and write it in the store's layout."""
    from align.data.render import load_renderer

    assert job.base is not None
    renderer = job.load_renderer()
    if "tokenizer" in job.data:
        vocabulary = len(renderer.tokenizer)
        folder = job.data["tokenizer"].parent
        renderer = load_renderer(folder, job.config.chat_template, renderer.max_length, extra_stops_from=job.base.path)
        if len(renderer.tokenizer) != vocabulary:
            raise InputError(
                f"{folder}: its tokenizer has {len(renderer.tokenizer):,} entries, the base's {vocabulary:,}. Ids would mean other tokens: "
                "import it on the model that it was trained on."
            )
        say(f"{job.title}: tokenizer and chat template of the folder are kept")
    roles = job.load_base()
    try:
        roles.load_adapter("policy", job.data["weights"].parent)
    except (RuntimeError, ValueError) as error:  # sizes that differ, and targets that this model has not
        folder = job.data["weights"].parent
        raise InputError(f"{folder}: the adapter does not fit the base {job.base.label}: {_first_line(error)}") from error
    for key, tensor in roles.adapter_state("policy").items():
        if not tensor.isfinite().all():
            raise InputError(f"{job.data['weights']}: {key} holds NaN or infinity; the training that made it had diverged.")
    roles.assign("policy", ["policy"])
    job.save_role(roles, "policy", job.folder)
    renderer.save(job.folder / "tokenizer")
    return Outcome(job.folder, "adapter", renderer.contract(), {}, job.reload_check(roles, renderer, policy=""))


STAGE = Stage("import", 1, Config, {}, work)


def checkout(artifact: Artifact, folder: str | Path, store: Store, name: str | None = None) -> Path:
    """Copies of an artifact's files in `folder`, absent or empty before, and a model's card, which calls it `name`.

    Raises: InputError when it holds something.
    """
    beside = exported(store, artifact, name or next(iter(store.names(artifact)), artifact.short))
    return store.materialise(artifact, Path(os.path.expanduser(folder)), beside=beside)


def locate(folder: str | Path, store: Store) -> list[Artifact]:
    """Note where a base lies now; the artifacts that are on it.

    Raises: InputError when no artifact of the store is on the model in `folder`.
    """
    folder = Path(os.path.expanduser(folder))
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json. Expected a model folder in the Hugging Face layout.")
    digest = store.digest_folder(folder, MODEL_FILES)
    artifacts = list(store.artifacts())
    found = [a for a in artifacts if a.base and a.base["digest"] == digest]
    if not found:
        known = ", ".join(sorted({f"{a.base['model']} ({a.base['digest'][:12]})" for a in artifacts if a.base})) or "none"
        raise InputError(f"{folder} has digest {digest[:12]}; no artifact in {store.path} is on such a base. The bases there: {known}.")
    store.note_place(digest, folder)
    return found


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__
