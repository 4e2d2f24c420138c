"""What is asked of a rollout server, and of what it is to serve, before a base is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.ground.errors import AlignError, InputError
from align.rl.server.client import Client

if TYPE_CHECKING:
    from align.rl.server.settings import RolloutServer
    from align.stage.workbench import Workbench

SOON = 10.0
"""Seconds that a rehearsal waits for a server."""
METHODS = ("lora", "rslora")
"""Adapters that vLLM loads."""


def client_of(settings: RolloutServer) -> Client:
    return Client(settings.server, settings.timeout, settings.retries)


def check_policy(bench: Workbench, ahead: bool = False) -> None:
    """A server can take the policy that these settings make; `ahead` of a run it is asked whether it is there. Raises:
    InputError."""
    if bench.config.rollouts is None:
        return
    check_place(bench.config.rollouts)
    method = bench.settings.get("adapter", {}).get("method", METHODS[0])
    if method not in METHODS:
        raise InputError(
            f"rollouts.server takes adapters of {' and '.join(METHODS)}, and adapter.method is {method}. Take one of "
            "these, or leave out rollouts."
        )
    if bench.question.base is not None and bench.base.is_encoder_decoder:
        raise InputError(
            f"rollouts.server: the base {bench.base.label} is an encoder-decoder, which vLLM does not serve. Leave out "
            "rollouts."
        )
    if ahead:
        check_there(bench.config.rollouts)


def check_place(settings: RolloutServer) -> None:
    """What is to hold the folder of adapters is there: a name that was misspelt would be made without a word, and the
    server see nothing. Raises: InputError."""
    parent = Path(os.path.expanduser(settings.folder)).parent if settings.folder else None
    if parent is not None and not parent.is_dir():
        raise InputError(f"rollouts.folder: there is no folder {parent}. Make it where the server sees it too.")


def check_there(settings: RolloutServer) -> None:
    """The server answers, asked once. Raises: InputError."""
    try:
        Client(settings.server, min(settings.timeout, SOON), 0).served()
    except AlignError as error:
        raise InputError(f"rollouts.server: {error}") from error


def check_server(bench: Workbench, prompt_ids: Sequence[Sequence[int]]) -> None:
    """The server is there, and takes prompts and answers of these lengths; the manifest notes what it says that it is.

    Raises: InputError.
    """
    c = bench.config
    if c.rollouts is None:
        return
    client = client_of(c.rollouts)
    try:
        served: dict[str, Any] = client.served()
        version = client.version()
    except AlignError as error:
        raise InputError(f"rollouts.server: {error}") from error
    longest, limit = max(map(len, prompt_ids)) + c.max_new_tokens, served.get("max_model_len")
    if limit is not None and longest > limit:
        raise InputError(
            f"rollouts.server: {c.rollouts.server} serves {served.get('id')} with max_model_len {limit:,}, and the "
            f"longest prompt with max_new_tokens needs {longest:,}. Start it with --max-model-len {longest}."
        )
    bench.held["rollout_server"] = {"model": served.get("id"), "version": version}
