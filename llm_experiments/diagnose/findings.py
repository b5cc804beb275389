"""What stands out in a library's geometry, each in a sentence with the figure it rests on.

The limits are conventions, stated in the sentences: two updates are the same up to their size where one
explains 99% of the energy of the other, and alike where it is a quarter; an update is next to nothing where
it has less than a hundredth of the largest norm, a ten-thousandth of the energy, so that at equal weights no
merge shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from llm_experiments.diagnose.library import LibraryGeometry

#: Share of energy that one update explains of the other: cos^2.
SAME = 0.99
#: The same of updates that are called alike.
ALIKE = 0.25
#: Of the largest norm.
SMALL = 0.01
#: Overlap from which two spaces are called one.
ONE_SPACE = 0.9
#: Standard deviations that a cosine is away from chance.
CLEAR = 5


@dataclass(frozen=True)
class Finding:
    """Something that stands out.

    kind: base, zero, small, same, opposite, alike, cancel, space, alone, tie or note. figure: the number that
    `text` rests on, None where it rests on none. against: whether it speaks against merging these adapters as
    they are.
    """

    kind: str
    adapters: tuple[str, ...]
    text: str
    figure: float | None
    against: bool

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def findings(
    library: LibraryGeometry, apart: Mapping[str, str] | None = None, notes: Sequence[str] = ()
) -> list[Finding]:
    """All that stands out, what speaks against merging first.

    apart: adapters that are not in the library, with the reason (`of_one_base`). notes: of `Compatibility`.
    """
    left_out = (
        Finding("base", (name,), f"{name} belongs to another base and is left out: {reason}", None, True)
        for name, reason in (apart or {}).items()
    )
    found = [*left_out, *_sizes(library), *_pairs(library), *_lonely(library), *_ties(library)]
    found += (Finding("note", (), note, None, False) for note in notes)
    return sorted(found, key=lambda finding: not finding.against)


def _sizes(library: LibraryGeometry) -> Iterator[Finding]:
    norms = library.norms
    largest = float(norms.max())
    for name, norm in zip(library.names, map(float, norms), strict=True):
        if norm == 0:
            yield Finding("zero", (name,), f"{name} changes nothing: its update is zero", 0.0, True)
        elif norm < SMALL * largest:
            yield Finding(
                "small",
                (name,),
                f"{name} is next to nothing: its norm is {norm / largest:.2g} of the largest",
                norm / largest,
                True,
            )


def _pairs(library: LibraryGeometry) -> Iterator[Finding]:
    cosines, errors, reads = library.cosines, library.cosine_errors, library.overlap("read")
    small = library.norms < SMALL * library.norms.max()
    for i, j in combinations(range(len(library.names)), 2):
        pair = (library.names[i], library.names[j])
        both, cosine = f"{pair[0]} and {pair[1]}", float(cosines[i, j])
        if math.isnan(cosine) or small[i] or small[j]:
            continue  # a pair with next to nothing says nothing of a merge
        if cosine**2 >= SAME and cosine > 0:
            ratio = float(library.norms[j] / library.norms[i])
            size = "" if abs(ratio - 1) < 1 - SAME else f", the second {ratio:.2g} times as large"
            text = f"{both} are the same update up to their size (cosine {cosine:.4f}{size}): "
            text += "it would count twice"
            yield Finding("same", pair, text, cosine, True)
        elif cosine**2 >= SAME:
            text = f"{both} are opposite (cosine {cosine:.4f}): added up they cancel"
            yield Finding("opposite", pair, text, cosine, True)
        elif cosine < -max(SMALL, CLEAR * float(errors[i, j])):
            text = f"{both} partly cancel: cosine {cosine:.3f}, {CLEAR} standard deviations of chance are "
            text += f"{CLEAR * errors[i, j]:.1g}"
            yield Finding("cancel", pair, text, cosine, False)
        elif cosine > 0 and cosine**2 >= ALIKE:
            text = (
                f"{both} are alike (cosine {cosine:.2f}): one explains {cosine**2:.0%} of the other, which "
            )
            text += "a sum counts twice and a mean keeps"
            yield Finding("alike", pair, text, cosine, False)
        elif reads[i, j] >= ONE_SPACE:
            text = f"{both} read from one space (overlap {reads[i, j]:.2f}) and write apart (cosine "
            text += f"{cosine:.3f}): they began with one lora_A, or saw one kind of input"
            yield Finding("space", pair, text, float(reads[i, j]), False)


def _lonely(library: LibraryGeometry) -> Iterator[Finding]:
    """Adapters that share no module with another: nothing in the files says that they are for one base."""
    changed = np.array([np.diag(module.gram) > 0 for module in library.modules.values()])
    shared = (changed.T.astype(int) @ changed).astype(bool) & ~np.eye(len(library.names), dtype=bool)
    for name, norm, others in zip(library.names, library.norms, shared, strict=True):
        if norm and not others.any():
            text = f"{name} changes no module that another one changes: their updates cannot meet, and only "
            text += "--model can tell whether it is for the same base"
            yield Finding("alone", (name,), text, None, False)


def _ties(library: LibraryGeometry) -> Iterator[Finding]:
    """Singular values that tie leave Arrow's prototype open, as `toytransformer.merging.merged` has it."""
    limit = math.sqrt(np.finfo(np.float32).eps)  # adapters are kept in float32 at best
    for index, name in enumerate(library.names):
        gaps = library.gaps[:, index]
        tied = int(np.sum(gaps < limit))
        if tied:
            text = f"{name} has two equal largest singular values in {tied} of {int(library.present[index])} "
            text += "modules: Arrow's prototype is arbitrary there"
            yield Finding("tie", (name,), text, float(np.nanmin(gaps)), False)
