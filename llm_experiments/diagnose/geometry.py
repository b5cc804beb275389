"""How the updates of one module lie to one another, from their factors alone: no out x in matrix is formed.

Delta_i = write_i read_i^T, write (out, rank), read (in, rank). All inner products of updates and of what is
made of them by products and sums of factors stay the same when the rows of all write factors, and of all read
factors, are replaced by their coordinates in an orthonormal basis of what they span (`reduced`).

NumPy arrays in float64. An adapter that does not change the module has factors of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.arrays import NumpyArray as Array
from toytransformer.arrays import rounding


def gram(adapters: Sequence[LoRA]) -> Float[Array, "adapter adapter"]:
    """<Delta_i, Delta_j>_F = tr(read_i^T read_j write_j^T write_i): the Gram trace.

    The two products of all factors are multiplied entry by entry and summed by pairs of adapters. Ranks may
    differ.
    """
    writes, reads = (np.concatenate(side, axis=1) for side in _sides(adapters))
    products = (writes.T @ writes) * (reads.T @ reads)
    starts = np.cumsum([0, *(lora.rank for lora in adapters)])[:-1]
    return np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)


def reduced(adapters: Sequence[LoRA]) -> list[LoRA]:
    """The factors in coordinates: write'_i^T write'_j = write_i^T write_j, and the same for read.

    Each factor has at most as many rows as all adapters together have columns. R of [F_1, .., F_n] = Q R has
    the coordinates in Q, which is not needed.
    """
    cuts = np.cumsum([lora.rank for lora in adapters])[:-1]
    small = [
        np.split(np.linalg.qr(np.concatenate(side, axis=1), mode="r"), cuts, axis=1)
        for side in _sides(adapters)
    ]
    return [LoRA(write, read) for write, read in zip(*small, strict=True)]


def padded(adapters: Sequence[LoRA]) -> list[LoRA]:
    """The same updates in factors of one rank: columns of zeros up to the largest."""
    rank = max(lora.rank for lora in adapters)
    return [
        lora
        if lora.rank == rank
        else LoRA(*(np.pad(side, ((0, 0), (0, rank - lora.rank))) for side in (lora.write, lora.read)))
        for lora in adapters
    ]


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of one update, without the directions that are zero.

    left: (out, k), right: (in, k), in the coordinates of the factors that were given. values: (k,).
    """

    left: Float[Array, "out k"]
    values: Float[Array, " k"]
    right: Float[Array, "in k"]

    @classmethod
    def of(cls, lora: LoRA) -> Spectrum:
        """By thin QRs; values below rounding, relative to |write| |read|, count as zero."""
        left, values, right = lora.svd()
        scale = float(np.linalg.norm(lora.write) * np.linalg.norm(lora.read))
        kept = values > rounding(values) * scale
        return cls(left[:, kept], values[kept], right[:, kept])

    @property
    def gap(self) -> float:
        """(s_1 - s_2) / s_1: 1 for rank one, NaN for an update of zero."""
        if not len(self.values):
            return float("nan")
        second = self.values[1] if len(self.values) > 1 else 0.0
        return float((self.values[0] - second) / self.values[0])


def overlaps(bases: Sequence[Float[Array, "row k"]]) -> Float[Array, "adapter adapter"]:
    """|Q_i^T Q_j|_F^2 / min(k_i, k_j) of orthonormal bases: 1 where one space holds the other, 0 where they
    are orthogonal; NaN where one is empty.

    It is the mean squared cosine of the principal angles. Of random spaces in n dimensions it is
    max(k_i, k_j) / n on average.
    """
    count = len(bases)
    found = np.full((count, count), np.nan)
    for i in range(count):
        for j in range(i, count):
            fewer = min(bases[i].shape[1], bases[j].shape[1])
            if fewer:
                found[i, j] = found[j, i] = np.sum((bases[i].T @ bases[j]) ** 2) / fewer
    return found


@dataclass(frozen=True)
class ModuleGeometry:
    """One module of a library.

    shape: (out, in). gram: <Delta_i, Delta_j>_F. values: singular values of each update. read, write: overlap
    of the spaces that the updates read from (their row spaces, those of lora_A) and write to (their column
    spaces, those of lora_B).
    """

    shape: tuple[int, int]
    gram: Float[Array, "adapter adapter"]
    values: tuple[Float[Array, " k"], ...]
    gaps: Float[Array, " adapter"]
    read: Float[Array, "adapter adapter"]
    write: Float[Array, "adapter adapter"]

    @classmethod
    def of(cls, adapters: Sequence[LoRA], small: Sequence[LoRA] | None = None) -> ModuleGeometry:
        """small: `reduced(adapters)`, where it is there already."""
        spectra = [Spectrum.of(lora) for lora in small or reduced(adapters)]
        return cls(
            (len(adapters[0].write), len(adapters[0].read)),
            gram(adapters),
            tuple(spectrum.values for spectrum in spectra),
            np.array([spectrum.gap for spectrum in spectra]),
            overlaps([spectrum.right for spectrum in spectra]),
            overlaps([spectrum.left for spectrum in spectra]),
        )

    @property
    def cosine_variance(self) -> float:
        """1 / (out in): the mean of cos^2 between two updates, one of them turned at random on both sides.

        For Haar-random U and V, E <U D_1 V^T, D_2>^2 = |D_1|^2 |D_2|^2 / (out in), whatever their spectra.
        """
        return 1 / (self.shape[0] * self.shape[1])


def _sides(adapters: Sequence[LoRA]) -> tuple[list[Array], list[Array]]:
    return [lora.write for lora in adapters], [lora.read for lora in adapters]
