"""What the pages for readers say is so: commands parse, links lead somewhere, settings exist, and messages are the ones
that Align prints."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from align import cli
from align.data.shapes import keys
from align.ground.errors import InputError
from align.stage import catalogue
from tests.conftest import ROOT
from tests.pages import PAGES, anchors, blocks, called, commands, links, names, parse, prose, rows, section, text_of

DOCS = ROOT / "docs"
WRAPPED = [page for page in PAGES if page.name != "log.md"]
TRAINING, RECORDS = "all that train", "all that train on records"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# ---- all pages -------------------------------------------------------------------------------------------------------


@every_page
def test_commands_parse(page: Path):
    for command in commands(text_of(page)):
        name, rest = called(command)
        if rest:
            parse(command)
        else:  # a mention
            assert name in catalogue.commands() or name in cli.COMMANDS, command


def test_commands_are_found():
    """Negative control of the test above: it is not empty."""
    assert sum(len(list(commands(text_of(page)))) for page in PAGES) >= 60
    assert {page.name for page in PAGES if list(commands(text_of(page)))} >= {"README.md", "recipes.md", "stages.md"}


@pytest.mark.parametrize(
    "command",
    [
        "python -m align.dpo --parent a --data b --betta 0.1",
        "align shw quickstart/ppo",
        "align run x.yaml --untill dpo",
        "align show",
    ],
)
def test_a_wrong_command_does_not_parse(command: str):
    """Negative control."""
    with pytest.raises(InputError):
        parse(command)


def lost(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for path, heading in links(text):
        target = page.parent / path
        known = target.is_file() if path else True
        if known and heading:
            known = heading in anchors(text_of(target) if path else text)
        found += [] if known else [f"{path}#{heading}"]
    return found


@every_page
def test_links_lead_somewhere(page: Path):
    assert lost(page, text_of(page)) == []


def test_a_lost_link_is_found():
    """Negative control."""
    text = "[a](docs/nowhere.md), [b](docs/rl.md#nothing), [c](docs/rl.md#judges), [d](#here)\n## Here\n"
    assert lost(ROOT / "README.md", text) == ["docs/nowhere.md#", "docs/rl.md#nothing"]


@pytest.mark.parametrize("page", WRAPPED, ids=lambda page: page.name)
def test_lines_are_readable(page: Path):
    assert [line for line in prose(text_of(page)) if len(line) > 120] == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_linked_from_the_readme(page: Path):
    assert f"](docs/{page.name})" in text_of(ROOT / "README.md")


def test_nothing_stands_twice():
    """A long line of a page stands in no other one, nor a row of a table."""
    seen: dict[str, str] = {}
    for page in PAGES:
        text = text_of(page)
        for line in [*prose(text), *(" | ".join(row) for row in rows(text))]:
            if len(line) >= 80:
                assert seen.setdefault(line, page.name) == page.name, line


# ---- settings --------------------------------------------------------------------------------------------------------


def is_setting(stage: str, name: str) -> bool:
    """Whether a dotted name is a setting of a stage; what a mapping holds is called by the reader."""
    model = importlib.import_module(f"align.{stage}").Config
    if name in getattr(model, "unread", ()):
        return False
    for part in name.split("."):
        field = model.model_fields.get(part)
        if field is None:
            return False
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        model = next((kind for kind in kinds if issubclass(kind, BaseModel)), BaseModel)
    return True


def stages_of(cell: str) -> list[str]:
    """The stages that a cell names."""
    if cell in (TRAINING, RECORDS):
        train = [kind for kind in catalogue.KINDS if is_setting(kind, "batch_size")]
        return [kind for kind in train if cell == TRAINING or is_setting(kind, "eval_fraction")]
    return names(cell)


def unknown(text: str) -> list[str]:
    """Settings in the tables of a page that the stages beside them do not have: theirs | ours | stages | note."""
    found = []
    for _, ours, of, _ in [row for row in rows(text) if len(row) == 4 and row[1] != "Align"]:
        stages, settings = stages_of(of), names(ours)
        assert stages and settings and set(stages) <= set(catalogue.KINDS), (ours, of)
        found += [f"{stage}.{name}" for stage in stages for name in settings if not is_setting(stage, name)]
    return found


def test_settings_by_other_names_are_ours():
    text = text_of(DOCS / "coming-from.md")
    assert len(rows(text)) > 100 and unknown(text) == []


def test_a_setting_that_is_not_ours_is_found():
    """Negative control."""
    row = "| `beta` | `{}` | {} | |"
    text = "\n".join(
        [row.format("beta", "`ppo`"), row.format("lora.r", TRAINING), row.format("adapter.rank", TRAINING)]
    )
    assert unknown(row.format("eval_steps", TRAINING)) and not unknown(row.format("eval_steps", RECORDS))
    assert unknown(text)[0] == "ppo.beta" and set(unknown(text)[1:]) == {f"{s}.lora.r" for s in stages_of(TRAINING)}


def test_settings_of_trl_are_its_own(monkeypatch: pytest.MonkeyPatch):
    """Truth: the fields of TRL's classes."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, RewardConfig, RLOOConfig, ScriptArguments, SFTConfig
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig
    from trl.scripts.grpo import GRPOScriptArguments

    kinds = (SFTConfig, DPOConfig, KTOConfig, CPOConfig, ORPOConfig, RewardConfig, GRPOConfig, RLOOConfig)
    kinds = (*kinds, ModelConfig, ScriptArguments, GRPOScriptArguments)
    known = {field.name for kind in kinds for field in fields(kind)}
    table = [row for row in rows(section(text_of(DOCS / "coming-from.md"), "## TRL")) if row[1] != "Align"]
    given = [name for row in table if row[2] != "`ppo`" for name in names(re.sub(r"\([^)]*\)", "", row[0]))]
    assert len(given) > 40 and set(given) <= known
    assert "lora_rank" not in known  # negative control


def test_stages_have_the_settings_to_know():
    table = [row for row in rows(section(text_of(DOCS / "stages.md"), "# Stages")) if row[0].startswith("`")]
    assert [names(row[0])[0] for row in table] == list(catalogue.KINDS)
    for (stage,), settings in ((names(row[0]), row[2]) for row in table):
        assert all(is_setting(stage, name.partition(".")[0]) for name in names(settings)), stage


def test_fragments_of_recipes_are_settings():
    """Blocks of YAML in docs/ are stages of a recipe; the README's is a recipe, which another test reads."""
    texts = [block.text for page in PAGES[1:] for block in blocks(text_of(page)) if block.language == "yaml"]
    given = [(stage, name) for text in texts for stage, body in yaml.safe_load(text).items() for name in body]
    assert given and all(is_setting(stage, name) for stage, name in given)


def test_keys_of_rows_are_those_that_are_read():
    table = [row for row in rows(section(text_of(DOCS / "data.md"), "### Keys")) if row[1].startswith("`")]
    shown = {name for row in table for name in names(row[1])}
    assert shown == {key for kind in keys.KEYS.values() for key in kind} - {"chosen_cut", "rejected_cut"}


# ---- messages --------------------------------------------------------------------------------------------------------


def literal(node: ast.AST) -> str | None:
    """What a string in code says, with … for what is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
    return None


@pytest.fixture(scope="module")
def printed() -> str:
    """All that the code of Align can print, a line each."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "align").rglob("*.py"))]
    return "\n".join(text for tree in trees for node in ast.walk(tree) if (text := literal(node)))


def strange(text: str, printed: str) -> list[str]:
    """Pieces of quoted messages, between what stands for the reader's own names, that no code prints."""
    quoted = " ".join(text.split()).split("…")
    pieces = [piece.strip() for piece in quoted]
    return [piece for piece in pieces if len(piece) >= 8 and piece not in printed]


def quotes(text: str) -> list[str]:
    """Quoted messages, of a line or more."""
    found = re.findall(r"(?:^> .+\n)+", text, re.MULTILINE)
    return [quote.replace("\n> ", " ").removeprefix("> ") for quote in found]


def test_messages_are_quoted_as_they_are_printed(printed: str):
    found = quotes(text_of(DOCS / "troubleshooting.md"))
    assert len(found) >= 25
    assert [piece for quote in found for piece in strange(quote, printed)] == []


def test_a_message_that_is_not_printed_is_found(printed: str):
    """Negative control."""
    assert strange("… is neither a file here, nor … but anything else", printed) == [
        "is neither a file here, nor",
        "but anything else",
    ]


NAMED_IN = re.compile(r"`([a-z_/]+\.py)`, `([a-z_]+)`")


def not_there(text: str) -> list[tuple[str, str]]:
    """Functions and classes that a page has in a file of Align's which has none of that name."""
    return [
        (file, name)
        for file, name in NAMED_IN.findall(text)
        if not (path := ROOT / "align" / file).is_file()
        or not re.search(rf"^ *(def|class) {name}\b", path.read_text(), re.MULTILINE)
    ]


def test_code_is_where_a_page_says() -> None:
    """And what is elsewhere is found."""
    assert sum(len(NAMED_IN.findall(page.read_text())) for page in PAGES) > 15
    assert {page.name: found for page in PAGES if (found := not_there(page.read_text()))} == {}
    assert not_there("`losses/loss.py`, `surrogate`") == [("losses/loss.py", "surrogate")]  # negative control
