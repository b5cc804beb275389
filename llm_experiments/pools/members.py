"""One adapter of a pool as a row of a table, from what says what it is: headers, settings, its model card."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_experiments.adapters import reader
from llm_experiments.adapters.locate import Located, locate
from llm_experiments.adapters.weights import AdapterWeights
from toytransformer.adapters import AdapterError

#: Blocks of a file of weights that its digest is of, and their size in bytes: spread evenly, first and last.
BLOCKS, BLOCK = 64, 4096
#: Longest model card that is looked at, in bytes, and longest reason that is kept, in letters.
CARD, REASON = 2**20, 300


@dataclass(frozen=True)
class Member:
    """A row: one adapter, or what was found in its place.

    id: what it is called in the pool. source: what opens it (adapters.locate). stamp: sizes and times of its
    files, or its commit on the hub; another stamp is another adapter. digest: equal for equal files; of
    settings, sizes and BLOCKS blocks of the numbers, or of the hub's own hashes. base: as its settings or its
    card name it; base_digest where it is known. rank: the largest. modules: by name, numbers of blocks
    and experts as *, (out, in, how many). parameters: of all factors. bytes: of its files. licence: what its
    card says. refused: why it cannot be merged, None where it can.
    """

    id: str
    source: str
    stamp: str
    digest: str = ""
    base: str | None = None
    base_digest: str | None = None
    rank: int = 0
    modules: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    parameters: int = 0
    bytes: int = 0
    licence: str | None = None
    layout: str = ""
    refused: str | None = None

    @property
    def count(self) -> int:
        """How many modules it changes."""
        return sum(number for _, _, number in self.modules.values())


def stamp_of(files: Iterable[Path]) -> str:
    """Names, sizes and times of change: other ones after any ordinary change of a file."""
    parts = []
    for file in sorted(set(files)):
        try:
            seen = file.stat()
            parts.append(f"{file.name} {seen.st_size} {seen.st_mtime_ns}")
        except OSError:
            parts.append(f"{file.name} -")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def local_member(id: str, source: Path, stamp: str) -> Member:
    """The row of an adapter on this machine; one that cannot be read is a row that says why.

    Without a stamp, to be looked at again, where the files are not the reason: no right to read, no memory.
    """
    try:
        found = locate(source)
        adapter = reader.opened(source)
        card = _card(found.folder / "README.md")
        size = sum(file.stat().st_size for file in found.weights)
        return row(id, str(source), stamp, adapter, card, digest_of(found), size)
    except Exception as error:  # of a stranger's files anything: one never ends the indexing of a thousand
        lasting = not isinstance(error.__cause__ or error, OSError | MemoryError)
        return refused(id, str(source), stamp if lasting else "", error)


def refused(id: str, source: str, stamp: str, error: Exception) -> Member:
    """The row of what cannot be read: the error in one line."""
    said = str(error) if isinstance(error, AdapterError | OSError) else f"{type(error).__name__}: {error}"
    line = " ".join(said.replace(f"{source}{os.sep}", "").replace(f"{source}: ", "").split())
    return Member(id, source, stamp, refused=line[:REASON] or type(error).__name__)


def row(
    id: str,
    source: str,
    stamp: str,
    adapter: AdapterWeights,
    card: Mapping[str, Any],
    digest: str,
    size: int,
) -> Member:
    """What an adapter's shapes and settings say; none of its numbers are read."""
    shapes = {name: adapter.shape(name) for name in adapter.modules}
    return Member(
        id=id,
        source=source,
        stamp=stamp,
        digest=digest,
        base=adapter.base_name or _text(card.get("base_model")),
        base_digest=adapter.digest,
        rank=max(shape.rank for shape in shapes.values()),
        modules=patterns({name: shape.size for name, shape in shapes.items()}),
        parameters=sum(shape.rank * (shape.out + shape.inside) for shape in shapes.values()),
        bytes=size,
        licence=_text(card.get("license")),
        layout=adapter.layout,
    )


def patterns(sizes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int, int]]:
    """Modules by name with * for numbers: (out, in, how many); by full name where the sizes of one differ."""
    starred = {name: starred_name(name) for name in sizes}
    kinds: dict[str, set[tuple[int, int]]] = {}
    for name, size in sizes.items():
        kinds.setdefault(starred[name], set()).add(size)
    called = {name: star if len(kinds[star]) == 1 else name for name, star in starred.items()}
    counts = Counter(called.values())
    return {called[name]: (*size, counts[called[name]]) for name, size in sizes.items()}


def starred_name(name: str) -> str:
    """A module's name with * for the numbers in its path."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def digest_of(found: Located) -> str:
    """First 16 hex digits of a SHA-256 of the settings, and of sizes and BLOCKS blocks of the weights.

    Adapters that differ in few numbers may share it; `Located.digest` reads every one. Errors: OSError.
    """
    whole = hashlib.sha256(found.config.read_bytes() if found.config else b"")
    for file in found.weights:
        size = file.stat().st_size
        whole.update(f"\n{size}\n".encode())
        with file.open("rb") as opened:
            last = max(0, size - BLOCK)
            for place in dict.fromkeys(math.floor(last * part / (BLOCKS - 1)) for part in range(BLOCKS)):
                opened.seek(place)
                whole.update(opened.read(BLOCK))
    return whole.hexdigest()[:16]


def _card(file: Path) -> dict[str, Any]:
    """The front matter of a model card, empty where there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        if not file.is_file() or file.stat().st_size > CARD:
            return {}
        return dict(metadata_load(file) or {})
    except Exception:  # of YAML by strangers anything; the licence is then not known
        return {}


def _text(value: object) -> str | None:
    """One line of text of unknown origin, the first of a list."""
    value = value[0] if isinstance(value, list) and value else value
    return " ".join(value.split())[:100] or None if isinstance(value, str) else None
