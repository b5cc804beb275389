"""Weights of a sum by the mixture law: from the base and each adapter alone, no merge is looked at."""

from __future__ import annotations

import torch

from llm_experiments.diagnose.answers import AnswerSheet, Scores
from llm_experiments.diagnose.combining import SCALES, least_loss
from llm_experiments.merges.merging import apply
from llm_experiments.models.handle import LoadedModel
from llm_experiments.pools.controls import Setting
from toytransformer.compositions import Merge
from toytransformer.mixture import mixture


def by_law(
    model: LoadedModel, setting: Setting, asked: AnswerSheet, *, batch: int = 16
) -> tuple[tuple[float, ...], Scores]:
    """The weights with the least predicted loss on the setting's examples, and what is predicted of `asked`.

    f_w = f_0 + sum_i w_i (f_i - f_0) in logits, |w_i| <= SCALES[-1]; 2 (n + 1) passes for n adapters.
    """
    told = AnswerSheet.of(model, setting.examples)
    passes = []
    for library in ([], *([one] for one in setting.library)):
        with apply(model, library, Merge("sum")):
            passes.append([sheet.logits(model, batch=batch) for sheet in (told, asked)])
    (base, before), alone = passes[0], [torch.stack(several) for several in zip(*passes[1:], strict=True)]
    weights = least_loss(told, base, alone[0], least=-SCALES[-1])
    return weights, asked.scores(mixture(before, alone[1], weights))
