"""The settings of an artifact's run as `--config` takes them, out of its manifest: `align show NAME --settings`.

A manifest knows files by their content alone, so that data of files, judges and templates of the user's own are named
as still to be given, but where something with that content lies in the store.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from ruamel.yaml import YAML

from align.data.files.sources import read_template
from align.ground.errors import InputError
from align.ground.json import Json
from align.inputs.fit import label_of, root
from align.recipe import StageConfig, idle
from align.recipe.telling import problems as words
from align.report.code import artifact_of
from align.report.text import SHORT, name_of
from align.stage import catalogue
from align.stage.describe import Stage
from align.store import Artifact, BaseRecord, Store, digest_json
from align.store.graph import by_data, data_artifacts

FILLED = "to be given"
"""Stands in settings for what is to be given, while they are checked."""


@dataclass
class GivenBack:
    """What `--config` takes, and what is to be given beside it: flags, each with the content that it had."""

    stage: str
    settings: Json = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    def yaml(self, name: str) -> str:
        """The settings as a file, which says on top how to run it."""
        flags = "".join(f" --{key} …" for key in self.beside)
        lines = [f"# The settings of {name}. Run it again: align {self.stage} --config FILE{flags}"]
        lines += [f"# --{key}: not in the store; its content was {content}" for key, content in self.beside.items()]
        text = io.StringIO()
        writer = YAML(typ="safe", pure=True)
        writer.default_flow_style, writer.width = False, 1 << 20
        writer.dump(self.settings, text)
        return "\n".join(lines) + "\n" + text.getvalue().rstrip()


def given_back(store: Store, artifact: Artifact) -> GivenBack:
    """The settings of the run that made an artifact.

    Raises: InputError where no command takes them, or no longer does.
    """
    name = name_of(store, artifact, "")
    if artifact.stage not in catalogue.commands():
        raise InputError(f"{name} was made by {artifact.stage}, which takes no --config; align show {name} tells more.")
    stage = catalogue.stage_of(artifact.stage)
    fields = stage.config.model_fields
    found = GivenBack(artifact.stage, {key: value for key, value in artifact.config.items() if key in fields})
    _files(found, artifact, store)
    _contents(found, artifact, store)
    _inputs(found, stage, artifact, store)
    if artifact.base and "base" in fields and "parent" not in found.settings:
        found.settings["base"] = _base(store, artifact.base)
    _without_effect(found, stage.config, store, artifact)
    return found


def _files(found: GivenBack, artifact: Artifact, store: Store) -> None:
    """Data files: of a name in the store, of the hub, or to be given."""
    hub = artifact.config.get("hub_data", {})
    named = {rows: [n for a in made for n in store.names(a)] for rows, made in by_data(data_artifacts(store)).items()}
    equal = {rows: max(names) for rows, names in named.items() if names}
    for key in dict.fromkeys(map(root, artifact.data)):
        parts = sorted(((name, digest) for name, digest in artifact.data.items() if root(name) == key), key=_number)
        places = [hub.get(name) or equal.get(digest) for name, digest in parts]
        held = found.settings.pop(key, None)
        mixture = held if isinstance(held, list) else [{} for _ in places]
        if None in places:
            taken = [f" {words.plain(more)}" if more else "" for more in mixture]
            several = zip(parts, taken, strict=True)
            found.beside[key] = ", ".join(f"sha256 {digest[:SHORT]}{how}" for (_, digest), how in several)
        elif len(parts) > 1 or mixture != [{}]:
            found.settings[key] = [{**more, "file": f} if more else f for more, f in zip(mixture, places, strict=True)]
        else:
            found.settings[key] = places[0]


def _number(item: tuple[str, str]) -> int:
    """Of data/2, 2."""
    return int(item[0].partition("/")[2] or 0)


def _contents(found: GivenBack, artifact: Artifact, store: Store) -> None:
    """Files that a manifest holds as their content's digest: judges are to be given, a template lies with the
    tokenizer."""
    settings = found.settings
    given = settings.pop("judges", None)
    judges = {f"judges.{name}": judge for name, judge in given.items()} if isinstance(given, dict) else {}
    for name, judge in (judges | {"judge": settings.pop("judge", None)}).items():
        if judge:
            digest, _, function = str(judge).partition(":")
            found.beside[name] = f"sha256 {digest[:SHORT]}, its function {function}"
    template = settings.get("chat_template")
    if template not in (None, "plain"):
        folder = store.folder(artifact) / ("model" if artifact.kind == "model" else "tokenizer")
        file = folder / "chat_template.jinja"
        if file.exists() and digest_json(read_template(str(file))) == template:
            settings["chat_template"] = str(file.resolve())
        else:
            found.beside["chat_template"] = f"sha256 {str(settings.pop('chat_template'))[:SHORT]}"


def _inputs(found: GivenBack, stage: Stage[StageConfig], artifact: Artifact, store: Store) -> None:
    """Artifacts, each by a name that calls it as the results do, else by its digest."""
    lists: dict[str, list[str]] = {}
    for role, digest in artifact.parents.items():
        key, _, label = role.partition("/")
        parent = store.load(digest)
        names = [*store.names(parent), digest]
        ref = next((name for name in names if label_of(name, parent) == label), names[0])
        if label and label_of(ref, parent) != label:
            found.beside[key] = f"{label}: {digest[:SHORT]} (no name of it ends so; align tag gives one)"
        elif label:
            lists.setdefault(key, []).append(ref)
        elif key in stage.inputs:
            found.settings[key] = ref
    found.settings |= lists


def _base(store: Store, base: BaseRecord) -> Json:
    stored, place = artifact_of(base), store.place(base["digest"])
    where = stored or (base["model"] if base["revision"] or place is None else str(place))
    more = {key: base[key] for key in ("revision", "quantize") if base[key]}
    return {"model": where, **more}


def _without_effect(found: GivenBack, kind: type[StageConfig], store: Store, artifact: Artifact) -> None:
    """Leave out what a manifest holds for people to know, such as the shape of an adapter that goes on training.

    Raises: InputError where the settings are those of another version.
    """
    filling = {key: [FILLED] if key in ("compare", "adapters") else FILLED for key in found.beside if "." not in key}
    mapped = {"judges": {key.partition(".")[2]: FILLED for key in found.beside if key.startswith("judges.")}}
    filled = found.settings | filling | {key: value for key, value in mapped.items() if value}
    if wrong := words.problems(kind, filled, found.stage, ".".join):
        said = "\n".join(text for _, text in wrong)
        raise InputError(f"the settings were those of {found.stage} version {artifact.version}, and now:\n{said}")
    config = kind.model_validate(filled)
    parent = store.load(artifact.parents["parent"]).kind if "parent" in artifact.parents else None
    for path, _ in [*idle(config, None), *idle(config, parent)]:
        group = found.settings if len(path) == 1 else found.settings.get(path[0])
        if isinstance(group, dict):
            group.pop(path[-1], None)
        if group == {}:
            del found.settings[path[0]]
