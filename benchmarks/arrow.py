"""Arrow's prototypes at the size of Qwen2.5-7B's down projections: small Gram matrices against other routes.

The top right singular vector p of Delta W = B A of rank 16. Ours is `routing.prototype` in float64, as
`llm_experiments.merges` calls it; PEFT runs 15 power iterations in float32 from a random start; a dense SVD
forms Delta W. How far PEFT's vector is off depends on the spectrum: an error along the k-th direction shrinks
by (s_k / s_1)^30.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.case import Array, Case, Difference, Side, Work

#: Name -> the singular values of Delta W, or None for factors of independent normal entries.
SPECTRA = {
    "random factors": None,
    "singular values 0.95^k": 0.95 ** np.arange(16),
    "singular values 1/k": 1 / np.arange(1, 17),
}


def adapters(out: int, inn: int, spectrum: str, count: int) -> list[tuple[Array, Array]]:
    """(B, A^T) pairs in float32, as adapters are stored."""
    rng, values, pairs = np.random.default_rng(0), SPECTRA[spectrum], []
    for _ in range(count):
        write, read = rng.normal(size=(out, 16)), rng.normal(size=(inn, 16))
        if values is not None:
            write, read = np.linalg.qr(write)[0] * values, np.linalg.qr(read)[0]
        pairs.append((write.astype(np.float32), read.astype(np.float32)))
    return pairs


def exact(out: int, inn: int, spectrum: str, count: int) -> Work:
    import torch

    from toytransformer.adapters import LoRA
    from toytransformer.merging.routing import prototype

    torch.set_num_threads(1)
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in adapters(out, inn, spectrum, count)]

    def work() -> Array:
        return torch.stack([prototype(LoRA(b.double(), a.double()))[0] for b, a in pairs]).numpy()

    return work


def power_iteration(out: int, inn: int, spectrum: str, count: int) -> Work:
    from types import SimpleNamespace

    import torch
    from peft.tuners.lora.arrow import ArrowLoraLinearLayer

    torch.set_num_threads(1)
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in adapters(out, inn, spectrum, count)]
    # a method that reads one attribute of its layer
    iterate: Callable[..., torch.Tensor] = ArrowLoraLinearLayer.top_right_singular_vec_from_BA

    def work() -> Array:
        vectors = [
            iterate(SimpleNamespace(rng_seed=index), a.T, b).numpy() for index, (b, a) in enumerate(pairs)
        ]
        return np.stack(vectors)

    return work


def dense_svd(out: int, inn: int, spectrum: str, count: int) -> Work:
    import torch

    torch.set_num_threads(1)
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in adapters(out, inn, spectrum, count)]

    def work() -> Array:
        return torch.stack([torch.linalg.svd(b @ a.T, full_matrices=False)[2][0] for b, a in pairs]).numpy()

    return work


def angles(ours: Array, other: Array) -> float:
    """1 - |cos| between rows, on average."""
    ours, other = (np.asarray(x, float) for x in (ours, other))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.mean(1 - np.abs(np.sum(ours * other, axis=1)) / lengths))


def off_by(ours: Array, plain: Array) -> tuple[float, float]:
    """Reported and not asked: PEFT's vector may be anywhere."""
    return angles(ours, plain), 1.0


def same_direction(spectrum: str, inn: int) -> Difference:
    """Rounding to float32 turns p by about eps sqrt(in) s_1 / (s_1 - s_2); 1 - cos is of its square."""

    values = SPECTRA[spectrum]
    if values is None:
        raise ValueError(f"{spectrum!r} has no singular values of its own to tell how close the largest are")

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        turned = np.finfo(np.float32).eps * math.sqrt(inn) * values[0] / (values[0] - values[1])
        return angles(ours, plain), max(turned**2, 16 * np.finfo(np.float32).eps)

    return difference


def cases(small: bool = False) -> Iterator[Case]:
    """Against PEFT at full size, and against a dense SVD at half of both sides, where it takes seconds."""
    (out, inn), count = ((60, 300), 3) if small else ((3584, 18944), 8)
    for spectrum in SPECTRA:
        yield Case(
            "arrow",
            f"prototypes of {count} adapters {out:,} x {inn:,}, {spectrum}; plain is PEFT's power iteration, "
            "apart is the mean 1 - |cos|",
            Side(exact, (out, inn, spectrum, count)),
            Side(power_iteration, (out, inn, spectrum, count)),
            off_by,
        )
    half, spectrum = (out // 2, inn // 2), "singular values 1/k"
    yield Case(
        "arrow",
        f"the same of 1 adapter {half[0]:,} x {half[1]:,}, {spectrum}; plain is a dense SVD (8 times as long "
        "at full size)",
        Side(exact, (*half, spectrum, 1)),
        Side(dense_svd, (*half, spectrum, 1), repeats=0),
        same_direction(spectrum, half[1]),
        ratio=100,
    )
