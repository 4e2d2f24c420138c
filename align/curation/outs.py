"""A data artifact's files, written out where that is asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeVar

from align.cleaning.files import ASIDE, ROWS
from align.curation.settings import CurationConfig
from align.ground import ranks
from align.ground.disk import sha256_file, written
from align.ground.errors import InputError
from align.ground.terminal import say
from align.stage.describe import Stage
from align.stage.execute import execute
from align.stage.question import prepare
from align.store import Artifact, Store

D = TypeVar("D", bound=CurationConfig)


def run(stage: Stage[D], config: D, store: Store) -> Artifact:
    """What the stage makes, written to `config.out` too. Raises: InputError where something else is there."""
    out = Path(os.path.expanduser(config.out)) if config.out else None
    if out is not None:
        check_places(stage, config, store, out)
    artifact = execute(stage, config, store)
    if out is not None and ranks.commits():
        for name in artifact.files:
            _write(place_of(out, name), store.folder(artifact) / name)
    return artifact


def place_of(out: Path, name: str) -> Path:
    """Where a file of the artifact goes: OUT.jsonl, and beside it OUT.aside.jsonl."""
    return out if name == ROWS else out.with_name(f"{out.stem}.{name}")


def check_places(stage: Stage[D], config: D, store: Store, out: Path) -> None:
    """The files can be written there, or are there as they would be. Raises: InputError."""
    if not out.parent.is_dir():
        raise InputError(f"out: there is no folder {out.parent}. Make it, or name another file.")
    taken = {name: path for name in (ROWS, *config.beside) if (path := place_of(out, name)).exists()}
    done = store.asked(prepare(stage, config, store).key) if taken else None
    files = done.files if done else {}
    for name, path in taken.items():
        if not (name in files and path.is_file() and sha256_file(path) == files[name]["sha256"]):
            raise InputError(f"out: {path} exists already. Name a new file; nothing is overwritten.")


def _write(place: Path, source: Path) -> None:
    """Originals of what was removed may be private: their owner alone may read them."""
    if place.exists():
        return
    mode = 0o600 if source.name == ASIDE else 0o644
    with source.open("rb") as rows, written(place, mode) as file:
        os.fchmod(file.fileno(), mode)  # before there is anything to read
        shutil.copyfileobj(rows, file)
    say(f"written to {place}")
