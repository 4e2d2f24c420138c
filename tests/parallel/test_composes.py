"""The table of what goes with what is what was seen, and nothing in it differs."""

from __future__ import annotations

import json

from align.recipe import Processes
from align.stage import catalogue
from tests.benchmarks.composes import ENGINES, PAGE, RESULTS, STAGES, on_page, table

BY_HAND = {"evaluate", "pairs", "best_of_n"}
"""Stages that train nothing."""


def test_the_page_shows_what_was_seen() -> None:
    seen, page = json.loads(RESULTS.read_text()), PAGE.read_text(encoding="utf-8")
    assert on_page(page) == table(seen) != table({})
    cells = {cell for stages in seen.values() for cell in stages.values()}
    assert cells == {"equal"}, cells
    assert seen.keys() <= {name for name, engine in ENGINES.items() if engine.truth}


def test_every_stage_with_a_layout_is_in_it() -> None:
    cut = {name for name in catalogue.KINDS if issubclass(catalogue.stage_of(name).config, Processes)}
    assert cut == {*STAGES, *BY_HAND}
