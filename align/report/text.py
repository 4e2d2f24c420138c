"""One artifact as text for a terminal, behind `align show`, and what lists and differences are written with. No
torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from align.ground.paths import short_path
from align.ground.terminal import one_line
from align.report.code import artifact_of, load_lines
from align.report.summary import duration, memory
from align.report.training import kept_text, read_warnings
from align.store import Artifact, BaseRecord, CostRecord, Store, is_digest

SHORT = 12
"""Digits of a digest that people read."""


def show_text(store: Store, ref: str | Artifact) -> str:
    """One artifact's manifest and cost for reading, and exactly what to load to use it.

    Raises: InputError for an unknown ref; AlignError when it is damaged.
    """
    artifact = store.resolve(ref)
    name = name_of(store, artifact, ref)
    sections = [
        ("digest", [[artifact.digest], [f"{artifact.kind} by {artifact.stage}, version {artifact.version}"]]),
        ("cost", _cost(store.cost(artifact))),
        ("base", _base(store, artifact)),
        (
            "parents",
            [
                [role, all_names(store, parent) or "unnamed", parent[:SHORT]]
                for role, parent in artifact.parents.items()
            ],
        ),
        ("text", _settings(artifact.text or {})),
        ("data", _settings(artifact.data)),
        ("config", _settings(artifact.config)),
        ("metrics", _settings(artifact.metrics)),
        ("kept", [[said] for said in kept_text(store, artifact)]),
        ("guard", [[warning] for warning in read_warnings(store, artifact)]),
        ("files", [[size_text(entry["size"]), path] for path, entry in sorted(artifact.files.items())]),
    ]
    lines = [name]
    for title, rows in sections:
        for index, row in enumerate(aligned(rows, right=(0,) if title == "files" else ())):
            lines.append(f"{'' if index else title:<9}{row}")
    result = ["", result_text(store, artifact)] if artifact.kind == "report" else []
    return "\n".join([*lines, *result, "", *load_lines(store, artifact, name)])


def result_text(store: Store, report: Artifact) -> str:
    """A report's table, and where its page lies."""
    page = short_path(store.folder(report) / "report.html")
    return f"{store.read(report, 'table.txt').decode().rstrip()}\n\nreport: {page}"


def name_of(store: Store, artifact: Artifact, asked: str | Artifact) -> str:
    """What the artifact was asked for by, if that is a ref; else its first ref or short digest."""
    names = store.names(artifact)
    return asked if isinstance(asked, str) and asked in names else next(iter(names), artifact.short)


def all_names(store: Store, digest: str) -> str:
    """Every name of an artifact, as which of them it was made by, or taken by, is written nowhere; "" without any."""
    return " = ".join(store.names(digest))


def base_name(store: Store, base: BaseRecord) -> str:
    revision = f"@{base['revision'][:SHORT]}" if base["revision"] else ""
    found = artifact_of(base)
    model = (all_names(store, found) or f"artifact {found[:SHORT]}") if found else base["model"]
    return f"{model}{revision}  {base['quantize'] or 'not quantised'}, weights {base['digest'][:SHORT]}"


def _base(store: Store, artifact: Artifact) -> list[list[str]]:
    if not artifact.base:
        return []
    place = store.place(artifact.base["digest"])
    return [[base_name(store, artifact.base)], *([[f"at {place}"]] if place else [])]


def _cost(cost: CostRecord | None) -> list[list[str]]:
    if cost is None:
        return [["not known here: it was made elsewhere"]]
    facts = [f"made {time_text(cost['finished'])}"]
    facts += [f"in {duration(cost['seconds'])}"] if "seconds" in cost else []
    facts += [f"{cost['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in cost else []
    facts += [f"peak memory {memory(cost['peak_memory_bytes'])}"] if "peak_memory_bytes" in cost else []
    return [[", ".join(facts)]]


def _settings(settings: Mapping[str, object]) -> list[list[str]]:
    """Rows of dotted key and value."""
    rows = []
    for key, value in sorted(settings.items()):
        if isinstance(value, dict) and value:
            rows += [[f"{key}.{inner}", text] for inner, text in _settings(value)]
        else:
            rows.append([key, value_text(value)])
    return rows


def value_text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {value_text(inner)}' for key, inner in value.items())}}}"
    digest, colon, function = str(value).partition(":")  # of a judge: of its file, and what is called there
    return f"{digest[:SHORT]}{colon}{function}" if is_digest(digest) else str(value)


def size_text(size: int) -> str:
    """`831 B`, `44.8 KiB`, `3.2 MiB`, `1.50 GiB`."""
    if size < 2**10:
        return f"{size} B"
    if size < 2**20:
        return f"{size / 2**10:,.1f} KiB"
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"


def time_text(finished: str) -> str:
    """`2026-11-21 07:25 UTC` of an ISO time in UTC."""
    return f"{finished[:10]} {finished[11:16]} UTC" if finished else ""


def name_parts(name: str) -> list[str]:
    """A name in the pieces between which a line may break: behind dots, hyphens and slashes, and not in a number."""
    return re.split(r"(?<=[/-])(?=[^./-])|(?<=\.)(?=[^./\d-])", name)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines with columns two spaces apart; the columns in `right` end on one edge. No cell can make a line of
    its own."""
    rows = [list(map(one_line, row)) for row in rows]
    widths = [
        max(len(row[column]) for row in rows if len(row) > column) for column in range(max(map(len, rows), default=0))
    ]

    def cell(text: str, column: int) -> str:
        return text.rjust(widths[column]) if column in right else text.ljust(widths[column])

    return ["  ".join(cell(text, column) for column, text in enumerate(row)).rstrip() for row in rows]


def elided(text: str, width: int) -> str:
    """The text on one line, its middle left out where it is longer than `width`."""
    text = one_line(text)
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def told_apart(texts: Sequence[str], longest: int) -> list[str]:
    """Each elided to `longest` characters where different ones look different then; else the long ones stand without
    the beginning that they share, and all are as much longer as it takes."""
    whole = list(dict.fromkeys(map(one_line, texts)))

    def cut(width: int, start: int = 0) -> dict[str, str] | None:
        """None where two look alike."""
        short = [f"…{text[start:]}" if start > 1 and len(text) > longest else text for text in whole]
        found = [elided(text, width) for text in short]
        return dict(zip(whole, found, strict=True)) if len({*found}) == len(whole) else None

    shared = _beginning([text for text in whole if len(text) > longest])
    starts = [0, *(_last(mark, shared) + 1 for mark in "/.-")]
    widths = range(longest, max(map(len, whole), default=0) + 1)
    found = next((found for width in widths for start in starts if (found := cut(width, start))), None)
    return [found[one_line(text)] for text in texts] if found else [one_line(text) for text in texts]


def _last(mark: str, text: str) -> int:
    """Where it stands last, but for the point of a number; -1 for nowhere."""
    return max((found.start() for found in re.finditer(rf"{re.escape(mark)}(?!(?<=\d\.)\d*$)", text)), default=-1)


def _beginning(texts: Sequence[str]) -> str:
    """What all begin with."""
    first, last = min(texts, default=""), max(texts, default="")
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def fits(rows: Sequence[Sequence[str]], width: int | None) -> bool:
    """Whether no `aligned` row is wider than `width`, if any."""
    return width is None or all(len(line) <= width for line in aligned(rows))


def fitted(rows: Sequence[Sequence[str]], width: int | None, right: Sequence[int] = (), *, name: int = 0) -> list[str]:
    """`aligned` rows of at most `width` characters, if any. The column `name` is never cut, so that different names
    look different: the widest others give way, to no less than 8, and go below it where that is not enough."""
    if width is None:
        return aligned(rows, right)
    rows = [list(map(one_line, row)) for row in rows]
    found = aligned(_cut(rows, width, name), right)
    if all(len(line) <= width for line in found):
        return found
    heads = aligned([row[: name + 1] for row in rows])
    below = aligned(_cut([["", *row[name + 1 :]] for row in rows], width, 0), [column - name for column in right])
    return [line for pair in zip(heads, below, strict=True) for line in pair if line]


def _cut(rows: Sequence[Sequence[str]], width: int, whole: int) -> list[list[str]]:
    """Rows of cells, the widest columns but `whole` cut until the rows fit, or have 8 characters."""
    count = max(map(len, rows), default=0)
    widths = [max(len(row[column]) for row in rows if len(row) > column) for column in range(count)]
    others = [column for column in range(count) if column != whole]
    while sum(widths) + 2 * (count - 1) > width and max((widths[column] for column in others), default=0) > 8:
        widths[max(others, key=lambda column: widths[column])] -= 1
    return [[elided(cell, widths[column]) for column, cell in enumerate(row)] for row in rows]
