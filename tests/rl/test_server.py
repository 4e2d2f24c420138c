"""Rollouts by a server: the answers are those of the local sampler, and what goes wrong is said. The truth is a small
server that speaks vLLM's protocol over plain transformers and PEFT (tests/rl/vllm_server.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config

from align import ppo
from align.adapters.targets import lora_config
from align.ground.errors import AlignError, InputError
from align.models.roles import Roles
from align.packed.pack import pack
from align.recipe import parse_flags, resolved
from align.rl.server import client as over_http
from align.rl.server.adapter import check_servable
from align.rl.server.client import Client
from align.rl.server.observers import GapLimit
from align.rl.server.sampler import ServedSampler
from align.sampling.rollout import Sampler, as_example
from tests.models.models import make_base, randomise
from tests.rl.vllm_server import Faults, Server

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]
STOP = [2, 3]


@dataclass
class World:
    """A base with a policy of two stacked adapters, of other ranks and scales, and its folder."""

    roles: Roles
    folder: Path
    local: Sampler

    def greedy(self) -> list[list[list[int]]]:
        return [[a.ids for a in its] for its in self.local(PROMPTS, n=1, max_new_tokens=6, temperature=0.0)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("base")
    base = make_base("llama", torch.float32)
    base.save_pretrained(folder)
    roles = Roles(base)
    roles.add_adapter("below", lora_config(2, 6, "all-linear", 0.0, base))
    roles.add_adapter("mine", lora_config(4, 8, "all-linear", 0.0, base, 1))  # the upper layer alone
    for i, name in enumerate(("below", "mine")):
        randomise(roles, name, seed=i)
    roles.assign("policy", ["below", "mine"])
    return World(roles, folder, Sampler(roles, "policy", STOP, 0))


@contextmanager
def served(
    world: World, place: Path, faults: Faults | None = None, timeout: float = 30.0, **more: Any
) -> Iterator[tuple[Server, ServedSampler]]:
    server = Server(world.folder, faults, **more)
    try:
        client = Client(server.address, timeout, 2)
        yield server, ServedSampler(world.roles, "policy", client, place / "adapters", 2, STOP, None)
    finally:
        server.close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http, "PAUSE", 0.01)


def ids(answers: Any) -> list[list[list[int]]]:
    return [[a.ids for a in several] for several in answers]


@pytest.mark.parametrize("sglang", [False, True])
def test_answers_are_those_of_the_local_sampler(sglang: bool, world: World, tmp_path: Path) -> None:
    """Greedy answers of stacked adapters token by token, before and after they change; each policy has a name of its
    own, and nothing of it is left."""
    with served(world, tmp_path, sglang=sglang) as (server, sampler):
        how = {"n": 1, "max_new_tokens": 6, "temperature": 0.0}
        before = world.greedy()
        assert ids(sampler(PROMPTS, **how)) == before == ids(sampler(PROMPTS, **how))
        randomise(world.roles, "mine", seed=7 + sglang)
        assert ids(sampler(PROMPTS, **how)) == before  # still the one that was loaded
        sampler.forget()
        world.local.forget()
        after = world.greedy()
        assert ids(sampler(PROMPTS, **how)) == after != before
        sampler.forget()
        names = list(dict.fromkeys(server.state.adapters()))
        assert len(names) == 2 and not server.state.loaded
        assert not list((tmp_path / "adapters").iterdir())


def test_draws_have_the_trainers_log_probs(world: World, tmp_path: Path) -> None:
    """At a temperature, for several answers to a prompt; the same seed draws the same, another one others."""
    with served(world, tmp_path) as (_, sampler):
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(sampler(PROMPTS, n=3, max_new_tokens=6, temperature=0.8))
        assert ids(drawn[0]) == ids(drawn[1]) != ids(drawn[2])
        assert len({tuple(a.ids) for a in drawn[0][0]}) > 1
        for prompt, several in zip(PROMPTS, drawn[0], strict=True):
            batch = pack([as_example(prompt, [a.ids for a in several])])
            mine = world.roles.logprobs("policy", batch, 0.8)[batch.loss_mask]
            theirs = torch.cat([torch.from_numpy(a.logprobs) for a in several])
            torch.testing.assert_close(mine.detach(), theirs, atol=2e-5, rtol=0)
            assert all(a.ended == (a.ids[-1] in STOP) and (a.ended or len(a.ids) == 6) for a in several)


def test_what_is_drawn_ahead_is_of_the_policy_before(world: World, tmp_path: Path) -> None:
    with served(world, tmp_path) as (server, sampler):
        how = {"n": 1, "max_new_tokens": 6, "temperature": 0.0}
        before = world.greedy()
        sampler.draw_ahead(PROMPTS, **how)
        sampler.forget()
        randomise(world.roles, "mine", seed=9)
        world.local.forget()
        assert ids(sampler(PROMPTS[:1], **how)) == world.greedy()[:1] != before[:1]  # other prompts: of the policy now
        assert len(server.state.loaded) == 2
        assert ids(sampler(PROMPTS, **how)) == before
        sampler.forget()
        assert not server.state.loaded


def test_a_request_that_fails_on_its_way_is_sent_again(world: World, tmp_path: Path) -> None:
    """One answer that comes too late, and one from a server that is not ready."""
    how = {"n": 1, "max_new_tokens": 6, "temperature": 0.0}
    with served(world, tmp_path, Faults(slow=0, seconds=2.0, busy=2), timeout=1.0) as (server, sampler):
        assert ids(sampler(PROMPTS, **how)) == world.greedy()
        assert server.state.completions == len(PROMPTS) + 2


def test_a_server_that_dies_ends_the_run_in_one_sentence(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(over_http.KEY, "hush-hush")
    with served(world, tmp_path, Faults(dies=1), key="hush-hush") as (_, sampler):
        with pytest.raises(
            AlignError, match=r"does not answer /v1/completions \(.*; 3 tries in \d+ s\)\. Start"
        ) as told:
            sampler(PROMPTS, n=1, max_new_tokens=6, temperature=0.0)
        assert "hush" not in str(told.value) and "\n" not in str(told.value)
        place = tmp_path / "adapters"
        assert "hush" not in "".join(file.read_text("latin-1") for file in place.rglob("*") if file.is_file())
        sampler.close()
        assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("more", "faults", "said"),
    [
        ({"frozen": True}, None, "loads no adapters while it runs. Start vLLM with --enable-lora and VLLM_ALLOW"),
        ({"key": "hush"}, None, "refused /v1/load_lora_adapter: 401"),
        ({}, Faults(cuts=True), r"an answer of \d tokens \(finish_reason \w+\) that neither ends at a stop token nor"),
    ],
)
def test_what_a_server_does_otherwise_is_said(
    more: dict[str, Any], faults: Faults | None, said: str, world: World, tmp_path: Path
) -> None:
    with served(world, tmp_path, faults, **more) as (_, sampler), pytest.raises(AlignError, match=said):
        sampler(PROMPTS, n=1, max_new_tokens=6, temperature=0.0)


def test_a_key_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(world.folder, key="hush")
    try:
        with pytest.raises(AlignError, match=r"refused /v1/models: 401, Unauthorized\. Set VLLM_API_KEY"):
            Client(server.address, 5.0, 0).served()
        monkeypatch.setenv(over_http.KEY, "hush")
        assert Client(server.address, 5.0, 0).served()["id"] == "served-base"
    finally:
        server.close()


def test_a_server_of_something_else_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without the page, and ones whose page is another; a page of HTML is not cited."""
    server = Server(world.folder)
    try:
        assert Client(server.address, 5.0, 0).served()["id"] == "served-base"
        with pytest.raises(AlignError, match=r"/nothing/v1/models answers, but not as vLLM's .* without /v1\.$"):
            Client(f"{server.address}/nothing", 5.0, 0).served()
        monkeypatch.setattr("tests.rl.vllm_server.Handler.do_GET", lambda self: self.say(500, "<html>no</html>"))
        with pytest.raises(AlignError, match=r"refused /v1/models: 500, Internal Server Error\.$"):
            Client(server.address, 5.0, 0).served()
        for body in ("<html>", {"data": ["x"]}, {"data": []}, {"models": []}):
            monkeypatch.setattr("tests.rl.vllm_server.Handler.do_GET", lambda self, body=body: self.say(200, body))
            with pytest.raises(AlignError, match="/v1/models answers, but not as vLLM's"):
                Client(server.address, 5.0, 0).served()
    finally:
        server.close()


def test_a_token_that_the_base_has_not_is_refused(world: World, tmp_path: Path) -> None:
    """As of a server of another base; the base's last token is one of it."""
    with served(world, tmp_path) as (_, sampler):
        body = {"prompt": [5], "max_tokens": 1, "temperature": 1.0}
        choice = {"index": 0, "token_ids": [sampler.vocabulary - 1], "logprobs": {"token_logprobs": [-1.0]}}
        assert sampler._read(choice, body).ids == choice["token_ids"]
        with pytest.raises(AlignError, match=r"token id \d+, where the base has \d+\. .* a server of this very base"):
            sampler._read(choice | {"token_ids": [sampler.vocabulary]}, body)


def test_a_gap_ends_the_run() -> None:
    limit = GapLimit(0.2, 0.7, ahead=False)
    sampler: Any = None
    limit.rollout(0, {"sampler_gap/mean": 0.19}, sampler)
    with pytest.raises(AlignError, match=r"rollout 3: .* 0\.3 nats a token .*gap_limit 0\.2.*processed_logprobs"):
        limit.rollout(2, {"sampler_gap/mean": 0.3}, sampler)


def test_adapters_of_other_kinds_are_refused(world: World) -> None:
    roles = Roles(make_base("llama", torch.float32))
    roles.add_adapter("mine", IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]))
    roles.assign("policy", ["mine"])
    with pytest.raises(InputError, match="takes LoRA of linear layers"):
        check_servable(roles, "policy")
    check_servable(world.roles, "policy")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp://host", "this is no address of a server; expected http://HOST:PORT"),
        ("http://host:port", "this is no address of a server"),
        ("http://me:hush@host:8000", "an address holds no user, password or query"),
        ("https://host/?token=hush", "an address holds no user, password or query"),
    ],
)
def test_addresses(given: str, said: str) -> None:
    words = ["--base", "b", "--data", "d.jsonl", "--judges.x", "j.py:f", "--rollouts.server", given]
    with pytest.raises(InputError, match=re.escape(said)) as told:
        parse_flags(ppo.Config, words, prog="ppo")
    assert "hush" not in str(told.value)


def test_the_address_is_no_part_of_what_is_asked() -> None:
    """Two servers answer one question; a server and this process do not."""
    fields: dict[str, Any] = {"base": "b", "data": "d.jsonl", "judges": {"x": "j.py:f"}}
    asked = [
        json.dumps(resolved(ppo.Config(**fields, rollouts=rollouts)), sort_keys=True)
        for rollouts in ({"server": "http://a:1/v1/"}, {"server": "http://b:2", "retries": 9}, None)
    ]
    assert asked[0] == asked[1] != asked[2] and "http" not in asked[0]
