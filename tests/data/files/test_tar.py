"""WebDataset shards against rows written by hand, and what they must not hold."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from align.data.formats import read_conversations, read_rows, read_texts
from align.ground.errors import InputError

ROWS = [{"prompt": f"What is {i}?", "completion": f"Number {i}.\nYes."} for i in range(4)]


def shard(path: Path, files: dict[str, str | bytes], how: str = "w") -> Path:
    with tarfile.open(path, how) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def files_of(rows: list[dict[str, str]], start: int = 0) -> dict[str, str | bytes]:
    """The first half of the rows as JSON, over several lines, the others as texts."""
    half = len(rows) // 2
    found: dict[str, str | bytes] = {
        f"dir/{start + i:04}.json": json.dumps(r, indent=1) for i, r in enumerate(rows[:half])
    }
    for i, row in enumerate(rows[half:], half):
        found |= {f"dir/{start + i:04}.{key}.txt": text for key, text in row.items()}
    return found


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.tgz", "a.TXZ", "a.tbz2"])
def test_files_that_are_called_alike_are_a_row(name: str, tmp_path: Path) -> None:
    how = {".tar": "", ".tgz": "gz", ".TXZ": "xz", ".tbz2": "bz2"}.get(name[1:], name[6:])
    path = shard(tmp_path / name, {"._0": b"\0", **files_of(ROWS)}, f"w:{how}")
    records = read_conversations(path)
    assert [(r.messages[0].content, r.messages[1].content) for r in records] == [(*r.values(),) for r in ROWS]
    assert records[2].where == f"{path} dir/0002" and records.form == "WebDataset"


def test_a_folder_of_shards_and_a_pattern(tmp_path: Path) -> None:
    for n in range(2):
        shard(tmp_path / f"shard-{n}.tar", files_of(ROWS[2 * n : 2 * n + 2]))
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    truth = read_conversations(lines)
    lines.unlink()
    assert read_conversations(tmp_path) == read_conversations(tmp_path / "shard-*.tar") == truth


def test_texts_of_a_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {"1.txt": "Once", "2.txt": "upon"})
    assert [r.text for r in read_texts(path)] == ["Once", "upon"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1.json": '{"prompt": "a"}', "1.jpg": b"\xff"}, r"a\.tar 1: holds a \.jpg file, and only text"),
        ({"1.json": '{"prompt": "a"}', "1.prompt.txt": "b"}, r"a\.tar 1: 'prompt' stands in two of its files"),
        ({"1.json": "{"}, r"a\.tar 1: not JSON"),
        ({"1.prompt.txt": b"\xff"}, r"a\.tar 1: byte 0xff is not UTF-8"),
        ({"1": "x"}, r"a\.tar 1: holds a file without an ending"),
    ],
)
def test_what_a_shard_must_not_hold(files: dict[str, str | bytes], said: str, tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", files)
    with pytest.raises(InputError, match=said):
        read_conversations(path)


def test_a_bad_row_of_a_shard_is_left_out_where_that_is_asked(tmp_path: Path) -> None:
    records = read_conversations(shard(tmp_path / "a.tar", {"1.jpg": b"x", **files_of(ROWS, 2)}), bad_rows="drop")
    assert len(records) == 4 and records.dropped.total() == 1


def test_a_shard_that_breaks_off(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", files_of(ROWS))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"a\.tar file cannot be read after dir/0002|cannot be read after"):
        for _, parse in read_rows(path).rows:
            parse()
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match="cannot be read after its start"):
        read_conversations(path)


def test_nothing_is_lost_in_silence(tmp_path: Path) -> None:
    """A header that is damaged, an end that is missing, an archive behind another, and rows in pieces."""
    whole = shard(tmp_path / "a.tar", files_of(ROWS)).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        third = tar.getmembers()[2].offset
    damaged = whole[: third + 5] + bytes([whole[third + 5] ^ 1]) + whole[third + 6 :]
    for content, said in (
        (damaged, "cannot be read after dir/0001 .*a header there is damaged"),
        (whole[:third], "cannot be read after dir/0001 .*the end is missing"),
        (whole + whole, "another archive stands behind its end"),
    ):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_conversations(tmp_path / "a.tar")
    rows = {f"{i}.json": json.dumps(row) for i, row in enumerate(ROWS)}
    apart = shard(tmp_path / "b.tar", {**rows, "0.completion.txt": "Another one."})
    with pytest.raises(InputError, match=r"0\.completion\.txt stands apart from the other files of 0\. Those of a row"):
        read_conversations(apart)


def test_a_row_in_pieces_is_told_before_it_is_told_to_lack_something(tmp_path: Path) -> None:
    """Even where bad rows are dropped: neither piece is a bad row. Negative control: the same files in order."""
    files: dict[str, str | bytes] = {f"{i}.{k}.txt": t for k in ("prompt", "completion") for i, t in enumerate("ab")}
    for bad_rows in ("error", "drop"):
        with pytest.raises(InputError, match=r"0\.completion\.txt stands apart.*tar --sort=name"):
            read_conversations(shard(tmp_path / "a.tar", files), bad_rows=bad_rows)
    assert len(read_conversations(shard(tmp_path / "a.tar", dict(sorted(files.items()))))) == 2


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_is_no_file(kind: bytes, tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", files_of(ROWS))
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("dir/0009.json")
        info.type, info.linkname = kind, "0001.json"
        tar.addfile(info)
    said = "a pipe or a device" if kind == tarfile.FIFOTYPE else r"a link to 0001\.json"
    with pytest.raises(
        InputError, match=rf"dir/0009\.json is {said}, of which a \.tar holds no content.*--dereference"
    ):
        read_conversations(path)
