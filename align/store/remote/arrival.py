"""What the files of an artifact may hold when it leaves for a remote or arrives from one. The other side is taken for
hostile.

`Artifact.parse` refuses manifests and names of files that could do harm in any store, `contracts` those of shapes that
no stage makes. Here are the lists of what stands in the files, and for adapters and models the checks that `align
import` and every base pass, too. What is on no list is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from align.folders import adapter, model
from align.folders.adapter_tensors import PRECISIONS
from align.ground.disk import sha256_file
from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.ground.terminal import COMMANDS, an
from align.store.artifact import Artifact
from align.store.remote.contracts import entries
from align.store.shapes import ATTRIBUTES, COLOUR, ELEMENTS, FETCHES, PAGE, ROWS, TAG, TOKENIZER, Fits

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


def check_files(artifact: Artifact, places: Mapping[str, Path]) -> None:
    """Refuse what an artifact's files, whose bytes lie at `places`, may not be, each by itself and together.

    Raises: AlignError naming the file or folder and the reason.
    """
    for name, path in places.items():
        _check_content(artifact, name, path)
    _check_whole(artifact, places)
    _check_text(artifact, places)


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
        for key, value in entries(config):
            if key in CODE_KEYS and value:
                raise AlignError(
                    f"{where}: it sets {key}, by which a loader runs code that came with it. Align stores and loads "
                    "none."
                )
        named, known = config.get("base_model_name_or_path"), artifact.base["model"] if artifact.base else None
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


def _check_text(artifact: Artifact, places: Mapping[str, Path]) -> None:
    """The tokenizer and the chat template are those of the text contract, by which stages tell whether ids mean the
    same. Raises: AlignError."""
    said = artifact.text or {}
    digests = {"tokenizer.json": ("tokenizer", _tokenizer_digest), "chat_template.jinja": ("chat_template", _digest)}
    for name, path in places.items():
        folder, _, file = name.rpartition("/")
        if folder not in ("tokenizer", "model") or file not in digests:
            continue
        key, digest = digests[file]
        where = f"{name} of {artifact.stage} {artifact.short}"
        if (found := digest(where, path)) != said.get(key):
            raise AlignError(
                f"{where}: its digest is {found[:12]}; the manifest's text.{key} is {str(said.get(key))[:12]}. Push it "
                "again from where it was made, or make it anew."
            )


def _tokenizer_digest(where: str, path: Path) -> str:
    """As a text contract has it: of what the library writes that reads it. Raises: AlignError."""
    from tokenizers import Tokenizer

    try:
        return hashlib.sha256(Tokenizer.from_file(str(path)).to_str().encode()).hexdigest()
    except Exception as error:  # the library raises nothing narrower
        raise AlignError(f"{where} is no tokenizer: {str(error)[:200]}.") from error


def _digest(where: str, path: Path) -> str:
    return sha256_file(path)


def refuse_pickle(where: str, path: Path) -> None:
    """Raises: AlignError when the file begins as a pickle does, or as the archives that PyTorch and NumPy put pickles
    in."""
    with open(path, "rb") as file:
        start = file.read(4)
    # a safetensors file begins with the length of its header, which may read as a pickle's mark: 896 is 80 03
    if start == _ZIP or (start[:2] in _PICKLES and not _is_safetensors(path)):
        raise AlignError(
            f"{where} is a pickle by its first bytes, which runs code when it is loaded. Tensors are stored as "
            "safetensors."
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
            "`bias`."
        )


def _check_rows(where: str, path: Path, fits: Fits) -> None:
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
            "push that."
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


def _check_tokenizer(where: str, config: Mapping[str, object]) -> None:
    for key, fits in TOKENIZER.items():
        if key in config and not fits(config[key]):
            raise AlignError(f"{where}: {key} is {str(config[key])[:80]!r}, which it cannot be.")


def _read_config(where: str, path: Path) -> Json:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AlignError(f"{where} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise AlignError(f"{where} holds {an(type(config).__name__)}; expected a JSON object.")
    return config
