"""What counts, what stands where, and what is refused. Truths: transformers' own rendering, and values by hand."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from align.data.records import Conversation, Message, Preference, Prompt, Text
from align.ground.errors import InputError
from align.rendering.render import Renderer, load_renderer
from tests.rendering.templates import ROOT, answer, counted, read, template_folder, user

BASE = ROOT / "data/tiny-base"
SYSTEM, ASK, FIVE, AGAIN, SIX = (
    Message("system", "Be terse."),
    user("What?"),
    answer("It is 5."),
    user("And?"),
    answer("Six it is."),
)
TALK = (ASK, FIVE, AGAIN, SIX)

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim "
    "}}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ "
    "raise_exception('roles must alternate user/assistant') }}{% endif %}{% if m.role == 'user' %}[INST] {{ m.content "
    "}} [/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}A chat.{% for m in messages %}{% if m.role == 'user' %} USER: {{ m.content }}{% else %} "
    "ASSISTANT: {{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_LAST = (
    "{% set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join %}{% for m "
    "in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] {% if loop.last or loop.revindex == 2 %}{{ "
    "system }} {% endif %}{{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral v3: the system message stands in the last user turn, so earlier turns change when later ones follow."""
HAND_MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:\n{% generation %}{{ m.content | trim }}{{ eos_token "
    "}}\n{% endgeneration %}"
    "{% else %}U: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:\n{% endif %}"
)
SAID = {
    LLAMA: "{}<|eot_id|>",
    MISTRAL: " {}<eos>",
    ZEPHYR: "{}<eos>",
    VICUNA: " {}<eos>",
    CHATML: "{}<|im_end|>",
    HAND_MARKED: "{}<eos>",
}
DATED = "Today: {{ strftime_now('%d %b %Y, %H:%M') }}\n" + CHATML


def renderer_of(template: Any, folder: Path, *, eos: str = "<eos>", **options: Any) -> Renderer:
    return load_renderer(template_folder(template, folder, eos=eos), None, 4096, **options)


def refusal(renderer: Renderer, *messages: Message, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        renderer.conversations([Conversation(messages, where="d.jsonl:7", **more)])
    return str(error.value).removeprefix("d.jsonl:7: ")


# ---- what counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", SAID, ids=["llama", "mistral", "zephyr", "vicuna", "chatml", "marked"])
def test_answers_are_found_by_rendering_their_prompts(template: str, tmp_path: Path) -> None:
    """Templates without marks, and one with: each answer and its end count, and the whole is what transformers
    renders."""
    renderer = renderer_of(template, tmp_path)
    (example,) = renderer.conversations([Conversation(TALK)])
    said = [SAID[template].format(text) for text in ("It is 5.", "Six it is.")]
    assert counted(renderer, example) == ["".join(said)]
    plain = [{"role": m.role, "content": m.content} for m in TALK]
    truth = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(plain, tokenize=False)
    assert read(renderer, example) == truth.rstrip("\n")
    (only,) = renderer.conversations([Conversation(TALK, prompt=3)])
    (other,) = renderer.conversations([Conversation((ASK, answer("It is 5.", learn=False), AGAIN, SIX))])
    assert counted(renderer, only) == counted(renderer, other) == [said[1]] and only.sequences == example.sequences
    (pair,) = renderer.preferences([Preference(TALK[:3], (SIX,), (FIVE,))])
    assert counted(renderer, pair) == said[::-1]


def test_what_follows_the_last_answer_is_cut_and_counted(tmp_path: Path) -> None:
    """No answer teaches what a user says last: the sequence is that of the dialogue without it, and the record is told.
    Negative control: that dialogue, of which nothing is said. So it is of pairs, where either side may go on."""
    renderer, plain = renderer_of(CHATML, tmp_path / "a"), renderer_of(CHATML, tmp_path / "b")
    assert (
        renderer.conversations([Conversation((*TALK, AGAIN)), Conversation(TALK)])
        == plain.conversations([Conversation(TALK)]) * 2
    )
    assert (
        str(renderer.counts) == "2 records, 1 dialogues cut after their last answer"
        and str(plain.counts) == "1 records"
    )
    sides = [((FIVE, AGAIN), (SIX,)), ((FIVE,), (SIX, AGAIN)), ((FIVE, AGAIN), (SIX, AGAIN)), ((FIVE,), (SIX,))]
    renderer = renderer_of(CHATML, tmp_path / "c")
    pairs = renderer.preferences([Preference((ASK,), *both) for both in sides])
    assert pairs == pairs[-1:] * 4 and str(renderer.counts) == "4 records, 3 dialogues cut after their last answer"


def test_a_token_across_the_end_of_the_prompt_counts_and_is_counted(tmp_path: Path) -> None:
    """A prompt that ends in a blank: " It" is one token in the dialogue, so sampling begins one token earlier there."""
    renderer = renderer_of(HAND_MARKED.replace("A:\n", "A: "), tmp_path)
    (example,) = renderer.conversations([Conversation(TALK)])
    assert counted(renderer, example) == [" It is 5.<eos> Six it is.<eos>"]
    assert str(renderer.counts) == "1 records, 2 tokens across prompt end"


def test_the_end_of_turn_is_a_stop_id(tmp_path: Path) -> None:
    """Also where no generation_config names it, and without what the template writes after it."""
    renderer = load_renderer(template_folder(CHATML + "{{ eos_token }}", tmp_path, stops=False), None, 4096)
    assert renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_ids)) == ["<|im_end|>", "<eos>"]


def test_no_generation_prompt_no_end_and_marks_that_miss_something(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no generation prompt .*opens an answer with '<\|assistant\|>\\n'"):
        renderer_of(ZEPHYR.replace("add_generation_prompt", "false"), tmp_path / "a")
    found = refusal(renderer_of(VICUNA.replace("{{ eos_token }}", ""), tmp_path / "b"), *TALK)
    assert found.startswith(
        "message 2 (assistant): no end-of-turn token follows in the rendered text, which goes on with ''"
    )
    cut = HAND_MARKED.replace("{{ eos_token }}\n{% endgeneration %}", "{% endgeneration %}{{ eos_token }}\n")
    found = refusal(renderer_of(cut, tmp_path / "c"), *TALK)
    assert found.startswith(
        "message 2 (assistant): the answer is 'It is 5.<eos>', but the template's {% generation %} marks stand around "
        "'It is 5.'"
    )


def test_tokenizers_that_drop_characters(tmp_path: Path) -> None:
    """White space is no token here: the first or last character of an answer, and of a marked span, may have none."""
    folder = template_folder(HAND_MARKED, tmp_path)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, byte_level]}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    renderer = load_renderer(folder, None, 4096)
    talk = (user("a"), answer("one"), user("b"), answer("\ntwo"), user("SECRET"), answer("three "))
    (example,) = renderer.conversations([Conversation(talk)])
    # negative control: it does drop them
    assert read(renderer, example) == "U:aA:one<eos>U:bA:two<eos>U:SECRETA:three<eos>"
    assert counted(renderer, example) == ["one<eos>two<eos>three<eos>"]


def test_a_prompt_that_opens_what_the_answer_lacks(tmp_path: Path) -> None:
    """DeepSeek-R1-like: sampled after "<think>", rendered without. Refused with both ends, for both kinds of record."""
    renderer = renderer_of(CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"), tmp_path)
    message = (
        "message 2 (assistant): an answer is sampled after 'im_start|>assistant\\n<think>\\n', but this one is "
        "rendered as "
        "'im_start|>assistant\\nIt is 5.<|im_end|>\\n'"
    )
    assert refusal(renderer, *TALK[:2]).startswith(message)
    with pytest.raises(InputError, match=r"d.jsonl:7: chosen: message 2 \(assistant\): an answer is sampled after"):
        renderer.preferences([Preference((ASK,), (FIVE,), (SIX,), where="d.jsonl:7")])
    (example,) = renderer.conversations([Conversation((ASK, answer("<think>\nAdd.\n</think>\n\nIt is 5.")))])
    assert counted(renderer, example) == ["Add.\n</think>\n\nIt is 5.<|im_end|>"]
    sampled = [i for i, m in zip(example.sequences[0], example.supervised[0], strict=True) if m]
    assert renderer.answer(sampled) == "<think>\nAdd.\n</think>\n\nIt is 5."  # can be trained on as it is


def test_answers_whose_rendering_changes_are_taken_apart(tmp_path: Path) -> None:
    """Each is learnt as it is sampled. Read turns may lose their thoughts, learnt ones may not."""
    forgets = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}")
    renderer = renderer_of(forgets, tmp_path / "a")
    first, second = answer("<think>\nAdd.\n</think>\nIt is 5."), answer("<think>\nOne more.\n</think>\nSix it is.")
    apart = renderer.conversations([Conversation((ASK, first, AGAIN, second))])
    assert [counted(renderer, e) for e in apart] == [[f"{first.content}<|im_end|>"], [f"{second.content}<|im_end|>"]]
    assert "Add." not in read(renderer, apart[1]) and "Add." in read(renderer, apart[0])
    assert str(renderer.counts) == "1 records, 1 answers taken apart, 1 earlier thoughts left out"
    always = renderer_of(CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"), tmp_path / "b")
    assert "the chat template leaves out content" in refusal(always, ASK, first)
    moves = renderer_of(SYSTEM_LAST, tmp_path / "c")
    one, two = moves.conversations([Conversation((SYSTEM, *TALK))])
    assert (read(moves, one), counted(moves, one)) == ("[INST] Be terse. What? [/INST]It is 5.<eos>", ["It is 5.<eos>"])
    assert read(moves, two) == "[INST] What? [/INST]It is 5.<eos>[INST] Be terse. And? [/INST]Six it is.<eos>"
    (pair,) = renderer.preferences([Preference((ASK, first, AGAIN), (second,), (SIX,))])
    assert counted(renderer, pair) == [f"{second.content}<|im_end|>", "Six it is.<|im_end|>"]


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_what_a_template_leaves_out_is_named(tmp_path: Path) -> None:
    no_system = renderer_of(
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"), tmp_path / "a"
    )
    message = "the chat template leaves out the content of message 1 (system), so the model would never see it"
    assert refusal(no_system, SYSTEM, *TALK).startswith(message)
    # a word that the template writes itself
    assert refusal(no_system, Message("system", "user"), *TALK).startswith(message)
    with pytest.raises(InputError, match=r"leaves out the content of message 1 \(system\)"):
        no_system.prompts([Prompt((SYSTEM, ASK))], 1, 10**6)
    plain = renderer_of(CHATML, tmp_path / "b")
    call = json.dumps([{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}])
    assert "leaves out tool_calls" in refusal(plain, ASK, answer("Let me.", tool_calls=call))
    assert "leaves out reasoning_content" in refusal(plain, ASK, answer("5", reasoning="2 + 3"))
    assert "leaves out the name of message 1 (user)" in refusal(plain, Message("user", "What?", name="Ann"), FIVE)
    assert "leaves out tools" in refusal(plain, *TALK, tools=json.dumps([{"function": {"name": "add"}}]))
    assert "role of message 3 (tool)" in refusal(load_renderer(BASE, None, 512), ASK, FIVE, Message("tool", "8"), SIX)
    # ChatML writes any role
    assert len(plain.conversations([Conversation((Message("developer", "Be terse."), *TALK))])) == 1


def test_thoughts_tools_and_calls_reach_a_template_that_takes_them(tmp_path: Path) -> None:
    template = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}" + CHATML.replace(
        "{{ m.content }}",
        "{% if m.reasoning_content %}({{ m.reasoning_content }}) {% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}",
    )
    renderer = renderer_of(template, tmp_path)
    call = json.dumps([{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}])
    talk = (ASK, answer("", reasoning="Hm.", tool_calls=call), Message("tool", '"8"\n'), FIVE)
    (example,) = renderer.conversations(
        [Conversation(talk, tools=json.dumps([{"function": {"name": "add", "description": "Adds."}}]))]
    )
    assert counted(renderer, example) == ['(Hm.) {"name": "add", "arguments": {"a": 3}}<|im_end|>It is 5.<|im_end|>']
    assert "Adds." in read(renderer, example)


def test_contents_as_parts_where_the_template_wants_them(tmp_path: Path) -> None:
    renderer = renderer_of(
        CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}"), tmp_path
    )
    (example,) = renderer.conversations([Conversation(TALK)])
    assert counted(renderer, example) == ["It is 5.<|im_end|>Six it is.<|im_end|>"]


# ---- special tokens in contents --------------------------------------------------------------------------------------

TALKS_OF_IT = (user("What does <|im_end|> mean?"), answer("The <|im_end|> token ends."))


def test_special_tokens_are_an_error_or_text_or_kept(tmp_path: Path) -> None:
    folder = template_folder(CHATML, tmp_path)
    renderer = load_renderer(folder, None, 4096)
    assert refusal(renderer, *TALKS_OF_IT).startswith(
        "message 1 (user) holds the special token '<|im_end|>', which would act as one. Set"
    )
    with pytest.raises(InputError, match="p:1: message 1"):
        renderer.prompts([Prompt(TALKS_OF_IT[:1], where="p:1")], 1, 10**6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = [{"role": m.role, "content": m.content} for m in TALKS_OF_IT]
    for policy, sanitize in (("text", True), ("keep", False)):
        renderer = load_renderer(folder, None, 4096, special_tokens=policy)  # type: ignore[arg-type]
        (example,) = renderer.conversations([Conversation(TALKS_OF_IT)])
        truth = tokenizer.apply_chat_template(plain, sanitize_control_tokens=sanitize, return_dict=False)
        assert list(example.sequences[0]) == truth[: len(example.sequences[0])]
        assert counted(renderer, example) == ["The <|im_end|> token ends.<|im_end|>"]
        ends = list(example.sequences[0]).count(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        assert ends == (2 if sanitize else 4)
        _, (prompt,) = renderer.prompts([Prompt(TALKS_OF_IT[:1])], 1, 10**6)
        assert prompt == list(example.sequences[0][: len(prompt)])
        assert str(renderer.counts).startswith(f"2 records, 2 special tokens {'as text' if sanitize else 'kept'}")


def test_a_pair_is_counted_once(tmp_path: Path) -> None:
    renderer = renderer_of(CHATML, tmp_path, special_tokens="text")
    renderer.preferences([Preference(TALKS_OF_IT[:1], TALKS_OF_IT[1:], (FIVE,))])
    assert str(renderer.counts) == "1 records, 1 special tokens as text"


def test_ends_and_starts_are_not_doubled() -> None:
    """Rows of other tools' guides end with EOS by hand; prompts that were rendered before are refused, or kept without
    a second BOS."""
    renderer = load_renderer(BASE, None, 512)
    (example,) = renderer.conversations([Conversation((user("Hi"), answer("Hello<|end|>\n")))])
    (bare,) = renderer.conversations([Conversation((user("Hi"), answer("Hello")))])
    assert example.sequences == bare.sequences and renderer.counts.doubled_ends_cut == 1
    rendered = (user("<|begin|>User:\nHi\n\nAssistant:\n"), answer("Hello<|end|>"))
    found = refusal(renderer, *rendered)
    assert (
        "message 1 (user) holds the special token '<|begin|>'" in found
        and "rendered with a chat template before" in found
    )
    plain = load_renderer(BASE, "plain", 512, special_tokens="keep")
    (example,) = plain.conversations([Conversation(rendered)])
    assert example.sequences == bare.sequences and plain.counts.doubled_starts_cut == 1
    asis = load_renderer(BASE, "plain", 512, special_tokens="text")
    (example,) = asis.conversations([Conversation(rendered)])
    # one of them is plain text
    assert list(example.sequences[0]).count(1) == 1 and read(asis, example).count("<|end|>") == 2


def test_documents() -> None:
    """EOS and BOS around a text are not doubled; inside it they are an error, text, or kept."""
    renderer = load_renderer(BASE, None, 512)
    bare, ended, both = renderer.texts([Text("Once."), Text("Once.<|end|>"), Text("<|begin|>Once.<|end|>\n")])
    assert bare.sequences == ended.sequences == both.sequences and read(renderer, bare) == "<|begin|>Once.<|end|>"
    assert (renderer.counts.doubled_ends_cut, renderer.counts.doubled_starts_cut) == (2, 1)
    inside = Text("A<|end|>b", where="t.jsonl:4")
    with pytest.raises(InputError, match=r"t.jsonl:4 holds the special token '<\|end\|>'"):
        renderer.texts([inside])
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for policy, split in (("text", True), ("keep", False)):
        other = load_renderer(BASE, None, 512, special_tokens=policy)  # type: ignore[arg-type]
        (example,) = other.texts([inside])
        assert (
            list(example.sequences[0][1:-1])
            == tokenizer("A<|end|>b", split_special_tokens=split, add_special_tokens=False)["input_ids"]
        )


# ---- which template --------------------------------------------------------------------------------------------------


def test_the_clock_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two days, one rendering, by us and by transformers from what was saved; another date is another contract."""

    class Clock(datetime.datetime):
        today_ = datetime.datetime(2026, 11, 28, 12, 30)

        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:  # type: ignore[override]
            return cls.today_

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    folder = template_folder(DATED, tmp_path / "a")
    renderer = load_renderer(folder, None, 4096)
    renderer.save(tmp_path / "saved")
    contract = renderer.contract()
    assert (
        contract["template_date"] == "2024-07-26"
        and load_renderer(tmp_path / "saved", None, 4096).contract() == contract
    )
    texts = []
    for day in (28, 29):
        Clock.today_ = datetime.datetime(2026, 11, day, 12, 30)
        (example,) = load_renderer(folder, None, 4096).conversations([Conversation(TALK)])
        plain = [{"role": m.role, "content": m.content} for m in TALK]
        texts += [
            read(renderer, example),
            AutoTokenizer.from_pretrained(tmp_path / "saved").apply_chat_template(plain, tokenize=False)[:-1],
        ]
    assert len(set(texts)) == 1 and texts[0].startswith("Today: 26 Jul 2024, 00:00\n<|im_start|>user")
    # negative control
    assert "29 Nov 2026" in AutoTokenizer.from_pretrained(folder).apply_chat_template(plain, tokenize=False)
    other = load_renderer(folder, None, 4096, template_date="2026-01-02")
    assert read(renderer, other.conversations([Conversation(TALK)])[0]).startswith("Today: 02 Jan 2026, 00:00\n")
    assert other.contract()["chat_template"] != contract["chat_template"]


def test_dates_without_effect_and_clocks_that_cannot_be_stopped(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"template_date is 2026-01-02, which has no effect on the chat template of .*: it reads no clock",
    ):
        load_renderer(BASE, None, 512, template_date="2026-01-02")
    with pytest.raises(InputError, match=r"reads the clock .* with a format that is no literal"):
        renderer_of("{% set f = '%d' %}{{ strftime_now(f) }}" + CHATML, tmp_path / "a")
    with pytest.raises(InputError, match="draws at random"):
        renderer_of("{{ range(9) | random }}" + CHATML, tmp_path / "b")
    asks = '{% if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}' + CHATML
    assert renderer_of(asks, tmp_path / "c").template.date == "2024-07-26"


def test_named_templates(tmp_path: Path) -> None:
    renderer = renderer_of({"default": CHATML, "tool_use": LLAMA}, tmp_path / "a")
    assert counted(renderer, renderer.conversations([Conversation(TALK)])[0]) == [
        "It is 5.<|im_end|>Six it is.<|im_end|>"
    ]
    with pytest.raises(InputError, match="has the chat templates rag, tool_use, and none is called default"):
        renderer_of({"rag": CHATML, "tool_use": LLAMA}, tmp_path / "b")


def test_a_template_that_raises(tmp_path: Path) -> None:
    """Its words with the row's place, or the rows left out and counted."""
    folder = template_folder(MISTRAL, tmp_path)
    renderer = load_renderer(folder, None, 4096)
    assert (
        refusal(renderer, SYSTEM, *TALK)
        == "the chat template refuses this dialogue: roles must alternate user/assistant"
    )
    dropping = load_renderer(folder, None, 4096, bad_rows="drop")
    records = [Conversation(TALK, where="d:1"), Conversation((SYSTEM, *TALK), where="d:2")]
    why = "the chat template refuses this dialogue: roles must alternate user/assistant"
    assert len(dropping.conversations(records)) == 1
    assert str(dropping.counts) == f"2 records; left out: 1 bad row: {why}\n  left out: d:2: {why}"
    kept = dropping.prompt_rows([Prompt((ASK,)), Prompt((SYSTEM, ASK))])
    assert [(p.messages, dropping.tokenizer.decode(ids)) for p, ids in kept] == [((ASK,), "<bos>[INST] What? [/INST]")]
    with pytest.raises(InputError, match=r"roles must alternate"):
        renderer.prompt_ids([Prompt((SYSTEM, ASK))])
    with pytest.raises(InputError, match=r"none of the 1 records can be rendered: .*roles must alternate"):
        dropping.conversations(records[1:])
    pairs = [Preference((ASK,), (FIVE,), (SIX,)), Preference((SYSTEM, ASK), (FIVE,), (SIX,))]
    assert len(dropping.preferences(pairs)) == 1
    with pytest.raises(InputError, match=r"is no valid Jinja \(line 1\)"):
        renderer_of("{% for %}", tmp_path / "syntax")
    assert "'list object' has no attribute 'x'" in refusal(
        renderer_of("{{ messages.x.y }}", tmp_path / "undefined"), *TALK
    )
    assert "unsafe" in refusal(renderer_of("{{ ''.__class__.__mro__ }}", tmp_path / "unsafe"), *TALK)


def test_what_is_saved_renders_alike(tmp_path: Path) -> None:
    """Also a file whose text TRL knows, and a tokenizer option counts in the contract."""
    import trl

    path = Path(trl.__path__[0]) / "chat_templates/qwen3.jinja"
    folder = template_folder(CHATML + path.read_text(encoding="utf-8")[:0], tmp_path / "a")
    renderer = load_renderer(folder, str(path), 4096)
    assert renderer.template.marked  # taken in TRL's training form
    renderer.save(tmp_path / "b")
    again = load_renderer(tmp_path / "b", None, 4096)
    assert again.template.source == renderer.template.source
    assert {**again.contract(), "stop_ids": 0} == {**renderer.contract(), "stop_ids": 0}
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "split_special_tokens": True}), encoding="utf-8"
    )
    other = load_renderer(folder, str(path), 4096).contract()
    assert {key for key, value in renderer.contract().items() if other[key] != value} == {"tokenizer_options"}


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    expected = r"no tokenizer can be read there \(.*\). Expected tokenizer.json and tokenizer_config.json"
    with pytest.raises(InputError, match=expected):
        load_renderer(tmp_path, None, 64)
    template_folder(CHATML, tmp_path / "a")
    (tmp_path / "a/tokenizer.json").write_text('{"version": ', encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        load_renderer(tmp_path / "a", None, 64)


def test_a_tokenizer_with_a_length_that_is_none(tmp_path: Path) -> None:
    template_folder(CHATML, tmp_path / "a")
    path = tmp_path / "a/tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    load_renderer(tmp_path / "a", None, 64)
    path.write_text(json.dumps({**config, "model_max_length": "x"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"no tokenizer can be read there \('>' not supported"):
        load_renderer(tmp_path / "a", None, 64)


def test_documents_that_cannot_be_used(tmp_path: Path) -> None:
    """One that holds a special token is left out where bad rows are; the others are as they are alone."""
    texts = [Text("a", where="d:1"), Text("A<|end|>b", where="d:2"), Text("c", where="d:3")]
    dropping = load_renderer(BASE, None, 512, bad_rows="drop")
    assert (
        dropping.texts(texts) == load_renderer(BASE, None, 512).texts([texts[0], texts[2]])
        and dropping.counts.left_out.total() == 1
    )
    assert dropping.counts.left_out.examples[0].startswith("d:2")
    with pytest.raises(InputError, match="d:2"):
        load_renderer(BASE, None, 512).texts(texts)
