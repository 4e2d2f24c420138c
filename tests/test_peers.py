"""What the benchmark against peers makes of its runs: ratios by hand, and a picture of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.peers import compare, table
from tests.benchmarks.peers_plot import draw


def timed(side: str, variant: str, cpu: float, memory: float, **more: float) -> dict[str, Any]:
    return {
        "side": side,
        "variant": variant,
        "cpu_ms_per_row": cpu,
        "wall_ms_per_row": cpu / 2,
        "memory_mib": memory,
        **more,
    }


RUNS = [
    timed("trl", "plain", 900, 2000),
    timed("align", "plain", 100, 500, reference_cpu_ms_per_row=50, reference_wall_ms_per_row=25),
    timed("trl", "cached", 600, 2400),
    timed("align", "cached", 100, 500, reference_cpu_ms_per_row=50, reference_wall_ms_per_row=25),
]


def test_our_reference_pass_counts_where_the_peers_does() -> None:
    """900 over 100 + 50; with a cached reference 600 over 100. A slower variant of the peer is not its best."""
    columns = compare(RUNS)
    assert columns["plain"]["cpu_ratio"] == pytest.approx(6.0) and columns["plain"]["wall_ratio"] == pytest.approx(6.0)
    assert columns["best"]["variant"] == "cached" and columns["best"]["cpu_ratio"] == pytest.approx(6.0)
    assert columns["plain"]["memory_ratio"] == pytest.approx(0.25) and columns["best"]["memory_ratio"] == pytest.approx(
        500 / 2400
    )
    slower = [{**r, "cpu_ms_per_row": 1000} if r["side"] == "trl" and r["variant"] == "cached" else r for r in RUNS]
    assert compare(slower)["best"]["variant"] == "plain"
    assert "6.00x" in table({"dpo": columns}) and "best (cached)" in table({"dpo": columns})


def test_the_picture_names_stages_and_figures(tmp_path: Path) -> None:
    draw({"dpo": compare(RUNS)}, tmp_path / "peers.svg")
    picture = (tmp_path / "peers.svg").read_text()
    assert picture.startswith("<?xml") and "dpo" in picture and "900 / 150 ms per row, 25% of the memory" in picture
