"""Derived standard errors of a finite network's outputs around the width limit of the same embeddings.

With Phi the features of an adapter's facts, an output is linear in c = G^-1 k, and G and k are means over
neurons, so to first order each neuron r moves entry e of the output on prompt xi by

    psi_r = Delta W[e, r] (phi_r(xi) - c . Phi_r),

the adapter's entry at that neuron times what its facts leave unexplained of the prompt there. Neurons are
independent, so the variance is sum_r psi_r^2; for one fact this is kernel.overlap_standard_error.

A trained base W0 is such an update too. What the adapters are trained on, i_new - W0 phi(eta_j), moves by the
same noise, so what counts of it is u0(xi) - sum_j w c_j u0(eta_j), with u0 what the base's facts leave
unexplained.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

from toytransformer.adapters import LoRA
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
    composition, regime, toy = prediction.composition, prediction.regime, prediction.toy
    world = composition.world
    rule = composition.merge.rule
    direct = all(question.decode == "direct" for question in composition.questions)
    if not isinstance(regime, Finite) or rule not in ("sum", "mean") or not direct:
        raise RegimeError(
            f"no derived standard error for rule {rule!r} in regime {regime.name!r}: it exists for the rules "
            "sum and mean on direct questions in the finite regime"
        )
    # Facts explain as many neurons as they are, so the sample has to be larger than their number.
    prompts = tuple(dict.fromkeys((*composition.prompts, *toy.base.prompts(world))))
    sampled = regime.thinned(max(SAMPLE, 4 * len(prompts)))
    features = sampled.features(prompts, neurons=True)
    rows = dict(zip(prompts, features.values, strict=True))
    base, coordinates = toy.base.fit(world, rows), toy.readout.on(world)
    asked = np.stack([rows[question.prompt] for question in composition.questions[:first]])
    count = len(composition.adapters)
    weights = composition.merge.weights or (1.0 if rule == "sum" else 1.0 / count,) * count
    loras = [
        train(adapter, world, rows, gauge_matters=False, base=base, coordinates=coordinates)
        for adapter in composition.adapters
    ]
    unexplained, of_base = [], asked
    for adapter, weight in zip(composition.adapters, weights, strict=True):
        facts = np.stack([rows[fact.prompt] for fact in adapter.stored(world)])
        c = np.linalg.solve(facts @ facts.T, facts @ asked.T).T
        unexplained.append(weight * (asked - c @ facts))
        of_base = of_base - weight * (c @ facts)
    if base.update:
        known = np.stack([rows[prompt] for prompt in toy.base.prompts(world)])
        unexplained.append(of_base - np.linalg.solve(known @ known.T, known @ of_base.T).T @ known)
        loras.append(LoRA(coordinates.apply(base.update.write.T).T, base.update.read))
    loras = [LoRA(coordinates.apply(lora.write.T).T, lora.read) for lora in loras]
    moved = np.flatnonzero(sum(np.abs(lora.write).sum(axis=1) for lora in loras))
    variance = np.zeros((len(asked), len(world.entities)))
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
