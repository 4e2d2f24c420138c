"""The board: what its server gives to whom, and the page in a real browser (Chromium, where there is one), over a store
that a stranger filled."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from align.ground.errors import InputError
from align.report.glossary import MEANINGS
from align.store import Store
from align.store.live import News
from align.watching.board import LOOKS, POINTS, Board, BoardServer, thinned
from tests.browser import barriers, opened
from tests.conftest import run_align

HOSTILE = "<img src=x onerror=alert(1)>"
OUTSIDE = "https://example.com/x.js"


def put(
    store: Store,
    name: str,
    beta: float,
    steps: int = 3,
    metric: str = "loss",
    stage: str = f"ppo{HOSTILE}",
    more: dict[str, Any] | None = None,
    rows: list[dict[str, float]] | None = None,
    **counted: str,
) -> str:
    """A run that is done, of which the loss is 1/step, with `more` settings; `counted` says in what its answers are."""
    folder = store.path / "made" / name.replace("/", "-")
    folder.mkdir(parents=True)
    rows = rows or [{"step": step, metric: 1 / step, "kl": 0.1 * step} for step in range(1, steps + 1)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"after": after, "text": f"{HOSTILE} after {after}"} for after in range(3)]
    watched = {"prompt": [{"role": "user", "content": f"{HOSTILE}?"}], "answers": answers, **counted}
    (folder / "watched.jsonl").write_text(json.dumps(watched) + "\n")
    config: dict[str, Any] = {"beta": beta, "seed": 0, HOSTILE: HOSTILE, "adapter": {"rank": 8}}
    config |= more or {}
    rest: dict[str, Any] = {"parents": {}, "base": None, "text": None, "data": {}, "metrics": {}}
    artifact = store.put(folder, kind="data", stage=stage, version=1, config=config, **rest)
    store.tag(name, artifact)
    return artifact.digest


@contextmanager
def at_work(store: Store, name: str = HOSTILE) -> Iterator[News]:
    """A run at work, in this process."""
    with store.run("a" * 64) as run:
        run.news.begin(name, HOSTILE, {"beta": 0.3}, {"version": 1, "base": None, "parents": {}, "data": {}})
        run.news.train(100, 0)
        for step in range(1, 11):
            run.news.step(step, 90.0, {"loss": 2 / step, HOSTILE: 1.0})
        run.news.answers("at the start", [(f"{HOSTILE}?", f"<script src={OUTSIDE}></script>")])
        yield run.news


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    put(store, "one", 0.1)
    put(store, "two", 0.2, metric=HOSTILE)
    return store


@pytest.fixture
def server(store: Store) -> Iterator[BoardServer]:
    with BoardServer(Board(store)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def get(server: BoardServer, path: str, host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_what_it_tells(store: Store, server: BoardServer):
    """Runs at work before those that are done, by hand; curves and answers of each, as the store has them."""
    with at_work(store):
        status, _, body = get(server, f"/{server.secret}/runs.json")
        runs = json.loads(body)["runs"]
        live = runs[0]
        assert status == 200 and [run["state"] for run in runs] == ["runs", "done", "done"]
        assert (live["name"], live["step"], live["steps"], live["left"]) == (HOSTILE, 10, 100, 90.0)
        assert live["metrics"] == ["loss", HOSTILE] and "settings" not in live
        one = next(run for run in runs if run["name"] == "one")
        both = "&".join(f"key={quote(run['key'])}" for run in (live, one))
        beside = json.loads(get(server, f"/{server.secret}/beside.json?{both}")[2])
        assert beside["called"][one["key"]] == "one"
        assert beside["settings"]["rows"] == {"beta": ["0.3", "0.1"], "stage": [HOSTILE, one["stage"]]}
        found = json.loads(get(server, f"/{server.secret}/curves.json?key={quote(one['key'])}")[2])
        assert found["curves"]["loss"] == [[1, 1.0], [2, 0.5], [3, 1 / 3]]
        assert [when for when, _ in found["answers"]] == ["at the start", "after rollout 1", "after rollout 2"]
        assert found["answers"][1][1] == [[f"{HOSTILE}?", f"{HOSTILE} after 1"]]
    live = json.loads(get(server, f"/{server.secret}/runs.json")[2])["runs"][0]
    assert (live["state"], live["left"]) == ("stopped", None)
    gone = json.loads(get(server, f"/{server.secret}/curves.json?key=gone")[2])
    assert gone == {"curves": {}, "answers": []} and LOOKS > 3


def test_answers_are_counted_as_their_stage_counts(store: Store) -> None:
    """A stage without rollouts was asked after steps. Negative control: one of rollouts, as `put` writes it."""
    put(store, "sft", 0.1, unit="step")
    found = {run.name: list(run.answers) for run in Board(store).runs()}
    assert found["sft"] == ["at the start", "after step 1", "after step 2"]
    assert found["one"] == ["at the start", "after rollout 1", "after rollout 2"]


def test_nobody_else_is_answered(server: BoardServer):
    """Another machine, another name for this one (DNS rebinding), and whoever does not know the address: no word of the
    store. Every answer forbids scripts from elsewhere. Negative control: its own page."""
    path = f"/{server.secret}/runs.json"
    assert get(server, path)[0] == 200 and server.server_address[0] == "127.0.0.1"
    foreign = f"rebound.example:{server.server_port}"
    for asked, host in ((path, foreign), ("/", None), ("/runs.json", None), (f"/{server.secret[:-1]}/", None)):
        status, headers, body = get(server, asked, host)
        assert (status, body) == (404, b"There is nothing here.\n")
    assert get(server, f"/{server.secret}/../../../etc/passwd")[0] == 404
    assert get(server, f"/{server.secret}/board.py")[0] == 404
    for asked in ("", "page.js", "runs.json", "nothing"):
        headers = get(server, f"/{server.secret}/{asked}")[1]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"
    for file in ("page.js", "draw.js"):
        code = get(server, f"/{server.secret}/{file}")[2].decode()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|document\.write", code)


def test_long_curves_are_thinned():
    """By hand: 1,000 points become means of three; few stay as they are."""
    curve = [(step, float(step)) for step in range(1000)]
    found = thinned(curve)
    assert len(found) == 334 <= POINTS and found[0] == (1.0, 1.0) and found[-1] == (999.0, 999.0)
    assert thinned(curve[:POINTS]) == curve[:POINTS]


def test_a_port_that_is_taken(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: " in run_align("board", "--port", str(port), "--store", tmp_path, code=2).stderr
    with pytest.raises(InputError):
        BoardServer(Board(Store(tmp_path)), 99999)


# ---- in a browser ----------------------------------------------------------------------------------------------------


def test_the_page(store: Store, server: BoardServer):
    """Hostile texts are texts: nothing they ask for happens. A run at work is chosen by itself and moves on; others are
    laid over it, from the keyboard; settings that differ are those of the table."""
    expect = pytest.importorskip("playwright.sync_api").expect
    with at_work(store) as news, opened(server.url, 1200, ".panel") as (page, wrong):
        page.get_by_text("1 at work", exact=True).wait_for()
        page.get_by_text("step 10 of 100").wait_for()
        boxes = page.locator("#runs input")
        assert boxes.count() == 3 and page.locator("#runs .name").all_text_contents()[0] == HOSTILE
        page.locator("#filter").fill("TWO")
        assert boxes.count() == 1
        page.locator("#filter").fill("")
        for place in (1, 2):  # the first is chosen already
            boxes.nth(place).focus()
            page.keyboard.press("Space")
            expect(page.locator("#legend > span")).to_have_count(place + 1)
        assert sorted(page.locator("#legend > span").all_text_contents()) == [HOSTILE, "one", "two"]
        table = "[...document.querySelectorAll('#settings tbody th')].map(cell => cell.textContent)"
        assert page.evaluate(table) == ["beta", "stage"]  # the run at work, of another stage, has beta alone
        assert f"Not all have 3 settings ({HOSTILE}, adapter.rank, seed)." in page.locator("#settings").inner_text()
        boxes.nth(0).focus()
        page.keyboard.press("Space")
        expect(page.locator("#legend > span")).to_have_count(2)
        assert page.evaluate(table) == ["beta"]
        loss = page.locator(".panel", has=page.get_by_role("heading", name="loss", exact=True))
        picture = loss.locator("svg")
        picture.focus()
        for key in ("Home", "ArrowRight"):
            page.keyboard.press(key)
        assert "at 1" in loss.locator(".values").inner_text()
        assert HOSTILE in page.locator(".panel h3").all_text_contents()
        assert page.locator("#prompt option").all_text_contents() == [f"{HOSTILE}?"]
        assert f"{HOSTILE} after 2" in page.locator("#answers .text").all_text_contents()
        assert page.locator("img, iframe, object").count() == 0 and page.locator("script").count() == 1
        news.step(11, 80.0, {"loss": 0.01})
        page.get_by_text("step 11 of 100").wait_for()
        assert wrong == []


def test_what_the_names_mean_is_below_the_charts(store: Store, server: BoardServer):
    """Of the charts that are shown, as text; a name of the reader's own has no sentence and is not there."""
    expect = pytest.importorskip("playwright.sync_api").expect
    with opened(server.url, 400, ".panel") as (page, wrong):
        expect(page.locator("#meanings dt")).to_have_text(["loss", "kl"])
        assert HOSTILE in page.locator(".panel h3").all_text_contents()
        assert page.locator("#meanings dd").all_text_contents() == [MEANINGS["loss"], MEANINGS["kl"]]
        page.locator("#metric").select_option("kl")
        expect(page.locator("#meanings dt")).to_have_text(["kl"])
        assert page.evaluate("document.documentElement.scrollWidth") <= 400 and wrong == []


def test_no_word_breaks_in_the_table_of_settings(store: Store, server: BoardServer):
    """At 400 pixels, for it scrolls. Negative control: as it was."""
    expect = pytest.importorskip("playwright.sync_api").expect
    for n in range(4):
        put(store, f"sweep/{n}", 0.3, more={"learning_rate": 0.0002 + n} if n else {})
    cells = "cells => cells.filter(cell => cell.textContent === 'absent').map(cell => cell.offsetHeight)"
    with opened(server.url, 400, ".panel") as (page, wrong):
        for place in range(6):
            page.locator("#runs input").nth(place).check()
        expect(page.locator("#settings thead th")).to_have_count(7)
        one_line = page.locator("#settings td").evaluate_all(cells)
        page.evaluate("document.querySelectorAll('td').forEach(cell => cell.style.overflowWrap = 'anywhere')")
        broken = page.locator("#settings td").evaluate_all(cells)
        assert one_line and max(one_line) < 40 < min(broken) and wrong == []


def test_colours_that_come_again_are_dashed(store: Store, server: BoardServer):
    """The ninth and tenth run that are chosen, in curves and legend; no two are drawn alike. Negative control: the
    eight before are lines in one piece."""
    expect = pytest.importorskip("playwright.sync_api").expect
    for n in range(8):
        put(store, f"more/{n}", 0.3 + n)
    with opened(server.url, 1200, ".panel") as (page, wrong):
        expect(page.locator("#legend > span")).to_have_count(2)
        for place in range(10):
            page.locator("#runs input").nth(place).check()
        expect(page.locator("#legend > span")).to_have_count(10)
        assert page.locator("#legend > .dashed").count() == 2
        kl = page.locator(".panel", has=page.get_by_role("heading", name="kl", exact=True)).locator("polyline")
        looks = "lines => lines.map(line => [getComputedStyle(line).stroke, getComputedStyle(line).strokeDasharray])"
        found = kl.evaluate_all(looks)
        assert len({tuple(look) for look in found}) == len(found) == 10
        assert sorted(dash for _, dash in found) == ["4px, 3px"] * 2 + ["none"] * 8 and wrong == []


def test_losses_of_several_kinds_are_apart(store: Store, server: BoardServer):
    """A chart for each, by stage and setting; what means the same to all is one. Negative control: two of one kind."""
    expect = pytest.importorskip("playwright.sync_api").expect
    for name, stage, more in (
        ("sft", "sft", {}),
        ("sigmoid", "dpo", {"loss": "sigmoid"}),
        ("again", "dpo", {"loss": "sigmoid"}),
        ("hinge", "dpo", {"loss": "hinge"}),
    ):
        put(store, name, 0.3, stage=stage, more=more)
    one = "[panel.querySelector('h3').textContent, panel.querySelectorAll('polyline').length]"
    lines = f"panels => panels.map(panel => {one})"
    with opened(server.url, 1200, ".panel") as (page, wrong):
        boxes = page.locator("#runs input")
        expect(boxes).to_have_count(6)
        for place in range(6):
            boxes.nth(place).set_checked(False)
        for name in ("sigmoid", "again"):
            page.get_by_role("checkbox", name=name).check()
        expect(page.locator("#legend > span")).to_have_count(2)
        assert page.locator(".panel").evaluate_all(lines) == [["loss", 2], ["kl", 2]]
        for name in ("sft", "hinge"):
            page.get_by_role("checkbox", name=name).check()
        expect(page.locator("#legend > span")).to_have_count(4)
        found = page.locator(".panel").evaluate_all(lines)
        assert sorted(found) == [["kl", 4], ["loss (dpo, hinge)", 1], ["loss (dpo, sigmoid)", 2], ["loss (sft)", 1]]
        assert wrong == []


def test_what_is_not_there_is_said(store: Store, server: BoardServer):
    """A search without hits, a run without curves; labels of an axis are told apart, and values have names. Negative
    controls: a search with hits; a run alone needs no name."""
    expect = pytest.importorskip("playwright.sync_api").expect
    for name, more in (("s/near", 0.0), ("s/far", 1e-5)):
        put(store, name, 0.3, rows=[{"step": step, "loss": 0.69 + more + step * 1e-6} for step in range(1, 9)])
    (store.path / "runs/early").mkdir(parents=True)
    News(store.path / "runs/early").begin("early", "dpo", {})
    with opened(server.url, 1200, "#runs input") as (page, wrong):
        boxes, bare = page.locator("#runs input"), page.locator("#bare")
        page.locator("#filter").fill("nothing")
        expect(page.locator("#none")).to_have_text("No run has “nothing” in its name.")
        page.locator("#filter").fill("")
        expect(page.locator("#none")).to_be_hidden()
        expect(page.locator("#runs")).to_contain_text("dpo · ended before it was done")
        for place in range(boxes.count()):
            boxes.nth(place).set_checked(False)
        page.get_by_role("checkbox", name="early").check()
        expect(bare).to_have_text("early: no curves, for no step of it is told of.")
        page.get_by_role("checkbox", name="early").uncheck()
        page.get_by_role("checkbox", name="s/near").check()
        loss = page.locator(".panel").first
        assert "near" not in loss.locator(".values").inner_text()
        labels = loss.locator("text[text-anchor=end]").all_text_contents()[:-1]
        assert len(set(labels)) == len(labels) > 1 and all(label.startswith("0.69000") for label in labels)
        page.get_by_role("checkbox", name="s/far").check()
        expect(loss.locator(".values")).to_contain_text("near 0.69 at 8")
        expect(loss.locator(".values")).to_contain_text("far 0.69 at 8")
        assert wrong == []


def test_runs_with_curves_are_chosen_first(store: Store, server: BoardServer):
    """Newer ones that failed before any step are not, and say why, as text; a judge is its file's first digits and its
    function's name. Negative control: of two without curves alone both are chosen."""
    expect = pytest.importorskip("playwright.sync_api").expect
    for digit, name in (("5", "bad"), ("6", "worse")):
        (store.path / f"runs/{name}").mkdir(parents=True)
        News(store.path / f"runs/{name}").begin(name, "pairs", {"judge": f"{digit * 64}:score"})
        News(store.path / f"runs/{name}").failed(f"judge.py:2: {HOSTILE}")
    with opened(server.url, 1200, "#runs input") as (page, wrong):
        for name, chosen in (("one", True), ("two", True), ("bad", False), ("worse", False)):
            expect(page.get_by_role("checkbox", name=re.compile(f"^{name}"))).to_be_checked(checked=chosen)
        expect(page.locator("#runs")).to_contain_text(f"pairs · ended before it was done · judge.py:2: {HOSTILE}")
        for name in ("bad", "worse"):
            page.get_by_role("checkbox", name=re.compile(f"^{name}")).check()
        expect(page.locator("#settings")).to_contain_text("555555555555:score")
        expect(page.locator("#settings")).not_to_contain_text("5" * 13)
        assert wrong == []
    for name in ("one", "two"):
        store.untag(name)
    with opened(server.url, 1200, "#runs input") as (page, wrong):
        expect(page.locator("#runs input:checked")).to_have_count(2)
        assert wrong == []


@pytest.mark.slow
def test_axe_finds_no_barrier(store: Store, server: BoardServer):
    """Beside a run at work, in light and dark."""
    with at_work(store), opened(server.url, 1200, ".panel") as (page, _):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert barriers(page) == []


def test_the_page_on_a_phone(store: Store, server: BoardServer):
    """At 400 pixels nothing is cut off, in light and dark; nothing is asked of others. Negative control: what a console
    would say is heard."""
    with opened(server.url, 400, ".panel") as (page, wrong):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.locator(".panel").first.bounding_box()["width"] > 300
        assert wrong == []
        page.evaluate("fetch('https://example.com/').catch(() => 0)")
        page.wait_for_timeout(200)
        assert wrong
