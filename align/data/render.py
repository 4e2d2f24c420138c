"""Rendering: records in, token ids out, and which tokens count.

Token ids come from one pass of the tokenizer over the whole rendered text; prompt and completion are never tokenised apart (joined text
gives other tokens). Loss counts on assistant tokens and their end-of-turn token only. What is cut, dropped or lacks its end-of-turn
token is an error or is counted in `Counts` and printed, never silent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template

from align.data.examples import Example
from align.data.records import Conversation, Message, Preference, Prompt, Text
from align.errors import InputError

DEFAULT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}Assistant:\n"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% if not loop.last %}\n\n{% endif %}"
    "{% elif m.role == 'system' %}{{ m.content }}\n\n{% else %}User:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""For bases without a template. The prompt ends in a line break: a trailing space would be another token than in the joined text."""

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""`chat_template: plain`: contents joined, nothing in between; for base models that continue text."""

Truncate = Literal["error", "drop", "cut"]


@dataclass
class Counts:
    """What rendering decided, to be printed and put into the metrics."""

    records: int = 0
    dropped_too_long: int = 0
    cut: int = 0
    missing_end: int = 0

    def __str__(self) -> str:
        parts = [f"{self.records:,} records"]
        parts += [f"{n:,} {name.replace('_', ' ')}" for name, n in asdict(self).items() if n and name != "records"]
        return ", ".join(parts)


@dataclass
class Renderer:
    """A tokenizer, the template it renders with, and the ids that end a turn: the *text contract* in working form."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    stop_ids: tuple[int, ...]
    max_length: int
    truncate: Truncate = "error"
    counts: Counts = field(default_factory=Counts)

    def contract(self) -> dict[str, Any]:
        """Text contract as it stands in a manifest: digests of tokenizer and template, and the special ids."""
        t = self.tokenizer
        return {
            "tokenizer": hashlib.sha256(t.backend_tokenizer.to_str().encode()).hexdigest(),
            "chat_template": hashlib.sha256(self.template.encode()).hexdigest(),
            "bos_token_id": t.bos_token_id,
            "eos_token_id": t.eos_token_id,
            "pad_token_id": t.pad_token_id,
            "stop_ids": list(self.stop_ids),
        }

    def save(self, folder: Path) -> None:
        """Write tokenizer and template, so that the folder alone reproduces this renderer."""
        self.tokenizer.chat_template = self.template
        self.tokenizer.init_kwargs.pop("auto_map", None)  # code that the base came with: it was not used and does not come along
        self.tokenizer.save_pretrained(folder)

    # ---- records -> examples -------------------------------------------------------------------------------------------------------

    def conversations(self, records: Sequence[Conversation]) -> list[Example]:
        """One sequence each; every assistant turn after the record's prompt counts."""
        examples = []
        prompts = iter(self._texts([r.messages[: r.prompt] for r in records if r.prompt]))
        for record, (ids, mask, offsets) in zip(records, self._render([r.messages for r in records]), strict=True):
            if record.prompt:
                start = len(next(prompts))
                mask = [m and end > start for m, (_, end) in zip(mask, offsets, strict=True)]
            if not any(mask):
                raise InputError(f"{record.where}: no assistant token to learn from; a conversation needs at least one assistant message.")
            self._check_end(ids, mask, record.where)
            example = self._fit(record.where, [ids], [mask], shared=0)
            if example is not None:
                examples.append(example)
        return self._done(len(records), examples)

    def preferences(self, records: Sequence[Preference]) -> list[Example]:
        """Two sequences each, chosen then rejected, sharing their prompt's tokens; only the completions count."""
        prompts = [r.prompt for r in records]
        prompt_texts = self._texts(prompts)
        chosen = self._render([(*r.prompt, *r.chosen) for r in records])
        rejected = self._render([(*r.prompt, *r.rejected) for r in records])
        prompt_ids = self._tokenise(prompt_texts)
        examples = []
        for record, text, p, c, r in zip(records, prompt_texts, prompt_ids, chosen, rejected, strict=True):
            sequences, masks = [], []
            for (ids, mask, offsets), cut in zip((c, r), record.cut, strict=True):
                counted = [m and end > len(text) for m, (_, end) in zip(mask, offsets, strict=True)]
                if cut and ids[-1] in self.stop_ids:
                    ids, counted = ids[:-1], counted[:-1]
                    self.counts.missing_end += 1
                if not any(counted):
                    raise InputError(f"{record.where}: the completion has no token that counts after the prompt {text[-60:]!r}.")
                if not cut:
                    self._check_end(ids, counted, record.where)
                sequences.append(ids)
                masks.append(counted)
            shared = common_prefix(p, *sequences)
            # a token that straddles the end of the prompt belongs to the completion
            shared = min([shared, *(m.index(True) for m in masks)])
            example = self._fit(record.where, sequences, masks, shared, record.margin or 0.0)
            if example is not None:
                examples.append(example)
        return self._done(len(records), examples)

    def prompts(self, records: Sequence[Prompt], new_tokens: int, context: int) -> list[list[int]]:
        """Token ids to sample from, ending where the assistant's answer begins. Raises: InputError where they leave no room to answer."""
        rows = self.prompt_ids(records)
        for record, ids in zip(records, rows, strict=True):
            if len(ids) + new_tokens > context:
                raise InputError(
                    f"{record.where}: the prompt has {len(ids):,} tokens and {new_tokens} more are to be sampled, but the model's context "
                    f"is {context:,}. Shorten or remove the row, or set max_new_tokens lower."
                )
        return rows

    def prompt_ids(self, records: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts, as long as they are. Raises: InputError for an empty one."""
        rows = self._tokenise(self._texts([r.messages for r in records]))
        for record, ids in zip(records, rows, strict=True):
            if not ids:
                raise InputError(f"{record.where}: the prompt is empty after rendering; give it text, or a tokenizer with a BOS token.")
        return rows

    def answer(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of a sampled completion, without its end-of-turn token; it ends before the first of `stop` that it holds."""
        text = str(self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=True))
        return text[: min((text.index(s) for s in stop if s in text), default=len(text))]

    def texts(self, records: Sequence[Text]) -> list[Example]:
        """Plain documents, each ended by EOS and cut into rows of at most `max_length` tokens; every token counts but a row's first."""
        eos = self.tokenizer.eos_token_id
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        examples = []
        for ids in self._tokenise([r.text for r in records]):
            whole = [*bos, *ids, eos]
            # rows overlap by one token, so that every token is predicted once
            for start in range(0, max(len(whole) - 1, 1), self.max_length - 1):
                row = whole[start : start + self.max_length]
                examples.append(Example((row,), ([False] + [True] * (len(row) - 1),)))
        return self._done(len(records), examples)

    # ---- inside --------------------------------------------------------------------------------------------------------------------

    def _texts(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        kwargs: dict[str, Any] = {"chat_template": self.template, "tokenize": False, "add_generation_prompt": True}
        return cast(list[str], self.tokenizer.apply_chat_template([_dicts(p) for p in prompts], **kwargs)) if prompts else []

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def _render(self, dialogues: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[bool], list[tuple[int, int]]]]:
        """(ids, assistant mask, character spans) of each dialogue, cut after the last token that counts."""
        if not dialogues:
            return []
        rendered = [_marked(self.tokenizer, self.template, _dicts(d)) for d in dialogues]
        out = self.tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        rows = []
        for (_, spans), ids, offsets in zip(rendered, out["input_ids"], out["offset_mapping"], strict=True):
            mask = _overlaps(offsets, spans)
            end = len(mask) - mask[::-1].index(True) if True in mask else 0
            rows.append((ids[:end], mask[:end], offsets[:end]))
        return rows

    def _check_end(self, ids: Sequence[int], mask: Sequence[bool], where: str) -> None:
        last = ids[len(mask) - 1 - list(mask)[::-1].index(True)]
        if last not in self.stop_ids:
            raise InputError(
                f"{where}: the last token that counts is {self.tokenizer.convert_ids_to_tokens(last)!r}, not an end-of-turn token "
                f"({', '.join(map(repr, self.tokenizer.convert_ids_to_tokens(list(self.stop_ids))))}); the model would never learn to "
                "stop. Put the end-of-turn token inside {% generation %} of the chat template."
            )

    def _fit(self, where: str, sequences: list[list[int]], masks: list[list[bool]], shared: int, margin: float = 0.0) -> Example | None:
        longest = max(map(len, sequences))
        if longest > self.max_length:
            if self.truncate == "error":
                raise InputError(
                    f"{where}: {longest:,} tokens, but max_length is {self.max_length:,}. Set `truncate: drop` to leave such records out, "
                    "`truncate: cut` to cut the end of the completion (both are counted), or raise max_length."
                )
            sequences = [s[: self.max_length] for s in sequences]
            masks = [m[: self.max_length] for m in masks]
            if self.truncate == "drop" or not all(map(any, masks)):
                self.counts.dropped_too_long += 1
                return None
            self.counts.cut += 1
            self.counts.missing_end += 1
        return Example(tuple(sequences), tuple(masks), shared, margin=margin)

    def _done(self, records: int, examples: list[Example]) -> list[Example]:
        self.counts.records += records
        if records and not examples:
            raise InputError(
                f"all {records:,} records are longer than max_length ({self.max_length:,} tokens) and were dropped; "
                "raise max_length or set `truncate: cut`."
            )
        return examples


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _marked(tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """(rendered text, character spans that count): what stands inside the template's generation marks, up to the end-of-turn token.

    White space after that token does not count: sampling has stopped by then (TRL's templates of Qwen, Gemma and LFM2 mark it).
    """
    texts, spans = render_jinja_template(
        conversations=[messages], chat_template=template, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
    )
    ends = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    shorter = ((start, start + len(texts[0][start:end].rstrip()), end) for start, end in spans[0])
    return texts[0], [(start, cut if texts[0][start:cut].endswith(ends) else end) for start, cut, end in shorter]


def _overlaps(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token's characters overlap a span; offsets and spans ascend."""
    mask, i = [], 0
    for start, end in offsets:
        while i < len(spans) and spans[i][1] <= start:
            i += 1
        mask.append(i < len(spans) and start < end and end > spans[i][0])
    return mask


def common_prefix(*rows: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = 0
    for column in zip(*rows, strict=False):
        if any(x != column[0] for x in column):
            break
        n += 1
    return n


def load_renderer(
    folder: Path, chat_template: str | None, max_length: int, truncate: Truncate = "error", *, extra_stops_from: Path | None = None
) -> Renderer:
    """Tokenizer, template and stop ids of a model or tokenizer folder; `extra_stops_from` is a model folder whose EOS ids count too.

    `chat_template`: None takes the tokenizer's own (TRL's training template of it where it lacks generation marks), or the default one
    where there is none; "plain" joins contents; else a Jinja file.
    Raises: InputError for a tokenizer without EOS or with code of its own, and for a template without generation marks.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise InputError(
            f"{folder}: its tokenizer is code that comes with the model (auto_map), and Align runs no code of a model."
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{folder}: the tokenizer has no EOS token, so a model could never learn to stop. Set eos_token in tokenizer_config.json."
        )
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: only a slow tokenizer was found; character spans need tokenizer.json (a fast tokenizer).")
    template = _template(tokenizer, chat_template, folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by length, never by id
    stops = _stop_ids(tokenizer, template, extra_stops_from or folder)
    return Renderer(tokenizer, template, stops, max_length, truncate)


def _template(tokenizer: PreTrainedTokenizerBase, setting: str | None, folder: Path) -> str:
    if setting == "plain":
        return PLAIN_TEMPLATE
    if setting is not None:
        text = Path(setting).read_text(encoding="utf-8")
    elif tokenizer.chat_template is None:
        return DEFAULT_TEMPLATE
    else:
        try:
            text = get_training_chat_template(tokenizer) or tokenizer.chat_template
        except ValueError as error:
            raise InputError(
                f"{folder}: its chat template has no {{% generation %}} marks, and TRL ships no training template for it. "
                "Give one with `chat_template: FILE`, marks around what the assistant says."
            ) from error
    if not re.search(r"\{%-?\s*generation\s*-?%\}", text):
        raise InputError(
            f"{setting or folder}: the chat template has no {{% generation %}} … {{% endgeneration %}} around the assistant's text."
        )
    return text


def _stop_ids(tokenizer: PreTrainedTokenizerBase, template: str, model: Path) -> tuple[int, ...]:
    """Every id that ends an answer: the tokenizer's EOS, the checkpoint's EOS ids, and the template's end-of-turn token."""
    stops = {tokenizer.eos_token_id}
    try:
        shipped = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        shipped = None
    stops |= set(shipped if isinstance(shipped, list) else [] if shipped is None else [shipped])
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text, spans = _marked(tokenizer, template, probe)
    counted = tokenizer(text[slice(*spans[-1])], add_special_tokens=False)["input_ids"] if spans else []
    if counted and counted[-1] in tokenizer.added_tokens_decoder:
        stops.add(counted[-1])
    return tuple(sorted(stops))
