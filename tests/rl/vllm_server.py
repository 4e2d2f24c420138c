"""A small server that speaks vLLM's protocol, on the standard library, with plain transformers and PEFT behind it: what
Align's rollouts are held against.

Written after vllm/entrypoints/openai (models/serving.py, completion/protocol.py and serving.py): the same paths, fields
and errors, as far as rollouts go. With `faults` it misbehaves as servers do.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase


@dataclass
class Faults:
    """What goes wrong, each at the request of this number to /v1/completions, counted from 0."""

    dies: int | None = None
    slow: int | None = None
    seconds: float = 0.0
    busy: int | None = None
    gap: float = 0.0
    """Added to every log-prob, in nats."""
    cuts: bool = False
    """Answers lose their last token, and have no stop token there."""


@dataclass
class State:
    """What the server holds, and what it was asked."""

    model: Any
    faults: Faults
    base: str = "served-base"
    tokenizer: PreTrainedTokenizerBase | None = None
    key: str = ""
    max_model_len: int = 128
    sglang: bool = False
    frozen: bool = False
    """Loads no adapters while it runs."""
    loaded: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    completions: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def adapters(self) -> list[str]:
        """Names that were loaded, in their order."""
        return [body["lora_name"] for path, body in self.asked if path.endswith("/load_lora_adapter")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        state = self.server.state
        if self.path == "/version" and not state.sglang:
            return self.say(200, {"version": "0.0.fake"})
        if self.path == "/v1/models":
            if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
                return self.say(401, {"error": "Unauthorized"})
            cards: list[dict[str, Any]] = [
                {"id": state.base, "object": "model", "parent": None, "max_model_len": state.max_model_len}
            ]
            cards += [{"id": name, "object": "model", "parent": state.base} for name in state.loaded]
            return self.say(200, {"object": "list", "data": cards})
        return self.say(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.asked.append((self.path, body))
        if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
            return self.say(401, {"error": "Unauthorized"})
        loading = "" if state.sglang else "/v1"
        if self.path == f"{loading}/load_lora_adapter" and not state.frozen:
            return self.load(body["lora_name"], body["lora_path"])
        if self.path == f"{loading}/unload_lora_adapter" and not state.frozen:
            return self.unload(body["lora_name"])
        if self.path == "/v1/completions":
            return self.complete(body)
        return self.say(404, {"detail": "Not Found"})

    def say(self, status: int, body: Any) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, kind: str, message: str) -> None:
        self.say(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def load(self, name: str, path: str) -> None:
        state = self.server.state
        if name in state.loaded:
            return self.error(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        if not Path(path, "adapter_config.json").is_file():
            return self.error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        with state.lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of transformers
            if isinstance(state.model, PeftModel):
                state.model.load_adapter(path, name)
            else:
                state.model = PeftModel.from_pretrained(state.model, path, name)
            state.loaded[name] = path
        return self.say(200, f"Success: LoRA adapter '{name}' added successfully.")

    def unload(self, name: str) -> None:
        state = self.server.state
        if name not in state.loaded:
            return self.error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del state.loaded[name]
        return self.say(200, f"Success: LoRA adapter '{name}' removed successfully.")

    def complete(self, body: dict[str, Any]) -> None:
        state, faults = self.server.state, self.server.state.faults
        with state.lock:
            number, state.completions = state.completions, state.completions + 1
        if faults.dies is not None and number >= faults.dies:
            self.close_connection = True
            return self.connection.close()
        if number == faults.slow:
            time.sleep(faults.seconds)
        if number == faults.busy:
            return self.error(503, "ServiceUnavailable", "The engine is starting.")
        if body["model"] not in (state.base, *state.loaded):
            return self.error(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
        with state.lock, torch.no_grad():
            if body["model"] in state.loaded:
                state.model.set_adapter(body["model"])
            choices = [self.choice(body, i) for i in range(body["n"])]
        return self.say(200, {"object": "text_completion", "model": body["model"], "choices": choices})

    def text(self, ids: list[int], skip: bool) -> str:
        tokenizer = self.server.state.tokenizer
        return "" if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=skip))

    def choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        """One completion, token by token."""
        state = self.server.state
        assert body["ignore_eos"] and body["return_token_ids"] and body["top_k"] == -1 and body["top_p"] == 1.0
        draws = torch.Generator().manual_seed(body["seed"] + index)
        ids, logprobs, reason = list(body["prompt"]), [], "length"
        start, cache, read = len(ids), None, ids
        for _ in range(body["max_tokens"]):
            out = state.model(torch.tensor([read]), past_key_values=cache, use_cache=True)
            logits, cache = out.logits[0, -1].double(), out.past_key_values
            chances = (logits / (body["temperature"] or 1.0)).log_softmax(-1)
            greedy = body["temperature"] <= 0.01
            new = int(chances.argmax()) if greedy else int(torch.multinomial(chances.exp(), 1, generator=draws))
            ids.append(new)
            read = [new]
            logprobs.append(float(chances[new]) + state.faults.gap)
            text = self.text(ids[start:], body["skip_special_tokens"])
            if new in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                reason = "stop"
                break
        if state.faults.cuts:
            ids.pop()
            logprobs.pop()
        tokens = [self.text([i], False) for i in ids[start:]]
        return {
            "index": index,
            "text": "".join(tokens),
            "logprobs": {"token_logprobs": logprobs, "tokens": tokens, "text_offset": [], "top_logprobs": []},
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": ids[start:],
            "prompt_token_ids": body["prompt"],
        }


class Server(ThreadingHTTPServer):
    """Serves a model folder at `address` until it is closed."""

    daemon_threads = True

    def __init__(self, folder: Path, faults: Faults | None = None, **more: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.state = State(model, faults or Faults(), **more)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def handle_error(self, *_: object) -> None:
        """Nothing: whoever asked has gone."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()
