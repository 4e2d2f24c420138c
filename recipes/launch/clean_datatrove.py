"""Many files cleaned by datatrove: `python recipes/launch/clean_datatrove.py shards/*.jsonl --folder DIR --tasks 4`

Needs `pip install 'align-rlhf[datatrove]'` on every machine, and files and --folder on a disk that all of them see.
Takes the settings of `align data clean` (its --help names them), and writes to DIR/made what that makes of the same
files in one process: data.jsonl, aside.jsonl, report.json. Tasks clean whole files by themselves; one more compares all
rows with each other (22 CPU seconds and 0.7 GB for 100,000 rows; `--near null` leaves near duplicates, and most of
that, out). The same command goes on from the tasks that are done.

`--executor local` runs on this machine. Not run: `slurm` (--partition and --time) and `ray`, datatrove's other two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

from align.clean import Config
from align.cleaning.parts import Alone, Among, SharedWork
from align.cleaning.settings import Cleaning
from align.data.files.sources import data_digest, data_files
from align.ground.errors import InputError
from align.ground.terminal import guarded
from align.recipe import parse_flags
from align.recipe.flags import Flags

EXECUTORS: dict[str, Callable[..., Any]] = {
    "local": LocalPipelineExecutor,
    "slurm": SlurmPipelineExecutor,
    "ray": RayPipelineExecutor,
}
TAKEN = {"data", "columns", "bad_rows", *Cleaning.model_fields}
"""Settings of `align data clean` that mean something here."""


def settings_of(flags: Flags[Config]) -> Config:
    """Raises: InputError for what means nothing here."""
    switches = [name for name in ("json", "dry_run", "memory", "device") if getattr(flags, name)]
    if others := [*switches, *sorted(flags.config.model_fields_set - TAKEN)]:
        raise InputError(f"--{others[0]} has no effect here: rows go to files in --folder. Leave it out.")
    return flags.config


def with_digests(files: Iterable[Path | str]) -> tuple[tuple[Path, str], ...]:
    return tuple((path := Path(file).resolve(), data_digest(path)) for file in files)


def work_of(config: Config, folder: Path) -> SharedWork:
    """Raises: InputError for settings that cannot be used, and a folder of other settings or data."""
    files = with_digests([file for data in config.data for file in data_files(data)])
    lists = with_digests(config.word_lists)
    work = SharedWork(config, config.columns, config.bad_rows, files, lists, folder.resolve())
    work.cleaner  # noqa: B018 — refuses what cannot be used before any task starts
    asked = [work.described(), config.columns, config.bad_rows]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    noted = folder / "key"
    before = noted.read_text() if noted.exists() else ""
    if before != key and any(folder.iterdir()):
        raise InputError(f"{folder}: holds what was made of other files or settings. Name a new folder.")
    noted.write_text(key)
    return work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, required=True, help="what is made, and what tasks hand on")
    parser.add_argument("--tasks", type=int, required=True, help="into how many the files are divided")
    parser.add_argument("--workers", type=int, default=-1, help="tasks at once; without it all")
    parser.add_argument("--executor", choices=EXECUTORS, default="local")
    parser.add_argument("--partition", help="slurm's")
    parser.add_argument("--time", help="slurm's limit, such as 10:00:00")
    given, rest = parser.parse_known_args()
    slurm = {name: value for name in ("partition", "time") if (value := getattr(given, name))}
    if len(slurm) != (2 if given.executor == "slurm" else 0):
        raise InputError("--partition and --time are for --executor slurm, which needs both.")
    work = work_of(settings_of(parse_flags(Config, rest, prog="clean")), given.folder)
    if not 1 <= given.tasks <= len(work.files):
        raise InputError(f"--tasks {given.tasks}: expected 1 to {len(work.files)}; a task takes whole files.")
    logs, executor = work.folder / "logs", EXECUTORS[given.executor]
    of_files = str(logs / f"alone-{given.tasks}")  # which tasks are done says nothing of another division
    first = executor([Alone(work)], tasks=given.tasks, workers=given.workers, logging_dir=of_files, **slurm)
    executor([Among(work)], tasks=1, workers=1, logging_dir=str(logs / "among"), depends=first, **slurm).run()


if __name__ == "__main__":
    guarded(main)
