"""Steps that take adapters from a pool and fit them on examples; two, so that what is taken is kept first.

    Selected    lines of kind "task" and "selected": the adapters of each choice, and what the theory says
                that they explain (toytransformer.spans); nothing is merged for them
    Recycled    lines of kind "measured": the questions that a merge, or what it has to beat, answers

A line "measured" has for every question log p of its answer, in nats, and whether greedy decoding writes it
to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_experiments.adapters.recipe import Training
from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.diagnose.answers import AnswerSheet, Scores
from llm_experiments.domains.task import Example, read_examples
from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.context import Context
from llm_experiments.engine.steps import Resources, Step
from llm_experiments.merges import fitted, merging
from llm_experiments.origin import origin
from llm_experiments.pools import published
from llm_experiments.pools.controls import CONTROLS, Setting
from llm_experiments.pools.law import by_law
from llm_experiments.pools.members import Member, local_member
from llm_experiments.pools.published import Recipe
from llm_experiments.pools.selectors import Selection, select
from llm_experiments.steps.adapters import read_library
from results.rows import Scalar
from toytransformer import spans
from toytransformer.compositions import Merge, replace_file
from toytransformer.merging import RULES

#: The lines of both steps; a run gathers them under this name.
FILE = "recycled.jsonl"
#: The adapter of all facts of the target, and that of some of them. Every other one of a pool is a stranger.
TARGET, KIN = "target", "kin"
#: Which adapters there are to choose from.
POOLS = {
    "target": "all of them; the target's own is taken first",
    "kin": "all but the target's own",
    "strangers": "those of other worlds",
}
#: How what is chosen is merged.
METHODS: Mapping[str, Recipe] = {
    "adaptive": published.ADAPTIVE,
    "lorahub": published.LORAHUB,
    "mean": Recipe(Merge("mean")),
}
#: The sum whose weights have the least loss by the mixture law, from the base and each adapter alone: no
#: merge is looked at, and what it will answer is foretold.
LAW = "mixture law"
#: Methods that a whole pool is too large for.
FEW = ("lorahub",)
#: Controls of choices that do not look at the adapters, by pool; the methods that they are measured under.
BESIDE = {
    "target": ("drawn", "norms", "shuffled"),
    "kin": (),
    "strangers": ("drawn-alone", "norms-alone", "shuffled"),
}
CONTROLLED = ("adaptive", LAW)


@dataclass(frozen=True)
class Pool:
    """Adapters by name. facts: ref of what each stores, lines {"adapter", "facts"} (spans.facts_of)."""

    adapters: Mapping[str, Address]
    facts: Ref

    def names(self, pool: str) -> tuple[str, ...]:
        """Those of a pool of POOLS."""
        without = {"target": (), "kin": (TARGET,), "strangers": (TARGET, KIN)}[pool]
        return tuple(name for name in self.adapters if name not in without)


@dataclass(frozen=True)
class Asked:
    """What is fitted on and asked.

    examples: ref of Examples. questions: of lines {"question", "answer", "cluster", "shown"}, the last saying
    whether an example has the same fact in other words. facts: of lines {"fact", "old", "shown"}, the target.
    """

    examples: Ref
    questions: Ref
    facts: Ref


@dataclass(frozen=True)
class Choice:
    """Adapters taken from a pool of POOLS by a selector; count None: all of them."""

    pool: str
    rule: str
    count: int | None

    @property
    def about(self) -> dict[str, Scalar]:
        return {"pool": self.pool, "rule": self.rule, "count": self.count}


@dataclass(frozen=True)
class Selected(Step):
    """The adapters that each choice takes, and what the theory says of them.

    seed: of what is drawn. about: what the lines say of the target. title: for people only.
    """

    kind = "selected"
    resources = Resources(model=True)

    title: str = field(compare=False)
    digest: str
    pool: Pool
    asked: Asked
    choices: tuple[Choice, ...]
    seed: int
    about: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"selection on {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        stored = spans.facts_of(context.input(self.pool.facts))
        target = [
            spans.Wanted(spans.fact_of(line["fact"]), line["old"], line["shown"])
            for line in context.input(self.asked.facts)
        ]
        questions = context.input(self.asked.questions)
        shown = sum(one.shown > 0 for one in target)
        lines: list[Mapping[str, object]] = [
            {
                "kind": "task",
                "selected": self.address,
                "base": context.model.id,
                "digest": self.digest,
                **self.about,
                "pool": list(self.pool.adapters),
                "facts": len(target),
                "facts_shown": shown,
                "clusters": [line["cluster"] for line in questions],
                "shown": [line["shown"] for line in questions],
                "provenance": origin(),
            }
        ]
        orders = {}
        for choice in self.choices:
            names = self.pool.names(choice.pool)
            if (choice.pool, choice.rule) not in orders:
                orders[choice.pool, choice.rule] = self._order(context, names, choice.rule)
            order = orders[choice.pool, choice.rule]
            if choice.pool == TARGET:
                order = [TARGET, *(name for name in order if name != TARGET)]
            taken = order[: choice.count]
            said = spans.captured([stored[name] for name in taken], target)
            lines.append(
                {
                    "kind": "selected",
                    "selected": self.address,
                    **choice.about,
                    "adapters": taken,
                    "overlap": said.shown,
                    "overlap_unseen": said.unseen,
                    "by_chance": spans.by_chance(len(taken), len(target), shown),
                }
            )
        _write(folder, lines)

    def _order(self, context: Context, names: Sequence[str], rule: str) -> list[str]:
        """The adapters of a pool, the best first."""
        members = [_member(context, name, self.pool.adapters[name]) for name in names]
        (target,) = read_library(context, {TARGET: self.pool.adapters[TARGET]})
        job = Selection(
            members,
            seed=self.seed,
            target=target,
            examples=read_examples(context, self.asked.examples),
            model=context.model,
        )
        return [member.id for member, _ in select(rule, job)]


@dataclass(frozen=True)
class Recycled(Step):
    """What a choice's adapters answer under every method, and what has to stand beside it.

    choice: None for what needs no choice: the base, the target's own adapter, the one that knows half of it,
    and new adapters trained on the examples, by the recipe `training` and by the published one. seed: of the
    fits. title: for people only.
    """

    kind = "recycled"
    resources = Resources(model=True, training=True)

    title: str = field(compare=False)
    selected: Address
    pool: Pool
    asked: Asked
    choice: Choice | None
    seed: int
    training: Training

    @property
    def label(self) -> str:
        if self.choice is None:
            return f"base, single and new adapters on {self.title}"
        several = "all" if self.choice.count is None else f"{self.choice.count} by {self.choice.rule}"
        return f"{several} of the pool with {self.choice.pool} on {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        questions = [
            Example(line["question"], line["answer"]) for line in context.input(self.asked.questions)
        ]
        sheet = AnswerSheet.of(context.model, questions)
        work = _Work(context, sheet, tuple(read_examples(context, self.asked.examples)), self.seed)
        lines = self._singles(work) if self.choice is None else self._merges(work, self.choice)
        about: dict[str, object] = {"kind": "measured", "selected": self.selected}
        first = {"kind": "recycled", "selected": self.selected, "provenance": origin()}
        _write(folder, [first, *({**about, **line} for line in lines)])

    def _singles(self, work: _Work) -> Iterator[Mapping[str, object]]:
        adapters = self.pool.adapters
        own = read_library(work.context, {name: adapters[name] for name in (TARGET, KIN)})
        for name, library in (("base", []), (TARGET, own[:1]), (KIN, own[1:])):
            yield {"method": "alone", "control": name, **work.merged(library, Merge("sum"))}
        for name, recipe in (
            ("new", Recipe(Merge("new-adapter"), training=self.training)),
            ("new, as published", published.NEW_ADAPTER),
        ):
            yield {
                "method": "trained",
                "control": name,
                **work.fitted(Setting(tuple(own[:1]), work.examples, recipe.merge), recipe),
            }

    def _merges(self, work: _Work, choice: Choice) -> Iterator[Mapping[str, object]]:
        lines = (work.context.results(self.selected) / FILE).read_text(encoding="utf-8").splitlines()
        taken = next(
            line["adapters"]
            for line in map(json.loads, lines)
            if line["kind"] == "selected" and all(line[k] == v for k, v in choice.about.items())
        )
        library = tuple(read_library(work.context, {name: self.pool.adapters[name] for name in taken}))
        blind = choice.rule in ("random", "all")
        for name in (*METHODS, LAW):
            if name in FEW and not (blind and choice.count is not None):
                continue
            setting = Setting(library, work.examples, Merge("sum"), 0 if choice.pool == TARGET else None)
            controls = BESIDE[choice.pool] if blind and name in CONTROLLED else ()
            for control in ("recycled", *controls):
                changed = CONTROLS[control](setting, self.seed)
                told = {**choice.about, "method": name, "control": control}
                found = work.by_law(changed) if name == LAW else work.fitted(changed, METHODS[name])
                yield {**told, **found}


@dataclass(frozen=True)
class _Work:
    """What every cell of a step has in common."""

    context: Context
    sheet: AnswerSheet
    examples: tuple[Example, ...]
    seed: int

    @cached_property
    def own_sheet(self) -> AnswerSheet:
        """The examples themselves, with the answers that are right."""
        return AnswerSheet.of(self.context.model, self.examples)

    def fitted(self, setting: Setting, recipe: Recipe) -> dict[str, object]:
        """A setting's adapters merged by a recipe."""
        if RULES[recipe.merge.rule].fitted_by is None:
            return self.merged(setting.library, recipe.merge)
        found = fitted.fit(
            self.context.model,
            setting.library,
            recipe.merge,
            setting.examples,
            self.seed,
            fitting=recipe.fitting,
            training=recipe.training,
        )
        return self.merged(setting.library, found)

    def by_law(self, setting: Setting) -> dict[str, object]:
        """A setting's adapters summed with the weights of the law, and what it says of the questions."""
        found, said = by_law(self.context.model, setting, self.sheet)
        foretold = {"foretold_" + name: values for name, values in _answers(said).items()}
        return {**self.merged(setting.library, Merge("sum", found)), **foretold}

    def merged(
        self, library: Sequence[AdapterWeights], merge: Merge | merging.FittedMerge
    ) -> dict[str, object]:
        """The questions and the examples asked under a merge."""
        model = self.context.model
        with merging.apply(model, library, merge):
            asked, own = (one.scores(one.logits(model)) for one in (self.sheet, self.own_sheet))
        return {
            **_answers(asked),
            "examples_loss": round(own.loss, 6),
            "examples_right": own.share,
        }


def _answers(scores: Scores) -> dict[str, object]:
    return {
        "logprob": [round(value, 4) for value in scores.logprob.tolist()],
        "right": [int(value) for value in scores.right.tolist()],
    }


def _member(context: Context, name: str, address: Address) -> Member:
    return replace(local_member(name, context.results(address) / "adapter", ""), id=name)


def _write(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    replace_file(folder / FILE, (json.dumps(line, allow_nan=False) + "\n" for line in lines))
