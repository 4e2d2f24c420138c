"""Pretraining, from scratch or continued, on plain text.  `python -m align.pretrain --data raw.jsonl --name my-base`

Next-token loss on every token; documents are packed without seeing each other. Without `base` or `parent` a Llama of
the size in `architecture` starts from random weights, with a byte-level BPE tokenizer trained on the same text. With
one of them training goes on: `method: full` changes all weights and gives a new model, `method: lora` gives an adapter.
Left out: mixtures over several sources, curriculum, muP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from align import losses, measures, memory, models
from align.data.formats import read_conversations, read_texts
from align.data.records import Text
from align.ground.errors import InputError
from align.ground.terminal import say
from align.guard import limits, supervised
from align.recipe import Count, NextTokenConfig, Settings, optimizers
from align.stage import learning, on_base, outcomes, reading
from align.stage.command import main
from align.stage.describe import Outcome, Stage, all_with
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.data.examples import Example
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch
    from align.rendering.render import Renderer


class Architecture(Settings):
    """Shape of a Llama trained from scratch (Touvron et al. 2023, arXiv 2302.13971)."""

    hidden_size: Count = 256
    """Width of the model."""
    layers: Count = 6
    """Number of blocks."""
    heads: Count = 8
    """Attention heads; hidden_size must be a multiple."""
    kv_heads: Count = 8
    """Key/value heads (grouped-query attention); heads must be a multiple."""
    intermediate_size: Count = 688
    """Width of the feed-forward part; about 8/3 of hidden_size."""
    vocab_size: Count = 4096
    """Entries of the BPE tokenizer, special tokens included."""
    context: Count = 512
    """Most positions the model will ever see."""
    tie_embeddings: bool = True
    """Use one matrix for input embeddings and output head."""


class Config(NextTokenConfig):
    """Pretraining"""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {}
    apart = frozenset()

    guard: limits.Limits = limits.Limits()

    architecture: Architecture = Architecture()
    """Shape of a model from scratch."""
    method: Literal["full", "lora"] = "full"
    """Train all weights (a new model), or an adapter on a frozen base."""
    learn: Literal["all", "answers"] = "all"
    """all: rows are plain text, every token counts. answers: rows are prompts with completions, or dialogues, and only
    the assistant's words count (instruction pre-training, Cheng et al. 2024, arXiv 2406.14491)."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate. 1e-3 suits full training of models of 1 to 100 M parameters; take about 2e-5 to continue a
    large one, 2e-4 with LoRA."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay (GPT-3, arXiv 2005.14165, appendix B)."""
    optim_args: dict[str, optimizers.Value] = Field(default_factory=dict)
    """What GaLore takes beside its learning rate, by transformers' names: rank (128), update_proj_gap (200), scale
    (0.25) and proj_type (std), as in Zhao et al. 2024 (arXiv 2403.03507)."""
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision in which a full model is stored."""

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(given)
        scratch = given.get("base") is None and given.get("parent") is None
        if scratch and given.get("learn") == "answers":
            found.append(
                "learn: answers goes on from a base or a parent; a model from scratch starts with `learn: all` on "
                "plain text."
            )
        if scratch and given.get("method") == "lora":
            found.append(
                "method: lora needs a base or a parent to adapt; a model from scratch is trained with `method: full`."
            )
        if scratch and given.get("new_tokens"):
            found.append(
                "new_tokens adds to the tokenizer of a base or a parent; a model from scratch has one of its own, "
                "from its text."
            )
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.base is not None or self.parent is not None:
            found["architecture"] = "the model that it goes on from has a shape already. Leave it out."
        if self.method == "full":
            if self.precision == "bf16":
                found["precision"] = (
                    "method is full, which trains all weights in fp32. Set `method: lora`, or leave it out."
                )
            found |= self.without_adapter()
        else:
            found["save_dtype"] = "method is lora, which stores an adapter and no model. Leave it out."
        if self.learn == "all":
            found["truncate"] = "plain text is cut into rows of max_length, so nothing is left out. Leave it out."
        return found


def loss(roles: Roles, batch: Batch) -> Loss:
    return losses.tokens.next_token(roles.logprobs("policy", batch))


def run(config: Config, store: Store) -> Artifact:
    """Pretrain on `config.data`: a `model` artifact, or an `adapter` one with `method: lora`."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    answers = config.learn == "answers"
    records, held_out_records = reading.split(bench)
    ready(bench, {})
    if config.method == "full":
        bench.held["precision"] = "fp32"
    renderer = renderer_of(bench, records)
    roles = (
        random_weights(bench, renderer)
        if bench.question.base is None
        else bench.load_base(in_fp32=config.method == "full")
    )
    render = renderer.conversations if answers else renderer.texts
    examples, held_out = render(records), render(held_out_records)
    tokens, parameters = sum(e.tokens for e in examples), sum(p.numel() for p in roles.base.parameters())
    say(f"{bench.title}: {renderer.counts}; {tokens:,} tokens to train on; {parameters:,} parameters")
    learning.check_new_tokens(bench, examples)
    if config.method == "lora":
        on_base.add_policy(bench, roles, examples)
        roles.train_only("policy")
    else:
        roles.assign("policy", [])
        roles.train_base()

    def measure(some: Sequence[Example]) -> dict[str, float]:
        return measures.statistics.held_out_loss(roles, "policy", some, config.tokens_per_microbatch)

    guard = supervised.Guard(config, bench.title, roles, held_out, measure)
    history, cost = learning.fit(bench, roles, loss, examples, guard)
    metrics = {"loss": history[-1]["loss"], **measure(held_out), **guard.metrics()}
    if config.method == "lora":
        return outcomes.adapter_artifact(bench, roles, renderer, metrics, history, cost)
    return outcomes.model_artifact(bench, roles, renderer, metrics, history, cost)


def ready(bench: Workbench, records: Mapping[str, Any]) -> None:
    """What is to be trained can be. Raises: InputError."""
    shape = bench.config.architecture
    outcomes.check_full(bench)
    if bench.question.base is None and (shape.hidden_size % shape.heads or shape.heads % shape.kv_heads):
        raise InputError(
            f"architecture: hidden_size ({shape.hidden_size}) must be a multiple of heads ({shape.heads}), and heads "
            f"of kv_heads ({shape.kv_heads})."
        )


def renderer_of(bench: Workbench, records: list[Text]) -> Renderer:
    """The base's, or one with a tokenizer of its own, trained on the records."""
    from align.rendering.render import load_renderer
    from align.rendering.tokenizer import train_tokenizer

    if bench.question.base is not None:
        return bench.load_renderer()
    shape, longest = bench.config.architecture, bench.config.max_length
    folder = bench.folder.parent / "scratch"
    train_tokenizer([r.text for r in records], shape.vocab_size, shape.context).save_pretrained(folder)
    chosen = {key: getattr(bench.config, key) for key in ("truncate", "special_tokens", "bad_rows", "template_date")}
    if longest > shape.context:
        say(
            f"{bench.title}: max_length is {longest:,}; architecture.context is {shape.context:,} tokens, and so is "
            "the limit"
        )
    renderer = load_renderer(folder, bench.config.chat_template, min(longest, shape.context), **chosen)
    renderer.limit = "max_length" if longest <= shape.context else "the model's context"
    bench.rendering(renderer)
    return renderer


def random_weights(bench: Workbench, renderer: Renderer) -> Roles:
    models.process.set_up_process(bench.config.threads, bench.config.seed)
    return models.roles.Roles(models.base.new_llama(bench.config.architecture, renderer.tokenizer))


STAGE = Stage(
    "pretrain",
    version=4,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=train,
    makes=lambda config, parent: {"full": ("model",), "lora": ("adapter",)}[config.method],
    reads=lambda config: all_with(read_conversations if config.learn == "answers" else read_texts)(config),
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.pretrain),
    does="next-token training on text",
    ready=ready,
    renderer=renderer_of,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
