"""Any shape rewritten in keys of ours.  `align data convert nectar.parquet --out pairs.jsonl`

The result is a `data` artifact whose rows read as the same records. Left out: other formats than JSON lines.
"""

from __future__ import annotations

from align.curation import outs, rows
from align.curation.settings import ReadConfig
from align.data.tools.kinds import ReadAs
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(ReadConfig):
    """Conversion"""


def run(config: Config, store: Store) -> Artifact:
    """Rewrite `config.data`; a `data` artifact, also written to `config.out`."""
    return outs.run(STAGE, config, store)


def work(bench: Workbench) -> Outcome:
    records = rows.records_of(bench)
    rows.write_rows(bench.folder, records)
    return Outcome(bench.folder, "data", None, {"rows": len(records)})


STAGE = rows.stage(
    "convert",
    version=1,
    config=Config,
    work=work,
    reads=lambda config: ReadAs(config.read_as),
    does="rows of any shape in keys of ours",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
