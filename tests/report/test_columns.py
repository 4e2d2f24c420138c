"""`align ls --show --sort`: columns by name, on a store made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.ground.errors import InputError
from align.report.columns import shown_table, with_columns
from align.report.lists import ls_rows
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


def test_the_command(store: Store):
    """Patterns, JSON and the errors as they are typed; a damaged name is told all the same."""
    flags = ["--store", store.path]
    rows = json.loads(run_align("ls", "q/dpo*", "--show", "beta,parent", "--json", *flags, code=1).stdout)
    assert [row["shown"] for row in rows] == [{"beta": b, "parent": "q/sft"} for b in (0.05, 0.5)]
    assert "refs/q/bad is damaged" in run_align("ls", "--show", "beta", "--sort", "beta", *flags, code=1).stderr
    assert "did you mean beta?" in run_align("ls", "--show", "bta", *flags, code=2).stderr
    assert "no name in" in run_align("ls", "z*", *flags, code=2).stderr
    assert "is no ref and no digest" in run_align("ls", "q/dop", *flags, code=2).stderr
    assert "name a column" in run_align("ls", "--reverse", *flags, code=2).stderr
    (store.path / "refs/q/bad").unlink()
    assert len(run_align("ls", *flags).stdout.splitlines()) == 4  # the control
