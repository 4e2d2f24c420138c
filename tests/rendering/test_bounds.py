"""Templates that would never end, or fill the memory, are refused in one sentence; the process has its limits back
afterwards."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

import pytest

from align.ground import bounds
from align.ground.bounds import bounded
from align.ground.errors import InputError
from align.rendering.render import load_renderer

BASE = Path(__file__).parents[2] / "data/tiny-base"
TURNS = "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
NEVER = {
    "loop": (LOOP, "it ran for more than 0.5 s"),
    "memory": ("{{ 'a' * 9000000000 }}", "more than 2 GiB of memory"),
    "width": ("{{ '%5000000000d' | format(1) }}", "more than 2 GiB of memory"),
    "power": ("{{ 9 ** (9 ** 9) }}", "raises to a power"),
    "asleep": ("{% if messages | length > 1 %}" + LOOP + "{% endif %}", "it ran for more than 0.5 s"),
}


@pytest.mark.parametrize("title", NEVER)
def test_what_never_ends_is_refused(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    before = (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM))
    source, reason = NEVER[title]
    (tmp_path / "t.jinja").write_text(source + TURNS)
    with pytest.raises(InputError, match=reason):
        load_renderer(BASE, str(tmp_path / "t.jinja"), 64)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_what_ends_is_rendered(tmp_path: Path) -> None:
    """Negative control: the same template without what never ends, and ** in its text."""
    (tmp_path / "t.jinja").write_text("**{# 2 ** 3 #}" + TURNS)
    assert load_renderer(BASE, str(tmp_path / "t.jinja"), 64)


def test_without_proc_there_is_a_limit_of_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where a template that ends is rendered all the same."""
    monkeypatch.setattr(bounds, "STATM", tmp_path / "none")
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    (tmp_path / "t.jinja").write_text(TURNS)
    assert load_renderer(BASE, str(tmp_path / "t.jinja"), 64)
    (tmp_path / "t.jinja").write_text(LOOP + TURNS)
    with pytest.raises(InputError, match=r"it ran for more than 0\.5 s"):
        load_renderer(BASE, str(tmp_path / "t.jinja"), 64)


def test_a_limit_costs_little() -> None:
    """Every dialogue has one: far less than the time of rendering it."""
    begun = time.process_time()
    for _ in range(1000):
        with bounded():
            pass
    assert time.process_time() - begun < 0.5
