"""One measured run of an Align stage: the real stage, from its data file to the committed artifact, in a store of its
own.

`python -m tests.benchmarks.align_worker JSON`; started by `peers`. Only the clock is added.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from align import dpo, kto, orpo, ppo, reward, rloo, sft
from align.data.formats import read_conversations, read_preferences, read_prompts
from align.data.judged import read_labelled
from align.rendering.render import Renderer, load_renderer
from align.rendering.templates.template import PLAIN_TEMPLATE
from align.rendering.tokenizer import load_tokenizer
from align.stage import learning
from align.store import Store
from tests.benchmarks import rooms
from tests.benchmarks.clock import WARM_UP, Clock, now

rooms.import_all()
LIBRARIES = ("torch", "transformers", "peft", "accelerate")
STAGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sft": (sft, {}),
    "reward": (reward, {"centre_samples": 0}),
    "dpo": (dpo, {}),
    "kto": (kto, {}),
    "orpo": (orpo, {}),
}
"""Those that train on rows, and what is set of them."""


def main(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    store = Store(str(folder / "store"))
    template = joining(Path(job["model"]), folder)
    common: dict[str, Any] = dict(
        base=job["model"],
        data=str(folder / f"{job['stage']}.jsonl"),
        chat_template=template,
        precision=job["precision"],
        seed=0,
    )
    training = dict(
        common,
        eval_data=str(folder / f"{job['stage']}.eval.jsonl"),
        epochs=float(job["epochs"]),
        adapter={"layers": job.get("layers")},
        batch_size=job["batch"],
        learning_rate=1e-4,
        max_length=job["max_length"],
        logging_steps=10_000,
        checkpoint_steps=0,
        **job["ours"],
    )
    renderer = load_renderer(Path(job["model"]), template, job["max_length"])
    data = Path(common["data"])
    rows, tokens = count(renderer, job["stage"], data)
    del renderer  # the stage has its own, in the memory that this one leaves: on both sides none counts
    gc.collect()
    before: dict[str, dict[str, float]] = {}
    timed(before, "kept", "with_trunk", rows * job["epochs"])
    timed(before, "reference", "with_reference", rows * job["epochs"])
    if job["stage"] in STAGES:
        stage, more = STAGES[job["stage"]]
        clock = Clock().install()
        stage.run(stage.Config(**training, **more), store)
    elif job["stage"] == "rloo":
        clock = Clock(whole=True).install()
        settings = {k: v for k, v in training.items() if k not in ("eval_data", "max_length")} | {"epochs": 1.0}
        answers = 4 * job["batch"]
        more = {"rollout_size": answers, "batch_size": answers, "max_new_tokens": job["new_tokens"]}
        judges = {"score": f"{folder / 'judge.py'}:score"}
        rloo.run(rloo.Config(**settings | more, group_size=4, kl_coef=0.05, judges=judges, watch_prompts=0), store)
    else:
        pairs = {**training, "data": str(folder / "reward.jsonl"), "eval_data": str(folder / "reward.eval.jsonl")}
        scorer = reward.run(reward.Config(**{**pairs, "max_steps": 1}, centre_samples=0), store)
        clock = Clock(whole=True).install()
        settings = {k: v for k, v in training.items() if k not in ("eval_data", "max_length")} | {"epochs": 1.0}
        more = {"rollout_size": job["batch"], "ppo_epochs": 4, "max_new_tokens": job["new_tokens"]}
        # the reward model has taken one step, and the peer shows no answers in between
        ppo.run(ppo.Config(**settings, **more, reward=scorer.digest, trust_reward=True, watch_prompts=0), store)
    if clock.whole:
        clock.report(rows, tokens, {}, LIBRARIES)
    else:
        clock.report(rows * job["epochs"] - WARM_UP * job["batch"], tokens, before, LIBRARIES)


def joining(model: Path, folder: Path) -> str:
    """`plain`, or the same without BOS for a tokenizer that has one but does not write it: TRL's texts of such a model
    have none."""
    tokenizer = load_tokenizer(model)
    if tokenizer.bos_token_id is None or tokenizer.bos_token_id in tokenizer("a")["input_ids"]:
        return "plain"
    path = folder / "joined.jinja"
    path.write_text(PLAIN_TEMPLATE.replace("{{ bos_token or '' }}", ""), encoding="utf-8")
    return str(path)


def count(renderer: Renderer, stage: str, data: Path) -> tuple[int, int]:
    """Rows, and tokens of all their sequences."""
    if stage in ("ppo", "rloo"):
        prompts = renderer.prompt_ids(read_prompts(data))
        return len(prompts), sum(map(len, prompts))
    render: Any = {
        "sft": lambda: renderer.conversations(read_conversations(data)),
        "kto": lambda: renderer.labelled(read_labelled()(data)),
    }
    examples = render.get(stage, lambda: renderer.preferences(read_preferences(data)))()
    return len(examples), sum(len(s) for e in examples for s in e.sequences)


def timed(spent: dict[str, dict[str, float]], name: str, function: str, rows: int) -> None:
    """Time a function of `stage.learning` that computes something over the rows to train on (the first call; later ones
    are for held-out rows)."""
    inner = getattr(learning, function)

    def clocked(*args: Any) -> Any:
        start = now()
        out = inner(*args)
        if name not in spent:
            spent[name] = {k: (v - start[k]) / rows for k, v in now().items()}
        return out

    setattr(learning, function, clocked)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
