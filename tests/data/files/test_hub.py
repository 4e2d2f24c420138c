"""Data sets of the hub by name, through `datasets`, from a hub on this machine (tests/hub.py): what is read, what is
recorded, what is taken from the cache, and each mistake in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from align.data.files.sources import data_digest
from align.data.files.tables import read_rows
from align.ground.errors import InputError
from align.recipe import File
from align.recipe.hub_data import NAME, is_meant, with_split
from align.store import Store
from tests.conftest import ROOT, Pipeline, run_align
from tests.hub import Hub, running

ROWS = [
    {"messages": [{"role": "user", "content": f"Which colour? {i} é🙂"}, {"role": "assistant", "content": "Red."}]}
    for i in range(8)
]
CARD = b"---\nconfigs:\n- config_name: x\n  data_files: x.jsonl\n- config_name: y\n  data_files: y.jsonl\n---\n"


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as hub:
        hub.add("datasets/lab/talks", {"data/train.jsonl": lines(ROWS), "data/test.jsonl": lines(ROWS[:2])})
        hub.add("datasets/lab/two", {"README.md": CARD, "x.jsonl": b'{"text": "x"}\n', "y.jsonl": b'{"text": "y"}\n'})
        hub.add("datasets/writer/own", {"train.jsonl": lines(ROWS)}, private=True)
        for key, value in {**hub.environment(), "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(key, value)
        yield hub


FETCH = """
import json, sys
from align.data.files.hub import fetched
from align.ground.errors import InputError
for name in sys.argv[1:]:
    try:
        print(json.dumps(list(map(str, fetched(name) or ["no name"]))))
    except InputError as error:
        print(json.dumps([str(error)]))
"""


def fetch(*names: str) -> list[list[str]]:
    """(path, source) of each, or what is wrong with it; the clients read their settings when they are imported."""
    done = subprocess.run([sys.executable, "-c", FETCH, *names], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_what_is_read_and_where_it_is_from(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The rows of the hub's files, with the commit that the hub has now; offline, what is in the cache, and the same
    digest as of another machine's cache. A commit that is not in the cache is not taken for the one that is."""
    commit = hub.repositories["datasets/lab/talks"].head
    (path, source), two = fetch("lab/talks:train", "hf://datasets/lab/two@main:y/train")
    assert source == f"lab/talks@{commit}:default/train" and two[1].endswith(":y/train")
    assert [parse() for _, parse in read_rows(path).rows] == ROWS
    assert [parse() for _, parse in read_rows(two[0]).rows] == [{"text": "y"}]
    hub.add("datasets/lab/talks", {"data/train.jsonl": lines(ROWS[:1])})
    for offline in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(offline, "1")
            hub.asked.clear()
            found = fetch("lab/talks:train", f"lab/talks@{'0' * 40}:train", "lab/none")
            assert found[0] == [path, source] and hub.asked == []
            assert found[1][0].startswith(f"lab/talks@{'0' * 40}:train: the cache of `datasets` has {commit[:12]}")
            assert found[2][0].startswith("it is not in the cache") and "being offline" in found[2][0]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "other"))
    newest, pinned = fetch("lab/talks", f"lab/talks@{commit}:train")  # the newest has one split
    assert pinned[1] == source and pinned[0] != path and data_digest(pinned[0]) == data_digest(path)
    assert newest[1] != source and [parse() for _, parse in read_rows(newest[0]).rows] == ROWS[:1]


def test_mistakes_are_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    wrong = {
        "lab/talks": "lab/talks has the splits train, test. Name one: lab/talks:train.",
        "lab/talks:dev": "lab/talks:dev: there is no split 'dev'; the data set has train, test.",
        "lab/talks@v9:train": "the hub has lab/talks, but not its revision v9",
        "lab/two": "available configs: ['x', 'y']; name it as lab/two:CONFIG/SPLIT.",
        "lab/two:z/train": "BuilderConfig 'z' not found. Available: ['x', 'y']; name it as lab/two:CONFIG/SPLIT.",
        "lab/none": "has none that it shows (401): check the spelling",
        "writer/own": "has none that it shows (401): check the spelling",
        "data/gone.jsonl": "no name",
        "data/gone": "has none that it shows (401)",
    }
    for (found,), said in zip(fetch(*wrong), wrong.values(), strict=True):
        assert said in found and "\n" not in found
    monkeypatch.setenv("HF_TOKEN", "hf_writes")  # who may see it
    (own,) = fetch("writer/own")
    assert own[1].endswith(":default/train")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "(http://127.0.0.1:9) cannot be reached (ConnectError); HF_HUB_OFFLINE=1 takes" in fetch("lab/none")[0][0]


def test_a_stage_on_data_of_the_hub(pipeline: Pipeline, hub: Hub):
    """By the flags that users type; the commit stands in the manifest and the key holds the content: another spelling
    is the same question."""
    flags = ["--parent", "tiny/pretrain", "--max_steps", "1", "--batch_size", "4", "--threads", "1"]
    flags += ["--name", "here", "--store", str(pipeline.store.path)]
    run_align("sft", "--data", "lab/talks", "--split", "train", *flags)
    made = Store(pipeline.store.path).resolve("here")
    commit = hub.repositories["datasets/lab/talks"].head
    assert made.config["hub_data"] == {"data": f"lab/talks@{commit}:default/train"}
    again = run_align("sft", "--data", f"hf://datasets/lab/talks@{commit}:train", *flags)
    assert "here: done before, skipped" in again.stderr
    refused = run_align("sft", "--data", "lab/nowhere", *flags, code=2).stderr
    assert refused.startswith("data: there is no file lab/nowhere, and no data artifact of that name in ")
    assert "; the hub (" in refused and refused.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"hub": "lab/talks"}, "lab/talks"),
        ({"hub": "lab/talks", "split": "train"}, "lab/talks:train"),
        ({"hub": "lab/two", "config": "y", "split": "train", "revision": "v1.0"}, "lab/two@v1.0:y/train"),
        ({"hub": "lab/two", "config": "y"}, "lab/two:y/"),
        ("rows.jsonl", "rows.jsonl"),
        ({"hub": "lab/talks", "splt": "train"}, "splt is none of hub, revision, config, split"),
        ({"hub": "talks"}, "talks names no data set of the hub"),
    ],
)
def test_parts_in_a_recipe(given: object, text: str):
    """One text for each mapping, which is read as those parts."""
    try:
        found = TypeAdapter(File).validate_python(given)
    except ValidationError as error:
        found = str(error)
    assert found == text or (found.startswith("1 validation error") and text in found)
    if isinstance(given, dict) and found == text:
        parts = NAME.fullmatch(text)
        assert parts and {k: v for k, v in parts.groupdict().items() if v} == {
            ("repository" if key == "hub" else key): value for key, value in given.items()
        }


def test_a_split_by_itself():
    assert with_split("lab/talks", "train") == "lab/talks:train" and with_split("lab/two:y/", "t") == "lab/two:y/t"
    for wrong in ("rows.jsonl", "lab/talks:train", None):
        with pytest.raises(ValueError, match="--split names a split of a data set of the hub"):
            with_split(wrong, "train")
    assert is_meant("lab/two@v1.0:train") and is_meant("hf://datasets/lab/two.0") and not is_meant("lab/two.jsonl")


def test_a_file_that_is_no_arrow(tmp_path: Path):
    (tmp_path / "rows.arrow").write_bytes(b"no arrow")
    with pytest.raises(InputError, match=r"rows.arrow: not an Arrow file"):
        list(read_rows(tmp_path / "rows.arrow").rows)
