"""Stop strings: an answer ends at the token that completes one, wherever the tokens are cut, and keeps the ids that
were drawn."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from align.rendering.render import load_renderer
from align.sampling.rollout import Answer, Sampler
from align.sampling.stopping import Growing, StopStrings
from tests.conftest import ROOT
from tests.models.models import VOCAB, make_roles

PIECES = ["".join(letters) for n in (1, 2, 3, 4) for letters in product("abc", repeat=n)][:VOCAB]
PROMPTS = [[5, 6, 7, 8], [20, 21, 22], [30, 31, 32, 33, 34]]
STOPS = ["cabca", "bb"]


def tokenizer() -> Any:
    """Each token is one to four of three letters, so that a string is cut in many ways."""
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="a"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def text(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids)


def sample(
    name: str, strings: list[str], stop_ids: list[int], n: int = 20, prompts: list[list[int]] = PROMPTS
) -> list[Answer]:
    roles = make_roles(name, torch.float32)
    sampler = Sampler(roles, "policy", stop_ids, 0, StopStrings(tokenizer(), strings) if strings else None)
    torch.manual_seed(0)
    return [a for several in sampler(prompts, n=n, max_new_tokens=12, temperature=1.0) for a in several]


@pytest.mark.parametrize("name", ["llama", "bloom"])  # by packed decoding, and by transformers' generate
def test_an_answer_ends_where_its_text_first_holds_a_stop_string(name: str) -> None:
    answers = sample(name, STOPS, [2])
    by_string = [a for a in answers if a.ended and a.ids[-1] != 2]
    assert len(by_string) > 20 and len({len(a.ids) for a in by_string}) > 3
    for a in answers:
        held = any(s in text(a.ids) for s in STOPS)
        assert not any(s in text(a.ids[:-1]) for s in STOPS) and 2 not in a.ids[:-1]
        assert a.ended == (held or a.ids[-1] == 2) and (a.ended or len(a.ids) == 12)
        assert len(a.logprobs) == len(a.ids)
    spans = [a for a in by_string if not any(s in PIECES[a.ids[-1]] for s in STOPS)]
    assert len(spans) > 3  # the string began in a token before
    without = sample(name, [], [2])  # negative control: then they run on
    assert any(any(s in text(a.ids[:-1]) for s in STOPS) for a in without)


def test_what_is_drawn_before_a_stop_string_is_what_is_drawn_without_it() -> None:
    for prompt in PROMPTS:
        (cut,), (whole,) = (sample("llama", strings, [2], 1, [prompt]) for strings in (["c"], []))
        assert cut.ids == whole.ids[: len(cut.ids)] and len(cut.ids) < len(whole.ids)
        assert cut.logprobs.tolist() == whole.logprobs[: len(cut.ids)].tolist()


def test_the_last_tokens_are_enough_to_see_a_string_of_many_bytes() -> None:
    """Byte-level tokens of the shipped base, characters of up to four bytes: the same answer as decoding all of it, at
    every length."""
    renderer = load_renderer(ROOT / "data/tiny-base", None, 512)
    strings = ["né🙂\n", "##"]
    stop = StopStrings(renderer.tokenizer, strings)
    ids = renderer.tokenizer("It is né🙂 and né🙂\nthen # or ##", add_special_tokens=False)["input_ids"]
    first = next(i for i in range(1, len(ids) + 1) if any(s in renderer.tokenizer.decode(ids[:i]) for s in strings))
    seen = [
        i for i in range(1, len(ids) + 1) if bool(stop.completed(torch.tensor([ids[max(0, i - stop.window) : i]]))[0])
    ]
    assert seen[0] == first and len(ids) > first > 10
    short = [i for i in range(1, len(ids) + 1) if bool(stop.completed(torch.tensor([ids[max(0, i - 3) : i]]))[0])]
    assert not short or short[0] != first  # negative control: three tokens are not


def test_the_text_of_an_answer_leaves_the_stop_string_out() -> None:
    renderer = load_renderer(ROOT / "data/tiny-base", None, 512)
    ids = renderer.tokenizer("It is 7.\nQuestion: more", add_special_tokens=False)["input_ids"]
    assert renderer.answer(ids, ["Question:", "\n"]) == "It is 7."
    assert renderer.answer(ids, ["more?"]) == renderer.answer(ids) == "It is 7.\nQuestion: more"


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("tokens", [65536, 20])  # all answers at once, and a prompt's at a time
def test_how_far_answers_are_is_told_at_each_token(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share never falls, moves within a batch, and comes to the whole; answers are counted that have ended, as in
    what comes out. Negative control: until the first of a batch ends, none more is counted."""
    told: list[tuple[float, int, int, str]] = []
    grow = Growing.grow

    def seen(self: Growing, token: int, ended: int, rows: int) -> None:
        grow(self, token, ended, rows)
        told.append((self.share or 0.0, self.before, ended, " ".join(self.parts(1.0)[:2])))

    monkeypatch.setattr(Growing, "grow", seen)
    sampler = Sampler(make_roles(name, torch.float32), "policy", [2, 3, 4], 0)
    torch.manual_seed(0)
    answers = sampler(PROMPTS, n=4, max_new_tokens=12, temperature=1.0, tokens=tokens)
    shares = [share for share, *_ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len({*shares}) >= 12
    assert told[-1][3].startswith("12/12 answers token ") and re.fullmatch(r"\d+/12 answers token 1 of 12", told[0][3])
    ended = {before: n for _, before, n, _ in told}  # of each batch, at its last token
    assert sum(ended.values()) == sum(a.ended for several in answers for a in several)
    assert len(ended) == (1 if tokens == 65536 else 3)
    assert any(share > 0 and text.startswith("0/12 answers token ") for share, *_, text in told)


def test_the_time_left_is_that_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading prompts takes 20 s, each token 0.1 s: nothing is promised before a few are there, and then what they
    will take. Negative control: by all the time so far it would be many times that."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    task = Growing(45, 128)
    for token in range(1, 9):
        now[0] = 20.0 + 0.1 * token
        task.grow(token, 0, 45)
        told = task.parts(now[0] - task.start)
        assert told[1] == f"token {token} of 128"
        assert told[2] == ("0:12 left" if token >= 4 else "0:20")
    assert now[0] / 8 * 120 > 20 * 12
