"""What a dry run finds of a fresh adapter by shapes alone is what the run finds on the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align.adapters.methods import config_of
from align.ground.errors import AlignError, InputError
from align.models import skeleton
from align.models.base import load_base
from align.recipe import Adapter
from tests.models.family_models import FAMILIES, build

QUICK = ("Llama", "Zamba 2")
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"method": "dora"},
    {"method": "oft", "block_size": 32},
    {"method": "boft", "block_size": 7},
    {"method": "miss", "rank": 500},
    {"method": "ln_tuning"},
    {"targets": ["nope"]},
    {"layers": 1},
    {"experts": True},
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_it_refuses_what_the_model_refuses(name: str, tmp_path: Path) -> None:
    """In the same words, or it says nothing of a family whose forward looks at numbers; never of what a run takes.
    Zamba 2's layers share matrices, which are tied after they are built."""
    build(name, tmp_path)
    try:
        model = load_base(tmp_path, quantize=None, dtype=torch.float32)
    except AlignError:
        pytest.skip("the base itself is refused")
    for settings in ADAPTERS:
        adapter = Adapter(**settings)
        found, truth = (
            said(lambda adapter=adapter: skeleton.check_adapter(tmp_path, adapter)),
            said(lambda adapter=adapter: config_of(adapter, model)),
        )
        assert found == truth or (found == "" and name not in QUICK), settings
    assert said(lambda: skeleton.check_adapter(tmp_path, Adapter())) == ""


def said(work: Callable[[], object]) -> str:
    """How it is refused; empty where it is not."""
    try:
        work()
    except InputError as error:
        return str(error)
    return ""
