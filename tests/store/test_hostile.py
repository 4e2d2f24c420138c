"""A remote is hostile: whatever it serves, a pull ends with one message that names the file and the reason, and the
store is as it was."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from align.cli import dispatch
from align.ground.errors import AlignError
from align.store import Store, canonical_json
from align.store.remote.folder import Folder
from align.store.remote.place import CHUNK
from align.store.shapes import PAGE
from tests.store.conftest import fill, make_family, put
from tests.store.remotes import HEAD, SHAPE, TEXT, TOKENIZER, factors, make, model_files, packed, shaped, tensors
from tests.store.test_store import contents

BASE = {"model": "tiny", "revision": None, "digest": "0" * 64, "quantize": None}
OURS = '<style>p { color: red }</style><tr style="--colour: var(--c1)" class="best">'
SOUND: dict[str, dict[str, bytes]] = {
    "adapter": model_files(1),
    "reward": model_files(1) | {"head.safetensors": shaped(HEAD)},
    "model": {
        "model/config.json": b'{"model_type": "llama"}',
        "model/model.safetensors": tensors(1),
        "model/tokenizer.json": TOKENIZER,
    },
    "report": {
        "report.html": f"{PAGE}<title>x</title>{OURS}</head><body>1 &lt; 2 url( onload=x</body>\n".encode(),
        "table.txt": b"x",
    },
    "data": {"data.jsonl": b'{"prompt": "a"}\n'},
}
"""The files of each kind, which every case spoils in one way."""
CONFIG, WEIGHTS = "adapters/0/adapter_config.json", "adapters/0/adapter_model.safetensors"
PLAIN = {
    "format": 1,
    "kind": "adapter",
    "stage": "sft",
    "version": 1,
    "config": {},
    "parents": {},
    "base": BASE,
    "text": TEXT,
}


@dataclass
class Far:
    """A remote in a folder, written without Align."""

    folder: Path

    def write(self, path: str, content: bytes) -> Path:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return place

    def object(self, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        self.write(f"objects/{digest[:2]}/{digest}", content)
        return {"sha256": digest, "size": len(content)}

    def raw(self, content: bytes) -> str:
        """A manifest of these bytes, named by their hash."""
        digest = hashlib.sha256(content).hexdigest()
        self.write(f"artifacts/{digest}.json", content)
        return digest

    def artifact(self, content: dict[str, Any] | None = None, **changes: Any) -> str:
        held = SOUND.get(str(changes.get("kind", "adapter")), {}) | (content or {})
        entries = {
            name: self.object(entry) if isinstance(entry, bytes) else entry
            for name, entry in held.items()
            if entry is not None
        }
        return self.raw(canonical_json(PLAIN | {"data": {}, "metrics": {}, "files": entries} | changes))

    def named(self, digest: str, name: str = "best") -> None:
        self.write(f"refs/{name}", f"{digest}\n".encode())


def place_of(entry: dict[str, Any]) -> str:
    return f"objects/{entry['sha256'][:2]}/{entry['sha256']}"


Case = tuple[str, Callable[[Far], Any], str]


def files(title: str, content: dict[str, Any], reason: str, **changes: Any) -> Case:
    """A sound artifact with these files beside its own or in their place; None leaves one out."""
    return title, lambda far: far.named(far.artifact(content, **changes)), reason


def manifest(title: str, reason: str, **changes: Any) -> Case:
    return title, lambda far: far.named(far.artifact(**changes)), reason


def raw(title: str, content: Callable[[], bytes], reason: str) -> Case:
    return title, lambda far: far.named(far.raw(content())), reason


def archive() -> bytes:
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps([1]))
    return held.getvalue()


def whole() -> dict[str, Any]:
    return PLAIN | {"data": {}, "metrics": {}, "files": {}}


# ---- names of files --------------------------------------------------------------------------------------------------

ENTRY = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
PATHS = {
    "up": "../escaped", "far up": "a/../../escaped", "absolute": "/tmp/escaped", "backslashes": "..\\escaped",
    "drive": "C:escaped", "NUL": "a\0b", "empty": "", "dot": ".", "empty part": "a//b", "ends in a slash": "a/",
    "begins with a dot": "./a", "looks like a slash": "a\u2215b", "full-width dots": "\uff0e\uff0e/b",
    "right to left": "a\u202eslx", "composed": "e\u0301", "line end": "a\nb", "escape": "a\x1b[2J", "space": "a ",
    "tilde": "~/a", "reserved": "con", "reserved with ending": "model/NUL.txt", "too long": "x" * 201,
    "too deep": "/".join("x" * 300), "ends in a dot": "a.", "temporary": ".tmp-1",
}  # fmt: skip
NAMES = [
    files(f"path: {title}", {path: ENTRY}, r"no plain relative path|cannot be the name")
    for title, path in PATHS.items()
]
NAMES += [
    files("path: file and folder", {"a": b"x", "a/b": b"x"}, "'a' is both a file and the folder of 'a/b'"),
    files("path: differ in case", {"a": b"x", "A": b"x"}, "differ in case alone"),
    files("path: surrogate", {"a": b"x"} and {"x" * 501: ENTRY}, "cannot be the name"),
]

# ---- pickles and code ------------------------------------------------------------------------------------------------

FORBIDDEN = ("a.bin", "a.pt", "b/a.pkl", "a.PTH", "a.ckpt", "m.py")
PICKLES = [
    *(
        files(f"pickle: {name}", {name: ENTRY}, "is a pickle or a program")
        for name in ("a.bin", "a.pt", "b/a.pkl", "a.PTH", "a.ckpt", "m.py")
    ),
    *(
        files(
            f"pickle: protocol {n}",
            {"guard.jsonl": pickle.dumps(["x"], n)},
            "guard.jsonl of sft .* is a pickle by its first bytes",
        )
        for n in (2, 3, 4, 5)
    ),
    files("pickle: zip of torch.save", {"tokenizer/a.model": archive()}, "is a pickle by its first bytes"),
    files("pickle: called safetensors", {WEIGHTS: pickle.dumps(["x"], 4)}, "is a pickle by its first bytes"),
    files("pickle: protocol 0 called safetensors", {WEIGHTS: pickle.dumps(["x"], 0)}, "no complete safetensors file"),
]

# ---- safetensors -----------------------------------------------------------------------------------------------------


def two(first: list[int], second: list[int], size: int = 8, shape: Any = (1,), dtype: str = "F32") -> bytes:
    one = {"dtype": dtype, "shape": list(shape), "data_offsets": first}
    return packed({"a": one, "b": {"dtype": "F32", "shape": [1], "data_offsets": second}}, bytes(size))


TENSORS = {
    "header longer than any": (1 << 63).to_bytes(8, "little") + b"{}",
    "header longer than the file": (1 << 20).to_bytes(8, "little") + b"{}",
    "overlap": two([0, 4], [2, 6]),
    "same place": two([0, 4], [0, 4], size=4),
    "gap": two([0, 4], [8, 12], size=12),
    "beyond the end": two([0, 4], [4, 8], size=6),
    "bytes left over": two([0, 4], [4, 8], size=9),
    "backwards": two([4, 0], [4, 8]),
    "negative": two([-4, 0], [0, 8]),
    "shape of another size": two([0, 4], [4, 8], shape=(2,)),
    "shape that overflows": two([0, 4], [4, 8], shape=(1 << 62, 1 << 62)),
    "unknown type": two([0, 4], [4, 8], dtype="PYOBJECT"),
    "no JSON": packed(b"{'a': 1}"),
    "deep": packed(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "cut short": tensors(1)[:-1],
    "empty": b"",
}
SAFETENSORS = [
    files(f"safetensors: {t}", {WEIGHTS: c}, r"adapter_model\.safetensors of sft .* no complete")
    for t, c in TENSORS.items()
]

# ---- manifests -------------------------------------------------------------------------------------------------------

SIZES = {
    "negative": -1,
    "boolean": True,
    "a float": 1.0,
    "text": "1",
    "null": None,
    "beyond any disk": 1 << 51,
    "2**63": 1 << 63,
}
MANIFESTS = [
    raw("manifest: too large", lambda: canonical_json(whole()) + b" " * (1 << 20), "has more than 1,048,576 bytes"),
    raw("manifest: deep", lambda: b'{"metrics":' * 100_000 + b"1" + b"}" * 100_000, "has more than|nested too deeply"),
    raw("manifest: deep and small", lambda: b"[" * 20_000 + b"]" * 20_000, "nested too deeply"),
    raw("manifest: not JSON", lambda: b"#!/bin/sh\n", "is no JSON"),
    raw("manifest: not UTF-8", lambda: b'{"format":1,"\xff":1}', "is no JSON"),
    raw("manifest: empty", lambda: b"", "is no JSON"),
    raw("manifest: a list", lambda: b"[1]", "has format 'list'"),
    raw("manifest: spaces", lambda: json.dumps(whole(), sort_keys=True).encode(), "not canonical JSON"),
    raw(
        "manifest: twice a key",
        lambda: canonical_json(whole()).replace(b'"files":{}', b'"files":{"../x":1},"files":{}'),
        "not canonical",
    ),
    raw(
        "manifest: NaN",
        lambda: canonical_json(whole()).replace(b'"metrics":{}', b'"metrics":{"loss":NaN}'),
        "metrics.loss is nan",
    ),
    raw(
        "manifest: infinity",
        lambda: canonical_json(whole()).replace(b'"metrics":{}', b'"metrics":{"loss":1e999}'),
        "metrics.loss is inf",
    ),
    raw(
        "manifest: surrogate",
        lambda: canonical_json(whole()).replace(b'"stage":"sft"', b'"stage":"\\ud800"'),
        "surrogate",
    ),
    raw(
        "manifest: long number",
        lambda: canonical_json(whole()).replace(b'"version":1', b'"version":' + b"1" * 5000),
        "is no JSON",
    ),
    manifest("manifest: format 2", "has format 2", format=2),
    manifest("manifest: format true", "has format True", format=True),
    manifest("manifest: unknown key", "are missing or unknown", extra=1),
    manifest("manifest: unknown kind", "is of kind 'code'", kind="code"),
    manifest("manifest: kind of no kind", "is of kind", kind=[]),
    manifest("manifest: version true", "version is a bool", version=True),
    manifest("manifest: parents a list", "parents is a list", parents=[]),
    manifest("manifest: parent a path", "expected a digest", parents={"parent": "../../x"}),
    manifest("manifest: files a list", "files is a list", files=[]),
    manifest("manifest: file without hash", "expected size and sha256", files={"a": {"size": 1}}),
    manifest("manifest: file with more", "expected size and sha256", files={"a": ENTRY | {"mode": 0o777}}),
    manifest(
        "manifest: hash a path", "expected size and sha256", files={"a": {"size": 1, "sha256": "../../../etc/passwd"}}
    ),
    manifest("manifest: hash in capitals", "expected size and sha256", files={"a": {"size": 1, "sha256": "A" * 64}}),
    *(manifest(f"manifest: size {t}", "has size", files={"a": ENTRY | {"size": size}}) for t, size in SIZES.items()),
    manifest(
        "manifest: larger than the disk",
        "are to come, and",
        files={name: ENTRY for name in SOUND["adapter"]} | {WEIGHTS: {"sha256": "f" * 64, "size": 1 << 50}},
    ),
    manifest("manifest: too many files", "names 10,001 files", files={f"f{n}": ENTRY for n in range(10_001)}),
    manifest("manifest: data is no digest", "data.data is '/etc/passwd'", data={"data": "/etc/passwd"}),
    manifest("manifest: terminal commands", "holds control characters", stage="sft\x1b]0;owned\x07"),
    manifest("manifest: right to left", "holds control characters", metrics={"\u202egnp": 1}),
    manifest("base: a text", "base is a str", base="tiny"),
    manifest("base: more keys", "base has", base=BASE | {"trust_remote_code": True}),
    manifest("base: fewer keys", "base has model;", base={"model": "tiny"}),
    manifest("base: model a path", "base.model is '/etc/passwd'", base=BASE | {"model": "/etc/passwd"}),
    manifest("base: model up", "base.model is '../../x'", base=BASE | {"model": "../../x"}),
    manifest("base: model a list", "base.model is", base=BASE | {"model": ["tiny"]}),
    manifest("base: digest a path", "base.digest is", base=BASE | {"digest": "../x"}),
    manifest("base: unknown quantisation", "base.quantize is", base=BASE | {"quantize": "exec"}),
    manifest("base: another than its digest", "is missing", base=BASE | {"model": "artifact:" + "0" * 63 + "1"}),
    manifest("text: a list", "text is a list", text=[]),
    manifest("text: fewer keys", "text has eos;", text={"eos": 2}),
    manifest("text: stop ids a text", "text.stop_ids is", text=TEXT | {"stop_ids": "1"}),
    manifest("text: negative id", "text.eos_token_id is", text=TEXT | {"eos_token_id": -1}),
    manifest("text: tokenizer a path", "text.tokenizer is", text=TEXT | {"tokenizer": "../x"}),
    (
        "manifest: under another's name",
        lambda far: (far.named("e" * 64), far.write(f"artifacts/{'e' * 64}.json", canonical_json(whole()))),
        "is not what its name says: its sha256 is",
    ),
]

# ---- objects ---------------------------------------------------------------------------------------------------------


def swapped(content: bytes | None, size: int = 100) -> Callable[[Far], None]:
    """An artifact whose object has other bytes than its manifest says."""

    def make_it(far: Far) -> None:
        entry = far.object(b"y" * size)
        far.named(far.artifact({"guard.jsonl": entry}))
        (far.folder / place_of(entry)).unlink()
        if content is not None:
            far.write(place_of(entry), content)

    return make_it


def two_sizes(far: Far) -> None:
    entry = far.object(b"yy")
    parent = far.artifact({"guard.jsonl": entry | {"size": 3}})
    far.named(far.artifact({"guard.jsonl": entry}, parents={"parent": parent}))


OBJECTS: list[Case] = [
    (
        "object: other bytes",
        swapped(b"z" * 100),
        "is not what its name says: expected 100 bytes, found 100 bytes with sha256",
    ),
    ("object: larger", swapped(b"y" * 101), "has more than the 100 bytes that its manifest says"),
    ("object: much larger", swapped(b"y" * (CHUNK * 2)), "has more than the 100 bytes"),
    ("object: cut short", swapped(b"y" * 99), "expected 100 bytes, found 99 bytes"),
    ("object: empty", swapped(b""), "expected 100 bytes, found 0 bytes"),
    ("object: missing", swapped(None), "is missing, but an artifact there needs it"),
    ("object: two sizes", two_sizes, "has 2 bytes by one manifest and 3 by another"),
]

# ---- configs ---------------------------------------------------------------------------------------------------------

CODE = {"AutoModelForCausalLM": "modeling_evil.Evil"}


def config(title: str, name: str, found: Any, reason: str, **changes: Any) -> Case:
    content = found if isinstance(found, bytes) else json.dumps(found).encode()
    return files(
        f"config: {title}",
        {name: content},
        reason,
        kind=name.split("/")[0] if name.startswith("model") else "adapter",
        **changes,
    )


MODEL_CONFIG = "model/config.json"
LLAMA = {"model_type": "llama"}
SETTINGS = [
    config("auto_map", MODEL_CONFIG, LLAMA | {"auto_map": CODE}, "model/config.json of sft .* it sets auto_map"),
    config(
        "auto_map inside", MODEL_CONFIG, LLAMA | {"text_config": {"layers": [{"auto_map": CODE}]}}, "it sets auto_map"
    ),
    config(
        "tokenizer of code",
        "tokenizer/tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["a.B", None]}},
        "it sets auto_map",
    ),
    config(
        "custom_generate", "model/generation_config.json", {"custom_generate": "evil/repo"}, "it sets custom_generate"
    ),
    config("trust_remote_code", MODEL_CONFIG, LLAMA | {"trust_remote_code": True}, "it sets trust_remote_code"),
    config(
        "attention from the hub",
        MODEL_CONFIG,
        LLAMA | {"_attn_implementation": "evil/kernel"},
        "is 'evil/kernel', which is code",
    ),
    config(
        "another kind of model",
        MODEL_CONFIG,
        LLAMA | {"architectures": ["LlamaForTokenClassification"]},
        "another head than",
    ),
    config("no model type", MODEL_CONFIG, {}, "no model_type"),
    config(
        "quantised by code",
        MODEL_CONFIG,
        LLAMA | {"quantization_config": {"quant_method": "../../x"}},
        "is quantised by '../../x'",
    ),
    config(
        "weights elsewhere",
        MODEL_CONFIG,
        LLAMA | {"transformers_weights": "../../x.safetensors"},
        "file of this folder",
    ),
    config("layers without weights", MODEL_CONFIG, LLAMA | {"num_hidden_layers": 10**7}, "do not belong together"),
    config(
        "auto_mapping",
        CONFIG,
        SHAPE | {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}},
        "it sets auto_mapping",
    ),
    config(
        "megatron_config",
        CONFIG,
        SHAPE | {"megatron_config": {"a": 1}, "megatron_core": "evil"},
        "it sets megatron_config",
    ),
    config("megatron_core", CONFIG, SHAPE | {"megatron_core": "os"}, "megatron_core is 'os'"),
    config("runtime_config", CONFIG, SHAPE | {"runtime_config": {"a": 1}}, "it sets runtime_config"),
    config(
        "another base",
        CONFIG,
        SHAPE | {"base_model_name_or_path": "/home/you/m"},
        "names the base '/home/you/m'; its manifest says",
    ),
    config("no LoRA", CONFIG, SHAPE | {"peft_type": "EVIL"}, "peft_type is 'EVIL'"),
    config("dots for a layer", CONFIG, SHAPE | {"target_modules": [".."]}, "target_modules is"),
    config("no such layer", CONFIG, SHAPE | {"target_modules": ["q_proj"]}, "target_modules does not name"),
    config("layer 10**30", CONFIG, SHAPE | {"layers_to_transform": [10**30]}, "layers_to_transform is .*below 16,384"),
    config("length of words", "tokenizer/tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is 'x'"),
    config("side of no side", "tokenizer/tokenizer_config.json", {"padding_side": 1}, "padding_side is '1'"),
    config("a list", CONFIG, [SHAPE], "holds a list; expected a JSON object"),
    config("regex that hangs", CONFIG, SHAPE | {"target_modules": "(.*)*(.*)*z"}, "target_modules is"),
    config("rank by a regex", CONFIG, SHAPE | {"rank_pattern": {"([a-z]+)+!": 8}}, "rank_pattern is"),
    config("layers 100,000 times", CONFIG, SHAPE | {"layer_replication": [[0, 4]] * 100_000}, "layer_replication is"),
    config("rank of a billion", CONFIG, SHAPE | {"r": 10**9}, "r is 1000000000"),
    config("whole modules", CONFIG, SHAPE | {"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    config("dora", CONFIG, SHAPE | {"use_dora": True}, "names use_dora"),
    config(
        "rewrites the base",
        CONFIG,
        SHAPE | {"init_lora_weights": "pissa"},
        "takes such an adapter's first factors off the base",
    ),
    config("another rank than its tensors", CONFIG, SHAPE | {"r": 8}, "gives this layer rank 8"),
    config("not JSON", CONFIG, b"import os", "adapter_config.json of sft .* is no JSON"),
    config("deep", CONFIG, b"[" * 100_000, "is no JSON"),
    config("large", CONFIG, b"{}" + b" " * (16 << 20), "such a file has at most 16,777,216"),
    files(
        "template: large",
        {"tokenizer/chat_template.jinja": b" " * ((1 << 20) + 1)},
        "such a file has at most 1,048,576",
    ),
]

# ---- what a kind is made of ------------------------------------------------------------------------------------------

MERGED = {"kl": 1e-9, "logit_max_abs_diff": 0.1, "greedy_agreement": 1.0, "verdict": "close"}
INDEX, MAP = "model/model.safetensors.index.json", {"weight": "../../../../etc/x.safetensors"}
ODD = (
    "README.md",
    "x.ps1",
    "x.bat",
    "x.desktop",
    "Makefile",
    ".bashrc",
    ".git/hooks/post-checkout",
    "x.dat",
    "conftest.json",
    "x.svg",
)
ODD += (
    "adapters/0/model.jinja",
    "adapters/x/adapter_config.json",
    "value/x.json",
    "report.html",
    "model/config.json",
    "head.safetensors",
)
KINDS: list[Case] = [
    *(files(f"kind: {name}", {name: b"{}"}, "is no file that an adapter artifact") for name in ODD),
    files("kind: notebook of a report", {"x.ipynb": b"{}"}, "is no file that a report", kind="report"),
    files("kind: program of a model", {"model/run": b"\x7fELF"}, "is no file that a model", kind="model"),
    *(
        files(f"kind: {name} is missing", {name: None}, f"cannot do without {name}")
        for name in (CONFIG, WEIGHTS, "tokenizer/tokenizer.json")
    ),
    files("kind: reward without a head", {"head.safetensors": None}, "cannot do without head", kind="reward"),
    files("kind: report without a page", {"report.html": None}, "cannot do without report.html", kind="report"),
    files("kind: data without data", {"data.jsonl": None}, "cannot do without data.jsonl", kind="data"),
    files(
        "kind: head that is none",
        {"head.safetensors": shaped({"weight": [2, 2], "bias": []})},
        "a head is a vector",
        kind="reward",
    ),
    files(
        "kind: half an adapter",
        {"adapters/1/adapter_config.json": json.dumps(SHAPE).encode()},
        "adapters/1 has no adapter_model",
    ),
    files("kind: tensors of no layer", {WEIGHTS: tensors(1)}, "it holds 'weight'"),
    files("kind: tensors in bytes", {WEIGHTS: factors(1).replace(b"F32", b"I32")}, "is I32"),
    files(
        "kind: weights elsewhere",
        {INDEX: json.dumps({"weight_map": MAP}).encode(), "model/model.safetensors": None},
        "expected names of",
        kind="model",
    ),
    files(
        "kind: adapter inside a model",
        {"model/adapter_config.json": json.dumps(SHAPE).encode()},
        "both a model and an adapter",
        kind="model",
    ),
    files("kind: model without weights", {"model/model.safetensors": None}, "no weights", kind="model"),
    files("kind: model without words", {"model/tokenizer.json": None}, "no vocabulary", kind="model"),
    files("kind: no tokenizer", {"tokenizer/tokenizer.json": b"{}"}, "is no tokenizer: Model missing"),
    files(
        "kind: another tokenizer",
        {"tokenizer/tokenizer.json": TOKENIZER.replace(b"auto_map", b"auto_nap")},
        r"its digest is [0-9a-f]{12}; the manifest's text\.tokenizer is",
    ),
    files(
        "kind: another template",
        {"tokenizer/chat_template.jinja": b"{{ messages }}"},
        r"its digest is [0-9a-f]{12}; the manifest's text\.chat_template is 222222222222",
    ),
    manifest("kind: adapter on no base", "base is null", base=None),
    manifest("kind: model without a text contract", "text is null", kind="model", text=None),
    manifest("manifest: huge version", "version is no number", version=10**4000),
    manifest("manifest: huge id", "text.stop_ids is", text=TEXT | {"stop_ids": [10**4000]}),
    manifest("manifest: metric of markup", "metrics.a is", metrics={"a": "<img src=x onerror=alert(1)>"}),
    manifest("manifest: metric of metrics", "metrics.a is", metrics={"a": {"b": 1}}),
    manifest("manifest: huge metric", "metrics.a is", metrics={"a": 10**400}),
    manifest("manifest: half an interval", "metrics.a_ci95 is", metrics={"a": 1, "a_ci95": 5}),
    manifest(
        "manifest: verdict on nothing",
        "a verdict without greedy",
        kind="model",
        base=None,
        metrics={"verdict": "equal"},
    ),
    manifest("manifest: verdict on an adapter", "its verdict is 'x'; merged models", metrics={"verdict": "x"}),
    manifest(
        "manifest: verdict of any word",
        "its verdict is 'x'; merged models",
        kind="model",
        metrics=MERGED | {"verdict": "x"},
    ),
    manifest(
        "manifest: verdict on 4 bits",
        "without .*quantised/kl",
        kind="model",
        base=BASE | {"quantize": "nf4"},
        metrics=MERGED,
    ),
    manifest("manifest: name of data", "data has the name 'xxx.* of 999 characters", data={"x" * 999: "0" * 64}),
    (
        "manifest: name of a parent",
        lambda far: far.named(far.artifact(parents={"x" * 999: far.artifact()})),
        "parents has the name .* of 999 characters",
    ),
    manifest("manifest: endless name of data", "the key 'xxx.* has 500,000 characters", data={"x" * 500_000: "0" * 64}),
    manifest("manifest: name of a metric", "the key 'xxx.* has 5,000 characters", metrics={"x" * 5000: 1}),
    manifest("manifest: metric without an end", "metrics.a is", metrics={"a": -1e308}),
    manifest(
        "base: model of code",
        "base.model is",
        base=BASE | {"model": 'x"); import os; os.system("touch /tmp/escaped"); ("'},
    ),
    manifest("base: revision of code", "base.revision is", base=BASE | {"revision": 'main"); print("x"); ("'}),
    manifest("base: second line", "base.model is", base=BASE | {"model": "tiny\nverified: yes"}),
    files(
        "rows: history of words",
        {"history.jsonl": b'{"step": 1, "loss": "<script>"}\n'},
        "history.jsonl of sft .* line 1",
    ),
    files("rows: history without steps", {"history.jsonl": b'{"loss": 1}\n'}, "line 1 is not what a stage writes"),
    *(
        files(
            f"rows: history of {row}", {"history.jsonl": f"{{{row}}}\n".encode()}, "line 1 is not what a stage writes"
        )
        for row in (
            '"step":-1e308,"loss":1',
            '"step":1e308,"loss":1',
            '"step":1,"loss":1e308',
            '"step":-1,"loss":1',
            '"step":NaN,"loss":1',
        )
    ),
    files("rows: guard of lists", {"guard.jsonl": b"[1]\n"}, "guard.jsonl of sft .* line 1"),
    files("rows: deep guard", {"guard.jsonl": b"[" * 100_000 + b"\n"}, "guard.jsonl of sft .* line 1"),
    files("rows: guard of other bytes", {"guard.jsonl": b"\xff\n"}, "guard.jsonl of sft .* line 1"),
    files("rows: watched", {"watched.jsonl": b'{"prompt": [1], "answers": []}\n'}, "watched.jsonl of sft .* line 1"),
]


def page(title: str, text: str, reason: str = "which no report has", start: str = PAGE) -> Case:
    return files(
        f"page: {title}", {"report.html": (start + text).encode()}, reason, kind="report", base=None, text=None
    )


PAGES = [
    page("script", "<script>document.title = 'owned'</script>"),
    page("script in capitals", "<SCRIPT/x>1</SCRIPT>"),
    page("script in a picture", "<svg><script>1</script></svg>"),
    page("image", "<img src=x onerror=alert(1)>"),
    page("frame", "<iframe src='javascript:1'></iframe>"),
    page("link", "<a href='javascript:1'>x</a>"),
    page("form", "<form action=//evil><button>x</button></form>"),
    page("second policy", '<meta http-equiv="refresh" content="0;url=//evil">'),
    page("comment", "<!--><script>1</script>-->"),
    page("base", "<base href=//evil>"),
    page("embedded", "<embed src=x>"),
    page("foreign", "<svg><foreignObject></foreignObject></svg>"),
    page("template", "<template><b>1</b></template>"),
    page("body that runs", "<body onload=alert(1)>"),
    page("body that runs, quoted", '<body class="x" onload="alert(1)">'),
    page("picture that runs", "<svg/onload=alert(1)>"),
    page("link of a picture", '<svg href="//evil">'),
    page("style of an element", '<p style="background: url(//evil)">'),
    page("background", '<table background="//evil">'),
    page("style sheet", "<style>@import url(//evil);</style>", "a style sheet with '@import'"),
    page("style sheet with escapes", r"<style>p { background: \75rl(//evil) }</style>", "a style sheet with"),
    page("style sheet without an end", "<style>p { background: URL(//evil)", "a style sheet with 'URL'"),
    page("no policy", "<title>x</title>", "does not begin as a report", start="<!DOCTYPE html>\n"),
    page("other policy", "", "does not begin as a report", start=PAGE.replace("'none'", "*", 1)),
    page("something before it", "", "does not begin as a report", start="\ufeff" + PAGE),
]

PAGES.append(
    files(
        "table: escape",
        {"table.txt": b"\x1b]0;owned\x07"},
        "table.txt of .* control character",
        kind="report",
        base=None,
        text=None,
    )
)

# ---- lineages --------------------------------------------------------------------------------------------------------


def chain(length: int) -> Callable[[Far], None]:
    def make_it(far: Far) -> None:
        digest = far.artifact()
        for number in range(length):
            digest = far.artifact(version=number, parents={"parent": digest})
        far.named(digest)

    return make_it


def circle(far: Far) -> None:
    """Two that name each other: one of them cannot be under its own name."""
    first = "a" * 64
    second = far.artifact(parents={"parent": first})
    far.write(f"artifacts/{first}.json", canonical_json(whole() | {"parents": {"parent": second}}))
    far.named(second)


def self_parent(far: Far) -> None:
    far.write(f"artifacts/{'b' * 64}.json", canonical_json(whole() | {"parents": {"parent": "b" * 64}}))
    far.named("b" * 64)


LINEAGES: list[Case] = [
    ("lineage: circle", circle, "is not what its name says"),
    ("lineage: its own parent", self_parent, "is not what its name says"),
    ("lineage: absurdly long", chain(300), "no lineage is that long"),
    manifest("lineage: missing parent", "is missing, but something there needs it", parents={"parent": "c" * 64}),
    manifest("lineage: missing base", "is missing", base=BASE | {"model": f"artifact:{'0' * 64}"}),
    manifest(
        "lineage: base is no digest", "is refused|base.model|is missing", base=BASE | {"model": "artifact:../../x"}
    ),
    manifest("lineage: thousands of parents", "is missing", parents={f"p{n}": f"{n:064x}" for n in range(5_000)}),
]

# ---- names -----------------------------------------------------------------------------------------------------------


def pointing(content: bytes, *names: str) -> Callable[[Far], None]:
    def make_it(far: Far) -> None:
        digest = far.artifact()
        for name in names or ("best",):
            far.write(f"refs/{name}", content.replace(b"DIGEST", digest.encode()))

    return make_it


BAD_NAMES = {"space": "a b", "flag": "-rf", "dots": "a..b", "umlaut": "\u00e4", "long": "x" * 201, "bell": "a\a"}
REFS: list[Case] = [
    *((f"name: {title}", pointing(b"DIGEST\n", name), "cannot be a ref") for title, name in BAD_NAMES.items()),
    ("name: name and folder here", pointing(b"DIGEST\n", "quickstart"), "cannot be a ref"),
    ("name: name and folder of one here", pointing(b"DIGEST\n", "mine/deeper"), "cannot be a ref"),
    ("name: differs in case there", pointing(b"DIGEST\n", "best", "Best"), "cannot both be names"),
    ("name: differs in case here", pointing(b"DIGEST\n", "MINE"), "cannot both be names"),
    ("name: points nowhere", pointing(b"d" * 64 + b"\n"), "is missing, but something there needs it"),
    ("name: no digest", pointing(b"../../artifacts\n"), "refs/best holds .* expected the digest"),
    ("name: empty", pointing(b""), "refs/best holds b''"),
    ("name: no line end", pointing(b"DIGEST"), "expected the digest"),
    ("name: carriage return", pointing(b"DIGEST\r\n"), "has more than 65 bytes"),
    ("name: huge", pointing(b"DIGEST\n" * 1_000_000), "has more than 65 bytes"),
    ("name: none", lambda far: far.artifact(), "holds no names"),
    (
        "format: of tomorrow",
        lambda far: (pointing(b"DIGEST\n")(far), far.write("format", b"2\n")),
        "A newer Align may read it",
    ),
    ("format: huge", lambda far: (pointing(b"DIGEST\n")(far), far.write("format", b"1\n" * 10_000)), "has more than"),
]

# ---- links and special files -----------------------------------------------------------------------------------------


def linked(what: str) -> Callable[[Far], None]:
    """One path of a sound remote replaced by a symlink to the same content."""

    def make_it(far: Far) -> None:
        digest = far.artifact({"guard.jsonl": b""})
        far.named(digest)
        place = far.folder / {
            "object": place_of(far.object(b"")),
            "manifest": f"artifacts/{digest}.json",
            "name": "refs/best",
        }.get(what, what)
        target = far.folder.parent / "target"
        place.rename(target)
        place.symlink_to(target)

    return make_it


def special(make_special: Callable[[Path], Any]) -> Callable[[Far], None]:
    def make_it(far: Far) -> None:
        far.named(far.artifact({"guard.jsonl": ENTRY}))
        (far.folder / place_of(ENTRY)).parent.mkdir(parents=True)
        make_special(far.folder / place_of(ENTRY))

    return make_it


LINKS: list[Case] = [
    *(
        (f"symlink: {what}", linked(what), "is a symlink")
        for what in ("object", "manifest", "name", "objects", "artifacts", "refs")
    ),
    ("pipe for an object", special(os.mkfifo), "is no plain file"),
    ("folder for an object", special(os.mkdir), "is no plain file"),
    ("device for an object", special(lambda path: path.symlink_to("/dev/zero")), "is a symlink"),
]

CORPUS: list[Case] = [
    *NAMES,
    *PICKLES,
    *SAFETENSORS,
    *MANIFESTS,
    *OBJECTS,
    *SETTINGS,
    *KINDS,
    *PAGES,
    *LINEAGES,
    *REFS,
    *LINKS,
]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[tuple[Store, Far]]:
    """A store in use, and a remote beside it, in a folder of their own."""
    store = Store(tmp_path / "desk/store")
    store.tag("mine", make_family(store, tmp_path / "made")["sft"])
    yield store, Far(tmp_path / "desk/far")


def tree(folder: Path, without: Path) -> dict[str, bytes | None]:
    """Every path below `folder` but for lock files and what lies below `without`, with what it holds."""
    paths = [
        path for path in folder.rglob("*") if without not in [path, *path.parents] and not path.name.endswith(".lock")
    ]
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in paths
        if path.is_file() or path.is_symlink()
    }


@pytest.mark.parametrize(
    ("make_it", "reason"), [pytest.param(make_it, reason, id=title) for title, make_it, reason in CORPUS]
)
def test_what_is_hostile_is_refused(
    make_it: Callable[[Far], Any], reason: str, desk: tuple[Store, Far], tmp_path: Path
):
    store, far = desk
    make_it(far)
    before = tree(tmp_path, without=far.folder)
    with pytest.raises(AlignError, match=reason) as refused:
        dispatch(["pull", str(far.folder), "--store", str(store.path)])
    assert refused.value.exit_code in (1, 2) and len(str(refused.value)) < 2000 and "\x1b" not in str(refused.value)
    assert tree(tmp_path, without=far.folder) == before
    assert not Path("/tmp/escaped").exists() and store.verify() == []


def test_the_corpus_is_large_and_each_case_its_own():
    assert len(CORPUS) >= 240 and len({title for title, _, _ in CORPUS}) == len(CORPUS)


def test_what_is_sound_is_pulled(desk: tuple[Store, Far]):
    """Negative control: the artifact that every case spoils is taken, files, lineage, names and all."""
    store, far = desk
    chain(150)(far)
    more = {
        "tokenizer/tokenizer_config.json": b'{"auto_map": null}',
        "tokenizer/vocab.json": b'{"auto_map": 7}',
        "watched.jsonl": b"",
    }
    parent = far.artifact(more, config={"prompt": "two\nlines\tand \u65e5\u672c\u8a9e\u3000"})
    far.named(far.artifact(parents={"parent": parent}, metrics={"kl": 0.5, "kl_ci95": [0.4, 0.6]}), "b/est")
    far.named(far.artifact(kind="model", metrics=MERGED), "b/merged")
    for kind in ("model", "reward", "report", "data"):
        changes = {} if kind in ("model", "reward") else {"base": None, "text": None}
        far.named(far.artifact(kind=kind, **changes), f"b/{kind}")
    dispatch(["pull", str(far.folder), "--store", str(store.path)])
    assert store.verify() == [] and {"b/est", "b/report", "best", "mine"} <= set(store.refs())
    assert len(list(store.artifacts())) == 3 + 151 + 2 + 5
    assert contents(store.folder(store.resolve(parent))) == SOUND["adapter"] | more


def test_a_lineage_of_twos_is_walked_once(desk: tuple[Store, Far]):
    """Sixty generations with two roles each are 2**60 paths, and 61 artifacts."""
    store, far = desk
    digest = far.artifact()
    for number in range(60):
        digest = far.artifact(version=number, parents={"parent": digest, "reward": digest})
    far.named(digest)
    dispatch(["pull", str(far.folder), "--store", str(store.path)])
    dispatch(["lineage", "best", "--store", str(store.path)])
    assert (
        store.lineage("best").parents["parent"] is store.lineage("best").parents["reward"]
        or store.lineage("best").artifact.version == 59
    )


def test_what_never_ends_is_read_no_further_than_its_size(desk: tuple[Store, Far], monkeypatch: pytest.MonkeyPatch):
    store, far = desk
    far.named(far.artifact({"guard.jsonl": ENTRY}))
    read = []

    sound = Folder.chunks

    def endless(remote: Folder, path: str) -> Iterator[bytes]:
        if path != place_of(ENTRY):
            yield from sound(remote, path)
            return
        for number in itertools.count():
            read.append(number)
            yield b"x"

    monkeypatch.setattr(Folder, "chunks", endless)
    monkeypatch.setattr(
        Folder,
        "read",
        lambda remote, path, limit: (far.folder / path).read_bytes() if (far.folder / path).exists() else None,
    )
    with pytest.raises(AlignError, match="has more than the 1 bytes"):
        store.pull(far.folder)
    assert len(read) == 2


# ---- the same at home ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        *((name, b"x", "is a pickle or a program") for name in ("a.bin", "deep/a.pt", "a.PKL", "modeling.py")),
        *(("weights", pickle.dumps([1], protocol), "is a pickle by its first bytes") for protocol in (2, 5)),
        ("a.safetensors", archive(), "is a pickle by its first bytes"),
        ("con.json", b"{}", "cannot be the name of a file"),
    ],
)
def test_put_stores_no_pickle(name: str, content: bytes, reason: str, store: Store, tmp_path: Path):
    before = fill(tmp_path / "files", {name: content, "aa": b"fine"})
    with pytest.raises(AlignError, match=reason):
        put(store, before)
    assert not store.path.exists()
    (before / name).unlink()
    assert put(store, before).files


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_reads_as_a_pickle(length: int, store: Store, tmp_path: Path):
    """A safetensors file begins with the length of its header: of 640 bytes it begins as a pickle of protocol 2
    does."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    content = length.to_bytes(8, "little") + header + b"\0" * 4
    assert content[:2] == b"\x80" + bytes([length >> 8])
    model = SOUND["model"] | {"model/model.safetensors": content}
    store.tag("best", make(store, tmp_path, 1, files=model, kind="model", base=None))
    assert store.push(tmp_path / "far").files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({CONFIG: b'{"peft_type": "EVIL"}'}, "peft_type is 'EVIL'"),
        ({"tokenizer/tokenizer_config.json": b'{"auto_map": {"a": "b"}}'}, "it sets auto_map"),
        ({WEIGHTS: b"x"}, "no complete safetensors file"),
        ({"x.bat": b"x"}, "is no file that an adapter artifact"),
    ],
)
def test_nothing_is_pushed_that_could_not_be_pulled(
    content: dict[str, bytes], reason: str, store: Store, tmp_path: Path
):
    store.tag("best", make(store, tmp_path, 1, files=model_files(1) | content))
    with pytest.raises(AlignError, match=reason):
        store.push(tmp_path / "far")
    assert (
        not [p for p in (tmp_path / "far").glob("[!fr]*") if p.name not in ("lock", "gate")]
        and Store(tmp_path / "far").refs() == {}
    )


@pytest.mark.parametrize("what", ["objects", "artifacts", "refs"])
def test_a_push_writes_through_no_symlink(what: str, store: Store, tmp_path: Path):
    store.tag("best", make(store, tmp_path, 1))
    (tmp_path / "far").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "far" / what).symlink_to(tmp_path / "outside")
    with pytest.raises(AlignError, match="is a symlink"):
        store.push(tmp_path / "far")
    assert list((tmp_path / "outside").iterdir()) == []
