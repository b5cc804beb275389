"""The step that writes facts into one MLP in closed form and measures what Theorem 2 speaks of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_experiments.domains.two_hop import overlaps
from llm_experiments.editing import edits
from llm_experiments.editing.features import down_projections, key_covariance, observe
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.context import Context
from llm_experiments.engine.steps import Resources, Step
from llm_experiments.models.handle import LoadedModel
from llm_experiments.origin import origin
from toytransformer.compositions import replace_file

#: Prompts that share nothing with the chains: for the mean and covariance of the keys, and for the leak.
REFERENCE, UNRELATED = 56, 32
#: What is asked of every chain: its two hops, and both together.
KINDS = ("hop1", "hop2", "two_hop")


@dataclass(frozen=True)
class Asked:
    """A question, the answer that is written in, and the entity that the answer names."""

    question: str
    answer: str
    entity: str


@dataclass(frozen=True)
class Edit(Step):
    """Closed-form edits of a base model, one adapter for each hop. Writes edits.jsonl.

    Rows of kind "overlap": c1, c2 and the leak layer by layer, own entity against others, raw, centred and
    whitened, the toy's prediction beside each. Rows of kind "over layers": does a layer single out the right
    entity? Rows of kind "edit": hops 1 and 2 written into one layer, plain (eq. 23) or whitened: is each
    recalled alone and merged, what do two-hop questions answer then, and by how much is the shift off
    sum_j c_j w_j, in units of the rounding bound.

    chains: refs of the Asked of every chain, by KINDS. others: ref of REFERENCE + UNRELATED questions that
    share nothing with them. depth: which layers are edited, as shares of the model's depth. seed: of the
    tests over layers.
    """

    kind = "edits"
    version = 2
    resources = Resources(model=True, training=True)

    digest: str
    dataset: str
    names: int
    spec_hash: str
    chains: Mapping[str, Ref]
    others: Ref
    depth: tuple[float, ...] = (0.25, 0.5, 0.75)
    seed: int = 0

    @property
    def label(self) -> str:
        return f"closed-form edits, {self.dataset}" + (f", names {self.names}" if self.names else "")

    def compute(self, context: Context, folder: Path) -> None:
        asked = {kind: [Asked(**line) for line in context.input(self.chains[kind])] for kind in KINDS}
        others = context.input(self.others)
        reference, far = others[:REFERENCE], others[REFERENCE:]
        questions = {kind: [one.question for one in listed] for kind, listed in asked.items()}
        hop1, hop2, two_hop = (questions[kind] for kind in KINDS)
        seen = overlaps.measured(context.model, hop1, hop2, two_hop, reference, far)
        fixed: dict[str, str | int] = {
            "model": context.model.digest,
            "source": context.model.id,
            "dataset": self.dataset,
            "spec_hash": self.spec_hash,
        }
        if self.names:
            fixed["names"] = self.names
        rows = [{"kind": "overlap", **fixed, **row} for row in overlaps.table(seen, seed=self.seed)]
        tests = overlaps.tests_over_layers(seen, seed=self.seed)
        rows += ({"kind": "over layers", **fixed, **row} for row in tests)
        last = max(down_projections(context.model.model))
        for layer in sorted({round(share * last) for share in self.depth}):
            rows += (
                {"kind": "edit", **fixed, **row} for row in _edited(context.model, asked, reference, layer)
            )
        first = {"kind": "provenance", **origin()}
        replace_file(
            folder / "edits.jsonl", (json.dumps(row, default=float) + "\n" for row in [first, *rows])
        )


def _edited(
    loaded: LoadedModel, asked: Mapping[str, Sequence[Asked]], reference: Sequence[str], layer: int
) -> Iterator[dict[str, object]]:
    """Both hops written into one layer, plain and whitened; the rows on each."""
    keys = observe(loaded, reference, [layer])[layer].features
    for whitened in (False, True):
        covariance = key_covariance(keys) if whitened else None
        hops = {kind: asked[kind] for kind in KINDS[:2]}
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
        questions = [e.question for e in asked["two_hop"]]
        row: dict[str, object] = {"layer": layer, "whitened": whitened, "facts": len(asked["hop1"])}
        for name, examples in hops.items():
            with edits.applied(loaded, [written[name]]):
                row[f"{name}_recalled_alone"] = _share(loaded, examples)
            if (values := written[name].values) is not None:
                row[f"{name}_value_size"] = float(np.mean(values.size))
                row[f"{name}_nll"] = float(np.mean(values.nll))
        with edits.applied(loaded, list(written.values())):
            for name, examples in hops.items():
                row[f"{name}_recalled_merged"] = _share(loaded, examples)
            row["two_hop_correct"] = _share(loaded, asked["two_hop"])
            texts = edits.recalled(loaded, questions, [e.entity for e in asked["hop1"]])
            row["two_hop_bridge"] = float(np.mean([text.contains for text in texts]))
            row["two_hop_texts"] = [text.text for text in texts]
        (shift,) = edits.check_shift(loaded, list(written.values()), questions)
        c1, c2 = shift.coefficients
        row |= {"shift_error": shift.error, "shift_over_bound": shift.ratio, "shift_size": shift.size}
        row |= {"c1_own": float(np.diag(c1).mean()), "c2_own": float(np.diag(c2).mean())}
        yield row


def _share(loaded: LoadedModel, examples: Sequence[Asked]) -> float:
    """Share of questions whose answer names the right entity."""
    texts = edits.recalled(loaded, [e.question for e in examples], [e.entity for e in examples])
    return float(np.mean([text.contains for text in texts]))
