"""The seal of a step's folder: which files it has, and what is wrong where that no longer holds.

seal.json lists size and SHA-256 of every file and is itself signed; a folder without one is no result.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, TypedDict

from llm_experiments.engine.addresses import content_key
from llm_experiments.engine.sealing import (
    StoreError,
    digest,
    parsed,
    read_plain,
    read_signed,
    signed,
    sync,
    write_synced,
)
from llm_experiments.models.files import printable

SPEC, SEAL = "spec.json", "seal.json"


class Sealed(TypedDict):
    """What a seal says of one file: bytes, SHA-256 in hex."""

    size: int
    sha256: str


class Seal(TypedDict):
    """What a seal says: whose it is, the files by path, and how the step went (label, seconds, finished)."""

    name: str
    files: dict[str, Sealed]
    meta: dict[str, str | float]


@dataclass(frozen=True)
class Problem:
    """A file or folder that is not trusted: where (in DIR), why, and whether its step is lost by it."""

    path: str
    reason: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def read_seal(folder: Path) -> Seal:
    """The seal of a folder. Errors: StoreError if it is not whole, or says what no seal of ours says."""
    seal = read_signed(folder / SEAL, "name", "files", "meta")
    name, files, meta = seal["name"], seal["files"], seal["meta"]
    if not isinstance(name, str) or not isinstance(files, dict) or not isinstance(meta, dict):
        _malformed()
    if not all(isinstance(value, str | int | float) for value in meta.values()):
        _malformed()
    if SPEC not in files:
        raise StoreError(f"does not name {SPEC}: it is not trusted")
    for file, sealed in files.items():
        if not isinstance(sealed, dict) or set(sealed) != {"size", "sha256"}:
            _malformed()
        if type(sealed["size"]) is not int or not isinstance(sealed["sha256"], str):
            _malformed()
        if not _inside(file):
            raise StoreError(f"names {printable(file)!r}, which is no file in its folder: it is not trusted")
    return Seal(name=name, files=files, meta=meta)


def _malformed() -> NoReturn:
    raise StoreError("is signed, but does not say what a seal says")


def _inside(file: str) -> bool:
    """Whether it is the plain path of a file below a folder, and not the seal's own."""
    path = PurePosixPath(file)
    plain = path.as_posix() == file and not path.is_absolute() and ".." not in path.parts
    return plain and "\0" not in file and file not in (".", SEAL)


def write_seal(folder: Path, name: str, meta: Mapping[str, str | float]) -> None:
    """Seal all that is in the folder and have it on the disk. Errors: StoreError on what is no plain file."""
    files: dict[str, Sealed] = {}
    folders = [folder]
    for file, mode in tree(folder):
        if stat.S_ISDIR(mode):
            folders.append(folder / file)
        elif stat.S_ISREG(mode):
            sync(path := folder / file)
            files[file] = Sealed(size=path.stat().st_size, sha256=digest(path))
        else:
            raise StoreError(f"step {name} wrote '{file}', which is no plain file: write files only")
    write_synced(folder / SEAL, signed({"name": name, "files": files, "meta": dict(meta)}))
    for path in reversed(folders):
        sync(path)


def tree(folder: Path) -> list[tuple[str, int]]:
    """Path and mode of everything below a folder, sorted; links are not followed."""
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    below = [""]
    while below:
        prefix = below.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    mode = entry.stat(follow_symlinks=False).st_mode
                    yield (path := prefix + entry.name), mode
                    if stat.S_ISDIR(mode):
                        below.append(path + "/")
        except OSError:
            if not prefix:
                raise
            # A folder that cannot be listed: what the seal says is in it counts as missing.


def inspect(folder: Path, where: str, name: str, *, hashes: bool) -> list[Problem]:
    """What is wrong with the folder of step `name`, called `where` in messages; nothing if the list is empty.

    hashes: read every byte, not sizes alone.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [Problem(where, "is not a folder")]
    try:
        seal, entries = read_seal(folder), dict(tree(folder))
    except StoreError as error:
        return [Problem(f"{where}/{SEAL}", str(error))]
    except OSError as error:
        return [Problem(where, f"cannot be read ({error.strerror})")]
    damages = (
        (file, _damage(folder / file, entries.get(file), sealed, hashes))
        for file, sealed in seal["files"].items()
    )
    problems = [Problem(f"{where}/{file}", reason) for file, reason in damages if reason]
    if not problems and (seal["name"] != name or (hashes and not _belongs(folder / SPEC, name))):
        problems = [Problem(where, f"holds the results of another step ({printable(seal['name'])})")]
    ours = {SEAL, *seal["files"]}
    ours |= {parent.as_posix() for file in seal["files"] for parent in PurePosixPath(file).parents}
    return problems + [
        Problem(f"{where}/{file}", "is foreign: the step did not write it", fatal=False)
        for file in entries
        if file not in ours
    ]


def _damage(path: Path, mode: int | None, sealed: Sealed, hashes: bool) -> str | None:
    """What is wrong with one file that the seal names."""
    if mode is None:
        return "is missing"
    if not stat.S_ISREG(mode):
        return "is not a plain file"
    try:
        if (size := path.stat().st_size) != sealed["size"]:
            return f"has {size} bytes, its seal says {sealed['size']}"
        if hashes and digest(path) != sealed["sha256"]:
            return "was changed: its bytes are not those that were sealed"
    except (StoreError, OSError) as error:
        return str(error) if isinstance(error, StoreError) else f"cannot be read ({error.strerror})"
    return None


def _belongs(spec: Path, name: str) -> bool:
    """Whether the step's own description has the key that its folder is named after."""
    try:
        document = parsed(read_plain(spec))
        return isinstance(document, dict) and name == f"{document.get('kind')}-{content_key(document)}"
    except StoreError:
        return False
