"""A library of adapters measured from its weights alone: module by module, and over all of them.

    |sum_i Delta_i|^2 = sum_ij <Delta_i, Delta_j>,      cos_ij = <Delta_i, Delta_j> / (|Delta_i| |Delta_j|)

with inner products summed over modules. One module is held in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from llm_experiments.adapters.peft_files import AdapterWeights, check_library
from llm_experiments.diagnose.geometry import ModuleGeometry, reduced
from llm_experiments.diagnose.rules import GAUGES, Kept, kept, static_rules
from llm_experiments.merges.merging import module_seed
from toytransformer.adapters import AdapterError, LoRA
from toytransformer.arrays import NumpyArray as Array

#: Most adapters that are set beside one another.
MOST = 50
#: Largest norm of an update: products of two squares of it do not overflow.
LARGEST = 1e70
#: In about so many modules, spread over all, rules on factors are tried in other gauges.
GAUGED = 16


@dataclass(frozen=True)
class RuleFigures:
    """What a static rule makes of a library, over all modules.

    keeps: <M, Delta_i> / |Delta_i|^2, NaN for an adapter of zero. errors: standard errors of these, 0 where
    nothing was sampled. weights: the mixture nearest to M, argmin |M - sum_i w_i Delta_i|. own: the share of
    |M|^2 in it; the rest is what no fixed weights have. moves: |M' - M| / |M| in other factors of the same
    updates, by the name of the gauge; empty for a rule that does not depend on it.
    """

    keeps: Float[Array, " adapter"]
    errors: Float[Array, " adapter"]
    weights: Float[Array, " adapter"]
    own: float
    moves: Mapping[str, float]


@dataclass(frozen=True)
class LibraryGeometry:
    """The adapters' names and ranks, the geometry of every module, and what rules make of them."""

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    modules: Mapping[str, ModuleGeometry]
    rules: Mapping[str, RuleFigures]

    @cached_property
    def gram(self) -> Float[Array, "adapter adapter"]:
        """<Delta_i, Delta_j> over all modules."""
        return np.sum([module.gram for module in self.modules.values()], axis=0)

    @property
    def norms(self) -> Float[Array, " adapter"]:
        """|Delta_i|."""
        return np.sqrt(np.diag(self.gram))

    @property
    def cosines(self) -> Float[Array, "adapter adapter"]:
        """NaN where an adapter is zero."""
        return _ratio(self.gram, np.outer(self.norms, self.norms))

    @property
    def cosine_errors(self) -> Float[Array, "adapter adapter"]:
        """Standard deviation of the cosine if every update were turned at random in every module."""
        squares = [
            np.outer(np.diag(module.gram), np.diag(module.gram)) * module.cosine_variance
            for module in self._modules
        ]
        return _ratio(np.sqrt(np.sum(squares, axis=0)), np.outer(self.norms, self.norms))

    @property
    def energy(self) -> float:
        """|sum_i Delta_i|^2 / sum_i |Delta_i|^2: 1 where updates are orthogonal, NaN where all are zero."""
        total = float(np.trace(self.gram))
        return float(self.gram.sum()) / total if total else math.nan

    def overlap(self, side: str) -> Float[Array, "adapter adapter"]:
        """Overlap of the spaces the updates "read" from or "write" to, mean over modules by |D_i| |D_j|.

        NaN for adapters that share no module.
        """
        return self._mean([getattr(module, side) for module in self._modules])

    def chance(self, side: str) -> Float[Array, "adapter adapter"]:
        """What `overlap` would be of random spaces of the same dimensions, max(k_i, k_j) / n."""
        axis = {"write": 0, "read": 1}[side]
        counts = [[len(values) for values in module.values] for module in self._modules]
        parts = [
            np.where(np.minimum.outer(k, k) > 0, np.maximum.outer(k, k) / module.shape[axis], np.nan)
            for module, k in zip(self._modules, map(np.array, counts), strict=True)
        ]
        return self._mean(parts)

    @property
    def blocks(self) -> dict[int | None, Float[Array, " adapter"]]:
        """The share of each adapter's |Delta_i|^2 by the number of the block; None is outside the blocks."""
        numbered = {name: block_of(name) for name in self.modules}
        order = sorted(set(numbered.values()), key=lambda block: (block is None, block or 0))
        return {block: self._share(name for name in numbered if numbered[name] == block) for block in order}

    @property
    def kinds(self) -> dict[str, Float[Array, " adapter"]]:
        """The share of each adapter's |Delta_i|^2 by the last part of the modules' names."""
        last = {name: name.rpartition(".")[2] for name in self.modules}
        return {kind: self._share(n for n in last if last[n] == kind) for kind in sorted(set(last.values()))}

    @property
    def present(self) -> Array:
        """How many modules each adapter changes."""
        return np.sum([[len(values) > 0 for values in m.values] for m in self._modules], axis=0)

    @property
    def gaps(self) -> Float[Array, "module adapter"]:
        """(s_1 - s_2) / s_1 in every module, NaN where an adapter changes nothing."""
        return np.array([module.gaps for module in self._modules])

    @property
    def _modules(self) -> list[ModuleGeometry]:
        return list(self.modules.values())

    def _share(self, names: Iterable[str]) -> Float[Array, " adapter"]:
        part = np.sum([np.diag(self.modules[name].gram) for name in names], axis=0)
        return _ratio(part, np.diag(self.gram))

    def _mean(self, parts: Sequence[Float[Array, "adapter adapter"]]) -> Float[Array, "adapter adapter"]:
        roots = [np.sqrt(np.diag(module.gram)) for module in self._modules]
        weights = [
            np.where(np.isnan(part), 0.0, np.outer(root, root))
            for part, root in zip(parts, roots, strict=True)
        ]
        total = sum(weight * np.nan_to_num(part) for weight, part in zip(weights, parts, strict=True))
        return _ratio(np.asarray(total), np.sum(weights, axis=0))


def measure(
    library: Sequence[AdapterWeights],
    *,
    seed: int = 0,
    tick: Callable[[int, int], None] = lambda done, all: None,
) -> LibraryGeometry:
    """The geometry of a library, `tick(done, all)` after each module.

    seed: of what is drawn: samples of entries, masks, gauges. An adapter that lacks a module is zero there.
    Errors: AdapterError on fewer than 2 adapters or more than MOST, and as `check_library`.
    """
    if not 2 <= len(library) <= MOST:
        raise AdapterError(f"{len(library)} adapters cannot be set beside one another: give 2 to {MOST}")
    names = check_library(library, same_modules=False)
    rules = static_rules()
    modules, sums = {}, {rule.name: _Sum(len(library)) for rule in rules}
    every = -(-len(names) // GAUGED)
    for place, name in enumerate(names):
        adapters = factors(library, name)
        small = reduced(adapters)
        modules[name] = ModuleGeometry.of(adapters, small)
        if not np.all(np.diag(modules[name].gram) <= LARGEST**2):
            raise AdapterError(f"an update of {name} has a norm above {LARGEST:g}: scale that adapter down")
        drawn, gauges = module_seed(seed, name), place % every == 0
        for rule in rules:
            sums[rule.name].add(kept(rule, adapters, small, modules[name].gram, drawn, gauges=gauges))
        tick(place + 1, len(names))
    whole = np.sum([module.gram for module in modules.values()], axis=0)
    return LibraryGeometry(
        tuple(adapter.name for adapter in library),
        tuple(max(lora.rank for lora in adapter.modules.values()) for adapter in library),
        modules,
        {name: total.figures(whole) for name, total in sums.items()},
    )


def factors(library: Sequence[AdapterWeights], name: str) -> list[LoRA]:
    """A module's factors in float64 as NumPy arrays; zeros of rank one for an adapter without it."""
    given = [adapter.modules.get(name) for adapter in library]
    present = next(lora for lora in given if lora is not None)
    zero = LoRA(np.zeros((len(present.write), 1)), np.zeros((len(present.read), 1)))
    return [zero if lora is None else LoRA(_array(lora.write), _array(lora.read)) for lora in given]


def block_of(name: str) -> int | None:
    """The number of the block that a module lies in: the first number in its path."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


class _Sum:
    """What a rule makes of one module after another."""

    def __init__(self, count: int):
        self.products = np.zeros(count)
        self.variances = np.zeros(count)
        self.energy = 0.0
        self.moved, self.moved_energy = np.zeros(0), 0.0

    def add(self, one: Kept) -> None:
        self.products = self.products + one.products
        self.variances = self.variances + one.errors**2
        self.energy += one.energy
        if one.moved:
            self.moved = np.array(one.moved) + (self.moved if len(self.moved) else 0.0)
            self.moved_energy += one.energy

    def figures(self, updates: Float[Array, "adapter adapter"]) -> RuleFigures:
        norms = np.diag(updates)
        weights = np.linalg.lstsq(updates, self.products, rcond=None)[0]
        own = (
            min(1.0, max(0.0, float(weights @ self.products) / self.energy)) if self.energy else float("nan")
        )
        moves = np.sqrt(self.moved / self.moved_energy) if self.moved_energy else ()
        return RuleFigures(
            _ratio(self.products, norms),
            _ratio(np.sqrt(self.variances), norms),
            weights,
            own,
            dict(zip(GAUGES, map(float, moves), strict=True)) if len(moves) else {},
        )


def _array(factor: torch.Tensor) -> Array:
    return factor.detach().to("cpu", torch.float64).numpy()


def _ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
