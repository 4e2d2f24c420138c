"""`align ls --show --sort`: columns by name, on a store made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.ground.errors import InputError
from align.ground.terminal import overheard
from align.report.columns import reports, shown_table, with_columns
from align.report.lists import ls_rows, ls_table
from align.store import Store, digest_json
from tests.conftest import run_align
from tests.store.conftest import fill, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """sft, and two DPO runs on it; one name is damaged."""
    store = Store(tmp_path / "store")
    sft = put(store, fill(tmp_path / "sft", {"weights": b"sft"}), metrics={"loss": 2.5})
    store.tag("q/sft", sft)
    for beta, accuracy in ((0.05, 0.9), (0.5, 0.75)):
        config = {"beta": beta, "loss": "sigmoid", "adapter": {"rank": 8}}
        metrics = {"rewards/accuracies": accuracy, "loss": beta}
        folder = fill(tmp_path / f"dpo{beta}", {"weights": str(beta).encode()})
        made = put(store, folder, stage="dpo", config=config, metrics=metrics, parents={"parent": sft})
        store.tag(f"q/dpo.beta-{beta}", made)
        with store.run(digest_json(beta)) as run:
            run.finish(made, {"seconds": 60 * beta, "peak_memory_bytes": 2**30})
    store.tag("q/bad", sft)
    (store.path / "refs/q/bad").write_text("no digest")
    return store


def shown(store: Store, show: list[str], sort: str | None = None, *, reverse: bool = False) -> list[list[str]]:
    rows, columns = with_columns(store, ls_rows(store), show, sort, reverse=reverse)
    return [line.split() for line in shown_table(rows, columns, None).splitlines()]


def test_columns_by_whole_name_or_its_end(store: Store):
    """Settings, figures, parents' names and costs; an artifact without one has nothing there."""
    assert shown(store, ["beta", "rank", "rewards/accuracies", "parent", "seconds", "stage"]) == [
        ["NAME", "beta", "rank", "rewards/accuracies", "parent", "seconds", "stage"],
        ["q/bad", "damaged:", "align", "verify"],
        ["q/dpo.beta-0.05", "0.05", "8", "0.9", "q/sft", "3.0", "s", "dpo"],
        ["q/dpo.beta-0.5", "0.5", "8", "0.75", "q/sft", "30.0", "s", "dpo"],
        ["q/sft", "sft"],
    ]
    assert shown(store, ["config.loss", "metrics.loss", "digest"])[2][1:] == [
        *("sigmoid", "0.05", store.resolve("q/dpo.beta-0.05").digest[:12])
    ]


@pytest.mark.parametrize(
    ("sort", "reverse", "expected"),
    [
        ("rewards/accuracies", False, ["dpo.beta-0.5", "dpo.beta-0.05", "bad", "sft"]),
        ("rewards/accuracies", True, ["dpo.beta-0.05", "dpo.beta-0.5", "bad", "sft"]),
        ("metrics.loss", False, ["dpo.beta-0.05", "dpo.beta-0.5", "sft", "bad"]),
        ("name", True, ["sft", "dpo.beta-0.5", "dpo.beta-0.05", "bad"]),
        (None, False, ["bad", "dpo.beta-0.05", "dpo.beta-0.5", "sft"]),
    ],
)
def test_order(store: Store, sort: str | None, reverse: bool, expected: list[str]):
    """Numbers as numbers; what has no such thing stands last either way."""
    assert [line[0] for line in shown(store, ["beta"], sort, reverse=reverse)[1:]] == [f"q/{name}" for name in expected]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("betta", "no artifact here has a column betta; did you mean beta?"),
        ("reward/accuracies", "no artifact here has a column reward/accuracies; did you mean rewards/accuracies"),
        ("loss", "loss is config.loss and metrics.loss here; name one of them."),
        ("zzz", "no artifact here has a column zzz; `align show REF` lists what an artifact has."),
    ],
)
def test_unknown_columns_are_refused(store: Store, column: str, message: str):
    for show, sort in (([column], None), ([], column)):
        with pytest.raises(InputError) as error:
            with_columns(store, ls_rows(store), show, sort)
        assert str(error.value).startswith(message)


def test_what_reports_measured_is_a_column(store: Store, tmp_path: Path):
    """By its end or with its report's name, or the end of that; a name that is a figure of the artifact's own, too, is
    refused, and each is there by more of its name. Negative controls: without a report there is no such column, nor is
    a part of a word or of a figure's name an end."""
    with pytest.raises(InputError, match="no artifact here has a column gold"):
        shown(store, ["gold"], "gold")
    compared = {f"compare/{b}": store.resolve(f"q/dpo.beta-{b}") for b in (0.05, 0.5)}
    metrics = {"0.05/gold": 0.7, "0.5/gold": 0.2, "0.05/rewards/accuracies": 0.1}
    made = fill(tmp_path / "report", {"table.txt": b"x"})
    store.tag("q/report", put(store, made, kind="report", stage="evaluate", parents=compared, metrics=metrics))
    names = ["dpo.beta-0.5", "dpo.beta-0.05", "bad", "report", "sft"]
    with pytest.raises(InputError) as error:
        shown(store, ["rewards/accuracies"])
    told = "metrics.rewards/accuracies and reports.q/report.rewards/accuracies here; name one of them."
    assert str(error.value) == f"rewards/accuracies is {told}"
    by_report = shown(store, ["report.rewards/accuracies"], "report.rewards/accuracies")
    assert by_report[1] == ["q/dpo.beta-0.05", "0.1"]
    for wrong in ("port.gold", "accuracies", "5/gold"):  # a part of a word, of a figure's name, and of a number
        with pytest.raises(InputError, match=f"no artifact here has a column {wrong}"):
            shown(store, [wrong])
    for column in ("gold", "q/report.gold", "report.gold"):
        found = shown(store, [column, "metrics.rewards/accuracies"], column)[1:]
        assert [line[0] for line in found] == [f"q/{name}" for name in names]
        assert [line[1:] for line in found[:2]] == [["0.2", "0.75"], ["0.7", "0.9"]]


def test_figures_of_a_damaged_report_are_missed_aloud(store: Store, tmp_path: Path):
    """Its name and its manifest. Negative control: one that is sound."""
    made = fill(tmp_path / "report", {"table.txt": b"x"})
    compared = {"compare/sft": store.resolve("q/sft")}
    report = put(store, made, kind="report", stage="evaluate", parents=compared, metrics={"sft/gold": 0.7})
    store.tag("q/report", report)

    def told() -> tuple[list[str], list[str]]:
        with overheard() as said:
            found = [name for name, *_ in reports(store)]
        return found, [line.partition(" is damaged ")[0] for line in said]

    assert told() == (["q/report"], ["q/bad"])
    (store.path / "artifacts" / f"{report.digest}.json").write_text("{}")
    assert told() == ([], ["q/bad", "q/report"])


def test_each_artifact_has_its_own_report(store: Store, tmp_path: Path):
    """A figure of a report a seed is one column, never the judge's own file, in tables, orders and JSON; reports that
    give one artifact different figures are told, and each is there by its whole name (the controls)."""
    judge = {"judges": {"gold": f"{'4' * 64}:score"}}

    def report(name: str, beta: float, gold: float) -> None:
        made = fill(tmp_path / name, {"table.txt": name.encode()})
        compared = {"compare/dpo": store.resolve(f"q/dpo.beta-{beta}")}
        kind: Any = {"kind": "report", "stage": "evaluate", "parents": compared, "metrics": {"dpo/gold": gold}}
        store.tag(f"q/{name}/report", put(store, made, **kind, config=judge, data={"judges.gold": "4" * 64}))

    report("seed-0", 0.05, 0.7)
    report("seed-1", 0.5, 0.2)
    found = shown(store, ["gold"], "gold")[1:]
    assert found[:2] == [["q/dpo.beta-0.5", "0.2"], ["q/dpo.beta-0.05", "0.7"]]
    assert all(len(line) == 1 for line in found if line[0].endswith("report"))
    rows, _ = with_columns(store, ls_rows(store), ["gold"])
    assert {row["name"]: row["shown"]["gold"] for row in rows if "dpo" in row["name"]} == {
        "q/dpo.beta-0.05": 0.7,
        "q/dpo.beta-0.5": 0.2,
    }
    assert any("4444" in line[-1] for line in shown(store, ["config.judges.gold"])[1:])
    report("again", 0.5, 0.2)
    assert shown(store, ["gold"], "gold")[1] == ["q/dpo.beta-0.5", "0.2"]
    report("other", 0.5, 0.3)
    with pytest.raises(InputError, match=r"gold of q/dpo.beta-0.5 is 0.2 by reports.q/again/report.gold and 0.3 by "):
        shown(store, ["gold"])
    assert shown(store, ["q/other/report.gold"], "q/other/report.gold")[1] == ["q/dpo.beta-0.5", "0.3"]


def test_names_are_whole_and_tell_runs_apart(store: Store):
    """At any width: columns are left out with a word, else stand below. In a pipe (the control) all is in one line."""
    long = [f"betas/dpo.beta-0.{n}.loss-{loss}" for n in (1, 3) for loss in ("ipo", "sigmoid")]
    for name in long:
        store.tag(name, "q/sft")

    def lines(width: int | None, *, size: bool = False, show: list[str] | None = None) -> list[str]:
        (store.path / "refs/q/bad").unlink(missing_ok=True)
        rows, columns = with_columns(store, ls_rows(store, size=size), show or [])
        table = shown_table(rows, columns, width) if show else ls_table(store, rows, width, size=size)
        return table.splitlines()

    def rows_of(found: list[str]) -> list[str]:
        return found[: found.index("")] if "" in found else found

    targets = ["digest", "seconds", "rewards/accuracies", "stage", "kind"]
    for width in (50, 60, 80):
        for found in (lines(width), lines(width, size=True), lines(width, show=targets)):
            assert max(map(len, rows_of(found))) <= width
            assert all(sum(line.split()[:1] == [name] for line in found) == 1 for name in long)
    assert lines(80)[0].split() == ["NAME", "KIND", "STAGE", "SIZE", "CREATED", "(UTC)"]
    assert lines(80)[-1] == "Too narrow for DIGEST; --json has all."
    assert [line.split()[0] for line in lines(50)[:3]] == ["NAME", "KIND", long[0]] and lines(50)[0] == "NAME"
    assert "Too narrow" not in "".join(lines(None)) and len(lines(None)) == 8


def test_the_command(store: Store):
    """Patterns, JSON and the errors as they are typed; a damaged name is told all the same."""
    flags = ["--store", store.path]
    rows = json.loads(run_align("ls", "q/dpo*", "--show", "beta,parent", "--json", *flags, code=1).stdout)
    assert [row["shown"] for row in rows] == [{"beta": b, "parent": "q/sft"} for b in (0.05, 0.5)]
    assert "refs/q/bad is damaged" in run_align("ls", "--show", "beta", "--sort", "beta", *flags, code=1).stderr
    assert "did you mean beta?" in run_align("ls", "--show", "bta", *flags, code=2).stderr
    assert "no name in" in run_align("ls", "z*", *flags, code=2).stderr
    assert "is no name and no digest" in run_align("ls", "q/dop", *flags, code=2).stderr
    assert "name a column" in run_align("ls", "--reverse", *flags, code=2).stderr
    (store.path / "refs/q/bad").unlink()
    assert len(run_align("ls", *flags).stdout.splitlines()) == 4  # the control
