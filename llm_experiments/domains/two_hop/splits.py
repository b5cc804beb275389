"""Which facts are trained in which paraphrases, and which questions are then asked in which.

"template": all facts are trained and all questions asked, in other paraphrases (the paper's split, 46/2/2).
"entity": some triplets are kept out of everything that goes two hops, plain or in steps; questions ask about
these, in paraphrases that were trained. "both": about these, in other paraphrases.
One-hop facts are trained for every triplet: without them nobody could know the answer.
"""

import random
from dataclasses import dataclass, replace

from llm_experiments.domains.two_hop.templates import COUNT, DEV, TEST, TRAIN
from toytransformer.compositions import Adapter, Composition, Prompt, Question

SPLITS = ("template", "entity", "both")
PARTS = ("train", "dev", "test")


class SplitError(ValueError):
    """A split that cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Split:
    """How trained and asked are kept apart.

    name: one of SPLITS. share: of the triplets in dev and again in test, at least one each; seed: draws them.
    train, dev, test: numbers of the paraphrases, disjoint.
    Errors: SplitError on an unknown name, a share outside (0, 0.5) and paraphrases in two parts.
    """

    name: str = "template"
    share: float = 0.1
    seed: int = 0
    train: tuple[int, ...] = tuple(TRAIN)
    dev: tuple[int, ...] = DEV
    test: tuple[int, ...] = TEST

    def __post_init__(self) -> None:
        if self.name not in SPLITS:
            raise SplitError(f"split {self.name!r} is unknown: use one of {', '.join(SPLITS)}")
        if not 0 < self.share < 0.5:
            raise SplitError(
                f"share {self.share!r} of the triplets in each of dev and test: use 0 < share < 0.5"
            )
        for part in PARTS:
            object.__setattr__(self, part, tuple(getattr(self, part)))
        numbers = (*self.train, *self.dev, *self.test)
        if len(set(numbers)) < len(numbers) or not all(0 <= k < COUNT for k in numbers) or not self.train:
            raise SplitError(
                f"train {self.train}, dev {self.dev}, test {self.test}: give each paraphrase of 0 .. "
                f"{COUNT - 1} to one part at most, and train at least one"
            )

    def templates(self, part: str) -> tuple[int, ...]:
        """Paraphrases in which the questions of "dev" or "test" are asked, or "train" facts are trained.

        Where only entities are held out, questions use as many trained ones as the part has of its own.
        """
        _check_part(part)
        if self.name == "entity" and part != "train":
            return self.train[: len(getattr(self, part))]
        return getattr(self, part)

    def held_out(self, composition: Composition, part: str) -> tuple[str, ...]:
        """Start entities of the triplets kept for "dev" or "test" (none are in a template split).

        Errors: SplitError when there are too few triplets to keep some for each part.
        """
        _check_part(part, PARTS[1:])
        if self.name == "template":
            return ()
        starts = sorted({q.prompt.entity for q in composition.questions if q.prompt.hops > 1})
        kept = max(1, round(self.share * len(starts)))
        if 2 * kept >= len(starts):
            raise SplitError(
                f"{len(starts)} triplets of {composition.name!r} cannot keep {kept} each for dev and test: "
                "ask for more triplets or a smaller share"
            )
        drawn = random.Random(f"held-out entities:{self.seed}").sample(starts, 2 * kept)
        return tuple(sorted(drawn[:kept] if part == "dev" else drawn[kept:]))

    def trained(self, composition: Composition, adapter: Adapter) -> Adapter:
        """The adapter without the facts and chains of several hops about held-out entities.

        Its facts and chains, each in every one of templates("train"), are what is trained.
        Errors: SplitError when nothing is left.
        """
        if self.name == "template":
            return adapter
        out = {*self.held_out(composition, "dev"), *self.held_out(composition, "test")}
        facts = tuple(f for f in adapter.facts if f.prompt.hops == 1 or f.prompt.entity not in out)
        chains = tuple(f for f in adapter.chains if f.prompt.entity not in out)
        if not facts and not chains:
            raise SplitError(f"nothing of adapter {adapter.name!r} is left to train: use a smaller share")
        return replace(adapter, facts=facts, chains=chains)

    def questions(self, composition: Composition, part: str = "test") -> tuple[tuple[Question, int], ...]:
        """The questions of "dev" or "test", each with the paraphrase it is asked in.

        Where entities are held out: those about their triplets, single hops included.
        """
        _check_part(part, PARTS[1:])
        questions = composition.questions
        if self.name != "template":
            about = _triplets(composition, self.held_out(composition, part))
            questions = tuple(q for q in questions if q.prompt.entity in about)
        return tuple((question, k) for question in questions for k in self.templates(part))


def _check_part(part: str, allowed: tuple[str, ...] = PARTS) -> None:
    if part not in allowed:
        raise SplitError(f"part {part!r} of a split is unknown: use one of {', '.join(allowed)}")


def _triplets(composition: Composition, starts: tuple[str, ...]) -> set[str]:
    """The start entities, and the entities in between that their questions go through."""
    about = set(starts)
    for question in composition.questions:
        prompt = question.prompt
        if prompt.entity in starts:
            steps = (Prompt(prompt.entity, prompt.relations[:k]) for k in range(1, prompt.hops))
            about |= {answer for step in steps if (answer := composition.world.truth(step)) is not None}
    return about
