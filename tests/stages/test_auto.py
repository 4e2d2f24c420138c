"""`precision: auto` and the precision that it turns out to be are one question with one answer."""

from __future__ import annotations

from typing import Any

import pytest

from align import models, sft
from align.store import Artifact
from tests.conftest import Pipeline


@pytest.mark.parametrize("auto_first", [True, False])
def test_auto_is_what_it_turns_out_to_be(
    auto_first: bool, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    here = models.precision.name_of(models.precision.resolve_precision("auto"))
    settled, other = ("fp32", "bf16") if here == "fp32" else ("bf16", "fp32")

    def train(precision: Any) -> Artifact:
        data, base = pipeline.recipe.parent / "sft.jsonl", pipeline.made["pretrain"].digest
        return sft.run(
            sft.Config(base=base, data=data, max_steps=1, threads=1, name="auto", precision=precision), pipeline.store
        )  # type: ignore[arg-type]

    first, second = (train(precision) for precision in (("auto", settled) if auto_first else (settled, "auto")))
    assert first == second and first.config["precision"] == settled
    assert capsys.readouterr().err.count("done before, skipped") == 1
    assert train("auto") == first and pipeline.store.asked(first.key) == first
    assert train(other) != first  # negative control
