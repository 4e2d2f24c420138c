"""Data sets of the hub by name (align/recipe/hub_data.py says how they are spelt).

`datasets` fetches one into its own cache, or, being offline (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE), takes it from there.
What is read and hashed are the files of the cache, which lie in a folder that is called after the commit.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from align.data.files.sources import suffix
from align.data.files.tables import ARCHIVES, FORMATS
from align.ground.errors import InputError
from align.ground.terminal import say
from align.recipe.hub_data import NAME, SCHEME

if TYPE_CHECKING:
    from datasets import DatasetDict

SHARD = re.compile(r"-\d{5}-of-\d{5}$")
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 20.0
"""How long the hub is waited for at first."""


class NotHad(InputError):
    """A data set that is neither in the cache nor given by the hub."""


class HubData(NamedTuple):
    """A split as it lies in the cache: its file, or the pattern of its shards; and what it is, with the commit."""

    path: Path
    source: str


@cache
def fetched(name: str) -> HubData | None:
    """A data set of the hub; None where the text is no such name.

    Raises: NotHad; InputError where a config or a split is to be named, or the cache has another commit.
    """
    found = NAME.fullmatch(name)
    is_file = suffix(Path(name)) in (*FORMATS, ".txt") or Path(name).suffix in ARCHIVES
    if found is None or (is_file and not name.startswith(SCHEME)):
        return None
    repository, revision, config, split = found.group("repository", "revision", "config", "split")
    wanted, splits = _load(name, repository, revision, config)
    if not split and len(splits) > 1:
        behind = f"{found['config']}/" if found["config"] else ""
        plain = (
            name.partition(":")[0] if not name.startswith(SCHEME) else SCHEME + name[len(SCHEME) :].partition(":")[0]
        )
        raise InputError(f"{name} has the splits {', '.join(splits)}. Name one: {plain}:{behind}{next(iter(splits))}.")
    split = split or next(iter(splits))
    if split not in splits:
        raise InputError(f"{name}: there is no split {split!r}; the data set has {', '.join(splits)}.")
    files = [Path(file["filename"]) for file in splits[split].cache_files]
    if not files:
        raise InputError(f"{name}: the split {split} has no rows.")
    folder, first = files[0].parent, files[0]
    if not COMMIT.fullmatch(folder.name) or (wanted and folder.name != wanted):
        raise InputError(
            f"{name}: the cache of `datasets` has {folder.name[:12]} where the commit is {(wanted or 'unknown')[:12]}. "
            f"Remove {folder}, or name that commit."
        )
    path = first if len(files) == 1 else folder / f"{SHARD.sub('', first.stem)}-*-of-{len(files):05}.arrow"
    return HubData(path, f"{repository}@{folder.name}:{folder.parents[1].name}/{split}")


def _load(name: str, repository: str, revision: str | None, config: str | None) -> tuple[str | None, DatasetDict]:
    """(the commit that it has to be of, where that is known; all splits of one config). Raises: InputError."""
    import datasets

    offline = bool(datasets.config.HF_HUB_OFFLINE)
    commit = revision if revision and COMMIT.fullmatch(revision) else None
    if not offline:
        commit = _commit(repository, revision)
    say(f"data: {repository}{f' at commit {commit[:12]}' if commit else ''}{', offline' if offline else ''}")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()  # which says what is said here
    try:
        return commit, datasets.load_dataset(repository, config, revision=commit or revision)
    except Exception as error:  # whatever datasets and the readers of its formats raise
        said = " ".join(str(error).split())
        if "onfig name is missing" in said or "BuilderConfig" in said:
            said = said.partition(" Example of usage")[0]
            raise InputError(f"{name}: {said}; name it as {repository}:CONFIG/SPLIT.") from error
        if offline:
            place = datasets.config.HF_DATASETS_CACHE
            raise NotHad(
                f"it is not in the cache of `datasets` ({place}), and the hub is not asked, being offline "
                "(HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
            ) from error
        raise NotHad(f"`datasets` cannot read what the hub gives ({type(error).__name__}: {said[:200]})") from error


def _commit(repository: str, revision: str | None) -> str:
    """The commit that a revision is now, by the hub. Raises: NotHad."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RevisionNotFoundError

    api = HfApi()
    try:
        return str(api.dataset_info(repository, revision=revision, timeout=SECONDS).sha)
    except RevisionNotFoundError as error:
        raise NotHad(f"the hub has {repository}, but not its revision {revision}") from error
    except (HfHubHTTPError, HFValidationError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else "no such name"
        raise NotHad(
            f"the hub ({api.endpoint}) has none that it shows ({status}): check the spelling, and for a private one "
            "the token (`hf auth login`, or HF_TOKEN)"
        ) from error
    except (HTTPError, OSError) as error:
        raise NotHad(
            f"the hub ({api.endpoint}) cannot be reached ({type(error).__name__}); HF_HUB_OFFLINE=1 takes what is in "
            "the cache of `datasets`"
        ) from error
