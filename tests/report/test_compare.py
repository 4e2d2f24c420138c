"""`align compare` on stores made by hand: what differs, which figure is surely the best, curves, the page, hostile
text."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from align.evaluation.written import settings_of
from align.folders.model import MODEL_FILES
from align.ground.errors import AlignError, InputError
from align.report.compare import as_json, compare, surely_best
from align.report.compare_page import compared_page
from align.report.compare_text import compared_text
from align.report.diff import ABSENT, diff
from align.report.lists import matching
from align.report.sketch import heights_of, sketch
from align.report.summary import Estimate, Setting
from align.report.text import elided, show_text, told_apart
from align.stage import catalogue
from align.store import Artifact, Store, digest_json
from tests.conftest import ROOT, run_align
from tests.store.conftest import fill, put
from tests.store.remotes import make

BETAS = (0.05, 0.1, 0.2)
STEPS = 5


def history(beta: float) -> bytes:
    """A loss that falls by beta each step, a margin that rises by it."""
    rows = [{"step": i, "loss": 1 - beta * i, "rewards/margins": beta * i} for i in range(STEPS)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def trained(store: Store, folder: Path, name: str, beta: float, **changes: Any) -> Artifact:
    """A DPO adapter with curves, tagged."""
    config = {"beta": beta, "learning_rate": 1e-4, "adapter": {"rank": 8, "targets": ["q_proj"]}, "seed": 0}
    settings: dict[str, Any] = {"stage": "dpo", "config": config, "metrics": {"loss": 1 - beta, "steps": STEPS}}
    files = {"weights": name.encode(), "history.jsonl": history(beta)}
    artifact = put(store, fill(folder / name.replace("/", "_"), files), **(settings | changes))
    store.tag(name, artifact)
    return artifact


def report(store: Store, folder: Path, made: dict[str, Artifact], metrics: dict[str, Any], name: str = "q/report"):
    compared = {f"compare/{label}": artifact for label, artifact in made.items()}
    config = {"judges": {"gold": "0" * 64}, "n": 1}
    artifact = put(
        store,
        fill(folder / name.replace("/", "_"), {"table.txt": name.encode()}),
        kind="report",
        stage="evaluate",
        config=config,
        parents=compared,
        metrics=metrics,
    )
    store.tag(name, artifact)
    return artifact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three values of beta, and a report by which the largest is surely best in gold, and none in kl."""
    store = Store(tmp_path / "store")
    made = {f"dpo.beta-{beta}": trained(store, tmp_path, f"q/dpo.beta-{beta}", beta) for beta in BETAS}
    with store.run(digest_json("paid")) as run:
        run.finish(made["dpo.beta-0.1"], {"seconds": 95.2, "peak_memory_bytes": 2**30})
    gold = zip(made, [(0.5, 0.45, 0.55), (0.6, 0.55, 0.65), (0.8, 0.7, 0.9)], strict=True)
    metrics: dict[str, Any] = {}
    for label, (value, low, high) in gold:
        metrics |= {f"{label}/gold": value, f"{label}/gold_ci95": [low, high], f"{label}/kl": value * 2}
    report(store, tmp_path, made, metrics)
    return store


def test_settings_that_differ_and_only_those(store: Store):
    found = compare(store, ["q/dpo.*"])
    assert [run.name for run in found.runs] == [f"q/dpo.beta-{beta}" for beta in BETAS]
    assert found.settings == {"beta": list(BETAS)}
    # learning_rate, adapter.rank, adapter.targets, seed; stage, version, base; no parents and data, which are none
    assert found.same == 7 and found.alone == {}
    text = compared_text(found, 80).splitlines()
    at = text.index("settings that differ  A     B    C")
    assert text[at + 1 : at + 3] == ["beta                  0.05  0.1  0.2", "The same: 7."]
    same = compare(store, ["q/dpo.beta-0.1", store.resolve("q/dpo.beta-0.1").digest])  # the control
    three = compare(store, ["q/dpo.beta-0.1", store.resolve("q/dpo.beta-0.1").digest, "q/dpo.beta-0.2"])
    assert three.settings == {"beta": [0.1, 0.1, 0.2]}, "a value for each run, under one name too"
    assert same.settings == {} and "No setting differs, of 8 that they share." in compared_text(same, 80)


def test_figures_of_a_report_stand_beside_each_other(store: Store):
    """Its judge's is marked, as its interval lies apart; KL has none; figures of one run alone are not shown."""
    by_report, own = compare(store, ["q/dpo.*"]).figures
    assert by_report.where == "by q/report" and list(by_report.measures) == ["gold", "kl"]
    assert by_report.measures["gold"][2] == Estimate(0.8, (0.7, 0.9)) and by_report.best == {"gold": 2}
    assert own.measures == {"loss": [Estimate(1 - beta) for beta in BETAS]} and own.same == 1 and own.best == {}
    text = compared_text(compare(store, ["q/dpo.*"]), 80)
    assert "0.800*" in text and text.count("*") == 2, "the mark, and what it means"
    two = compare(store, ["q/dpo.beta-0.05", "q/dpo.beta-0.1"])
    assert two.figures[0].best == {}, "the control: these intervals touch"
    assert "No figure is marked the best: 95 % intervals overlap." in compared_text(two, 80)
    nothing = compared_text(compare(store, ["q/report", "q/dpo.beta-0.1"]), 80)
    assert "These runs share no figure that differs; `align evaluate` measures" in nothing and "interval" not in nothing


def test_names_of_one_artifact(store: Store):
    """They are said to be one, and its figures are shown. Negative control: beside another one, too, but there equal
    figures are counted alone."""
    store.tag("q/best", "q/dpo.beta-0.2")
    one = compare(store, ["q/best", "q/dpo.beta-0.2"])
    by_report, own = one.figures
    assert by_report.measures["gold"] == [Estimate(0.8, (0.7, 0.9))] * 2 and by_report.best == {}
    assert own.measures["loss"] == [Estimate(0.8)] * 2 and own.same == 0
    said = f"A and B are one artifact, {one.runs[0].digest[:12]}."
    for shown in (compared_text(one, 80), compared_page(one)):
        assert said in shown and "interval" not in shown.split(said)[1] and "No figure" not in shown
    assert as_json(one)["notes"] == [said]
    three = compare(store, ["q/best", "q/dpo.beta-0.2", "q/dpo.beta-0.05"])
    assert said in compared_text(three, 80) and three.figures[-1].same == 1
    assert three.figures[0].best == {"gold": 0}, "one artifact is no rival of itself"
    assert "one artifact" not in compared_text(compare(store, ["q/dpo.*"]), 80)


def test_losses_of_two_kinds_are_not_laid_over_each_other(store: Store, tmp_path: Path):
    """IPO's beside the sigmoid's, alone or weighed. Negative controls: two of one kind; other figures and curves."""

    def made(name: str, loss: object, beta: float) -> str:
        measured = {"loss": beta, "eval/loss": 2 * beta, "rewards/margins": beta}
        trained(store, tmp_path, name, beta, config={"beta": beta, "loss": loss}, metrics=measured)
        return name

    ipo, sigmoid = made("k/ipo", "ipo", 0.3), made("k/sigmoid", "sigmoid", 0.4)
    weighed, like = made("k/weighed", {"sigmoid": 0.8, "ipo": 0.2}, 0.5), made("k/like", "sigmoid", 0.6)
    for names in ([ipo, sigmoid], [sigmoid, weighed]):
        found = compare(store, names)
        assert list(found.figures[-1].measures) == ["rewards/margins"] and list(found.curves) == ["rewards/margins"]
        for shown in (compared_text(found, 80), compared_page(found)):
            assert "The setting loss differs, so each loss is of its own kind and is left out" in shown
            assert "means another thing to each." in " ".join(shown.split())
            assert shown.startswith("<!") or max(map(len, shown.splitlines())) <= 80
    alike = compare(store, [sigmoid, like])
    assert list(alike.figures[-1].measures) == ["eval/loss", "loss", "rewards/margins"] and "loss" in alike.curves
    assert "of its own kind" not in compared_text(alike, 80)


def test_figures_with_a_reference_and_without_are_apart(store: Store, tmp_path: Path):
    """DPO's rewards beside SimPO's are left out, with a word, as are ORPO's beside SimPO's. Negative controls: two of
    a kind; a stage without such figures beside them."""
    pairs = {"rewards/accuracies": 0.5, "eval/accuracy": 0.5, "eval/kl": 0.1}
    history = b'{"step": 0, "kl": 0}\n{"step": 1, "kl": 1}\n'

    def made(name: str, stage: str, **figures: float) -> str:
        folder = fill(tmp_path / name, {"weights": name.encode(), "history.jsonl": history})
        metrics = {key: value + len(name) for key, value in (pairs | figures).items()}
        store.tag(f"p/{name}", put(store, folder, stage=stage, config={"seed": 0}, metrics=metrics))
        return f"p/{name}"

    dpo, other, simpo, orpo = made("d", "dpo"), made("dd", "bco"), made("sim", "simpo"), made("orpo", "orpo")
    for names in ([dpo, simpo], [simpo, orpo], [dpo, other, orpo]):
        found = compare(store, names)
        assert list(found.figures[-1].measures) == ["eval/kl"] and "kl" in found.curves
        assert "and so left out: eval/accuracy, rewards/accuracies." in " ".join(compared_text(found, 80).split())
    alike = compare(store, [dpo, other])
    assert "eval/accuracy" in alike.figures[-1].measures and "left out: eval" not in compared_text(alike, 80)
    sft = put(store, fill(tmp_path / "sft", {"weights": b"s"}), stage="sft", config={"seed": 0}, metrics={"loss": 1.0})
    with_sft = compare(store, [simpo, made("simpo", "simpo"), sft.digest])
    assert "rewards/accuracies" in with_sft.figures[-1].measures


def test_kl_of_several_kinds_is_apart(store: Store, tmp_path: Path):
    """KTO's own estimate is held neither against that of rollouts nor against a distance from a teacher, and it is
    said. Negative control: that of rollouts beside rollouts."""

    def made(name: str, stage: str) -> str:
        history = b'{"step": 0, "kl": 0}\n{"step": 1, "kl": 1}\n'
        files = {"weights": name.encode(), "history.jsonl": history}
        metrics = {"kl": len(name) / 9, "length": len(name)}
        store.tag(name, put(store, fill(tmp_path / name, files), stage=stage, metrics=metrics))
        return name

    kto, grpo, ppo, distill = made("k", "kto"), made("gr", "grpo"), made("ppo", "ppo"), made("dist", "distill")
    for names, kinds in (
        ([kto, grpo], "kto, its own estimate; of rollouts"),
        ([grpo, distill], "distill, from the teacher; of rollouts"),
    ):
        found = compare(store, names)
        assert list(found.figures[-1].measures) == ["length"] and not found.curves
        for shown in (compared_text(found, 80), compared_page(found)):
            assert f"Not of one kind, and so left out: kl ({kinds})." in " ".join(shown.split())
    alike = compare(store, [grpo, ppo])
    assert "kl" in alike.figures[-1].measures and "kl" in alike.curves
    assert "left out: kl" not in compared_text(alike, 80)


def test_figures_that_print_alike_are_the_same(store: Store, tmp_path: Path):
    """Of two that differ beyond the digits that are shown none is listed. Negative control: in the last of these."""
    names = [f"alike-{i}" for i in range(2)]
    for i, name in enumerate(names):
        metrics = {"loss": 0.25 + i * 1e-9, "far": 0.25 + i * 1e-3, "near": 0.5, "near_ci95": [0.4, 0.6 + i * 1e-9]}
        trained(store, tmp_path, name, 0.1 + i, metrics=metrics)
    own = compare(store, names).figures[-1]
    assert list(own.measures) == ["far"] and own.same == 2
    assert "The same, as far as shown: 2." in compared_text(compare(store, names), 80)


def test_a_default_without_effect_is_no_difference(store: Store, tmp_path: Path):
    """`keep` and `patience` are recorded where there are looks alone. Negative controls: another value; the defaults
    are not known."""

    def made(name: str, **settings: object) -> str:
        folder = fill(tmp_path / name, {"weights": name.encode()})
        store.tag(f"e/{name}", put(store, folder, stage="dpo", config={"beta": 0.1, **settings}))
        return f"e/{name}"

    plain = made("plain", eval_steps=None)
    looks, best = (made(keep, eval_steps=5, keep=keep, patience=None) for keep in ("last", "best"))
    assert compare(store, [plain, looks], catalogue.defaults).settings == {"eval_steps": [None, 5]}
    assert compare(store, [plain, best], catalogue.defaults).settings == {
        "eval_steps": [None, 5],
        "keep": [ABSENT, "best"],
    }
    assert "patience" in compare(store, [plain, looks]).settings


def test_colours_that_come_again_are_dashed(store: Store, tmp_path: Path):
    """From the ninth run on, in curves and in each legend, where mark and letter stay together."""
    for n in range(10):
        trained(store, tmp_path, f"many/{n}", 0.1 + n)
    page = compared_page(compare(store, ["many/*"]))
    curves = page.count("<polyline")
    assert curves % 10 == 0 and page.count('stroke-dasharray="4 3"') == 2 * curves // 10
    marks = page.count('<span class="swatch')
    assert marks % 10 == 0 and page.count('<span class="swatch dashed" style="--dash: 4px">') == 2 * marks // 10
    assert ".panel .run { display: inline-block; white-space: nowrap;" in page
    assert "dashed" not in compared_page(compare(store, ["q/dpo.*"])).split("</style>")[1], "the control"


@pytest.mark.parametrize(
    ("measure", "estimates", "expected"),
    [
        ("eval/accuracy", [Estimate(0.9, (0.8, 1.0)), Estimate(0.6, (0.5, 0.7))], 0),
        ("eval/accuracy", [Estimate(0.9, (0.7, 1.0)), Estimate(0.6, (0.5, 0.7))], None),
        ("eval/accuracy", [Estimate(0.9, (0.8, 1.0)), Estimate(0.6)], None),
        ("eval/accuracy", [Estimate(0.9, (0.8, 1.0)), None], None),
        ("eval/accuracy", [Estimate(0.9, (0.8, 1.0)), None, Estimate(0.6, (0.5, 0.7))], 0),
        ("dpo/gold", [Estimate(0.1, (0.0, 0.2)), Estimate(0.6, (0.5, 0.7))], 1),
        ("dpo/win_rate_vs_sft", [Estimate(0.1, (0.0, 0.2)), Estimate(0.6, (0.5, 0.7))], 1),
        ("dpo/length", [Estimate(1, (0.0, 2.0)), Estimate(6, (5.0, 7.0))], None),  # neither more nor less is better
    ],
)
def test_surely_best(measure: str, estimates: list[Estimate | None], expected: int | None):
    assert surely_best(measure, estimates, {"gold"}) == expected


def test_other_stages_share_what_they_share(store: Store, tmp_path: Path):
    """What not all have is named and not compared; figures of records of their own are never marked."""
    measured = {"eval/accuracy": 0.9, "eval/accuracy_ci95": [0.85, 0.95], "loss": 0.1}
    worse = {"eval/accuracy": 0.5, "eval/accuracy_ci95": [0.45, 0.55], "loss": 0.2}
    trained(store, tmp_path, "q/good", 0.3, metrics=measured)
    trained(store, tmp_path, "q/bad", 0.4, metrics=worse)
    config = {"learning_rate": 2e-4, "epochs": 1}
    trained(store, tmp_path, "q/reward", 0.0, stage="reward", kind="reward", config=config, metrics=worse)
    alike = compare(store, ["q/good", "q/bad"])
    assert alike.figures[-1].best == {"eval/accuracy": 0}
    assert "loss" in alike.figures[-1].measures and "loss" in alike.curves
    other = compare(store, ["q/good", "q/reward"])
    assert other.figures[-1].best == {} and list(other.figures[-1].measures) == ["eval/accuracy"]
    assert "loss" not in other.curves and "rewards/margins" in other.curves
    assert "each has a loss of its own kind" in compared_text(other, 80)
    assert "of its own kind" not in compared_text(alike, 80)
    assert other.settings == {"learning_rate": [1e-4, 2e-4], "stage": ["dpo", "reward"]}
    assert other.alone == {"q/good": ["adapter.rank", "adapter.targets", "beta", "seed"], "q/reward": ["epochs"]}
    text = compared_text(other, 80)
    assert "Of A, but not of all: 4 (adapter.rank, adapter.targets, …)." in text
    three = compare(store, ["q/good", "q/bad", "q/reward"])
    assert three.settings["beta"] == [0.3, 0.4, ABSENT], "where two have it, it is compared"
    assert "Of A, B, but not of all: 3 (adapter.rank, adapter.targets, …)." in compared_text(three, 80)
    other_seed = {"beta": 0.4, "learning_rate": 1e-4, "adapter": {"rank": 8, "targets": ["q_proj"]}, "seed": 1}
    trained(store, tmp_path, "q/seed", 0.4, metrics=worse, config=other_seed)
    assert compare(store, ["q/good", "q/seed"]).figures[-1].best == {}, "another seed holds other records out"
    less = {"beta": 0.3}
    trained(store, tmp_path, "q/less", 0.3, config=less)
    assert compare(store, ["q/good", "q/less"]).settings["seed"] == [0, ABSENT]


def test_all_linear_is_the_modules_that_it_came_to(store: Store, tmp_path: Path):
    """What goes on from an adapter on all linear layers records these: so far no setting differs. Negative controls:
    fewer modules do; an artifact without an adapter's file is taken at its word."""
    peft = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"]}

    def adapter(name: str, targets: object, written: bool = True) -> str:
        config = {"learning_rate": 1e-4, "adapter": {"rank": 8, "targets": targets}}
        files = {"adapters/0/adapter_config.json": json.dumps(peft).encode()} if written else {"weights": b""}
        artifact = put(store, fill(tmp_path / name, files), stage="dpo", config=config)
        store.tag(f"t/{name}", artifact)
        return f"t/{name}"

    first, on = adapter("first", "all-linear"), adapter("on", ["q_proj", "v_proj"])
    fewer, bare = adapter("fewer", ["q_proj"]), adapter("bare", "all-linear", written=False)
    assert compare(store, [first, on]).settings == {} and diff(store, first, on)["config"] == {}
    assert compare(store, [first, bare]).settings == {}
    assert compare(store, [first, fewer]).settings == {"adapter.targets": [["q_proj", "v_proj"], ["q_proj"]]}
    assert compare(store, [bare, fewer]).settings == {"adapter.targets": ["all-linear", ["q_proj"]]}


def test_a_page_shows_no_targets_that_nobody_set(store: Store, tmp_path: Path):
    """An adapter that goes on from one on all linear layers is at that default. Negative controls: one that goes on
    from fewer modules, and one that starts with them itself."""

    def targets(name: str, begun: object, how: str = "continue") -> Setting:
        first = put(store, fill(tmp_path / f"{name}-1", {"w": b"1"}), config={"adapter": {"targets": begun}})
        config = {"adapter": {"targets": ["q_proj"]}, "parent_adapter": how}
        parents = {"parent": first}
        on = put(store, fill(tmp_path / f"{name}-2", {"w": b"2"}), stage="dpo", config=config, parents=parents)
        return next(setting for setting in settings_of(store, on) if setting.name == "adapter.targets")

    assert targets("on", "all-linear") == Setting("adapter.targets", "all-linear")
    assert targets("fewer", ["q_proj"]) == Setting("adapter.targets", "[q_proj]", "all-linear")
    assert targets("own", "all-linear", "stack") == Setting("adapter.targets", "[q_proj]", "all-linear")


def test_what_rounding_leaves_of_nothing_is_drawn_as_nothing():
    """Negative control: as small a number, where all are."""
    _, *plane, _ = sketch("margins", {"a": [(0.0, -3e-8), (9.0, 1.0)]}, 39)
    assert [line.split()[0] for line in (plane[0], plane[-1])] == ["1", "0"]
    _, *plane, _ = sketch("margins", {"a": [(0.0, -3e-8), (9.0, 1e-7)]}, 39)
    assert [line.split()[0] for line in (plane[0], plane[-1])] == ["1e-07", "-3e-08"]


def test_curves_are_drawn_where_they_are():
    """A line that rises, by hand: from the lowest row to the highest; an equal one is drawn over it."""
    rising = [(0.0, 0.0), (27.0, 27.0)]
    title, *plane, axis = sketch("loss", {"a": rising, "b": [(0.0, 27.0), (27.0, 27.0)]}, 39)
    assert title == "loss" and axis.split() == ["0", "step", "27"] and all(len(line) <= 39 for line in plane)
    rows = [line[11:].ljust(28) for line in plane]
    assert rows[-1].startswith("a") and rows[0].startswith("b") and rows[0].endswith("+")
    assert [row.strip() for row in rows[1:]] == [row.strip()[:1] * len(row.strip()) for row in rows[1:]]
    in_each = [height for (height,) in heights_of(rising, 0, 27, 28)[:3]]
    assert in_each == pytest.approx([0.0, 1.4464, 2.4107], abs=1e-3)  # the middle of each
    assert heights_of([(0, 1.0), (1, 3.0)], 0, 27, 2) == [[1.0, 3.0], []]  # its ends; after them there is nothing
    assert heights_of([(i, float(i)) for i in range(6)], 0, 5, 3) == [[0.0], [2.5], [5.0]]  # in between a mean
    assert sketch("x", {"a": [(0, float("inf"))]}, 38) == ["x", "no finite values"]


def test_patterns_and_what_is_refused(store: Store, tmp_path: Path):
    for steps in (2, 10):
        store.tag(f"q/sft.max_steps-{steps}", "q/dpo.beta-0.1")
    assert matching(store, ["q/sft.*", "q/report"]) == ["q/sft.max_steps-2", "q/sft.max_steps-10", "q/report"]
    for refs, message in {
        ("q/dpo", "q/report"): "no name in .* is q/dpo; 3 names begin so: write 'q/dpo\\.\\*', in quotes",
        ("q/sft.max_steps-1", "q/report"): "did you mean q/sft.max_steps-10",
        ("q/none*",): "no name in .* matches 'q/none\\*'; `align ls` lists what is there",
        ("q/report",): "1 run to compare; name from two to 26",
        ("q/report", "q/report"): "1 run to compare",
        ("q/report", "q/dop"): "'q/dop' is no name and no digest",
    }.items():
        with pytest.raises(InputError, match=message):
            compare(store, refs)


def test_for_programs(store: Store):
    found = json.loads(run_align("compare", "q/dpo.*", "--json", "--store", store.path).stdout)
    assert found == json.loads(json.dumps(as_json(compare(store, ["q/dpo.*"]))))
    assert found["figures"][0]["best"] == {"gold": "q/dpo.beta-0.2"} and found["settings"]["beta"] == list(BETAS)
    assert found["cost"]["seconds"] == [None, 95.2, None] and "curves" not in found


class Page(HTMLParser):
    """Elements of a page, and its polylines."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]


def test_the_page(store: Store, tmp_path: Path):
    """No script, no link, a line for each run in each curve; nothing is overwritten."""
    out = tmp_path / "page.html"
    flags = ["--html", out, "--store", store.path]
    done = run_align("compare", "q/dpo.*", *flags)
    assert f"The page is written: {out}" in done.stderr
    page = out.read_text(encoding="utf-8")
    assert page == compared_page(compare(store, ["q/dpo.*"]))
    elements = Page(page).elements
    assert not {"script", "link", "img", "iframe"} & set(elements) and "Content-Security-Policy" in page
    assert elements.count("polyline") == 2 * len(BETAS) and elements.count("svg") == 2
    assert page.count("★") == 2 and "0.800 ★" in page
    assert f"--html: {out} is there already" in run_align("compare", "q/dpo.*", *flags, code=2).stderr
    found = compare(store, ["q/dpo.*"])
    many = replace(found, curves={f"curve {n}": found.curves["loss"] for n in range(6)})
    assert "Not drawn: curve 4, curve 5, which --html FILE shows." in " ".join(compared_text(many, 80).split())
    assert max(map(len, compared_text(many, 80).split("\n"))) <= 80
    more = replace(found, curves={f"curve {n}": found.curves["loss"] for n in range(11)})
    told = " ".join(compared_text(more, 80, "b.html").split())
    assert "Not drawn: curve 4, curve 5, curve 6, curve 7, 3 more, which b.html shows." in told
    few = replace(found, curves={f"curve {n}": found.curves["loss"] for n in range(4)})
    assert "Not drawn" not in compared_text(few, 80)


def test_hostile_text_stays_text(store: Store, tmp_path: Path):
    """Settings, figures and curves with escape codes and markup: neither reaches a terminal or the page as such."""
    evil = "\x1b[2J<script>alert(1)</script>\u202e"
    rows = [{"step": i, evil: float(i)} for i in range(2)]
    files = {"history.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    for n in range(2):
        config = {"beta": n, evil: f"{evil}{n}"}
        artifact = put(
            store,
            fill(tmp_path / f"evil{n}", files | {"weights": bytes([n])}),
            stage="dpo",
            config=config,
            metrics={evil: n},
        )
        store.tag(f"evil/{n}", artifact)
    out = tmp_path / "evil.html"
    done = run_align("compare", "evil/*", "--html", out, "--store", store.path)
    page = out.read_text(encoding="utf-8")
    for text in (done.stdout, page, run_align("ls", "--show", f"config.{evil}", "--store", store.path).stdout):
        assert not {"\x1b", "\u202e"} & set(text) and "\\u001b[2J" in text
    assert "script" not in Page(page).elements and "&lt;script&gt;" in page
    broken = put(store, fill(tmp_path / "broken", {"history.jsonl": b'{"step": 1, "loss": "x"}\n'}), stage="dpo")
    store.tag("evil/0", broken)
    with pytest.raises(AlignError, match=r"history\.jsonl is not what a stage writes \(ValueError\)"):
        compare(store, ["evil/*"])


def in_terminal(columns: int, *words: str | Path) -> list[str]:
    """The lines that `align` prints in a terminal of so many columns."""
    program = (
        "import fcntl, runpy, sys, termios\n"
        f"fcntl.ioctl(1, termios.TIOCSWINSZ, {pack('HHHH', 40, columns, 0, 0)!r})\n"
        "runpy.run_module('align', run_name='__main__', alter_sys=True)"
    )
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # Linux's end of a terminal
                break
            if not part:
                break
            shown += part
    os.close(master)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n").splitlines()


def test_rows_with_long_names_are_told_apart(store: Store, tmp_path: Path):
    """Reports of two seeds of a sweep, with a model and figures of twelve long names each: no label stands twice. The
    control: cut in their middles, some do."""
    swept = [f"dpo.beta-{beta}.loss-{loss}" for beta in BETAS for loss in ("sigmoid", "ipo", "hinge", "apo_zero")]
    for seed in (0, 1):
        names = {name: f"study/seed-{seed}/{name}" for name in swept}
        made = {name: trained(store, tmp_path, of, 0.1 + seed + i) for i, (name, of) in enumerate(names.items())}
        figures = {f"{name}/{what}": 0.5 + seed for name in swept for what in ("gold", "win_rate_vs_sft")}
        report(store, tmp_path, made, figures, f"study/seed-{seed}/report")
    lines = compared_text(compare(store, ["study/seed-0/report", "study/seed-1/report"]), 80).splitlines()
    assert max(map(len, lines)) <= 80
    settings = lines[lines.index("") + 2 : next(i for i, line in enumerate(lines) if line.startswith("The same: "))]
    assert [line.split()[0] for line in settings[:2]] == ["…dpo.beta-0.05.loss-apo_zero", "…dpo.beta-0.05.loss-hinge"]
    assert len({line.split()[0] for line in settings}) == len(settings) == 12
    assert all(any(line.startswith(f"{name}/win_rate_vs_sft ") for line in lines) for name in swept)
    assert len({elided(f"parents.compare/{name}", 30) for name in swept}) < 12
    assert told_apart(["a" * 40, "a" * 40, "b"], 10) == ["aaaaa…aaaa", "aaaaa…aaaa", "b"]
    points = told_apart([f"study/dpo.beta-{beta}.learning_rate-0.002" for beta in (0.3, 0.05)], 20)
    assert points == ["…beta-0.3.…ate-0.002", "…beta-0.05…ate-0.002"], "no number is cut at its point"


@pytest.mark.parametrize("columns", [80, 100])
def test_terminals(columns: int, store: Store, tmp_path: Path):
    """Seven runs with long names: no line is wider; all are there. In a pipe (the control) no name is shortened."""
    name = "quickstart/max_length-128.seed-{}/dpo.learning_rate-0.0005.label_smoothing-0.1"
    names = [name.format(seed) for seed in range(7)]
    made = {f"seed-{i}": trained(store, tmp_path, n, 0.1 + i) for i, n in enumerate(names)}
    metrics = {f"seed-{i}/gold": 0.1 * i for i in range(7)}
    metrics |= {f"seed-{i}/gold_ci95": [0.1 * i - 0.01, 0.1 * i + 0.01] for i in range(7)}
    report(store, tmp_path, made, metrics, "quickstart/report")
    compared = in_terminal(columns, "compare", "quickstart/max*", "--store", store.path)
    listed = in_terminal(columns, "ls", "--store", store.path)
    shown = in_terminal(columns, "ls", "--show", "beta,steps,loss,digest,base,targets", "--store", store.path)
    for lines in (compared, listed, shown):
        assert max(map(len, lines)) <= columns
        assert all(any(name in line for line in lines) for name in names), "no name is cut"
    assert sum(line.startswith(tuple("ABCDEFG")) for line in compared) == 7 and "0.600*" in "".join(compared)
    assert [line for line in compared if line.startswith("settings that differ")]
    assert names[6] in run_align("ls", "--store", store.path).stdout


def test_the_stores_prose_fits_a_terminal(store: Store, tmp_path: Path):
    """What `gc`, `verify`, `push` and `locate` say. In a pipe, the control, each has its line, which is wider."""
    base = fill(tmp_path / "a/base", {"config.json": b"{}", "model.safetensors": b"w"})
    on_base = {"model": "base", "revision": None, "digest": store.digest_folder(base, MODEL_FILES), "quantize": None}
    for i in range(4):
        trained(store, tmp_path, f"q/dpo.data-pairs.jsonl.loss-{i}", 0.3 + i, base=on_base)
    for seed in range(2):
        store.tag(f"p/dpo.data-pairs.jsonl.loss-{seed}", make(store, tmp_path, seed))
    (tmp_path / "c").mkdir()
    where = ["--store", store.path]
    for words in (["gc"], ["verify"], ["push", f"file://{tmp_path}/far", "p/*"], ["locate", tmp_path / "c/../a/base"]):
        shown = [line.rpartition("\x1b[K")[2] for line in in_terminal(50, *words, *where)]
        assert not [line for line in shown if len(line) > 50 and line.split()[1:]], words
        piped = run_align(*words, *where).stdout
        assert max(map(len, piped.splitlines())) > 50 and set(piped.split()) <= set(" ".join(shown).split())
    assert piped.startswith(f"{base} is the base of q/dpo.data-pairs.jsonl.loss-0, q/")


def test_of_which_step_figures_are(store: Store, tmp_path: Path):
    """Where an earlier step was kept, `show` and `compare` say which figures are of it, and which of the end. Negative
    control: a run whose last step was kept."""
    figures = {"loss": 0.3, "rewards/margins": 0.2, "eval/accuracy": 0.9, "best/step": 3, "best/loss": 0.4, "steps": 4}
    for name, kept in (("q/early", 3), ("q/last", 4)):
        trained(store, tmp_path, name, 0.1, metrics=figures | {"kept/step": kept})
    shown = {name: show_text(store, name) for name in ("q/early", "q/last")}
    said = "kept     step 3, whose weights eval/… are of; of the last steps of training, up to 4: loss, rewards/margins"
    assert said in shown["q/early"].splitlines() and "\nkept " not in shown["q/last"]
    beside = compare(store, ["q/early", "q/last"])
    end = "whose weights eval/… are of; of the last steps of training there: loss, rewards/margins."
    assert f"Kept: step 3 of 4 (A), {end}" in beside.notes
    assert f"Kept: step 3 of 4 (A), {end}" in compared_page(beside)
    assert "Kept: " in compared_text(beside, 80)
    trained(store, tmp_path, "q/whole", 0.2, metrics=figures | {"kept/step": 4})
    assert not [note for note in compare(store, ["q/last", "q/whole"]).notes if note.startswith("Kept")]
