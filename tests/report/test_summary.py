"""The page and the table say what the numbers say: parsed back, against hand-derived text, and with hostile input."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from textwrap import fill

import pytest

from align.report import glossary, plots, summary
from align.report.html import html
from align.report.summary import Estimate, Reinforced, Report, Sample, Setting, ShownAnswer, Watched
from align.report.table import WIDTH, table
from align.store import shapes
from tests.conftest import ROOT

HOSTILE = (
    '</pre><script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)> & "quoted" {{ 7 * 7 }}'
)


def measured(gold: float, wins: float, half: float = 0.04, **more: float) -> dict[str, object]:
    ends = {"gold_ci95": [gold - half, gold + half], "win_rate_vs_sft_ci95": [wins - half, wins + half]}
    return {"gold": gold, "win_rate_vs_sft": wins, **ends, **more}


def flat(**rows: dict[str, object]) -> dict[str, object]:
    return {f"{name}/{key}": value for name, row in rows.items() for key, value in row.items()}


REPORT = Report(
    title="quickstart",
    stages=["base", "sft", "ppo"],
    baselines=["random_answers", "best_possible"],
    metrics=flat(
        base=measured(0.312, 0.21, correctness=0.334),
        sft={"gold": 0.521, "gold_ci95": [0.481, 0.561], "correctness": 0.552, "kl": 0.0},
        ppo=measured(0.703, 0.742, correctness=0.585, kl=5.874),
        random_answers={"gold": 0.14},
        best_possible={"gold": 1.0},
    ),
    headline="gold",
    judged=["gold", "correctness"],
    note="300 held-out prompts.",
    curves={
        "ppo": {
            "reward/mean": [(step, math.sqrt(step)) for step in range(1, 301)],
            "kl": [(1, 0.0), (2, math.nan), (3, 0.5)],
        }
    },
    samples=[Sample("What is 7 plus 5?", {"sft": ShownAnswer("11", 0.15), "ppo": ShownAnswer("", 1.0)})],
    costs={
        "sft": {"seconds": 4.2, "tokens_per_second": 21400.0, "peak_memory_bytes": 720 * 2**20},
        "ppo": {"seconds": 92.0},
    },
    lineage="quickstart/ppo 3f9a12c04e11",
)


class Page(HTMLParser):
    """Checks that every tag is closed in order, and keeps tags, attributes and the visible text."""

    VOID = ("meta", "br", "img", "link", "input", "wbr")

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.goes_on = False
        """The text that comes is of the word before."""
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.pieces: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.goes_on = tag == "wbr"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.goes_on:
            self.pieces[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.pieces.append(data)
        self.goes_on = False

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))


def test_the_parser_of_these_tests_notices_bad_html():
    with pytest.raises(AssertionError):
        Page("<div><p></div></p>")
    with pytest.raises(AssertionError):
        Page("<div>")


def test_page_is_well_formed_and_self_contained():
    source = html(REPORT)
    page = Page(source)
    assert not page.tags & {"script", "link", "img", "iframe", "a", "object"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "onload"}
    assert "http:" not in source and "https:" not in source and "url(" not in source and "@import" not in source


def test_page_shows_the_numbers_of_the_data():
    text = Page(html(REPORT)).text
    for shown in (
        "31.2%",
        "27.2 to 35.2",
        "52.1%",
        "70.3%",
        "66.3 to 74.3",
        "14.0%",
        "100%",  # gold
        "21.0%",
        "74.2%",
        "70.2 to 78.2",
        "55.2%",
        "58.5%",
        "5.87",  # win rate, correctness, KL
        "300 held-out prompts.",
        "What is 7 plus 5?",
        "11",
        "15.0%",
        "(nothing)",
        "random_answers",
        "4.2 s",
        "1 min 32 s",
        "1 min 36 s",
        "21,400",
        "720 MiB",  # costs; 4.2 + 92 in all
        "reward/mean",
        "17.3",  # last reward = sqrt(300)
        "step 300",
        "quickstart/ppo 3f9a12c04e11",
    ):
        assert f" {shown} " in f" {text} ", shown


def test_bars_are_as_long_as_their_values():
    """gold is drawn on 0 to 1: a bar of p % for each row, in order; the guide stands at the reference's 52.1 %."""
    source = html(REPORT)
    assert re.findall(r'class="bar" x="0.00%" y="8" width="([\d.]+)%"', source) == [
        "31.20",
        "52.10",
        "70.30",
        "14.00",
        "100.00",
    ]
    assert set(re.findall(r'class="guide" x1="([\d.]+)%"', source)) == {"52.10", "50.00"}


def test_hostile_text_stays_text():
    """Model output, prompts, judges, lineage, names and titles can hold anything: shown letter by letter, never markup
    or template."""
    report = replace(
        REPORT,
        title=HOSTILE,
        note=HOSTILE,
        lineage=HOSTILE,
        judged=[HOSTILE],
        said={HOSTILE: HOSTILE},
        headline=HOSTILE,
        stages=["sft", HOSTILE],
        metrics={"sft/gold": 0.5, f"{HOSTILE}/gold": 0.7, f"sft/{HOSTILE}": 1.0},
        samples=[Sample(HOSTILE, {HOSTILE: ShownAnswer(HOSTILE)})],
        curves={HOSTILE: {HOSTILE: [(1, 1.0), (2, 2.0)]}},
        costs={HOSTILE: {"seconds": 1.0}},
    )
    source = html(report)
    page = Page(source)
    assert (
        not page.tags & {"script", "img"}
        and "<script" not in source
        and "onerror" not in {name for name, _ in page.attributes}
    )
    assert page.text.count(HOSTILE) >= 11
    assert "{{ 7 * 7 }}" in page.text
    # Negative control: the same text pasted into a page as it is does break out.
    with pytest.raises(AssertionError):
        assert "script" not in Page(f"<pre>{HOSTILE}").tags


def test_settings_that_differ_come_first():
    """The others are folded away, below them."""
    settings = [Setting("epochs", "1"), Setting("learning_rate", "0.001", "0.0002"), Setting("seed", "0")]
    text = Page(html(replace(REPORT, settings={"ppo": settings}))).text
    assert "learning_rate 0.001 default 0.0002 2 settings at their default epochs 1 seed 0" in text
    assert "at their default" not in Page(html(REPORT)).text  # negative control


def test_equal_answers_are_folded():
    """One text with the names of all that gave it. Negative control: another score keeps them apart."""

    def shown(*answers: ShownAnswer) -> str:
        stages = dict(zip(REPORT.stages, answers, strict=True))
        return Page(html(replace(REPORT, samples=[Sample("Which?", stages)]))).text

    same = shown(ShownAnswer("Twelve.", 1.0), ShownAnswer("11"), ShownAnswer("Twelve.", 1.0))
    assert same.count("Twelve.") == 1 and "base ppo 100% Twelve. sft 11" in same
    assert shown(ShownAnswer("Twelve.", 1.0), ShownAnswer("11"), ShownAnswer("Twelve.", 0.0)).count("Twelve.") == 2


def test_an_answer_that_stays_stands_once():
    watched = Watched("Which?", [("at the start", "A"), ("after rollout 5", "B"), ("after rollout 9", "B")])
    text = Page(html(replace(REPORT, reinforced={"ppo": Reinforced({}, watched=[watched])}))).text
    assert "at the start A after rollout 5, after rollout 9 B" in text


def test_main_curves_come_first_and_names_are_explained():
    points = [(1, 1.0), (2, 0.5)]
    curves = {"ppo": dict.fromkeys(("sampler_gap/max", "approx_kl", "my_judge", "kl", "loss"), points)}
    text = Page(html(replace(REPORT, curves=curves))).text
    trained = text[text.index("How training went") : text.index("What the names mean")]
    names = ["loss", "kl", "my_judge", "2 more curves", "approx_kl", "sampler_gap/max"]
    assert [trained.index(name) for name in names] == sorted(trained.index(name) for name in names)
    legend = text[text.index("What the names mean") : text.index("What it cost")]
    assert "approx_kl how far the policy moved" in legend and "my_judge" not in legend and "entropy" not in legend


def test_every_curve_of_ours_is_explained():
    """Truth: the names in the code of losses and rollouts."""
    files = [path for room in ("losses", "rl") for path in (ROOT / "align" / room).glob("*.py")]
    names = {name for path in files for name in re.findall(r'"((?:rewards?|logps|value|score)/\w+)"', path.read_text())}
    assert len(names) >= 8 and names - set(glossary.MEANINGS) <= {"reward/first", "reward/last"}
    assert set(glossary.MAIN) < set(glossary.MEANINGS)
    several = glossary.explained(["reward/fame", "reward/my/std", "reward/fame/unscored", "reward", "fame", "ranks/a"])
    assert [name for name, _ in several] == ["reward/NAME", "reward/NAME/std", "reward/NAME/unscored", "ranks"]
    page = (ROOT / "docs/watching.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([\w/]+)` \| (.*) \|$", page.partition("## What the names mean")[2], re.M)
    assert table[: len(glossary.MEANINGS)] == list(glossary.MEANINGS.items())
    mixed = {"learning_rate", "zeta", "reward/std", "alpha", "kl", "loss"}
    assert glossary.by_importance(mixed) == ["loss", "kl", "alpha", "zeta", "learning_rate", "reward/std"]


def test_thirty_stages_are_folded_but_the_best():
    stages = [f"s{i}" for i in range(30)]
    metrics = {f"{name}/gold": i / 30 for i, name in enumerate(stages)}
    report = replace(REPORT, stages=stages, metrics=metrics, curves={name: {"kl": [(1, 1.0)]} for name in stages})
    source = html(report)
    folded = re.findall(r'<summary><span class="named"><span [^>]*></span>(s\d+)</span></summary>', source)
    assert folded == stages[:29] and "<h3>s29</h3>" in source
    why = "Shown at once: s29, of the best by gold. The other 29 are folded away: a name opens its stage."
    assert why in Page(source).text
    untrained = replace(report, curves={name: report.curves[name] for name in stages[:29]})
    none = '<p class="note before">The other 29 are folded away'
    assert "Shown at once" not in html(untrained) and none.replace("other ", "") in html(untrained)
    assert "<summary><span" not in html(REPORT) and "folded away" not in html(REPORT)  # negative controls


def test_points_say_their_values():
    """What a browser shows under the pointer: of each point one text, over a band that touches the next."""
    drawn = plots.curve([(1, 0.25), (2, 0.5), (4, 1.0)], [(4, 0.75)])
    assert re.findall("<title>([^<]+)</title>", drawn) == [
        "step 1: 0.250",
        "step 2: 0.500",
        "step 4: 0.750, held out",
        "step 4: 1.00",
    ]
    bands = [(float(x), float(w)) for x, w in re.findall(r'class="hover" x="([\d.]+)" y="10" width="([\d.]+)"', drawn)]
    assert all(x + w == pytest.approx(next_x, abs=0.11) for (x, w), (next_x, _) in pairwise(bands))
    assert (bands[0][0], sum(bands[-1])) == (plots.LEFT, plots.WIDTH - plots.RIGHT)


def test_keyboard_and_screen_reader():
    """One main part, headings in every heading cell, tables that scroll can be reached by key and have a name, curves
    say what they show."""
    source = html(REPORT)
    assert source.count("<main>") == 1 and "<th></th>" not in source
    scrolled = re.findall(r'<div class="scroll"([^>]*)>', source)
    assert scrolled and all('tabindex="0" role="region" aria-label="' in attributes for attributes in scrolled)
    assert 'aria-label="ppo kl: from 0 to 0.500"' in source


def test_names_of_rows_stand_as_they_are():
    """With their underscores, wherever they are; negative control: measures are read as words."""
    name = "dpo.loss-apo_zero"
    metrics = flat(**{name: measured(0.5, 0.5), "sft": measured(0.4, 0.5, my_judge=1.0)})
    metrics |= {f"sft/win_rate_vs_{name}": 0.4}
    curves = {name: {"kl": [(1, 1.0)]}}
    samples = [Sample("Why?", {name: ShownAnswer("So.", 1.0)})]
    report = Report("t", ["sft", name], metrics, reference=name, headline="gold", curves=curves, samples=samples)
    for text in (Page(html(report)).text, table(report)):
        assert name in text and f"win rate vs {name}" in text and "my judge" in text
        assert "apo zero" not in text and "win_rate" not in text.split("What the names mean")[0]
    for more in range(12):
        swept = [f"{'d' * more}.beta-{i}.loss-apo_zero" for i in range(9)]
        rows = flat(**{name: measured(0.5, 0.5) for name in swept})
        said = table(replace(report, stages=swept, metrics=rows, reference=swept[0])).split("\n\n")[0]
        assert not [line for line in said.split("\n") if line.endswith("-")], "no name is broken behind a hyphen"


def test_a_remote_takes_the_page():
    """What pulls a report from elsewhere finds nothing in ours that no report has."""
    everything = replace(REPORT, settings={"ppo": [Setting("seed", "1", "0"), Setting("epochs", "1")]})
    source = html(replace(everything, stages=[*REPORT.stages, *"abcde"], samples=REPORT.samples * 9))
    for closing, name, attributes in shapes.TAG.findall(source.removeprefix(shapes.PAGE)):
        assert (closing or name) in shapes.ELEMENTS
        assert set(re.findall(r"([\w-]+)=", re.sub(r'"[^"]*"', "", attributes))) <= shapes.ATTRIBUTES


def test_an_empty_report_is_a_page_without_sections():
    page = Page(html(Report(title="nothing yet", stages=[], metrics={})))
    assert "section" not in page.tags and "nothing yet" in page.text
    assert table(Report(title="nothing yet", stages=[], metrics={})) == ""


def test_table_of_the_terminal():
    """Written by hand from REPORT; a bar is round(10 × gold) characters."""
    assert table(REPORT).split("\n")[:10] == [
        "Best by gold: ppo 70.3% (95%: 66.3 to 74.3); sft has 52.1% (95%: 48.1 to 56.1).",
        "Of comparisons with sft ppo wins 74.2% (95%: 70.2 to 78.2).",
        "",
        "                             gold  95 %          win rate vs sft  95 %",
        "─" * 78,
        "base            ███         31.2%  27.2 to 35.2            21.0%  17.0 to 25.0",
        "sft             █████       52.1%  48.1 to 56.1",
        "ppo             ███████     70.3%  66.3 to 74.3            74.2%  70.2 to 78.2",
        "─" * 78,
        "random_answers  █           14.0%",
    ]
    assert table(REPORT).endswith("\n\n300 held-out prompts.")


def test_tables_fit_a_terminal():
    """As many measures beside each other as fit 79 columns, all of them somewhere, in their order; of each only the
    rows that have it. Negative control: few stand in one table."""
    names = [f"measure_{i}" for i in range(7)]
    stages = {name: {n: 0.5 for n in names} | {f"{n}_ci95": [0.4, 0.6] for n in names} for name in ("sft", "dpo")}
    report = Report(
        "t", ["sft", "dpo"], flat(**stages, best={"measure_0": 1.0}), baselines=["best"], headline="gold", judged=names
    )
    tables = [block for block in table(report).split("\n\n") if "─" in block]
    assert all(len(line) <= 79 for line in table(report).split("\n"))
    assert [f"measure_{found}" for found in re.findall(r"measure (\d)", "".join(tables))] == names
    assert 2 <= len(tables) < len(names) and ["best" in block for block in tables] == [True] + [False] * (
        len(tables) - 1
    )
    few = flat(**{name: {"measure_0": 0.5, "measure_1": 0.5} for name in ("sft", "dpo")})
    assert table(Report("t", ["sft", "dpo"], few, headline="gold", judged=names)).count("─\n") == 1


def test_a_long_heading_takes_lines():
    """Of a swept reference: broken between words and behind its parts, not in a number. Negative control: one that
    fits stands in one line."""
    names = [f"dpo.data-pairs.jsonl.beta-0.{i}.loss-sigmoid" for i in (1, 3)]
    rates = flat(**{names[1]: {f"win_rate_vs_{names[0]}": 0.5, f"win_rate_vs_{names[0]}_ci95": [0.4, 0.6]}})
    report = Report("t", names, rates, reference=names[0], headline="gold")
    block = table(report).split("\n\n")[0].split("\n")
    heading = block[: next(i for i, line in enumerate(block) if "─" in line)]
    assert max(map(len, block)) <= WIDTH and len(heading) == 3
    assert not [line for line in heading if line.endswith("0.")]
    assert "".join(" ".join(heading).replace("95 %", "").split()) == f"winratevs{names[0]}"
    assert "win rate vs sft  95 %" in table(REPORT)


def said(sft: dict[str, object], dpo: dict[str, object], **more: dict[str, object]) -> str:
    stages = ["sft", "dpo", *more]
    metrics = flat(sft=sft, dpo=dpo, **more)
    return summary.verdict(Report("t", stages, metrics, headline="gold", judged=["gold", "correctness"]))


def test_verdict_claims_no_more_than_the_intervals_allow():
    sft = {"gold": 0.5, "correctness": 0.6}
    best = "Best by gold: dpo 60.0% (95%: 56.0 to 64.0); sft has 50.0%. Of comparisons with sft dpo wins "
    assert said(sft, measured(0.6, 0.7)) == f"{best}70.0% (95%: 66.0 to 74.0)."
    assert said(sft, measured(0.6, 0.53)) == f"{best}53.0% (95%: 49.0 to 57.0); dpo not surely more than half."
    assert said(sft, {"gold": 0.6}) == "Best by gold: dpo 60.0%; sft has 50.0%."
    assert said(sft, measured(0.4, 0.3)) == "Best by gold: sft 50.0%; no other stage is better."
    assert said({}, {"gold": 0.6}) == "Best by gold: dpo 60.0%."
    assert said({}, {}) == ""


def test_verdict_calls_equal_what_cannot_be_told_apart():
    """Intervals that touch or overlap; negative control: ones that do not."""
    sft, dpo = {"gold": 0.5, "gold_ci95": [0.46, 0.54]}, measured(0.7, 0.74)
    equals = said(sft, dpo, ppo=measured(0.76, 0.77))
    assert equals == (
        "Best by gold, not told apart as their intervals overlap: ppo 76.0% (95%: 72.0 to 80.0), dpo 70.0% "
        "(95%: 66.0 to 74.0); sft has 50.0% (95%: 46.0 to 54.0). Of comparisons with sft ppo wins 77.0% (95%: 73.0 "
        "to 81.0), dpo wins 74.0% (95%: 70.0 to 78.0)."
    )
    assert "equal" not in said(sft, dpo, ppo=measured(0.79, 0.77))
    assert said(sft, measured(0.52, 0.55)).startswith(
        "Best by gold, not told apart as their intervals overlap: dpo 52.0% (95%: 48.0 to 56.0), sft 50.0% "
        "(95%: 46.0 to 54.0). Of comparisons with sft dpo wins 55.0%"
    )


def test_a_verdict_names_three_and_counts_the_rest():
    """Fourteen rows and no winner: three are named in each sentence, and the base is apart, as it is not best by its
    mean; who trained from the base alone is told that it is not better for sure. Negative control: a base that is best
    by its mean is named so."""
    rows = {f"dpo.{i}": measured(0.6 - i / 100, 0.55, half=0.1) for i in range(12)}
    even = {"gold": 0.45, "gold_ci95": [0.35, 0.55]}
    metrics = flat(base=measured(0.5, 0.4, half=0.1), sft=even, **rows)
    report = Report("t", ["base", "sft", *rows], metrics, headline="gold", judged=["gold"])
    best, wins = summary.sentences(report)
    assert best == (
        "Best by gold, not told apart as their intervals overlap: dpo.0 60.0% (95%: 50.0 to 70.0), dpo.1 59.0% "
        "(95%: 49.0 to 69.0), dpo.2 58.0% (95%: 48.0 to 68.0) and 9 more; sft has 45.0% (95%: 35.0 to 55.0), not "
        "told apart from the best; base has 50.0% (95%: 40.0 to 60.0), not told apart from the best."
    )
    assert wins.count(" wins ") == 3 and wins.endswith("; dpo.0, dpo.1, dpo.2 and 9 more not surely more than half.")
    assert "base" not in summary.leaders(report) and len(summary.leaders(report)) == 13
    pair = replace(report, stages=["base", "sft"], metrics=flat(base=even, sft=measured(0.5, 0.5, half=0.1)))
    near = "; base has 45.0% (95%: 35.0 to 55.0), not told apart from the best."
    assert summary.verdict(pair) == f"Best by gold: sft 50.0% (95%: 40.0 to 60.0){near}"
    upside_down = replace(report, metrics=metrics | flat(base=measured(0.65, 0.6, half=0.1)))
    assert summary.verdict(upside_down).startswith(
        "Best by gold, not told apart as their intervals overlap: base 65.0%"
    )


def test_where_all_are_alike_none_is_best():
    """All score 0, and every comparison is a tie; negative controls: half won and half lost, and other scores."""
    row = {"gold": 0.0, "gold_ci95": [0.0, 0.49]}
    even = {"win_rate_vs_sft": 0.5, "win_rate_vs_sft_ci95": [0.25, 0.75]}
    metrics = flat(base=row | even, sft=row)
    report = Report("t", ["base", "sft"], metrics, headline="gold", judged=["gold"], tied=["base"])
    alike = "All are alike by gold: base 0.0% (95%: 0.0 to 49.0), sft 0.0% (95%: 0.0 to 49.0)."
    assert summary.verdict(report) == f"{alike} All comparisons with sft are ties."
    assert "base wins 50.0%" in summary.verdict(replace(report, tied=()))
    assert "Best by gold" in summary.verdict(replace(report, metrics=metrics | {"sft/gold": 0.1}))


def test_one_prompt_decides_nothing():
    """Where it is said; negative controls: two prompts, and a loss, which is of texts."""
    metrics = {"sft/gold": 15.0, "dpo/gold": 16.0, "sft/loss": 2.0}
    report = Report("t", ["sft", "dpo"], metrics, headline="gold", judged=["gold"], prompts=1)
    said_of_two = "Best by gold: dpo 16.0; sft has 15.0."
    assert summary.verdict(report) == "On one prompt, which decides nothing, best by gold: dpo 16.0; sft has 15.0."
    assert summary.verdict(replace(report, prompts=2)) == said_of_two
    assert summary.verdict(replace(report, headline="loss")).startswith("Best by held-out loss: ")


def test_of_losses_the_lowest_is_best():
    report = Report("t", ["base", "sft"], {"base/loss": 2.5, "sft/loss": 1.5}, headline="loss")
    assert summary.verdict(replace(report, lower_is_better=True)) == "Best by held-out loss: sft 1.50; base has 2.50."
    assert summary.leaders(report) == ["base"]


def test_of_texts_alone_nothing_is_said_of_answers_intervals_or_odds():
    """Captions are of what stands there, and the base stands beside the best where no interval tells them apart.
    Negative control: with answers, judges and intervals all of it is said."""
    whole = {"base": {"loss": 2.66}, "sft": {"loss": 2.1}, "ppo": {"loss": 1.3}}
    report = Report("ev", ["base", "sft", "ppo"], flat(**whole), headline="loss", lower_is_better=True)
    assert summary.verdict(report) == "Best by held-out loss: ppo 1.30; sft has 2.10; base has 2.66."
    page, text = html(report), table(report)
    assert "The dashed line marks sft’s held-out loss." in page and glossary.marks(Report("ev", [], {})) == ""
    for word in ("95 %", "whiskers", "even odds", "overlap", "prompt", "answers"):
        assert word not in text and word not in re.sub("<style>.*</style>", "", page, flags=re.DOTALL), word
    answered = replace(report, metrics={"sft/kl": 0.0, "ppo/kl": 0.1})
    noted = [html(replace(of, note="4 prompts.")) for of in (answered, report)]
    assert [page.count("4 prompts.") for page in noted] == [1, 1]
    assert "loss" not in table(answered) and "KL is how far answers have moved" in table(answered)
    both = "Dashed lines mark sft’s score and even odds; whiskers are 95 % intervals."
    assert both in html(REPORT) and "95 % is where" in " ".join(table(REPORT).split())


def test_verdict_names_what_another_judge_finds_worse():
    sft = {"gold": 0.5, "correctness": 0.6}
    price = "But correctness is lower in dpo 58.0%; sft has 60.0%."
    assert said(sft, measured(0.6, 0.7, correctness=0.58)).endswith(price)
    assert "correct" not in said(sft, measured(0.6, 0.7, correctness=0.62))
    others = {name: measured(0.6, 0.7, correctness=share) for name, share in (("ppo", 0.57), ("kto", 0.59))}
    together = "But correctness is lower in dpo 58.0%, ppo 57.0% and kto 59.0%; sft has 60.0%."
    assert said(sft, measured(0.6, 0.7, correctness=0.58), **others).endswith(f". {together}")
    ranged = sft | {"correctness_ci95": [0.57, 0.63]}
    assert "correct" not in said(ranged, measured(0.6, 0.7, correctness=0.58) | {"correctness_ci95": [0.55, 0.61]})
    surely = measured(0.6, 0.7, correctness=0.5) | {"correctness_ci95": [0.47, 0.53]}
    assert said(ranged, surely).endswith(
        "But correctness is lower in dpo 50.0% (95%: 47.0 to 53.0); sft has 60.0% (95%: 57.0 to 63.0)."
    )


def test_the_figure_beside_an_answer_is_named():
    """Negative control: answers without one."""
    said = "The figure beside an answer is its score by gold."
    scored = [Sample("Why?", {"sft": ShownAnswer("Because.", 0.5), "ppo": ShownAnswer("So.")})]
    assert said in Page(html(replace(REPORT, samples=scored))).text
    bare = [Sample("Why?", {"sft": ShownAnswer("Because."), "ppo": ShownAnswer("So.")})]
    assert said not in Page(html(replace(REPORT, samples=bare))).text


def test_a_report_says_what_judges_pay_for():
    """In their own words, on the page and in the terminal; a long one is cut. Negative controls: a judge without words
    is not spoken of, nor is one that did not judge."""
    scored = [Sample("Why?", {"sft": ShownAnswer("Because.", 0.5)})]
    said = {"gold": "0.7 where right,\x1b[1m 0.3 if polite.", "fame": "1 if known."}
    report = replace(REPORT, judged=["gold", "correctness"], said=said, samples=scored)
    text = "In the judges' own words, gold: 0.7 where right,\\u001b[1m 0.3 if polite."
    page = Page(html(report)).text
    assert text in page and text in " ".join(table(report).split()) and "fame" not in page + table(report)
    assert "The figure beside an answer is its score by gold: 0.7 where right,\\u001b[1m 0.3 if polite." in page
    assert "own words" not in Page(html(REPORT)).text + table(REPORT)
    long = glossary.words_of(replace(report, said={"gold": "word " * 99}), "gold")
    assert len(long) == glossary.WORDS and long.endswith("…")


def test_legend_explains_rows_and_columns():
    text = glossary.legend(REPORT)
    for part in (
        "a row is a stage (base, sft, ppo)",
        "base is the model before all training",
        "their answers stand in columns of the data file (random_answers, best_possible)",
        "gold is the mean score that the first judge gives the answers; higher is better",
        "win rate vs sft says on how many prompts",
    ):
        assert part in text
    in_terminal = " ".join(table(REPORT).split())
    assert text in Page(html(REPORT)).text and f"{text} {glossary.others(REPORT)} {REPORT.note}" in in_terminal
    assert "base" not in glossary.legend(replace(REPORT, stages=["sft", "ppo"]))
    many = replace(REPORT, stages=[*REPORT.stages, "a", "b", "c"])
    assert glossary.legend(many).startswith("How to read this: a row is a stage; base is the model")


def test_what_stands_beside_the_headline_is_explained():
    """In five lines of what the quickstart measures, and only what is in the tables."""
    assert glossary.others(REPORT) == (
        "KL is how far answers have moved from sft, in nats per answer, an estimate. correctness: the mean score of "
        "another judge."
    )
    more = {"ppo/eos_rate": 0.99, "ppo/length": 11.0, "ppo/reward": 1.3, "ppo/manners": 0.5}
    full = replace(REPORT, metrics={**REPORT.metrics, **more}, judged=["gold", "correctness", "manners"])
    text = glossary.others(full)
    for part in (
        "ends with EOS says how many answers end by themselves",
        "reward is the mean score of the learned reward model",
        "correctness, manners: mean scores of other judges",
        "Look where reward and gold disagree: a reward that rises while gold falls is being exploited",
    ):
        assert part in text and part in Page(html(full)).text
    assert len(fill(text, WIDTH).splitlines()) <= 5 and fill(text, WIDTH) in table(full)
    alone = Report("t", ["sft"], {"sft/reward": 1.0}, headline="reward")
    assert glossary.others(alone) == "" and "disagree" not in table(alone)


def test_headline_outside_zero_and_one_is_a_plain_number():
    """A reward model's score is no share: bars start at 0, to the left where the value is below it."""
    report = Report("t", ["sft", "ppo"], {"sft/gold": -1.0, "ppo/gold": 3.0}, headline="gold")
    assert summary.verdict(report) == "Best by gold: ppo 3.00; sft has -1.00."
    drawn = re.findall(r'class="bar" x="([\d.]+)%" y="8" width="([\d.]+)%"', html(report))
    assert drawn == [("0.00", "25.00"), ("25.00", "75.00")] and '"grid" x1="25.00%"' in html(report)
    assert "█" not in table(report) and not re.search(r'"grid" x1="[\d.]+%"', html(REPORT))


def ends_drawn(source: str) -> list[tuple[float, float]]:
    found = re.findall(r'class="whisker"><line x1="([\d.]+)%" x2="([\d.]+)%"', source)
    return [(float(left), float(right)) for left, right in found]


def test_whiskers_end_where_their_intervals_do():
    """The axis holds every interval: from -0.592 to 1.95, of which the others' ends are (end + 0.592) / 2.542. Negative
    control: on an axis of the values alone, both ends would stand at the border, as those of a longer interval."""
    reward = {
        "sft/reward": 0.31,
        "sft/reward_ci95": [-0.592, 1.212],
        "ppo/reward": 1.57,
        "ppo/reward_ci95": [1.19, 1.95],
    }
    source = html(Report("t", ["sft", "ppo"], reward, headline="reward"))
    assert ends_drawn(source) == [(0.0, 70.97), (70.1, 100.0)]
    assert "<span>-0.592</span><span>1.95</span>" in source
    clipped = (str(plots.bar(Estimate(1.57, ends), 0.0, 1.57)) for ends in ((-0.592, 1.95), (-2.0, 9.0)))
    assert [ends_drawn(one) for one in clipped] == [[(0.0, 100.0)]] * 2


def test_a_score_whose_interval_leaves_a_share_is_none():
    """A mean over prompts of which some are below 0 lies in [0, 1], its interval need not: it is no share of anything,
    and drawn whole."""
    gold = {"sft/gold": 0.1, "sft/gold_ci95": [-0.25, 0.45], "ppo/gold": 0.9, "ppo/gold_ci95": [0.8, 1.0]}
    source = html(Report("t", ["sft", "ppo"], gold, headline="gold", judged=["gold"]))
    assert ends_drawn(source) == [(0.0, 56.0), (84.0, 100.0)] and "<span>-0.250</span><span>1.00</span>" in source


def test_an_interval_without_ends_is_not_drawn():
    assert ends_drawn(str(plots.bar(Estimate(0.5, (-math.inf, math.inf)), 0.0, 1.0))) == []
    assert plots.axis([Estimate(0.5, (-math.inf, 0.75))]) == (0.0, 0.75) and plots.axis([]) == (0.0, 1.0)


def test_missing_and_infinite_values_are_left_out():
    report = Report(
        "t",
        ["sft", "ppo"],
        {"sft/gold": math.nan, "ppo/gold": 0.5, "ppo/verdict": "same", "ppo/kl": None},
        headline="gold",
    )
    assert summary.measures(report) == ["gold"]
    assert summary.estimate(report, "sft", "gold") is None and summary.estimate(report, "ppo", "gold") == Estimate(0.5)


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [
        (0.703, True, "70.3%"),
        (1.0, True, "100%"),
        (0.9996, True, "100.0%"),
        (0.0, False, "0"),
        (5.874, False, "5.87"),
        (0.00123, False, "0.00123"),
        (12345.6, False, "12,346"),
    ],
)
def test_number(value, share, text):
    assert summary.number(value, share) == text


def test_duration_and_memory():
    assert [summary.duration(s) for s in (8.24, 92, 3599.7, 11100)] == [
        "8.2 s",
        "1 min 32 s",
        "1 h 00 min",
        "3 h 05 min",
    ]
    assert [summary.memory(s) for s in (720 * 2**20, 1.4 * 2**30)] == ["720 MiB", "1.40 GiB"]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.973, 0.991), (-3.2, 140.0), (5.0, 5.0), (0.0, 0.0), (1e-7, 3e-7)]
)
def test_ticks_cover_the_range_with_few_round_steps(low, high):
    found = plots.ticks(low, high)
    steps = [after - before for before, after in pairwise(found)]
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12 and 2 <= len(found) <= 7
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    assert re.match(r"[125]\.0000", f"{steps[0]:.4e}")
    assert len({plots.tick_label(tick, steps[0]) for tick in found}) == len(found), "labels tell the ticks apart"


def test_thinning_keeps_mean_and_extremes():
    points = [(float(step), float(step % 7)) for step in range(1000)]
    runs = plots.thin(points, buckets=50)
    assert len(runs) == 50 and runs[0] == (9.5, sum(step % 7 for step in range(20)) / 20, 0.0, 6.0)
    assert plots.thin(points[:60], buckets=50) == [(x, y, y, y) for x, y in points[:60]]


def test_a_held_out_curve_joins_its_training_curve():
    curves = {"sft": {"loss": [(1, 2.0), (2, 1.0)], "eval/loss": [(2, 1.5)], "eval/accuracy": [(1, 0.5), (2, 0.6)]}}
    page = Page(html(replace(REPORT, curves=curves)))
    assert page.text.count("dots: held out") == 1
    assert sum(value == "curve" for name, value in page.attributes if name == "class") == 2
    said = "set eval_steps or eval_epochs"
    looked = replace(REPORT, curves=curves, settings={"sft": [summary.Setting("eval_steps", "null")]})
    assert said not in page.text and said not in Page(html(looked)).text
    assert said in Page(html(replace(looked, curves={"sft": {"loss": curves["sft"]["loss"]}}))).text


def test_the_headline_is_one_sentence():
    """The rest of the verdict stands below, smaller."""
    page = html(REPORT)
    first, *rest = summary.sentences(REPORT)
    assert f'<p class="verdict">{first}</p>' in page and rest and f'<p class="note">{" ".join(rest)}</p>' in page


def test_names_are_whole_and_colours_are_told_apart():
    """No line breaks within `dpo.beta-0.1`; mark and name stand together; from the ninth row on marks are dashed.
    Negative control: fewer rows have none."""
    stages = [f"dpo.beta-{i}" for i in range(11)]
    metrics = {f"{name}/gold": 0.5 + i * 1e-6 for i, name in enumerate(stages)} | {
        f"{name}/gold_ci95": [0.4, 0.6] for name in stages
    }
    samples = [Sample("Why?", {name: ShownAnswer(name) for name in stages})]
    report = replace(REPORT, stages=stages, reference=stages[0], metrics=metrics, samples=samples)
    body = html(report).split("</style>")[1]
    heading = body.split("</h1>")[1].split("</header>")[0]
    parted = [name.replace("dpo.beta-", "dpo.<wbr>beta-<wbr>") for name in stages[-3:]]
    assert all(f'<span class="whole">{name}</span> 50.0%' in heading for name in parted)
    assert "not told apart as their intervals overlap" in heading and "equal" not in heading
    marks = re.findall(r'<span class="swatch( dashed)?" style="([^"]*)"></span>(dpo\.<wbr>beta-<wbr>\d+)', body)
    looks = {name: style for _, style, name in marks}
    assert len(set(looks.values())) == len(looks) == 11
    assert {name.replace("<wbr>", "") for dashed, _, name in marks if dashed} == set(stages[8:])
    few = html(replace(report, stages=stages[:8])).split("</style>")[1]
    assert "swatch dashed" not in few
