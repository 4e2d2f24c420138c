"""What looks at held-out records cost: their share of the training's CPU time.  `python -m tests.benchmarks.looks`

SFT of the shipped base on 600 rows for two epochs, by how often it looks.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from align import sft
from align.guard.supervised import Guard
from align.store import Store
from align.training.trainer import StageTrainer
from tests.conftest import ROOT, write_rows

HOW: list[dict[str, Any]] = [{}, {"eval_epochs": 0.5}, {"eval_epochs": 0.1}]


def row(i: int) -> dict[str, str]:
    asked = f"What is {i} plus {i + 1}? Please think about it and tell me the whole story of the sum."
    said = (
        f"It is {2 * i + 1}, I think, since {i} and {i + 1} make {2 * i + 1} in all, as everybody can see who counts."
    )
    return {"prompt": asked, "completion": said}


def timed(kind: type, name: str, spent: dict[str, float]) -> None:
    """Have a method add the CPU seconds that it takes to `spent`."""
    method = getattr(kind, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - start

    setattr(kind, name, measured)


def main() -> None:
    spent: dict[str, float] = {}
    timed(Guard, "look", spent)
    timed(StageTrainer, "train", spent)
    common: dict[str, Any] = {"base": str(ROOT / "data/tiny-base"), "precision": "fp32", "threads": 1, "epochs": 2.0}
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(Path(folder) / "rows.jsonl", map(row, range(600)))
        for more in HOW:
            spent.clear()
            sft.run(sft.Config(data=str(data), **common, **more), Store(Path(folder) / "store"))
            share = spent["look"] / spent["train"]
            print(
                f"{more or 'the guard alone'}: {spent['look']:.1f} of {spent['train']:.1f} s, {share:.1%}", flush=True
            )


if __name__ == "__main__":
    main()
