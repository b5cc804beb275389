"""What every experiment plans with: steps on a task, for one base model under one profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from llm_experiments.adapters.recipe import Training
from llm_experiments.domains.task import Task
from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.steps import Plan
from llm_experiments.experiments.sizes import Profile
from llm_experiments.steps.adapters import GivenAdapter, RandomAdapter, TrainAdapter
from llm_experiments.steps.asking import About, Ask, Reading, Sweep
from results.rows import Scalar
from toytransformer.compositions import Composition, Merge

#: The draw of names, and the training seed, of the libraries on which temperatures are chosen. No cell that
#: is measured has this draw, so that what is chosen was chosen on other entities.
DEV_NAMES, DEV_SEED = 1_000_003, 0


@dataclass(frozen=True)
class Base:
    """What planning has to know of a base model: its id, the hash of its content, and the world it knows."""

    id: str
    digest: str
    world: Any = None


@dataclass(frozen=True)
class Study:
    """Steps for one base model under one profile, on one draw of names, entered into a plan."""

    base: Base
    profile: Profile
    seeds: tuple[int, ...]
    names: int
    plan: Plan = field(compare=False)

    @cached_property
    def other(self) -> Self:
        """The same on the draw of names that temperatures are chosen on."""
        return replace(self, names=DEV_NAMES, seeds=(DEV_SEED,))

    def train(
        self, task: Task, name: str, training: Training, seed: int, index: int, **about: Scalar
    ) -> Address:
        """An adapter of the task. index: which of a library's it is. about: for its label only."""
        taught = task.training[name]
        return self.plan.add(
            TrainAdapter(
                title=" ".join([name, "of", _title(task), *_parenthesis(about)]),
                digest=self.base.digest,
                examples=taught.examples,
                own_task=taught.own_task,
                scorer=task.scorer,
                context=taught.context,
                training=training,
                seed=seed,
                index=index,
            )
        )

    def given(self, task: Task, name: str, source: str, content: str, own_task: Ref | None) -> Address:
        """An adapter that somebody has. content: its digest. own_task: what it is said to know."""
        return self.plan.add(
            GivenAdapter(
                title=f"{name} of {_title(task)}",
                source=source,
                content=content,
                digest=self.base.digest,
                own_task=own_task,
                scorer=task.scorer,
                context=task.context,
            )
        )

    def random(self, of: Address, seed: int) -> Address:
        """The random control of an adapter."""
        return self.plan.add(RandomAdapter(self.plan.steps[of].label, of, seed))

    def sweep(self, task: Task, library: Mapping[str, Address], merge: Merge, **about: Scalar) -> Address:
        """A temperature for the merge of a library, chosen on the task's development items."""
        if task.dev is None:
            raise ValueError(f"task {task.name!r} has no development items to choose a temperature on")
        return self.plan.add(
            Sweep(
                title=" ".join([_title(task), _merged(library, merge), *_parenthesis(about)]),
                digest=self.base.digest,
                reading=Reading(task.dev, task.scorer, task.context),
                library=library,
                merge=merge,
                temperatures=self.profile.temperatures,
                chosen_by={"chosen_by": task.chosen_by, "chosen_names": task.names},
            )
        )

    def ask(
        self,
        task: Task,
        library: Mapping[str, Address],
        merge: Merge,
        *,
        base: Address | None,
        seed: int | None = None,
        layers: str | None = None,
        control: str | None = None,
        variant: Mapping[str, Scalar] | None = None,
        sweep: Address | None = None,
        fit: Ref | None = None,
        training: Training | None = None,
        gauge: str = "as trained",
    ) -> Ask:
        """The task's items put to the base with a library merged; base: the step that asked it alone."""
        variant = dict(variant or {})
        about = {"seed": seed, "layers": layers, "control": control, **variant}
        return Ask(
            title=" ".join([_title(task), _merged(library, merge), *_parenthesis(about)]),
            digest=self.base.digest,
            about=About(
                task.domain, task.name, task.setting, task.dataset, task.names, self._spec_hash(task, merge)
            ),
            reading=Reading(task.items, task.scorer, task.context, task.candidates),
            library=library,
            merge=merge,
            base=base,
            sweep=sweep,
            seed=seed,
            layers=layers,
            variant=variant,
            control=control,
            fit=fit,
            training=training,
            gauge=gauge,
        )

    def ask_base(self, task: Task) -> Ask:
        """What the base model says without adapters: a control, and the old answers of every merge."""
        return self.ask(task, {}, Merge("sum"), base=None, control="base")

    def _spec_hash(self, task: Task, merge: Merge) -> str | None:
        """Of the task's composition under the merge, whose JSON is kept; None where nothing predicts it."""
        if task.composition is None:
            return None
        composition = Composition.from_json(self.plan.spec(task.composition)).with_merge(merge)
        return str(self.plan.add_spec(composition.to_json()))


def _title(task: Task) -> str:
    """A task in a label."""
    draw = f", names {task.names}" if task.names else ""
    return task.name + (f" on {task.dataset}" if task.dataset else "") + draw


def _merged(library: Mapping[str, Address], merge: Merge) -> str:
    """A library and its merge in a label."""
    if not library:
        return "base"
    weights = "" if merge.weights is None else f" {merge.weights}"
    options = "".join(f" {name}={value}" for name, value in merge.option_dict.items())
    return f"{'+'.join(library)} by {merge.rule}{weights}{options}"


def _parenthesis(about: Mapping[str, Scalar]) -> Sequence[str]:
    text = ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)
    return [f"({text})"] if text else []
