"""Who is on a stage's base: the policy that trains, and the roles that its inputs bring."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from align import adapters, models, packed, training
from align.ground.errors import InputError
from align.ground.progress import Task
from align.ground.terminal import say
from align.inputs.bases import vocabulary
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from torch import Tensor

    from align.data.examples import Example
    from align.models.roles import Roles
    from align.training.checks.moving_reference import MovingReference


def adapter_paths(bench: Workbench, role: str) -> list[Path]:
    """Folders of an input artifact's adapters, in order; none for a full model."""
    artifact = bench.parents[role]
    return [] if artifact.kind == "model" else adapter_folders(bench.store.folder(artifact))


def add_policy(bench: Workbench, roles: Roles, examples: Sequence[Example] = ()) -> str:
    """The trainable adapter of this stage, as role "policy": a copy of the parent's (`parent_adapter: continue`),
    or a fresh one on top of the parent's (`stack`), or a fresh one on the base; where that starts at parts of the base,
    a frozen one beside it takes them off; where it starts at what `examples` are to the base, these are looked at, and
    where at what 4 bits took from the base, that is read in full beside. Returns its name."""
    folders = adapter_paths(bench, "parent") if "parent" in bench.parents else []
    keep = folders if bench.config.parent_adapter == "stack" or not folders else folders[:-1]
    names = [f"parent_{i}" for i in range(len(keep))]
    loaded = [*zip(names, keep, strict=True), *([("policy", folders[-1])] if len(keep) < len(folders) else [])]
    with Task("loading adapters"):
        for name, folder in loaded:
            roles.load_adapter(name, folder)
    if len(keep) == len(folders):
        config = adapters.methods.config_of(bench.config.adapter, roles.base)
        start = bench.config.adapter.init_lora_weights
        seen = look_at(bench, roles, examples) if start == "eva" else {}
        if bench.config.adapter.takes_off:
            names.append("start")
            roles.add_adapter("start", deepcopy(config))
        if bench.new_tokens:
            ids = {*bench.new_tokens, *range(vocabulary(bench.base.path), bench.rows)}  # ids between need rows as well
            config.trainable_token_indices = packed.token_rows.indices(roles.base, ids)  # type: ignore[attr-defined]
            say(f"{bench.title}: {len(ids)} rows of embedding and head train beside the adapter, for new_tokens")
        with Task("adding the adapter"):
            roles.add_adapter("policy", config)
        if start == "eva":
            adapters.eva.start(roles.base, "policy", seen)
        elif start == "loftq":
            correct_quantised(bench, roles)
        elif start:
            with Task(f"{start} of each matrix"):
                adapters.starts.take_off(roles.adapted, start, "policy", "start")
        if line := adapters.targets.left_out(roles.base, roles.configs["policy"]):
            say(f"{bench.title}: {line}")
    roles.assign("policy", [*names, "policy"])
    return "policy"


def correct_quantised(bench: Workbench, roles: Roles) -> None:
    """Have the policy start at what 4 bits took from the base, by LoftQ."""
    with Task("what 4 bits took from each matrix"):
        whole = models.base.load_whole(bench.base.path)
        layers = {name: m for name, m in roles.base.named_modules() if m in roles.adapted}
        adapters.starts.correct(layers, "policy", lambda name: adapters.starts.matrix(whole.get_submodule(name)))


def look_at(bench: Workbench, roles: Roles, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Layer -> where A starts by EVA. Raises: InputError without records, and on a base that has adapters already."""
    if roles.adapted or not examples:
        raise InputError(
            f"{bench.title}: adapter.init_lora_weights is eva, which looks at records on a base without adapters, and "
            f"here {'another role has one' if roles.adapted else 'are none'}. Leave it out."
        )
    with Task("what varies most in each layer"):
        return adapters.eva.directions(
            roles.base, bench.config.adapter, examples, lambda batch: roles.hidden_as("base", batch)
        )


def add_role(bench: Workbench, roles: Roles, role: str, folder: Path | None) -> None:
    """An artifact's adapters and head as `role`, frozen; None is the bare base."""
    folders = adapter_folders(folder) if folder else []
    with Task("loading adapters"):
        for i, adapter in enumerate(folders):
            roles.load_adapter(f"{role}_{i}", adapter)
    head = (
        models.heads.ScoreHead.load(folder / "head.safetensors")
        if folder and (folder / "head.safetensors").exists()
        else None
    )
    roles.assign(role, [f"{role}_{i}" for i in range(len(folders))], head)


def add_judge(bench: Workbench, roles: Roles) -> None:
    """Role "judge", which `judge_prompt` is asked of: `judge_model`, or the bare base."""
    model = bench.parents.get("judge_model")
    add_role(bench, roles, "judge", bench.store.folder(model) if model else None)


def add_reference(bench: Workbench, roles: Roles) -> None:
    """Role "reference", pinned: the parent's adapters loaded a second time and frozen, or the bare base where there
    is no parent."""
    parent = bench.parents.get("parent")
    add_role(bench, roles, "reference", bench.store.folder(parent) if parent and parent.kind != "model" else None)


def moving_reference(bench: Workbench, roles: Roles) -> MovingReference | None:
    """What moves role "reference" after the policy, where the settings ask for that. To be called when both are on the
    base, before it is said what trains."""
    if bench.config.ref_model_sync_steps is None:
        return None
    return training.checks.moving_reference.MovingReference(roles, bench.config)


def adapter_folders(folder: Path) -> list[Path]:
    """The adapters of a materialised artifact, in the order they are stacked."""
    return sorted((folder / "adapters").iterdir(), key=lambda p: int(p.name)) if (folder / "adapters").is_dir() else []
