"""Flags are the keys of the recipe: every spelling means the same, and flags win over a file."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from align import chat, generate, grpo, merge, ppo, pretrain, sft
from align import dpo as dpo_stage
from align import evaluate as evaluate_stage
from align.evaluate import Config
from align.ground.errors import InputError
from align.recipe import Adapter, Base, Flags, parse_flags
from align.recipe.telling.help import help_text
from tests.recipe.kinds import Dpo, Evaluate, Sft


def dpo(*argv: str) -> Flags[Dpo]:
    return parse_flags(Dpo, argv, prog="python -m align.dpo")


def evaluate(*argv: str) -> Evaluate:
    return parse_flags(Evaluate, argv, prog="align evaluate").config


def problems(parse: Any, *argv: str) -> list[str]:
    with pytest.raises(InputError) as error:
        parse(*argv)
    return str(error.value).split("\n")


NEEDED = ("--parent", "my-sft", "--data", "x.jsonl")


def test_flags_are_the_keys_of_the_recipe() -> None:
    flags = dpo(*NEEDED, "--beta", "0.2", "--adapter.rank", "8", "--learning_rate", "2e-4", "--name", "007")
    assert flags.config == Dpo(
        parent="my-sft", data="x.jsonl", beta=0.2, adapter=Adapter(rank=8), learning_rate=2e-4, name="007"
    )
    assert not flags.json and not flags.dry_run
    assert dpo(*NEEDED).config != flags.config


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--rank", "8"), {"adapter": Adapter(rank=8)}),
        (("--learning-rate=2e-4",), {"learning_rate": 2e-4}),
        (("--activation-checkpointing",), {"activation_checkpointing": True}),
        (("--activation_checkpointing", "false"), {"activation_checkpointing": False}),
        (("--activation_checkpointing", "--seed", "2"), {"activation_checkpointing": True, "seed": 2}),
        (("--targets", "q_proj,v_proj"), {"adapter": Adapter(targets=["q_proj", "v_proj"])}),
        (("--targets", "q_proj"), {"adapter": Adapter(targets=["q_proj"])}),
        (("--targets", "all-linear"), {"adapter": Adapter()}),
        (("--report_to", "tensorboard", "--report_to", "trackio"), {"report_to": ["tensorboard", "trackio"]}),
        (("--max_steps", "null"), {"max_steps": None}),
        (("--max_steps", "3"), {"max_steps": 3}),
        (("--chat_template", "plain"), {"chat_template": "plain"}),
    ],
    ids=str,
)
def test_spellings(argv: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert dpo(*NEEDED, *argv).config == Dpo(parent="my-sft", data="x.jsonl", **expected)


def test_base_and_quantize() -> None:
    base = dpo("--base", "tiny", "--quantize", "nf4", "--data", "x.jsonl").config.base
    assert (
        base
        == dpo("--base.model", "tiny", "--base.quantize", "nf4", "--data", "x.jsonl").config.base
        == Base(model="tiny", quantize="nf4")
    )


def test_bare_words_and_mappings() -> None:
    config = evaluate("one", "two", "--judges.gold", "judges/gold.py:judge", "--judges.len", "len.py:f")
    assert config == Evaluate(compare=["one", "two"], judges={"gold": "judges/gold.py:judge", "len": "len.py:f"})


def test_threads_are_no_more_than_a_machine_has() -> None:
    assert dpo(*NEEDED, "--threads", "1024").config.threads == 1024
    with pytest.raises(InputError, match=r"--threads: expected a whole number of at least 1 and at most 1024 or null"):
        dpo(*NEEDED, "--threads", "1000000000")


def test_switches() -> None:
    assert dpo(*NEEDED, "--dry-run").dry_run and dpo(*NEEDED, "--json").json
    assert not dpo(*NEEDED, "--dry-run").json


def test_chat_alone_asks_whom() -> None:
    assert problems(partial(parse_flags, chat.Config, prog="align chat"), []) == [
        "neither artifact nor model is named, as in align chat my-sft."
    ]


@pytest.mark.parametrize("stage", [chat, generate])
@pytest.mark.parametrize("flag", ["json", "memory", "device", "name"])
def test_what_makes_no_artifact_has_no_flags_for_one(stage: ModuleType, flag: str) -> None:
    """Controls: the same flag of a stage that makes one, and what both have."""
    given, value = ["--base", "b"], [] if flag == "json" else ["24GiB"]
    given += ["--data", "d"] if stage is generate else []
    assert parse_flags(stage.Config, [*given, "--dry-run"], prog="align it").dry_run
    with pytest.raises(InputError, match=f"^--{flag} is not a setting of it; see align it --help all.$"):
        parse_flags(stage.Config, [*given, f"--{flag}", *value], prog="align it")
    assert dpo(*NEEDED, f"--{flag}", *value)


def test_flags_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the file are relative to it, paths of flags to the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/c.yaml").write_text(
        "beta: 0.5\nseed: 1\ndata: pairs.jsonl\nbase: {model: tiny, quantize: nf4}\nadapter: {rank: 4}\n"
    )
    config = dpo(
        "--config", "sub/c.yaml", "--beta", "0.2", "--alpha", "8", "--base", "other", "--eval_data", "e.jsonl"
    ).config
    assert (config.beta, config.seed, config.adapter) == (0.2, 1, Adapter(rank=4, alpha=8.0))
    assert (config.data, config.eval_data) == ("sub/pairs.jsonl", "e.jsonl")
    assert config.base == Base(model="other", quantize="nf4")
    Path("bad.yaml").write_text("base: x\ndata: x.jsonl\nbetta: 1\nseed: x\nbeta: x\n")
    assert problems(dpo, "--config", "bad.yaml", "--beta", "-1") == [
        'bad.yaml:4: seed: expected a whole number of at least 0 and below 4294967296, found the text "x".',
        "--beta: expected a number above 0, found -1.",
        "bad.yaml:3: betta is not a setting of dpo; did you mean beta?",
    ]
    assert problems(dpo, "--config", "none.yaml") == ["there is no file none.yaml. Check the path."]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--betta", "0.2"), "--betta is not a setting of dpo; did you mean --beta?"),
        (("--zzz=3",), "--zzz is not a setting of dpo; see python -m align.dpo --help all."),
        (("--beta", "x"), '--beta: expected a number above 0, found the text "x".'),
        (("--rank", "0"), "--adapter.rank: expected a whole number above 0 and at most 8192, found 0."),
        (
            ("--adapter", "3"),
            "--adapter holds several settings; give them one by one: --adapter.method, --adapter.rank, "
            "--adapter.alpha, --adapter.target_rank, --adapter.block_size, --adapter.frequencies, "
            "--adapter.init_lora_weights, --adapter.targets, --adapter.layers, "
            "--adapter.experts, --adapter.dropout.",
        ),
        (("--beta",), "--beta needs a value: a number above 0."),
        (("--seed", "--json"), "--seed needs a value: a whole number of at least 0 and below 4294967296."),
        (("--config",), "--config needs a value: a file."),
        (
            ("--rank", "1000000000"),
            "--adapter.rank: expected a whole number above 0 and at most 8192, found 1000000000.",
        ),
        (("--alpha", "1e308"), "--adapter.alpha: expected a number above 0, at most 1,000,000, found 1e+308."),
        (("--beta", "1", "--beta", "2"), "--beta is given twice; give it once."),
        (("--rank", "8", "--adapter.rank", "4"), "--rank and --adapter.rank are one setting; give it once."),
        (
            ("word",),
            "word: dpo takes no bare words; settings are given as --KEY VALUE. See python -m align.dpo --help.",
        ),
        (
            ("--adapter.targets", "q_proj", "k_proj", "v_proj"),
            "k_proj, v_proj: dpo takes no bare words; settings are given as --KEY VALUE; several values of "
            "--adapter.targets are joined by commas. See python -m align.dpo --help.",
        ),
        (
            ("--activation_checkpointing", "no"),
            '--activation_checkpointing: expected true or false, found the text "no".',
        ),
        (
            ("--base", "x"),
            "both base and parent are set; a parent already says which base it is on, so leave out base.",
        ),
    ],
)
def test_one_problem(argv: tuple[str, ...], message: str) -> None:
    assert problems(dpo, *NEEDED, *argv) == [message]


def test_a_flag_given_by_its_last_part_is_told_in_full() -> None:
    """Where what is said is about its group under a name that was not typed. Negative controls: the group's own name
    was typed, or what is said is of something else."""
    both = "both base and parent are set; a parent already says which base it is on, so leave out base."
    named = "--model is base.model here."
    assert problems(dpo, *NEEDED, "--model", "x") == [both, named]
    assert problems(dpo, *NEEDED, "--base", "x") == problems(dpo, *NEEDED, "--base.model", "x") == [both]

    def merging(*argv: str) -> object:
        return parse_flags(merge.Config, argv, prog="align merge")

    lacks, *rest = problems(merging, "--model", "my-dpo", "--out", "exported")
    assert lacks.startswith("parent is missing; name the artifact to merge") and rest == [named]
    assert len(problems(merging, "--out", "exported")) == 1
    assert [line for line in problems(dpo, "--rank", "8", "--data", "x") if " here." in line] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--n", "100000000"), "--n: expected a whole number of at least 1 and at most 1024, found 100000000."),
        (
            ("--seed", str(2**32)),
            "--seed: expected a whole number of at least 0 and below 4294967296, found 4294967296.",
        ),
        (
            ("--temperature", "1e-40"),
            "--temperature: 1e-40 is too small to divide logits by; expected 0, which takes the likeliest token, ",
        ),
        (("--temperature", "1e40"), "--temperature: expected a number of at least 0 and at most 1000, found 1e+40."),
    ],
)
def test_bounds_of_what_is_sampled(argv: tuple[str, str], message: str) -> None:
    """Numpy's seeds, and logits that can be divided in 32 bits, are known before anything is loaded."""
    from align import generate

    parse = partial(parse_flags, generate.Config, prog="align generate")
    assert problems(lambda *given: parse(given), *NEEDED, *argv)[0].startswith(message)
    assert parse([*NEEDED, "--seed", str(2**32 - 1), "--temperature", "0", "--n", "1024"]).config.temperature == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--judges.text", "j.py:f"), "judges: text is what evaluate itself measures; call the judge something else."),
        (
            ("--judges.win_rate_vs_s", "j.py:f"),
            "judges: win_rate_vs_s is what evaluate itself measures; call the judge something else.",
        ),
        (
            ("--judges.g_unscored", "j.py:f"),
            "judges: g_unscored is what evaluate itself measures; call the judge something else.",
        ),
        (
            ("--judges.g_ci95", "j.py:f"),
            "--judges: g_ci95 ends in _ci95, which intervals of figures do; call it something else.",
        ),
        (
            ("--judges.a b\x1b[31m", "j.py:f"),
            "--judges: 'a b\\x1b[31m' cannot be the name of a figure; expected at most 100 letters, digits, '.', '_' "
            "and '-'.",
        ),
        (
            ("--judges.a/b/gold", "j.py:f"),
            "--judges: 'a/b/gold' cannot be the name of a figure; expected at most 100 letters, digits, '.', '_' and "
            "'-', such as its last part, gold.",
        ),
        (("--judges.gold", "j.py:f", "--stop", ""), "--stop: expected a list of text, found an empty text in it."),
    ],
)
def test_names_of_figures_and_empty_texts(argv: tuple[str, ...], message: str) -> None:
    """Negative control: names and texts that will do."""
    given = ("--compare", "x", "--data", "d.jsonl")

    def parse(*argv: str) -> Any:
        return parse_flags(Config, argv, prog="python -m align.evaluate").config

    assert problems(parse, *given, *argv) == [message]
    assert parse(*given, "--judges.gold-1.a_b", "j.py:f", "--stop", "x").judges == {"gold-1.a_b": "j.py:f"}


def test_every_problem_is_told_at_once() -> None:
    assert problems(dpo, "--betta", "1", "--rank", "a") == [
        "--betta is not a setting of dpo; did you mean --beta?",
        '--adapter.rank: expected a whole number above 0 and at most 8192, found the text "a".',
        "--data is missing; dpo needs it: records to train on.",
        "neither base nor parent is set; give base to start from a model, or parent to go on from an artifact.",
    ]
    assert problems(evaluate, "--judges", "x") == [
        "--compare is missing; evaluate needs it: artifacts to measure.",
        '--judges: expected a mapping of names to text, found the text "x". Give each a name: --judges.NAME x.',
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--targets", ""),
            "--adapter.targets: expected all-linear or a list of at least one text, found an empty list.",
        ),
        (
            ("--targets", "q_proj, "),
            "--targets 'q_proj, ': an entry is blank. Give it a value, or leave out its comma.",
        ),
        (("--columns.prompt", " "), "--columns: ' ' is blank. Give it a value, or leave it out."),
        (("--eval_data", " "), "--eval_data: ' ' is blank. Give it a value, or leave it out."),
        (("--batch_size", "1e3"), '--batch_size: expected a whole number above 0, found the text "1e3".'),
        (("--batch_size", "1" * 5000), f'--batch_size: expected a whole number above 0, found the text "{"1" * 40}…".'),
        (("--lora.rank", "4"), "--lora.rank is not a setting of dpo; did you mean --adapter.rank?"),
    ],
)
def test_what_was_typed_and_what_it_is_called_now(argv: tuple[str, ...], message: str) -> None:
    assert problems(dpo, *NEEDED, *argv) == [message]
    assert dpo(*NEEDED, "--beta", "1e3").config.beta == 1000.0  # negative control: a number may be written so
    weights = ("--judges.right", "j.py:f", "--weights.right", "0.5")  # and one of a mapping
    assert parse_flags(grpo.Config, [*NEEDED, *weights], prog="align grpo").config.weights == {"right": 0.5}


def test_a_word_that_another_setting_takes() -> None:
    """`adapter` said what becomes of a parent's adapter once. Negative control: a word that none takes."""
    for word, hint in (("stack", " Did you mean --parent_adapter stack?"), ("stuck", "")):
        (text,) = problems(dpo, *NEEDED, "--adapter", word)
        assert text.partition("--adapter.dropout.")[2] == hint


def test_reading_flags_and_recipes_needs_no_heavy_library() -> None:
    program = """
import sys, tests.recipe.kinds as k
from align.recipe import parse_flags
parse_flags(k.Dpo, ["--base", "x", "--data", "y"], prog="x")
print([m for m in ("torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "pydantic") if m in sys.modules])
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert out.stdout.strip() == "['pydantic']"  # the negative control


@pytest.mark.parametrize(
    ("stage", "argv", "message"),
    [
        (sft, ("--base", "b", "--data", ""), "--data: expected text, found an empty text."),
        (sft, ("--base", "", "--data", "d"), "--base: expected text, found an empty text."),
        (sft, ("--parent", "", "--data", "d"), "--parent: expected text or null, found an empty text."),
        (
            sft,
            ("--base", "b", "--data", "d", "--hold_out", "1.0"),
            "--hold_out: expected a number above 0 and below 1, text or null, found 1.",
        ),
        (
            sft,
            ("--base", "b", "--data", "d", "--hold_out", "nan"),
            "--hold_out: expected a number above 0 and below 1, text or null, found nan.",
        ),
        (
            evaluate_stage,
            ("--compare", "a"),
            "there is nothing to measure: set data (prompts to answer), texts (for the loss), or pairs and reward.",
        ),
        (
            evaluate_stage,
            ("--compare", "a", "--compare", "a", "--data", "d"),
            "--compare: a is given twice. Name it once.",
        ),
        (
            ppo,
            ("--parent", "p", "--data", "d", "--reward", "r", "--reward", "r"),
            "reward: r is given twice. Name it once.",
        ),
        (
            pretrain,
            ("--data", "d", "--precision", "bf16"),
            "--precision has no effect: method is full, which trains all weights in fp32.",
        ),
    ],
    ids=str,
)
def test_what_says_nothing_or_is_said_twice(stage: Any, argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_flags(stage.Config, list(argv), prog="x")
    assert message in str(error.value)


def test_shares_and_files() -> None:
    """One setting takes both. Negative control: what is no number is a file."""
    for word, value in (("0.25", 0.25), ("1e-1", 0.1), ("half.jsonl", "half.jsonl")):
        assert (
            parse_flags(sft.Config, ["--base", "b", "--data", "d", "--hold_out", word], prog="x").config.hold_out
            == value
        )


def test_a_setting_that_is_a_word_or_a_mapping(tmp_path: Path) -> None:
    """dpo's loss: either, never both on one line; a flag wins over the file."""
    (tmp_path / "some.yaml").write_text("loss: hinge\n")
    given = ["--base", "none", "--data", "none"]
    parsed = parse_flags(dpo_stage.Config, [*given, "--loss.ipo", "1", "--loss.sigmoid", "0.5"], prog="align.dpo")
    assert parsed.config.losses == {"ipo": 1.0, "sigmoid": 0.5}
    mixed = [*given, "--config", str(tmp_path / "some.yaml"), "--loss.ipo", "2"]
    assert parse_flags(dpo_stage.Config, mixed, prog="align.dpo").config.losses == {"ipo": 2.0}
    for both in (["--loss", "hinge", "--loss.ipo", "1"], ["--loss.ipo", "1", "--loss", "hinge"]):
        with pytest.raises(InputError, match="say one thing in two ways"):
            parse_flags(dpo_stage.Config, [*given, *both], prog="align.dpo")


def test_hyphens_do_for_underscores() -> None:
    """As both screens of help say."""
    found = parse_flags(Sft, ["--base", "b", "--data", "d", "--learning-rate", "0.5"], prog="align sft").config
    assert found.learning_rate == 0.5
    for everything in (False, True):
        assert "--learning-rate)" in " ".join(help_text(Sft, "align sft", "", everything=everything).split())
