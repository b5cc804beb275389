"""Derived standard errors of a finite network's outputs around the width limit of the same embeddings.

With Phi the features of an adapter's facts, an output is linear in c = G^-1 k, and G and k are means over
neurons, so to first order each neuron r moves entry e of the output on prompt xi by

    psi_r = Delta W[e, r] (phi_r(xi) - c . Phi_r),

the adapter's entry at that neuron times what its facts leave unexplained of the prompt there. Neurons are
independent, so the variance is sum_r psi_r^2; for one fact this is kernel.overlap_standard_error.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.prediction import Prediction, train
from toytransformer.regimes import Finite, RegimeError

Array = np.ndarray

#: Neurons the variance is averaged over; its own relative error is of the order of SAMPLE^-1/2.
SAMPLE = 2**13


def influence(
    lora: LoRA,
    facts: Float[Array, "fact neuron"],
    prompts: Float[Array, "prompt neuron"],
    weight: float = 1.0,
) -> Float[Array, "prompt entity neuron"]:
    """psi_r of one adapter, (prompt, entity, neuron); add those of several adapters before squaring."""
    c = np.linalg.solve(facts @ facts.T, facts @ prompts.T).T
    unexplained = prompts - c @ facts
    return weight * unexplained[:, None, :] * lora.delta()[None]


def standard_error(prediction: Prediction) -> Float[Array, "question entity"]:
    """Derived standard error of `prediction.output` around the width limit on the same embeddings.

    For the rules whose output is linear in the adapters ("sum", "mean") and direct questions, in the finite
    regime; RegimeError otherwise (a limit has no neurons to average over).
    """
    composition, regime = prediction.composition, prediction.regime
    rule = composition.merge.rule
    direct = all(question.decode == "direct" for question in composition.questions)
    if not isinstance(regime, Finite) or rule not in ("sum", "mean") or not direct:
        raise RegimeError(
            f"no derived standard error for rule {rule!r} in regime {regime.name!r}: it exists for the rules "
            "sum and mean on direct questions in the finite regime"
        )
    sampled = regime.thinned(SAMPLE)
    features = sampled.features(composition.prompts, neurons=True)
    rows = dict(zip(composition.prompts, features.values, strict=True))
    asked = np.stack([rows[question.prompt] for question in composition.questions])
    count = len(composition.adapters)
    weights = composition.merge.weights or (1.0 if rule == "sum" else 1.0 / count,) * count
    variance = np.empty((len(asked), len(composition.world.entities)))
    facts = [np.stack([rows[prompt] for prompt in adapter.prompts]) for adapter in composition.adapters]
    loras = [train(adapter, composition.world, rows, gauge_matters=False) for adapter in composition.adapters]
    for row, prompt in enumerate(asked):
        psi = sum(
            influence(lora, phi, prompt[None], weight)[0]
            for lora, phi, weight in zip(loras, facts, weights, strict=True)
        )
        variance[row] = np.sum(psi**2, axis=1)
    return np.sqrt(variance * sampled.width / regime.width)
