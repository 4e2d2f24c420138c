"""The question that a stage is asked: its settings and inputs, found and checked without torch. Equal keys have equal
answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import judges
from align.data.files.sources import read_template
from align.ground.errors import InputError
from align.ground.json import Json
from align.ground.ranks import world
from align.inputs.adapters import adapter_of, check_methods
from align.inputs.bases import BaseModel
from align.inputs.fit import (
    Data,
    base_of,
    check_architecture,
    check_fits,
    check_template,
    find_data,
    find_file,
    input_artifact,
    label_of,
    origin,
)
from align.inputs.fresh import check_layers, check_targets
from align.recipe import StageConfig, TrainConfig, files_of, idle, named_files, resolved
from align.recipe.mixture import mixtures_of
from align.stage.why import why
from align.store import Artifact, Inputs, Store, digest_json, question

if TYPE_CHECKING:
    from align.stage.describe import C, Stage


@dataclass(frozen=True)
class Question:
    """One stage with its inputs found and checked. `key` names what is asked: equal keys give equal results."""

    stage: Stage
    config: StageConfig
    store: Store
    base: BaseModel | None
    parents: dict[str, Artifact]
    data: dict[str, Path]
    digests: dict[str, str]
    settings: dict[str, Any]
    hub_data: dict[str, str]
    """What of the data are data sets of the hub, with the commit: recorded, while the key holds their content alone."""

    @property
    def asked(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "stage": self.stage.name,
            "settings": self.settings,
            **self.made_from,
        }

    @property
    def made_from(self) -> Json:
        """What the result depends on beside the stage and its settings."""
        return {
            "version": self.stage.version,
            "parents": {role: a.digest for role, a in self.parents.items()},
            "data": self.digests,
            "base": self.base.manifest() if self.base else None,
        }

    @property
    def key(self) -> str:
        return question(**self.asked)

    @property
    def why(self) -> str:
        """Why it is to run."""
        return why(self.asked, self.key, self.title, self.store)

    @property
    def inputs(self) -> Inputs:
        """What must stay in the store while this works."""
        base = [self.base.digest] if self.base and self.base.in_store else []
        return Inputs((*base, *(artifact.digest for artifact in self.parents.values())), tuple(self.digests.values()))

    @property
    def title(self) -> str:
        return self.config.name or self.stage.name


def prepare(stage: Stage[C], config: C, store: Store) -> Question:
    """Find and check every input of a stage, without torch.

    Raises: InputError for a missing file, an unknown or damaged artifact, one of the wrong kind, or inputs that do not
    fit together.
    """
    if config.name is not None:
        store.check_name(config.name)
    parents: dict[str, Artifact] = {}
    given: dict[str, str] = {}
    for role, allowed in stage.inputs.items():
        named: Any = getattr(config, role, None)
        several = isinstance(named, list | tuple)
        for name in named if several else [named]:
            if name is None:
                continue
            artifact = input_artifact(stage.name, role, name, allowed, store)
            key = f"{role}/{label_of(name, artifact)}" if several else role
            if key in parents:
                raise InputError(
                    f"{role}: {given[key]} and {name} would both be called {label_of(name, artifact)} in the results "
                    f"(the end of a ref). Give one another name: `align tag {name} NAME`."
                )
            parents[key], given[key] = artifact, name
    files = named_files(config)  # looked for before the base is read, which may take a while
    sought = {name: _data(store, config, name, value) for name, value in files.items() if find_file(value) is None}
    base = base_of(stage.name, config, store, parents)
    check_architecture(stage.name, stage.encoder_decoders, base)
    first = origin(parents)
    check_template(stage.name, config, first)
    here = {role: artifact for role, artifact in parents.items() if role not in stage.own_base}
    for role, artifact in here.items():
        check_fits(role, artifact, base, first)
    check_methods(config, store, here, base)
    kind = parents["parent"].kind if "parent" in parents else None
    if refused := idle(config, kind):
        raise InputError("\n".join(text for _, text in refused))
    check_layers(config, base)
    check_targets(config, base, kind)
    data = {name: sought.get(name) or _data(store, config, name, value) for name, value in files.items()}
    settings = settings_of(stage, config, kind)
    settings |= {name: value for name, value in stage.settled(config, parents).items() if name in settings}
    if "max_length" in settings:  # what holds
        contexts = [base.context] if base else [config.architecture.context] if hasattr(config, "architecture") else []
        settings["max_length"] = min([settings["max_length"], *contexts])
    if (
        "adapter" not in settings
        and isinstance(config, TrainConfig)
        and config.parent_adapter == "continue"
        and kind == "adapter"
    ):
        settings["adapter"] = adapter_of(store, parents["parent"])
    if world() > 1 and hasattr(config, "rollout_size"):  # each process samples its share by draws of its own
        settings["ranks"] = world()
    paths = {name: found.path for name, found in data.items()}
    digests = {name: found.digest for name, found in data.items()}
    hub_data = {name: found.source for name, found in data.items() if found.source}
    return Question(stage, config, store, base, parents, paths, digests, settings, hub_data)


def _data(store: Store, config: StageConfig, name: str, value: str) -> Data:
    """Raises: InputError as `find_data` does; where a file to write is given among those to read, with how it is."""
    try:
        return find_data(store, name, value)
    except InputError as error:
        if name.startswith("data/") and value.endswith(".jsonl") and getattr(config, "out", "") is None:
            raise InputError(f"{error} For rows to be written there: --out {value}.") from error
        raise


def settings_of(stage: Stage[C], config: C, parent: str | None) -> dict[str, Any]:
    """The settings that a result depends on beside its inputs, those without effect left out (`parent`: the kind of
    artifact that the parent is); a template or judge stands for its file's content.

    Raises: InputError for a template or judge that is not there.
    """
    inputs = {*stage.inputs, *files_of(config), "base"}
    settings = {name: value for name, value in resolved(config, parent).items() if name not in inputs}
    for name, value in settings.items():
        if name == "chat_template" and value not in (None, "plain"):
            settings[name] = digest_json(read_template(value))
        elif name == "judge" and value is not None:
            settings[name] = _judge(name, value)
        elif name == "judges":
            settings[name] = {measure: _judge(f"{name}.{measure}", function) for measure, function in value.items()}
    return settings | mixtures_of(config)


def _judge(name: str, given: str) -> str:
    """A judge's digest. Raises: InputError, which calls it by its setting."""
    try:
        return judges.digest(given)
    except InputError as error:
        raise judges.of_setting(name, error) from error
