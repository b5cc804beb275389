"""Files known to be whole: signed JSON, digests, writes that last, and what to say when they fail."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What a file system says when it has no room: full, over quota, over the largest file it allows.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


class StoreError(ValueError):
    """A folder of results that cannot be used as asked; the message names it and says what to do."""


class DiskFullError(StoreError):
    """There is no room for a result. What was finished before is kept."""


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Errors: StoreError on what JSON lacks."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{value!r} is not JSON ({error}): use plain values") from error


def read_signed(path: Path, *keys: str) -> dict[str, Any]:
    """The content that signed() made, which has these keys. Errors: StoreError if it is not whole."""
    try:
        content = json.loads(path.read_bytes())
        signature = content.pop("sha256")
    except FileNotFoundError:
        raise StoreError("is missing") from None
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError):
        raise StoreError("is no file of ours, or is cut short") from None
    if signature != _signature(content) or not all(key in content for key in keys):
        raise StoreError("was changed after it was written")
    return content


@contextmanager
def told_clearly(folder: Path, what: str) -> Iterator[None]:
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


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(content: Any) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def signed(content: dict[str, Any]) -> bytes:
    """The JSON of content and its SHA-256, which read_signed() checks."""
    return (json.dumps({**content, "sha256": _signature(content)}, indent=1, sort_keys=True) + "\n").encode()


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
