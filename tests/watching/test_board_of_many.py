"""The board of runs that are of several kinds: swept ones with long names, reports, those at work beside those that are
done; in Chromium, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest

from align.report.compare import compare
from align.report.text import value_text
from align.stage import catalogue
from align.store import Store
from align.store.live import News
from align.watching.board import UNKNOWN, Board, BoardServer, identity
from tests.browser import opened
from tests.watching.test_board import put, server, store

__all__ = ["server", "store"]

INPUTS = {"version": 1, "base": None, "parents": {}, "data": {}}
LABELS = "titles => titles.map(title => title.textContent)"


@contextmanager
def evaluating(store: Store, name: str) -> Iterator[News]:
    """An `evaluate` at work."""
    with store.run("e" * 64) as run:
        run.news.begin(name, "evaluate", {}, INPUTS)
        run.news.work("sampling 1,234/2,000 answers · 2:25 left")
        yield run.news


def choose(page: Any, names: list[str]) -> None:
    """Those alone."""
    for place, name in enumerate(page.locator("#runs .name").all_text_contents()):
        page.locator("#runs input").nth(place).set_checked(name in names)
    page.wait_for_function("count => document.querySelectorAll('#legend > span').length === count", arg=len(names))


# ---- names and values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 400])
def test_values_are_whole_and_no_two_names_look_alike(width: int, store: Store, server: BoardServer):
    """Runs of a sweep, alone and beside another: nothing of a row lies outside of its panel or under another. The
    control: cut where the panel ends, names of the sweep are alike."""
    swept = [f"study/dpo.beta-{beta}.learning_rate-{rate}" for beta, rate in product((0.3, 0.05), (0.002, 0.0005))]
    for place, name in enumerate(swept):
        rows = [{"step": step, "loss": -0.01234 * step * (place + 1)} for step in range(1, 1200, 300)]
        put(store, name, 0.1, stage="dpo", rows=rows)
    outside = """rows => rows.filter(row => {
        const panel = row.closest('.panel').getBoundingClientRect(), value = row.querySelector('.value');
        const [name, said] = [row.querySelector('.called'), value].map(part => part.getBoundingClientRect());
        return said.right > panel.right - 8 || name.right > said.left || value.scrollWidth > value.clientWidth
            || ['hidden', 'clip'].includes(getComputedStyle(row).overflow);
    }).length"""
    with opened(server.url, width, ".panel") as (page, wrong):
        for names in (swept, [*swept, "one"]):
            choose(page, names)
            rows = page.locator(".panel:has(.called) li")
            assert rows.evaluate_all(outside) == 0
            said = rows.evaluate_all("rows => rows.map(row => [row.title, row.querySelector('.called').textContent])")
            values = rows.locator(".value").evaluate_all(LABELS)
            assert len({called for _, called in said}) == len(said) == len(swept)
            assert dict(zip([name for name, _ in said], values, strict=True)) == {
                name: f"{-0.01234 * 901 * (place + 1):.4g} at 901" for place, name in enumerate(swept)
            }
        assert page.evaluate("document.documentElement.scrollWidth") <= width and wrong == []
    assert len({name[:26] for name in swept}) < len(swept)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_long_name_in_an_error_stays_in_its_column(width: int, store: Store, server: BoardServer):
    """Negative control: without the rule that breaks it, it runs out."""
    (store.path / "runs/bad").mkdir(parents=True)
    news = News(store.path / "runs/bad")
    news.begin("bad", "sft", {})
    news.failed(f"the first tensor that is not finite is base.{'layers_self_attn_q_proj_lora_A' * 4}.policy.weight")
    out = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    with opened(server.url, width, "#runs input") as (page, wrong):
        about = page.locator(".about", has_text="not finite").locator("xpath=..")
        assert about.evaluate_all(out) == 0 and wrong == []
        about.locator(".about").evaluate("one => { one.style.overflowWrap = 'normal'; }")
        assert about.evaluate_all(out) == 1


def test_runs_of_one_name_are_told_apart(store: Store):
    """One that is done, and one at work that will have its name; alone it needs no more."""
    with store.run("c" * 64) as run:
        run.news.begin("one", "ppo", {}, INPUTS)
        runs = Board(store).listed()["runs"]
        assert isinstance(runs, list)
        assert sorted(run["title"] for run in runs) == ["one", f"one ({'c' * 12})", "two"]
    store.untag("one")
    runs = Board(store).listed()["runs"]
    assert isinstance(runs, list) and sorted(run["title"] for run in runs) == ["one", "two"]


# ---- what is chosen and what is said of it ---------------------------------------------------------------------------


def test_a_stage_without_curves_shows_how_far_it_is(store: Store, server: BoardServer):
    """It is chosen, and the two newest with curves beside it; its line moves on. When it is done it is still there, and
    says where to look. Negative control: a run with curves at work is chosen alone."""
    expect = pytest.importorskip("playwright.sync_api").expect
    with evaluating(store, "ev") as news, opened(server.url, 1280, ".panel") as (page, wrong):
        assert page.locator("#legend > span").all_text_contents() == ["ev", "one", "two"]
        expect(page.locator("#bare")).to_have_text("ev: sampling 1,234/2,000 answers · 2:25 left")
        expect(page.locator("#runs")).to_contain_text("evaluate · sampling 1,234/2,000 answers · 2:25 left")
        news.work("sampling 2,000/2,000 answers")
        expect(page.locator("#bare")).to_have_text("ev: sampling 2,000/2,000 answers")
        folder = store.path / "made/report"
        folder.mkdir()
        (folder / "table.txt").write_text("a table")
        rest: dict[str, Any] = {"parents": {}, "base": None, "text": None, "data": {}, "metrics": {}}
        report = store.put(folder, kind="report", stage="evaluate", version=1, config={}, **rest)
        store.tag("ev", report)
        (store.path / "runs" / ("e" * 64) / "live.jsonl").unlink()
        expect(page.locator("#bare")).to_have_text("ev: no curves, for it trained nothing. align show ev")
        expect(page.get_by_role("checkbox", name="ev evaluate")).to_be_checked()
        assert page.locator(".panel").count() and wrong == []
    with store.run("b" * 64) as run:
        run.news.begin("trains", "sft", {}, INPUTS)
        run.news.train(9, 0)
        run.news.step(1, None, {"loss": 1.0})
        with opened(server.url, 1280, ".panel") as (page, _):
            assert page.locator("#legend > span").all_text_contents() == ["trains"]


def test_held_out_figures_come_before_those_of_the_optimizer(store: Store, server: BoardServer):
    """Of runs some of which alone have them, too. What is smoothed says so, to ear and eye; what does not change has an
    axis of one number. Negative controls: not smoothed; what changes."""
    plain = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.0, **{f"logps/{n}": 1.0 for n in range(9)}}
    held = {"loss": 1.0, "eval/loss": 0.5, "eval/accuracy": 0.5}
    for name, figures in (("held", held), ("newer", plain)):
        rows = [{"step": step, **figures, "loss": 1 / step} for step in (1, 2, 3)]
        put(store, name, 0.3, stage="dpo", rows=rows)
    with opened(server.url, 1280, ".panel") as (page, wrong):
        choose(page, ["held", "newer"])
        titles = page.locator(".panel h3")
        assert titles.all_text_contents()[:3] == ["loss", "eval/loss", "eval/accuracy"]
        assert "learning_rate" not in titles.all_text_contents()
        axis = "panels => panels.map(panel => panel.querySelectorAll('text[text-anchor=end]').length - 1)"
        assert page.locator(".panel").evaluate_all(axis)[:2][1] == 1 < page.locator(".panel").evaluate_all(axis)[0]
        page.locator("#smooth").check()
        assert titles.all_text_contents()[:2] == ["loss smoothed", "eval/loss smoothed"]
        assert "loss smoothed to step 3" in (page.locator(".panel svg").first.get_attribute("aria-label") or "")
        page.locator("#metric").select_option("learning_rate")
        panel = page.locator(".panel")
        assert panel.locator("text[text-anchor=end]").all_text_contents() == ["0", "step 3"] and wrong == []


# ---- settings that differ --------------------------------------------------------------------------------------------


def rows_of(board: Board, names: list[str]) -> tuple[dict[str, list[str]], int]:
    known = {shown.name: identity(shown) for shown in board.runs()}
    found: Any = board.beside([known[name] for name in names])["settings"]
    return found["rows"], found["same"]


def test_settings_that_differ_are_those_of_compare(store: Store):
    """A default that has no effect on some losses is none. Negative control: without defaults it is."""
    for loss, more in (("sigmoid", {"label_smoothing": 0.0}), ("hinge", {}), ("ipo", {"label_smoothing": 0.0})):
        put(store, loss, 0.1, stage="dpo", more={"loss": loss, **more})
    names = ["sigmoid", "hinge", "ipo"]
    told = compare(store, names, catalogue.defaults)
    rows, same = rows_of(Board(store, catalogue.defaults), names)
    assert rows == {key: [*map(value_text, values)] for key, values in told.settings.items()} == {"loss": names}
    assert same == told.same
    assert "label_smoothing" in rows_of(Board(store), names)[0]


def test_what_a_run_is_made_from_is_known_from_its_start(store: Store):
    """Beside one of the same inputs only the setting differs, also where an earlier version told no inputs; other data
    do differ, and what only comes to be known of it does not. Negative control: of one that is done it does."""
    made = store.resolve("one")
    config = {key: value for key, value in made.config.items() if key != "seed"} | {"beta": 0.7}
    with store.run("d" * 64) as run:
        for inputs in (INPUTS, {}):
            run.news.begin("live", made.stage, config, inputs)
            assert rows_of(Board(store), ["live", "one"])[0] == {"beta": ["0.7", "0.1"]}
    with store.run("e" * 64) as run:
        run.news.begin("other", made.stage, config | {"more": 1}, INPUTS | {"data": {"data": "f" * 64}})
        rows, _ = rows_of(Board(store), ["other", "one"])
        assert rows["data.data"] == ["f" * 12, "absent"] and rows["more"] == ["1", "absent"] and "seed" not in rows
        put(store, "three", 0.1, stage=made.stage, more={"seed": 5, "strange": 1})
        rows, _ = rows_of(Board(store, catalogue.defaults), ["other", "one", "three"])
        assert rows["seed"] == [UNKNOWN, "0", "5"]
        assert rows["strange"] == [UNKNOWN, "absent", "1"], "of a stage that is not known"
    with store.run("f" * 64) as run:
        run.news.begin("merging", "merge", {}, INPUTS)
        put(store, "four", 0.1, stage=made.stage, more={"seed": 6, "strange": 2})
        rows, _ = rows_of(Board(store, catalogue.defaults), ["merging", "three", "four"])
        assert rows["strange"] == ["absent", "1", "2"], "which no merge will have"
        assert rows["seed"] == [UNKNOWN, "5", "6"]
