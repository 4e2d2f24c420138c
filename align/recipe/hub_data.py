"""How data sets of the hub are named in a setting that holds data: `trl-lib/Capybara:train`.

USER/NAME, then @REVISION (a branch, tag or commit), then :SPLIT, :CONFIG/SPLIT or :CONFIG/. `hf://datasets/` may stand
in front, which tells a name from a file's. In YAML the parts may have keys: {hub: trl-lib/Capybara, split: train}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SCHEME = "hf://datasets/"
NAME = re.compile(
    rf"(?:{SCHEME})?(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[\w./-]+))?(?::(?:(?P<config>[^/:]+)/)?(?P<split>(?<=/)|[\w.-]+))?",
    re.ASCII,
)
PARTS = ("hub", "revision", "config", "split")


def is_meant(text: str) -> bool:
    """Whether a text names a data set of the hub and can hardly be a path."""
    found = NAME.fullmatch(text)
    return found is not None and (text.startswith(SCHEME) or found["revision"] is not None or ":" in text)


def spelled(value: object) -> object:
    """A mapping of `PARTS` as one text; anything else as it is. Raises: ValueError."""
    if not isinstance(value, Mapping) or "hub" not in value:
        return value
    wrong = [key for key, part in value.items() if key not in PARTS or not isinstance(part, str)]
    if wrong:
        raise ValueError(f"{wrong[0]} is none of {', '.join(PARTS)}, which take text; all but hub may be left out")
    revision = f"@{value['revision']}" if "revision" in value else ""
    config = f"{value['config']}/" if "config" in value else ""
    split = value.get("split", "")
    text = f"{value['hub']}{revision}{':' if config or split else ''}{config}{split}"
    if NAME.fullmatch(text) is None:
        raise ValueError(f"{text} names no data set of the hub; expected USER/NAME as hub")
    return text


def with_split(text: object, split: str) -> str:
    """`--data TEXT --split SPLIT` as one text. Raises: ValueError where that is no data set of the hub, or has a
    split."""
    found = NAME.fullmatch(text) if isinstance(text, str) else None
    if found is None or found["split"]:
        raise ValueError(
            f"--split names a split of a data set of the hub, such as --data trl-lib/Capybara; --data is {text!r}."
        )
    return f"{text}{'' if found['config'] else ':'}{split}"
