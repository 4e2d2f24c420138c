"""`align` on a store: gc, rm, tag, diff, ls --size, lineage and verify, as they are typed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

from align.cli import dispatch
from align.evaluation.combine import combine, combined_text
from align.evaluation.unlike import unlike
from align.ground.disk import make_folder
from align.ground.errors import InputError
from align.report.diff import diff_text
from align.report.lists import lineage_text, ls_table
from align.store import Artifact, Store, digest_json
from tests.conftest import run_align
from tests.store.conftest import fill, put
from tests.store.remotes import make
from tests.store.test_store import contents


def loaded(store: Store, *words: str) -> Any:
    return json.loads(run_align(*words, "--json", "--store", store.path).stdout)


def test_gc_is_dry_until_told(store: Store, family: dict[str, Artifact], tmp_path: Path):
    junk = put(store, fill(tmp_path / "junk", {"weights": b"12345"}))
    freed = store.manifest_path(junk.digest).stat().st_size + 5
    before = contents(store.path)
    dry = run_align("gc", "--store", store.path).stdout
    assert f"Nothing was removed: `align gc --delete` frees {freed} B." in dry and contents(store.path) == before
    for text in (
        f"adapter by sft  {junk.short}  5 B",
        "1 artifact that no name reaches",
        "1 object that no artifact needs",
    ):
        assert text in dry
    assert loaded(store, "gc")["artifacts"] == [junk.digest]
    assert f"Removed: {freed} B." in run_align("gc", "--delete", "--store", store.path).stdout
    assert set(store.artifacts()) == set(family.values()) and store.verify() == []
    assert run_align("gc", "--store", store.path).stdout == f"{store.path}: nothing to remove.\n"
    with store.run("a" * 64) as run:
        fill(run.checkpoints, {"checkpoint-1/state": b"123"})
    assert (
        "Kept: checkpoints of a stopped run, 3 B; --checkpoints gives them up."
        in run_align("gc", "--store", store.path).stdout
    )
    assert loaded(store, "gc", "--checkpoints")["others"] == [str(store.path / "runs" / ("a" * 64))]
    store.cached("b" * 64, lambda: b"log-probs")
    store.cached("c" * 64, lambda: b"log-probs")
    assert "2 leftovers (caches, runs, unfinished files)" in run_align("gc", "--store", store.path).stdout


def test_rm_says_what_depends_on_it(store: Store, family: dict[str, Artifact]):
    """sft and reward are needed by dpo; when dpo's name goes too, all three can be collected, and nothing else was
    touched."""
    before = contents(store.path)
    done = run_align("rm", "quickstart/sft", "--store", store.path).stdout
    assert (
        done == f"removed quickstart/sft  {family['sft'].short}\n  still needed by quickstart/dpo, quickstart/reward\n"
    )
    assert before.keys() - contents(store.path).keys() == {"refs/quickstart/sft"}
    wrong = run_align("rm", "quickstart/dpo", "quickstart/rewards", "--store", store.path, code=2).stderr
    assert wrong.startswith("'quickstart/rewards' is no name and no digest") and "quickstart/dpo" in store.refs(), (
        "all or nothing"
    )
    done = run_align("rm", "quickstart/dpo", "quickstart/reward", "--store", store.path).stdout
    assert (
        "still needed" not in done
        and "3 artifacts that no name reaches now, 47 B: `align gc` shows what can go." in done
    )
    assert store.refs() == {} and len(list(store.artifacts())) == 3


def test_rm_lists_what_a_pattern_stands_for(store: Store, family: dict[str, Artifact]):
    """As `ls` and `compare` take it, and nothing is removed without --delete; what names only begin with is no name."""
    listed = run_align("rm", "quickstart/[rs]*", "--store", store.path)
    names = [line.split()[0] for line in listed.stdout.splitlines()[1:]]
    assert names == ["quickstart/reward", "quickstart/sft"] and len(store.refs()) == 3
    assert listed.stderr == "Nothing is removed yet: --delete takes these names away.\n"
    done = run_align("rm", "quickstart/[rs]*", "--delete", "--store", store.path).stdout
    assert done.count("removed ") == 2 and [*store.refs()] == ["quickstart/dpo"]
    assert "no name in" in run_align("rm", "quickstart/[rs]*", "--delete", "--store", store.path, code=2).stderr
    store.tag("sweep.a-1", family["sft"])
    assert "write 'sweep.*', in quotes" in run_align("rm", "sweep", "--store", store.path, code=2).stderr


def test_tag_moves_a_name(store: Store, family: dict[str, Artifact]):
    first = run_align("tag", "quickstart/sft", "best", "--store", store.path)
    assert first.stdout == f"best {family['sft'].digest}\n" and first.stderr == ""
    moved = run_align("tag", family["dpo"].digest[:12], "best", "--store", store.path)
    assert moved.stdout == f"best {family['dpo'].digest}\n" and family["sft"].digest in moved.stderr
    assert store.resolve("best") == family["dpo"]
    assert "is no name and no digest" in run_align("tag", "nothing", "best", "--store", store.path, code=2).stderr
    assert "cannot be a ref" in run_align("tag", "best", "../best", "--store", store.path, code=2).stderr
    assert store.resolve("best") == family["dpo"] and not list((store.path / "holds").iterdir())


def test_a_damaged_name_hides_no_other(store: Store, family: dict[str, Artifact]):
    """It is listed and named, and the others can be listed and removed; a whole store (the control) is listed with
    0."""
    assert "damaged" not in run_align("ls", "--store", store.path).stdout
    (store.path / "refs/quickstart/dpo").write_text("no digest")
    listed = run_align("ls", "--store", store.path, code=1)
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["quickstart/dpo", "damaged"],
        ["quickstart/reward", "reward"],
        ["quickstart/sft", "adapter"],
    ]
    assert "refs/quickstart/dpo is damaged" in listed.stderr
    assert run_align("rm", "quickstart/reward", "--store", store.path).stdout.startswith("removed quickstart/reward")
    assert "which was damaged" in run_align("rm", "quickstart/dpo", "--store", store.path).stdout
    run_align("ls", "--store", store.path)


def test_ls_says_what_a_name_costs(store: Store, family: dict[str, Artifact], tmp_path: Path):
    """By hand. weights: sft 11 B, reward 14 B, dpo 11 B; head 5 B; tokenizer 6 B once for all. dpo reaches all, reward
    also sft."""
    rows = {row["name"]: (row["size"], row["alone"], row["shared"]) for row in loaded(store, "ls", "--size")}
    assert rows == {"quickstart/dpo": (17, 11, 36), "quickstart/reward": (25, 0, 36), "quickstart/sft": (17, 0, 17)}
    assert "alone" not in loaded(store, "ls")[0]
    objects = [path for path in store.path.glob("objects/*/*") if path.read_bytes() == b"shared"]
    assert len(objects) == 1, "equal files are one object"
    store.untag("quickstart/sft")
    store.untag("quickstart/reward")
    assert [(row["alone"], row["shared"]) for row in loaded(store, "ls", "--size")] == [(47, 0)]
    table = ls_table(store, size=True).splitlines()
    assert table[0].split() == ["NAME", "KIND", "STAGE", "DIGEST", "SIZE", "ALONE", "SHARED"]
    assert table[1].split()[4:] == ["17", "B", "47", "B", "0", "B"] and table[-2].startswith("47 B in all.")
    store.folder(put(store, fill(tmp_path / "junk", {"weights": b"123"})))
    assert ls_table(store, size=True).splitlines()[-2].startswith("50 B in all."), "with what no name reaches"


@pytest.fixture
def pair(store: Store, family: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two reward models that differ in a setting, the data, metrics, parents, text contract, cost and files."""
    monkeypatch.setattr("align.store.run.time.strftime", lambda *_: "2026-11-28T12:00:00Z")
    made = []
    for number, rate in enumerate((2e-4, 1e-4)):
        files = {"weights": str(number).encode(), "same": b"same", **({"head": b"score"} if number else {})}
        artifact = put(
            store,
            fill(tmp_path / f"pair{number}", files),
            kind="reward",
            stage="reward",
            config={"learning_rate": rate, "adapter": {"rank": 8, **({"alpha": 16} if number else {})}, "seed": 0},
            data={"data": digest_json(number)},
            parents={"parent": family["sft"] if number else family["dpo"]},
            text={"eos": 2 + number, "tokenizer": "a" * 64},
            metrics={"eval/accuracy": 0.75 + number / 8, "eval/same": 1.0},
        )
        store.tag(f"r{number}", artifact)
        with store.run(digest_json(f"pair{number}")) as run:
            run.finish(
                artifact,
                {"seconds": 60.0 + 30 * number, "peak_memory_bytes": 900_000_001 + 99_999_999 * number, "host": "here"},
            )
        made.append(f"r{number}")
    return made[0], made[1]


def test_diff(store: Store, family: dict[str, Artifact], pair: tuple[str, str]):
    found = loaded(store, "diff", *pair)
    assert (found["a"]["name"], found["b"]["digest"]) == ("r0", store.resolve("r1").digest)
    assert found["config"] == {"learning_rate": {"a": 2e-4, "b": 1e-4}, "adapter.alpha": {"b": 16}}
    assert found["data"] == {"data": {"a": digest_json(0), "b": digest_json(1)}} and found["base"] == {}
    assert found["parents"] == {"parent": {"a": family["dpo"].digest, "b": family["sft"].digest}}
    assert found["text"] == {"eos": {"a": 2, "b": 3}}
    assert found["metrics"] == {"eval/accuracy": {"a": 0.75, "b": 0.875, "difference": 0.125}}
    same = {"config": 2, "data": 0, "base": 4, "text": 1, "parents": 0, "metrics": 1, "files": 1}
    assert found["same"] == {"made by": 3, **same, "cost": 2}  # the cost's host and time
    assert found["cost"]["seconds"] == {"a": 60.0, "b": 90.0, "difference": 30.0} and "host" not in found["cost"]
    assert found["files"].keys() == {"weights", "head"} and found["files"]["head"].keys() == {"b"}
    lines = diff_text(store, *pair).splitlines()
    for line in (
        "config   adapter.alpha  absent  ->  16",
        "         learning_rate  0.0002  ->  0.0001",
        "metrics  eval/accuracy  0.75  ->  0.875  (+0.125)",
        "cost     peak_memory_bytes  900000001  ->  1000000000  (+99999999)",
        "         seconds            60         ->  90          (+30)",
        f"parents  parent  quickstart/dpo  {family['dpo'].short}  ->  quickstart/sft  {family['sft'].short}",
        "files    head     only in b",
        "         weights  changed",
        "same: config 2, base 4, text 1, metrics 1, files 1, cost 2",
    ):
        assert line in lines
    same = run_align("diff", "r0", store.resolve("r0").digest[:12], "--store", store.path).stdout
    assert same == f"r0 and r0 are one artifact, {store.resolve('r0').short}.\n"
    assert all(
        loaded(store, "diff", "r0", "r0")[section] == {} for section in ("config", "metrics", "files", "cost")
    ), "the control"
    assert "is no name" in run_align("diff", "r0", "nothing", "--store", store.path, code=2).stderr


def test_terminals_have_lines_of_their_width(store: Store, tmp_path: Path):
    """What seeds with long names give, and how two differ. Negative control: without a width all is in one line."""
    names = [f"study/seed-{seed}.learning_rate-0.0001/report" for seed in range(3)]
    for seed, name in enumerate(names):
        metrics = {f"dpo.beta-0.1/{figure}": 0.123456 + seed for figure in ("gold", "win_rate_vs_sft")}
        folder = fill(tmp_path / f"seed{seed}", {"weights": name.encode()})
        config = {"seed": seed, "judge": "a" * 200 + str(seed)}
        made = put(store, folder, stage="evaluate", config={"seed": seed}, metrics=metrics)
        store.tag(name, made)
        more = fill(tmp_path / f"more{seed}", {"weights": name.encode() + b"2"})
        store.tag(f"long-{seed}", put(store, more, config=config, text={"template": f"{seed}" + "x" * 100}))
    lines = combined_text(*combine(store, names), names, 80).splitlines()
    assert max(map(len, lines)) <= 80 and lines[:3] == [
        f"{letter}  {name}" for letter, name in zip("ABC", names, strict=True)
    ]
    (gold,) = (line for line in lines if line.startswith("dpo.beta-0.1/gold"))
    assert "1.123" in gold and any(line.split()[:1] == ["dpo.beta-0.1/win_rate_vs_sft"] for line in lines)
    assert max(map(len, combined_text(*combine(store, names), names, 400).splitlines())) > 80
    narrow = combined_text(*combine(store, names), names, 64).splitlines()
    assert max(map(len, narrow)) <= 64 and narrow[:3] == lines[:3]
    mean, values = (line.split() for line in narrow if line.startswith("dpo.beta-0.1/gold"))
    assert mean[1] == "1.123" and "to" in mean and values[1:] == ["0.1235", "1.123", "2.123"]
    assert ["A", "B", "C"] in [line.split() for line in narrow]
    assert max(map(len, diff_text(store, "long-0", "long-1", 80).splitlines())) <= 80
    for seed in (0, 1):  # whose figures are whole beside an interval, which has a line of its own
        figures = {"eval/accuracy": 0.813264 + seed / 100, "eval/accuracy_ci95": [0.796461, 0.828977 + seed / 100]}
        metrics = figures | {"eval/length_baseline_accuracy": 0.542757, "rewards/rejected": -0.617987 - seed}
        store.tag(f"dpo-{seed}", put(store, fill(tmp_path / f"dpo{seed}", {"w": b"%d" % seed}), metrics=metrics))
    found = [" ".join(line.split()) for line in diff_text(store, "dpo-0", "dpo-1", 64).splitlines()]
    assert "rewards/rejected -0.617987 -> -1.61799 (-1)" in found
    assert "eval/accuracy_ci95 [0.796461, 0.828977] -> [0.796461, 0.838977]" not in found, (
        "the control: at 64 it is cut"
    )
    at_80 = [" ".join(line.split()) for line in diff_text(store, "dpo-0", "dpo-1", 80).splitlines()]
    assert "eval/accuracy_ci95 [0.796461, 0.828977] -> [0.796461, 0.838977]" in at_80
    assert max(map(len, diff_text(store, "long-0", "long-1").splitlines())) > 80


def test_lineage_shows_base_and_data_that_are_artifacts(store: Store, tmp_path: Path):
    base = put(
        store,
        fill(tmp_path / "base", {"model/config.json": b"{}"}),
        kind="model",
        stage="pretrain",
        base=None,
        data={"data": "7" * 64},
    )
    on_base = {"model": f"artifact:{base.digest}", "revision": None, "digest": base.digest, "quantize": None}
    sft = put(store, fill(tmp_path / "sft", {"weights": b"sft"}), base=on_base)
    pairs = put(
        store,
        fill(tmp_path / "pairs", {"data.jsonl": b"{}"}),
        kind="data",
        stage="pairs",
        base=on_base,
        parents={"parent": sft},
    )
    read = {"data": pairs.files["data.jsonl"]["sha256"]}
    dpo = put(
        store,
        fill(tmp_path / "dpo", {"weights": b"dpo"}),
        stage="dpo",
        base=on_base,
        parents={"parent": sft},
        data=read,
    )
    for artifact in (base, sft, dpo):
        store.tag(f"q/{artifact.stage}", artifact)
    assert (
        lineage_text(store, "q/dpo")
        == f"""\
q/dpo  adapter by dpo  {dpo.short}
├─ parent: q/sft  adapter by sft  {sft.short}
│  └─ base: q/pretrain  model by pretrain  {base.short}
│     └─ data: sha256 777777777777
└─ data, equal to: {pairs.short}  data by pairs
   └─ parent: q/sft  adapter by sft  {sft.short}  (above)"""
    )
    found = loaded(store, "lineage", "q/dpo")
    assert found["artifact"] == dpo.digest and found["artifacts"].keys() == {a.digest for a in (base, sft, pairs, dpo)}
    assert found["artifacts"][dpo.digest]["data_artifacts"] == {"data": pairs.digest} and found["artifacts"][
        sft.digest
    ]["names"] == ["q/sft"]


def test_rows_that_were_turned_round_and_back_are_no_circle(store: Store, tmp_path: Path):
    """Two rows mixed twice may stand as they stood: each is made of the other by its content, and told once; of what
    none was made of them there is no more to tell (negative control)."""
    rows = {name: fill(tmp_path / name, {"data.jsonl": name.encode()}) for name in ("ab", "ba", "c")}
    of = {name: hashlib.sha256(name.encode()).hexdigest() for name in rows}
    ab, ba, c = (
        put(store, rows[name], kind="data", stage="mix", base=None, data={"data": of[source]})
        for name, source in (("ab", "ba"), ("ba", "ab"), ("c", "ab"))
    )
    assert lineage_text(store, ab).splitlines() == [
        f"{ab.short}  data by mix",
        f"└─ data, equal to: {ba.short}  data by mix",
        f"   └─ data: sha256 {of['ab'][:12]}",
    ]
    assert len(lineage_text(store, c).splitlines()) == 4


def test_a_long_line_of_diamonds_is_walked_once(store: Store, tmp_path: Path):
    """Each of 40 artifacts has the two before it as parents: some 10⁸ paths, 40 nodes."""
    folder = fill(tmp_path / "files", {"weights": b""})
    made = [put(store, folder, version=n) for n in range(2)]
    while len(made) < 40:
        made.append(put(store, folder, version=len(made), parents={"parent": made[-1], "reward": made[-2]}))
    assert len(lineage_text(store, made[-1]).splitlines()) == 1 + 2 * 38 + 2
    store.tag("last", made[-1])
    assert store.collect().artifacts == []


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_of_no_store_nothing_is_said_to_be_well(command: str, tmp_path: Path):
    done = run_align(command, "--store", tmp_path / "mistyped", code=2)
    assert (
        done.stdout == ""
        and done.stderr == f"there is no store at {tmp_path / 'mistyped'}. Name one (--store, $ALIGN_STORE).\n"
    )
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "--store", ""], "the store's name is empty"),
        (["ls", "--store", "file/st"], "/file is a file. Expected a folder for the store"),
        (["pull", "", "--store", "st"], "the remote's address is empty"),
    ],
)
def test_places_that_cannot_be(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(InputError, match=message):
        dispatch(words)
    assert not Path("st").exists() and not Path(".align").exists()


def test_folders_that_cannot_be(store: Store, tmp_path: Path):
    with pytest.raises(InputError, match="/proc/nowhere: no folder can be made in /proc"):
        make_folder(Path("/proc/nowhere"))
    (tmp_path / "file").touch()
    store.tag("x", make(store, tmp_path, 1))
    with pytest.raises(InputError, match=r"file is a file. Expected a URL"):
        store.push(tmp_path / "file")


def test_no_share_is_combined_beyond_its_ends(store: Store, tmp_path: Path):
    """Whatever the share is called, at both ends; each would go on without them. Negative controls: a margin, and what
    has a share's name and is none."""
    high, low = (0.79, 0.9, 0.99), (0.01, 0.1, 0.21)
    cut = {"rewards/accuracies": high, "eval/accuracy": low, "eos_rate": high, "ppo/win_rate_vs_sft": low}
    cut |= {"clip_fraction": low, "sft/greedy_agreement": high, "sft/kl": low, "reward/calibration_error": low}
    free = {"rewards/margins": high, "odd_rate": (0.5, 0.9, 1.1), "kl": (0.1, 0.9, 1.7)}
    for seed in range(3):
        metrics = {name: values[seed] for name, values in {**cut, **free}.items()}
        store.tag(f"seed-{seed}", put(store, fill(tmp_path / str(seed), {"w": bytes([seed])}), metrics=metrics))
    found, _ = combine(store, ["seed-0", "seed-1", "seed-2"])
    ends = {name: figure.interval or (0.0, 0.0) for name, figure in found.items()}
    assert {ends[name][1] for name, values in cut.items() if values is high} == {1.0}
    assert {ends[name][0] for name, values in cut.items() if values is low} == {0.0}
    assert all(ends[name][1] > 1 for name in free)


def test_data_that_each_seed_made_are_alike(store: Store, tmp_path: Path):
    """Pairs sampled within the recipe, from each seed's own sft and base, are those of one thing, whatever they hold;
    what reports measure on them is combined without a word. Negative controls: a setting of what made them, the stage
    that did, and a file of another content are named."""

    def made(name: str, seed: int, n: int = 2, prompts: str = "5" * 64) -> Artifact:
        def one(stage: str, **changes: Any) -> Artifact:
            rows = fill(tmp_path / name / stage, {"data.jsonl" if stage == "pairs" else "w": f"{name}{stage}".encode()})
            return put(store, rows, stage=stage, **({"config": {"seed": seed}} | changes))

        base = one("pretrain", kind="model", base=None, data={"data": "7" * 64})
        on = {"model": f"artifact:{base.digest}", "revision": None, "digest": base.digest, "quantize": None}
        sft = one("sft", base=on)
        about = {"parents": {"parent": sft}, "data": {"data": prompts}, "base": on}
        pairs = one("pairs", kind="data", config={"seed": seed, "n": n}, **about)
        sha = pairs.files["data.jsonl"]["sha256"]
        dpo = one("dpo", parents={"parent": sft}, data={"data": sha}, base=on, metrics={"loss": seed})
        store.tag(name, dpo)
        return dpo

    runs = [made(f"seed-{seed}", seed) for seed in range(3)]
    assert len({run.data["data"] for run in runs}) == 3 and unlike(store, runs) == []
    said = "these runs differ in more than their seed: {}; their spread is not that of seeds alone"
    assert unlike(store, [*runs, made("other-n", 3, n=4)]) == [said.format("pairs.n")]
    prompts = [*runs, made("other-prompts", 3, prompts="6" * 64)]
    assert unlike(store, prompts) == [said.format(f"pairs.data ({'5' * 12} and {'6' * 12})")]
    plain = put(
        store, fill(tmp_path / "plain", {"w": b"plain"}), stage="dpo", data={"data": "8" * 64}, base=runs[0].base
    )
    data = f"dpo.data ({runs[0].data['data'][:12]} and {'8' * 12})"
    assert unlike(store, [runs[0], plain]) == [said.format(f"{data}, dpo.parent")]
    reports = []
    for name, run in (("seed-0", runs[0]), ("seed-1", runs[1]), ("other-n", store.resolve("other-n"))):
        folder = fill(tmp_path / f"report-{name}", {"t": name.encode()})
        reports.append(put(store, folder, kind="report", stage="evaluate", parents={"compare/dpo": run}))
    assert unlike(store, reports) == [said.format("pairs.n")] and unlike(store, reports[:2]) == []


def test_what_reports_measured_is_combined(store: Store, tmp_path: Path):
    """Of seeds within a stage one report has all figures; each run takes its own, whatever another report says of one
    of them. Negative controls: where two of all runs differ both are told in full, and without a report there is
    nothing of one."""
    runs = {
        f"dpo.seed-{i}": put(store, fill(tmp_path / str(i), {"w": bytes([i])}), metrics={"loss": 1.0}) for i in range(3)
    }
    for name, run in runs.items():
        store.tag(f"two/{name}", run)
    found, others = combine(store, list(runs.values()))
    assert [*found] == ["loss"] and others == []
    gold = dict(zip(runs, (0.7, 0.9, 0.98), strict=True))

    def report(place: str, gold: dict[str, float], low: float = 0) -> None:
        metrics = {f"{name}/gold": value for name, value in gold.items()} | {
            f"{name}/gold_ci95": [low, 1] for name in gold
        }
        about = {"stage": "evaluate", "kind": "report", "config": {"judges": {"gold": "judge.py:gold"}}, "data": {}}
        compared = {f"compare/{name}": runs[name] for name in gold}
        files = fill(tmp_path / place, {"table.txt": place.encode()})
        store.tag(f"{place}/report", put(store, files, parents=compared, metrics=metrics, **about))

    report("two", gold)
    found, others = combine(store, list(runs.values()))
    assert [*found] == ["report/gold", "loss"] and others == []
    assert found["report/gold"].values == tuple(gold.values()) and found["report/gold"].interval[1] == 1.0  # a share
    report("again", {"dpo.seed-1": 0.5})
    found, others = combine(store, list(runs.values()))
    assert found["report/gold"].values == tuple(gold.values()) and others == ["again/report/gold"]
    report("third", dict.fromkeys(gold, 0.3))
    found, others = combine(store, list(runs.values()))
    assert [*found] == ["third/report/gold", "two/report/gold", "loss"] and others == ["again/report/gold"]
    # by the names of its own seeds each run has its own report, whatever another one says; and is no share where one
    # interval says that scores may be negative
    for i, run in enumerate(runs.values()):
        store.tag(f"seed-{i}/dpo", run)
        report(f"seed-{i}", {[*runs][i]: 0.1 * (i + 1)}, low=-0.5 * (i == 1))
    for name in ("again", "third", "two"):
        store.untag(f"{name}/report")
    report("elsewhere", {"dpo.seed-1": 0.5})
    found, others = combine(store, [f"seed-{i}/dpo" for i in range(3)])
    assert found["report/gold"].values == pytest.approx((0.1, 0.2, 0.3)) and others == ["elsewhere/report/gold"]
    assert found["report/gold"].interval[0] == pytest.approx(0.2 - 4.3026527 * 0.1 / 3**0.5, abs=1e-4)


def test_verify_names_what_descends(store: Store, family: dict[str, Artifact]):
    path = store.object_path(family["sft"].files["weights"]["sha256"])
    path.chmod(0o644)
    path.write_bytes(b"SFT weights")
    found = run_align("verify", "--store", store.path, code=1).stderr
    assert str(path) in found and "needed by  quickstart/sft\n" in found and "run quickstart/sft again" in found
    assert (
        "made from  quickstart/dpo, quickstart/reward\n" in found
        or "made from  quickstart/reward, quickstart/dpo\n" in found
    )


def test_combine(store: Store, family: dict[str, Artifact], tmp_path: Path):
    """Student's interval over runs, as scipy has it; the figure that only one run has is named; where all agree, and of
    two runs, there is none. Negative control: one run has no spread."""
    shares = (0.75, 0.72, 0.78)
    for number, share in enumerate(shares):
        more = {"dpo/extra": 1.0} if number == 1 else {}
        metrics = {"ppo/win_rate_vs_sft": share, "ppo/win_rate_vs_sft_ci95": [0.7, 0.8], "sft/length": 11.0, **more}
        made = put(
            store,
            fill(tmp_path / str(number), {"report.html": str(number).encode()}),
            kind="report",
            stage="evaluate",
            metrics=metrics,
        )
        store.tag(f"seed-{number}", made)
    whole = loaded(store, "combine", "seed-0", "seed-1", "seed-2")
    found = whole.pop("figures")
    assert whole == {"runs": [f"seed-{i}" for i in range(3)], "not_of_every_run": ["dpo/extra"], "notes": []}
    assert [*found] == ["ppo/win_rate_vs_sft", "sft/length"] and found["ppo/win_rate_vs_sft"]["values"] == list(shares)
    expected = stats.t.interval(0.95, 2, fmean(shares), stats.sem(shares))
    assert found["ppo/win_rate_vs_sft"]["interval"] == pytest.approx(list(expected), abs=1e-6) and expected[0] < 0.7
    lines = run_align("combine", "seed-0", "seed-1", "seed-2", "--store", store.path).stdout.splitlines()
    assert lines[1].split() == ["ppo/win_rate_vs_sft", "0.75", "0.6755", "to", "0.8245", "0.75", "0.72", "0.78"]
    assert lines[2].split() == ["sft/length", "11", "all", "equal", "11", "11", "11"]
    assert lines[3:] == ["95 %: Student's interval of the mean, over these 3 runs.", "not of every run: dpo/extra"]
    assert found["sft/length"]["interval"] is None
    assert not run_align("combine", "seed-0", "seed-1", "--store", store.path).stderr
    two = loaded(store, "combine", "seed-0", "seed-1")["figures"]["ppo/win_rate_vs_sft"]
    assert two == {"values": [0.75, 0.72], "mean": 0.735, "interval": None}
    said = combined_text(*combine(store, ["seed-0", "seed-1"]), ["seed-0", "seed-1"], 80)
    assert "95 %" not in said and "all equal" not in said and "Two runs give no interval" in said
    more = {"n": {"config": {"learning_rate": 2e-4, "n": 4}}, "data": {"data": {"data": "1" * 64}}}
    for name, changes in more.items():
        given = {"kind": "report", "stage": "evaluate", "metrics": {"ppo/win_rate_vs_sft": 0.05}} | changes
        store.tag(
            f"other-{name}", put(store, fill(tmp_path / f"other-{name}", {"report.html": name.encode()}), **given)
        )
    refused = run_align("combine", "seed-0", "other-n", "--store", store.path, code=2).stderr
    assert "seed-0 and other-n differ in their settings n, so they are no two runs of one thing" in refused
    apart = run_align("combine", "seed-0", "seed-1", "other-data", "--json", "--store", store.path)
    store.tag(
        "bare",
        put(store, fill(tmp_path / "bare", {"report.html": b"bare"}), kind="report", stage="evaluate", metrics={}),
    )
    assert (
        "seed-0 and bare have no figure in common"
        in run_align("combine", "seed-0", "bare", "--store", store.path, code=2).stderr
    )
    said = "these runs differ in more than their seed: evaluate.data (none and 111111111111);"
    assert said in apart.stderr and json.loads(apart.stdout)["notes"][0].startswith(said)
    # Student's ends far outside of a share's 0 and 1
    assert json.loads(apart.stdout)["figures"]["ppo/win_rate_vs_sft"]["interval"] == [0.0, 1.0]
    wrong = {
        "one run has no spread": [],
        "given twice": ["seed-0"],
        "seed-0 is made by evaluate, quickstart/sft by sft": ["quickstart/sft"],
    }
    for words, others in wrong.items():
        assert words in run_align("combine", "seed-0", *others, "--store", store.path, code=2).stderr


def test_a_store_that_was_named_and_is_not_there(tmp_path: Path):
    """Negative controls: a folder that is there and holds nothing yet, and the usual store before anything is made."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "mistyped", tmp_path / "data"):
        for done in (
            run_align("ls", "--store", wrong, code=2),
            run_align("ls", code=2, store=wrong),
        ):
            assert done.stdout == "" and done.stderr.startswith(f"there is no store at {wrong}. Name one")
    for flags in (["--store", tmp_path / "empty"], []):
        place = flags[1] if flags else tmp_path / ".align"
        begins = "It begins with the first stage that runs: `align --help` shows one."
        assert run_align("ls", *flags, cwd=tmp_path).stdout == f"There is no store at {place} yet. {begins}\n"
    assert json.loads(run_align("ls", "--json", cwd=tmp_path).stdout) == []
    assert not (tmp_path / "mistyped").exists()


def test_patterns_travel(tmp_path: Path):
    """`push` and `pull` take them as `rm` does. Negative control: names that they do not match stay where they are."""
    store, far = Store(tmp_path / "store"), str(tmp_path / "far")
    for seed, name in enumerate(("r/dpo.beta-0.1", "r/dpo.beta-0.5", "r/sft")):
        store.tag(name, make(store, tmp_path, seed))
    here = ["--store", store.path]
    assert run_align("push", far, "r/dpo.*", *here).stdout.split()[::2] == ["r/dpo.beta-0.1", "r/dpo.beta-0.5"]
    assert "no name in" in run_align("push", far, "r/kto.*", *here, code=2).stderr
    there = ["--store", tmp_path / "other"]
    assert run_align("pull", far, "*.beta-0.5", *there).stdout.split()[::2] == ["r/dpo.beta-0.5"]
    assert "matches 'r/s*'; align pull without a name" in run_align("pull", far, "r/s*", *there, code=2).stderr
