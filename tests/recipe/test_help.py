"""Help begins with what most runs set, on one screen, and says truly what is required; the rest is one word away."""

from __future__ import annotations

import itertools
import re
import runpy
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from align.cli.command import dispatch
from align.cli.command import help_text as commands_text
from align.ground.errors import InputError
from align.recipe import StageConfig, help_text, parse_flags
from align.recipe.fields import leaves
from align.recipe.telling.meaning import meaning
from align.stage import catalogue
from tests.recipe.kinds import Dpo, Evaluate, Pretrain

STAGES = list(catalogue.commands())
BESIDE = {"pairs": ("--reward", "x")}
"""What is measured on pairs is a reward model."""
SEVERAL = {"mix": ["x=0.5", "y=0.5"]}
"""What a positional name stands for where one file is not enough."""
every_stage = pytest.mark.parametrize("stage", STAGES)


def first_screen(stage: str, columns: int, monkeypatch: pytest.MonkeyPatch, *, everything: bool = False) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    module = catalogue.module_of(stage)
    return help_text(module.Config, f"align {stage}", module.__doc__ or "", everything=everything).splitlines()


def flags_of(lines: list[str]) -> list[str]:
    return [found[1].removesuffix(".NAME") for line in lines if (found := re.match(r"  --([\w.-]+)", line))]


@every_stage
@pytest.mark.parametrize("columns", [80, 100])
def test_the_first_screen_is_one(stage: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = first_screen(stage, columns, monkeypatch)
    assert len(lines) <= 40 and max(map(len, lines)) <= columns
    assert 5 <= len(flags_of(lines)) <= 14
    assert lines[-1].startswith(f"align {stage} --help all ")


@pytest.mark.parametrize("columns", [80, 100])
def test_everything_is_more_than_a_screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above; equations alone may be wider than the terminal."""
    lines = first_screen("sft", columns, monkeypatch, everything=True)
    assert len(lines) > 100 and max(map(len, lines)) <= columns
    keys = {".".join(path) for path, _ in leaves(catalogue.module_of("sft").Config)}
    assert {*flags_of(lines)} >= keys > {*flags_of(first_screen("sft", columns, monkeypatch))} - {"base", "dry-run"}


VALUES = {"judge_prompt": "{prompt}{answer}"}
"""What flags take that do not take any text."""


def given_by(config: type[StageConfig], usage: str) -> list[list[str]]:
    """The command lines that a usage line asks for: each required flag, and one of those that stand for each other."""
    ways = []
    asked = usage.replace("[--KEY VALUE ...]", "")
    for several, flag, _value, bare in re.findall(r"\(([^)]+)\)|--([\w.]+) (\S+)|(\b[A-Z]+\b)", asked):
        choices = re.findall(r"--([\w.]+) \S+|(\b[A-Z]+\b)", several) if several else [(flag, bare)]
        ways.append(
            [[f"--{name}", VALUES.get(name, "x"), *BESIDE.get(name, ())] if name else ["x"] for name, _ in choices]
        )
    return [list(itertools.chain(*way)) for way in itertools.product(*ways)]


@every_stage
def test_what_is_required_is_true(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth: what the usage asks for is enough, in each of its forms, and without any part of it the config refuses."""
    monkeypatch.setenv("COLUMNS", "100")
    module = catalogue.module_of(stage)
    text = help_text(module.Config, f"align {stage}", module.__doc__ or "")
    usage = " ".join(text.partition("\n\n")[0].split()).removeprefix(f"usage: align {stage} ")
    lines = given_by(module.Config, usage)
    assert lines
    for line in lines:
        parse_flags(module.Config, SEVERAL.get(stage, line), prog=stage)
        words = re.findall(r"--\S+ \S+|\S+", " ".join(line))
        beside = [" ".join(words) for words in BESIDE.values()] if "--pairs x" in words else []
        for word in (word for word in words if word not in beside):
            less = [part for part in words if part is not word]
            with pytest.raises(InputError, match=r"missing|neither|none of|nothing to measure"):
                parse_flags(module.Config, " ".join(less).split(), prog=stage)


def test_what_is_required_is_said() -> None:
    """A base is required unless a parent is given; where a stage starts from nothing neither is."""
    words = " ".join(help_text(Dpo, "align dpo", "").split())
    assert words.startswith("usage: align dpo (--base MODEL | --parent REF) --data FILE [--KEY VALUE ...]")
    assert "or a hub id. Required, or --parent. --parent REF" in words
    assert "or a data artifact. Required. --name" in words
    alone = " ".join(help_text(Pretrain, "align pretrain", "").split())
    assert alone.startswith("usage: align pretrain --data FILE [--KEY VALUE ...]")
    assert alone.count("Required") == 1
    assert help_text(Evaluate, "align evaluate", "").startswith("usage: align evaluate COMPARE [--KEY VALUE ...]\n")


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as done:
        parse_flags(Dpo, ["--beta", "x", "--help", "all"], prog="python -m align.dpo", doc="DPO, equation 7.")
    text = capsys.readouterr().out
    assert done.value.code == 0
    own = """
        Settings of direct preference optimisation

          --beta  a number above 0; default 0.1
              Inverse temperature of the implicit reward; larger stays closer to the
    """
    assert "\n\nDPO, equation 7.\n\n" in text and dedent(own) in text
    words = " ".join(text.split())
    for name in Dpo.model_fields:
        if name not in ("adapter", "base"):
            flag = f"--{name}.NAME " if name in ("columns", "lr_scheduler_kwargs", "optim_args") else f"--{name} "
            assert flag in words and " ".join(meaning(Dpo, name).split()) in words
    for flag in ("--adapter.rank", "--base.quantize", "--config", "--dry-run", "--json"):
        assert f"  {flag}" in text
    assert "--data text; required Records" in words
    assert "--base.model text; required, or --parent A model" in words
    assert text.index("--beta") < text.index("--learning_rate") < text.index("--tokens_per_microbatch")


def test_help_of_a_command_is_its_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stage: the same module is run with the same flags. Of another command: the same is printed."""
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: calls.append((name, sys.argv)))
    monkeypatch.setattr(sys, "argv", ["align"])
    for argv in (["help", "sft"], ["sft", "--help"], ["help", "sft", "all"], ["sft", "--help", "all"], ["help", "dpo"]):
        dispatch(argv)
    assert calls[0] == calls[1] == ("align.sft", ["align sft", "--help"])
    assert calls[2] == calls[3] != calls[0]  # negative control, as is the last
    assert calls[4] == ("align.dpo", ["align dpo", "--help"])
    said = []
    for argv in (["help", "push"], ["push", "--help"], ["help", "pull"]):
        with pytest.raises(SystemExit):
            dispatch(argv)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_help_of_nothing_lists_the_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    dispatch(["help"])
    listed = capsys.readouterr().out
    assert listed == f"{commands_text()}\n"
    assert all(re.search(rf"^  (data )?{name} ", listed, re.MULTILINE) for name in STAGES)
    assert max(map(len, listed.splitlines())) <= 80
    with pytest.raises(InputError, match="no command 'sftt'; did you mean sft"):
        dispatch(["help", "sftt"])


def test_the_folder_of_stages_is_the_catalogue() -> None:
    """Negative control of `every_stage`: it is every file at the root that is a command."""
    files = {path.stem for path in Path(catalogue.__file__).parents[1].glob("*.py")} - {"__init__", "__main__"}
    assert files == {*STAGES}


def test_help_has_no_setting_that_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth: where a stage with rewards is given one of them, it says that it has no effect."""
    for stage in ("ppo", "grpo", "rloo", "reinforce_pp", "online_dpo"):
        config = catalogue.module_of(stage).Config
        made = config(parent="p", data="d", judges={"j": "j.py:score"})
        shown = flags_of(first_screen(stage, 100, monkeypatch, everything=True))
        assert config.unread and made.without_effect(None).keys() >= config.unread
        assert not config.unread & {*shown}
        # negative control: what grpo reads and online DPO does not is in the help of the one alone
        assert ("kl_coef" in shown) == ("kl_coef" in flags_of(first_screen(stage, 80, monkeypatch)))
        assert ("kl_coef" in shown) == (stage != "online_dpo")


def test_what_stores_nothing_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is a stage whose result has one."""
    for stage in ("chat", "sft"):
        shown = first_screen(stage, 80, monkeypatch) + first_screen(stage, 80, monkeypatch, everything=True)
        assert ("name" in flags_of(shown)) is (stage == "sft")
