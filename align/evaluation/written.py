"""A report written: samples, a table and a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Protocol

from align import judges
from align.data.records import Prompt
from align.ground.terminal import counted
from align.recipe.fields import leaves
from align.recipe.telling.problems import plain
from align.report import summary
from align.report.html import html
from align.report.lists import lineage_text
from align.report.summary import Report, Sample, Setting, ShownAnswer
from align.report.table import table
from align.report.text import SHORT
from align.report.training import read_curves, read_reinforced
from align.stage import catalogue
from align.stage.trained_on import lineage_of
from align.stage.workbench import Workbench
from align.store import Artifact, CostRecord, Store

ALL_LINEAR = "all-linear"
DIGEST = re.compile(rf"\b([0-9a-f]{{{SHORT}}})[0-9a-f]{{{64 - SHORT}}}\b")
"""Of a file, such as a judge's; its first digits are shown."""
SHOWN = 12
"""Prompts whose answers the page shows."""


class Sampled(Protocol):
    """The settings that say how answers were sampled."""

    @property
    def n(self) -> int: ...
    @property
    def temperature(self) -> float: ...


def write_report(
    bench: Workbench,
    metrics: dict[str, Any],
    prompts: list[Prompt],
    texts: dict[str, list[list[str]]],
    scores: dict[str, dict[str, list[list[judges.Score]]]],
    beside: list[str],
    against: str,
    notes: list[str],
    said: Mapping[str, str],
) -> None:
    """samples.jsonl (a row for each prompt, and of several answers to it for each of them), table.txt and report.html;
    `notes` stand below the table, and what judges have `said` of themselves."""
    headline, n = next(iter(scores), "reward" if bench.config.reward else "loss"), bench.config.n
    with open(bench.folder / "samples.jsonl", "w", encoding="utf-8") as file:
        for (i, prompt), k in product(enumerate(prompts), range(n)):
            row: dict[str, Any] = prompt.row() | ({"sample": k} if n > 1 else {})
            for name, rows in texts.items():
                if k < len(rows[i]):
                    row[name] = {"text": rows[i][k], **{m: by_name[name][i][k] for m, by_name in scores.items()}}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    artifacts = {role.split("/")[-1]: a for role, a in bench.parents.items()}
    report = Report(
        title=bench.title,
        stages=beside,
        metrics=metrics,
        baselines=bench.config.baselines,
        reference=against,
        headline=headline,
        lower_is_better=headline == "loss",
        judged=list(scores),
        said=said,
        tied=tied(scores[headline], against) if headline in scores else (),
        prompts=len(prompts),
        note=note(
            len(prompts), bench.config, any(name.endswith("_ci95") for name in metrics), [*of_pairs(metrics), *notes]
        ),
        curves={name: curves for name, a in artifacts.items() if (curves := read_curves(bench.store, a))},
        reinforced={name: shown for name, a in artifacts.items() if (shown := read_reinforced(bench.store, a))},
        settings={name: held for name, a in artifacts.items() if (held := settings_of(bench.store, a))},
        samples=[
            Sample(
                "\n".join(m.content for m in prompt.messages),
                {
                    name: ShownAnswer(texts[name][i][0], scores[headline][name][i][0] if headline in scores else None)
                    for name in beside
                },
            )
            for i, prompt in enumerate(prompts[:SHOWN])
        ],
        costs=costs(bench.store, artifacts),
        lineage="\n\n".join(lineage_text(bench.store, a.digest) for a in artifacts.values()),
    )
    (bench.folder / "report.html").write_text(html(report), encoding="utf-8")
    (bench.folder / "table.txt").write_text(table(report), encoding="utf-8")


def of_pairs(metrics: Mapping[str, object]) -> list[str]:
    """How often the reward model is right on the pairs that are measured; nothing where there are none."""
    found, pairs = (summary.as_estimate(metrics, f"reward/{name}") for name in ("accuracy", "pairs"))
    if found is None or pairs is None:
        return []
    ends = f" (95%: {summary.interval(found, share=True)})" if found.interval else ""
    of = counted(round(pairs.value), "pair")
    said = (
        f"the reward model scores the chosen answer higher in {summary.number(found.value, share=True)}{ends} of {of}"
    )
    length = summary.as_estimate(metrics, "reward/length_baseline_accuracy")
    by_length = f", length alone in {summary.number(length.value, share=True)}" if length else ""
    return [f"{said}{by_length}; 50% is chance"]


def costs(store: Store, artifacts: Mapping[str, Artifact]) -> dict[str, CostRecord]:
    """What the artifacts cost, by their names in the results, and all that these were made from, by theirs."""
    called = {artifact.digest: name for name, artifact in artifacts.items()}
    before = [node for node in lineage_of(store, artifacts.values()) if node.digest not in called]
    named = [*artifacts.items(), *((store.label(node), node) for node in before)]
    return {name: found for name, artifact in named if (found := store.cost(artifact))}


def tied(scores: Mapping[str, list[list[judges.Score]]], against: str) -> list[str]:
    """Whose answers to each prompt all have the one score that the answers of `against` have."""
    return [
        name
        for name, rows in scores.items()
        if name != against
        and all(len({*mine, *theirs} - {None}) <= 1 for mine, theirs in zip(rows, scores[against], strict=True))
    ]


def note(prompts: int, config: Sampled, intervals: bool, more: Sequence[str]) -> str:
    """How it was measured, where prompts were answered, and what else is to be known."""
    asked = f"{counted(prompts, 'prompt')}, {counted(config.n, 'answer')} each at temperature {config.temperature:g}"
    asked += "; 95 % intervals over prompts" * intervals
    return " ".join(f"{line[0].upper()}{line[1:]}." for line in [*([asked] if prompts else []), *more])


def settings_of(store: Store, artifact: Artifact) -> list[Setting]:
    """What an artifact's stage was set to, as its manifest records it, in the order of its help; none of a stage that
    this version does not have."""
    stage, config = catalogue.find(artifact.stage), artifact.config
    if begun_on_all_linear(store, artifact):
        config = {**config, "adapter": config["adapter"] | {"targets": ALL_LINEAR}}
    found = []
    for path, field in leaves(stage.config) if stage else ():
        group = config.get(path[0]) if len(path) > 1 else config
        if isinstance(group, dict) and path[-1] in group:
            value = group[path[-1]]
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            usual = "none" if field.is_required() else plain(default)
            files = mixed(artifact, path[-1], value) or DIGEST.sub(r"\1", plain(value))
            found.append(Setting(".".join(path), files, usual if value != default else None))
    return found


def mixed(artifact: Artifact, name: str, value: object) -> str:
    """The files of a mixture, by their digests, as a manifest has no names of them, and what is set of each; "" of any
    other setting."""
    if not isinstance(value, list) or f"{name}/1" not in artifact.data:
        return ""
    files = [(artifact.data[f"{name}/{i}"][:SHORT], plain(of) if of else "") for i, of in enumerate(value, 1)]
    return ", ".join(f"{digest} {of}".rstrip() for digest, of in files)


def begun_on_all_linear(store: Store, artifact: Artifact) -> bool:
    """Whether its adapter goes on from one that was set to all linear layers, and so records which these are."""
    begun = artifact
    while begun.config.get("parent_adapter") == "continue" and "parent" in begun.parents:
        begun = store.load(begun.parents["parent"])
    adapter = begun.config.get("adapter")
    return begun is not artifact and isinstance(adapter, dict) and adapter.get("targets") == ALL_LINEAR
