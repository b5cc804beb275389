"""How a routed merge weights its adapters, item by item: in the prompt, and where an answer names something.

    PROMPT     the mean over the tokens of the prompt
    PROMPT_END at its last token, for items of which nobody says where their answers name something
    a place    at the token from which a name is read out: behind the prompt and the answer begun

One forward pass over each prompt with its begun answer, apart from the passes that write the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from llm_experiments.asking import batches
from llm_experiments.asking.decoding import begun_ids, quiet
from llm_experiments.merges.merging import AppliedMerge
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.layers import places
from llm_experiments.models.prompts import prompt_ids
from results.rows import Gates

#: The places in a prompt: the mean over its tokens, and the last one.
PROMPT, PROMPT_END = "prompt", "end of prompt"
#: Where an answer that names one thing names it.
ANSWER = "answer"
#: Weights are kept to so many digits.
DIGITS = 4


@dataclass(frozen=True)
class Begun:
    """An item's question, and its answer up to where something is named. place: what that is called."""

    item: str
    place: str
    question: str
    answer: str


def gates(
    loaded: LoadedModel, applied: AppliedMerge, begun: Sequence[Begun], *, batch: int = 32
) -> dict[str, Gates]:
    """By item the weights of each adapter at every place, a number for each block: the mean over its layers.

    Empty where the merge does not route. Padding counts nowhere; the prompt's mean is that of the item's
    first place. batch: prompts run at once.
    """
    found: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {}
    blocks = _blocks(loaded, applied)
    if not blocks:
        return {}
    names = applied.details["adapters"]
    tokens = [(prompt_ids(loaded, one.question), begun_ids(loaded, one.answer.rstrip(" "))) for one in begun]
    order = sorted(range(len(begun)), key=lambda row: sum(map(len, tokens[row])))
    with quiet(loaded.model), applied.watched() as weights:
        for rows in (order[start : start + batch] for start in range(0, len(order), batch)):
            whole = [[*prompt, *answer] for prompt, answer in (tokens[row] for row in rows)]
            batches.start(loaded, None, whole)
            by_block = torch.stack(
                [torch.stack([weights[name].float() for name in of]).mean(0) for of in blocks]
            )
            for place, row in enumerate(rows):
                one, (prompt, answer) = begun[row], tokens[row]
                seen = by_block[:, place]
                kept = found.setdefault(one.item, {})
                end = seen.shape[1] - len(answer)
                kept.setdefault(PROMPT, _by_adapter(names, seen[:, end - len(prompt) : end].mean(1)))
                kept[one.place] = _by_adapter(names, seen[:, -1])
    return dict(found)


def _blocks(loaded: LoadedModel, applied: AppliedMerge) -> list[list[str]]:
    """The routed layers of each block that has some, in the model's order."""
    placed = places(loaded.model)
    blocks: dict[int, list[str]] = {}
    for name in applied.routed:
        blocks.setdefault(placed[name].block, []).append(name)
    return [blocks[number] for number in sorted(blocks)]


def _by_adapter(names: Sequence[str], weights: torch.Tensor) -> dict[str, tuple[float, ...]]:
    """(block, adapter) as a mapping."""
    columns: Mapping[str, list[float]] = dict(zip(names, weights.T.tolist(), strict=True))
    return {name: tuple(round(weight, DIGITS) for weight in column) for name, column in columns.items()}
