"""Is the quickstart's world worth its name?  `python -m tests.benchmarks.quickstart [--recipe recipes/quickstart.yaml]
[--json FILE]`

After `align run` of a recipe of that shape: samples clean pairs on held-out prompts from the SFT model and prints how
often the reward model orders them right, in all, per topic and on pairs that differ in correctness alone, beside a
length rule and a bag-of-words classifier that was trained on the same pairs as the reward model; and whether held-out
prompts stayed out of every training set.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

import align
from align import judges, measures, pairs, pipeline
from align.data.formats import read_conversations, read_preferences, read_prompts
from align.data.records import Preference
from align.generate import STAGE, Config
from align.sampling.answers import sample
from align.stage import on_base
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--answers", type=int, default=8, help="sampled per held-out prompt")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    recipe = pipeline.load(args.recipe)
    name = recipe.name
    stages: dict[str, Any] = {stage.name: stage.config for stage in recipe.stages.values()}
    store = Store()
    measured = measure(
        store,
        name,
        stages["sft"].data,
        stages["pairs"].judge,
        stages["report"].data,
        stages["report"].judges,
        args.answers,
    )
    for key, value in measured.items():
        print(f"{key:32} {value:.3f}" if isinstance(value, float) else f"{key:32} {value}")
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def measure(
    store: Store, name: str, demos: str, scored_by: str, held_out: str, others: dict[str, str], answers: int
) -> dict[str, float]:
    config = Config(parent=f"{name}/sft", data=held_out, n=answers, max_new_tokens=24, precision="fp32")
    bench = Workbench(prepare(STAGE, config, store))
    prompts = list(read_prompts(held_out))
    renderer, roles = bench.load_renderer(), bench.load_base()
    on_base.add_role(bench, roles, "sft", store.folder(store.resolve(f"{name}/sft")))
    on_base.add_role(bench, roles, "reward", store.folder(store.resolve(f"{name}/reward")))
    prompts, rows = renderer.prompts(prompts, config.max_new_tokens, bench.context)
    sampled = sample(roles, "sft", renderer, rows, config, answers)
    draw = Random(0)
    choice = pairs.Config(parent=f"{name}/sft", data=held_out, judge=scored_by, pairs_per_prompt=answers // 2)
    score = judges.load(scored_by)
    parts = {measure: judges.load(function) for measure, function in others.items()}
    records, same_manners, topics = [], [], []
    for prompt, several in zip(prompts, sampled, strict=True):
        texts = [a["text"] for a in several]
        scores = score([prompt] * len(texts), texts)
        manners = parts["manners"]([prompt] * len(texts), texts)
        for better, worse in pairs.choose(texts, scores, choice, draw):
            chosen, rejected = ((align.data.records.Message("assistant", texts[i]),) for i in (better, worse))
            records.append(
                Preference(
                    prompt.messages, chosen, rejected, None, (not several[better]["ended"], not several[worse]["ended"])
                )
            )
            same_manners.append(manners[better] == manners[worse])
            topics.append(prompt.columns.get("topic", ""))
    examples = renderer.preferences(records)
    values = measures.passes.scores(roles, "reward", examples, 4096)
    right = (values[0::2] > values[1::2]).astype(float)
    alone = np.array(same_manners)
    lengths = measures.statistics.completion_lengths(examples)
    longer = float((0.5 + np.sign(lengths[0::2] - lengths[1::2]) / 2).mean())
    by_topic = defaultdict(list)
    for topic, r in zip(topics, right, strict=True):
        by_topic[topic].append(r)
    trained_on = store.resolve(f"{name}/pairs")
    known = {p.messages for p in read_prompts(store.folder(trained_on) / "data.jsonl")} | {
        c.messages[:-1] for c in read_conversations(demos)
    }
    return {
        "held-out pairs": len(right),
        "reward accuracy": float(right.mean()),
        "reward accuracy, correctness": float(right[alone].mean()),
        "share differing in correctness": float(alone.mean()),
        "length rule": max(longer, 1 - longer),
        "bag of words": bag_of_words(list(read_preferences(store.folder(trained_on) / "data.jsonl")), records),
        "held-out prompts seen before": sum(p.messages in known for p in prompts),
        **{f"reward accuracy, {topic}": float(np.mean(r)) for topic, r in sorted(by_topic.items())},
    }


def bag_of_words(train: list[Preference], test: list[Preference]) -> float:
    """Accuracy of a logistic regression on differences of word counts of prompt and answer."""
    text = lambda messages: " ".join(m.content for m in messages)  # noqa: E731
    counts = CountVectorizer(token_pattern=r"[a-z0-9]+|[!?.]").fit(
        [text(r.prompt + r.chosen + r.rejected) for r in train]
    )
    counted = lambda answers: counts.transform([text(a) for a in answers])  # noqa: E731
    difference = lambda rows: (counted([r.chosen for r in rows]) - counted([r.rejected for r in rows])).toarray()  # noqa: E731
    x = difference(train)
    model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(
        np.concatenate([x, -x]), np.repeat([1, 0], len(x))
    )
    return float((model.decision_function(difference(test)) > 0).mean())


if __name__ == "__main__":
    main()
