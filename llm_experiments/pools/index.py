"""A pool's rows in a file: what was looked at is not looked at again until it changes.

The file has one row a line. A line is added as soon as its adapter was looked at, so that an interrupted
run goes on where it was; at the end the file is written anew, without rows of adapters that are gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from llm_experiments.adapters.lists import listed
from llm_experiments.adapters.locate import CONFIG, EXTRA, HUB_ID, NAMED, SUFFIXES
from llm_experiments.pools.hub import hub_member, hub_stamp
from llm_experiments.pools.members import Member, local_member, refused, stamp_of
from toytransformer.adapters import AdapterError
from toytransformer.compositions import replace_file
from toytransformer.compositions.io import read_plain

#: Of another version of the rows nothing is taken over.
VERSION = 1
#: Names of files that make a folder an adapter's, or something that should have been one.
TELLING = (CONFIG, "adapters.safetensors", "pytorch_lora_weights.safetensors", *NAMED)


@dataclass(frozen=True)
class Place:
    """Where an adapter lies: what it is called in the pool, and what opens it."""

    id: str
    source: str
    local: bool
    files: tuple[Path, ...] = ()


def index(
    sources: Sequence[str],
    file: Path | None = None,
    *,
    tick: Callable[[int, int], None] = lambda done, all: None,
) -> list[Member]:
    """The rows of all adapters in `sources`, sorted by id; see `places`.

    file: where rows are kept, by default a file of the user's cache named after the sources. tick: called
    with the adapters done and all of them. Errors: AdapterError for a source that is not there, and for a
    file that holds something else than rows.
    """
    found = places(sources)
    file = file or kept_in(sources)
    known = _known(file)
    _require_rows(file)
    rows: list[Member] = []
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        for done, place in enumerate(found, start=1):
            member, new = _member(place, known.get(place.source))
            if new:
                lines.write(_line(member))
                lines.flush()
            rows.append(member)
            tick(done, len(found))
    replace_file(file, map(_line, rows))
    return rows


def places(sources: Sequence[str]) -> list[Place]:
    """The adapters in folders, whatever their depth, and on lists: text files of hub ids and paths.

    A list has one a line; what follows a # is not read. Links to folders are not followed. Errors:
    AdapterError for what is neither, and where nothing is found.
    """
    found: dict[str, Place] = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            several = _below(path)
        elif path.is_file():
            several = _listed(path)
        elif HUB_ID.fullmatch(source):
            several = iter([Place(source, source, False)])
        else:
            raise AdapterError(
                f"{source!r} is no folder, no list of adapters (one hub id or path a line) and no hub id"
            )
        for place in several:
            found.setdefault(place.source, place)
    if not found:
        raise AdapterError(f"{', '.join(sources)} holds no adapter: a folder of one has {CONFIG}")
    return _distinct(sorted(found.values(), key=lambda place: place.id))


def kept_in(sources: Sequence[str]) -> Path:
    """The file in the user's cache (HF_ASSETS_CACHE) for the rows of these sources."""
    from huggingface_hub import cached_assets_path

    named = [
        str(Path(one).expanduser().resolve()) if Path(one).expanduser().exists() else one for one in sources
    ]
    key = sha256("\n".join(named).encode()).hexdigest()[:16]
    return cached_assets_path(library_name="lora-limits", namespace="pools", subfolder=key) / "pool.jsonl"


def read_index(file: Path) -> list[Member]:
    """The rows of a file that `index` wrote. Errors: AdapterError where it holds none."""
    if rows := list(_known(file).values()):
        return sorted(rows, key=lambda row: row.id)
    raise AdapterError(f"{file} holds no rows of a pool; index it anew")


def _member(place: Place, known: Member | None) -> tuple[Member, bool]:
    """The row of a place, and whether it had to be looked at."""
    if place.local:
        stamp = stamp_of(place.files)
    else:
        try:
            stamp = hub_stamp(place.source)
        except AdapterError as error:
            if known and known.refused is None:  # the hub cannot be asked now: what it said before
                return replace(known, id=place.id), False
            return refused(place.id, place.source, "", error), True
    if known and known.stamp == stamp and stamp:
        return replace(known, id=place.id), False
    if place.local:
        return local_member(place.id, Path(place.source), stamp), True
    return hub_member(place.id, place.source, stamp), True


def _below(root: Path) -> Iterator[Place]:
    """Folders with an adapter's files, and files of weights that lie in a folder without one."""
    for above, folders, names in os.walk(root):
        folders.sort()
        folder, called = Path(above), Path(above).relative_to(root)
        if set(names) & set(TELLING):
            belonging = [name for name in names if name in TELLING or name in (EXTRA, "README.md")]
            belonging += [name for name in names if name.startswith("adapter_model")]
            id = str(called) if called.parts else root.resolve().name
            yield Place(id, str(folder), True, tuple(folder / name for name in belonging))
        elif "config.json" not in names:  # a model's folder
            for name in sorted(names):
                if Path(name).suffix in SUFFIXES:
                    files = folder / name, (folder / name).with_suffix(".meta")
                    yield Place(str(called / name), str(folder / name), True, files)


def _listed(file: Path) -> Iterator[Place]:
    for source in listed(file):
        path = Path(source).expanduser()
        if path.is_dir():
            yield Place(
                source, str(path), True, tuple(sorted(one for one in path.iterdir() if one.is_file()))
            )
        elif path.is_file():
            yield Place(source, str(path), True, (path, path.parent / CONFIG))
        else:
            yield Place(source, source, False)


def _distinct(found: list[Place]) -> list[Place]:
    """The places, those that share a name called by what opens them."""
    names = [place.id for place in found]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [replace(place, id=place.source) if place.id in twice else place for place in found]


def _line(member: Member) -> str:
    return json.dumps({"version": VERSION, **asdict(member)}, ensure_ascii=False) + "\n"


def _require_rows(file: Path) -> None:
    """Errors: AdapterError for a file that `index` did not write, which it would replace."""
    if file.is_dir():
        raise AdapterError(f"{file} is a folder: name a file for the rows of the pool")
    content = read_plain(file).lstrip() if file.exists() else b""
    if content and not content.startswith(b'{"version": '):
        raise AdapterError(f"{file} holds something else than rows of a pool: name a new file")


def _known(file: Path) -> dict[str, Member]:
    """The rows of an earlier run by source; lines that are cut short, or of another version, do not count."""
    known: dict[str, Member] = {}
    try:
        lines = read_plain(file).decode("utf-8", errors="replace").split("\n")
    except OSError:
        return known
    for line in lines:
        try:
            content = json.loads(line)
            if content.pop("version") == VERSION:
                sizes = {name: tuple(size) for name, size in content.pop("modules").items()}
                member = Member(**content, modules=sizes)
                known[member.source] = member
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return known
