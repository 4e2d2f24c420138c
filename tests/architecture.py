"""The house: which floor each room of `align/` is on.

`python -m tests.architecture` draws docs/architecture.svg and the floors of docs/architecture.md from the table;
tests/test_structure.py holds imports, page and picture to it.

A room imports from its own floor and those below it. A file at the root of `align/` is a command.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs/architecture.md", ROOT / "docs/architecture.svg"

Floor = dict[str, str]
"""Room -> what it is for."""

FLOORS: list[Floor] = [
    {"ground": "errors, the terminal, files whole or not at all, ranks: no word of models or data"},
    {"folders": "models' and adapters' folders in Hugging Face's layout, read and checked without torch"},
    {"parallel": "a frozen base in shards over processes; a layer whole for the moment that it is used"},
    {"store": "artifacts named by their content, who builds on whom, remotes"},
    {
        "recipe": "what a user may set, and the one file that names stages",
        "report": "what people look at: tables, cards, an HTML page",
    },
    {"watching": "runs at work and done, as curves in a terminal and on a local page"},
    {"data": "files → rows → records"},
    {"cleaning": "rows repaired, scrubbed, judged, compared with each other; no copies, no evaluation questions"},
    {"rendering": "records → token ids and which of them count, by the base's chat template"},
    {
        "inputs": "bases, and whether a stage's inputs go together",
        "judges": "the user's own Python that scores answers, called as TRL calls it; what a model is asked instead",
        "packed": "one forward over rows that share a prefix; is it exact on this base?",
    },
    {
        "memory": "peak memory of a stage, before anything is loaded",
        "losses": "pure functions: tensors in, sums out",
        "adapters": "what of a base is adapted and by which method; LoRA's own forward and backward",
    },
    {"models": "one frozen base, the roles on it, what is written of them"},
    {
        "sampling": "answers from exactly the policy's distribution",
        "measures": "passes without gradients, statistics, intervals",
    },
    {"training": "optimizer steps, the one trainer, checkpoints"},
    {"guard": "looks at a run's figures and says what goes wrong, why, and what to do"},
    {"stage": "what each stage does around its own work: question, workbench, outcome"},
    {
        "preference": "pairs, what is computed once of them, implicit rewards",
        "rl": "rollouts, rewards, advantages",
        "distillation": "a teacher's distributions, and what of them a student learns",
        "exchange": "what comes from elsewhere and what leaves",
        "evaluation": "models beside each other",
        "curation": "data made of data: rows in, rows and what became of each out",
    },
    {
        "commands": "convert · split · mix · clean · decontaminate · "
        "pretrain · sft · distill · reward · dpo · simpo · cpo · orpo · kto · bco · ppo · grpo · rloo · "
        "reinforce_pp · online_dpo · pairs · best_of_n · generate · chat · blend · merge · evaluate"
    },
    {"pipeline": "a recipe's stages in order, each fed with what earlier ones made"},
    {"cli": "what `align` is, where no stage of its own is meant"},
]
"""From the ground up."""
HEAVY = {
    "rendering",
    "packed",
    "parallel",
    "losses",
    "adapters",
    "models",
    "sampling",
    "measures",
    "training",
    "preference",
    "rl",
    "distillation",
    "exchange",
}
"""Rooms whose modules may load torch when they are imported; all others wait until they work."""


def table() -> str:
    """The floors for the page, from the top down."""
    lines = ["| floor | room | what for |", "|---|---|---|"]
    for number in range(len(FLOORS), 0, -1):
        for room, what in FLOORS[number - 1].items():
            name = "files at the root" if room == "commands" else f"`{room}/`"
            lines.append(f"| {number} | {name} | {what}{' *' if room in HEAVY else ''} |")
    return "\n".join([*lines, "", "\\* loads torch."])


WIDTH, HEIGHT, GAP, LEFT = 960, 54, 8, 44
STYLE = """
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #24292f }
.name { font-weight: 600; font-size: 13px }
.floor { fill: #8c959f; font-size: 11px }
rect { fill: #f6f8fa; stroke: #d0d7de }
.heavy { fill: #ddf4ff; stroke: #54aeff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .floor { fill: #7d8590 }
  rect { fill: #161b22; stroke: #30363d } .heavy { fill: #0c2d6b; stroke: #1f6feb }
}"""


def wrapped(text: str, width: float) -> list[str]:
    """At most two lines of about `width` pixels."""
    room = int(width / 6.1)
    if len(text) <= room:
        return [text]
    at = text.rfind(" ", 0, room)
    rest = text[at + 1 :]
    return [text[:at], rest if len(rest) <= room else rest[: room - 1] + "…"]


def picture() -> str:
    """The floors as SVG, the ground at the bottom."""
    rows = []
    for i, floor in enumerate(reversed(FLOORS)):
        y = GAP + i * (HEIGHT + GAP)
        rows.append(
            f'<text class="floor" x="{LEFT - 12}" y="{y + HEIGHT / 2 + 4}" text-anchor="end">{len(FLOORS) - i}</text>'
        )
        width = (WIDTH - LEFT - GAP * len(floor)) / len(floor)
        for j, (room, what) in enumerate(floor.items()):
            x = LEFT + j * (width + GAP)
            kind = ' class="heavy"' if room in HEAVY else ""
            rows.append(f'<rect{kind} x="{x:g}" y="{y}" width="{width:g}" height="{HEIGHT}" rx="6"/>')
            lines = wrapped(what, width - 20 if len(floor) > 1 else width - 140)
            single = len(floor) == 1
            name_y = y + (HEIGHT / 2 + 4 if single else 18)
            rows.append(f'<text class="name" x="{x + 10:g}" y="{name_y:g}">{escape(room)}</text>')
            for k, line in enumerate(lines):
                text_x = x + (110 if single else 10)
                text_y = y + (HEIGHT / 2 + 4 + 14 * (k - (len(lines) - 1) / 2) if single else 34 + 13 * k)
                rows.append(f'<text x="{text_x:g}" y="{text_y:g}">{escape(line.replace("`", ""))}</text>')
    height = GAP + len(FLOORS) * (HEIGHT + GAP) + 22
    note = "A room imports from its own floor and those below it. Blue: loads torch."
    rows.append(f'<text class="floor" x="{LEFT}" y="{height - 8}">{note}</text>')
    box = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="The floors of align/"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f"<style>{STYLE}\n</style>", *rows, "</svg>", ""])


BEGIN, END = "<!-- floors: written by python -m tests.architecture -->", "<!-- end of floors -->"


def page(text: str) -> str:
    """The page with the floors as they are."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
