"""Manifests: one JSON text per value, nothing in them trusted."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest

from align.ground.errors import AlignError, InputError
from align.store import Artifact, canonical_json, digest_json


def test_canonical_json_is_one_text():
    """By hand: sorted keys, no spaces, UTF-8 kept, floats as Python prints them."""
    assert (
        canonical_json({"b": (1, 2.5, 5e-06), "a": {"ü": None, "n": True}})
        == '{"a":{"n":true,"ü":null},"b":[1,2.5,5e-06]}'.encode()
    )


def test_canonical_json_does_not_depend_on_order():
    items: list[tuple[str, Any]] = [(f"key{n}", [n, {"x": n / 7}]) for n in range(20)]
    shuffled = random.Random(0).sample(items, len(items))
    assert shuffled != items
    assert (
        digest_json(dict(shuffled))
        == digest_json(dict(items))
        == hashlib.sha256(canonical_json(dict(items))).hexdigest()
    )
    assert digest_json(dict(items) | {"key3": [3, {"x": 3 / 7 + 1e-15}]}) != digest_json(dict(items))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"metrics": {"eval/loss": float("nan")}}, "metrics.eval/loss is nan"),
        ({"a": [0, {"b": float("-inf")}]}, "a[1].b is -inf"),
        ({"a": {1: 2}}, "a has the key 1"),
        ({"a": {"b": {3}}}, "a.b is of type set"),
        ({"a": "\ud800"}, "a holds half a surrogate pair"),
        (float("inf"), "the value is inf"),
    ],
)
def test_what_json_cannot_hold_is_named(value: object, named: str):
    with pytest.raises(InputError) as error:
        canonical_json(value)
    assert named in str(error.value)


def manifest(**changes: Any) -> bytes:
    plain = {
        "format": 1,
        "kind": "adapter",
        "stage": "sft",
        "version": 1,
        "config": {},
        "parents": {},
        "base": None,
        "text": None,
    }
    return canonical_json(plain | {"data": {}, "metrics": {}, "files": {"a/b": entry()}} | changes)


def entry() -> dict[str, Any]:
    return {"size": 1, "sha256": "a" * 64}


def test_manifest_and_back():
    content = manifest(metrics={"loss": 0.1}, config={"x": [1, None]})
    artifact = Artifact.parse(content, hashlib.sha256(content).hexdigest())
    assert canonical_json(artifact.manifest) == content and digest_json(artifact.manifest) == artifact.digest
    assert (artifact.short, str(artifact), artifact.size) == (artifact.digest[:12], artifact.digest, 1)
    assert artifact.metrics == {"loss": 0.1} and artifact.under("a") == artifact.under("a/") == {"b": "a/b"}
    with pytest.raises(InputError, match="has no folder 'b'; it has a/"):
        artifact.under("b")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/", "", "C:/x", "a\\..\\b", "a\0b", ".."]
)
def test_a_path_that_could_leave_the_folder_is_refused(path: str):
    with pytest.raises(AlignError, match="no plain relative path"):
        Artifact.parse(manifest(files={path: entry()}), "0" * 64)
    assert Artifact.parse(manifest(files={"..a/b..c/.d": entry()}), "0" * 64)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 2}, "format 2; this Align reads format 1"),
        ({"extra": 1}, "['extra'] are missing or unknown"),
        ({"kind": "pickle"}, "kind 'pickle'; expected one of model, adapter"),
        ({"parents": {"parent": "../../x"}}, "parents.parent is '../../x'"),
        ({"parents": []}, "parents is a list"),
        ({"files": {"a": {"size": 1, "sha256": "../../../etc/passwd"}}}, "expected size and sha256"),
        ({"files": {"a": entry(), "a/b": entry()}}, "'a' is both a file and the folder of 'a/b'"),
    ],
)
def test_a_manifest_from_elsewhere_is_not_trusted(changes: dict[str, Any], named: str):
    with pytest.raises(AlignError) as error:
        Artifact.parse(manifest(**changes), "0" * 64)
    assert named in str(error.value)
    assert json.loads(manifest())["format"] == 1 and Artifact.parse(manifest(), "0" * 64)
