"""The step that writes facts into one MLP in closed form and measures what Theorem 2 speaks of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_experiments.editing import edits, overlaps
from llm_experiments.editing.chains import chains, unrelated
from llm_experiments.editing.features import down_projections, key_covariance, observe
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.context import Context
from llm_experiments.engine.steps import Plan, Resources, Step
from llm_experiments.origin import origin
from llm_experiments.steps import SceneRef
from toytransformer.compositions import replace_file

#: Prompts that share nothing with the chains: for the mean and covariance of the keys, and for the leak.
REFERENCE, UNRELATED = 56, 32


@dataclass(frozen=True)
class KnownWorld:
    """What of a base model's world the edits ask about: its people, and (person, relation) -> name."""

    people: tuple[str, ...]
    facts: Mapping[tuple[str, str], str]

    def add_to(self, plan: Plan) -> Ref:
        """Enter the world as an input."""
        return plan.add_input([list(self.people), *([*who, name] for who, name in self.facts.items())])

    @classmethod
    def read(cls, context: Context, ref: Ref) -> KnownWorld:
        """The world that add_to() entered."""
        people, *facts = context.input(ref)
        return cls(tuple(people), {(person, relation): name for person, relation, name in facts})


@dataclass(frozen=True)
class Edit(Step):
    """Closed-form edits of a base model, one adapter for each hop. Writes edits.jsonl.

    Rows of kind "overlap": c1, c2 and the leak layer by layer, own entity against others, raw, centred and
    whitened, the toy's prediction beside each. Rows of kind "over layers": does a layer single out the right
    entity? Rows of kind "edit": hops 1 and 2 written into one layer, plain (eq. 23) or whitened: is each
    recalled alone and merged, what do two-hop questions answer then, and by how much is the shift off
    sum_j c_j w_j, in units of the rounding bound.

    world: what the base knows, where that is known. depth: which layers are edited, as shares of the model's
    depth. seed: draws the other prompts.
    """

    kind = "edits"
    resources = Resources(model=True, training=True)

    title: str = field(compare=False)
    scene: SceneRef
    model: str
    world: Ref | None = None
    depth: tuple[float, ...] = (0.25, 0.5, 0.75)
    seed: int = 0

    @property
    def label(self) -> str:
        return f"closed-form edits, {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        scene = self.scene.read(context)
        world = None if self.world is None else KnownWorld.read(context, self.world)
        asked = chains(scene.composition, scene.lexicon, scene.templates[0])
        others = unrelated(scene.lexicon, REFERENCE + UNRELATED, seed=self.seed, base_world=world)
        reference, far = others[:REFERENCE], others[REFERENCE:]
        seen = overlaps.measured(context.model, **asked.questions(), reference=reference, unrelated=far)
        fixed = {
            "model": context.model.digest,
            "source": context.model.id,
            "dataset": scene.lexicon.dataset,
            "spec_hash": scene.composition.spec_hash,
        }
        rows = [{"kind": "overlap", **fixed, **row} for row in overlaps.table(seen, seed=self.seed)]
        tests = overlaps.tests_over_layers(seen, seed=self.seed)
        rows += ({"kind": "over layers", **fixed, **row} for row in tests)
        last = max(down_projections(context.model.model))
        for layer in sorted({round(share * last) for share in self.depth}):
            rows += ({"kind": "edit", **fixed, **row} for row in _edited(context, asked, reference, layer))
        first = {"kind": "provenance", **origin()}
        replace_file(
            folder / "edits.jsonl", (json.dumps(row, default=float) + "\n" for row in [first, *rows])
        )


def _edited(context: Context, asked: Any, reference: tuple[str, ...], layer: int) -> Iterator[dict[str, Any]]:
    """Both hops written into one layer, plain and whitened; the rows on each."""
    loaded = context.model
    keys = observe(loaded, reference, [layer])[layer].features
    for whitened in (False, True):
        covariance = key_covariance(keys) if whitened else None
        hops = {"hop1": asked.hop1, "hop2": asked.hop2}
        written = {
            name: edits.write_facts(
                loaded,
                [e.question for e in examples],
                [e.answer for e in examples],
                layer,
                covariance=covariance,
            )
            for name, examples in hops.items()
        }
        questions = [e.question for e in asked.two_hop]
        row: dict[str, Any] = {"layer": layer, "whitened": whitened, "facts": len(asked.hop1)}
        for name, examples in hops.items():
            with edits.applied(loaded, [written[name]]):
                row[f"{name}_recalled_alone"] = _share(loaded, examples)
            row[f"{name}_value_size"] = float(np.mean(written[name].values.size))
            row[f"{name}_nll"] = float(np.mean(written[name].values.nll))
        with edits.applied(loaded, list(written.values())):
            for name, examples in hops.items():
                row[f"{name}_recalled_merged"] = _share(loaded, examples)
            row["two_hop_correct"] = _share(loaded, asked.two_hop)
            texts = edits.recalled(loaded, questions, [e.entity for e in asked.hop1])
            row["two_hop_bridge"] = float(np.mean([text.contains for text in texts]))
            row["two_hop_texts"] = [text.text for text in texts]
        (shift,) = edits.check_shift(loaded, list(written.values()), questions)
        c1, c2 = shift.coefficients
        row |= {"shift_error": shift.error, "shift_over_bound": shift.ratio, "shift_size": shift.size}
        row |= {"c1_own": float(np.diag(c1).mean()), "c2_own": float(np.diag(c2).mean())}
        yield row


def _share(loaded: Any, examples: Any) -> float:
    """Share of questions whose answer names the right entity."""
    found = edits.recalled(loaded, [e.question for e in examples], [e.entity for e in examples])
    return float(np.mean([each.contains for each in found]))
