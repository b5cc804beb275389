"""By likeness of an adapter's update D to that of an adapter of the target, T.

    <D, T> / |D| |T|          cosine: from the factors, no out x in matrix
    sum |D_ab T_ab|           abs, over the same norms
    sum max(0, D_ab T_ab)     clamp, over the same norms
    root of <D^2, T^2> / |D^2| |T^2|, squares entry by entry        quasi-fisher

Each is computed module by module and averaged over the modules that either changes, 0 where only one does:
"micro" of the code of arXiv 2602.12323, which adds 1e-6 under its roots. D^2 stands in for the diagonal of
the Fisher information that pi-tuning compares (arXiv 2304.14381).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.merges.merging import converted
from llm_experiments.pools.selectors import Scores, Selection, selector
from toytransformer.adapters import LoRA
from toytransformer.merging import RuleError

#: Rows of dense updates that are compared at a time.
ROWS = 512
#: Of one module of the target and of a candidate the likeness of their updates.
Likeness = Callable[[LoRA, LoRA], float]


@selector("cosine", needs=("target",))
def cosine(job: Selection) -> Scores:
    """<D, T> / |D| |T| by module, from the factors."""
    return _scores(job, lambda d, t: _ratio(_inner(d, t), _inner(d, d), _inner(t, t)))


@selector("abs", needs=("target",))
def absolute(job: Selection) -> Scores:
    """sum |D_ab T_ab| / |D| |T| by module."""
    return _scores(
        job, lambda d, t: _ratio(_entries(d, t, lambda x, y: (x * y).abs()), _inner(d, d), _inner(t, t))
    )


@selector("clamp", needs=("target",))
def clamped(job: Selection) -> Scores:
    """sum max(0, D_ab T_ab) / |D| |T| by module."""
    return _scores(
        job,
        lambda d, t: _ratio(_entries(d, t, lambda x, y: (x * y).clamp(min=0)), _inner(d, d), _inner(t, t)),
    )


@selector("quasi-fisher", needs=("target",))
def quasi_fisher(job: Selection) -> Scores:
    """The root of <D^2, T^2> / |D^2| |T^2|, squares entry by entry, mean over modules."""

    def squares(d: LoRA, t: LoRA) -> float:
        return _entries(d, t, lambda x, y: x**2 * y**2)

    found = _scores(job, lambda d, t: _ratio(squares(d, t), squares(d, d), squares(t, t)))
    return [math.sqrt(score) for score in found]


@selector("distance", needs=("target",))
def distance(job: Selection) -> Scores:
    """-|D - T|^2 over all modules, an absent one being zero."""
    assert job.target is not None
    target = _single(job.target)
    own = {name: _inner(t, t) for name, t in target.items()}
    found = []
    for adapter in job.adapters():
        apart = 0.0
        _shared(adapter, target)
        for name in sorted({*adapter.modules, *target}):
            d = _factors(adapter, name) if name in adapter.modules else None
            apart += 0.0 if d is None else _inner(d, d)
            apart += own.get(name, 0.0)
            apart -= 2 * _inner(d, target[name]) if d is not None and name in target else 0.0
        found.append(-apart)
    return found


def _scores(job: Selection, likeness: Likeness) -> list[float]:
    assert job.target is not None  # as `select` made sure
    target = _single(job.target)
    found, any_shared = [], False
    for adapter in job.adapters():
        shared = _shared(adapter, target)
        values = [likeness(_factors(adapter, name), target[name]) for name in shared]
        found.append(sum(values) / len({*adapter.modules, *target}))
        any_shared = any_shared or bool(shared)
    if not any_shared:
        raise RuleError(
            f"the target's adapter {job.target.name!r} changes no module that one of these does, so none is "
            "like it: give one of their base (--target), or the target's base (--base)"
        )
    return found


def _shared(adapter: AdapterWeights, target: Mapping[str, LoRA]) -> list[str]:
    """The modules that both change. Errors: RuleError where their sizes differ."""
    shared = [name for name in adapter.modules if name in target]
    for name in shared:
        size, wanted = adapter.shape(name).size, (len(target[name].write), len(target[name].read))
        if size != wanted:
            raise RuleError(
                f"{name}: (out, in) is {size} in {adapter.name!r}, {wanted} in the target's adapter, of "
                "another base: give one of the pool's (--target), or the target's base (--base)"
            )
    return shared


def _single(adapter: AdapterWeights) -> dict[str, LoRA]:
    return {name: _factors(adapter, name) for name in adapter.modules}


def _factors(adapter: AdapterWeights, name: str) -> LoRA:
    return converted(adapter.modules[name], torch.float32)


def _inner(d: LoRA, t: LoRA) -> float:
    """<D, T> = sum of (write_D^T write_T) * (read_D^T read_T), entry by entry."""
    return float(((d.write.T @ t.write) * (d.read.T @ t.read)).sum(dtype=torch.float64))


def _entries(d: LoRA, t: LoRA, of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
    """The sum of a function of the entries of both, some rows at a time."""
    total = 0.0
    for first in range(0, len(d.write), ROWS):
        rows = slice(first, first + ROWS)
        total += float(of(d.write[rows] @ d.read.T, t.write[rows] @ t.read.T).sum(dtype=torch.float64))
    return total


def _ratio(product: float, one: float, other: float) -> float:
    """product / root(one other), 0 where an update is zero."""
    return product / math.sqrt(one * other) if one > 0 and other > 0 else 0.0
