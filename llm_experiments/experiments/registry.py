"""Named experiments, each a function entered by `@experiment`: from a study to the steps that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.steps import Plan, Step
from llm_experiments.experiments.sizes import Profile
from llm_experiments.experiments.study import DEV_NAMES, Base, Study
from llm_experiments.registry import Registry
from llm_experiments.steps.adapters import TrainAdapter
from llm_experiments.steps.asking import Ask
from toytransformer.compositions import SpecError

OfStudy = TypeVar("OfStudy", bound=Study)
Steps = Callable[[OfStudy], Iterable[Step]]


@dataclass(frozen=True)
class Work:
    """What an experiment asks for: adapters, training examples seen (with repeats), questions answered.

    questions: without those on which a temperature is chosen and an adapter's own task is checked.
    """

    adapters: int
    examples: int
    questions: int

    @classmethod
    def of(cls, plan: Plan) -> Work:
        """What a plan with nothing finished has to do."""
        trained = [step for step in plan.order() if isinstance(step, TrainAdapter)]
        asked = [step for step in plan.order() if isinstance(step, Ask)]
        return cls(
            adapters=len(trained),
            examples=sum(step.training.seen(_lines(plan, step.examples)) for step in trained),
            questions=sum(_lines(plan, step.reading.items) for step in asked),
        )


@dataclass(frozen=True)
class Experiment:
    """A named experiment: how its steps are planned, one line about it, its place in the paper.

    needs: the domains whose tasks it asks. study: the kind of study it is planned with.
    """

    name: str
    steps: Callable[..., Iterable[Step]] = field(repr=False)
    about: str
    source: str
    needs: tuple[str, ...] = ()
    study: type[Study] = Study

    def plan(self, base: Base, profile: Profile, seeds: Sequence[int], names: Sequence[int] = (0,)) -> Plan:
        """The steps whose results are wanted, each once, in a fixed order, and all they need.

        seeds: of the training. names: draws of names, each a world of its own with adapters of its own.
        Errors: SpecError on none or one given twice, and on the draw that choices are made on.
        """
        for what, drawn in (("seeds", seeds), ("names", names)):
            if not drawn or len(set(drawn)) < len(drawn) or min(drawn) < 0:
                raise SpecError(f"{what} {list(drawn)}: give at least one, each once, none below 0")
        if DEV_NAMES in names:
            raise SpecError(f"names {DEV_NAMES} is the draw on which temperatures are chosen: give others")
        plan = Plan()
        for draw in names:
            plan.want(*self.steps(self.study(base, profile, tuple(seeds), draw, plan)))
        return plan

    def work(self, base: Base, profile: Profile, seeds: Sequence[int], names: Sequence[int] = (0,)) -> Work:
        """What a run with nothing finished has to do; closed-form edits train nothing."""
        return Work.of(self.plan(base, profile, seeds, names))


def _lines(plan: Plan, ref: Ref) -> int:
    return plan.inputs[ref].count(b"\n")


EXPERIMENTS: Registry[Experiment] = Registry(
    "experiment", "llm_experiments.experiments", "llm_experiments.domains"
)


def experiment(
    name: str, *, about: str, source: str, needs: tuple[str, ...] = (), study: type[Study] = Study
) -> Callable[[Steps[OfStudy]], Steps[OfStudy]]:
    """Enter a function from a study to the steps wanted as an experiment."""

    def enter(steps: Steps[OfStudy]) -> Steps[OfStudy]:
        EXPERIMENTS.add(name, Experiment(name, steps, about, source, needs, study))
        return steps

    return enter
