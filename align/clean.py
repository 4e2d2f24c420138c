"""Rows repaired, scrubbed, judged, and compared with each other.  `align data clean raw.jsonl --out clean.jsonl`

Text is repaired, private data give way to placeholders, and rows that break rules of quality or repeat others go; an
earlier row stays, a later one that repeats it goes. The result is a `data` artifact: the rows that stay, in their own
keys; the originals of those that were removed or changed, each with its number and why (aside.jsonl); counts by reason
with examples (report.json). Left out: rules that a model learnt, sampling by quality.
"""

from __future__ import annotations

from align.cleaning.clean import Cleaner
from align.cleaning.settings import Cleaning
from align.curation import outs, rows
from align.curation.settings import CleaningConfig
from align.stage.command import main
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(Cleaning, CleaningConfig):
    """Cleaning"""


def run(config: Config, store: Store) -> Artifact:
    """Clean `config.data`; a `data` artifact of the rows that stay, also written to `config.out`."""
    return outs.run(STAGE, config, store)


def cleaner(bench: Workbench) -> Cleaner:
    """Raises: InputError for settings that cannot be used."""
    return Cleaner(bench.config, bench.config.columns, rows.paths(bench, "word_lists"))


STAGE = rows.on_rows(
    "clean",
    version=1,
    config=Config,
    settings=Cleaning,
    work=cleaner,
    does="rows repaired, scrubbed, judged, and without duplicates",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
