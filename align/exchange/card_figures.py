"""Figures of a model card: what was measured, a merge's verdict, and the text contract, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from align.ground.terminal import one_line
from align.report.code import WHOLE
from align.store import Artifact, Store

MARK = re.compile(r"\{%[-+]?\s*generation\b")
MARKED = (
    " It marks answers with `{% generation %}`, which transformers reads; a program that does not takes the base's own."
)


def measured(line: Sequence[Artifact]) -> list[str]:
    rows = [["stage", "measure", "value", "95 % interval"]]
    for a in reversed(line):
        for key, value in sorted(a.metrics.items()):
            if isinstance(value, int | float) and not isinstance(value, bool):
                interval = a.metrics.get(f"{key}_ci95")
                words = " to ".join(map(plain, interval)) if isinstance(interval, list) else ""
                rows.append([f"{a.stage} `{a.short}`", f"`{key}`", plain(value), words])
    found = ["On each stage's own data; `eval/` means records that were held out of its training."]
    return [*table(rows), "", *found] if len(rows) > 1 else ["Nothing: the stages that made it measure nothing."]


def verdict(artifact: Artifact) -> list[str]:
    found = artifact.metrics
    base = artifact.base["quantize"] if artifact.base else None
    against = f"the adapters on the base dequantised from {base}" if base else "the adapters on their base"
    if artifact.kind == "classifier":
        return [
            f"**{found['verdict']}**: against {against}, by the preferences that its scores give over pairs of probe "
            f"dialogues, KL {plain(found['kl'])} nats per pair, the same preference in "
            f"{found['preference_agreement']:.2%} of pairs; scores differ by at most "
            f"{plain(found['score_max_abs_diff'])} after a constant.",
            f"The constant: a classifier's layer has no bias, so the reward's own, {plain(found['bias_left_out'])}, "
            "is left out. Add it to a score to have the reward's.",
        ]
    lines = [
        f"**{found['verdict']}**: against {against}, on {measured_on(artifact)}, KL {plain(found['kl'])} "
        f"nats per token, largest logit difference {plain(found['logit_max_abs_diff'])}, the same likeliest token on "
        f"{found['greedy_agreement']:.2%} of positions."
    ]
    if "quantised/kl" in found:
        lines.append(
            f"Against the {base} model as it was trained: KL {plain(found['quantised/kl'])} nats per token, the same "
            f"likeliest token on {found['quantised/greedy_agreement']:.2%} of positions."
        )
    return lines


def measured_on(artifact: Artifact) -> str:
    """The text that a merged model was compared on; older ones do not count it."""
    found = artifact.metrics
    if "texts" not in found:
        return "text that the model wrote itself"
    chat = f", {found['chat_texts']} of them as answers in its chat template" if found.get("chat_texts") else ""
    return f"{found['texts']} texts of {found.get('text_tokens')} tokens that the model wrote itself{chat}"


def text_contract(store: Store, artifact: Artifact, model: str) -> list[str]:
    text = artifact.text
    if not text:
        return ["Not recorded."]
    place = f"{model}/" if model else ""
    if artifact.kind not in WHOLE:
        place = "tokenizer/"
    return [
        f"- Dialogues are rendered with `{place}chat_template.jinja` (sha256 of its text "
        f"`{text['chat_template'][:12]}`).{MARKED if _is_marked(store, artifact) else ''}",
        f"- An answer ends at any of the token ids {', '.join(map(str, text['stop_ids']))}; BOS is "
        f"{plain(text['bos_token_id'])}, EOS {plain(text['eos_token_id'])}, padding {plain(text['pad_token_id'])}.",
        f"- Digest of the tokenizer: `{text['tokenizer'][:12]}`.",
    ]


def _is_marked(store: Store, artifact: Artifact) -> bool:
    """Whether its template marks what is learnt."""
    templates = (path for path in artifact.files if path.endswith("chat_template.jinja"))
    return any(MARK.search(store.read(artifact, path).decode("utf-8", "replace")) for path in templates)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(one_line, row))} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]


def plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return f"{value:.4g}" if isinstance(value, float) else _MARKDOWN.sub(r"\\\g<0>", one_line(str(value)))


_MARKDOWN = re.compile(r"[\\`<>|&\[\]]")
"""What makes more of a text in Markdown than the text: code, HTML, cells, entities, links."""
