"""What the results of `align.evaluate` are called, and the answers that columns of its data hold."""

from __future__ import annotations

from typing import Any

from align.data.records import Prompt
from align.data.shapes.messages import messages_of, text_of
from align.ground.errors import InputError
from align.ground.terminal import COMMANDS
from align.judges.asked import NAME
from align.store.shapes import MARKUP

OWN_MEASURES = {"kl", "eos_rate", "length", "loss", "perplexity", "reward", "text", NAME}
"""What stands beside a judge's scores, in figures and in samples.jsonl."""
OWN_COLUMNS = {"prompt", "tools", "sample"}
"""What stands in a row of samples.jsonl beside the answers."""


def answer_in(prompt: Prompt, name: str) -> str:
    """The answer that a column of `baselines` holds: a text, or the content of the last message. Raises: InputError for
    anything else."""
    if name not in prompt.columns:
        present = ", ".join(prompt.columns) or "none"
        raise InputError(f"{prompt.where}: {name!r} is among baselines, but this row has only {present}.")
    value = prompt.columns[name]
    if not isinstance(value, list) or not value:
        return text_of(prompt.where, f"{name}, one of baselines,", value)
    last = messages_of(prompt.where, name, value)[-1]
    if last.role != "assistant":
        raise InputError(
            f"{prompt.where}: {name}, one of baselines, ends with what the {last.role} says; expected an assistant's "
            "answer."
        )
    return last.content


def written_by_evaluate(name: str, own: set[str]) -> bool:
    """Whether figures or columns of this name would meet those that evaluate writes itself."""
    return name in own or name.startswith("win_rate_vs_") or name.endswith(("_ci95", "_unscored"))


def check_names(config: Any, compared: list[str]) -> None:
    """Every column of the results has a name of its own, which stores and remotes take. Raises: InputError naming two
    that would share one, or what cannot be one."""
    taken = {"base": "the bare base (include_base)"} if config.include_base else {}
    taken |= {"reward": "the reward model"} if config.reward else {}
    taken |= {"judge_model": "the model that is asked"} if config.judge_model else {}
    named = [(name, "compare", "an artifact") for name in compared] + [
        (name, "baselines", "a column of data") for name in config.baselines
    ]
    for name, key, what in named:
        if written_by_evaluate(name, OWN_COLUMNS) or COMMANDS.search(name) or {*name} & {*MARKUP, "/"}:
            raise InputError(
                f"{key}: {what} is called {name!r}, which cannot be a column of the results: evaluate writes prompt, "
                "tools, sample, win_rate_vs_…, …_ci95 and …_unscored itself, and a name holds no '/', control "
                "characters or markup. Give it another name."
            )
        if name in taken:
            remedy = (
                "set include_base: false or give it another name"
                if taken[name].startswith("the bare")
                else "give one another name"
            )
            raise InputError(f"{key}: {what} and {taken[name]} would both be called {name} in the results; {remedy}.")
        taken[name] = what if key == "baselines" else "an artifact of compare"
