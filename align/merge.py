"""Merge adapters into a model of their own.  `python -m align.merge my-ppo --out exported/`

Weights are merged in fp32; a quantised base is dequantised first, because the adapter was trained on those weights and
merging into 4 bits ruins it (error 0.67 against 8e-7 in our trials). What is stored is then loaded again and compared
with the unmerged model on text that the model writes itself, half of it from its BOS token alone and half as answers to
a question in its chat template (where that takes one): largest logit difference, KL, agreement of the likeliest token,
and a verdict; on a quantised base also against the model as it was trained. The result is in the Hugging Face layout
with tokenizer and chat template, and stops where its text contract says. A value role's head is not part of it.

A reward becomes a sequence classifier of plain transformers with one label. Its scores are those of the reward but for
a constant, the head's bias, which such classifiers have no place for; what is compared is the preferences that they
give.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import PositiveFloat

from align import exchange, measures, memory, models, sampling
from align.data.records import Message, Prompt
from align.exchange.card import FILE, exported
from align.exchange.card_figures import measured_on
from align.folders.config import read_json
from align.folders.model import PROCESSORS
from align.ground import ranks
from align.ground.errors import AlignError, InputError
from align.ground.progress import Work
from align.ground.terminal import say
from align.inputs.fit import check_out
from align.recipe import ModelStage, Place, Positional, Ref, Runtime
from align.report.code import auto_class
from align.stage import on_base
from align.stage.command import main
from align.stage.describe import Outcome, Stage
from align.stage.execute import execute, give_back_memory
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from align.data.examples import Example
    from align.models.roles import Roles
    from align.rendering.render import Renderer

PROBES, PROBE_TOKENS = 16, 48
"""Texts that are compared, half of them answers in the chat template, and the tokens of each."""
QUESTION = "Which colour is the cup?"
MADE = {"adapter": ("model",), "reward": ("classifier",)}


class Config(ModelStage):
    """Merging"""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {
        ("parent",): "parent is missing; name the artifact to merge: align merge my-ppo --out DIR."
    }

    parent: Annotated[Ref | None, Positional] = None
    """Artifact to merge: a name, a digest, or its beginning."""
    out: Annotated[Place | None, Runtime] = None
    """Folder to export to, absent or empty; without it the model is in the store alone."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the stored weights; auto is the base's own."""
    max_kl: PositiveFloat = 0.01
    """Largest KL in nats per token (of a reward: per pair) between unmerged and merged model; above it nothing is
    committed."""


def run(config: Config, store: Store) -> Artifact:
    """Merge `config.parent`; a `model` artifact, also written to `config.out`."""
    out = Path(os.path.expanduser(config.out)) if config.out else None
    taken = out is not None and is_taken(out)
    if not (taken and is_export(out, store.asked(prepare(STAGE, config, store).key))):
        check_place(out)
    artifact = execute(STAGE, config, store)
    name = config.name or STAGE.name
    if out is not None and not taken and ranks.commits():
        with Work(f"{name}: writing {out}"):
            store.materialise(artifact, out, "model", beside=exported(store, artifact, name, model=""))
        kind = "AutoModelForSequenceClassification" if artifact.kind == "classifier" else auto_class(store, artifact)
        say(f"exported to {out}: {kind}.from_pretrained({str(out)!r}); in the store it is {name}")
    say("\n".join(f"{name}: {line}" for line in verdict_lines(artifact)))
    return artifact


def is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def check_place(out: Path | None) -> None:
    """Whether a model can be exported to `out`. Raises: InputError."""
    if out is not None and is_taken(out):
        found = "not empty" if out.is_dir() else "a file"
        raise InputError(f"out: {out} is {found}. Give a folder that is absent or empty; nothing is overwritten.")
    if out is not None:
        check_out(out, folder=True)


def ready(bench: Workbench, records: Mapping[str, Any]) -> None:
    """The export has a place, and a reward's base a sequence classifier in transformers. Raises: InputError."""
    check_place(Path(os.path.expanduser(bench.config.out)) if bench.config.out else None)
    if bench.parents["parent"].kind == "reward" and bench.question.base is not None:
        exchange.classifier.check_family(bench.base.path)


def is_export(out: Path | None, artifact: Artifact | None) -> bool:
    """Whether `out` holds the files of the model already, by their names and sizes; the card beside them may have been
    edited."""
    if out is None or artifact is None or not out.is_dir():
        return False
    found = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    found.pop(FILE, None)
    return found == {name: artifact.files[path]["size"] for name, path in artifact.under("model").items()}


def work(bench: Workbench) -> Outcome:
    config = bench.config
    if config.precision == "bf16" and not bench.base.quantize:
        say(f"{bench.title}: merged and compared in fp32, whatever precision says; --dtype is what is stored")
    stored = models.save.stored_dtype(bench.base.path) if config.dtype == "auto" else config.dtype
    renderer = bench.load_renderer()
    reward = bench.parents["parent"].kind == "reward"
    metrics = compare_rewards(bench, renderer, stored) if reward else compare_models(bench, renderer, stored)
    metrics["verdict"] = verdict(metrics["kl"], config.max_kl)
    if metrics["verdict"] == "different":
        remedy = f"{stored} rounds too much away: use --dtype fp32, or keep the adapter unmerged."
        if stored == "fp32":
            remedy = "It is stored in fp32 already, so nothing more can be kept: keep the adapter unmerged."
        raise AlignError(
            f"the merged model differs from the adapters: KL {metrics['kl']:.2g} nats per "
            f"{'pair' if reward else 'token'}, above max_kl {config.max_kl:g}. Nothing was committed. {remedy}"
        )
    files = models.reloads_equal.file_hashes(bench.folder / "model")

    def check(written: Path) -> None:
        models.reloads_equal.check_files(written / "model", files)  # those that were just loaded and compared
        models.reloads_equal.check_text(written / "model", renderer)

    return Outcome(bench.folder, "classifier" if reward else "model", renderer.contract(), metrics, check)


def compare_models(bench: Workbench, renderer: Renderer, stored: str) -> dict[str, Any]:
    """Write the merged model, load it again and measure it; beside the figures, on how many texts, of how many tokens,
    and how many of them are in the chat template."""
    rows, before, weights = export(bench, renderer, stored)
    give_back_memory()
    again = models.reloads_equal.load_model(bench.folder / "model", models.precision.DTYPES["fp32"])
    models.reloads_equal.check_weights(bench.folder / "model", again.base, weights, stored)
    after = measures.logits.probe_logits(again, "base", rows)
    del again
    in_chat = sum(row.shared != rows[0].shared for row in rows)
    metrics: dict[str, Any] = {"texts": len(rows), "text_tokens": PROBE_TOKENS, "chat_texts": in_chat}
    metrics |= measures.logits.compare_logits(before, after)
    if bench.base.quantize:
        give_back_memory()
        quantised = measures.logits.compare_logits(quantised_logits(bench, rows), after)
        metrics |= {f"quantised/{k}": v for k, v in quantised.items()}
    return metrics


def compare_rewards(bench: Workbench, renderer: Renderer, stored: str) -> dict[str, Any]:
    """Write the classifier, load it with transformers alone and measure it on a padded batch of dialogues of different
    lengths."""
    exchange.classifier.check_family(bench.base.path)
    exchange.classifier.pad_apart(renderer)
    rows, before, bias, weights = export_classifier(bench, renderer, stored)
    give_back_memory()
    again, after = exchange.classifier.scores_by_transformers(bench.folder / "model", rows, renderer.tokenizer)
    models.reloads_equal.check_weights(bench.folder / "model", again, weights, stored)
    return {**exchange.classifier.compare_scores(before, after), "bias_left_out": bias}


def export_classifier(
    bench: Workbench, renderer: Renderer, stored: str
) -> tuple[list[list[int]], np.ndarray, float, dict[str, str]]:
    """Write the merged reward; probe dialogues, the reward's scores of them, the bias that these have more, and the
    hashes of what was written."""
    roles = bench.load_base(in_fp32=True)
    on_base.add_role(bench, roles, "reward", bench.store.folder(bench.parents["parent"]))
    roles.assign("policy", [])
    texts = [example.sequences[0] for example in probe_rows(roles, renderer, [bare_opening(renderer)])]
    rows = [[*text[: 8 + 2 * i], renderer.stop_ids[0]] for i, text in enumerate(texts)]
    examples = [sampling.rollout.as_example(row[:1], [row[1:]]) for row in rows]
    before = measures.passes.scores(roles, "reward", examples, 4096)
    head = roles.heads["reward"]
    merged = models.merged.MergedCopy(roles, "reward").merged(into_base=True)
    model = exchange.classifier.as_classifier(merged, head, renderer.tokenizer.pad_token_id)
    models.save.save_model(model, bench.folder / "model", stored, renderer.contract())
    renderer.save(bench.folder / "model")
    return rows, before, head.bias.item(), models.reloads_equal.weight_hashes(model, stored)


def export(bench: Workbench, renderer: Renderer, stored: str) -> tuple[list[Example], Tensor, dict[str, str]]:
    """Write the merged model; probe rows, the unmerged model's logits on them, and the hashes of what was written. Both
    models are freed on return."""
    roles = bench.load_base(in_fp32=True)
    on_base.add_role(bench, roles, "policy", bench.store.folder(bench.parents["parent"]))
    rows = probe_rows(roles, renderer, [bare_opening(renderer), *chat_opening(renderer, bench.context)])
    before = measures.logits.probe_logits(roles, "policy", rows)
    merged = models.merged.MergedCopy(roles, "policy").merged(into_base=True)
    models.save.save_model(merged, bench.folder / "model", stored, renderer.contract())
    renderer.save(bench.folder / "model")
    bring_processors(bench.base.path, bench.folder / "model")
    return rows, before, models.reloads_equal.weight_hashes(merged, stored)


def bring_processors(base: Path, folder: Path) -> None:
    """Copies of what a multimodal base's images are read with; one that names code of its own stays behind."""
    for name in PROCESSORS:
        if (base / name).is_file() and not read_json(base / name).get("auto_map"):
            (folder / name).write_bytes((base / name).read_bytes())


def verdict_lines(artifact: Artifact) -> list[str]:
    """The verdict in words, and what it is against."""
    found, quantize = artifact.metrics, artifact.base and artifact.base["quantize"]
    if artifact.kind == "classifier":
        agreement = (
            f"KL {found['kl']:.1e} nats per pair, the same preference in {found['preference_agreement']:.2%} of pairs"
        )
        bias = f"the head's bias, {found['bias_left_out']:+.6g}, is left out: add it to a score to have the reward's"
        return [f"verdict: {found['verdict']} to the reward ({agreement})", bias]
    rounded = "equal but for rounding, " * (found["verdict"] == "close")
    against = f" to the adapters on the dequantised {quantize} base" if quantize else ""
    lines = [
        f"verdict: {found['verdict']}{against} ({rounded}KL {found['kl']:.1e} nats "
        f"per token, greedy agreement {found['greedy_agreement']:.2%}, both in fp32, on {measured_on(artifact)})"
    ]
    if quantize:
        kl, agreement = found["quantised/kl"], found["quantised/greedy_agreement"]
        agreed = f"KL {kl:.1e} nats per token, greedy agreement {agreement:.2%}"
        lines.append(f"against the {quantize} model as it was trained: {agreed}")
    return lines


def quantised_logits(bench: Workbench, rows: list[Example]) -> Tensor:
    """The logits of the model as it was trained, on the base in 4 or 8 bits; int8 also rounds activations, which no
    merged model does."""
    roles = bench.load_base()
    on_base.add_role(bench, roles, "policy", bench.store.folder(bench.parents["parent"]))
    return measures.logits.probe_logits(roles, "policy", rows)


def verdict(kl: float, max_kl: float) -> str:
    """A KL that is not a number, as of weights that overflowed, is different too."""
    return "different" if not kl <= max_kl else "equal" if kl < 1e-7 else "close"


def probe_rows(roles: Roles, renderer: Renderer, openings: Sequence[Sequence[int]]) -> list[Example]:
    """Text that the model writes itself behind each of these openings, as many from one as from another."""
    sampler = sampling.rollout.Sampler(roles, "policy", [], renderer.tokenizer.pad_token_id)
    groups = sampler(openings, n=PROBES // len(openings), max_new_tokens=PROBE_TOKENS, temperature=1.0)
    sampler.forget()
    return [
        sampling.rollout.as_example(opening, [answer.ids])
        for opening, answers in zip(openings, groups, strict=True)
        for answer in answers
    ]


def bare_opening(renderer: Renderer) -> list[int]:
    """BOS (EOS without one); what an encoder reads is more than one token, or attention to it would have no choice."""
    if renderer.apart:
        return list(renderer.tokenizer(models.reloads_equal.PROBE_TEXT)["input_ids"])
    tokenizer = renderer.tokenizer
    return [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]


def chat_opening(renderer: Renderer, context: int) -> list[list[int]]:
    """The ids up to where an answer to `QUESTION` begins; none where the template refuses it, or it leaves no room."""
    try:
        (ids,) = renderer.prompt_ids([Prompt((Message("user", QUESTION),), where="merge")])
    except InputError:
        return []
    return [ids] if len(ids) + PROBE_TOKENS <= context else []


STAGE = Stage(
    "merge",
    version=4,
    config=Config,
    inputs={"parent": ("adapter", "reward")},
    work=work,
    makes=lambda config, parent: MADE.get(parent or "", ("model", "classifier")),
    footprint=memory.Footprint(memory.kinds.merge),
    does="adapters merged into their base",
    encoder_decoders=True,
    ready=ready,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
