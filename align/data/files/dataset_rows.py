"""Rows of a folder that `datasets` wrote with save_to_disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from align.data.files.sources import DATASET, Table, as_they_are, explained
from align.data.records import Row
from align.ground.errors import InputError
from align.ground.json import Json


def dataset_rows(path: Path) -> Table:
    """One split that `datasets` wrote with save_to_disk. Raises: InputError, also for files outside the folder."""
    if (path / "dataset_dict.json").is_file():
        splits = _settings(path / "dataset_dict.json").get("splits")
        names = list(map(str, splits)) if isinstance(splits, list) else []
        raise InputError(
            f"{path}: holds the splits {', '.join(names) or 'that dataset_dict.json does not name'}; name one of them, "
            f"such as {path / (names or ['train'])[0]}."
        )
    files = _settings(path / "state.json").get("_data_files")
    listed = files if isinstance(files, list) else []
    names = [str(file.get("filename")) for file in listed if isinstance(file, dict)]
    there = {file.name for pattern in DATASET for file in path.glob(pattern)}
    if not names or not set(names) <= there:
        outside = next((name for name in names if name not in there), None)
        raise InputError(
            f"{path}: state.json names {outside!r} as data, and there is no such file in the folder. "
            "Save the data set again."
        )
    return Table("a folder of `datasets`", as_they_are(_dataset(path)))


def _dataset(path: Path) -> Iterator[tuple[str, Row]]:
    from datasets import load_from_disk

    try:
        for number, row in enumerate(load_from_disk(str(path)), 1):
            yield f"{path} row {number}", dict(row)
    except Exception as error:  # whatever datasets and pyarrow raise for files that are none of theirs
        said = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{path}: does not load as a folder of `datasets` ({type(error).__name__}: {said}). Save it again."
        ) from error


def _settings(path: Path) -> Json:
    """A JSON object of a folder of `datasets`. Raises: InputError."""
    with explained(path):
        text = path.read_bytes() if path.is_file() else b"null"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: is no JSON object, as `datasets` writes it with save_to_disk. Save the data set again."
        )
    return value
