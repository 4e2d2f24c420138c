"""Rendering: records in, token ids out, and which tokens count.

Token ids come from one pass of the tokenizer over the whole rendered text; prompt and completion are never tokenised
apart (joined text gives other tokens). Loss counts on assistant tokens and their end-of-turn token only. What is cut,
dropped or lacks its end-of-turn token is an error or is counted in `Counts` and printed, never silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from align.data.counts import Counts
from align.data.examples import Example
from align.data.records import Conversation, Labelled, Messages, Preference, Prompt, R, Ranking, Stepwise, Text
from align.data.split import opening
from align.folders.config import CONFIG, is_encoder_decoder, read_json
from align.ground.errors import InputError, NothingLeft
from align.ground.progress import Task
from align.recipe import BadRows
from align.rendering.batches import Keep, Make, check_some, made, renderable
from align.rendering.contract import TextContract, stop_ids
from align.rendering.lengths import Truncate, none_left, too_long
from align.rendering.mask import common_prefix, ended, mask, step_ends
from align.rendering.special import Policy, SpecialTokens
from align.rendering.templates.choosing import choose_template
from align.rendering.tokenizer import add_tokens, load_tokenizer
from align.rendering.tokens import Tokens
from align.rendering.turns import Rendered, Turns, learnt_from, no_one_text

T = TypeVar("T")


@dataclass
class Renderer(TextContract):
    """A text contract in working form."""

    max_length: int
    truncate: Truncate = "error"
    special_tokens: Policy = "error"
    bad_rows: BadRows = "error"
    counts: Counts = field(default_factory=Counts)
    apart: bool = False
    """Whether each answer has a sequence of its own, as for an encoder-decoder, whose encoder reads all that comes
    before."""
    limit: str = "max_length"
    """What `max_length` is, in words: the setting, or the model's context where that is shorter."""
    new_tokens: dict[int, list[int]] = field(default_factory=dict)
    """Tokens that were just added: id -> the ids that their text was read as before."""
    keep: Keep | None = None
    """Where the examples of many records are kept for later runs; None for this one alone."""

    def __post_init__(self) -> None:
        special = SpecialTokens(self.tokenizer, self.special_tokens, self.stop_ids, self.template)
        self.turns = Turns(self.template, special, self.counts, self.apart)

    def check_vocabulary(self, rows: int, folder: Path) -> None:
        """Each token that can occur has a row in an embedding of `rows`. Raises: InputError; and so will rendering, for
        a token in the data that has none."""
        self.turns.special.rows = rows
        super().check_vocabulary(rows, folder)

    # ---- records -> examples -----------------------------------------------------------------------------------------

    def conversations(self, records: Sequence[Conversation]) -> Sequence[Example]:
        """One sequence each; every assistant turn after the record's prompt counts. Where the template renders an
        answer in another way once later turns follow, or answers are taken `apart`, that answer has a sequence of its
        own."""
        return self._made("conversation", records, self._conversations)

    def _conversations(self, records: Sequence[Conversation]) -> list[Example]:
        several = renderable(self, self._dialogue, records)
        rendered = [(record, text) for record, texts in several for text in texts]
        rows = self._tokenise([text for _, text in rendered], [record.where for record, _ in rendered])
        examples = []
        for (record, _), (ids, counts) in zip(rendered, rows, strict=True):
            examples += self._fit(record, [ids], [counts], shared=0)
        return examples

    def _dialogue(self, record: Conversation) -> list[Rendered]:
        learnt = learnt_from(record.messages, record.prompt)
        said = sum(m.role == "assistant" for m in record.messages[record.prompt :])
        self.counts.answers_not_learnt += said - len(learnt)
        if not learnt:
            raise InputError(
                f"{record.where}: no assistant message to learn from; a conversation needs at least one that is learnt."
            )
        self.counts.dialogues_cut_after_their_last_answer += record.messages[-1].role != "assistant"
        return self.turns.dialogue(record.messages, record.tools, learnt, record.where)

    def preferences(self, records: Sequence[Preference | Ranking]) -> Sequence[Example]:
        """A sequence for each answer, best first, sharing their prompt's tokens; only the completions count."""
        return self._made("preference", records, self._preferences)

    def _preferences(self, records: Sequence[Preference | Ranking]) -> list[Example]:
        several = renderable(self, self._several, records)
        prompt_ids = [tokens.ids for tokens in self._ids([prompt for _, (prompt, *_) in several])]
        answers = [(text, record.where) for record, (_, *texts) in several for text in texts]
        rows = iter(self._tokenise([text for text, _ in answers], [where for _, where in answers]))
        examples = []
        for (record, _), prompt in zip(several, prompt_ids, strict=True):
            whole = [ended(next(rows), cut, self.stop_ids, record.where, self.counts) for cut in record.cut]
            sequences, masks = [ids for ids, _ in whole], [counts for _, counts in whole]
            # a token that straddles the end of the prompt belongs to the completion
            shared = min([common_prefix(prompt, *sequences), *(counts.index(True) for counts in masks)])
            examples += self._fit(record, sequences, masks, shared, record.margin or 0.0)
        return examples

    def labelled(self, records: Sequence[Labelled | Stepwise]) -> Sequence[Example]:
        """One sequence each, of which the completion counts, or the ends of its steps; `shared` are its prompt's
        tokens, as of a pair."""
        return self._made("labelled", records, self._labelled)

    def _labelled(self, records: Sequence[Labelled | Stepwise]) -> list[Example]:
        both = renderable(self, lambda r: (self.turns.prompt(r.prompt, r.tools, r.where), self._answered(r)), records)
        wheres = [record.where for record, _ in both]
        prompts, answers = self._ids([row[0] for _, row in both]), self._tokenise([row[1] for _, row in both], wheres)
        examples = []
        for (record, _), prompt, (ids, counts) in zip(both, prompts, answers, strict=True):
            shared = min(common_prefix(prompt.ids, ids), counts.index(True))
            for example in self._fit(record, [ids], [counts], shared):
                cut = sum(example.supervised[0])
                said = {"labels": record.labels[:cut]} if isinstance(record, Stepwise) else {"label": record.label}
                examples.append(replace(example, **said))
        return examples

    def _answered(self, record: Labelled | Stepwise) -> Rendered:
        whole = self._whole(record, record.completion, "the completion")
        if isinstance(record, Labelled):
            return whole
        return step_ends(whole, record.completion[0].content, record.ends, record.where)

    def _several(self, record: Preference | Ranking) -> list[Rendered]:
        """Prompt, and each answer."""
        texts = [self.turns.prompt(record.prompt, record.tools, record.where)]
        texts += [self._whole(record, completion, side) for side, completion in record.answers.items()]
        last = {completion[-1].role for completion in record.answers.values()}
        self.counts.dialogues_cut_after_their_last_answer += last != {"assistant"}
        return texts

    def _whole(self, record: Preference | Ranking | Labelled | Stepwise, completion: Messages, side: str) -> Rendered:
        """Prompt and completion as one text. Raises: InputError where that is not one."""
        messages = (*record.prompt, *completion)
        learnt = learnt_from(messages, len(record.prompt))
        self.counts.answers_not_learnt += sum(m.role == "assistant" for m in completion) - len(learnt)
        if not learnt:
            raise InputError(f"{record.where}: {side} has no assistant message that is learnt.")
        *apart, text = self.turns.dialogue(messages, record.tools, learnt, f"{record.where}: {side}")
        if apart:
            raise InputError(no_one_text(f"{record.where}: {side}"))
        return text

    def prompts(self, records: Sequence[Prompt], new_tokens: int, context: int) -> tuple[list[Prompt], list[list[int]]]:
        """Prompts, and token ids to sample from, up to where the answer begins. Raises: InputError where they leave no
        room for it."""
        rows = {id(record): ids for record, ids in self.prompt_rows(records)}

        def fitting(record: Prompt) -> list[int]:
            ids = rows[id(record)]
            if len(ids) + new_tokens > context:
                raise InputError(
                    f"{record.where}: the prompt has {len(ids):,} tokens and {new_tokens} more are to be sampled, but "
                    f"the model's context is {context:,}. Shorten or remove the row, or set max_new_tokens lower."
                )
            return ids

        there = [record for record in records if id(record) in rows]
        fitted = renderable(self, fitting, there)
        check_some(self, there, len(there) - len(fitted))
        return [record for record, _ in fitted], [ids for _, ids in fitted]

    def prompt_ids(self, records: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts, as long as they are."""
        return [ids for _, ids in self.prompt_rows(records)]

    def prompt_rows(self, records: Sequence[Prompt]) -> list[tuple[Prompt, list[int]]]:
        """Prompts and their token ids, without those that cannot be rendered where bad rows are dropped. Raises:
        InputError for an empty one."""
        rendered = renderable(self, lambda r: self.turns.prompt(r.messages, r.tools, r.where), records)
        check_some(self, records, len(records) - len(rendered))
        rows = [tokens.ids for tokens in self._ids([text for _, text in rendered])]
        for (record, _), ids in zip(rendered, rows, strict=True):
            if not ids:
                raise InputError(
                    f"{record.where}: the prompt is empty after rendering; "
                    "give it text, or a tokenizer with a BOS token."
                )
        self.counts.records += len(records)
        return [(record, ids) for (record, _), ids in zip(rendered, rows, strict=True)]

    def texts(self, records: Sequence[Text]) -> Sequence[Example]:
        """Plain documents, each ended by EOS and cut into rows of at most `max_length` tokens; every token counts but a
        row's first."""
        return self._made("text", records, self._texts)

    def _texts(self, records: Sequence[Text]) -> list[Example]:
        eos = self.tokenizer.eos_token_id
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        examples = []
        special = self.turns.special
        screened = renderable(self, lambda r: special.screen_document(r.text, r.where, self.counts), records)
        texts = [text for _, text in screened]
        written = [[m.span() for m in special.pattern.finditer(text)] for text in texts]
        tokens = special.tokenise(texts, written, [record.where for record, _ in screened], self.counts)
        for (record, _), row_tokens in zip(screened, tokens, strict=True):
            whole, whose = [*bos, *row_tokens.ids, eos], opening(record)
            # rows overlap by one token, so that every token is predicted once
            for start in range(0, max(len(whole) - 1, 1), self.max_length - 1):
                row = whole[start : start + self.max_length]
                examples.append(Example((row,), ([False] + [True] * (len(row) - 1),), opening=whose))
        return examples

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _made(self, kind: str, records: Sequence[R], make: Make[R]) -> Sequence[Example]:
        """Examples of records, part by part. Raises: NothingLeft."""
        before = self.counts.left_out.total()
        examples = made(self, kind, records, make)
        self.counts.records += len(records)
        check_some(self, records, self.counts.left_out.total() - before)
        if records and not examples:
            raise NothingLeft(none_left(len(records), self.max_length, self.limit, self.truncate == "cut"))
        return examples

    def _tokenise(self, rendered: Sequence[Rendered], wheres: Sequence[str]) -> list[tuple[list[int], list[bool]]]:
        """(ids, whether each counts) of each text, cut after the last token that counts."""
        tokenised = self._ids(rendered)
        return [
            mask(row, tokens, self.tokenizer, self.stop_ids, where, self.counts)
            for row, tokens, where in zip(rendered, tokenised, wheres, strict=True)
        ]

    def _ids(self, rendered: Sequence[Rendered]) -> list[Tokens]:
        texts, written = [r.text for r in rendered], [r.written for r in rendered]
        return self.turns.special.tokenise(texts, written, [r.where for r in rendered], self.counts)

    def _fit(
        self,
        record: Conversation | Preference | Ranking | Labelled | Stepwise,
        sequences: list[list[int]],
        masks: list[list[bool]],
        shared: int,
        margin: float = 0.0,
    ) -> list[Example]:
        """The example, within `max_length`; none where it is dropped. Raises: InputError where it is too long."""
        longest = max(map(len, sequences))
        if longest > self.max_length:
            if self.truncate == "error":
                raise InputError(too_long(record.where, longest, masks, self.max_length, self.limit))
            sequences = [s[: self.max_length] for s in sequences]
            masks = [m[: self.max_length] for m in masks]
            if self.truncate == "drop" or not all(map(any, masks)):
                self.counts.dropped_too_long += 1
                return []
            if len(sequences) == 2 and sequences[0] == sequences[1]:
                self.counts.dropped_equal_once_cut += 1
                return []
            self.counts.cut += 1
            self.counts.missing_end += 1
        return [Example(tuple(sequences), tuple(masks), shared, margin=margin, opening=opening(record))]


def load_renderer(
    folder: Path,
    chat_template: str | None,
    max_length: int,
    truncate: Truncate = "error",
    *,
    extra_stops_from: Path | None = None,
    special_tokens: Policy = "error",
    bad_rows: BadRows = "error",
    template_date: str | None = None,
    new_tokens: Sequence[str] = (),
) -> Renderer:
    """Tokenizer, template and stop ids of a model or tokenizer folder; `extra_stops_from` is a model folder whose EOS
    ids count too.

    `chat_template`: None takes the tokenizer's own, or the default one where there is none; "plain" joins contents;
    else a Jinja file. `new_tokens`: texts that the tokenizer is to read as one token each.
    Raises: InputError for a folder without a fast tokenizer, one without EOS or with code of its own, and what
    `choose_template` raises.
    """
    with Task("loading the tokenizer"):
        tokenizer = load_tokenizer(folder)
    added = add_tokens(tokenizer, new_tokens)
    model = extra_stops_from or folder
    config = read_json(model / CONFIG) if (model / CONFIG).is_file() else {}
    template = choose_template(tokenizer, chat_template, folder, template_date, config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by length, never by id
    stops = stop_ids(tokenizer, template, model)
    apart = is_encoder_decoder(config)
    return Renderer(
        tokenizer, template, stops, max_length, truncate, special_tokens, bad_rows, apart=apart, new_tokens=added
    )
