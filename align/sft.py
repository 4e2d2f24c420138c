"""Supervised fine-tuning with LoRA.  `python -m align.sft --base MODEL --data sft.jsonl --name my-sft`

Next-token loss on what the assistant says and its end-of-turn token, nothing else (Ouyang et al. 2022, arXiv
2203.02155, section 3.5). Rows are prompt/completion or chat messages. Left out: sequence-level weighting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from align import losses, measures, memory, training
from align.data.formats import read_conversations
from align.folders.config import CONFIG, is_encoder_decoder, read_json
from align.ground.errors import InputError
from align.ground.terminal import say
from align.guard import limits, supervised
from align.recipe import NextTokenConfig
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


class Config(NextTokenConfig):
    """Settings of supervised fine-tuning."""

    apart = frozenset()

    neftune_noise_alpha: PositiveFloat | None = None
    """NEFTune (Jain et al. 2023, arXiv 2310.05914): noise up to alpha / sqrt(tokens x width) on the embeddings of each
    sequence that is trained on; 5 there. Prompts are then not shared, and nothing is kept of layers below."""
    guard: limits.Limits = limits.Limits()

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.neftune_noise_alpha is not None:
            why = "neftune_noise_alpha changes what enters every layer, so nothing is kept. Leave one of them out."
            found |= {"trunk_dtype": why} | ({} if self.trunk_cache == "off" else {"trunk_cache": why})
        return found


def loss(roles: Roles, batch: Batch) -> Loss:
    return losses.tokens.next_token(roles.logprobs("policy", batch))


def run(config: Config, store: Store) -> Artifact:
    """Fine-tune `config.base` or `config.parent` on conversations; an `adapter` artifact."""
    return execute(STAGE, config, store)


def ready(bench: Workbench, records: Mapping[str, object]) -> None:
    """Raises: InputError for noise on a base with two embeddings."""
    if bench.config.neftune_noise_alpha is not None and is_encoder_decoder(read_json(bench.base.path / CONFIG)):
        raise InputError(
            f"neftune_noise_alpha is for bases that read prompt and answer as one text, and {bench.base.label} is an "
            "encoder-decoder. Leave it out."
        )


def train(bench: Workbench) -> Outcome:
    renderer = bench.load_renderer()
    ready(bench, {})
    train_rows, held_out_rows = reading.split(bench)
    examples, held_out = renderer.conversations(train_rows), renderer.conversations(held_out_rows)
    say(f"{bench.title}: {renderer.counts}; {len(examples):,} to train on, {len(held_out):,} held out")
    learning.check_new_tokens(bench, examples)
    roles = bench.load_base()
    on_base.add_policy(bench, roles, examples)
    roles.train_only("policy")

    def measure(some: Sequence[Example]) -> dict[str, float]:
        return measures.statistics.held_out_loss(roles, "policy", some, bench.config.tokens_per_microbatch)

    guard = supervised.Guard(bench.config, bench.title, roles, held_out, measure)
    noise = bench.config.neftune_noise_alpha
    prepare = (lambda some, step: training.noise.apart(some)) if noise else None
    history, cost = learning.fit(bench, roles, loss, examples, guard, prepare=prepare)
    metrics = {"loss": history[-1]["loss"], **measure(held_out), **guard.metrics()}
    return outcomes.adapter_artifact(bench, roles, renderer, metrics, history, cost)


STAGE = Stage(
    "sft",
    version=4,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=train,
    makes=("adapter",),
    reads=all_with(read_conversations),
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.sft, memory.rows.whole),
    does="supervised fine-tuning on demonstrations",
    feeds="dpo",
    tags=("sft",),
    encoder_decoders=True,
    ready=ready,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
