"""Chat templates by their names in TRL: read from the TRL that is installed, recorded by content."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from align import sft
from align.data.files.sources import read_template, shipped_templates
from align.ground.errors import InputError
from align.recipe.paths import relative_to
from align.rendering.templates.choosing import choose_template
from align.stage.question import settings_of
from align.store import digest_json
from tests.conftest import ROOT

FOLDER = Path(trl.__path__[0]) / "chat_templates"
QWEN3 = (FOLDER / "qwen3.jinja").read_text(encoding="utf-8")
DIALOGUE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def test_a_name_is_what_trl_has():
    """The file's text; the same question as that file copied, for content is what counts. What is rendered is what
    transformers renders with it."""
    assert read_template("qwen3") == QWEN3 and read_template("gemma3") != QWEN3
    settings = settings_of(sft.STAGE, sft.Config(base={"model": "b"}, data="d.jsonl", chat_template="qwen3"), None)
    assert settings["chat_template"] == digest_json(QWEN3)
    assert shipped_templates().keys() == {f.stem for f in FOLDER.glob("*.jinja") if not f.stem.endswith("_training")}
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny-base")
    text, _ = choose_template(tokenizer, "qwen3", ROOT, None).render(DIALOGUE[:1], None, "", prompt=True)
    assert text == tokenizer.apply_chat_template(
        DIALOGUE[:1], chat_template=QWEN3, tokenize=False, add_generation_prompt=True
    )


def test_a_file_of_that_name_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the command runs, or beside the recipe; a name beside which there is none stays one."""
    (tmp_path / "qwen3").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert read_template("qwen3") == "mine"
    given = {"chat_template": "qwen3"}
    assert relative_to(tmp_path, sft.Config, given) == {"chat_template": str(tmp_path / "qwen3")}
    assert relative_to(tmp_path / "elsewhere", sft.Config, given) == given
    moved = relative_to(tmp_path, sft.Config, {"chat_template": "a.jinja"})
    assert moved == {"chat_template": str(tmp_path / "a.jinja")}
    assert relative_to(tmp_path, sft.Config, {"chat_template": "plain"}) == {"chat_template": "plain"}


def test_unknown_names_list_the_known():
    with pytest.raises(InputError, match=r"qwen33 is neither `plain`, nor a file, nor a template of TRL .*, qwen3, "):
        read_template("qwen33")
