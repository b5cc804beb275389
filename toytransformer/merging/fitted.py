"""Merges that are fitted on examples of the target task, and the controls they have to beat.

With S_i = adapter_i.shift(example features), (example, entity), and T the wanted shifts, the loss is

    L = (1/examples) |merged shift - T|_F^2.

For product-wise merges L is convex in the coefficients a_i of the Delta_i, and each way of parametrising
them only limits where they may lie (FORMS). So the fits are exact minima over the closed limits, not the
end of a gradient descent: a coefficient on the boundary, such as a softmax weight of 0, is the limit of
logits that would train for ever. This module works in NumPy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import Bounds, differential_evolution, lsq_linear, nnls

from toytransformer.adapters import LoRA
from toytransformer.arrays import NumpyArray as Array
from toytransformer.arrays import like
from toytransformer.merging.merged import StaticMerge
from toytransformer.merging.registry import (
    MergeContext,
    Weights,
    choice,
    merge_rule,
    number,
    positive,
    whole,
)
from toytransformer.merging.static import merged_factors, merged_products, require_equal_ranks


def free(design: Float[Array, "row adapter"], wanted: Float[Array, "row"]) -> Float[Array, "adapter"]:
    """argmin |design a - wanted|; the shortest such a where there are several."""
    return np.linalg.lstsq(design, wanted, rcond=None)[0]


def on_simplex(design: Float[Array, "row adapter"], wanted: Float[Array, "row"]) -> Float[Array, "adapter"]:
    """argmin |design a - wanted| over a >= 0, sum a = 1.

    As sum a = 1, design a - wanted = D a with D_i = design_i - wanted: the point nearest to zero in the
    hull of the D_i. It is u / sum u for the u >= 0 that minimise |D u|^2 + (1 - sum u)^2: for u = t a the
    best t leaves q / (1 + q), q = |D a|^2, which grows with q.
    """
    gaps = design - wanted[:, None]
    stacked = np.vstack([gaps / _unit(gaps), np.ones(design.shape[1])])
    solution, _ = nnls(stacked, np.append(np.zeros(len(gaps)), 1.0))
    return solution / solution.sum()


def within(low: float, high: float) -> Callable[[Array, Array], Array]:
    def fit(design: Array, wanted: Array) -> Array:
        """argmin |design a - wanted| over low <= a_i <= high."""
        unit = _unit(design)  # BVLS stops at an absolute slope, so it needs numbers of order one
        return lsq_linear(design / unit, wanted / unit, bounds=(low, high), method="bvls").x

    return fit


def _unit(values: Array) -> float:
    """The largest magnitude, or 1 where all are zero."""
    return float(np.max(np.abs(values))) or 1.0


#: f in sum_i f(w)_i Delta_i -> the least-squares fit over the closure of f's values.
FORMS: dict[str, Callable[[Array, Array], Array]] = {
    "identity": free,
    "tanh": within(-1.0, 1.0),
    "sigmoid": within(0.0, 1.0),
    "softmax": on_simplex,
    "leaky-relu": free,
    "squared": within(0.0, math.inf),
}


def form_of(options: Mapping[str, object]) -> str:
    """The name in FORMS of the coefficients that a rule's options ask for; CAT's "free" is the identity."""
    form = options["f"] if "f" in options else options["form"]
    return "identity" if form == "free" else str(form)


def _examples(context: MergeContext) -> tuple[Array, Array]:
    return np.asarray(context.example_features, float), np.asarray(context.example_targets, float)


def _shifts(adapters: Sequence[LoRA], features: Array) -> Float[Array, "adapter example entity"]:
    return np.stack([features @ np.asarray(a.read, float) @ np.asarray(a.write, float).T for a in adapters])


def _fit_products(adapters: Sequence[LoRA], context: MergeContext, form: str) -> StaticMerge:
    features, targets = _examples(context)
    shifts = _shifts(adapters, features)
    weights = FORMS[form](shifts.reshape(len(adapters), -1).T, targets.reshape(-1))
    residual = np.einsum("i,ies->es", weights, shifts) - targets
    loss = float(np.sum(residual**2)) / len(features)
    coefficients = tuple(float(weight) for weight in weights)
    return merged_products(adapters, coefficients, details={"weights": coefficients, "loss": loss})


fitted_rule = functools.partial(merge_rule, label_blind=False, weighted=False)
product_rule = functools.partial(fitted_rule, gauge_invariant=True, fitted_by="products", fits="sum")
SEED = whole(0, "the seed of the context")


@product_rule("cat-fitted", paper="cat", options={"form": choice("softmax", "free")})
def cat_fitted(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, form: str
) -> StaticMerge:
    """Delta = sum_i a_i Delta_i, a = softmax(l) or any real numbers, with the least loss on the examples.

    CAT: LoRA Soups (arXiv 2410.13025) trains the logits l only (form="softmax"); the paper's eq. 26 has
    free a_i (form="free"). Gauge-invariant. details: weights, loss.
    """
    return _fit_products(adapters, context, form_of({"form": form}))


@product_rule("adaptive", options={"f": choice(*FORMS)})
def adaptive(adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, f: str) -> StaticMerge:
    """Delta = sum_i f(w)_i Delta_i, w with the least loss on the examples.

    f: identity, tanh, sigmoid, leaky ReLU, square (entry by entry) or softmax. Adaptive merging (arXiv
    2602.12323; its f have no tanh, and its own is the leaky ReLU), for the one module that the toy model has.
    Gauge-invariant. details: weights (the f(w)_i), loss.
    """
    return _fit_products(adapters, context, f)


@product_rule(
    "adaptive-random",
    needs_neurons=True,
    control=True,
    options={"f": choice(*FORMS), "seed": SEED},
)
def adaptive_random(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, f: str, seed: int | None
) -> StaticMerge:
    """Delta = sum_i f(w)_i R_i, fitted as in `adaptive`, R_i random with the singular values of Delta_i.

    After the control of arXiv 2602.12323: does it matter which adapters are merged? R_i = U diag(s(Delta_i))
    V^T with orthonormal U, V drawn uniformly, V among all directions of the m neurons. Depends on the Delta_i
    through singular values only. The paper's code draws the factors apart, with the standard deviations of
    the pool's, and keeps the target's own adapter as it is.
    """
    seed = context.rng_seed if seed is None else seed
    rng = np.random.default_rng(seed)
    merged = _fit_products([random_twin(lora, rng) for lora in adapters], context, f)
    return StaticMerge(merged.update, details={**merged.details, "seed": seed})


def random_twin(lora: LoRA, rng: np.random.Generator) -> LoRA:
    """A LoRA with the singular values of `lora` and uniformly random singular vectors."""
    _, values, _ = lora.svd()
    left, right = (
        np.linalg.qr(rng.standard_normal((len(side), len(values))))[0] for side in (lora.write, lora.read)
    )
    return LoRA(like(lora.write, left) * values, like(lora.read, right))


@fitted_rule("new-adapter", gauge_invariant=True, fitted_by="train")
def new_adapter(adapters: Sequence[LoRA], weights: Weights, context: MergeContext) -> StaticMerge:
    """Delta = T^T (Phi^+)^T: the smallest update that fits the examples, made without the adapters.

    Phi (example, feature), T (example, entity). The baseline of arXiv 2602.12323: one new LoRA on the same
    data. Exact on the examples if their features are independent (eq. 23), least squares otherwise.
    """
    features, targets = _examples(context)
    read = np.linalg.pinv(features)
    residual = features @ read @ targets - targets
    loss = float(np.sum(residual**2)) / len(features)
    reference = adapters[0].write
    return StaticMerge(LoRA(like(reference, targets.T), like(reference, read)), details={"loss": loss})


@fitted_rule(
    "lorahub",
    gauge_invariant=False,
    fitted_by="search",
    fits="linear",
    options={
        "penalty": number(0.05, 0),
        "bound": positive(1.5, most=1e6),  # the loss has fourth powers of it
        "seed": SEED,
    },
)
def lorahub(
    adapters: Sequence[LoRA],
    weights: Weights,
    context: MergeContext,
    *,
    penalty: float,
    bound: float,
    seed: int | None,
) -> StaticMerge:
    """Delta = (sum_i w_i write_i)(sum_j w_j read_j)^T, w minimising L(w) + penalty mean|w_i|.

    Over |w_i| <= bound. LoraHub (arXiv 2307.13269): few examples, no gradients. Its code averages |w_i|
    over the adapters, and divides its loss, a mean already, by the number of examples once more. The search
    is SciPy's differential evolution in place of nevergrad's NGOpt with 40 steps. As L(w) = L(-w), of the two
    minima the one with the larger sum is returned. Factor-wise: moves under a change of gauge. Needs equal
    ranks. details: weights, loss (without penalty).
    """
    require_equal_ranks(adapters)
    seed = context.rng_seed if seed is None else seed
    features, targets = _examples(context)
    seen = np.stack([features @ np.asarray(a.read, float) for a in adapters])
    write = np.stack([np.asarray(a.write, float) for a in adapters])

    def loss(w: Array) -> float:
        shift = np.tensordot(w, seen, 1) @ np.tensordot(w, write, 1).T
        return float(np.sum((shift - targets) ** 2)) / len(features)

    def objective(w: Array) -> float:
        return loss(w) + penalty * float(np.mean(np.abs(w)))

    search = differential_evolution(
        objective,
        Bounds([-bound] * len(adapters), [bound] * len(adapters)),
        rng=np.random.default_rng(seed),
        tol=1e-10,
        maxiter=2000,
        polish=False,
    )
    best = search.x if search.x.sum() >= 0 else -search.x
    w = tuple(float(value) for value in best)
    details = {"weights": w, "loss": loss(best), "seed": seed, "evaluations": int(search.nfev)}
    return merged_factors(adapters, w, w, details=details)
