"""The best approximation of a merged update by a rank, without a dense SVD of a large matrix.

A factored update is cut by thin QRs and a small SVD. A dense one, as rules on single entries leave it, in the
block Krylov space of random directions (Musco, Musco, arXiv 1504.05477): with STEPS steps of MORE columns
beside those that are kept the loss is within a thousandth of the best one, also where the singular values
hardly fall, as then every space is about as good. So is a factored one of many columns, as the sum of a pool
of adapters: no dense matrix is formed, and what is lost is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch

from toytransformer.adapters import LoRA

Times = Callable[[torch.Tensor], torch.Tensor]

#: Columns of a block beside those that are kept, and blocks behind the first.
MORE, STEPS = 10, 4
#: Factors with so many times the columns of a block are cut in such a space: it is then quicker than QRs.
WIDE = 16
#: Rows of a dense matrix whose distance to a factored one is taken at a time.
ROWS = 512


@dataclass(frozen=True)
class Cut:
    """The largest singular directions of an update, in falling order, and what the whole update is.

    lora: write = U sqrt(s), read = V sqrt(s). values: s. energy: |Delta|^2; of a `wide` update
    the part in the directions found, exactly, and an unbiased estimate of the rest.
    """

    lora: LoRA
    values: torch.Tensor
    energy: float

    def to(self, rank: int) -> LoRA:
        """The first `rank` directions, or all."""
        return LoRA(self.lora.write[:, :rank], self.lora.read[:, :rank])

    def lost(self, rank: int) -> float:
        """|Delta - to(rank)|^2, up to the rounding of |Delta|^2."""
        return max(0.0, self.energy - float(torch.sum(self.values[:rank] ** 2)))


def cut(update: LoRA | torch.Tensor, rank: int, seed: int = 0) -> Cut:
    """The update's largest `rank` singular directions; fewer where it has not so many.

    seed: of the random directions that a large dense matrix is tried on.
    """
    if wide(update, rank):
        left, values, right, rest = _sketched(update, rank + MORE, seed)
        energy = float(torch.sum(values.double() ** 2)) + rest
    elif isinstance(update, LoRA):
        left, values, right = update.svd()
        energy = float(torch.sum(values.double() ** 2))
    else:
        energy = norm(update) ** 2
        left, values, right = _directions(update, rank + MORE, seed)
    noise = max(len(left), len(right)) * torch.finfo(values.dtype).eps * values[0]
    kept = min(rank, max(1, int(torch.sum(values > noise))))
    root = torch.sqrt(values[:kept])
    return Cut(LoRA(left[:, :kept] * root, right[:, :kept] * root), values[:kept].double(), energy)


def wide(update: LoRA | torch.Tensor, rank: int) -> TypeGuard[LoRA]:
    """Whether factors have so many columns that a cut to `rank` is a randomised one."""
    columns = rank + MORE
    return (
        isinstance(update, LoRA)
        and (STEPS + 1) * columns < min(len(update.write), len(update.read))
        and WIDE * columns < update.rank
    )


def _sketched(
    update: LoRA, columns: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """The largest singular triples of W R^T in the space Q of `_krylov`, and |(1 - Q Q^T) W R^T|^2.

    For G of standard normal columns E |A G|^2 = columns |A|^2, which estimates the second from columns that
    Q has not seen, with a relative standard deviation of sqrt(2 / (columns k)), k = |A|_F^4 / |A^T A|_F^2.
    """
    generator = torch.Generator(device=update.write.device).manual_seed(seed)

    def drawn() -> torch.Tensor:
        return torch.randn(
            len(update.read), columns, generator=generator, dtype=update.read.dtype, device=update.read.device
        )

    def times(x: torch.Tensor) -> torch.Tensor:
        return update.write @ (update.read.T @ x)

    def back(x: torch.Tensor) -> torch.Tensor:
        return update.read @ (update.write.T @ x)

    basis = _krylov(times, back, drawn())
    small = back(basis).T
    left, values, right_t = torch.linalg.svd(small, full_matrices=False)
    other = times(drawn())
    other = other - basis @ (basis.T @ other)
    rest = float(torch.sum(torch.linalg.vector_norm(other, dim=0).double() ** 2)) / columns
    return basis @ left, values, right_t.T, rest


def _directions(update: torch.Tensor, columns: int, seed: int) -> tuple[torch.Tensor, ...]:
    """U, s, V of a dense update in the space of `_krylov`; all of it where that has no more directions."""
    if (STEPS + 1) * columns >= min(update.shape):
        left, values, right_t = torch.linalg.svd(update, full_matrices=False)
        return left, values, right_t.T
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(update.shape[1], columns, generator=generator, dtype=update.dtype)
    basis = _krylov(update.__matmul__, update.T.__matmul__, start)
    left, values, right_t = torch.linalg.svd(basis.T @ update, full_matrices=False)
    return basis @ left, values, right_t.T


def _krylov(times: Times, back: Times, start: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of [Y, (D D^T) Y, .. (D D^T)^STEPS Y], Y = D X, for the directions X = `start`.

    times, back: x -> D x, x -> D^T x.
    """
    blocks = [torch.linalg.qr(times(start))[0]]
    for _ in range(STEPS):
        blocks.append(torch.linalg.qr(times(back(blocks[-1])))[0])
    return torch.linalg.qr(torch.cat(blocks, 1))[0]


def smallest_rank(cuts: Sequence[Cut], loss: float) -> int | None:
    """The least rank, one for all updates, with sqrt(sum |Delta - cut|^2 / sum |Delta|^2) <= loss.

    None where the cuts hold too few directions.
    """
    total = sum(one.energy for one in cuts)
    largest = max(len(one.values) for one in cuts)
    for rank in range(1, largest + 1):
        if math.sqrt(sum(one.lost(rank) for one in cuts)) <= loss * math.sqrt(total):
            return rank
    return None


def norm(update: LoRA | torch.Tensor) -> float:
    """|update|_F; of factors tr(read^T read write^T write) under a root, in double precision."""
    if isinstance(update, LoRA):
        return math.sqrt(max(0.0, _traced(update.write.double(), update.read.double())))
    return math.sqrt(float(torch.sum(torch.linalg.vector_norm(update, dim=1).double() ** 2)))


def _traced(write: torch.Tensor, read: torch.Tensor) -> float:
    """|write read^T|_F^2 = tr(write^T write read^T read)."""
    return float(torch.sum((write.T @ write) * (read.T @ read)))


def distance(update: LoRA | torch.Tensor, other: LoRA) -> float:
    """|update - other|_F, of a dense matrix some rows at a time; see `norm_and_distance`."""
    return norm_and_distance(update, other)[1]


def norm_and_distance(update: LoRA | torch.Tensor, other: LoRA) -> tuple[float, float]:
    """|update|_F and |update - other|_F, of a dense matrix some rows at a time.

    Of factors of one rank the difference is e r^T + w' f^T, e = w - w' and f = r - r', whose square is
    tr(e^T e r^T r) + 2 tr(e^T w' (r^T f)^T) + tr(w'^T w' f^T f): this keeps its digits where both are nearly
    the same, and has less to do where one side is the same. Of other factors it is exact to the root of
    rounding, relative to |update|.
    """
    if isinstance(update, LoRA):
        w, r = update.write.double(), update.read.double()
        others, other_r = other.write.double(), other.read.double()
        if update.rank != other.rank:
            apart = _traced(torch.cat([w, -others], 1), torch.cat([r, other_r], 1))
        else:
            e, f = w - others, r - other_r
            moved, turned = bool(e.count_nonzero()), bool(f.count_nonzero())
            apart = _traced(e, r) if moved else 0.0
            if turned:
                apart += _traced(others, f)
            if moved and turned:
                apart += 2 * float(torch.sum((e.T @ others) * (r.T @ f)))
        return math.sqrt(max(0.0, _traced(w, r))), math.sqrt(max(0.0, apart))
    squares = 0.0
    for first in range(0, len(update), ROWS):
        rows = slice(first, first + ROWS)
        rest = update[rows] - (other.write[rows].to(update) @ other.read.to(update).T)
        squares += float(torch.sum(torch.linalg.vector_norm(rest, dim=1).double() ** 2))
    return norm(update), math.sqrt(squares)
