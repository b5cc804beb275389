"""Derived standard errors of a finite network's outputs around the width limit of the same embeddings.

With Phi the features of an adapter's facts, an output is linear in c = G^-1 k, and G and k are means over
neurons, so to first order each neuron r moves entry e of the output on prompt xi by

    psi_r = Delta W[e, r] (phi_r(xi) - c . Phi_r),

the adapter's entry at that neuron times what its facts leave unexplained of the prompt there. Neurons are
independent, so the variance is sum_r psi_r^2; for one fact this is kernel.overlap_standard_error.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

from toytransformer.prediction import Prediction, train
from toytransformer.regimes import Finite, RegimeError

Array = np.ndarray

#: Neurons the variance is averaged over; its own relative error is of the order of SAMPLE^-1/2.
SAMPLE = 2**13
#: Neurons summed over at a time, so that no adapter is dense over all of them.
BLOCK = 2**9


def standard_error(prediction: Prediction, first: int | None = None) -> Float[Array, "question entity"]:
    """Derived standard error of `prediction.output` around the width limit on the same embeddings.

    Of the `first` questions, or of all. For the rules whose output is linear in the adapters ("sum", "mean")
    and direct questions, in the finite regime; RegimeError otherwise (a limit has no neurons to average
    over).
    """
    composition, regime = prediction.composition, prediction.regime
    rule = composition.merge.rule
    direct = all(question.decode == "direct" for question in composition.questions)
    if not isinstance(regime, Finite) or rule not in ("sum", "mean") or not direct:
        raise RegimeError(
            f"no derived standard error for rule {rule!r} in regime {regime.name!r}: it exists for the rules "
            "sum and mean on direct questions in the finite regime"
        )
    # Facts explain as many neurons as they are, so the sample has to be larger than their number.
    sampled = regime.thinned(max(SAMPLE, 4 * len(composition.prompts)))
    features = sampled.features(composition.prompts, neurons=True)
    rows = dict(zip(composition.prompts, features.values, strict=True))
    asked = np.stack([rows[question.prompt] for question in composition.questions[:first]])
    count = len(composition.adapters)
    weights = composition.merge.weights or (1.0 if rule == "sum" else 1.0 / count,) * count
    loras = [train(adapter, composition.world, rows, gauge_matters=False) for adapter in composition.adapters]
    unexplained = []
    for adapter, weight in zip(composition.adapters, weights, strict=True):
        facts = np.stack([rows[fact.prompt] for fact in adapter.stored(composition.world)])
        c = np.linalg.solve(facts @ facts.T, facts @ asked.T).T
        unexplained.append(weight * (asked - c @ facts))
    moved = np.flatnonzero(sum(np.abs(lora.write).sum(axis=1) for lora in loras))
    variance = np.zeros((len(asked), len(composition.world.entities)))
    for start in range(0, sampled.width, BLOCK):
        block = slice(start, start + BLOCK)
        terms = [
            (rest[:, block], lora.write[moved] @ lora.read[block].T)
            for rest, lora in zip(unexplained, loras, strict=True)
        ]
        # (sum_i u_i D_i)^2 pair by pair, so that the sum over neurons is a matrix product
        for (rest, delta), (other_rest, other_delta) in itertools.product(terms, repeat=2):
            variance[:, moved] += (rest * other_rest) @ (delta * other_delta).T
    return np.sqrt(np.maximum(variance, 0.0) * sampled.width / regime.width)
