"""Records that are too long: what is said of them, and pairs that a cut makes equal. Truth: the ids of the same texts
without a limit."""

from __future__ import annotations

import pytest

from align.data.records import Conversation, Preference
from align.ground.errors import InputError
from align.rendering.render import load_renderer
from tests.rendering.templates import ROOT, answer, user

BASE = ROOT / "data/tiny-base"
LONG = "word " * 60


@pytest.mark.parametrize("limit", ["max_length", "the model's context"])
def test_a_prompt_that_leaves_no_room(limit: str) -> None:
    """Cutting the end would help an answer that is too long, and not such a prompt; nor would a max_length beyond the
    context."""
    renderer = load_renderer(BASE, None, 40)
    renderer.limit = limit
    with pytest.raises(InputError) as prompt:
        renderer.conversations([Conversation((user(LONG), answer("Hi")), where="d:1")])
    with pytest.raises(InputError) as whole:
        renderer.conversations([Conversation((user("Hi"), answer(LONG)), where="d:1")])
    prompt_ids = (
        load_renderer(BASE, None, 512)
        .conversations([Conversation((user(LONG), answer("Hi")))])[0]
        .supervised[0]
        .index(True)
    )
    found, other = str(prompt.value), str(whole.value)
    assert found.startswith(
        f"d:1: {prompt_ids} tokens come before what is learnt, which leaves no room for it: {limit} is 40."
    )
    assert "truncate: cut" not in found and "truncate: drop" in found
    assert f"but {limit} is 40." in other and "truncate: cut" in other
    assert all(("or raise max_length" in text) == (limit == "max_length") for text in (found, other))
    cutting = load_renderer(BASE, None, 40, truncate="cut")
    with pytest.raises(InputError, match="all 1 records were dropped: within max_length") as cut:
        cutting.conversations([Conversation((user(LONG), answer("Hi")))])
    assert "truncate: cut" not in str(cut.value)


def test_a_pair_that_a_cut_makes_equal_is_dropped_and_counted() -> None:
    renderer = load_renderer(BASE, None, 40, truncate="cut")
    same = Preference((user("Hi"),), (answer(LONG + "A"),), (answer(LONG + "B"),))
    differ = Preference((user("Hi"),), (answer("A" + LONG),), (answer("B" + LONG),))
    whole = load_renderer(BASE, None, 512).preferences([same, differ])
    assert [len({tuple(s[:40]) for s in example.sequences}) for example in whole] == [1, 2]
    (kept,) = renderer.preferences([same, differ])
    assert [list(s) for s in kept.sequences] == [list(s[:40]) for s in whole[1].sequences]
    assert str(renderer.counts) == "2 records, 1 dropped equal once cut, 1 cut, 1 with an answer that is cut off"
    with pytest.raises(InputError, match=r"all 1 records were dropped: within max_length .* or for two that differ"):
        renderer.preferences([same])
