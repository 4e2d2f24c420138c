"""What came from elsewhere is shown and never obeyed: by a terminal, by a browser, by Python, by a reader of
Markdown."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from align import evaluate, merge
from align.exchange.card import card
from align.ground.errors import AlignError
from align.report.code import load_lines
from align.report.html import html
from align.report.summary import Report, Sample, ShownAnswer
from align.store import Store
from align.store.remote.contracts import check_contracts
from align.store.shapes import ELEMENTS, PAGE
from tests.conftest import Pipeline
from tests.store.test_hostile import SOUND, Far


def test_no_setting_of_a_stranger_is_more_than_text(tmp_path: Path) -> None:
    """What stands in a pulled manifest's settings: one cell of the table, without HTML, links or code."""
    store = Store(tmp_path / "store")
    far = Far(tmp_path / "far")
    evil = "x|\n# HACK\n<img src=x onerror=alert(1)> [y](//evil) `z`"
    far.named(far.artifact(config={"lr_scheduler": evil, "precision": 'fp32"); evil("'}))
    store.pull(far.folder)
    text = card(store, store.resolve("best"), "best")
    (row,) = [line for line in text.splitlines() if "HACK" in line]
    assert r"x\|\\n# HACK\\n\<img src=x onerror=alert(1)\> \[y\](//evil) \`z\`" in row and evil.split()[0] not in text
    assert 'dtype="' not in text and "evil(" not in "".join(block for block in text.split("```")[1::2])


def test_every_place_in_shown_code_is_a_literal(tmp_path: Path) -> None:
    """A folder's name with quotes is the same folder in the code."""
    store, far = Store(tmp_path / "store"), Far(tmp_path / "far")
    far.named(far.artifact({"value/head.safetensors": SOUND["reward"]["head.safetensors"]}))
    store.pull(far.folder)
    folder = 'a"); evil("$(x)'
    lines = load_lines(store, store.resolve("best"), "best", folder)
    code = ast.parse("\n".join(line[2:] for line in lines if line.startswith("  ")))
    literals = [node.value for node in ast.walk(code) if isinstance(node, ast.Constant)]
    assert f"{folder}/adapters/0" in literals and f"{folder}/value/head.safetensors" in literals


class Tags(HTMLParser):
    """The tags of a page, and its policy."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.handlers: list[str] = []
        self.policy = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.found.append(tag)
        self.handlers += [
            name for name in given if name.startswith("on") or name in ("href", "src", "action", "xlink:href")
        ]
        if given.get("http-equiv"):
            self.policy = given["content"] or ""


def test_our_own_page_passes_the_door(tmp_path: Path) -> None:
    """The most hostile answers make a page that the door takes, of our elements alone, under a policy that runs and
    fetches nothing."""
    evil = "<script>1</script><img src=x onerror=1>\x1b[2J\x00\u202e<!-- </pre> -->"
    rows = ["a", "b", *(f"dpo.beta-{i}" for i in range(30))]  # so many that colours come again
    sample = Sample(evil, {"a": ShownAnswer(evil, 1.0), "b": ShownAnswer(evil)} | {r: ShownAnswer(r) for r in rows[2:]})
    curves = {row: {evil: [(1.0, 2.0), (2.0, 3.0)]} for row in rows}
    figures = {f"{row}/gold": i / 40 for i, row in enumerate(rows)}
    figures_ci = {f"{row}/gold_ci95": [i / 40, i / 40 + 0.01] for i, row in enumerate(rows)}
    page = html(Report(evil, rows, figures | figures_ci, samples=[sample], curves=curves, lineage=evil, note=evil))
    assert "; --dash: " in page
    tags = Tags(page)
    assert page.startswith(PAGE) and "default-src 'none'" in tags.policy and tags.handlers == []
    assert set(tags.found) <= ELEMENTS | {"meta"} and {"svg", "pre", "table"} <= set(tags.found)
    assert not {"\x1b", "\x00", "\u202e"} & set(page) and r"\u001b[2J" in page
    store, far = Store(tmp_path / "store"), Far(tmp_path / "far")
    far.named(far.artifact({"report.html": page.encode()}, kind="report", base=None, text=None))
    store.pull(far.folder)
    # negative control
    assert "script" in Tags(f"{PAGE}<script>").found and Tags("<img src=x onerror=1>").handlers == ["src", "onerror"]


def test_a_terminal_is_commanded_by_nothing_that_is_printed() -> None:
    """A table that was pulled, an error and a name with escapes: on both streams, as text. Negative control: bare
    print."""
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp"
    body = f"""
import json, sys
from align.ground.terminal import guarded, say
from align.ground.errors import AlignError
from align.report.text import aligned
def body():
    print({evil!r}, json.dumps({evil!r}, ensure_ascii=False), "a\\tb", sep="\\n")
    print("\\n".join(aligned([["two\\nlines", "x"]])))
    say({evil!r})
    raise {{}}({evil!r})
guarded(body)
"""
    for error, code in (("AlignError", 1), ("ValueError", 1)):
        found = subprocess.run([sys.executable, "-c", body.replace("{}", error)], capture_output=True, text=True)
        shown = r"\u001b]0;owned\u0007\u001b[2J\u009b31m\u202egnp"
        out = found.stdout.split("\n")
        assert (found.returncode, out[0], out[2], out[3]) == (code, shown, "a\tb", r"two\nlines  x"), found.stderr
        assert ast.literal_eval(out[1]) == evil, "inside JSON it is the same text"
        assert shown in found.stderr
        assert not set(evil[:1] + "\x07\x9b\u202e") & set(found.stdout + found.stderr)
    bare = subprocess.run([sys.executable, "-c", f"print({evil!r})"], capture_output=True, text=True).stdout
    assert "\x1b" in bare


def test_what_stages_make_passes_the_door(pipeline: Pipeline, tmp_path: Path) -> None:
    """Pretraining, SFT, reward, DPO and PPO, an evaluation and a merge: pushed and pulled, every file. Negative
    control: one more file."""
    store, data = pipeline.store, pipeline.recipe.parent
    evaluate.run(
        evaluate.Config(compare=["tiny/sft"], data=data / "prompts.jsonl", limit=2, max_new_tokens=2, name="r"), store
    )  # type: ignore[arg-type]
    merge.run(merge.Config(parent="tiny/reward", precision="fp32", name="m"), store)
    store.push(tmp_path / "far")
    other = Store(tmp_path / "other")
    other.pull(tmp_path / "far")
    assert other.refs() == store.refs() and other.verify() == []
    assert {a.kind for a in other.artifacts()} >= {"model", "adapter", "reward", "report", "classifier"}
    sft = other.resolve("tiny/sft")
    more = replace(sft, files={**sft.files, "notes.txt": sft.files["history.jsonl"]})
    with pytest.raises(AlignError, match=r"'notes\.txt' is no file that an adapter artifact"):
        check_contracts(more)
