"""What each adapter does where it has no business: on the others' questions and on neutral prompts.

    leak_ij = mean KL(base || base with adapter i) on what belongs to j, in nats,

over next-token distributions at every token of the right answers, and where the answer to a neutral prompt
begins. Beside it the gates of Arrow as they would be: the mean
weight of every adapter over the tokens and the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.diagnose.answers import AnswerSheet
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.merging import apply
from llm_experiments.merges.mixtures import weighted
from llm_experiments.models.handle import LoadedModel
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError

#: Prompts that no adapter is meant for, and what they are called.
NEUTRAL_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the weather.",
    "How many days are there in a week?",
    "Translate to German: good morning.",
    "Name a colour.",
    "What is two plus two?",
)
NEUTRAL = "neutral prompts"
#: The rule whose gates are shown: as PEFT has it.
ROUTER = "arrow-products"


@dataclass(frozen=True)
class Leaks:
    """moved: whose questions -> KL of each adapter, in nats. gates: whose questions -> weight of each.

    gates is None where the rule cannot route these adapters, for `reason`.
    """

    moved: Mapping[str, tuple[float, ...]]
    gates: Mapping[str, tuple[float, ...]] | None
    reason: str = ""


def leaks(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    questions: Sequence[Question] = (),
    owners: Sequence[int | None] = (),
) -> Leaks:
    """On neutral prompts, and by adapter on the questions that it owns.

    Errors: RuleError on adapters that do not fit the model.
    """
    groups = {NEUTRAL: [Question(prompt, "") for prompt in NEUTRAL_PROMPTS]}
    for index, adapter in enumerate(library):
        own = [question for question, owner in zip(questions, owners, strict=True) if owner == index]
        if own:
            groups[adapter.name] = own
    sheets = {name: AnswerSheet.of(loaded, own) for name, own in groups.items()}
    count, moved = len(library), {}
    with weighted(loaded, library) as weights:
        for name, sheet in sheets.items():
            weights.set((0.0,) * count)
            where = sheet.first if name == NEUTRAL else slice(None)
            base = sheet.logits(loaded)[where].double().log_softmax(-1)
            each = []
            for unit in np.eye(count).tolist():
                weights.set(unit)
                other = sheet.logits(loaded)[where].double().log_softmax(-1)
                each.append(float(torch.sum(base.exp() * (base - other), dim=-1).mean()))
            moved[name] = tuple(max(0.0, value) for value in each)
    try:
        with apply(loaded, library, Merge(ROUTER), statistics=True) as applied:
            gates = {}
            for name, sheet in sheets.items():
                applied.reset()
                sheet.logits(loaded)
                rows = [routing.weights for routing in applied.routing().values()]
                gates[name] = tuple(map(float, np.mean(rows, axis=0)))
    except RuleError as error:
        return Leaks(moved, None, str(error))
    return Leaks(moved, gates)
