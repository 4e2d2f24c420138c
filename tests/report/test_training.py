"""What a stage left of its training, in the report: reward over sqrt(KL), warnings, the same prompts over time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.ground.errors import AlignError
from align.report import plots
from align.report.html import html
from align.report.summary import Estimate, Reinforced, Watched, number
from align.report.text import show_text
from align.report.training import over_distance, read_curves, read_reinforced, some
from align.store import Artifact, Store
from tests.report.test_summary import HOSTILE, REPORT, Page

HISTORY = [
    {
        "step": 1,
        "kl": -0.01,
        "reward/mean": 0.1,
        "reward/gold": 0.5,
        "reward/gold/std": 0.4,
        "guard/warnings": 0,
        "loss": 1.0,
    },
    {
        "step": 5,
        "kl": 4.0,
        "reward/mean": 0.6,
        "reward/gold": 0.8,
        "reward/gold/std": 0.4,
        "guard/warnings": 0,
        "loss": 0.5,
    },
    {
        "step": 7,
        "kl": 4.0,
        "reward/mean": 0.6,
        "reward/gold": 0.8,
        "reward/gold/std": 0.4,
        "guard/warnings": 1,
        "loss": 0.4,
    },
    {
        "step": 9,
        "kl": 9.0,
        "reward/mean": 1.2,
        "reward/gold": 0.4,
        "reward/gold/std": 0.4,
        "guard/warnings": 1,
        "loss": 0.3,
    },
]
WARNING = {"rollout": 6, "sign": "reward_hacking", "message": "gold fell.", "gone": None}
ANSWERS = [{"after": n, "text": f"answer {n}"} for n in range(0, 11, 2)]


def stored(store: Store, folder: Path, stage: str = "ppo", **rows: list[dict[str, Any]]) -> Artifact:
    folder.mkdir()
    for name, several in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))
    settings = {"weights": {"gold": 0.0, "other": 2.0}} if stage == "ppo" else {}
    return store.put(
        folder,
        kind="data",
        stage=stage,
        version=1,
        config=settings,
        parents={},
        base=None,
        text=None,
        data={},
        metrics={},
        check=None,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_read(store: Store, tmp_path: Path) -> None:
    """sqrt by hand; a rollout that two lines of the log show is one point; a KL below 0 is 0; only rewards of weight 0
    stand beside."""
    watched = [
        {"prompt": [{"role": "system", "content": "Be Tom."}, {"role": "user", "content": "Hi?"}], "answers": ANSWERS}
    ]
    made = stored(store, tmp_path / "ppo", history=HISTORY, guard=[WARNING], watched=watched)
    found = read_reinforced(store, made)
    assert found == Reinforced(
        {
            "trained reward": [(0.0, 0.1), (2.0, 0.6), (3.0, 1.2)],
            "gold, not trained on": [(0.0, 0.5), (2.0, 0.8), (3.0, 0.4)],
        },
        ["reward_hacking, rollout 7: gold fell."],
        [
            Watched(
                "Be Tom.\nHi?",
                [("at the start", "answer 0"), ("after rollout 6", "answer 6"), ("after rollout 10", "answer 10")],
            )
        ],
    )
    assert read_curves(store, made).keys() == {"kl", "reward/mean", "reward/gold", "loss"}
    assert "\nguard    reward_hacking, rollout 7: gold fell.\n" in show_text(store, made)
    other = stored(store, tmp_path / "sft", stage="sft", history=[{"step": 1, "loss": 1.0}])
    assert read_reinforced(store, other) is None and "\nguard " not in show_text(store, other)


def test_first_middle_and_last() -> None:
    assert [text for _, text in some(ANSWERS[:2])] == ["answer 0", "answer 2"] and some([]) == []
    assert [text for _, text in some(ANSWERS[:1])] == ["answer 0"]


def test_warnings_from_elsewhere(store: Store, tmp_path: Path) -> None:
    """What a pulled artifact says of its run is no terminal command, and no traceback."""
    hostile = stored(store, tmp_path / "a", guard=[{**WARNING, "message": "\x1b]0;owned\x07\nfell", "gone": 9}])
    shown = show_text(store, hostile)
    assert "\x1b" not in shown and "rollout 7 to 9: \N{REPLACEMENT CHARACTER}]0;owned" in shown
    for name, row in (("b", {"sign": "kl"}), ("c", {**WARNING, "rollout": "six"})):
        with pytest.raises(AlignError, match=r"guard\.jsonl is not what a guard writes"):
            show_text(store, stored(store, tmp_path / name, guard=[row]))


def test_reward_over_distance_is_where_it_belongs() -> None:
    """The plane is 284 pixels wide from 46: sqrt(KL) of 0, 2 and 3 of 3 stand at 0, 2/3 and all of it; the last dot is
    the large one."""
    picture = plots.against_kl(over_distance(HISTORY, "reward/mean"), 3.0, "reward")
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', picture)
    assert [x for x, _, _ in dots] == ["46.0", f"{46 + 284 * 2 / 3:.1f}", "330.0"] and [r for _, _, r in dots] == [
        "3.2",
        "3.2",
        "5.5",
    ]
    heights = [float(y) for _, y, _ in dots]
    assert heights == sorted(heights, reverse=True)  # a higher reward is further up
    assert "√KL 3" in picture
    still = plots.against_kl([(0.0, 0.5), (0.0, 0.6)], 0.0)  # a policy that never moved: the axis goes on to 1
    assert still.count("<circle") == 2 and "√KL 1<" in still


def test_one_point_is_a_figure_and_no_chart() -> None:
    """Where it was, as its value stands above; no second step is made up. Negative controls: two steps, and values too
    small for six decimals, which are no row of zeros."""
    assert plots.curve([(1.0, 0.25)]) == '<p class="muted">at step 1</p>'
    assert plots.curve([(7.0, 0.25)], [(7.0, 0.5)]) == '<p class="muted">at step 7; held out 0.500</p>'
    assert plots.against_kl([(0.0, 0.5)], 0.0) == '<p class="muted">at √KL 0</p>'
    for two in (plots.curve([(1.0, 0.25), (2.0, 0.5)]), plots.curve([(2.0, 0.25)], [(0.0, 0.5)])):
        assert ">step 2</text>" in two and "<svg" in two
    beside = plots.overlaid({0: [(1.0, 0.25)], 1: [(1.0, 0.5)]}, "loss")
    assert ">step 1</text>" in beside and "step 2" not in beside and beside.count("<circle") == 2
    assert ">step 2</text>" in plots.overlaid({0: [(1.0, 0.25)], 1: [(2.0, 0.5)]}, "loss")
    assert (number(3e-8), number(-3e-8), number(0.0), number(1e-6)) == ("3e-08", "-3e-08", "0", "0.000001")
    assert "no finite values" in plots.against_kl([(0.0, float("nan"))], 1.0)


def test_the_page_shows_it() -> None:
    found = Reinforced(
        {
            "trained reward": over_distance(HISTORY, "reward/mean"),
            "gold, not trained on": over_distance(HISTORY, "reward/gold"),
        },
        [f"reward_hacking: {HOSTILE}"],
        [Watched(HOSTILE, [("at the start", HOSTILE), ("after rollout 10", "")])],
    )
    page = Page(html(replace(REPORT, reinforced={"ppo": found})))
    assert not page.tags & {"script", "img"} and page.text.count(HOSTILE) == 3
    for shown in (
        "The guard warned",
        "gold, not trained on",
        "reward against distance",
        "the same prompts over time",
        "at the start",
        "(nothing)",
    ):
        assert shown in page.text, shown
    # two curves of REPORT, two rewards
    assert sum(name == "class" and value == "curve" for name, value in page.attributes) == 2 + 2
    plain = Page(html(REPORT)).text
    assert "The guard warned" not in plain and "over time" not in plain  # negative control


def test_no_number_stops_a_picture() -> None:
    """Steps and losses near the ends of what a float holds, denormals, and what is equal but for rounding. Negative
    control: the point that can be drawn is."""
    for value in (1e308, -1e308, 5e-324, 1.0 + 2e-16, 1e18, float("inf"), float("nan")):
        for points in (
            [(1.0, value), (2.0, -value)],
            [(value, 1.0), (-value, 2.0)],
            [(1e18, 1.0), (1e18, 1.0)],
            [(1.0, 1.0), (2.0, value)],
        ):
            assert "nan" not in plots.curve(points) and "inf" not in plots.curve(points).replace("no finite values", "")
            assert plots.against_kl(points, max(x for x, _ in points))
        assert plots.bar(Estimate(value), value, value + 1, value)
    assert plots.curve([(1.0, 1e308), (2.0, 1.0), (3.0, 2.0)]).count("<polyline") == 1
