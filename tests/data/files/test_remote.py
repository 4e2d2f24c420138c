"""Data files by a URL of fsspec: read as the local file is, fetched again once they changed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import fsspec
import pytest

from align.data.files import remote
from align.data.formats import data_digest, read_conversations
from align.ground.errors import InputError
from align.inputs.fit import find_data
from align.recipe.paths import relative_to
from align.sft import Config
from align.store import Store
from tests.conftest import run_align


def rows(name: str, n: int = 3) -> str:
    return "".join(json.dumps({"prompt": f"{name} {i}", "completion": "Yes."}) + "\n" for i in range(n))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    remote.fetched.cache_clear()  # as a new process has it
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache/align"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here/shards").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / f"here/shards/{name}.jsonl").write_text(rows(name))
    (tmp_path / "here/one.jsonl").write_text(rows("one"))
    return tmp_path / "here"


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/data", recursive=True)


@pytest.mark.parametrize("what", ["one.jsonl", "shards", "shards/*.jsonl"])
def test_a_url_is_read_as_what_lies_there(folder: Path, tmp_path: Path, what: str) -> None:
    store, local = Store(tmp_path / "store"), folder / what
    found = find_data(store, "data", f"file://{local}")
    assert found.digest == data_digest(folder / what.partition("/")[0]) and found.source == f"file://{local}"
    assert read_conversations(found.path) == read_conversations(local)
    with pytest.raises(InputError, match="there is no file"):  # negative control: no URL
        find_data(store, "data", f"nowhere{local}")


def test_it_is_fetched_again_once_it_changed(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    memory.pipe_file("/data/x.jsonl", rows("old").encode())
    first = find_data(store, "data", "memory://data/x.jsonl")
    before = os.stat(first.path).st_ino
    remote.fetched.cache_clear()
    assert os.stat(find_data(store, "data", "memory://data/x.jsonl").path).st_ino == before
    memory.pipe_file("/data/x.jsonl", rows("new", 5).encode())
    remote.fetched.cache_clear()
    second = find_data(store, "data", "memory://data/x.jsonl")
    assert second.digest != first.digest and len(read_conversations(second.path)) == 5


def test_the_web(web: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    first = find_data(store, "data", f"{web}/one.jsonl")
    assert first.digest == data_digest(folder / "one.jsonl")
    assert "/one.jsonl: 1 file fetched, 0.0 MB" in " ".join(capsys.readouterr().err.split())
    signed = find_data(store, "data", f"{web}/one.jsonl?key=secret")
    assert signed.digest == first.digest and signed.path.name == "one.jsonl" and "secret" not in str(signed)
    (folder / "one.jsonl").write_text(rows("newer", 9))
    remote.fetched.cache_clear()
    assert find_data(store, "data", f"{web}/one.jsonl").digest == data_digest(folder / "one.jsonl") != first.digest
    for url, said in {
        f"{web}/none.jsonl?key=secret": r"^http\S+/none.jsonl\?\*\*\* cannot be fetched \(FileNotFoundError",
        "memory://nothing/*.jsonl": r"^memory://nothing/\*.jsonl: no file lies there",
        "http://127.0.0.1:9/x.jsonl": r"x.jsonl cannot be fetched \(",
        "nosuch://x/y.jsonl": "is no scheme that fsspec knows",
    }.items():
        with pytest.raises(InputError, match=said):
            find_data(store, "data", url)


def test_a_report_of_cleaning_has_no_secret(web: str, folder: Path) -> None:
    (folder / "eval.jsonl").write_text(json.dumps({"question": "How many rivers are there?"}) + "\n")
    given, against = f"{web}/one.jsonl?key=secret", f"{web}/eval.jsonl?key=secret"
    run_align("data", "decontaminate", given, "--against", against, "--out", "out.jsonl", cwd=folder)
    report = (folder / "out.report.json").read_text()
    assert "secret" not in report and f"{web}/one.jsonl?***" in report and "/eval.jsonl?***" in report


def test_a_recipe_leaves_urls_alone(tmp_path: Path) -> None:
    given = relative_to(tmp_path, Config, {"data": ["s3://b/x.jsonl", "x.jsonl"], "eval_data": "https://h/*.jsonl"})
    assert given == {"data": ["s3://b/x.jsonl", str(tmp_path / "x.jsonl")], "eval_data": "https://h/*.jsonl"}


@pytest.mark.slow
def test_a_bucket_is_read_by_the_real_protocol(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """moto answers as S3 does; what comes is what was put there, a changed object is fetched again, and no credentials
    are shown, neither by what is said nor by what is refused."""
    from tests.store.remotes import serving

    with serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
        server.client.create_bucket(Bucket="rows")
        for file in ("one.jsonl", "shards/a.jsonl", "shards/b.jsonl"):
            server.client.upload_file(str(folder / file), "rows", file)
        store = Store(tmp_path / "store")
        for what in ("one.jsonl", "shards", "shards/*.jsonl"):
            found = find_data(store, "data", f"s3://rows/{what}")
            assert found.digest == data_digest(folder / what.partition("/")[0]) and found.source == f"s3://rows/{what}"
            assert read_conversations(found.path) == read_conversations(folder / what)
        server.client.put_object(Bucket="rows", Key="one.jsonl", Body=rows("new", 5).encode())
        remote.fetched.cache_clear()
        fsspec.filesystem("s3").invalidate_cache()
        assert len(read_conversations(find_data(store, "data", "s3://rows/one.jsonl").path)) == 5
        refused = ("s3://rows/none.jsonl", "s3://key:hush-hush@nowhere/x.jsonl")
        for url in refused:
            with pytest.raises(InputError) as error:
                find_data(store, "data", url)
            assert "hush" not in str(error.value)
        said = "".join(capsys.readouterr())
        assert "s3://rows/one.jsonl: 1 file fetched" in said and "hush" not in said
