"""To the hub: what an artifact holds as one commit of a model repository there, with its card.

A model lies at the repository's root. An adapter lies as `align checkout` writes it, and where it is the only one also
at the root, where PEFT, transformers and vLLM look for it. The token is huggingface_hub's (HF_TOKEN, or `hf auth
login`) and is written nowhere. The server is $HF_ENDPOINT, as for all of huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from align.exchange.card import exported
from align.ground.errors import AlignError, InputError
from align.report.code import WHOLE, adapters_of, auto_class, loadable
from align.store import Artifact, Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
OURS = re.compile(r"(adapters|tokenizer|value)/.*|(adapter_)?(model|head)[^/]*\.safetensors(\.index\.json)?")
"""What an earlier push may have left, which is taken away where the new one has no such file."""
LOG_IN = "Give one that may write there: `hf auth login`, or HF_TOKEN."


def repository(url: str) -> str:
    """user/name of hf://user/name. Raises: InputError for anything else."""
    found = url.removeprefix(SCHEME).rstrip("/")
    if not REPOSITORY.fullmatch(found):
        raise InputError(f"{url} names no model repository of the hub; expected hf://user/name.")
    return found


def push(store: Store, artifact: Artifact, name: str, repo: str, *, public: bool) -> str:
    """Write an artifact, called `name` in its card, into the repository `repo`, which is made where there is none;
    returns the commit's address.

    Raises: InputError for an artifact without a model, a token that is missing or may not, a public repository that was
        not asked for, and in offline mode; AlignError where the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not loadable(artifact):
        raise InputError(f"{name} is {artifact.described}, which holds no model to push to the hub.")
    with explained(repo):
        if get_token() is None:
            raise InputError(f"{SCHEME}{repo}: there is no token for the hub. {LOG_IN}")
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        check_private(api, repo, public)
        files = laid_out(store, artifact, name, repo)
        stale = [path for path in api.list_repo_files(repo) if OURS.fullmatch(path) and path not in files]
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(path, content) for path, content in files.items()),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=f"{name}, artifact {artifact.short} of Align",
        )
    return str(done.commit_url)


def check_private(api: HfApi, repo: str, public: bool) -> None:
    """Raises: InputError for a repository that anybody may read though nobody said so."""
    if not public and not api.repo_info(repo).private:
        raise InputError(
            f"{SCHEME}{repo} is there and public: whoever likes could read what is pushed. Give --public if that is "
            "meant, or another name."
        )


def laid_out(store: Store, artifact: Artifact, name: str, repo: str) -> dict[str, Path | bytes]:
    """Path in the repository -> file of the store, or content."""
    folder = store.folder(artifact)
    whole = artifact.kind in WHOLE
    files: dict[str, Path | bytes] = {
        path: folder / "model" / path if whole else folder / path
        for path in (artifact.under("model") if whole else artifact.files)
    }
    fetched = f"`hf download {repo} --local-dir DIR` fetches this folder."
    code = f'{auto_class(store, artifact)}.from_pretrained("{repo}")'
    if artifact.kind == "adapter" and len(adapters_of(artifact)) == 1:
        for place in ("adapters/0", "tokenizer"):
            files |= {path: folder / place / path for path in artifact.under(place)}
        code = f'PeftModel.from_pretrained(base, "{repo}")'
    elif not whole:
        code = ""
    section = f"\n## From the hub\n\n{fetched}{f' Or, without: `{code}`.' if code else ''}\n"
    cards = exported(store, artifact, name, model="" if whole else "model")
    return files | {path: content + section.encode() for path, content in cards.items()}


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """What goes wrong on the hub, in one sentence. Raises: InputError, or AlignError where trying again may help."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    url = f"{SCHEME}{repo}"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise InputError(f"{url}: HF_HUB_OFFLINE is set, so the hub is not asked. Unset it to push.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise InputError(f"{url}: the hub does not know the token (401). {LOG_IN}") from error
        if status == 403:
            raise InputError(f"{url}: the token may not write there (403). {LOG_IN}") from error
        if status == 404:
            raise InputError(f"{url}: the hub has no such user or organisation (404). Check the spelling.") from error
        raise AlignError(f"{url}: the hub answers {status} ({error.server_message}). Try again.") from error
    except (HTTPError, OSError, RuntimeError) as error:  # the last for a file that was broken off
        why = type(error.__cause__ or error).__name__
        raise AlignError(f"{url}: the hub cannot be reached ({why}). Try again.") from error
