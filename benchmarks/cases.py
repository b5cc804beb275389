"""Every case, in order: those of toytransformer, then those of language models."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import arrow, evaluation, merging, theory, together
from benchmarks.case import Case


def cases(small: bool = False) -> Iterator[Case]:
    """`small`: sizes that take a moment; the targets then mean nothing."""
    for module in (theory, arrow, merging, together, evaluation):
        yield from module.cases(small)
