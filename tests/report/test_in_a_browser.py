"""Report and comparison in Chromium, on a phone: nothing is cut off, asked of others, or said in the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.report.compare import Compared, Comparison, Figures
from align.report.compare_page import compared_page
from align.report.html import html
from align.report.summary import Estimate, Report, Sample, ShownAnswer
from tests.browser import barriers, opened
from tests.report.test_summary import REPORT

RUNS = [
    Compared(f"a-name-as-long-as-they-come/{stage}.beta-0.0{i}", "0" * 64, "adapter", stage)
    for i, stage in enumerate(("dpo", "ppo", "sft"))
]
COMPARISON = Comparison(
    RUNS,
    {"learning_rate": [1e-4, 2e-4, 5e-5]},
    12,
    {RUNS[0].name: [f"setting.{i}" for i in range(40)]},
    [Figures("of each run", {"gold": [Estimate(0.5, (0.4, 0.6)), None, Estimate(0.9, (0.8, 1.0))]}, {"gold": 2})],
    {"seconds": [1.0, 2.0, 3.0]},
    {"kl": {0: [(1.0, 0.0), (2.0, 1.0)], 1: [(1.0, 0.5), (3.0, 0.2)]}},
)


@pytest.mark.parametrize("name", ["ppo", "dpo.beta-0.05.learning_rate-0.0005", "a_name_as_long_as_they_come"])
def test_figures_are_in_sight_on_a_phone(name: str, tmp_path: Path) -> None:
    """The headline and the win rate, where names are short or have parts, between which they break; negative control: a
    long one without, for which the table scrolls."""
    metrics = {
        f"{stage}/{measure}{end}": value
        for stage in ("base", "sft", name)
        for measure in ("gold", "win_rate_vs_sft")
        for end, value in (("", 0.7), ("_ci95", [0.66, 0.74]))
        if (stage, measure) != ("sft", "win_rate_vs_sft")
    }
    report = Report("t", ["base", "sft", name], metrics, headline="gold", judged=["gold"])
    (tmp_path / "page.html").write_text(html(report), encoding="utf-8")
    with opened((tmp_path / "page.html").as_uri(), 400, "main") as (page, _):
        beyond = page.evaluate("(box => box.scrollWidth - box.clientWidth)(document.querySelector('.scroll'))")
        assert (beyond <= 0) == (name != "a_name_as_long_as_they_come")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_axe_finds_no_barrier(name: str, tmp_path: Path) -> None:
    """In light and dark. Negative control: a picture without a word."""
    (tmp_path / "page.html").write_text(
        html(REPORT) if name == "report" else compared_page(COMPARISON), encoding="utf-8"
    )
    with opened((tmp_path / "page.html").as_uri(), 1000, "main") as (page, _):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert barriers(page) == []
        page.evaluate("document.querySelector('main').append(document.createElement('img'))")
        assert [found.partition(":")[0] for found in barriers(page)] == ["image-alt"]


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_on_a_phone(name: str, tmp_path: Path) -> None:
    """In light and dark. What is wider than a phone scrolls in a place that the keyboard reaches, and a shade at its
    side says so."""
    (tmp_path / "page.html").write_text(
        html(REPORT) if name == "report" else compared_page(COMPARISON), encoding="utf-8"
    )
    with opened((tmp_path / "page.html").as_uri(), 400, "main") as (page, wrong):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
        wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
        assert page.evaluate(f"{wide}.length") > 0
        assert page.evaluate(f"{wide}.every(box => box.tabIndex === 0)")
        shade = f"getComputedStyle({wide}[0]).backgroundImage"
        assert page.evaluate(shade).count("linear-gradient") == 4
        beyond = "box => box.getBoundingClientRect().right > 401 && !box.closest('.scroll, svg')"
        cut = f"[...document.querySelectorAll('main *')].filter({beyond}).length"
        assert page.evaluate(cut) == 0
        page.evaluate("document.querySelector('main').style.width = '500px'")  # negative control
        assert page.evaluate(cut) > 0 and wrong == []


def test_a_name_and_its_score_are_apart(tmp_path: Path) -> None:
    """However long the name: room between the two, both within their answer's column."""
    names = ["sft", "dpo.beta-0.1.loss-apo_zero", "dpo.beta-0.1.loss-sigmoid_" + "a" * 40]
    metrics = {f"{name}/gold": 0.5 for name in names}
    samples = [Sample("Why?", {name: ShownAnswer(name, 1.0) for name in names})]
    page_text = html(Report("t", names, metrics, headline="gold", judged=["gold"], samples=samples))
    (tmp_path / "page.html").write_text(page_text, encoding="utf-8")
    ends = "(heads => heads.map(h => [h.querySelector('.score').getBoundingClientRect().left - Math.max(...[...h."
    ends += "querySelectorAll('.named')].map(n => n.getBoundingClientRect().right)), h.scrollWidth - h.clientWidth]))"
    ends += "([...document.querySelectorAll('.answer h3')])"
    for width in (400, 1280):
        with opened((tmp_path / "page.html").as_uri(), width, "main") as (page, _):
            found = page.evaluate(ends)
            assert len(found) == 3 and all(gap >= 8 and beyond <= 0 for gap, beyond in found), found


def test_a_square_stands_beside_its_name_on_a_phone(tmp_path: Path) -> None:
    """In the tables of figures and of cost, and "even" over the line of no difference. Negative control: squares that a
    line may end behind stand above."""
    names = ["base", "sft", "dpo", "grpo"]
    figures = {f"{name}/{what}": 0.7 for name in names for what in ("gold", "win_rate_vs_sft")}
    spread = {f"{key}_ci95": [0.66, 0.74] for key in figures}
    del figures["sft/win_rate_vs_sft"], spread["sft/win_rate_vs_sft_ci95"]
    costs: Any = {name: {"seconds": 50.0, "tokens_per_second": 300.0, "peak_memory_bytes": 3e9} for name in names[1:]}
    found = Report("t", names, figures | spread, headline="gold", judged=["gold"], costs=costs)
    (tmp_path / "page.html").write_text(html(found), encoding="utf-8")
    above = "[...document.querySelectorAll('tbody th')].filter(th => { const range = document.createRange(); "
    above += "range.selectNodeContents(th.querySelector('.lead').lastChild); return th.querySelector('.swatch')."
    above += "getBoundingClientRect().bottom <= range.getBoundingClientRect().top; }).map(th => th.textContent)"
    middles = "(what => (box => (box.left + box.right) / 2)(what.getBoundingClientRect()))"
    even = "[...document.querySelectorAll('.ends span')].find(end => end.textContent === 'even' && end.offsetWidth)"
    line = "[...document.querySelectorAll('line.guide')].find(line => line.getAttribute('x1') === '50.00%')"
    with opened((tmp_path / "page.html").as_uri(), 400, "main") as (page, _):
        assert page.evaluate("document.querySelectorAll('tbody th').length") == 7 and page.evaluate(above) == []
        assert abs(page.evaluate(f"{middles}({even}) - {middles}({line})")) < 2
        page.add_style_tag(content=".lead { white-space: normal; } tbody th { max-width: 0; width: 0; }")
        assert page.evaluate(above) == [*names, *names[1:]]
