"""A sampler whose answers a server draws: the policy's adapters are loaded there under a name that no other policy ever
has, so that no cached prefix is another's, and unloaded once the policy changes.

Prompts go as token ids and answers come as token ids with their log-probs; nothing is tokenised again. The draws are
those of the whole distribution, as `sampling.rollout` makes them: temperature, and none of the settings that a
checkpoint brings for `generate`.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from align.ground.errors import AlignError
from align.ground.progress import Task
from align.models.roles import Roles
from align.rl.server.adapter import check_servable, save_as_one
from align.rl.server.checks import client_of
from align.rl.server.client import GO_ON, Body, Client
from align.rl.server.threads import in_threads
from align.sampling.rollout import Answer, Sampler
from align.sampling.stopping import StopStrings
from align.training.processes import barrier, from_first, rank_and_world

if TYPE_CHECKING:
    from align.rendering.render import Renderer
    from align.stage.workbench import Workbench

WHOLE = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Nothing of the distribution is cut off, whatever generation_config.json says."""
LARGEST_SEED = 2**31
CLOSING = 5.0
"""Seconds that a server is waited for at the end of a run that failed."""

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class SampleRequest:
    """What is asked of a sampler."""

    prompts: Rows
    n: int
    max_new_tokens: int
    temperature: float


@dataclass
class ServedSampler:
    """Samples completions from one role, as `sampling.rollout.Sampler` does, by `requests` requests at a time; answers
    end at any of `stop_ids` and at `stop`."""

    roles: Roles
    role: str
    client: Client
    folder: Path
    """Where adapters lie for the server, which sees them under the same path."""
    requests: int
    stop_ids: Sequence[int]
    strings: StopStrings | None
    name: str = ""
    """Of the policy as it is now, on the server; "" where it is not there."""
    in_use: list[str] = field(default_factory=list)
    """Names of earlier ones that are sampled from still."""
    ahead: tuple[SampleRequest, Callable[[], list[list[Answer]]]] | None = None
    """What was asked ahead, and what waits for it."""

    def __post_init__(self) -> None:
        check_servable(self.roles, self.role)
        self.vocabulary = cast(torch.nn.Embedding, self.roles.base.get_input_embeddings()).num_embeddings

    def __call__(self, prompts: Rows, *, n: int, max_new_tokens: int, temperature: float) -> list[list[Answer]]:
        """`n` completions of each prompt, as `sampling.rollout.Sampler` gives them, by seeds from torch's global
        generator. Raises: AlignError where the server does not answer, or not by the protocol."""
        asked = SampleRequest(prompts, n, max_new_tokens, temperature)
        if self.ahead is not None and self.ahead[0] == asked:
            finish, self.ahead = self.ahead[1], None
            return finish()
        return self._begin(asked)()

    def draw_ahead(self, prompts: Rows, *, n: int, max_new_tokens: int, temperature: float) -> None:
        """Have the server begin with what the next such call is to give, by the policy as it is now."""
        asked = SampleRequest(prompts, n, max_new_tokens, temperature)
        self.ahead = asked, self._begin(asked)

    def drawn_ahead(self) -> list[list[Answer]]:
        """What was asked ahead, once it is there; the next such call gives it still."""
        assert self.ahead is not None
        answers = self.ahead[1]()
        self.ahead = self.ahead[0], lambda: answers
        return answers

    def _begin(self, asked: SampleRequest) -> Callable[[], list[list[Answer]]]:
        """Send what is asked; the function that is given waits for the answers."""
        seeds = torch.randint(LARGEST_SEED, (len(asked.prompts),)).tolist()
        self._load()
        bodies = [self._request(prompt, asked, seed) for prompt, seed in zip(asked.prompts, seeds, strict=True)]
        futures = in_threads(self._answers, bodies, self.requests)

        def finish() -> list[list[Answer]]:
            try:
                with Task("sampling", len(bodies) * asked.n, "answers") as task:
                    for done in as_completed(futures):
                        task.add(len(done.result()))
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()

        return finish

    def forget(self) -> None:
        """The policy is about to change: the next call loads it as it then is, and the server forgets those that nobody
        samples from."""
        barrier()  # also on no other rank
        done, self.in_use = self.in_use, []
        if self.name:
            (done if self.ahead is None else self.in_use).append(self.name)
        self.name = ""
        for name in done:
            self._unload(name)

    def close(self) -> None:
        """Leave nothing on the server, where it still answers."""
        left = replace(self, client=replace(self.client, timeout=CLOSING, retries=0))
        for name in [*self.in_use, *([self.name] if self.name else [])]:
            left._unload(name)
        self.name, self.in_use, self.ahead = "", [], None

    # ---- adapters ----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Have the server load the policy; one rank does it for all."""
        if self.name:
            return
        name = f"align-{secrets.token_hex(8)}"
        if rank_and_world()[0] == 0:
            place = (self.folder / name).absolute()
            save_as_one(self.roles, self.role, place)
            self.client.load(name, str(place))
        self.name = from_first(name)

    def _unload(self, name: str) -> None:
        """Have the server forget an adapter, and take its folder away."""
        if rank_and_world()[0] == 0:
            with suppress(AlignError):  # what is there too long is in nobody's way
                self.client.unload(name)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    # ---- one prompt --------------------------------------------------------------------------------------------------

    def _request(self, prompt: Sequence[int], asked: SampleRequest, seed: int) -> Body:
        """The body of a request to /v1/completions. The stop ids are ours alone, not those of the model's settings."""
        return {
            "model": self.name,
            "lora_path": self.name,  # read by SGLang
            "prompt": list(prompt),
            "n": asked.n,
            "max_tokens": asked.max_new_tokens,
            "temperature": asked.temperature,
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
            "ignore_eos": True,
            "stop_token_ids": list(self.stop_ids),
            "stop": self.strings.strings if self.strings else [],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            **WHOLE,
        }

    def _answers(self, body: Body) -> list[Answer]:
        """One prompt's answers. Raises: AlignError."""
        said = self.client.ask("/v1/completions", body)
        try:
            choices = sorted(said["choices"], key=lambda choice: int(choice["index"]))
            read = [self._read(choice, body) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error
        if len(read) != body["n"]:
            raise self._broken(f"{len(read)} answers where {body['n']} were asked for")
        return read

    def _read(self, choice: Body, body: Body) -> Answer:
        """An answer, checked against what was asked. Whether it ended is read off its ids."""
        ids = [int(i) for i in choice["token_ids"]]
        logprobs = np.array([float(p) for p in choice["logprobs"]["token_logprobs"]], dtype=np.float32)
        if choice.get("prompt_token_ids", body["prompt"]) != body["prompt"]:
            raise self._broken("it read another prompt than it was sent")
        if not ids or len(logprobs) != len(ids):
            raise self._broken(f"an answer of {len(ids)} token ids has {len(logprobs)} log-probs")
        ended = ids[-1] in self.stop_ids or self._holds_stop(ids)
        if not all(0 <= i < self.vocabulary for i in ids):
            raise self._broken(f"token id {max(ids)}, where the base has {self.vocabulary:,}")
        if any(i in self.stop_ids for i in ids[:-1]) or (not ended and len(ids) != body["max_tokens"]):
            why = choice.get("finish_reason")
            raise self._broken(
                f"an answer of {len(ids)} tokens (finish_reason {why}) that neither ends at a stop token nor has "
                f"max_new_tokens ({body['max_tokens']})"
            )
        return Answer(ids, logprobs if body["temperature"] else np.zeros_like(logprobs), ended)

    def _holds_stop(self, ids: list[int]) -> bool:
        """Whether an answer's last token completes a stop string."""
        if self.strings is None:
            return False
        return bool(self.strings.completed(torch.tensor([ids[-self.strings.window :]]))[0])

    def _broken(self, found: str) -> AlignError:
        return AlignError(
            f"the rollout server at {self.client.address} answers /v1/completions otherwise than vLLM does: {found}. "
            f"Align needs `return_token_ids` (vLLM 0.10.2 or later), and a server of this very base. {GO_ON}"
        )


def served(bench: Workbench, roles: Roles, renderer: Renderer) -> ServedSampler | None:
    """Who draws the policy's answers for a stage, where its settings name a server. Raises: InputError for adapters
    that a server cannot take."""
    c = bench.config
    if c.rollouts is None:
        return None
    place = Path(c.rollouts.folder).expanduser() if c.rollouts.folder else bench.folder.parent / "adapters"
    strings = StopStrings(renderer.tokenizer, c.stop) if c.stop else None
    client = client_of(c.rollouts)
    return ServedSampler(roles, "policy", client, place, c.rollouts.requests, renderer.stop_ids, strings)


@contextmanager
def closing(sampler: Sampler | ServedSampler) -> Iterator[None]:
    """Nothing is left on a server when a run ends, however it does."""
    try:
        yield
        sampler.forget()
    finally:
        if isinstance(sampler, ServedSampler):
            sampler.close()
