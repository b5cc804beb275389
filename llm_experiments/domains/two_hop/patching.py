"""A step that asks under a merge while hop 1's answer is put into the residual stream between two halves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_experiments.asking import patching
from llm_experiments.asking.patching import PatchingError
from llm_experiments.domains.task import read_items, read_scorer
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.context import Context
from llm_experiments.merges import merging
from llm_experiments.models.choice import LayerChoice
from llm_experiments.models.handle import LoadedModel
from llm_experiments.scoring import SCORERS
from llm_experiments.steps.adapters import read_library
from llm_experiments.steps.asking import Ask
from results.rows import Row
from toytransformer.compositions import replace_file

SOURCES = ("own", "second hop", "embedding")
PLACES = ("last", "names", "names and last")
#: Tokens that are written behind a begun answer.
MOST = 12


@dataclass(frozen=True)
class Patch:
    """What replaces the output of the last block of the lower half, and where.

    source: "own", the question's own activations, which change nothing; "second hop", those of hop 2's
    question about the right y, under the same merge; "embedding", the tied form of theory: the question's own
    plus the input embedding of y's tokens (their mean at the last position), as long as the residual is.
    place: "last", the position that predicts the answer; "names", the tokens of the entity asked about, at
    every mention, in their order; or both. Errors: PatchingError on others.
    """

    source: str
    place: str

    def __post_init__(self) -> None:
        for value, allowed in ((self.source, SOURCES), (self.place, PLACES)):
            if value not in allowed:
                raise PatchingError(f"patch {value!r} is unknown: use one of {', '.join(allowed)}")

    def values(self, loaded: LoadedModel, pair: Mapping[str, str], after: int) -> dict[int, torch.Tensor]:
        """By position of the question what is put there. Errors: PatchingError on names that do not align."""
        tokens = patching.begun_prompt(loaded, pair["question"], pair["begun"])
        donor = patching.begun_prompt(loaded, pair["donor_question"], pair["donor_begun"])
        name, donor_name = (patching.name_tokens(loaded, pair[key]) for key in ("name", "donor_name"))
        own = patching.residual(loaded, tokens, after)
        there = patching.residual(loaded, donor, after)
        vectors = patching.embedded(loaded, donor_name)
        places: dict[int, tuple[int, torch.Tensor]] = {}
        if self.place != "last":
            mine, theirs = patching.mentions(tokens, name), patching.mentions(donor, donor_name)
            if len(mine) != len(theirs) or not mine:
                raise PatchingError(
                    f"{pair['item']} mentions its entity {len(mine)} times, hop 2's question {len(theirs)} "
                    "times: ask in wordings that agree"
                )
            for here, other in zip(mine, theirs, strict=True):
                # A name of more tokens than the other's keeps its first ones as they are.
                for back in range(1, min(len(name), len(donor_name)) + 1):
                    places[here + len(name) - back] = (other + len(donor_name) - back, vectors[-back])
        if self.place != "names":
            places[len(tokens) - 1] = (len(donor) - 1, vectors.mean(0))
        if self.source == "own":
            return {place: own[place] for place in places}
        if self.source == "second hop":
            return {place: there[other] for place, (other, _) in places.items()}
        return {
            place: own[place] + vector * (own[place].norm() / vector.norm())
            for place, (_, vector) in places.items()
        }


@dataclass(frozen=True)
class AskPatched(Ask):
    """Items asked with their answers begun, under a merge and a patch between the halves of the blocks.

    pairs: by item the question, hop 2's question, and both answers up to the name asked for.
    """

    kind = "patched-answers"
    version = 1

    pairs: Ref | None = None
    patch: Patch | None = None

    def compute(self, context: Context, folder: Path) -> None:
        assert self.pairs is not None and self.patch is not None
        loaded, reading = context.model, self.reading
        items = read_items(context, reading.items)
        scorer = read_scorer(context, reading.scorer, reading.context)
        old = self._old(context, items) if self.base is not None else {}
        pairs: dict[str, Any] = {line["item"]: line for line in context.input(self.pairs)}
        after = LayerChoice("all", "lower half").blocks(len(patching.blocks(loaded.model)))[-1]
        info = self._info(loaded.id, loaded.digest, str(loaded.dtype), items, {}, None)
        rows = []
        with merging.apply(loaded, read_library(context, self.library), self.merge):
            for item in items:
                pair = pairs[item.id]
                tokens = patching.begun_prompt(loaded, pair["question"], pair["begun"])
                values = self.patch.values(loaded, pair, after)
                said = patching.written(loaded, tokens, after, values, MOST)
                end = str(loaded.tokenizer.decode(said, skip_special_tokens=True)).strip()
                text = f"{pair['begun'].rstrip()} {end}"
                score = scorer.score(item, text, old.get(item.id))
                shares = {o: float(o == score.outcome) for o in SCORERS[reading.scorer].outcomes}
                rows.append(Row(info.key, item.id, score.answer, shares, text, score.marks))
        replace_file(folder / "cells.jsonl", [info.to_json() + "\n"])
        replace_file(folder / "rows.jsonl", (row.to_json() + "\n" for row in rows))
