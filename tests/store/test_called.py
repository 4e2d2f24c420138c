"""An artifact of several names is called, in messages, by the one that it was asked for by; and no name can be taken
for a digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.ground.errors import InputError
from align.store import Store
from tests.store.remotes import make_line


def test_it_is_called_as_it_was_asked_for(store: Store, tmp_path: Path) -> None:
    """The controls: nobody asked; asked by its digest; and the name taken away meanwhile."""
    sft = make_line(store, tmp_path)["sft"]
    store.tag("a-first", sft)
    store.tag("z-last", sft)
    fresh = Store(store.path)
    assert fresh.label(sft) == fresh.label(fresh.resolve(sft.digest[:12])) == "a-first"
    for name in ("z-last", "line/sft", "a-first", "z-last"):
        assert fresh.label(fresh.resolve(name)) == name
    fresh.untag("z-last")
    assert fresh.label(sft) == "a-first"
    beside = Store(store.path)
    beside.resolve("line/base")  # of whose recipe it is, too
    assert beside.label(sft) == "line/sft"


@pytest.mark.parametrize("name", ["18dcdc4a", "deadbeef", "0123456789abcdef"])
def test_what_looks_like_a_digest_is_no_name(store: Store, tmp_path: Path, name: str) -> None:
    """The controls: a date, short words, other letters; and a store that has such a name is read as before."""
    sft = make_line(store, tmp_path)["sft"]
    with pytest.raises(InputError, match=f"'{name}' cannot be a ref: it looks like the beginning of a digest"):
        store.tag(name, sft)
    for other in ("20261128", "face", name.upper(), f"run-{name}", f"{name}/sft"):
        store.check_name(other)
    (store.path / "refs" / name).write_text(f"{sft.digest}\n")
    assert store.resolve(name) == sft and name in store.refs() and store.untag(name) == sft.digest
