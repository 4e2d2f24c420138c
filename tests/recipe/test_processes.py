"""What other tools call a way to lie on several processes, and what is not built, is said by its name."""

from __future__ import annotations

import pytest

from align import sft
from align.ground.errors import InputError
from align.recipe import parse_flags
from align.recipe.processes import ELSEWHERE, NOT_BUILT


@pytest.mark.parametrize("name", [*NOT_BUILT, *ELSEWHERE, "shard", "context", "sharded"])
def test_a_way_is_taken_or_named(name: str) -> None:
    argv = ["--base", "b", "--data", "d", "--parallel", name]
    if name in ("shard", "context"):
        assert parse_flags(sft.Config, argv, prog="align sft").config.parallel == name
        return
    with pytest.raises(InputError) as error:
        parse_flags(sft.Config, argv, prog="align sft")
    ours = ELSEWHERE.get(name, name)
    said = NOT_BUILT.get(ours) or (f"is called {ours} here" if name in ELSEWHERE else "shard")
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


def test_every_name_leads_somewhere() -> None:
    assert set(ELSEWHERE.values()) <= {*NOT_BUILT, "auto", "replicate", "shard", "context"}


def test_rows_in_parts_take_no_dropout() -> None:
    argv = ["--base", "b", "--data", "d", "--adapter.dropout", "0.1", "--parallel"]
    assert parse_flags(sft.Config, [*argv, "replicate"], prog="align sft").config.adapter.dropout == 0.1
    with pytest.raises(InputError, match=r"^adapter\.dropout: parallel is context, whose parts of a row"):
        parse_flags(sft.Config, [*argv, "context"], prog="align sft")
