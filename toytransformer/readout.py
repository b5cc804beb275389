"""How answers are read off the output: the score of an entity is s = G o, for output coordinates o.

The output W phi is a vector sum_e o_e u_e in some space, and an entity's score is its product with that
entity's vector, s_e = sum_e' <u_e, u_e'> o_e', so s = G o with the Gram matrix G = U^T U of the u_e: in a
language model, of the rows of its unembedding.

    OneHot()               G = I: every answer is as far from every other one
    Typed(t)               G = (1 - t) I + t [same kind]: places lie together, and people
    Gram(names, matrix)    any G, such as a language model's own

An adapter is trained on changes of the *output vector*, u_new - W phi(p), and its norm is taken there. In
coordinates R = G^1/2 (symmetric) that space is orthonormal: changes become changes @ R, adapters are trained
and merged there as ever, and scores are output @ R. R is the one choice of orthonormal coordinates that
commutes with renaming the answers; only rules that act on single entries of Delta W see the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Float
from scipy import sparse

from toytransformer.compositions import World

Array = np.ndarray

#: Eigenvalues of G below this, relative to its largest, are rounding; so is an asymmetry of that size.
ROUNDING = 1e-10


class ReadoutError(ValueError):
    """A readout that means nothing; the message names the value, what is allowed and what to do."""


class Coordinates(Protocol):
    """The symmetric root R of a readout on one world's entities.

    largest: the largest row sum of |R|, by which a rounding error grows under R; 1 for one-hot answers.
    """

    @property
    def largest(self) -> float: ...

    def apply(self, rows: Float[Array, "row entity"]) -> Float[Array, "row entity"]:
        """rows @ R."""


class Readout(Protocol):
    """What a readout has to offer."""

    def on(self, world: World) -> Coordinates:
        """Its root on the entities of a world. Errors: ReadoutError where the two do not fit."""

    def root(self, world: World) -> Float[Array, "entity entity"]:
        """The dense symmetric R with R R = G, entities in the world's order."""

    def describe(self) -> dict[str, object]:
        """What records say of it; nothing of one-hot answers."""


class _Rooted:
    def on(self, world: World) -> Coordinates:
        raise NotImplementedError

    def root(self, world: World) -> Float[Array, "entity entity"]:
        return self.on(world).apply(np.eye(len(world.entities)))

    def gram(self, world: World) -> Float[Array, "entity entity"]:
        """G itself, entities in the world's order."""
        root = self.root(world)
        return root @ root


class _Identity:
    largest: float = 1.0

    def apply(self, rows: Float[Array, "row entity"]) -> Float[Array, "row entity"]:
        return rows


@dataclass(frozen=True)
class OneHot(_Rooted):
    """G = I: an output is read off entity by entity."""

    def on(self, world: World) -> Coordinates:
        return _Identity()

    def sector(self, world: World, names: Sequence[str], weights: Float[Array, "name"]) -> Coordinates:
        """The identity, as in every sector of interchangeable entities."""
        return _Identity()

    def describe(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class _Grouped:
    """R = a I + sum_k b_k w_k w_k^T, w_k weights on the members of kind k: the root of a^2 I + t w_k w_k^T.

    a = sqrt(1 - t) and a + b_k |w_k|^2 = sqrt(1 - t + t |w_k|^2); members: the w_k, (entity, kind).
    """

    inner: float
    added: Float[Array, "kind"]
    members: sparse.csr_array

    @cached_property
    def largest(self) -> float:
        """a + b_k |w_k|_1 max w: the row sums are positive."""
        rows = self.members @ (self.added * self.members.sum(axis=0))
        return self.inner + float(np.max(rows, initial=0.0))

    def apply(self, rows: Float[Array, "row entity"]) -> Float[Array, "row entity"]:
        return self.inner * rows + ((rows @ self.members) * self.added) @ self.members.T


@dataclass(frozen=True)
class Typed(_Rooted):
    """G = (1 - t) I + t [same kind], 0 <= t < 1: entities of one kind have vectors at cosine t, others at 0.

    kinds: the kind of every entity by name; None for those the world's facts imply (World.kinds).
    Errors: ReadoutError on another t (at 1 entities of one kind cannot be told apart).
    """

    t: float
    kinds: Mapping[str, str] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.t, bool) or not isinstance(self.t, int | float) or not 0 <= self.t < 1:
            raise ReadoutError(
                f"t is {self.t!r}; it must be a number from 0 to below 1 (at 1 entities of one kind cannot "
                "be told apart)"
            )
        object.__setattr__(self, "t", float(self.t))

    def kind_of(self, world: World) -> Mapping[str, str]:
        """The kind of every entity of the world."""
        if self.kinds is None:
            return world.kinds
        if missing := [entity for entity in world.entities if entity not in self.kinds]:
            raise ReadoutError(f"entity {missing[0]!r} has no kind: give the kinds of all, or None")
        return {entity: self.kinds[entity] for entity in world.entities}

    def on(self, world: World) -> Coordinates:
        return self.sector(world, world.entities, np.ones(len(world.entities)))

    def sector(self, world: World, names: Sequence[str], weights: Float[Array, "name"]) -> Coordinates:
        """The root of (1 - t) I + t w w^T [same kind] on entities of the world, one weight each.

        Of weight sqrt(n) it is G on the mean of n interchangeable entities, of weight 0 on deviations from it
        (toytransformer.symmetry).
        """
        kinds = self.kind_of(world)
        number = {kind: i for i, kind in enumerate(dict.fromkeys(kinds[name] for name in names))}
        column = np.array([number[kinds[name]] for name in names])
        count, inner = len(names), math.sqrt(1 - self.t)
        members = sparse.csr_array((weights, (np.arange(count), column)), shape=(count, len(number)))
        sizes = np.bincount(column, weights=weights**2)
        added = (np.sqrt(1 - self.t + self.t * sizes) - inner) / np.where(sizes > 0, sizes, 1.0)
        return _Grouped(inner, added, members)

    def describe(self) -> dict[str, object]:
        return {"typed": self.t}


@dataclass(frozen=True)
class _Dense:
    matrix: Float[Array, "entity entity"]

    @cached_property
    def largest(self) -> float:
        return float(np.abs(self.matrix).sum(axis=1).max())

    def apply(self, rows: Float[Array, "row entity"]) -> Float[Array, "row entity"]:
        return rows @ self.matrix


@dataclass(frozen=True, eq=False)
class Gram(_Rooted):
    """Any Gram matrix G of the answers' vectors, (name, name) in the order of `names`.

    name: what records call it. Errors: ReadoutError on a matrix that is not finite, symmetric and positive
    semidefinite, or not of the size of the names; on use, on an entity without a row.
    """

    names: tuple[str, ...]
    matrix: Float[Array, "name name"]
    name: ClassVar[str] = "gram"

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, float)
        if len(set(self.names)) != len(self.names) or matrix.shape != (len(self.names),) * 2:
            raise ReadoutError(
                f"the Gram matrix has shape {matrix.shape} and there are {len(self.names)} names; give each "
                "name once and a row and a column for each"
            )
        scale = np.abs(matrix).max(initial=0.0)
        if not np.isfinite(scale) or not np.abs(matrix - matrix.T).max(initial=0.0) <= ROUNDING * scale:
            raise ReadoutError("the Gram matrix of the readout must be finite and symmetric: give U^T U")
        lowest = float(np.linalg.eigvalsh(matrix)[0]) if len(matrix) else 0.0
        if lowest < -ROUNDING * scale * len(matrix):
            raise ReadoutError(
                f"the Gram matrix of the readout has the eigenvalue {lowest:.2e}; inner products have none "
                "below 0: give U^T U"
            )
        object.__setattr__(self, "matrix", matrix)

    def on(self, world: World) -> Coordinates:
        index = {name: i for i, name in enumerate(self.names)}
        if missing := [entity for entity in world.entities if entity not in index]:
            raise ReadoutError(
                f"entity {missing[0]!r} has no row in the Gram matrix of the readout: add it, or use a world "
                f"of its {len(self.names)} names"
            )
        chosen = [index[entity] for entity in world.entities]
        values, vectors = np.linalg.eigh(self.matrix[np.ix_(chosen, chosen)])
        return _Dense((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)

    def describe(self) -> dict[str, object]:
        return {"readout": self.name}
