"""What goes in comes out, under every name it has."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from align.ground.errors import AlignError, InputError
from align.store import Artifact, Store, digest_json
from tests.store.conftest import fill, put

KEY = hashlib.sha256(b"what was asked").hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_are_proved_by_sha256sum(store: Store, family: dict[str, Artifact]):
    """Every file under artifacts/ and objects/ is named by what `sha256sum` prints for it, and may not be written."""
    paths = [*(store.path / "artifacts").iterdir(), *(store.path / "objects").glob("*/*")]
    lines = subprocess.check_output(["sha256sum", *paths], text=True).splitlines()
    assert [line.split()[0] for line in lines] == [path.name.removesuffix(".json") for path in paths]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o444}
    assert len(paths) == 3 + 5, "3 manifests; 3 weights, a head and one tokenizer for all three"


def test_put_and_resolve(store: Store, family: dict[str, Artifact]):
    dpo, sft = family["dpo"], family["sft"]
    same = [store.resolve(name) for name in (dpo, "quickstart/dpo", dpo.digest, dpo.digest[:20])]
    assert all(found == dpo and found.manifest == dpo.manifest for found in same) and dpo != sft
    assert (dpo.kind, dpo.stage, dpo.version, dpo.parents) == (
        "adapter",
        "dpo",
        1,
        {"parent": sft.digest, "reward": family["reward"].digest},
    )
    assert (
        dpo.metrics == {"eval/accuracy": 0.75} and dpo.base and dpo.base["model"] == "tiny" and dpo.text == {"eos": 2}
    )
    assert dpo.files["weights"] == {"size": 11, "sha256": hashlib.sha256(b"dpo weights").hexdigest()}
    assert digest_json(dpo.manifest) == dpo.digest
    assert list(store.artifacts()) == sorted(family.values(), key=str)
    assert store.refs() == {f"quickstart/{name}": artifact.digest for name, artifact in sorted(family.items())}


def test_equal_asking_gives_equal_digests(store: Store, family: dict[str, Artifact], tmp_path: Path):
    again = put(Store(tmp_path / "other"), tmp_path / "sft")
    assert again == family["sft"]
    assert put(store, tmp_path / "sft", config={"learning_rate": 3e-4}) != again
    assert put(store, fill(tmp_path / "sft", {"weights": b"other"})) != again


def test_reads_never_create_the_store(tmp_path: Path):
    store = Store(tmp_path / "none")
    assert (
        store.refs() == {}
        and list(store.artifacts()) == []
        and store.verify() == []
        and store.asked(KEY) is None
        and store.costs() == {}
    )
    with pytest.raises(InputError, match="there is no store at"):
        store.resolve("sft")
    with pytest.raises(InputError, match="cannot be a ref"):
        store.check_name("../up")
    assert list(tmp_path.iterdir()) == []


def test_wrong_names_create_no_store(tmp_path: Path):
    store = Store(tmp_path / "store")
    for call in (lambda: store.tag("new", "old"), lambda: store.untag("old"), lambda: store.hold("old").__enter__()):
        with pytest.raises(InputError, match="there is no store at"):
            call()
    assert not store.path.exists()


def test_a_newer_format_is_not_opened(store: Store, family: dict[str, Artifact]):
    (store.path / "format").write_text("1\n")
    assert Store(store.path).resolve("quickstart/sft") == family["sft"]
    (store.path / "format").write_text("2\n")
    with pytest.raises(AlignError, match="A newer Align may read it"):
        Store(store.path)


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    assert Store().path == tmp_path / ".align"
    monkeypatch.setenv("ALIGN_STORE", "from-env")
    assert Store().path == tmp_path / "from-env" and Store("given").path == tmp_path / "given"
    assert Store(f"file://{tmp_path}/there").path == tmp_path / "there"
    with pytest.raises(InputError, match=r"s3://bucket/x: a store is a folder of this machine.*align push URL"):
        Store("s3://bucket/x")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file"):
        Store("file")


def test_unknown_names_get_the_nearest(store: Store, family: dict[str, Artifact]):
    for wrong in ("quikstart/dpo", "dpo", "quickstart/dp0"):
        with pytest.raises(InputError, match=r"did you mean .*quickstart/dpo.*\?"):
            store.resolve(wrong)
    with pytest.raises(InputError, match="`align ls` lists what is there"):
        store.resolve("zzzzzz")
    for name in ("study/seed-0/dpo.beta-0.1", "study/seed-0/dpo.beta-0.3", "study/seed-0/ipo"):
        store.tag(name, family["dpo"])
    swept = {"dpo": "dpo.beta-0.1 or study/seed-0/dpo.beta-0.3?", "ido": "ipo or "}  # the other begins nothing
    for name, said in swept.items():
        with pytest.raises(InputError) as error:
            store.resolve(f"study/seed-0/{name}")
        assert f"did you mean study/seed-0/{said}" in str(error.value)
    for odd in ("", "..", "../artifacts", "/etc/passwd", "*", "abc", "a" * 300, "a/" * 3000 + "b"):
        with pytest.raises(InputError):
            store.resolve(odd)


def test_an_ambiguous_prefix_lists_its_candidates(store: Store, tmp_path: Path):
    """Artifacts are made until two begin with the same 4 digits: by the birthday problem that takes some 300 of
    65,536."""
    folder = fill(tmp_path / "files", {"weights": b""})
    seen: dict[str, Artifact] = {}
    for version in range(3000):
        artifact = put(store, folder, version=version)
        twin = seen.setdefault(artifact.digest[:4], artifact)
        if twin != artifact:
            break
    with pytest.raises(InputError, match="is the beginning of 2 artifacts; give more of the digest") as error:
        store.resolve(artifact.digest[:4])
    assert artifact.digest[:16] in str(error.value) and twin.digest[:16] in str(error.value)
    assert store.resolve(artifact.digest[:16]) == artifact and store.resolve(twin.digest[:16]) == twin


def test_a_tag_moves_and_tells_what_it_was(store: Store, family: dict[str, Artifact]):
    sft, dpo = family["sft"], family["dpo"]
    assert store.tag("best", sft) is None
    assert store.tag("best", "quickstart/dpo") == sft.digest and store.resolve("best") == dpo
    assert store.names(dpo) == ["best", "quickstart/dpo"] and store.label(dpo) == "best"
    with pytest.raises(InputError):
        store.tag("best", "nothing")
    assert store.resolve("best") == dpo


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        "a..b",
        ".hidden",
        "a/.b",
        "-flag",
        "a b",
        "ä",
        "a\n",
        "x" * 201,
        "f" * 64,
    ],
)
def test_bad_ref_names_are_refused(name: str, store: Store, family: dict[str, Artifact]):
    with pytest.raises(InputError, match="at most 200" if len(name) > 200 else "cannot be a ref. Expected"):
        store.tag(name, family["sft"])
    assert len(store.refs()) == 3


def test_a_ref_is_no_folder_of_refs(store: Store, family: dict[str, Artifact]):
    store.tag("plain", family["sft"])
    for name, taken in (("quickstart", "quickstart/…"), ("plain/more", "plain"), ("plain/even/more", "plain")):
        with pytest.raises(InputError, match=f"{taken} is one already"):
            store.tag(name, family["sft"])
    store.check_name("quickstart/new")
    store.check_name("plain")


def test_put_refuses_what_is_no_artifact(store: Store, family: dict[str, Artifact], tmp_path: Path):
    folder = fill(tmp_path / "files", {"weights": b"1"})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kind": "pickle"}, "'pickle' is no kind"),
        ({"metrics": {"loss": float("nan")}}, "metrics.loss is nan"),
        ({"parents": {"parent": "f" * 64}}, "has no artifact ffff"),
        ({"parents": {"parent": "../../x"}}, "is no digest"),
    ]
    before = contents(store.path)
    for changes, named in wrong:
        with pytest.raises(AlignError, match=named):
            put(store, folder, **changes)
    with pytest.raises(InputError, match="is no folder"):
        put(store, tmp_path / "absent")
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="link is a symlink"):
        put(store, folder)
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="special file"):
        put(store, folder)
    assert contents(store.path) == before
    (folder / "pipe").unlink()
    assert put(store, folder).files.keys() == {"weights"}


def test_it_is_committed_only_if_it_reloads_equal(store: Store, tmp_path: Path):
    folder = fill(tmp_path / "files", {"weights": b"live", "deep/er/file": b"x"})
    seen = []

    def check(loaded: Path) -> None:
        seen.append(contents(loaded))
        assert loaded != folder and store.path in loaded.parents and list(store.artifacts()) == []
        if seen[-1]["weights"] != b"live":
            raise AlignError("the weights came back other than they are")

    artifact = put(store, folder, check=check)
    assert seen == [{"weights": b"live", "deep/er/file": b"x"}] and list((store.path / "cache").iterdir()) == []

    def refuse(loaded: Path) -> None:
        raise AlignError("logits differ")

    with pytest.raises(AlignError, match="logits differ"):
        put(store, folder, version=2, check=refuse)
    assert (
        list(store.artifacts()) == [artifact] and list((store.path / "cache").iterdir()) == [] and store.verify() == []
    )


def test_materialise(store: Store, family: dict[str, Artifact], tmp_path: Path):
    reward = family["reward"]
    everything = {"weights": b"reward weights", "tokenizer/vocab": b"shared", "head": b"score"}
    out = store.materialise(reward, tmp_path / "out")
    assert contents(out) == everything
    assert contents(store.materialise(reward, tmp_path / "tokenizer", "tokenizer")) == {"vocab": b"shared"}
    with pytest.raises(InputError, match="has no folder 'tok'; it has tokenizer/"):
        store.materialise(reward, tmp_path / "none", "tok")
    with pytest.raises(InputError, match="holds files already"):
        store.materialise(reward, out)
    (out / "weights").write_bytes(b"edited by the user")
    assert store.read(reward, "weights") == b"reward weights" and store.verify() == [], "a checkout is the user's own"

    linked = store.materialise(reward, tmp_path / "linked", link=True)
    assert contents(linked) == everything and (linked / "weights").stat().st_mode & 0o222 == 0
    assert (linked / "weights").samefile(store.object_path(reward.files["weights"]["sha256"]))


def test_links_fall_back_to_copies(
    store: Store, family: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    out = store.materialise(family["sft"], tmp_path / "out", link=True)
    assert contents(out) == {"weights": b"sft weights", "tokenizer/vocab": b"shared"}
    assert not (out / "weights").samefile(store.object_path(family["sft"].files["weights"]["sha256"]))


def test_the_cached_folder_heals(store: Store, family: dict[str, Artifact], tmp_path: Path):
    """A folder under cache/ that lost, gained or changed a file is made anew; one that is right is left alone."""
    sft = family["sft"]
    right = contents(store.folder(sft))
    inode = store.folder(sft).stat().st_ino
    assert store.folder(sft).stat().st_ino == inode and right == {
        "weights": b"sft weights",
        "tokenizer/vocab": b"shared",
    }

    def lose(folder: Path) -> None:
        (folder / "weights").unlink()

    def gain(folder: Path) -> None:
        (folder / "more").touch()

    def change(folder: Path) -> None:
        (folder / "weights").unlink()
        (folder / "weights").write_bytes(b"sft_weights")

    def swap(folder: Path) -> None:
        (folder / "weights").unlink()
        (folder / "weights").symlink_to(tmp_path / "sft/weights")

    for harm in (lose, gain, change, swap, shutil.rmtree):
        harm(store.folder(sft))
        assert contents(store.folder(sft)) == right
    assert [path.name for path in (store.path / "cache").iterdir() if path.is_dir()] == [sft.digest[:32]]


def test_a_page_has_a_short_path_of_its_own(store: Store):
    """Beside `report: .align/`, in 79 columns; digests that begin as one, as far as people read them, lie apart."""
    one, other = (store.folder_path("ab" * 6 + end * 52) for end in "01")
    assert one != other and one.name[:12] == other.name[:12]
    assert len(f"report: .align/{one.relative_to(store.path)}/report.html") < 80


def test_asked_is_remembered(store: Store, family: dict[str, Artifact]):
    store.remember(KEY, family["sft"])
    assert store.asked(KEY) == family["sft"] and store.asked(digest_json("another question")) is None
    store.remember(KEY, family["dpo"])
    assert store.asked(KEY) == family["dpo"]
    for wrong in ("../refs/x", "", "ABC", KEY[:-1]):
        with pytest.raises(InputError, match="is no key"):
            store.asked(wrong)


def test_a_run_keeps_its_cost_and_drops_its_checkpoints(store: Store, family: dict[str, Artifact]):
    with pytest.raises(KeyboardInterrupt), store.run(KEY) as run:
        (run.checkpoints / "step-3").write_bytes(b"state")
        raise KeyboardInterrupt
    assert store.asked(KEY) is None and store.cost(family["sft"]) is None
    with store.run(KEY) as run:
        assert run.path == store.path / "runs" / KEY and run.path.stat().st_mode & 0o777 == 0o700
        assert (run.checkpoints / "step-3").read_bytes() == b"state", "a stopped run goes on from here"
        run.finish(family["sft"], {"seconds": 2.5})
    cost = store.cost(family["sft"])
    assert (
        cost
        and cost["seconds"] == 2.5
        and cost["finished"].endswith("Z")
        and store.costs().keys() == {family["sft"].digest}
    )
    assert store.asked(KEY) == family["sft"] and not run.checkpoints.exists()
    assert store.verify() == []


def test_places_of_bases(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert store.place(KEY) is None and not store.path.exists()
    store.note_place(KEY, Path("somewhere/ü"))
    assert store.place(KEY) == tmp_path / "somewhere/ü"
    store.note_place(KEY, tmp_path / "moved")
    assert store.place(KEY) == tmp_path / "moved" and store.verify() == []


def test_lineage_is_a_tree_by_role(store: Store, family: dict[str, Artifact]):
    tree = store.lineage("quickstart/dpo")
    assert tree.artifact == family["dpo"] and list(tree.parents) == ["parent", "reward"]
    assert tree.parents["parent"].artifact == family["sft"] and tree.parents["parent"].parents == {}
    assert (
        tree.parents["reward"].artifact == family["reward"]
        and tree.parents["reward"].parents["parent"].artifact == family["sft"]
    )
