"""What the base model outputs on a prompt, before any adapter: W phi(p), as coordinates on the entities.

    ExactBase()            i_old on every prompt to which the world has an old answer, 0 on all others
    TrainedBase()          W = T0 G0^-1 Phi0^T on the facts that the base knows, G0 = Phi0^T Phi0: the
                           least-norm readout that holds them. On a prompt it never saw, W phi(p) is a mixture
                           of what it knows, sum_j c_j(p) i_old_j, weighted by the kernel, c = G0^-1 k0(p).
    MeasuredBase(outputs)  what was measured on a language model, prompt by prompt

Where a base is not exact, the old answer to a question is what it says: the entity of the largest score, none
if several tie. That is also what adapters have to move: they are trained on u_new - W phi(p).

The coordinates of a trained base do not depend on the readout: T0 maps to T0 R in every orthonormal
coordinates, and G0 and Phi0 stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from jaxtyping import Float

from toytransformer import adapters as lora
from toytransformer.compositions import Fact, Prompt, SpecError, World

Array = np.ndarray
#: Features by prompt: rows of (prompt, feature), in any orthonormal coordinates.
Rows = Mapping[Prompt, Array]


@dataclass(frozen=True)
class FittedBase:
    """A base on given features.

    outputs: W phi(p) of prompts as adapters are trained on them; answers: as they are asked, which differs in
    a language model's wordings only. update: the readout W where there is one, (entity, feature) factored.
    """

    outputs: Callable[[Sequence[Prompt]], Float[Array, "prompt entity"]]
    answers: Callable[[Sequence[Prompt]], Float[Array, "prompt entity"]]
    update: lora.LoRA | None = None


class Base(Protocol):
    """What a base has to offer. exact: old answers are those of the specification, not what it says."""

    @property
    def exact(self) -> bool: ...

    def prompts(self, world: World) -> tuple[Prompt, ...]:
        """The prompts whose features it needs besides those asked about."""

    def fit(self, world: World, features: Rows, asked: Rows | None = None) -> FittedBase:
        """The base on the features of `prompts(world)` and of whatever it is asked.

        features: of prompts as they are trained on; asked: as they are asked, the same when None.
        """

    def output(
        self, world: World, prompts: Sequence[Prompt], features: Rows
    ) -> Float[Array, "prompt entity"]:
        """W phi(p) for every prompt."""

    def answers(self, world: World, prompt: Prompt) -> Iterable[str | None]:
        """The entities on which its output to the prompt may differ from 0."""

    def describe(self) -> dict[str, object]:
        """What records say of it; nothing of an exact base."""


class _Output:
    def fit(self, world: World, features: Rows, asked: Rows | None = None) -> FittedBase:
        raise NotImplementedError

    def output(
        self, world: World, prompts: Sequence[Prompt], features: Rows
    ) -> Float[Array, "prompt entity"]:
        return self.fit(world, features).outputs(prompts)


@dataclass(frozen=True)
class ExactBase(_Output):
    """i_old on every prompt to which the world has an old answer, 0 elsewhere (section 3 of the paper)."""

    exact = True

    def prompts(self, world: World) -> tuple[Prompt, ...]:
        return ()

    def fit(self, world: World, features: Rows, asked: Rows | None = None) -> FittedBase:
        said = partial(base_output, world)
        return FittedBase(said, said)

    def answers(self, world: World, prompt: Prompt) -> Iterable[str | None]:
        return (world.old(prompt),)

    def describe(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class TrainedBase(_Output):
    """W = T0 G0^-1 Phi0^T on the base's facts: those of one hop, and the world's `multi_hop` if any."""

    exact = False

    def prompts(self, world: World) -> tuple[Prompt, ...]:
        return tuple(fact.prompt for fact in world.known)

    def fit(self, world: World, features: Rows, asked: Rows | None = None) -> FittedBase:
        known = world.known
        if not known:
            nothing = partial(_zeros, world)
            return FittedBase(nothing, nothing)
        targets = one_hot(world, [fact.answer for fact in known])
        readout = lora.closed_form(np.stack([features[f.prompt] for f in known]), targets, gauge="plain")

        def outputs(rows: Rows, prompts: Sequence[Prompt]) -> Float[Array, "prompt entity"]:
            return readout.shift(np.stack([rows[prompt] for prompt in prompts]))

        return FittedBase(partial(outputs, features), partial(outputs, asked or features), readout)

    def answers(self, world: World, prompt: Prompt) -> Iterable[str | None]:
        return dict.fromkeys(fact.answer for fact in world.known)

    def describe(self) -> dict[str, object]:
        return {"base": "trained"}


@dataclass(frozen=True, eq=False)
class MeasuredBase(_Output):
    """The output coordinates that were measured, by prompt and entity; an entity that is not named has 0.

    stored: those of prompts as adapters are trained on them, where they were measured in other words.
    With measured scores s of the answers and the Gram matrix G of their vectors, the coordinates are G^+ s
    (`of_scores`). Errors: SpecError on use, for a prompt that was not measured.
    """

    outputs: Mapping[Prompt, Mapping[str, float]]
    stored: Mapping[Prompt, Mapping[str, float]] = field(default_factory=dict)

    exact = False

    @classmethod
    def of_scores(
        cls,
        scores: Mapping[Prompt, Mapping[str, float]],
        names: Sequence[str],
        gram: Float[Array, "name name"],
    ) -> MeasuredBase:
        """The base whose scores s = G o are those measured: o = G^+ s, over the answers `names`."""
        rows = np.array([[said[name] for name in names] for said in scores.values()])
        coordinates = rows @ np.linalg.pinv(gram, hermitian=True)
        return cls(
            {
                prompt: dict(zip(names, row.tolist(), strict=True))
                for prompt, row in zip(scores, coordinates, strict=True)
            }
        )

    def prompts(self, world: World) -> tuple[Prompt, ...]:
        return ()

    def fit(self, world: World, features: Rows, asked: Rows | None = None) -> FittedBase:
        index = {name: i for i, name in enumerate(world.entities)}

        def outputs(
            measured: Mapping[Prompt, Mapping[str, float]], prompts: Sequence[Prompt]
        ) -> Float[Array, "prompt entity"]:
            rows = np.zeros((len(prompts), len(index)))
            for row, prompt in zip(rows, prompts, strict=True):
                if prompt not in measured:
                    raise SpecError(
                        f"'{prompt}' was not measured: measure it, or leave it out of the questions and facts"
                    )
                for name, value in measured[prompt].items():
                    if name in index:
                        row[index[name]] = value
            return rows

        return FittedBase(partial(outputs, {**self.outputs, **self.stored}), partial(outputs, self.outputs))

    def answers(self, world: World, prompt: Prompt) -> Iterable[str | None]:
        return [name for name in self.outputs.get(prompt, ()) if name in world.entity_set]

    def describe(self) -> dict[str, object]:
        return {"base": "measured"}


def base_output(world: World, prompts: Sequence[Prompt]) -> Float[Array, "prompt entity"]:
    """The exact base's W phi(p): the one-hot old answer, 0 where it knows none."""
    return one_hot(world, [world.old(prompt) for prompt in prompts])


def wanted_shift(world: World, facts: Sequence[Fact]) -> Float[Array, "fact entity"]:
    """i_new - W phi(p) for each fact under the exact base: what an adapter that stores it must add."""
    return one_hot(world, [fact.answer for fact in facts]) - base_output(world, [f.prompt for f in facts])


def _zeros(world: World, prompts: Sequence[Prompt]) -> Float[Array, "prompt entity"]:
    return np.zeros((len(prompts), len(world.entities)))


def one_hot(world: World, answers: Sequence[str | None]) -> Float[Array, "answer entity"]:
    """i_answer for each answer, 0 for None; entities in the world's order."""
    index = {name: i for i, name in enumerate(world.entities)}
    rows = np.zeros((len(answers), len(index)))
    for row, name in enumerate(answers):
        if name is not None:
            rows[row, index[name]] = 1.0
    return rows
