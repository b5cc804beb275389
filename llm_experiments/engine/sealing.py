"""Files known to be whole: plain files, signed JSON, digests, writes that last, and messages when they fail.

Signatures and digests are SHA-256 without a secret: they find what an accident did, a disk, a crash, an
editor. Whoever wants to forge a result can sign it too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

#: What a file system says when it has no room: full, over quota, over the largest file it allows.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


class StoreError(ValueError):
    """A folder of results that cannot be used as asked; the message names it and says what to do."""


class DiskFullError(StoreError):
    """There is no room for a result. What was finished before is kept."""


# ---- JSON ----


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Errors: StoreError on what JSON lacks."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise StoreError("a value is nested too deeply to be JSON: use plain values") from None
    except (TypeError, ValueError) as error:
        raise StoreError(f"{value!r} is not JSON ({error}): use plain values") from error


def parsed(content: bytes) -> Any:
    """The value of a JSON text. Errors: StoreError on any other, however deep."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise StoreError("is no file of ours, or is cut short") from None


def read_signed(path: Path, *keys: str) -> dict[str, object]:
    """The content that signed() made, which has these keys. Errors: StoreError if it is not whole."""
    content = parsed(read_plain(path))
    if not isinstance(content, dict) or "sha256" not in content:
        raise StoreError("is no file of ours, or is cut short")
    signature = content.pop("sha256")
    try:
        whole = signature == _signature(content)
    except StoreError:
        whole = False
    if not whole or not all(key in content for key in keys):
        raise StoreError("was changed after it was written")
    return content


def signed(content: dict[str, object]) -> bytes:
    """The JSON of content and its SHA-256, which read_signed() checks."""
    return (json.dumps({**content, "sha256": _signature(content)}, indent=1, sort_keys=True) + "\n").encode()


def _signature(content: object) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


# ---- reading ----


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A plain file to read; links are not followed, and nothing that could block is waited for.

    Errors: StoreError saying what is there instead.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise StoreError("is missing") from None
    except OSError as error:
        plain = error.errno not in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR)
        raise StoreError(f"cannot be read ({error.strerror})" if plain else "is not a plain file") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StoreError("is not a plain file")
    with open(handle, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise StoreError(f"cannot be read ({error.strerror})") from error


def read_plain(path: Path) -> bytes:
    """The bytes of a plain file. Errors: StoreError on a link, a folder, a pipe, or what cannot be read."""
    with opened(path) as file:
        return file.read()


def digest(path: Path) -> str:
    """SHA-256 of a plain file, in hex. Errors: as read_plain."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- writing ----


@contextmanager
def clear_errors(folder: Path, what: str) -> Iterator[None]:
    """Raise what the file system refuses as DiskFullError or StoreError, naming folder and remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFullError(full(folder, what, error)) from error
        if error.errno in NOT_ALLOWED:
            raise StoreError(
                f"'{folder}' cannot be written ({error.strerror}, {what}): choose another --out"
            ) from error
        raise StoreError(f"{what} in '{folder}' cannot be written: {error}") from error


def full(folder: Path, what: str, error: BaseException) -> str:
    """The message for a disk without room."""
    return (
        f"no space left for {what} in '{folder}' ({error}): free some and run the same command again; "
        "finished steps are kept"
    )


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and have it on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Have a file's or a folder's content on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
