"""What merging returns: an update that is the same for every prompt, or one that is routed prompt by prompt.

Whoever applies a merge, the toy or a language model, uses `Merged`, `Static` and `Routed` and nothing else,
so a rule may return classes of its own. Most return a StaticMerge, or derive from RoutedMerge and say how
prompts are routed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from array_api_compat import array_namespace, device
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.arrays import Array, Convert, epsilon, rounding


@dataclass(frozen=True)
class Mixing:
    """With which weights a merge adds up its adapters' updates, for the law of `toytransformer.mixture`.

        Delta = sum_i own_i D_i + sum_{i<j} cross_ij (write_i read_j^T + write_j read_i^T)

    own: (adapter,), or (prompt, adapter) where it is routed. cross: (pair,) or (prompt, pair), pairs (i, j),
    i < j, in the order of itertools.combinations; None for a rule of products, which has no cross terms.
    pruned: whether D_i is what the rule makes of adapter i alone at weight 1, in place of Delta_i itself.
    """

    own: tuple[float, ...] | Float[Array, "..."]
    cross: tuple[float, ...] | Float[Array, "..."] | None = None
    pruned: bool = False


class Merged(Protocol):
    """What every rule returns.

    spectral_gap: the smallest relative gap below the largest singular value of an adapter, where the rule
    routes by singular vectors; None elsewhere. details: what the rule says of itself, as plain data: fitted
    weights, seeds, gaps; a "warning" where the result is not determined.
    """

    @property
    def spectral_gap(self) -> float | None: ...

    @property
    def details(self) -> Mapping[str, Any]: ...

    @property
    def rank(self) -> int | None:
        """How many columns its factors have, None for a dense update."""

    def shift(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt entity"]:
        """What the merge adds to the output of each prompt."""

    def to(self, update: Convert, gate: Convert | None = None) -> Merged:
        """The same merge with its arrays converted to another device or precision.

        update: converts what makes the shift. gate: converts what only routes; like `update` by default.
        """


class Static(Merged, Protocol):
    """A merge with one update Delta for all prompts."""

    def factored(self, rank: int | None = None) -> LoRA:
        """Delta as a LoRA: exact up to rounding, or the best approximation of that rank."""

    def distance(self, other: LoRA | None = None) -> float:
        """|Delta - other|_F; |Delta|_F without another."""


@runtime_checkable
class Routed(Merged, Protocol):
    """A merge whose update differs from prompt to prompt: adapters weighted by the prompt."""

    def routing(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt adapter"]:
        """The weights of the adapters on each prompt."""

    def mixed(
        self, features: Float[Array, "prompt feature"], routing: Float[Array, "prompt adapter"]
    ) -> Float[Array, "prompt entity"]:
        """The shift under given weights; `shift(x)` is `mixed(x, routing(x))`."""


@dataclass(frozen=True)
class StaticMerge:
    """The same update for every prompt: a LoRA where the formula keeps one, else a dense matrix.

    mixing: the weights of the updates in it; None where it is no such sum (TIES, a truncation, ..).
    """

    update: LoRA | Float[Array, "entity feature"]
    details: Mapping[str, object] = field(default_factory=dict)
    spectral_gap: None = None
    mixing: Mixing | None = None

    @property
    def rank(self) -> int | None:
        return self.update.rank if isinstance(self.update, LoRA) else None

    def delta(self) -> Float[Array, "entity feature"]:
        """The dense update."""
        return self.update.delta() if isinstance(self.update, LoRA) else self.update

    def shift(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt entity"]:
        return self.update.shift(features) if isinstance(self.update, LoRA) else features @ self.update.T

    def to(self, update: Convert, gate: Convert | None = None) -> StaticMerge:
        return replace(self, update=converted(self.update, update))

    def factored(self, rank: int | None = None) -> LoRA:
        """A LoRA as it is, a dense update by its SVD down to rounding, or the best one of that rank."""
        if isinstance(self.update, LoRA):
            if rank is None or rank >= self.update.rank:
                return self.update
            left, values, right = self.update.svd()
        else:
            xp = array_namespace(self.update)
            left, values, right_t = xp.linalg.svd(self.update, full_matrices=False)
            right = right_t.T
        xp = array_namespace(values)
        noise = max(len(left), len(right)) * epsilon(values) * values[0]
        count = max(1, int(xp.sum(xp.astype(values > noise, xp.int64))))
        count = min(count, rank or count)
        root = xp.sqrt(values[:count])
        return LoRA(left[:, :count] * root, right[:, :count] * root)

    def distance(self, other: LoRA | None = None) -> float:
        """|Delta - other|_F, without forming products of factors where both are factored."""
        xp = array_namespace(self.update.write if isinstance(self.update, LoRA) else self.update)
        if not isinstance(self.update, LoRA):
            difference = self.update if other is None else self.update - other.delta()
            return float(xp.linalg.vector_norm(difference))
        rest = self.update
        if other is not None:
            rest = LoRA(
                xp.concat([rest.write, -other.write], axis=1), xp.concat([rest.read, other.read], axis=1)
            )
        return float(xp.linalg.vector_norm(rest.svd()[1]))


@dataclass(frozen=True)
class RoutedMerge:
    """Adapters weighted prompt by prompt; a rule derives from it and defines `routing`.

    factor_wise: the weights mix the factors, (sum_i w_i write_i)(sum_j w_j read_j)^T, and not the products.
    Fields of a derived class that hold arrays route, and are converted with `gate`.
    """

    adapters: tuple[LoRA, ...]
    factor_wise: bool = field(default=False, kw_only=True)
    details: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    spectral_gap: float | None = field(default=None, kw_only=True)

    @property
    def rank(self) -> int:
        return sum(lora.rank for lora in self.adapters)

    def routing(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt adapter"]:
        """The weights of the adapters on each prompt."""
        raise NotImplementedError(f"{type(self).__name__} has to define how prompts are routed")

    def shift(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt entity"]:
        """sum_i w_i Delta_i phi, or factor-wise (sum_i w_i write_i)(sum_j w_j read_j)^T phi."""
        return self.mixed(features, self.routing(features))

    def mixed(
        self, features: Float[Array, "prompt feature"], routing: Float[Array, "prompt adapter"]
    ) -> Float[Array, "prompt entity"]:
        """The shift under given weights of the adapters: two products with all factors side by side."""
        xp = array_namespace(features, routing)
        together, owner = self._together
        weights = xp.take(routing, owner, axis=1)
        seen = weights * (features @ together.read)
        if self.factor_wise:
            count, rank = len(self.adapters), self.adapters[0].rank
            mean = xp.sum(xp.reshape(seen, (-1, count, rank)), axis=1)
            seen = weights * xp.concat([mean] * count, axis=1)
        return together.written(seen)

    @cached_property
    def _together(self) -> tuple[LoRA, Array]:
        """All factors side by side, and the adapter to which each column belongs."""
        together = concatenated(self.adapters, (1,) * len(self.adapters))
        xp = array_namespace(together.read)
        owner = [index for index, lora in enumerate(self.adapters) for _ in range(lora.rank)]
        return together, xp.asarray(owner, device=device(together.read))

    def to(self, update: Convert, gate: Convert | None = None) -> RoutedMerge:
        own = {part.name for part in fields(RoutedMerge)}
        gates = {
            part.name: converted(getattr(self, part.name), gate or update)
            for part in fields(self)
            if part.name not in own
        }
        return replace(self, adapters=converted(self.adapters, update), **gates)


def undetermined(gap: float, vector: Array, values: str, result: str) -> dict[str, str]:
    """The warning, as a part of `details`, that singular vectors are arbitrary; empty where they are not.

    gap: the relative gap between `values`. Rounding moves a singular vector by about eps / gap: below
    sqrt(eps) less than half the digits of `vector`'s precision are left.
    """
    if gap >= math.sqrt(epsilon(vector)):
        return {}
    agree = "are equal" if gap <= rounding(vector) else f"agree up to a relative gap of {gap:.1e}"
    return {"warning": f"{values} {agree}, so {result} is arbitrary; do not rely on this result"}


def converted(value: object, convert: Convert) -> Any:
    """The value with every array in it converted: an array, a LoRA, or a tuple of such; the rest as it is."""
    if isinstance(value, LoRA):
        return LoRA(convert(value.write), convert(value.read))
    if isinstance(value, tuple):
        return tuple(converted(part, convert) for part in value)
    return convert(value) if hasattr(value, "shape") else value


def concatenated(adapters: Sequence[LoRA], weights: Sequence[float]) -> LoRA:
    """[w_1 write_1, ..., w_n write_n] [read_1, ..., read_n]^T = sum_i w_i Delta_i."""
    xp = array_namespace(adapters[0].write)
    return LoRA(
        xp.concat(
            [lora.write if w == 1 else w * lora.write for w, lora in zip(weights, adapters, strict=True)],
            axis=1,
        ),
        xp.concat([lora.read for lora in adapters], axis=1),
    )
