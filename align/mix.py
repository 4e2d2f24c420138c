"""Rows of several files in given shares, in a seeded order.  `align data mix chat.jsonl=0.7 code.jsonl=0.3`

The files and their shares are those of a stage's mixture: `weight`, or `epochs` and `limit`. The result is a `data`
artifact of one pass. Where all files have weights, none of their rows comes twice. Left out: shares by tokens, mixtures
that change while training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

from align.curation import outs, rows
from align.curation.settings import ReadConfig
from align.data.tools.kinds import ReadAs
from align.recipe import Positional
from align.recipe.mixture import MixedFile, weighed
from align.recipe.settings import Count, IsFile
from align.stage import mixture
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(ReadConfig):
    """Mixing"""

    draws = True

    data: Annotated[list[MixedFile], BeforeValidator(weighed), IsFile, Positional]  # type: ignore[assignment]
    """Files and their shares: FILE=WEIGHT, or in YAML [{file: a.jsonl, weight: 0.7}, {file: b.jsonl, limit: 5000}]."""
    rows: Count | None = None
    """Rows in all; without it, as many as there are. For files that all have weights."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, files = super().conflicts(given), given.get("data")
        if not isinstance(files, list) or not all(isinstance(file, MixedFile) for file in files):
            return found  # as they were given, beside something that is wrong
        unweighed = [source.told for source in files if source.weight is None]
        if len(files) == 1 and not files[0].settings():
            found.append(
                f"data: {files[0].told} is the only file, so there is nothing to mix. Name several: FILE=WEIGHT …"
            )
        if given.get("rows") is not None and unweighed:
            found.append(f"rows is set, but {unweighed[0]} has no weight, so its share is none of rows. Leave it out.")
        return found


def run(config: Config, store: Store) -> Artifact:
    """Mix the files of `config.data`; a `data` artifact, also written to `config.out`."""
    return outs.run(STAGE, config, store)


def work(bench: Workbench) -> Outcome:
    records = rows.records_of(bench)
    mixed = mixture.mixed(bench, records, records, bench.config.rows)
    rows.write_shuffled(bench.folder, mixed, random.Random(bench.config.seed))
    return Outcome(bench.folder, "data", None, {"rows": len(mixed)})


STAGE = rows.stage(
    "mix",
    version=1,
    config=Config,
    work=work,
    reads=lambda config: ReadAs(config.read_as),
    does="rows of several files in given shares",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
