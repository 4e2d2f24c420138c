"""Every chat template that TRL ships: what counts is what a person would underline, and begins where sampling begins.

`SAID` was written down by hand from the templates: what an assistant says around a content, from the end of the
generation prompt to the end of its turn. Each rendering is checked beside it against `apply_chat_template` of the
tokenizer alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trl

from align.data.records import Conversation, Message, Preference, Prompt
from align.ground.errors import InputError
from align.rendering.render import Renderer, load_renderer
from tests.rendering.templates import answer, counted, read, template_folder, user

FILES = {path.stem: path for path in sorted((Path(trl.__path__[0]) / "chat_templates").glob("*.jinja"))}
SAID = {
    "cohere": "{}<|END_OF_TURN_TOKEN|>",
    "cohere2": "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "diffusion_gemma": "{}<turn|>",
    "gemma": "{}<end_of_turn>",
    "gemma3": "{}<end_of_turn>",
    **dict.fromkeys(("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "{}<turn|>"),
    "glm4moe": "\n<think></think>\n{}<|user|>",
    "gptoss": "<|channel|>final<|message|>{}<|return|>",
    **dict.fromkeys(("idefics3", "smolvlm"), " {}<end_of_utterance>"),
    **dict.fromkeys(("lfm2", "lfm2_v2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"), "{}<|im_end|>"),
    **dict.fromkeys(("llama3", "llama3_1", "llama3_2"), "{}<|eot_id|>"),
    "llava_next": " {}</s>",
    "muse_glimmer": " to=user<|message|>{}<|eot|>",
    **dict.fromkeys(("phi3", "phi3_5"), "{}<|end|>"),
    **dict.fromkeys(("qwen2_5", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl", "qwen3_5_nothink"), "{}<|im_end|>"),
    "qwen3": "<think>\n\n</think>\n\n{}<|im_end|>",
    **dict.fromkeys(("qwen3_5_think", "qwen3_6", "qwen3_8"), "\n</think>\n\n{}<|im_end|>"),
}
THINK_FIRST = {
    "deepseek_r1_distill",
    "deepseekv3",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
}
"""Their prompts open a thought: an answer without one is refused."""
APART = {"gptoss"}
"""They end an earlier answer in another way than the last one, so each is a sequence of its own."""
NO_SYSTEM = {"gemma"}
NO_TOOLS = {
    "cohere",
    "cohere2",
    "gemma",
    "gemma3",
    "idefics3",
    "lfm2",
    "llama3",
    "llava_next",
    "phi3",
    "phi3_5",
    "qwen2_5_vl",
    "smolvlm",
    "diffusion_gemma",  # TRL's marks leave out the token that ends a call
    *THINK_FIRST,
}

TOOLS = [
    {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
]
TOOLS_JSON = json.dumps([{"type": "function", "function": tool} for tool in TOOLS])
CALL = json.dumps([{"id": "call12345", "type": "function", "function": {"name": "add", "arguments": {"a": 3}}}])
ASK, FIVE, AGAIN, SIX = user("What?"), answer("It is 5."), user("And?"), answer("Six it is.")


def family(name: str) -> str:
    return name.removesuffix("_training")


@pytest.fixture(params=FILES, scope="module")
def rendering(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Renderer]:
    name = request.param
    eos = "</s>" if family(name) == "llava_next" else "<eos>"
    folder = template_folder(FILES[name].read_text(encoding="utf-8"), tmp_path_factory.mktemp(name), eos=eos)
    return family(name), load_renderer(folder, None, 4096)


def whole(renderer: Renderer, messages: tuple[Message, ...], tools: str = "", *, prompt: bool = False) -> str:
    """The dialogue as the tokenizer itself renders it, without what follows its last special token."""
    plain = [m.plain() for m in messages]
    if renderer.template.parts:
        plain = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in plain]
    renderer.tokenizer.chat_template = renderer.template.source
    return str(
        renderer.tokenizer.apply_chat_template(
            plain, tools=json.loads(tools) if tools else None, tokenize=False, add_generation_prompt=prompt
        )
    )


def refusal(renderer: Renderer, record: Conversation | Preference) -> str:
    with pytest.raises(InputError) as error:
        renderer.preferences([record]) if isinstance(record, Preference) else renderer.conversations([record])
    return str(error.value)


@pytest.mark.parametrize("name", sorted(n for n in THINK_FIRST if n.startswith("nemotron")))
def test_the_remedy_of_templates_that_think_first(name: str, tmp_path: Path) -> None:
    """What the refusal says: a copy that does not think takes plain answers, one that does takes thoughts."""
    source = FILES[name].read_text(encoding="utf-8")
    record = Conversation((ASK, FIVE))
    remedy = "{% set enable_thinking = false %}"
    assert remedy in refusal(load_renderer(template_folder(source, tmp_path / "a"), None, 4096), record)
    renderer = load_renderer(template_folder(remedy + source, tmp_path / "b"), None, 4096)
    assert counted(renderer, renderer.conversations([record])[0]) == ["It is 5.<|im_end|>"]


def test_every_family_is_in_one_list() -> None:
    """A template that a new TRL brings fails here until somebody has read it."""
    assert {family(name) for name in FILES} == SAID.keys() | THINK_FIRST


def test_one_answer(rendering: tuple[str, Renderer]) -> None:
    name, renderer = rendering
    record = Conversation((ASK, FIVE), where="d.jsonl:3")
    if name in THINK_FIRST:
        assert refusal(renderer, record).startswith("d.jsonl:3: message 2 (assistant): an answer is sampled after ")
        return
    (example,) = renderer.conversations([record])
    assert counted(renderer, example) == [SAID[name].format("It is 5.")]
    assert whole(renderer, record.messages).startswith(read(renderer, example))
    _, (prompt,) = renderer.prompts([Prompt((ASK,))], 16, 10**6)
    assert renderer.tokenizer.decode(prompt) == whole(renderer, (ASK,), prompt=True)
    assert read(renderer, example) == renderer.tokenizer.decode(prompt) + SAID[name].format("It is 5.")
    assert list(example.sequences[0][: len(prompt)]) == prompt and example.supervised[0].count(True) == len(
        example.sequences[0]
    ) - len(prompt)
    assert example.sequences[0][-1] in renderer.stop_ids


def test_two_answers(rendering: tuple[str, Renderer]) -> None:
    """Both count, whole and alone; or each in a sequence that is what it is sampled from and what is said."""
    name, renderer = rendering
    if name in THINK_FIRST:
        return
    messages = (ASK, FIVE, AGAIN, SIX)
    examples = renderer.conversations([Conversation(messages)])
    said = [SAID[name].format("It is 5."), SAID[name].format("Six it is.")]
    assert [counted(renderer, e) for e in examples] == ([[said[0]], [said[1]]] if name in APART else [["".join(said)]])
    for example, end in zip(examples, (2, 4) if name in APART else (4,), strict=True):
        assert whole(renderer, messages[:end]).startswith(read(renderer, example))
    renderer.counts.answers_taken_apart = 0
    (only,) = renderer.conversations([Conversation((*messages[:1], answer("It is 5.", learn=False), *messages[2:]))])
    assert counted(renderer, only) == [said[1]]


def test_a_system_message(rendering: tuple[str, Renderer]) -> None:
    name, renderer = rendering
    record = Conversation((Message("system", "Be terse."), ASK, FIVE), where="d.jsonl:3")
    if name in NO_SYSTEM:
        assert (
            refusal(renderer, record) == "d.jsonl:3: the chat template refuses this dialogue: System role not supported"
        )
    elif name not in THINK_FIRST:
        (example,) = renderer.conversations([record])
        assert "Be terse." in read(renderer, example) and counted(renderer, example) == [SAID[name].format("It is 5.")]


def test_tools(rendering: tuple[str, Renderer]) -> None:
    """Call, result and schema all stand in the text, the call counts and the result does not; or one sentence."""
    name, renderer = rendering
    messages = (
        ASK,
        answer("", tool_calls=CALL),
        Message("tool", "88", name="add", tool_call_id="call12345"),
        answer("It is 88."),
    )
    record = Conversation(messages, where="d.jsonl:3", tools=TOOLS_JSON)
    if name in NO_TOOLS:
        assert any(
            why in refusal(renderer, record)
            for why in ("leaves out", "refuses this dialogue", "is sampled after", "marks stand")
        )
        return
    (example,) = renderer.conversations([record])
    text, (said,) = read(renderer, example), counted(renderer, example)
    assert (
        "Adds." in text
        and "add" in said
        and "3" in said
        and "88" in text
        and said.count("88") == 1
        and said.endswith("It is 88.") is False
    )
    assert whole(renderer, messages, TOOLS_JSON).startswith(text)


def test_a_pair(rendering: tuple[str, Renderer]) -> None:
    name, renderer = rendering
    record = Preference((ASK,), (FIVE,), (answer("Who knows?"),), where="d.jsonl:3")
    if name in THINK_FIRST:
        assert refusal(renderer, record).startswith(
            "d.jsonl:3: chosen: message 2 (assistant): an answer is sampled after "
        )
        return
    (example,) = renderer.preferences([record])
    assert counted(renderer, example) == [SAID[name].format("It is 5."), SAID[name].format("Who knows?")]
    prompt = whole(renderer, (ASK,), prompt=True)
    shared = renderer.tokenizer.decode(example.sequences[0][: example.shared])
    assert prompt.startswith(shared) and len(shared) >= len(prompt)


THOUGHTS = {
    **dict.fromkeys(
        ("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning"), "Two and three"
    ),
    **dict.fromkeys(
        ("qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8", "glm4moe", "gptoss", "muse_glimmer", "lfm2_2_5"),
        "Two and three",
    ),
}


def test_thoughts(rendering: tuple[str, Renderer]) -> None:
    """Where a template takes thoughts they count, in every turn; else they are refused, never dropped."""
    name, renderer = rendering
    first, second = answer("It is 5.", reasoning="Two and three"), answer("Six it is.", reasoning="Half a dozen")
    record = Conversation((ASK, first, AGAIN, second), where="d.jsonl:3")
    if name in THOUGHTS:
        said = "".join("".join(counted(renderer, e)) for e in renderer.conversations([record]))
        assert [said.count(text) for text in ("Two and three", "Half a dozen", "It is 5.", "Six it is.")] == [
            1,
            1,
            1,
            1,
        ]
    else:
        try:
            said = "".join("".join(counted(renderer, e)) for e in renderer.conversations([record]))
        except InputError as error:
            assert "leaves out reasoning_content" in str(error) or "is sampled after" in str(error)
        else:
            assert "Two and three" in said and "Half a dozen" in said
