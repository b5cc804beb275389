"""The files at the top of a folder of results: what its finished steps wrote, gathered by kind.

A step writes *.jsonl directly into its folder. The lines of one name make up one file, in the order of the
steps. Where there are cells (results.rows.CellInfo), the items and compositions that they name by hash are
added from the store's texts, so that results.files reads the folder.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.inputs import decoded
from llm_experiments.engine.sealing import StoreError, parsed, read_plain
from llm_experiments.engine.seals import Seal
from results.files import Measurements
from results.rows import Item, RowsError

#: What is added to the name of a kind of rows.
ENDING = ".gz"
ROWS, CELLS, ITEMS, SPECS = "rows.jsonl", "cells.jsonl", "items.jsonl", "specs.jsonl"


class Steps(Protocol):
    """Where finished steps and the texts they name are found."""

    def path(self, name: str) -> Path: ...

    def seal(self, name: str) -> Seal: ...

    def input(self, ref: Ref) -> bytes: ...

    def spec(self, ref: Ref) -> bytes: ...


def files(store: Steps, steps: Iterable[str]) -> list[str]:
    """The kinds of rows these steps have: names of *.jsonl directly in their folders, and what cells name."""
    written = {file for name in steps for file in store.seal(name)["files"]}
    kinds = {file for file in written if file.endswith(".jsonl") and "/" not in file}
    return sorted(kinds | {ITEMS, SPECS} if CELLS in kinds else kinds)


def lines(store: Steps, file: str, steps: Sequence[str]) -> Iterator[bytes]:
    """The lines of one kind, of these finished steps in their order."""
    holding = [name for name in steps if file in store.seal(name)["files"]]
    if file in (ITEMS, SPECS) and not holding:
        yield from _named(store, file, steps)
    for name in holding:
        yield from read_plain(store.path(name) / file).splitlines(keepends=True)


def packed(content: Iterable[bytes]) -> bytes:
    """Lines as gzip has them: equal lines, equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
        file.writelines(content)
    return buffer.getvalue()


def missing(store: Steps, steps: Sequence[str]) -> list[str]:
    """What is wrong with the texts that cells of these steps name: a line for each that cannot be used."""
    texts = (text for file in (ITEMS, SPECS) for _, text in _texts(store, file, steps))
    return [str(text) for text in texts if isinstance(text, StoreError)]


def _named(store: Steps, file: str, steps: Sequence[str]) -> Iterator[bytes]:
    """The texts that cells of these steps name; those that cannot be used are left out."""
    texts = Measurements()
    for ref, text in _texts(store, file, steps):
        if not isinstance(text, StoreError):
            (texts.items if file == ITEMS else texts.specs)[ref] = text
    yield from (line.encode() for line in texts.lines(file.removesuffix(".jsonl")))


def _texts(store: Steps, file: str, steps: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The items, or the spec, of each hash that cells name; a StoreError where they cannot be read."""
    key = "items" if file == ITEMS else "spec_hash"
    seen = {None}
    for line in lines(store, CELLS, steps):
        try:
            if (ref := parsed(line)[key]) in seen:
                continue
            seen.add(ref)
            if file == ITEMS:
                yield ref, tuple(Item(**item) for item in decoded(store.input(Ref(ref))))
            else:
                yield ref, parsed(store.spec(Ref(ref)))
        except StoreError as error:
            yield "", error
        except (KeyError, TypeError, RowsError) as error:
            yield "", StoreError(f"a cell has no {key} that can be used ({error})")
