"""A family of artifacts as stages make them, and an S3 server on this machine that counts what it is asked."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from werkzeug.serving import WSGIRequestHandler, make_server

from align.store import Artifact, Store
from tests.store.conftest import fill, put

TOKENIZER = Tokenizer(WordLevel({"auto_map": 0}, "auto_map")).to_str().encode()
"""One that has the name of a forbidden setting as a word."""
TEXT = {
    "tokenizer": hashlib.sha256(TOKENIZER).hexdigest(),
    "chat_template": "2" * 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "stop_ids": [1],
}
SHAPE = {"peft_type": "LORA", "r": 4, "auto_mapping": None, "base_model_name_or_path": "tiny", "megatron_config": None}
ADAPTER = json.dumps(SHAPE).encode()
HEAD = {"weight": [8], "bias": []}


def tensors(seed: int, size: int = 256) -> bytes:
    """A safetensors file of one tensor, whose bytes depend on `seed`."""
    content = (seed.to_bytes(4, "little") * (size // 4 + 1))[: size - size % 4]
    return packed(
        {"weight": {"dtype": "F32", "shape": [len(content) // 4], "data_offsets": [0, len(content)]}}, content
    )


def factors(seed: int, size: int = 256) -> bytes:
    """The two factors of one layer, of rank 4 and `size` bytes in all."""
    width, name = size // 32, "base_model.model.layer.lora_{}.weight"
    return shaped({name.format("A"): [4, width], name.format("B"): [width, 4]}, seed)


def shaped(sizes: dict[str, list[int]], seed: int = 0) -> bytes:
    """A safetensors file of such tensors, whose bytes depend on `seed`."""
    header, end = {}, 0
    for name, shape in sizes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end := end + 4 * math.prod(shape)]}
    return packed(header, (seed.to_bytes(4, "little") * (end // 4)))


def packed(header: Any, content: bytes = b"") -> bytes:
    """A safetensors file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def model_files(seed: int, size: int = 256) -> dict[str, bytes]:
    return {
        "adapters/0/adapter_model.safetensors": factors(seed, size),
        "adapters/0/adapter_config.json": ADAPTER,
        "tokenizer/tokenizer.json": TOKENIZER,
        "history.jsonl": b'{"loss": 1.0, "step": 1}\n',
    }


def make(
    store: Store, folder: Path, seed: int, *, size: int = 256, files: dict[str, bytes] | None = None, **changes: Any
) -> Artifact:
    """An adapter as SFT makes it, but for `changes`."""
    content = model_files(seed, size) if files is None else files
    return put(store, fill(folder / f"made-{seed}", content), **({"text": TEXT, "config": {"seed": seed}} | changes))


def make_line(store: Store, folder: Path) -> dict[str, Artifact]:
    """A base in the store, an adapter on it, a reward model and a policy from both; each with a name, the last two with
    answers."""
    model = {"model/config.json": b'{"model_type": "llama"}', "model/model.safetensors": tensors(1, 4096)}
    model["model/tokenizer.json"] = model_files(1)["tokenizer/tokenizer.json"]
    base = put(store, fill(folder / "base", model), kind="model", stage="pretrain", base=None, text=TEXT)
    named = f"artifact:{base.digest}"
    on = {"model": named, "revision": None, "digest": base.digest, "quantize": None}
    config = {
        "adapters/0/adapter_config.json": json.dumps(
            {"peft_type": "LORA", "r": 4, "base_model_name_or_path": named}
        ).encode()
    }
    sft = make(store, folder, 2, files=model_files(2) | config, base=on)
    reward = make(
        store, folder, 3, files=model_files(3) | config | {"head.safetensors": shaped(HEAD)},
        base=on, kind="reward", stage="reward",
        parents={"parent": sft},
    )  # fmt: skip
    ppo = make(
        store, folder, 4, files=model_files(4) | config, base=on, stage="ppo", parents={"parent": sft, "reward": reward}
    )
    made = {"base": base, "sft": sft, "reward": reward, "ppo": ppo}
    for name, artifact in made.items():
        store.tag(f"line/{name}", artifact)
        store.remember(artifact.key, artifact)
    return made


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """No line for every request."""


class Server:
    """An S3 server in a thread. `asked` holds a line for every request: "PUT /bucket/key"."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.app = DomainDispatcherApplication(create_backend_app)
        self.asked: list[str] = []
        self.read: dict[Any, bytes] = {}
        self.server = make_server("127.0.0.1", 0, self.count, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.client = boto3.client("s3", endpoint_url=self.url)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def count(self, environ: Any, start_response: Any) -> Any:
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        return self.app(environ, start_response)

    def sent(self) -> list[str]:
        """Objects of the store that were written since the last call."""
        found = [
            line.partition("/objects/")[2] for line in self.asked if line.startswith("PUT") and "/objects/" in line
        ]
        self.asked.clear()
        return sorted(found)

    def bucket(self, name: str) -> str:
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/store"


@contextmanager
def serving() -> Iterator[Server]:
    """An S3 server that botocore finds by itself, in this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{key}", value)
        server = Server()
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        s3fs.S3FileSystem.clear_instance_cache()  # it may know the server of another module
        yield server
        server.server.shutdown()
        server.server.server_close()
