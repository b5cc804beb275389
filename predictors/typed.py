"""T1, the typed toy with a trained base: a few numbers of the base, and the toy's own kernel.

The numbers (`constants`) are read off the base's features, unembedding and log-probabilities; none comes from
an adapter. Facts that the base does not know are predicted as if it knew some other answer to them (a fresh
fact behaves like a known one), and an answer in steps is right only as often as the base is with the facts in
front.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.optimize import brentq

from predictors.registry import BaseModel, NoPredictionError, Shares, needed, predictor
from toytransformer import kernel
from toytransformer.compositions import OUTCOMES, Composition
from toytransformer.compositions.knowledge import with_bystanders
from toytransformer.compositions.twins import known_twin
from toytransformer.merging import RuleError
from toytransformer.model_features import ModelFeatures

#: Draws of the embeddings whose predictions are averaged; neurons behind rules that act on single entries.
DRAWS, NEURONS = 4, 2**12
#: From this probability on the base is sure of its answer to a two-hop question.
SURE = 0.5
#: The least dimension, and the longest relations, that a toy is given.
LEAST, LONGEST = 8, 10.0


@dataclass(frozen=True)
class Constants:
    """What T1 takes from a base.

    typed: t of the readout, (s - c) / (1 - c) with s the mean cosine of names of one kind in the unembedding
    (mean over tokens, about the vocabulary's mean) and c that of names of two kinds. relation_length: |e_R| /
    |e_x| of a toy whose prompts of one relation lie as close as the base's, both above what prompts have in
    common that share nothing. dimension: of a toy whose cosines scatter as much. told: share of chains right
    with the facts in front. sure: mean of the largest probability on two-hop questions asked directly.
    """

    typed: float
    relation_length: float
    dimension: int
    told: float
    sure: float

    def to_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


def constants(model: ModelFeatures) -> Constants:
    """The constants of a base on one draw of names.

    Errors: NoPredictionError where the features lack single hops, two-hop questions or both kinds of names.
    """
    hop1, hop2, both = (_direct(model, place) for place in (0, 1, 2))
    length, dimension = _geometry(model, hop1, hop2)
    sure = float(model.probabilities(both).max(axis=1).mean())
    return Constants(_typed(model), length, dimension, float(model.about["told"]["steps"]), sure)


@predictor("T1", "the typed toy with a trained base", needs="five numbers of the base")
def typed(spec: Composition, base: BaseModel | None) -> Shares:
    """Shares of outcomes in the toy with the base's constants, mean over draws of embeddings."""
    from toytransformer.bases import TrainedBase
    from toytransformer.prediction import predict
    from toytransformer.readout import Typed
    from toytransformer.regimes import WidthLimit
    from toytransformer.toy import Toy

    found = constants(needed(base, "T1").features)
    twin = known_twin(replace(spec, world=replace(spec.world, multi_hop=())))
    world, prompts = twin.world, [question.prompt for question in spec.questions]
    if found.sure >= SURE and any(prompt.hops > 1 for prompt in prompts):
        world = with_bystanders(world, prompts, own_second=True)
    there = replace(twin, world=world)
    sums: dict[str, dict[str, float]] = {}
    for seed in range(DRAWS):
        regime = WidthLimit(
            dimension=found.dimension,
            relation_length=found.relation_length,
            quadrature=NEURONS,
            seed=seed,
        )
        try:
            prediction = predict(there, Toy(regime, TrainedBase(), Typed(found.typed)))
        except RuleError as error:
            raise NoPredictionError(str(error)) from error
        for question, answers in zip(prediction.questions, prediction.distributions, strict=True):
            total = sums.setdefault(f"{question.group}/{question.decode}", dict.fromkeys(OUTCOMES, 0.0))
            right = found.told if question.decode == "steps" else 1.0
            for outcome, share in question.shares(answers).items():
                total[outcome] += right * share
            total["other"] += 1 - right
    return {
        name: {outcome: number / sum(total.values()) for outcome, number in total.items() if number}
        for name, total in sums.items()
    }


def _direct(model: ModelFeatures, place: int) -> list[tuple[str, str, int | None]]:
    """The rows asked at once: first hops, second hops, both."""
    relations: dict[str, list[tuple[str, str, int | None]]] = {}
    for row in model.rows:
        if row[1] == "direct":
            relations.setdefault(row[0].partition(" ")[2], []).append(row)
    single = [name for name in relations if " " not in name]
    several = [name for name in relations if " " in name]
    if len(single) < 2 or not several:
        raise NoPredictionError(f"{model.name} was not asked two single hops and both together")
    return relations[[*single[:2], several[0]][place]]


def _typed(model: ModelFeatures) -> float:
    gram = model.readout("mean centred")
    kinds = np.array([model.kinds.get(entity, "") for entity in model.entities])
    same = (kinds[:, None] == kinds[None, :]) & (kinds != "")[:, None] & ~np.eye(len(kinds), dtype=bool)
    other = (kinds[:, None] != kinds[None, :]) & (kinds != "")[:, None] & (kinds != "")[None, :]
    if not same.any() or not other.any():
        raise NoPredictionError(f"the names of {model.name} are not of two kinds")
    together, apart = float(gram[same].mean()), float(gram[other].mean())
    return min(max((together - apart) / (1 - apart), 0.0), 0.99)


def _geometry(
    model: ModelFeatures, hop1: list[tuple[str, str, int | None]], hop2: list[tuple[str, str, int | None]]
) -> tuple[float, int]:
    """relation_length and dimension, by the cosines of single hops in one wording."""
    wording = model.wordings[0]
    groups = [[row for row in rows if row[2] == wording] for rows in (hop1, hop2)]
    gram = model.gram([*groups[0], *groups[1]])
    norms = np.sqrt(np.diag(gram))
    cosines, cut = gram / np.outer(norms, norms), len(groups[0])
    apart = float(cosines[:cut, cut:].mean())
    blocks = [cosines[:cut, :cut], cosines[cut:, cut:]]
    pairs = [block[np.triu_indices(len(block), 1)] for block in blocks]
    scale = 1 - apart
    together = (float(np.concatenate(pairs).mean()) - apart) / scale
    spread = float(np.mean([one.std() for one in pairs])) / scale
    nothing = float(kernel.kappa(np.array(0.0)))
    wanted = nothing + min(max(together, 0.0), 0.999) * (1 - nothing)
    cosine = brentq(lambda c: float(kernel.kappa(np.array(c))) - wanted, 0.0, 1.0)
    length = min(math.sqrt(cosine / (1 - cosine)) if cosine < 1 else LONGEST, LONGEST)
    slope = (math.pi - math.acos(cosine)) / math.pi / (1 - nothing)
    # cosines of two prompts of one relation scatter by about (1 - cosine) / sqrt(d) in d dimensions
    dimension = (slope * (1 - cosine) / max(spread, 1e-6)) ** 2
    return max(length, 0.01), max(round(dimension), LEAST)
