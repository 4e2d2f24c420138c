"""Cleaning in parts, for many processes or machines: files cleaned by themselves in any order, then their rows compared
with each other in one process. Both are calls of (data, rank, world_size), as pipelines of datatrove take them; what
comes out is what one process makes of the same files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from align.cleaning.clean import Cleaner
from align.cleaning.files import line, numbered, rows_in, write
from align.cleaning.settings import Cleaning
from align.cleaning.tally import Cleaned
from align.data.files.sources import check_unchanged, data_digest
from align.ground.disk import written, written_folder
from align.ground.errors import InputError
from align.ground.json import Json
from align.recipe import BadRows

MADE = "made"
"""The folder of what comes out, below the one that all tasks share."""


@dataclass(frozen=True)
class SharedWork:
    """What is to be cleaned, how, and the folder of its owner's own through which tasks hand on what they made."""

    settings: Cleaning
    columns: Mapping[str, str]
    bad_rows: BadRows
    files: tuple[tuple[Path, str], ...]
    """Each with its digest."""
    word_lists: tuple[tuple[Path, str], ...]
    """As well."""
    folder: Path

    @property
    def cleaner(self) -> Cleaner:
        return Cleaner(self.settings, self.columns, [path for path, _ in self.word_lists])

    def part(self, number: int) -> Path:
        """Rows of a file that are cleaned by themselves."""
        return self.folder / "parts" / f"{number:06}.jsonl"

    def described(self) -> Json:
        """For the report."""
        inputs = [{"file": path.name, "sha256": digest} for path, digest in (*self.files, *self.word_lists)]
        settings = self.settings.model_dump(mode="json", include=Cleaning.model_fields.keys() - {"word_lists"})
        return {"inputs": inputs, "settings": settings}


@dataclass(frozen=True)
class Alone:
    """The rows of every `world_size`-th file, repaired, scrubbed and judged."""

    work: SharedWork

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        cleaner = self.work.cleaner
        for number, (path, digest) in islice(enumerate(self.work.files), rank, None, world_size):
            rows = cleaner.alone(rows_in(path, self.work.bad_rows))
            with written(self.work.part(number), 0o600) as file:
                os.fchmod(file.fileno(), 0o600)  # originals may be private
                for row in rows:
                    file.write(line(row.where, asdict(row)))
            check_unchanged(path, digest, data_digest(path))


@dataclass(frozen=True)
class Among:
    """The rows of all files in their order, compared with each other and written as `clean` writes them."""

    work: SharedWork

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        work = self.work
        with written_folder(work.folder / MADE) as folder:
            folder.chmod(0o700)
            cleaner, rows = work.cleaner, numbered([path for path, _ in work.files], self._rows())
            tally = write(folder, cleaner.among(rows), work.described(), work.columns, cleaner.unseen)
        print("\n".join([f"{tally.kept:,} of {tally.rows:,} rows stay", *tally.lines()]))

    def _rows(self) -> Iterator[Cleaned]:
        for number, (path, _) in enumerate(self.work.files):
            part = self.work.part(number)
            if not part.exists():
                raise InputError(f"{part}: is not there. The task that cleans {path} did not end well; see its log.")
            with part.open("rb") as file:
                yield from (Cleaned(**json.loads(row)) for row in file)
