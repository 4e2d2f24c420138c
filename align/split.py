"""A share of the prompts apart.  `align data split sft.jsonl --fraction 0.1 --out train.jsonl`

Prompts go by their hash: the same ones as `hold_out` keeps back, however the rows stand. The result is a `data`
artifact of the one `side`; the other lies beside it (other.jsonl). In a recipe `hold_out` beside
`stages` does it for all of them at once. Left out: shares by anything else than the prompt.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from align.cleaning.files import ROWS
from align.curation import outs, rows
from align.curation.settings import ReadConfig
from align.data.split import leave_out
from align.data.tools.kinds import ReadAs
from align.ground.errors import InputError
from align.ground.terminal import say
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.workbench import Workbench
from align.store import Artifact, Store

OTHER = "other.jsonl"


class Config(ReadConfig):
    """Splitting"""

    beside: ClassVar[tuple[str, ...]] = (OTHER,)

    fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the prompts that are held out."""
    side: Literal["train", "held"] = "train"
    """Which rows are those of the result: those that are held out, or the others; the rest lies beside them."""


def run(config: Config, store: Store) -> Artifact:
    """Split `config.data`; a `data` artifact of one side, also written to `config.out`, the other beside it."""
    return outs.run(STAGE, config, store)


def work(bench: Workbench) -> Outcome:
    config, records = bench.config, rows.records_of(bench)
    train, held = leave_out(records, config.fraction)
    if not (train and held):
        raise InputError(f"{bench.title}: of {len(records):,} records one side would get none. Take another fraction.")
    one, other = (train, held) if config.side == "train" else (held, train)
    rows.write_rows(bench.folder, one)
    rows.write_rows(bench.folder, other, OTHER)
    say(f"{bench.title}: {len(train):,} to train on, {len(held):,} held out; {ROWS} has the {config.side} side")
    return Outcome(bench.folder, "data", None, {"rows": len(one), "other": len(other)})


STAGE = rows.stage(
    "split",
    version=1,
    config=Config,
    work=work,
    reads=lambda config: ReadAs(config.read_as),
    does="one side of a split by prompt",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
