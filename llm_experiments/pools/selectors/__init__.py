"""Which adapters of a pool to merge: one score for each, the largest are taken.

    @selector("cosine", needs=("target",))
    def cosine(job: Selection) -> Scores: ...

in a file of this folder. A selector says what it needs besides the adapters, and is refused without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llm_experiments.adapters.reader import opened
from llm_experiments.adapters.weights import AdapterWeights, StoredModules
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import Example
from llm_experiments.pools.members import Member
from llm_experiments.registry import Registry
from toytransformer.merging import RuleError

#: What a selector may need: how that is said, and where it is not given.
NEEDS = {
    "target": "an adapter of the target task (--target)",
    "examples": "examples of the target task (--ask)",
    "model": "their base (--model)",
}


@dataclass(frozen=True)
class Selection:
    """What a selector is given. target: an adapter of the target task. examples: questions and answers of it.

    names: look at these modules alone, None for all; fewer are read. batch: examples run at once. tick:
    called with the adapters done and all of them.
    """

    members: Sequence[Member]
    seed: int = 0
    target: AdapterWeights | None = None
    examples: Sequence[Example] = ()
    model: LoadedModel | None = None
    names: frozenset[str] | None = None
    batch: int = 16
    tick: Callable[[int, int], None] = lambda done, all: None

    def adapters(self) -> Iterable[AdapterWeights]:
        """The adapters one after another, their numbers left in the files."""
        coming = (self._opened(member) for member in self.members)
        after = next(coming, None)
        done = 0
        while (adapter := after) is not None:
            after = next(coming, None)
            yield adapter
            self.tick(done := done + 1, len(self.members))

    def _opened(self, member: Member) -> AdapterWeights:
        """The adapter, which the system begins to read."""
        adapter = opened(member.source, name=member.id)
        adapter = adapter if self.names is None else adapter.only(self.names)
        if isinstance(adapter.modules, StoredModules):
            for name in adapter.modules:
                adapter.modules.ahead(name)
        return adapter


#: One score for each member, in their order.
Scores: TypeAlias = Sequence[float]
Selector: TypeAlias = Callable[[Selection], Scores]


@dataclass(frozen=True)
class NamedSelector:
    """An entry: the function, and which of NEEDS it cannot do without."""

    score: Selector
    needs: tuple[str, ...] = ()

    @property
    def formula(self) -> str:
        """The first line of its docstring."""
        return (self.score.__doc__ or "").strip().splitlines()[0]


SELECTORS: Registry[NamedSelector] = Registry("selector", "llm_experiments.pools.selectors")


def selector(name: str, *, needs: tuple[str, ...] = ()) -> Callable[[Selector], Selector]:
    """Enter a selector under a name."""

    def enter(function: Selector) -> Selector:
        SELECTORS.add(name, NamedSelector(function, needs))
        return function

    return enter


def select(name: str, job: Selection, count: int | None = None) -> list[tuple[Member, float]]:
    """The `count` members of largest score with it, the largest first, equal ones in the pool's order.

    NaN, of an adapter whose numbers overflow, comes last.

    None: all of them. Errors: RegistryError for an unknown selector, RuleError for one that lacks what it
    needs and a count that is no number of members.
    """
    chosen = SELECTORS[name]
    given = {"target": job.target, "examples": job.examples, "model": job.model}
    if lacking := [NEEDS[need] for need in chosen.needs if not given[need]]:
        raise RuleError(f"selector {name!r} needs {' and '.join(lacking)}")
    if count is not None and not 1 <= count <= len(job.members):
        raise RuleError(
            f"{count} of {len(job.members)} adapters cannot be selected; give 1 to {len(job.members)}"
        )
    scores = zip(job.members, chosen.score(job), strict=True)
    scored = sorted(scores, key=lambda pair: (math.isnan(pair[1]), -pair[1]))
    return scored[:count]
