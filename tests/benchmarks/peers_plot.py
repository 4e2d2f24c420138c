"""The figures of `peers` as a picture: `python -m tests.benchmarks.peers --plot peers.svg`

Per stage two bars, how many times less CPU time Align takes than TRL plain and than TRL's best on this machine; beside
them both sides' milliseconds per row and the share of the peer's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"plain": "#9bb7d4", "best": "#2f6690"}


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """`results`: stage -> column (plain, best) -> figures, as `peers.compare` makes them; the end of `path` says the
    format."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.0 + 0.95 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    longest = max(c["cpu_ratio"] for columns in results.values() for c in columns.values())
    for row, columns in enumerate(results.values()):
        for side, (name, c) in zip((-0.19, 0.19), columns.items(), strict=True):
            bar = axes.barh(
                row + side, c["cpu_ratio"], 0.34, color=COLOURS[name], label=f"TRL {name}" if row == 0 else None
            )
            raw = (
                f"{c['trl_cpu_ms_per_row']:.0f} / {c['align_cpu_ms_per_row']:.0f} ms per row, "
                f"{c['memory_ratio']:.0%} of the memory"
            )
            axes.bar_label(bar, [f"{c['cpu_ratio']:.1f} ×   {raw}"], padding=4, fontsize=9)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.axvline(1, color="#888", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1.9 * longest)
    axes.set_xlabel("CPU time per row, TRL over Align")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path)
