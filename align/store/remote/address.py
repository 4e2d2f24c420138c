"""Addresses of remotes: the file system behind a URL, how long its server is waited for, and what of the URL no message
may hold."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from align.ground.errors import InputError
from align.ground.json import Json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

FIRST, LATER = (20, 2), (60, 3)
"""Seconds that an S3 server may leave a request without an answer, and how often it is asked: at first, and once it has
answered."""
EXTRAS = {
    **{"s3": "align-rlhf[s3]", "s3a": "align-rlhf[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"},
    **{
        "sftp": "paramiko",
        "ssh": "paramiko",
        "http": "aiohttp",
        "https": "aiohttp",
        "smb": "smbprotocol",
        "hdfs": "pyarrow",
    },
}
"""What to install for a scheme."""


def secrets(url: str) -> list[str]:
    """What of a URL no message may hold: its password, and its query, as of a signed link."""
    parts = urlsplit(url)
    password = parts.netloc.rpartition("@")[0].partition(":")[2]
    return [secret for secret in (password, unquote(password), parts.query) if secret]


def without(hidden: list[str], text: str) -> str:
    """The text with *** for each of these."""
    for secret in hidden:
        text = text.replace(secret, "***")
    return text


def file_system(url: str, patience: tuple[int, int]) -> tuple[AbstractFileSystem, str]:
    """The file system of fsspec that a URL names, and the place in it.

    Raises: InputError for an unknown scheme, one whose library is not installed, with what installs it, and an address
    that it cannot use.
    """
    import fsspec

    scheme, hidden = url.partition("://")[0], secrets(url)
    shown, (seconds, tries) = without(hidden, url), patience
    options: Json = {}
    try:
        fsspec.get_filesystem_class(scheme)
        if scheme in ("s3", "s3a"):
            limits = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": tries}}
            options = {"use_listings_cache": False, "config_kwargs": limits}
        if scheme in ("http", "https"):
            timeout = importlib.import_module("aiohttp").ClientTimeout  # fsspec's own library there
            options = {"client_kwargs": {"timeout": timeout(total=None, sock_connect=seconds, sock_read=seconds)}}
        fs, root = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        remedy = f"pip install '{EXTRAS[scheme]}'" if scheme in EXTRAS else str(error)
        raise InputError(f"{shown}: {scheme}:// needs a library that is not installed: {remedy}") from error
    except Exception as error:  # each library has errors of its own for an address without a host, a user or a key
        if isinstance(error, ValueError) and "not known" in str(error):
            expected = "Expected s3://, gs://, file:// or another of its."
            raise InputError(f"{shown}: {scheme}:// is no scheme that fsspec knows. {expected}") from error
        raise InputError(f"{shown} cannot be opened: {without(hidden, str(error)) or type(error).__name__}") from error
    if scheme in ("s3", "s3a"):
        fs.retries = 1  # botocore asks again
    return fs, str(root)
