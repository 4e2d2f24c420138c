"""A rollout server over HTTP: what of vLLM's protocol rollouts take, asked again where a request fails on its way.

vLLM's OpenAI server (vllm/entrypoints/openai) has /v1/models, /v1/load_lora_adapter, /v1/unload_lora_adapter, and
/v1/completions with token ids in and out. SGLang's has the same, the loading without /v1.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from align.ground.errors import AlignError
from align.store.remote.address import without

Body = dict[str, Any]
"""A JSON object as vLLM's protocol has it."""
KEY = "VLLM_API_KEY"
"""The environment variable that holds the server's key, where it wants one."""
PAUSE = 1.0
"""Seconds before a request is sent again, twice as many before each further time."""
PASSING = (429, 502, 503, 504)
"""HTTP states that may be others a moment later."""
NOT_THERE = 404
LOADING = ("/v1/load_lora_adapter", "/load_lora_adapter")
"""Where adapters are loaded: vLLM's place, then SGLang's."""
ALREADY = "already been loaded"
"""What vLLM says of a name that it has."""
GO_ON = "The same command goes on from the last checkpoint, if there is one."


class _Stay(HTTPRedirectHandler):
    """Follows to no other place, which would be shown the key."""

    def redirect_request(self, *_: object) -> None:
        return None


OPENER = build_opener(_Stay)


class Refused(AlignError):
    """The server answered a request with an HTTP error."""

    def __init__(self, message: str, state: int):
        super().__init__(message)
        self.state = state


@dataclass(frozen=True)
class Client:
    """A server at `address`; a request that has no answer within `timeout` seconds, or fails on its way, is sent
    `retries` times more."""

    address: str
    timeout: float
    retries: int

    def ask(self, path: str, body: Body | None = None) -> Any:
        """What the server answers: a POST of `body`, a GET without. JSON where it is JSON, else text.

        Raises: Refused for an HTTP error; AlignError where there is no answer.
        """
        start, why = time.monotonic(), ""
        for attempt in range(1 + self.retries):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return _read(self._once(path, body))
            except HTTPError as error:
                said = self._said(error)
                if error.code not in PASSING:
                    found = f"the rollout server at {self.address} refused {path}: {said.rstrip('.')}."
                    raise Refused(found, error.code) from error
                why = said
            except (TimeoutError, URLError, ConnectionError, http.client.HTTPException) as error:
                why = self._reason(error)
        tries = f"{1 + self.retries} tries in {time.monotonic() - start:.0f} s" if self.retries else "one try"
        raise AlignError(
            f"the rollout server at {self.address} does not answer {path} ({why}; {tries}). Start it again, or give "
            f"another `rollouts.server`. {GO_ON}"
        )

    def _once(self, path: str, body: Body | None) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        with OPENER.open(Request(self.address + path, data, headers), timeout=self.timeout) as answer:
            text: str = answer.read().decode(errors="replace")
        return text

    def _reason(self, error: Exception) -> str:
        """Why there was no answer, in words."""
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            return f"no answer within {self.timeout:g} s"
        return _hidden(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)

    def _said(self, error: HTTPError) -> str:
        """An HTTP error in words, with the server's own where it has some."""
        try:
            text = error.read().decode(errors="replace")
        except OSError:
            text = ""
        try:
            found = json.loads(text)
            found = found.get("error", found)
            text = found if isinstance(found, str) else found.get("message") or found["detail"]
        except (ValueError, KeyError, TypeError, AttributeError):
            text = "" if text.lstrip().startswith("<") else text  # a page of HTML says no more than its state
        words = " ".join(str(text).split())[:300] or str(error.reason)
        return _hidden(f"{error.code}, {words}")

    # ---- what rollouts ask for ---------------------------------------------------------------------------------------

    def served(self) -> Body:
        """The base that is served, as /v1/models has it: `id`, `max_model_len`.

        Raises: AlignError where there is no server, or none of this protocol.
        """
        try:
            models = self.ask("/v1/models")
            bases = [model for model in models["data"] if not model.get("parent")]
            found: Body = bases[0]
        except (Refused, KeyError, IndexError, TypeError, AttributeError) as error:
            state = error.state if isinstance(error, Refused) else NOT_THERE
            if state in (401, 403):
                raise Refused(f"{error} Set {KEY} in the environment to the server's key.", state) from error
            if state != NOT_THERE:
                raise
            raise AlignError(
                f"{self.address}/v1/models answers, but not as vLLM's or SGLang's server does. Give rollouts.server "
                "the address of one, without /v1."
            ) from error
        return found

    def version(self) -> str:
        """What the server says that it is, "" where it does not."""
        try:
            found = self.ask("/version")
            return str(found.get("version", "")) if isinstance(found, dict) else ""
        except Refused:
            return ""

    def load(self, name: str, folder: str) -> None:
        """Have the server load the adapter in a folder, which it must see under this path, under a name.

        Raises: AlignError, with what to do.
        """
        for place in LOADING:
            try:
                self.ask(place, {"lora_name": name, "lora_path": folder})
                return
            except Refused as error:
                if error.state == NOT_THERE and name not in str(error):
                    continue  # no such page
                if ALREADY in str(error):
                    return  # the first time, whose answer was lost: nobody else has this name
                raise AlignError(
                    f"{error} It must see the adapter's folder {folder} (rollouts.folder puts it elsewhere), and take "
                    "its rank (vLLM: --max-lora-rank)."
                ) from error
        raise AlignError(
            f"the rollout server at {self.address} loads no adapters while it runs. Start vLLM with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
        )

    def unload(self, name: str) -> None:
        """Have the server forget an adapter. Raises: AlignError."""
        for place in LOADING:
            try:
                self.ask(place.replace("load", "unload", 1), {"lora_name": name})
                return
            except Refused as error:
                if error.state != NOT_THERE:
                    raise


def _read(text: str) -> object:
    """JSON where it is JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _hidden(text: str) -> str:
    """The text without the server's key."""
    key = os.environ.get(KEY)
    return without([key], text) if key else text
