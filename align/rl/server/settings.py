"""Settings of a rollout server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PositiveFloat

from align.recipe import Count, Runtime, Settings
from align.recipe.settings import FromZero, Place

SERVED_FROM = 0.01
"""The lowest temperature above 0 that vLLM samples at: it raises lower ones."""


def _address(given: object) -> object:
    """http(s)://HOST[:PORT][/PATH], without a slash at its end. What is wrong is said without it: it may hold a
    password."""
    if not isinstance(given, str):
        return given
    try:
        parts = urlsplit(given.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("this is no address of a server; expected http://HOST:PORT")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "an address holds no user, password or query; expected http://HOST:PORT, and the server's key in the "
            "environment as VLLM_API_KEY"
        )
    return given.strip().rstrip("/").removesuffix("/v1")


class RolloutServer(Settings):
    """Rollouts by a server

    vLLM (or SGLang) in an environment of its own draws the answers; adapters are loaded there anew for each rollout.
    """

    shorthand: ClassVar[str | None] = "server"

    server: Annotated[str, BeforeValidator(_address), Runtime]
    """Its address, http://HOST:PORT; its key, where it has one, in the environment as VLLM_API_KEY."""
    folder: Annotated[Place | None, Runtime] = None
    """Where adapters are put for the server to read, under the same path on both machines; without it, in the run's own
    folder of the store."""
    timeout: Annotated[PositiveFloat, Runtime] = 600.0
    """Seconds after which a request without an answer is sent again."""
    retries: Annotated[FromZero, Runtime] = 2
    """How often a request is sent again that had no answer, before the run ends."""
    requests: Annotated[Count, Runtime] = 64
    """Requests at a time, one for each prompt."""
    gap_limit: Annotated[PositiveFloat, Runtime] = 0.2
    """End the run where the server's log-probs are further from the trainer's than this on average, in nats per token:
    then it serves another model, where rounding alone would be far less."""
    ahead: bool = False
    """Have the server draw the next rollout while this one is trained on, by the policy from before that; importance
    makes up for it."""


def served_wrongly(given: Mapping[str, object], unweighed: bool) -> list[str]:
    """What is wrong with a stage's settings where a server draws its answers; `unweighed`: it has no importance
    weights."""
    served, temperature, found = given.get("rollouts"), given.get("temperature"), []
    if served and isinstance(temperature, float) and temperature < SERVED_FROM:
        found.append(
            f"temperature ({temperature:g}) is below {SERVED_FROM:g}, which vLLM would take instead; raise it, or "
            "leave out rollouts."
        )
    if not isinstance(served, RolloutServer) or not served.ahead:
        return found
    if given.get("importance") is None and not unweighed:
        found.append(
            "rollouts.ahead trains on answers of the policy before, and importance is not set. Set it, as to "
            "token_truncate (rloo: sequence_truncate), or leave out rollouts.ahead."
        )
    if given.get("resample"):
        found.append(
            "resample draws groups anew, and rollouts.ahead draws the next rollout before it is known which. Leave one "
            "of them out."
        )
    return found
