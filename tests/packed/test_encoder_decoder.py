"""Encoder-decoders are what transformers makes of `model(input_ids=prompt, labels=answer)`, and PEFT of their
adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from align.adapters.targets import lora_config
from align.data.examples import Example
from align.data.records import Conversation, Message, Preference, Prompt
from align.ground.errors import InputError
from align.models.base import load_base
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.models.save import save_model
from align.packed import encoder_decoder
from align.packed.pack import pack
from align.rendering.render import Renderer, load_renderer
from align.rendering.templates.choosing import DEFAULT_TEMPLATE
from align.sampling.rollout import Sampler, as_example
from tests.models.two_parts import VOCAB, make, tokenizer, write

KINDS = ("T5", "T5 v1.1", "BART", "T5Gemma")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, about its models


def rows(seed: int = 3) -> list[Example]:
    """Groups of answers that share a prompt; of several lengths, ended by EOS."""
    draw = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(3, VOCAB, (n,), generator=draw).tolist()  # noqa: E731
    return [
        as_example(ids(prompt), [[*ids(n), 1] for n in answers])
        for prompt, *answers in ((9, 8, 5), (3, 11), (20, 2, 7))
    ]


def loaded(name: str, folder: Path) -> tuple[Roles, Any]:
    """Our roles with two adapters, of which one must not matter; and PEFT's model of the other."""
    write(name, folder / "base")
    roles = Roles(load_base(folder / "base", quantize=None, dtype=torch.float32))
    torch.manual_seed(0)
    for adapter in ("policy", "other"):
        roles.add_adapter(adapter, lora_config(4, 8, "all-linear", 0.0, roles.base))
        roles.assign(adapter, [adapter])
    with torch.no_grad():
        for key, parameter in roles.base.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.05)
    roles.save_adapter("policy", folder / "adapter", "base")
    roles.train_only("policy")
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder / "base", attn_implementation="eager")
    return roles, PeftModel.from_pretrained(plain, str(folder / "adapter"), is_trainable=True).eval()


def labelled(examples: list[Example]) -> dict[str, Tensor]:
    """One row per sequence, as transformers' data collator for encoder-decoders pads them: -100 where nothing
    counts."""
    pairs = [(s[: e.shared], s[e.shared :]) for e in examples for s in e.sequences]
    longest, most = max(len(p) for p, _ in pairs), max(len(a) for _, a in pairs)
    return {
        "input_ids": torch.tensor([[*p, *[0] * (longest - len(p))] for p, _ in pairs]),
        "attention_mask": torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p, _ in pairs]),
        "labels": torch.tensor([[*a, *[-100] * (most - len(a))] for _, a in pairs]),
    }


def gradients(model: Any, adapter: str) -> dict[str, Tensor]:
    named = {
        k.removeprefix("base_model.model.").replace(f".{adapter}.", "."): p.grad
        for k, p in model.named_parameters()
        if "lora_" in k
    }
    return {key: grad for key, grad in named.items() if grad is not None}


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradients_are_those_of_transformers_and_peft(name: str, tmp_path: Path):
    roles, alone = loaded(name, tmp_path)
    assert not roles.packed and roles.why_padded == "its encoder reads whole prompts"
    batch = pack(rows())

    def loss(batch: Any) -> Tensor:
        return -roles.logprobs("policy", batch).sum() / batch.loss_mask.sum()

    ours = loss(batch)
    ours.backward()
    found = gradients(roles.base, "policy")
    wanted = alone(**labelled(rows())).loss
    wanted.backward()
    theirs = gradients(alone, "default")
    assert abs(float(ours - wanted)) < 1e-5
    assert found.keys() == theirs.keys() and all(float((found[k] - theirs[k]).abs().max()) < 1e-5 for k in theirs)
    parts = (
        "encoder",
        "decoder",
        "EncDecAttention" if "T5" in name and name != "T5Gemma" else "cross" if name == "T5Gemma" else "encoder_attn",
    )
    for part in parts:
        assert any(part in key and "lora_B" in key and grad.abs().max() > 1e-5 for key, grad in theirs.items()), part

    # activation checkpointing computes the same again, inside the role
    for parameter in roles.base.parameters():
        parameter.grad = None
    roles.enable_activation_checkpointing()
    loss(batch).backward()
    again = gradients(roles.base, "policy")
    assert again.keys() == found.keys() and all(torch.allclose(again[k], found[k], atol=1e-6) for k in found)
    # negative controls: another prompt is another loss, and so is another adapter
    with torch.no_grad():
        assert (
            abs(
                float(
                    loss(
                        pack([Example(tuple((5, *s[1:]) for s in e.sequences), e.supervised, e.shared) for e in rows()])
                    )
                    - ours
                )
            )
            > 1e-3
        )
        assert abs(float(-roles.logprobs("other", batch).sum() / batch.loss_mask.sum() - ours)) > 1e-3


def test_another_start_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: a decoder that begins with another token gives another loss."""
    roles, alone = loaded("BART", tmp_path)
    wanted = float(alone(**labelled(rows())).loss)
    monkeypatch.setattr(encoder_decoder, "start_id", lambda model: 7)
    batch = pack(rows())
    assert abs(float(-roles.logprobs("policy", batch).sum() / batch.loss_mask.sum()) - wanted) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_samples_are_from_the_model_that_trains(name: str, tmp_path: Path):
    """Log-probs of samples are transformers' own; greedy answers are those of `generate` once the adapter is merged,
    whatever else the checkpoint's own settings would do."""
    roles, alone = loaded(name, tmp_path)
    shipped: Any = roles.base.generation_config
    shipped.update(num_beams=3, no_repeat_ngram_size=1, min_length=30, forced_bos_token_id=9, early_stopping=True)
    sampler, prompts = Sampler(roles, "policy", [1], 0), [list(e.sequences[0][: e.shared]) for e in rows()]
    torch.manual_seed(0)
    for prompt, answers in zip(prompts, sampler(prompts, n=3, max_new_tokens=12, temperature=1.0), strict=True):
        for answer in answers:
            logits = alone(input_ids=torch.tensor([prompt]), labels=torch.tensor([[*answer.ids, 1]])).logits[0, :-1]
            wanted = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
            assert float((wanted - torch.tensor(answer.logprobs)).abs().max()) < 1e-4
            got = roles.logprobs("policy", pack([as_example(prompt, [answer.ids])]))
            assert float((got[-len(answer.ids) - 1 : -1] - wanted).abs().max()) < 1e-5
    save_model(MergedCopy(roles, "policy").merged(), tmp_path / "merged", "fp32", {"stop_ids": [1], "pad_token_id": 0})
    merged: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    assert merged.generation_config.num_beams == 3  # how the checkpoint samples stays as it was
    by_beams = merged.generate(input_ids=torch.tensor([prompts[0]]), max_new_tokens=12)[0, 1:].tolist()
    merged.generation_config = GenerationConfig(
        **{k: v for k, v in make(name).generation_config.to_dict().items() if "forced" not in k}
    )
    greedy = [answer.ids for (answer,) in sampler(prompts, n=1, max_new_tokens=12, temperature=0.0)]
    theirs = [
        merged.generate(input_ids=torch.tensor([p]), max_new_tokens=12, do_sample=False)[0, 1:].tolist()
        for p in prompts
    ]
    assert greedy == theirs
    assert by_beams != greedy[0]  # negative control


def test_refused_where_training_and_sampling_begin_otherwise(tmp_path: Path):
    """mBART's decoder begins with a language, which its labels end with; and a T5 that names no start can neither train
    nor be sampled."""
    model = make("BART")
    assert encoder_decoder.start_id(model) == 1
    model.generation_config.decoder_start_token_id = 7
    with pytest.raises(
        InputError, match="begins with token 7 when it is sampled and with token 1 when it is trained on labels"
    ):
        encoder_decoder.start_id(model)
    model = make("T5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(InputError, match="names no token that its decoder begins with"):
        encoder_decoder.start_id(model)


# ---- text ------------------------------------------------------------------------------------------------------------

ASK, SEVEN = Message("user", "What is 3 plus 4?"), Message("assistant", "It is 7.")
TALK = (
    Message("system", "Be brief."),
    ASK,
    SEVEN,
    Message("user", "Which colour is the cup?"),
    Message("assistant", "Red!"),
)


def renderer(tmp_path: Path, template: str | None = None) -> Renderer:
    return load_renderer(write("T5", tmp_path / "base"), template, 256)


def test_texts_are_those_that_the_tokenizer_makes(tmp_path: Path):
    """The encoder reads what `tokenizer(prompt)` gives, and the decoder what `tokenizer(text_target=answer)` does."""
    found, alone = renderer(tmp_path), tokenizer()
    (example,) = found.conversations([Conversation((ASK, SEVEN))])
    prompt, answer = alone(ASK.content)["input_ids"], alone(text_target=SEVEN.content)["input_ids"]
    assert list(example.sequences[0]) == prompt + answer
    assert list(example.supervised[0]) == [False] * len(prompt) + [True] * len(answer)
    assert found.prompt_ids([Prompt((ASK,))]) == [prompt] and found.answer(answer) == SEVEN.content
    assert found.stop_ids == (1,) and found.counts.tokens_across_prompt_end == 0
    # negative control: the template of decoders writes a label and no EOS behind the prompt
    plain = write("T5", tmp_path / "other")
    (plain / "template.jinja").write_text(DEFAULT_TEMPLATE)
    (other,) = load_renderer(plain, str(plain / "template.jinja"), 256).conversations([Conversation((ASK, SEVEN))])
    assert list(other.sequences[0]) != prompt + answer


def test_each_answer_of_a_dialogue_is_learnt_after_all_that_came_before(tmp_path: Path):
    found, alone = renderer(tmp_path), tokenizer()
    first, second = found.conversations([Conversation(TALK)])
    asked = f"Be brief.\n\nUser: {ASK.content}\n\nAssistant: {SEVEN.content}\n\nUser: {TALK[3].content}"
    for example, prompt, answer in ((first, f"Be brief.\n\n{ASK.content}", SEVEN), (second, asked, TALK[4])):
        ids, target = alone(prompt)["input_ids"], alone(text_target=answer.content)["input_ids"]
        assert list(example.sequences[0]) == ids + target and sum(example.supervised[0]) == len(target)
    assert found.counts.answers_taken_apart == 1
    assert found.prompt_ids([Prompt(TALK[:4])]) == [alone(asked)["input_ids"]]
    (only,) = found.conversations([Conversation(TALK, prompt=4)])
    assert only == second
    joined = load_renderer(tmp_path / "base", "plain", 256).prompt_ids([Prompt(TALK[:4])])
    assert joined == [alone("".join(m.content for m in TALK[:4]))["input_ids"]]


def test_a_pair_shares_its_prompt(tmp_path: Path):
    found = renderer(tmp_path)
    (pair,) = found.preferences([Preference((ASK,), (SEVEN,), (Message("assistant", "It is 3."),))])
    assert pair.shared == len(tokenizer()(ASK.content)["input_ids"]) and pair.sequences[0] != pair.sequences[1]


def test_the_template_stays_with_the_tokenizer(tmp_path: Path):
    found = renderer(tmp_path)
    found.save(tmp_path / "saved")
    again = load_renderer(tmp_path / "saved", None, 256)
    assert again.contract() == found.contract() and again.prompt_ids([Prompt(TALK[:4])]) == found.prompt_ids(
        [Prompt(TALK[:4])]
    )


def test_an_answer_opens_as_the_tokenizer_opens_a_text_but_where_the_decoder_does(tmp_path: Path):
    """BART's texts stand between <s> and </s>, and so do its labels; T5Gemma's decoder begins with the BOS that opens
    its texts."""
    from tokenizers.processors import TemplateProcessing

    from align.rendering.templates.two_parts import two_part_template

    like_bart = tokenizer()
    like_bart.add_special_tokens({"bos_token": "<s>"})
    special = [("<s>", like_bart.bos_token_id), ("</s>", 1)]
    like_bart.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    for start, opening in ((1, "<s>"), (like_bart.bos_token_id, "")):
        like_bart.chat_template = two_part_template(like_bart, start, plain=False)
        text = like_bart.apply_chat_template([ASK.plain(), SEVEN.plain()], tokenize=False)
        assert text == f"<s>{ASK.content}</s>{opening}{SEVEN.content}</s>"
    like_bart.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special[:1])
    like_bart.chat_template = two_part_template(like_bart, like_bart.bos_token_id, plain=False)
    assert (
        like_bart.apply_chat_template([ASK.plain(), SEVEN.plain()], tokenize=False)
        == f"<s>{ASK.content}{SEVEN.content}</s>"
    )
