"""A step that asks while adapters take turns: the next one from where the text begins its next step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_experiments.asking import evaluation
from llm_experiments.domains.task import read_items, read_scorer
from llm_experiments.engine.context import Context
from llm_experiments.merges import staged
from llm_experiments.scoring import SCORERS
from llm_experiments.steps.adapters import read_library
from llm_experiments.steps.asking import Ask
from results.rows import Row
from toytransformer.compositions import replace_file


@dataclass(frozen=True)
class AskInTurn(Ask):
    """Items asked step by step: the first adapter reads the prompt and writes up to `marker`, the second on.

    What is written up to there, marker included, was computed with the first adapter and stays so; an answer
    without the marker is the first adapter's alone. So routes who knows which step is being written.
    """

    kind = "answers-in-turn"
    version = 1

    marker: str = ""

    def compute(self, context: Context, folder: Path) -> None:
        loaded, reading = context.model, self.reading
        items = read_items(context, reading.items)
        scorer = read_scorer(context, reading.scorer, reading.context)
        old = self._old(context, items) if self.base is not None else {}
        info = self._info(loaded.id, loaded.digest, str(loaded.dtype), items, {}, None)
        with staged.apply(loaded, read_library(context, self.library)) as stage:
            written = evaluation.texts_in_turn(loaded, items, self.marker, stage.turn)
        rows = []
        for item, text in zip(items, written, strict=True):
            score = scorer.score(item, text, old.get(item.id))
            shares = {name: float(name == score.outcome) for name in SCORERS[reading.scorer].outcomes}
            rows.append(Row(info.key, item.id, score.answer, shares, text, score.marks))
        replace_file(folder / "cells.jsonl", [info.to_json() + "\n"])
        replace_file(folder / "rows.jsonl", (row.to_json() + "\n" for row in rows))
