"""A damaged name stops what needs it and nothing else, each in words that name the file and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import align
from align.ground.errors import AlignError
from align.store import Artifact, Store
from tests.conftest import Pipeline
from tests.store.remotes import make_line

REMEDY = r"line/sft is damaged[\s\S]*align tag REF line/sft\) or remove it \(align rm line/sft\)"


@pytest.fixture(params=[b"", b"junk \xff\n", b"0" * 64 + b"\n"], ids=["empty", "junk", "of nothing"])
def content(request: pytest.FixtureRequest) -> bytes:
    """What a name held instead of an artifact's digest."""
    return bytes(request.param)


def test_push_and_pull_of_other_names(content: bytes, store: Store, tmp_path: Path) -> None:
    """`line/ppo` even comes from what `line/sft` named. The controls: the same with that name asked for, and with the
    name mended."""
    line, far, other = make_line(store, tmp_path), str(tmp_path / "far"), Store(tmp_path / "other")
    (store.path / "refs/line/sft").write_bytes(content)
    assert [damage.path for damage in store.verify()] == [store.path / "refs/line/sft"]
    assert store.push(far, ["line/ppo"]).names == {"line/ppo": line["ppo"].digest}
    for names in (["line/sft"], ["line/ppo", "line/sft"], []):
        with pytest.raises(AlignError, match=REMEDY):
            store.push(far, names)
    assert store.pull(far, ["line/ppo"]).names == store.pull(far).names == {"line/ppo": line["ppo"].digest}
    store.tag("line/sft", line["sft"])
    assert len(store.push(far).names) == 4 and len(other.pull(far).names) == 4


def test_a_pull_moves_no_damaged_name(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows what it stood for: it takes --force, which says so. The control: another name of the same remote."""
    line, far = make_line(store, tmp_path), str(tmp_path / "far")
    store.push(far)
    (store.path / "refs/line/sft").write_bytes(b"junk\n")
    assert store.pull(far, ["line/reward"]).names == {"line/reward": line["reward"].digest}
    with pytest.raises(AlignError, match=rf"Nothing was fetched\. {store.path}/refs/{REMEDY}"):
        store.pull(far)
    assert store.pull(far, force=True).names["line/sft"] == line["sft"].digest and store.verify() == []
    assert (
        f"refs/line/sft was damaged: it held no digest. It holds that of {line['sft'].short} now."
        in capsys.readouterr().err
    )


def test_a_recipe_runs_beside_a_damaged_name(
    pipeline: Pipeline, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another's name is none of its business; its own stage's name is written anew, with a word; one that it builds on
    is refused."""
    store, made = pipeline.store, pipeline.made
    for name in ("other", "tiny/pretrain", "tiny/dpo"):
        (store.path / "refs" / name).write_bytes(content)
    change = ["stages.dpo.beta=0.3"]
    align.run(pipeline.recipe, store, overrides=change, dry_run=True)
    said = f"tiny/dpo: run, {store.path / 'refs/tiny/dpo'} is damaged: it names no artifact"
    assert said in capsys.readouterr().out
    again = align.run(pipeline.recipe, store, overrides=change, from_="dpo")
    assert again["dpo"] != made["dpo"] and store.resolve("tiny/dpo") == again["dpo"]
    (store.path / "refs/tiny/sft").write_bytes(content)
    with pytest.raises(AlignError, match=r"refs/tiny/sft is damaged[\s\S]*align tag REF tiny/sft"):
        align.run(pipeline.recipe, store, overrides=change, from_="dpo")
    assert {damage.path.name for damage in store.verify()} == {"other", "pretrain", "sft"}
    assert align.run(pipeline.recipe, store, overrides=change)["ppo"] == made["ppo"]
    assert isinstance(store.resolve("tiny/sft"), Artifact) and [damage.path.name for damage in store.verify()] == [
        "other"
    ]
