"""Rows without the questions of evaluations.  `align data decontaminate train.jsonl --against gsm8k-test.jsonl`

A row that holds a question of the files in `against`, verbatim or edited, goes (align/cleaning/contamination.py says
when it does). The result is a `data` artifact as `clean` makes one. Left out: answers, and questions that were
translated.
"""

from __future__ import annotations

from align.cleaning.contamination import Decontaminator
from align.cleaning.settings import Decontamination
from align.curation import outs, rows
from align.curation.settings import CleaningConfig
from align.recipe import Files
from align.stage.command import main
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(Decontamination, CleaningConfig):
    """Decontamination"""

    against: Files
    """Files of the questions that are measured with."""


def run(config: Config, store: Store) -> Artifact:
    """Take rows that hold a question of `config.against` out of `config.data`; a `data` artifact of the others, also
    written to `config.out`."""
    return outs.run(STAGE, config, store)


def decontaminator(bench: Workbench) -> Decontaminator:
    """Raises: InputError for files without a question."""
    return Decontaminator(bench.config, bench.config.columns, rows.paths(bench, "against"))


STAGE = rows.on_rows(
    "decontaminate",
    version=1,
    config=Config,
    settings=Decontamination,
    work=decontaminator,
    does="rows without the questions of evaluations",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
