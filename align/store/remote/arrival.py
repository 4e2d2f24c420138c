"""What an artifact may hold when it leaves for a remote or arrives from one. The other side is taken for hostile.

`Artifact.parse` refuses manifests and names of files that could do harm in any store. Here are the lists of what each
kind of artifact is made of: its files by name, the shapes of what stands in its manifest and its files, and for
adapters and models the checks that `align import` and every base pass, too. What is on no list is refused.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from align.folders import adapter, model
from align.folders.adapter_tensors import PRECISIONS
from align.ground.errors import AlignError, InputError
from align.ground.terminal import COMMANDS, an
from align.store.artifact import Artifact, is_digest
from align.store.shapes import (
    ATTRIBUTES,
    BASE,
    COLOUR,
    COMPARED,
    ELEMENTS,
    FETCHES,
    FILES,
    KEY,
    LIMIT,
    LIMITS,
    MARKUP,
    NAME,
    NEEDED,
    NEWER,
    PAGE,
    QUANTISED,
    ROWS,
    TAG,
    TEXT,
    TOKENIZER,
    VERDICTS,
    is_measure,
    is_number,
)

CODE_KEYS = (
    "auto_map",
    "auto_mapping",
    "custom_generate",
    "custom_pipelines",
    "megatron_config",
    "runtime_config",
    "trust_remote_code",
)
"""Settings by which a config makes a loader import code."""
_PICKLES = {b"\x80" + bytes([protocol]) for protocol in range(2, 6)}
_ZIP = b"PK\x03\x04"


def check_contracts(artifact: Artifact) -> None:
    """Refuse a manifest whose files, names, base, text contract or metrics are not of the shape that every stage relies
    on.

    Raises: AlignError.
    """
    where = f"manifest {artifact.short}"
    for key, value in _entries(artifact.manifest):
        for text in (key, value):
            if isinstance(text, str) and COMMANDS.search(text):
                raise AlignError(
                    f"{where}: {text[:60]!r} holds control characters; a terminal could take them for commands."
                )
        if len(key) > KEY:
            raise AlignError(f"{where}: the key {key[:60]!r}… has {len(key):,} characters; at most {KEY:,} are read.")
        if set(key) & MARKUP:
            raise AlignError(
                f"{where}: the key {key[:60]!r} holds a line break or markup; a page or a line could be forged with it."
            )
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", artifact.stage):
        raise AlignError(f"{where}: stage is {artifact.stage[:60]!r}; expected the plain name of a stage.")
    for what, names in (("data", artifact.data), ("parents", artifact.parents)):
        if long := next((name for name in names if len(name) > NAME), None):
            raise AlignError(
                f"{where}: {what} has the name {long[:60]!r}… of {len(long):,} characters; such a name has at most "
                f"{NAME}."
            )
    for name, digest in artifact.data.items():
        if not is_digest(digest):
            raise AlignError(f"{where}: data.{name} is {digest!r}; expected a digest.")
    shapes: list[tuple[str, dict[str, Any] | None, dict[str, Callable[[Any], bool]]]] = [
        ("base", artifact.base, BASE),
        ("text", artifact.text, TEXT),
    ]
    for name, found, shape in shapes:
        if found is None:
            if name in NEEDED.get(artifact.kind, ()):
                raise AlignError(f"{where}: {name} is null; {artifact.described} has one.")
            continue
        if found.keys() - shape.keys() or shape.keys() - found.keys() - NEWER:
            raise AlignError(
                f"{where}: {name} has {', '.join(sorted(found)) or 'nothing'}; expected {', '.join(shape)}."
            )
        for key, fits in shape.items():
            if key in found and not fits(found[key]):
                raise AlignError(f"{where}: {name}.{key} is {str(found[key])[:80]!r}, which it cannot be.")
    if (
        artifact.base
        and artifact.base["model"].startswith("artifact:")
        and artifact.base["model"] != f"artifact:{artifact.base['digest']}"
    ):
        raise AlignError(
            f"{where}: base.model is {artifact.base['model']!r}, but base.digest is {artifact.base['digest']}."
        )
    if not 0 <= artifact.version < 1 << 31:
        raise AlignError(f"{where}: version is no number that a stage can have.")
    for name, value in artifact.metrics.items():
        if not is_measure(value) or name.endswith("_ci95") != isinstance(value, list):
            raise AlignError(
                f"{where}: metrics.{name} is {str(value)[:60]!r}; expected a number, an interval or a word."
            )
    if "verdict" in artifact.metrics:
        _check_verdict(artifact, where)
    _check_names(artifact, where)


def _check_verdict(artifact: Artifact, where: str) -> None:
    """A merge's, with the figures that it is drawn from. Raises: AlignError."""
    if artifact.kind not in COMPARED or artifact.metrics["verdict"] not in VERDICTS:
        found = str(artifact.metrics["verdict"])[:40]
        raise AlignError(f"{where}: its verdict is {found!r}; merged models have one, which is {', '.join(VERDICTS)}.")
    quantised = artifact.kind == "model" and artifact.base is not None and artifact.base["quantize"]
    needed = COMPARED[artifact.kind] | (QUANTISED if quantised else set())
    if not needed <= {name for name, value in artifact.metrics.items() if is_number(value)}:
        raise AlignError(f"{where}: it has a verdict without {', '.join(sorted(needed))}, which it is drawn from.")


def _check_names(artifact: Artifact, where: str) -> None:
    """Its files are those of its kind. Raises: AlignError."""
    allowed, needed = FILES[artifact.kind]
    for path, entry in artifact.files.items():
        if not re.fullmatch(allowed, path):
            raise AlignError(f"{where}: {path!r} is no file that {artifact.described} has. Nothing of it is taken.")
        limit = next((size for end, size in LIMITS.items() if path.endswith(end)), LIMIT)
        if entry["size"] > limit:
            raise AlignError(f"{where}: {path} has {entry['size']:,} bytes; such a file has at most {limit:,}.")
    if missing := [path for path in needed if path not in artifact.files]:
        raise AlignError(f"{where}: {artifact.described} cannot do without {missing[0]}, which it does not name.")


# ---- what stands in a file -------------------------------------------------------------------------------------------


def check_files(artifact: Artifact, places: Mapping[str, Path]) -> None:
    """Refuse what an artifact's files, whose bytes lie at `places`, may not be, each by itself and together.

    Raises: AlignError naming the file or folder and the reason.
    """
    for name, path in places.items():
        _check_content(artifact, name, path)
    _check_whole(artifact, places)


def _check_content(artifact: Artifact, name: str, path: Path) -> None:
    where, file = f"{name} of {artifact.stage} {artifact.short}", name.rpartition("/")[2]
    refuse_pickle(where, path)
    if name.endswith(".safetensors"):
        _check_safetensors(where, path)
        if file == "head.safetensors":
            _check_head(where, path)
    elif name.endswith("config.json"):
        config = _read_config(where, path)
        if file == "tokenizer_config.json":
            _check_tokenizer(where, config)
        for key, value in _entries(config):
            if key in CODE_KEYS and value:
                raise AlignError(
                    f"{where}: it sets {key}, by which a loader runs code that came with it. Align stores and loads "
                    f"none."
                )
        named, known = config.get("base_model_name_or_path"), (artifact.base or {}).get("model")
        if file == adapter.SHAPE and named is not None and named != known:
            raise AlignError(f"{where}: it names the base {named!r}; its manifest says {known!r}.")
    elif name in ROWS:
        _check_rows(where, path, ROWS[name])
    elif name.endswith(".html"):
        _check_page(where, path)
    elif name == "table.txt":
        _check_table(where, path)


def _check_whole(artifact: Artifact, places: Mapping[str, Path]) -> None:
    """Refuse an adapter that `align import` would not take for its settings and tensors, and a model that is no
    base."""
    folders = {path.rpartition("/")[0] for path in artifact.files if path.endswith((adapter.SHAPE, adapter.WEIGHTS))}
    with tempfile.TemporaryDirectory(prefix="align-") as scratch:
        for path, place in places.items():
            link = Path(scratch, path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place.absolute())
        try:
            if artifact.kind in ("model", "classifier"):
                model.check_folder(Path(scratch, "model"), classifier=artifact.kind == "classifier")
            else:
                for folder in sorted(folders):
                    adapter.check_folder(Path(scratch, folder))
        except InputError as error:
            raise AlignError(f"{artifact.stage} {artifact.short}: {str(error).replace(f'{scratch}/', '')}") from error


def refuse_pickle(where: str, path: Path) -> None:
    """Raises: AlignError when the file begins as a pickle does, or as the archives that PyTorch and NumPy put pickles
    in."""
    with open(path, "rb") as file:
        start = file.read(4)
    # a safetensors file begins with the length of its header, which may read as a pickle's mark: 896 is 80 03
    if start == _ZIP or (start[:2] in _PICKLES and not _is_safetensors(path)):
        raise AlignError(
            f"{where} is a pickle by its first bytes, which runs code when it is loaded. Tensors are stored as "
            f"safetensors."
        )


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError, ValueError):
        return False


def _check_safetensors(where: str, path: Path) -> None:
    """The library that loaders use reads the header: lengths, types, and offsets that fill the file without a gap or an
    overlap."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise AlignError(f"{where} is no complete safetensors file: {error}.") from error


def _check_head(where: str, path: Path) -> None:
    found = {name: len(sizes) for name, (dtype, sizes) in adapter.read_tensors(path).items() if dtype in PRECISIONS}
    if found != {"weight": 1, "bias": 0}:
        raise AlignError(
            f"{where} holds {', '.join(sorted(found))[:100] or 'nothing'}; a head is a vector `weight` and a number "
            f"`bias`."
        )


def _check_rows(where: str, path: Path, fits: Callable[[Any], bool]) -> None:
    """Every line is JSON of the shape that is read."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                sound = fits(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                sound = False
            if not sound:
                raise AlignError(f"{where}: line {number} is not what a stage writes there.")


def _check_page(where: str, path: Path) -> None:
    """It begins as our pages do, and each "<" in it opens or closes one of the elements that they are made of, with
    their attributes: no browser sees another tag than these, however it reads the rest."""
    page = path.read_bytes().decode("utf-8", "replace")
    if not page.startswith(PAGE):
        raise AlignError(
            f"{where} does not begin as a report that runs no script does. Run evaluate again where it was made, and "
            f"push that."
        )
    body = page[len(PAGE) :]
    for start in re.finditer("<", body):
        tag = TAG.match(body, start.start())
        if tag is None or (tag[1] or tag[2]).lower() not in ELEMENTS or not _are_ours(tag[3] or ""):
            odd = body[start.start() : start.start() + 40].partition(">")[0]
            raise AlignError(f"{where} holds {odd!r}, which no report has. Nothing of it is taken.")
    for sheet in re.split("<style", body, flags=re.IGNORECASE)[1:]:
        if found := FETCHES.search(sheet.partition("<")[0]):
            raise AlignError(
                f"{where} has a style sheet with {found[0]!r}, which no report has. Nothing of it is taken."
            )


def _are_ours(attributes: str) -> bool:
    """Whether an element's attributes are those that a report writes."""
    found = re.findall(r'([A-Za-z0-9-]+)="([^"]*)"', attributes)
    return all(name in ATTRIBUTES and (name != "style" or COLOUR.fullmatch(value)) for name, value in found)


def _check_table(where: str, path: Path) -> None:
    """What a terminal is shown as it stands. Raises: AlignError."""
    if found := COMMANDS.search(path.read_bytes().decode("utf-8", "replace")):
        raise AlignError(f"{where} holds the control character {found[0]!r}; a terminal could take it for a command.")


def _check_tokenizer(where: str, config: Mapping[str, Any]) -> None:
    for key, fits in TOKENIZER.items():
        if key in config and not fits(config[key]):
            raise AlignError(f"{where}: {key} is {str(config[key])[:80]!r}, which it cannot be.")


def _read_config(where: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AlignError(f"{where} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise AlignError(f"{where} holds {an(type(config).__name__)}; expected a JSON object.")
    return config


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and what stands there, however deep; what stands in a list has the key ""."""
    waiting = [("", value)]
    while waiting:
        key, inner = waiting.pop()
        yield key, inner
        waiting += (
            inner.items()
            if isinstance(inner, dict)
            else [("", item) for item in inner]
            if isinstance(inner, list)
            else []
        )
