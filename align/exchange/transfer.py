"""Into the store and out of it: a PEFT folder becomes an artifact, an artifact a folder, and a moved base is found
again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align import exchange
from align.exchange.card import exported
from align.folders import adapter
from align.folders.adapter import SHAPE, WEIGHTS
from align.folders.adapter_settings import MERGE
from align.folders.model import MODEL_FILES
from align.ground.errors import AlignError, InputError
from align.ground.terminal import say
from align.inputs.bases import vocabulary
from align.inputs.fit import check_out
from align.recipe import Base, ChatTemplate, File, ModelStage
from align.stage import outcomes
from align.stage.describe import Outcome, Stage
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store, sha256_file

if TYPE_CHECKING:
    from align.rendering.render import Renderer

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TEXT_FILES = (
    *TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
"""All that is read of a folder's tokenizer, and so all that the key of an import holds."""


class Config(ModelStage):
    """Import of one adapter; `weights` and `shape` are the two files of a PEFT folder."""

    weights: File
    shape: File
    text: dict[str, str]
    """Files of the folder's own tokenizer, by name, with their sha256; where there are none, the base's tokenizer is
    taken."""
    precision: Literal["fp32"] = "fp32"
    """What it is checked in."""
    chat_template: ChatTemplate | None = None


def import_adapter(
    folder: str | Path, base: Base, store: Store, *, name: str | None = None, chat_template: str | None = None
) -> Artifact:
    """A folder that PEFT saved, as an `adapter` artifact on `base`. Its own tokenizer is kept if it brings one, else
    the base's.

    Raises: InputError with the reason for a folder that is empty, cut short, of no method that is known, trained on
        another model, or that Align would compute otherwise than PEFT does; nothing is stored then.
    """
    folder = Path(os.path.expanduser(folder))
    check_folder(folder)
    text = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for pattern in TEXT_FILES
        for path in sorted(folder.glob(pattern))
    }
    if text and (missing := [file for file in TOKENIZER if file not in text]):
        say(f"{folder} has {', '.join(text)}, but no {missing[0]}: the base's tokenizer and template are taken")
        text = {}
    if other := adapter.other_base(folder / SHAPE, base.model):
        say(f"{folder}: {other}. Only the names could be compared: on another model its answers are worth nothing")
    config = Config(
        base=base,
        name=name or re.sub(r"[^A-Za-z0-9._-]+|^[.-]+", "-", folder.resolve().name).strip("-."),
        weights=str(folder / WEIGHTS),
        shape=str(folder / SHAPE),
        text=text,
        chat_template=chat_template,
    )
    return execute(STAGE, config, store)


def check_folder(folder: Path) -> None:
    """Refuse what cannot be imported, without torch.

    Raises: InputError with the reason.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}. Expected one that PEFT saved, with {SHAPE} and {WEIGHTS}.")
    adapter.check_folder(folder, adapter.resolved)


def work(bench: Workbench) -> Outcome:
    """`taken_in`; what does not fit begins with the base that the adapter was trained on, where that is another."""
    try:
        return taken_in(bench)
    except InputError as error:
        shape = bench.question.data["shape"]
        if other := adapter.other_base(shape, bench.config.base.model):
            raise InputError(f"{shape.parent}: {other}. The two do not fit together: {error}") from error
        raise


def taken_in(bench: Workbench) -> Outcome:
    """Load the adapter on its base, compare it with PEFT's own computation on another, and write it in the store's
    layout."""
    bench.more_rows = rows_of(bench)
    renderer = load_text(bench)
    folder, scratch = bench.question.data["weights"].parent, bench.folder.parent / "adapter"
    prepare_adapter(bench, folder, scratch)
    rows = exchange.foreign.probe_rows(
        renderer, bench.context, tokens_of(json.loads((scratch / SHAPE).read_text(encoding="utf-8")))
    )
    try:
        bare, wanted, rounding = exchange.foreign.by_peft(bench.load_base(in_fp32=True).base, scratch, rows)
        roles = bench.load_base(in_fp32=True)
        roles.load_adapter("policy", scratch)
    except (RuntimeError, ValueError) as error:  # sizes that differ, and targets that this model has not
        raise InputError(
            f"{folder}: the adapter does not fit the base {bench.base.label}: {exchange.foreign.first_line(error)}"
        ) from error
    except InputError as error:
        raise InputError(str(error).replace(str(scratch), str(folder))) from error
    for key, tensor in roles.adapter_state("policy").items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{bench.question.data['weights']}: {key} holds NaN or infinity; the training that made it had "
                "diverged."
            )
    roles.assign("policy", ["policy"])
    exchange.foreign.check_as_peft(roles, "policy", rows, bare, wanted, rounding, str(folder))
    if bare.equal(wanted):
        say(f"{bench.title}: the adapter changes nothing on a probe text; was it trained?")
    outcomes.save_role(bench, roles, "policy", bench.folder)
    renderer.save(bench.folder / "tokenizer")
    return Outcome(
        bench.folder, "adapter", renderer.contract(), {}, outcomes.reload_check(bench, roles, renderer, policy="")
    )


def rows_of(bench: Workbench) -> int:
    """Rows of the embedding that the adapter's tokens need. Raises: InputError where it does not bring all that the
    base has not."""
    settings = adapter.check_folder(bench.question.data["weights"].parent, adapter.resolved)
    ids, there = {*tokens_of(settings)}, vocabulary(bench.base.path)
    needed = adapter.rows_needed(settings)
    if missing := sorted({*range(there, needed)} - ids):
        raise InputError(
            f"{bench.question.data['shape']}: its trainable_token_indices go up to {needed - 1:,} and leave out "
            f"{missing[0]:,}, for which the base has no row ({there:,} rows). {remedy(bench, MERGE)}"
        )
    return needed


def remedy(bench: Workbench, otherwise: str) -> str:
    """What to do where tokens have no row in the base's embedding."""
    is_other = adapter.other_base(bench.question.data["shape"], bench.config.base.model)
    return "Import it on the base that it was trained on." if is_other else otherwise


def tokens_of(settings: Mapping[str, Any]) -> list[int]:
    """The ids whose rows an adapter brings, in the embedding or in the head."""
    found = settings.get("trainable_token_indices") or []
    return sorted({i for ids in (found.values() if isinstance(found, dict) else [found]) for i in ids})


def prepare_adapter(bench: Workbench, folder: Path, scratch: Path) -> None:
    """The adapter in `scratch` with the settings that are stored; what of the given ones does not stay is said."""
    settings = adapter.check_folder(folder, adapter.resolved)
    given = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    types = {dtype for dtype, _ in adapter.read_tensors(folder / WEIGHTS).values()}
    notes = {
        f"its tensors are {', '.join(sorted(types))} and are kept in fp32": types != {"F32"},
        f"lora_dropout is {given.get('lora_dropout')}, which only its training used; 0 is kept": given.get(
            "lora_dropout"
        ),
        f"init_lora_weights is {given.get('init_lora_weights')!r}; its tensors decide, so true is kept": isinstance(
            given.get("init_lora_weights"), str
        ),
        "target_modules is a pattern; the layers that have tensors are kept by name": settings["target_modules"]
        != given.get("target_modules"),
    }
    for note, holds in notes.items():
        if holds:
            say(f"{bench.title}: {note}")
    scratch.mkdir()
    (scratch / SHAPE).write_text(json.dumps(settings), encoding="utf-8")
    if given["peft_type"] == "ADALORA" and given.get("rank_pattern"):
        exchange.foreign.write_in_full(folder / WEIGHTS, given["rank_pattern"], scratch / WEIGHTS)
    else:
        (scratch / WEIGHTS).symlink_to((folder / WEIGHTS).resolve())


def load_text(bench: Workbench) -> Renderer:
    """The renderer of the folder's own tokenizer, of the files that the key holds and no others; else the base's.

    Raises: InputError where its ids would mean other tokens than the base's, or lie outside its embedding.
    """
    from align.rendering.render import load_renderer

    renderer = bench.load_renderer()
    if not bench.config.text:
        return renderer
    folder, scratch = bench.question.data["weights"].parent, bench.folder.parent / "text"
    for name, digest in bench.config.text.items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, scratch / name)
        if sha256_file(scratch / name) != digest:
            raise InputError(f"{folder / name} changed while it was imported. Run the import again.")
    known, bases = renderer.tokenizer, dict(renderer.tokenizer.get_vocab())
    try:
        renderer = load_renderer(
            scratch, bench.config.chat_template, renderer.max_length, extra_stops_from=bench.base.path
        )
    except AlignError as error:
        raise InputError(str(error).replace(str(scratch), str(folder))) from error
    except Exception as error:  # whatever transformers raises for files that are no tokenizer
        raise InputError(f"{folder}: its tokenizer does not load ({type(error).__name__}: {error}).") from error
    words = renderer.tokenizer.get_vocab()
    rows = bench.rows
    added_there = f"Tokens were added in its training: {MERGE[0].lower()}{MERGE[1:]}"
    if beyond := sorted((id_, word) for word, id_ in words.items() if id_ >= rows):
        raise InputError(
            f"{folder}: its tokenizer has {len(beyond):,} tokens without a row in the base's embedding ({rows:,} "
            f"rows), the first {beyond[0][1]!r} with id {beyond[0][0]:,}. {remedy(bench, added_there)}"
        )
    added = {*known.added_tokens_decoder, *renderer.tokenizer.added_tokens_decoder}
    if other := sorted((id_, word) for word, id_ in bases.items() if id_ not in added and words.get(word) != id_):
        raise InputError(
            f"{folder}: its tokenizer has {len(words):,} entries, the base's {len(bases):,}, and {len(other):,} of the "
            f"base's are others there, the first {other[0][1]!r} with id {other[0][0]:,}. Ids would mean other tokens: "
            "import it on the model that it was trained on."
        )
    say(f"{bench.title}: tokenizer and chat template of the folder are kept")
    return renderer


STAGE = Stage(
    "import",
    version=2,
    config=Config,
    inputs={},
    work=work,
    makes=("adapter",),
    learns_from="examples",
    does="an adapter that PEFT saved, taken in as it was",
    encoder_decoders=True,
)


def checkout(artifact: Artifact, folder: str | Path, store: Store, name: str | None = None) -> Path:
    """Copies of an artifact's files in `folder`, absent or empty before, and a model's card, which calls it `name`.

    Raises: InputError when it holds something.
    """
    check_out(folder, folder=True)
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
        known = (
            ", ".join(sorted({f"{a.base['model']} ({a.base['digest'][:12]})" for a in artifacts if a.base})) or "none"
        )
        raise InputError(
            f"{folder} has digest {digest[:12]}; no artifact in {store.path} is on such a base. The bases there: "
            f"{known}."
        )
    store.note_place(digest, folder)
    return found
