"""Rows without the questions of evaluations.  `align data decontaminate train.jsonl --against gsm8k-test.jsonl`

A row that holds a question of the files in `against`, verbatim or edited, goes (align/cleaning/contamination.py says
when it does). The result is a `data` artifact as `clean` makes one. Left out: answers, and questions that were
translated.
"""

from __future__ import annotations

from collections.abc import Mapping

from align.cleaning.contamination import Decontaminator
from align.cleaning.settings import Decontamination
from align.curation import outs, rows
from align.curation.settings import CleaningConfig
from align.recipe import Files
from align.stage.command import main
from align.stage.describe import Outcome
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


def ready(bench: Workbench, records: Mapping[str, object]) -> None:
    decontaminator(bench)


def work(bench: Workbench) -> Outcome:
    said = {name: value for name, value in bench.settings.items() if name in Decontamination.model_fields}
    return rows.through(bench, decontaminator(bench), {"settings": said})


STAGE = rows.stage(
    "decontaminate",
    version=1,
    config=Config,
    work=work,
    reads=lambda config: rows.read_raw,
    does="rows without the questions of evaluations",
    ready=ready,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
