"""Many records are rendered part by part into a file: the same examples as all at once, made once, and the same places
of tokens as transformers gives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from align.data.counts import Counts
from align.data.examples import digest
from align.data.records import Conversation, Labelled, Message, Preference, Stepwise, Text
from align.ground import bounds, progress
from align.ground.errors import InputError, NothingLeft
from align.ground.progress import Work
from align.rendering import batches
from align.rendering.example_table import ExampleTable
from align.rendering.render import Renderer, load_renderer
from align.rendering.tokenizer import train_tokenizer
from align.store import Store

BASE = Path(__file__).parents[2] / "data/tiny-base"
TEXTS = ["Once upon a time", "سلام، حالت چطوره؟", "你好，世界", "naïve café", "👩‍👩‍👧 and 🇮🇷 flags", "a\n\n b\t c", "x"]


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str) -> Message:
    return Message("assistant", text)


RECORDS: dict[str, list[Any]] = {
    "conversations": [
        Conversation((user(a), said(b), user(b), said(a)), where=f"d:{i}")
        for i, (a, b) in enumerate(zip(TEXTS * 3, TEXTS[1:] + TEXTS * 2, strict=False))
    ],
    "preferences": [
        Preference((user(a),), (said(b),), (said(b + " no"),), 0.5, (False, i % 2 == 0), where=f"d:{i}")
        for i, (a, b) in enumerate(zip(TEXTS * 3, TEXTS[1:] + TEXTS * 2, strict=False))
    ],
    "labelled": [Labelled((user(a),), (said(a),), i % 3 == 0, where=f"d:{i}") for i, a in enumerate(TEXTS * 3)],
    "steps": [Stepwise((user(a),), (a + ".", a), (True, i % 2 == 0), where=f"d:{i}") for i, a in enumerate(TEXTS * 3)],
    "texts": [Text(a * 5, where=f"d:{i}") for i, a in enumerate(TEXTS * 3)],
}


def render(renderer: Renderer, kind: str, records: Any) -> Any:
    return getattr(renderer, "labelled" if kind == "steps" else kind)(records)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few records are many."""
    monkeypatch.setattr(batches, "MANY", 10)
    monkeypatch.setattr(batches, "PART", 4)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_file_of_parts_holds_what_is_made_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = load_renderer(BASE, None, 100, "cut")
    examples = render(at_once, kind, RECORDS[kind])
    monkeypatch.setattr(batches, "MANY", 10)
    monkeypatch.setattr(batches, "PART", 4)
    for keep in (None, Store(tmp_path / "store").cached_file):
        in_parts = load_renderer(BASE, None, 100, "cut")
        in_parts.keep = keep
        table = render(in_parts, kind, RECORDS[kind])
        assert isinstance(table, ExampleTable) and not isinstance(examples, ExampleTable)
        assert list(table) == list(examples) and digest(table) == digest(examples)
        assert [e.opening for e in table] == [e.opening for e in examples]
        assert in_parts.counts == at_once.counts != Counts()
    assert table[-1] == examples[-1] and table[3:9] == examples[3:9] and len(table) == len(examples)
    with pytest.raises(IndexError):
        table[len(table)]


def test_a_second_run_tokenises_nothing(tmp_path: Path, many: None, capsys: pytest.CaptureFixture[str]) -> None:
    store, records = Store(tmp_path / "store"), RECORDS["conversations"]

    def run(max_length: int, records: Any, tokenises: bool) -> tuple[list[Any], Counts]:
        renderer = load_renderer(BASE, None, max_length, "cut")
        renderer.keep = store.cached_file
        if not tokenises:
            renderer.turns.special.tokenise = None  # type: ignore[method-assign,assignment]
        return list(renderer.conversations(records)), renderer.counts

    first = run(100, records, True)
    moved = [Conversation(r.messages, where=f"elsewhere:{i}") for i, r in enumerate(records)]
    assert run(100, records, False) == run(100, moved, False) == first
    assert "the tokens of 20 records were made before, and are taken from there" in capsys.readouterr().err
    for other in ((101, records), (100, records[1:]), (100, [*records[1:], records[0]])):  # negative controls
        with pytest.raises(TypeError, match="not callable"):
            run(*other, False)
    assert run(100, records[1:], True)[0] == first[0][1:]


def test_few_beside_many_are_kept_too(tmp_path: Path, many: None) -> None:
    """So that a second run tokenises nothing at all, not even what is held out."""
    store, records = Store(tmp_path / "store"), RECORDS["conversations"]
    for tokenises in (True, False):
        renderer = load_renderer(BASE, None, 100, "cut")
        renderer.keep = store.cached_file
        if not tokenises:
            renderer.turns.special.tokenise = None  # type: ignore[method-assign,assignment]
        assert [len(renderer.conversations(some)) for some in (records, records[:3])][1] == 3
    alone = load_renderer(BASE, None, 100, "cut")
    alone.keep = store.cached_file
    assert isinstance(alone.conversations(records[:3]), list)  # negative control


def test_bad_rows_of_many_are_counted_once_more(tmp_path: Path, many: None) -> None:
    bad = Conversation((user("<|end|>"), said("a")), where="d:99")
    records = [*RECORDS["conversations"], bad]
    counts = []
    for _ in range(2):
        renderer = load_renderer(BASE, None, 400, bad_rows="drop")
        renderer.keep = Store(tmp_path / "store").cached_file
        examples = renderer.conversations(records)
        counts.append(renderer.counts)
    assert counts[0] == counts[1] and counts[0].left_out.examples == counts[1].left_out.examples
    assert len(examples) + counts[0].left_out.total() == len(records)
    strict = load_renderer(BASE, None, 400)
    if counts[0].left_out:
        with pytest.raises(InputError, match="d:99"):
            strict.conversations(records)
    with pytest.raises(NothingLeft):
        load_renderer(BASE, None, 3, "drop").conversations(RECORDS["conversations"])


def spans_of(text: str) -> Iterable[tuple[int, int]]:
    return [(a, b) for a in range(len(text)) for b in range(a + 1, len(text) + 1)]


@pytest.mark.parametrize("tokenizer", ["tiny", "bytes"])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_stand_where_transformers_says(tokenizer: str, text: str, tmp_path: Path) -> None:
    """Every span of the text: the tokens that share a character with it, from the offsets that transformers gives."""
    renderer = load_renderer(BASE, None, 64)
    if tokenizer == "bytes":  # a character is several tokens here
        renderer.tokenizer = renderer.turns.special.tokenizer = train_tokenizer(["abc"], 300, 64)
    (tokens,) = renderer.turns.special.tokenise([text], [[]], ["d"], renderer.counts)
    truth: Any = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokens.ids == truth["input_ids"]
    assert [tokens.span(n) for n in range(len(tokens.ids))] == truth["offset_mapping"]
    for a, b in spans_of(text):
        inside = [n for n, (start, end) in enumerate(truth["offset_mapping"]) if end > a and start < b]
        first, last = tokens.covering(a, b)
        assert [*range(first, last)] == inside


def test_one_dialogue_that_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that share a timer; the process has its limits back."""
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    turns = "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (tmp_path / "t.jinja").write_text("{% if messages[0].content == 'loop' %}" + loop + "{% endif %}" + turns)
    renderer = load_renderer(BASE, str(tmp_path / "t.jinja"), 64)
    good = [Conversation((user("a"), said("b")), where=f"d:{i}") for i in range(50)]
    assert len(renderer.conversations(good)) == 50
    with pytest.raises(InputError, match=r"d:50: the chat template does not end: it ran for more than 0\.5 s"):
        renderer.conversations([*good, Conversation((user("loop"), said("b")), where="d:50")])
    import resource
    import signal

    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0) and bounds._watches == []
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_how_far_it_is_is_told(many: None) -> None:
    told = []
    with Work("sft"):
        for _ in batches.parts_of(RECORDS["texts"], lambda part: []):
            work = progress._TELLER.works[-1]
            told.append(work.line(work.start + 10, None))
    assert told[0] == "sft: rendering ░░░░░░░░░░░░░░░░ 0/21 records · 0:10"
    assert told[1] == "sft: rendering ███░░░░░░░░░░░░░ 4/21 records · 0:42 left · 0.4/s"
    assert len(told) == 6 and "20/21 records" in told[-1]
