"""The text contract: what makes texts mean the same token ids wherever they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from align.ground.errors import InputError
from align.ground.json import Json
from align.rendering.templates.template import Template


@dataclass
class TextContract:
    """A tokenizer, the template it renders with, and the ids that end a turn."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    stop_ids: tuple[int, ...]

    def contract(self) -> Json:
        """Text contract as it stands in a manifest: digests of tokenizer and template, and the special ids."""
        t = self.tokenizer
        options = {"special_tokens": dict(t.special_tokens_map), "split_special_tokens": t.split_special_tokens}
        return {
            "tokenizer": hashlib.sha256(t.backend_tokenizer.to_str().encode()).hexdigest(),
            "tokenizer_options": hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest(),
            "chat_template": hashlib.sha256(self.template.source.encode()).hexdigest(),
            "template_date": self.template.date,
            "bos_token_id": t.bos_token_id,
            "eos_token_id": t.eos_token_id,
            "pad_token_id": t.pad_token_id,
            "stop_ids": list(self.stop_ids),
        }

    def check_vocabulary(self, rows: int, folder: Path) -> None:
        """Each token that can occur has a row in an embedding of `rows`: all but added ones that neither template nor
        special ids name, such as a text model's token for images.

        Raises: InputError naming the tokens that have none. Those that are left may still stand in data, where they are
        refused.
        """
        tokenizer = self.tokenizer
        used = {tokenizer.bos_token_id, tokenizer.pad_token_id, *self.stop_ids}
        beyond = [(id_, token) for token, id_ in tokenizer.get_vocab().items() if id_ >= rows]
        added = tokenizer.added_tokens_decoder
        in_use = used | {id_ for id_, token in beyond if token in self.template.source}
        wrong = sorted((id_, token) for id_, token in beyond if id_ not in added or id_ in in_use)
        if wrong:
            id_, token = wrong[0]
            raise InputError(
                f"{folder}: the tokenizer gives {token!r} the id {id_:,}, and the model's embedding has {rows:,} rows "
                f"({len(wrong):,} tokens have none). Take the tokenizer that the model was trained with, or enlarge "
                "the model with resize_token_embeddings."
            )

    def save(self, folder: Path) -> None:
        """Write tokenizer and template, so that the folder alone reproduces this renderer."""
        self.tokenizer.chat_template = self.template.source
        # code that the base came with: it was not used and does not come along
        self.tokenizer.init_kwargs.pop("auto_map", None)
        self.tokenizer.save_pretrained(folder)

    def answer(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of a sampled completion, without its end-of-turn token; it ends before the first of `stop` that it
        holds.

        Where the generation prompt opens a thought, so does the text: it can stand in a dialogue as it is.
        """
        said = [i for i in ids if i not in self.stop_ids]
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        end = min((text.index(s) for s in stop if s in text), default=len(text))
        return self.template.opening + text[:end]


def stop_ids(tokenizer: PreTrainedTokenizerBase, template: Template, model: Path) -> tuple[int, ...]:
    """Every id that ends an answer: the tokenizer's EOS, the checkpoint's EOS ids, and the template's end-of-turn
    token."""
    try:
        shipped = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        shipped = None
    several = shipped if isinstance(shipped, list) else [shipped]
    stops = {tokenizer.eos_token_id, *several, template.end_of_turn(tokenizer)}
    return tuple(sorted(i for i in stops if i is not None))
