"""Sample answers to prompts.  `python -m align.generate my-sft --data prompts.jsonl --n 4 > samples.jsonl`

Prints one JSON row per answer: the prompt's row with "completion", and whether it "ended" by itself; what the row
itself has under these names is kept as "given_completion" and "given_ended". Temperature is the only knob: the model's
own distribution is sampled (no top-k, no top-p); `--temperature 0` is greedy. Nothing is stored.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from align.data.formats import read_kept_prompts
from align.ground import ranks
from align.ground.disk import write_file
from align.ground.errors import AlignError, InputError
from align.ground.progress import Work
from align.ground.terminal import ANEW, guarded, prose, say
from align.inputs.fit import check_out
from align.recipe import (
    Count,
    File,
    Place,
    Positional,
    Ref,
    RowSettings,
    Runtime,
    Samples,
    Sampling,
    TextStage,
    parse_flags,
)
from align.sampling.answers import sample
from align.stage import on_base, reading
from align.stage.ahead.dry_run import plan
from align.stage.describe import Stage, all_with
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store


class Config(Sampling, TextStage, RowSettings):
    """Generation"""

    unread: ClassVar[frozenset[str]] = frozenset({"name"})

    parent: Annotated[Ref | None, Positional] = None
    """Artifact to sample from: a name, a digest, or its beginning. Or give base."""
    data: File
    """Prompts: rows with prompt or messages; their other keys are kept."""
    n: Samples = 1
    """Answers per prompt."""
    limit: Count | None = None
    """Take only the first prompts."""
    out: Annotated[Place | None, Runtime] = None
    """New file to write to, or a pipe or a device; without it, stdout."""


def ready(bench: Workbench, records: Mapping[str, Any]) -> None:
    """The answers have a place. Raises: InputError."""
    if bench.config.out:
        check_out(bench.config.out, folder=False)


STAGE = Stage(
    "generate",
    version=1,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    reads=all_with(read_kept_prompts),
    encoder_decoders=True,
    ready=ready,
)


def run(config: Config, store: Store) -> list[dict[str, Any]]:
    """Sample from `config.parent` or `config.base`: one row per answer."""
    bench = Workbench(prepare(STAGE, config, store))
    ready(bench, {})
    prompts = reading.read(bench, "data")[: config.limit]
    renderer = bench.load_renderer()
    prompts, prompt_ids = renderer.prompts(prompts, config.max_new_tokens, bench.context)
    bench.say_counts(renderer)
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    rows = []
    for prompt, answers in zip(
        prompts, sample(roles, "reference", renderer, prompt_ids, config, config.n), strict=True
    ):
        rows += [{**prompt.columns, **prompt.row(), "completion": a["text"], "ended": a["ended"]} for a in answers]
    return rows


def write_out(out: str, text: str, setting: str = "out") -> None:
    """The answers in a new file, whole or not at all, or down a pipe or a device. Raises: AlignError where they cannot
    be written, in the name of the `setting`."""
    check_out(out, folder=False, setting=setting)
    path = Path(os.path.expanduser(out))
    try:
        if path.exists():
            path.write_text(text, encoding="utf-8")
        else:
            write_file(path, text.encode())
    except OSError as error:
        raise AlignError(
            f"{setting}: {out} cannot be written ({error.strerror}). Name another file and run it again."
        ) from error


def main() -> None:
    def body() -> None:
        parsed = parse_flags(Config, sys.argv[1:], prog="align generate", doc=__doc__ or "")
        if ranks.world() > 1:
            raise InputError("generate works in one process, as each writes all answers. Start it without torchrun.")
        store = Store(parsed.config.store)
        if parsed.dry_run:
            with Work(STAGE.name):
                planned = plan(STAGE, parsed.config, store)
            with prose():
                print(planned)
            return
        with Work(STAGE.name):
            rows = run(parsed.config, store)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if parsed.config.out:
            write_out(parsed.config.out, text)
        else:
            sys.stdout.write(text)
        say(f"{len(rows):,} answers, {sum(r['ended'] for r in rows) / max(len(rows), 1):.1%} ended by themselves")

    guarded(body, ANEW)


if __name__ == "__main__":
    main()
