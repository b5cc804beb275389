"""Steps that put items to a merged model: the choice of a temperature, and the answers that become rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from llm_experiments.adapters.recipe import Training
from llm_experiments.asking import evaluation
from llm_experiments.domains.task import TaskError, read_candidates, read_examples, read_items, read_scorer
from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.context import Context
from llm_experiments.engine.steps import Resources, Step
from llm_experiments.merges import fitted, merging
from llm_experiments.origin import origin
from llm_experiments.scoring import SCORERS
from llm_experiments.steps.adapters import own_means, read_library, regauged
from results.rows import CellInfo, Item, Scalar, items_hash
from toytransformer.compositions import Merge, replace_file
from toytransformer.merging import resolve

#: What a cell says of how something was chosen: on which kind of items, and on which draw of names.
CHOSEN_BY = ("chosen_by", "chosen_names")


@dataclass(frozen=True)
class About:
    """What is asked, as a cell says it: domain, task, data set, draw of names, hash of the composition."""

    domain: str
    task: str
    setting: Mapping[str, Scalar] = field(default_factory=dict)
    dataset: str | None = None
    names: int | None = None
    spec_hash: str | None = None


@dataclass(frozen=True)
class Reading:
    """Items and how answers to them are read: a scorer made from a context, and candidates if any."""

    items: Ref
    scorer: str
    context: Ref | None = None
    candidates: Ref | None = None


@dataclass(frozen=True)
class Sweep(Step):
    """A routing rule's temperature for one library, chosen on development items. Writes sweeps.jsonl.

    The router's scale is a property of the model. Chosen is the temperature with most items right; among
    equals the highest. chosen_by: what the items are. title: for people only.
    """

    kind = "sweep"
    resources = Resources(model=True)

    title: str = field(compare=False)
    digest: str
    reading: Reading
    library: Mapping[str, Address]
    merge: Merge
    temperatures: tuple[float, ...]
    chosen_by: Mapping[str, Scalar]

    @property
    def label(self) -> str:
        return f"temperature of {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        library = read_library(context, self.library)
        items = read_items(context, self.reading.items)
        scorer = read_scorer(context, self.reading.scorer, self.reading.context)
        own = own_means(context, self.library, library, self.merge)
        sweep = []
        for temperature in self.temperatures:
            merge = with_temperature(self.merge, temperature)
            with merging.apply(context.model, library, merge, own_means=own):
                written = evaluation.texts(context.model, items)
            scores = [scorer.score(item, text, None) for item, text in zip(items, written, strict=True)]
            right = sum(score.outcome == "correct" for score in scores)
            sweep.append({"temperature": temperature, "share": right / len(items)})
        line = {
            "address": self.address,
            "label": self.label,
            "chosen": best_temperature(sweep),
            **self.chosen_by,
            "items": len(items),
            "sweep": sweep,
        }
        replace_file(folder / "sweeps.jsonl", [json.dumps(line), "\n"])


@dataclass(frozen=True)
class Ask(Step):
    """A task's items put to the base model under a merge of a library.

    Writes cells.jsonl (one CellInfo), rows.jsonl, and details.json, which has what the rule says of every
    layer: spectral gaps, fitted weights, how Arrow routed.

    library: adapters by name in merge order, none for the base itself. base: where the base's own answers
    are, the old ones of this model; None for the base. sweep: where a temperature comes from. fit: examples
    of the task for rules that need data, training: the recipe of a new adapter among them. gauge: factors
    the library is rewritten in before it is merged. title: for people only.
    """

    kind = "answers"
    version = 3
    resources = Resources(model=True)

    title: str = field(compare=False)
    digest: str
    about: About
    reading: Reading
    library: Mapping[str, Address]
    merge: Merge
    base: Address | None = None
    sweep: Address | None = None
    seed: int | None = None
    layers: str | None = None
    variant: Mapping[str, Scalar] = field(default_factory=dict)
    control: str | None = None
    fit: Ref | None = None
    training: Training | None = None
    gauge: str = "as trained"

    @property
    def label(self) -> str:
        return self.title

    def compute(self, context: Context, folder: Path) -> None:
        reading, loaded = self.reading, context.model
        items = read_items(context, reading.items)
        scorer = read_scorer(context, reading.scorer, reading.context)
        old = None if self.base is None else self._old(context, items)
        trained = read_library(context, self.library)
        library = [regauged(adapter, self.gauge, place) for place, adapter in enumerate(trained)]
        chosen = self._chosen(context)
        merge: Merge | merging.FittedMerge = self.merge
        if chosen:
            merge = with_temperature(self.merge, chosen["temperature"])
        if self.fit is not None:
            examples = read_examples(context, self.fit)
            merge = fitted.fit(
                loaded, library, self.merge, examples, seed=self.seed or 0, training=self.training
            )
        routed = resolve(self.merge.rule).routed
        own = own_means(context, self.library, library, self.merge)
        with merging.apply(
            loaded, library, merge, seed=self.seed or 0, statistics=routed, own_means=own
        ) as applied:
            gap = applied.details.get("spectral_gap", {}).get("smallest")
            info = self._info(loaded.id, loaded.digest, str(loaded.dtype), items, chosen, gap)
            candidates = read_candidates(context, reading.candidates)
            outcomes = SCORERS[reading.scorer].outcomes
            rows = evaluation.ask(
                loaded,
                items,
                scorer,
                info.key,
                outcomes,
                old=old,
                candidates=candidates,
                applied=applied,
            )
        replace_file(folder / "cells.jsonl", [info.to_json() + "\n"])
        replace_file(folder / "rows.jsonl", (row.to_json() + "\n" for row in rows))
        details = {**applied.details, "routing": {name: asdict(r) for name, r in applied.routing().items()}}
        replace_file(folder / "details.json", [json.dumps(details, indent=1, default=str), "\n"])

    def _info(
        self,
        base: str,
        digest: str,
        dtype: str,
        items: list[Item],
        chosen: Mapping[str, Scalar],
        gap: float | None,
    ) -> CellInfo:
        """All that is constant in the rows."""
        about = self.about
        return CellInfo(
            domain=about.domain,
            task=about.task,
            setting=about.setting,
            spec_hash=about.spec_hash,
            items=items_hash(items),
            dataset=about.dataset,
            names=about.names,
            base=base,
            digest=digest,
            dtype=dtype.removeprefix("torch."),
            library=tuple(self.library),
            rule=self.merge.rule,
            weights=self.merge.weights,
            options=self.merge.option_dict,
            chosen=chosen,
            layers=self.layers,
            seed=self.seed,
            split="test",
            variant=self.variant,
            control=self.control,
            adapters=tuple(self.library.values()),
            spectral_gap=gap,
            provenance=origin(),
        )

    def _chosen(self, context: Context) -> dict[str, Scalar]:
        """What was chosen on development items."""
        if self.sweep is None:
            return {}
        line = json.loads((context.results(self.sweep) / "sweeps.jsonl").read_text(encoding="utf-8"))
        told = {name: line[name] for name in CHOSEN_BY if name in line}
        return {"temperature": line["chosen"], **told}

    def _old(self, context: Context, items: Iterable[Item]) -> dict[str, str | None]:
        """What the base answers to these items."""
        assert self.base is not None
        with (context.results(self.base) / "rows.jsonl").open(encoding="utf-8") as lines:
            said = {(row := json.loads(line))["item"]: row["answer"] for line in lines}
        if missing := [item.id for item in items if item.id not in said]:
            raise TaskError(f"the base was not asked '{missing[0]}' by {self.base}: ask it the same items")
        return said


def best_temperature(sweep: Iterable[Mapping[str, float]]) -> float:
    """Of rows with temperature and share (right) the best: most right, among equals the highest."""
    return max(sweep, key=lambda row: (row["share"], row["temperature"]))["temperature"]


def with_temperature(merge: Merge, temperature: Scalar) -> Merge:
    """The merge at another temperature."""
    return replace(merge, options={**merge.option_dict, "temperature": temperature})
