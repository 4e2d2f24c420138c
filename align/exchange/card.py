"""A model card for what leaves the store: README.md in Hugging Face's layout, from manifests alone, so that it is the
same everywhere.

YAML front matter that the hub reads, then what it is, how to load it, where it came from, what was measured, how it
reads and ends text, its limits, and how to verify every file. It lies beside the files and is no part of the artifact.
No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from align.exchange.card_figures import measured, plain, table, text_contract, verdict
from align.folders.adapter import method_name
from align.folders.adapter_settings import SHAPE
from align.ground.json import Json
from align.report.code import ON_A_BASE, WHOLE, align_code, artifact_of, auto_class, hub, loadable, plain_code
from align.stage import catalogue
from align.store import Artifact, BaseRecord, Store

FILE = "README.md"
SCORING = ("reward", "classifier")
"""Those that score answers."""

SETTINGS = (
    "method",
    "learn",
    "learning_rate",
    "head_learning_rate",
    "lr_scheduler",
    "warmup_ratio",
    "epochs",
    "max_steps",
    "batch_size",
    "loss",
    "beta",
    "label_smoothing",
    "sft_coef",
    "centre",
    "kl_coef",
    "rollout_size",
    "group_size",
    "ppo_epochs",
    "max_new_tokens",
    "temperature",
    "scale_rewards",
    "normalise",
    "parent_adapter",
    "adapter",
    "max_length",
    "precision",
    "dtype",
    "seed",
)
"""Settings that a reader wants to know; the manifest has all of them."""


def card(store: Store, artifact: Artifact, name: str, model: str = "model") -> str:
    """README.md for a folder with the files of an artifact that holds a model.

    Args:
        name: what it is called, also in the code that loads it.
        model: folder of a full model inside the exported one; "" where it is the folder itself.
    Raises: AlignError when an ancestor is damaged.
    """
    line = list(_ancestors(store, artifact, set()))
    sections = [
        ("How to load it", _loading(store, artifact, name, model)),
        ("Where it came from", _origins(line)),
        ("What was measured", measured(line)),
        *([("How it differs from its adapters", verdict(artifact))] if "verdict" in artifact.metrics else []),
        ("How it reads and ends text", text_contract(store, artifact, model)),
        ("Limits", _limits(artifact)),
        ("How to verify it", _files(artifact, model)),
    ]
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections)
    return f"{_front(store, artifact, line)}\n# {_heading(store, artifact, name)}\n\n{_what(artifact)}\n\n{body}\n"


def exported(store: Store, artifact: Artifact, name: str, model: str = "model") -> dict[str, bytes]:
    """The files that go with an export beside the artifact's own: the card of a model, nothing for data and reports."""
    taken = any(path.startswith(f"{FILE}/") for path in artifact.files)
    return {FILE: card(store, artifact, name, model).encode()} if loadable(artifact) and not taken else {}


def _heading(store: Store, artifact: Artifact, name: str) -> str:
    """Its name; of a merge that was given none, what was merged."""
    merged = artifact.parents.get("parent") if name == artifact.stage == "merge" else None
    return f"{store.label(merged)}, merged" if merged else name


def _ancestors(store: Store, artifact: Artifact, seen: set[str]) -> Iterator[Artifact]:
    """What an artifact came from, as far as this store has it, and then itself, each once."""
    seen.add(artifact.digest)
    for parent in artifact.parents.values():
        if parent not in seen and store.manifest_path(parent).exists():
            yield from _ancestors(store, store.resolve(parent), seen)
    yield artifact


def _front(store: Store, artifact: Artifact, line: Sequence[Artifact]) -> str:
    """The YAML block. A base is named only where it is the hub's: any other name would point at a stranger's model."""
    base = _hub_base(store, artifact)
    adapters, scores = artifact.kind in ON_A_BASE, artifact.kind in SCORING
    tags = ["align", *_methods(store, artifact), *(["reward-model"] if scores else [])]
    stages = [stage for a in line if (stage := catalogue.find(a.stage))]
    tags += [tag for stage in stages for tag in stage.tags]
    tags += ["rlhf"] if any(stage.learns_from == "rewards" for stage in stages) else []
    fields: Json = {}
    if base:
        fields |= {"base_model": base, "base_model_relation": "adapter" if adapters else "finetune"}
    fields["library_name"] = "peft" if adapters else "transformers"
    fields["pipeline_tag"] = "text-classification" if scores else "text-generation"
    fields["tags"] = list(dict.fromkeys(tags))
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---", ""])


def _methods(store: Store, artifact: Artifact) -> list[str]:
    """How its adapters adapt, each method once."""
    files = sorted(path for path in artifact.files if path.startswith("adapters/") and path.endswith(f"/{SHAPE}"))
    return list(dict.fromkeys(method_name(json.loads(store.read(artifact, path))) for path in files))


def _hub_base(store: Store, artifact: Artifact) -> str | None:
    """The hub's model at the root of an artifact, through bases that are artifacts themselves."""
    base = artifact.base
    while base and (found := artifact_of(base)):
        base = store.resolve(found).base if store.manifest_path(found).exists() else None
    return str(base["model"]) if base and base["revision"] else None


def _what(artifact: Artifact) -> str:
    stage = catalogue.find(artifact.stage)
    how = f"made by Align's `{artifact.stage}` stage: {stage.does if stage else artifact.stage}"
    if artifact.kind == "classifier":
        return (
            f"A reward model as a sequence classifier of transformers with one label, {how}. It started from "
            f"{_base_of(artifact)}."
        )
    if artifact.kind == "model":
        start = f" It started from {_base(artifact.base)}." if artifact.base else " It was trained from random weights."
        return f"A causal language model in the Hugging Face layout, {how}.{start}"
    what = "A reward model, a LoRA adapter and a score head" if artifact.kind == "reward" else "A LoRA adapter"
    return f"{what}, {how}. Its base is {_base_of(artifact)}; it fits no other."


def _base(base: BaseRecord) -> str:
    found = artifact_of(base)
    name = f"artifact `{found[:12]}` of the store it was made in" if found else f"`{base['model']}`"
    revision = f" at commit `{base['revision'][:12]}`" if base["revision"] else ""
    return f"{name}{revision} ({base['quantize'] or 'not quantised'}, digest of its files `{base['digest'][:12]}`)"


def _base_of(artifact: Artifact) -> str:
    return _base(artifact.base) if artifact.base else ""


def _loading(store: Store, artifact: Artifact, name: str, model: str) -> list[str]:
    library = "transformers" if artifact.kind in WHOLE else "PEFT"
    words = [f"With {library}; `DIR` is this folder" + _base_folder(artifact) + ":"]
    code = plain_code(artifact, "DIR", _place, model, auto_class(store, artifact))
    fence = ["", "```python", *code, "```", ""]
    if artifact.kind == "classifier":
        return [*words, *fence[:-1]]
    return [*words, *fence, "With Align, from the store it was made in:", "", "```python", *align_code(name), "```"]


def _place(base: BaseRecord) -> str:
    """Where printed code finds a base: on the hub, or in a folder that the reader names."""
    return hub(base) or ('"BASE/model"' if artifact_of(base) else '"BASE"')


def _base_folder(artifact: Artifact) -> str:
    base = artifact.base
    if artifact.kind in WHOLE or not base or hub(base):
        return ""
    if found := artifact_of(base):
        return f", and `align checkout {found[:12]} BASE` gives its base, from the store it was made in"
    return (
        f", and `BASE` the folder of its base. That was a folder called `{base['model']}` where this was made, not a "
        f"model of the hub: ask its author for the model whose files have the digest `{base['digest']}` (`align locate "
        "BASE` tells whether a folder is it)"
    )


def _origins(line: Sequence[Artifact]) -> list[str]:
    names = {a.digest: f"{a.stage} `{a.short}`" for a in line}
    rows = [["stage", "from", "data", "settings"]]
    for a in line:
        start = [f"{role}: {names.get(parent, f'`{parent[:12]}`')}" for role, parent in a.parents.items()] or (
            [f"base: {_base(a.base)}"] if a.base else []
        )
        data = [f"{key} `{digest[:12]}`" for key, digest in sorted(a.data.items())]
        settings = [f"{key} {value}" for key, value in _settings(a, line)]
        rows.append([names[a.digest], *("<br>".join(words) for words in (start, data)), ", ".join(settings)])
    return [*table(rows), "", "Data stand by the sha256 of what was read, artifacts by the beginning of their digests."]


def _settings(artifact: Artifact, line: Sequence[Artifact]) -> Iterator[tuple[str, str]]:
    """What matters of its settings, without the shape of an adapter where no fresh one was made."""
    config, parent = artifact.config, next((a for a in line if a.digest == artifact.parents.get("parent")), None)
    went_on = config.get("parent_adapter") == "continue" and parent is not None and parent.kind == "adapter"
    unused = {"adapter"} if went_on else set()
    if artifact.kind in WHOLE:
        unused = {"parent_adapter", "adapter"}
    for key in (key for key in SETTINGS if key not in unused):
        value = config.get(key)
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", plain(found)) for inner, found in sorted(value.items()))
        elif value is not None:
            yield key, plain(value)


def _limits(artifact: Artifact) -> list[str]:
    limits = ["- What is above is all that was measured. Nothing here says that its answers are true or safe."]
    if artifact.kind in SCORING:
        limits.append(
            "- Scores order answers to one prompt; they are no measure across prompts, and a policy that is trained "
            "long enough against them finds answers that score high without being good."
        )
    if artifact.kind in ON_A_BASE:
        limits.append("- On another base, another quantisation or with another template it is another model.")
    limits.append("- Licence and limits of the base and of the data hold for it too.")
    return limits


def _files(artifact: Artifact, model: str) -> list[str]:
    prefix = "model" if artifact.kind in WHOLE and not model else ""
    rows = [f"{artifact.files[path]['sha256']}  {name}" for name, path in sorted(artifact.under(prefix).items())]
    return [
        f"Artifact `{artifact.digest}`: this is the sha256 of its manifest, which names these files.",
        "",
        "```sh",
        f"sed -n '/^[0-9a-f]\\{{64\\}}  /p' {FILE} | sha256sum --check",
        "```",
        "",
        "```text",
        *rows,
        "```",
    ]
