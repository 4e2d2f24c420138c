"""Words of the command line, wrong at random: every one ends in a refusal that names the setting, or is taken.

    python -m tests.benchmarks.flags --words 5 [--seed 0] [--stages sft,ppo]

Each setting of each stage is given so many of `WRONG`, drawn anew for each, and those of its own kind. Prints how many
were refused and taken, and what else came of any.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations

from pydantic.fields import FieldInfo

from align.ground.errors import InputError
from align.recipe import parse_flags
from align.recipe.fields import is_list, is_mapping, leaves, members
from align.recipe.settings import StageConfig
from align.stage.catalogue import commands as stages
from align.stage.catalogue import find

ESCAPE = "\x1b[2J\x1b]0;title\x07"
WRONG = (
    *("", " ", "null", "~", "nan", ".nan", "inf", "-.inf", "1e999", "-1", "0", "-0.0", "1.5", "0x10", "1_000", "1e300"),
    *("99999999999999999999", "9223372036854775808", "-1e18", "true", "no", "[1, 2]", "[]", "{a: 1}", "{}", "[[[1]]]"),
    *("&a [*a]", "*a", "!!python/object:os.system x", "- 1", "? 1", "a: b: c", "'", '"', "%", "{", "2024-01-01"),
    *(ESCAPE, "a\nb", "a\rb", "a\tb", "名前", "\u202eabc", "\udcff", "\x00", "x" * 5000, "..", "/", "/dev/zero"),
    *("~nobody/x", "a,b", ",", ",,", "a,,b", "https://", "http://[", "s3://", "file:///", "{0.__class__}", "{prompt"),
)  # fmt: skip
NUMBERS = ("", "nan", "inf", "-1e400", "99999999999999999999", "one", "[1]", "1,5", "1 2", "½")
ENOUGH = {
    "base": "b", "data": "d,e", "parent": "p", "reward": "r", "compare": "a,b", "adapters": "a,b", "out": "o",
    "judge": "j.py:f", "teacher": "t", "share": "0.5", "against": "d", "reference": "r", "to": "ours",
}  # fmt: skip
"""What a stage may need, in the order in which it is tried."""


def wrong_for(field: FieldInfo, draw: random.Random, count: int) -> Iterator[str]:
    """So many words that may stand in no setting of this kind, or in few."""
    kinds = members(field)
    own = NUMBERS if {int, float} & {*kinds} else ("x", "[1, {a: 2}]", "{a: {b: 1}}", "1.5.5", ESCAPE)
    if is_list(field) or is_mapping(field):
        own = ("{a: [1]}", "[[x]]", "nan", "{1: 2, 1: 3}", ESCAPE)
    yield from draw.sample(own, min(3, count))
    yield from draw.sample(WRONG, max(0, count - 3))


def enough(config: type[StageConfig]) -> list[str]:
    """Words with which a stage could begin: as few as are taken."""
    there = [f"--{name}={word}" for name, word in ENOUGH.items() if name in config.model_fields]
    for words in (list(some) for n in range(len(there) + 1) for some in combinations(there, n)):
        with suppress(InputError):
            parse_flags(config, words, prog="align x")
            return words
    raise AssertionError(f"{config}: nothing of {there} is enough")


def commands(config: type[StageConfig], draw: random.Random, count: int) -> Iterator[tuple[str, list[str]]]:
    """(the setting, the words that follow a stage's name): each setting with so many wrong words, and some twice or
    misspelt."""
    least = enough(config)
    for path, field in leaves(config):
        flag = ".".join(path)
        given = [word for word in least if not word.startswith(f"--{path[0]}=")]
        for word in wrong_for(field, draw, count):
            if draw.random() < 0.5:
                yield flag, [*given, f"--{flag}={word}"]
            elif is_mapping(field):
                yield flag, [*given, f"--{flag}.{draw.choice(('k', 'a.b', ESCAPE, '名', ''))}", word]
            else:
                yield flag, [*given, f"--{flag}", word]
        yield flag, [*given, f"--{flag}=1", f"--{flag}=2"]
        yield flag[:-1] + "q", [*given, f"--{flag[:-1]}q", draw.choice(WRONG)]


def what_came_of(stage: str, config: type[StageConfig], flag: str, words: Sequence[str]) -> tuple[str, str]:
    """("refused", "taken" or "broken", what is wrong with that)."""
    try:
        parse_flags(config, words, prog=f"align {stage}")
    except InputError as error:
        told, key = str(error), flag.split(".")[-1]
        if key not in told and flag.split(".")[0] not in told:
            return "broken", f"the message names no {flag}: {told!r}"
        return "refused", ""
    except SystemExit as error:
        return ("broken", "ends well") if not error.code else ("refused", "")
    except Exception as error:
        return "broken", repr(error)
    return "taken", ""


def endless() -> list[str]:
    """Settings of all stages that take a whole number of any size, which torch, NumPy or a loop would break on."""
    found = {}
    for stage in stages():
        known = find(stage)
        assert known is not None
        least = enough(known.config)
        for path, field in leaves(known.config):
            flag = ".".join(path)
            given = [*(word for word in least if not word.startswith(f"--{path[0]}=")), f"--{flag}={10**20}"]
            if int in members(field) and (*path, str(field)) not in found:
                found[*path, str(field)] = f"{stage}.{flag}", what_came_of(stage, known.config, flag, given)[0]
    return [name for name, came in found.values() if came == "taken"]


def run(seed: int, count: int, names: Sequence[str] = ()) -> tuple[Counter[str], list[str]]:
    """How many words were refused and taken, and what was wrong with any."""
    draw, found, wrong = random.Random(seed), Counter[str](), []
    for stage in names or stages():
        known = find(stage)
        assert known is not None
        for flag, words in commands(known.config, draw, count):
            came, why = what_came_of(stage, known.config, flag, words)
            found[came] += 1
            if why:
                wrong.append(f"align {stage} {words!r}: {why}")
    return found, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default="")
    args = parser.parse_args()
    counts, lines = run(args.seed, args.words, [name for name in args.stages.split(",") if name])
    print("\n".join([*lines, str(dict(counts))]))
