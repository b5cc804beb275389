"""LoRA trained by gradient descent on loss + L2 penalty (optax), against its closed form.

The objective is |T - A B^T Phi|_F^2 + penalty (|A|_F^2 + |B|_F^2). Because |A|^2 + |B|^2 is at least twice
the nuclear norm of A B^T, training solves a nuclear-norm problem. For one fact its minimiser is Prop. 1's
update times 1 - penalty / (|w| |v|), so the relative gap to the closed form is penalty / (|w| |v|): it
vanishes at rate 1 in the penalty.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from toytransformer.adapters import AdapterError, LoRA, check_rank, closed_form

#: What a step of training hands on: factors, the optimiser's state, the gradient's norm, the number of steps.
Carry = tuple["Factors", optax.OptState, jax.Array, int]


@dataclass(frozen=True)
class TrainedLoRA:
    """A trained adapter, its distance from the closed form, and how the training ended.

    gap: |Delta W - closed form|_F / |closed form|_F; loss: the final sum of squares; gradient: final
    gradient norm.
    """

    lora: LoRA
    gap: float
    loss: float
    gradient: float
    steps: int


def train_lora(
    features: np.ndarray,
    changes: np.ndarray,
    *,
    rank: int,
    penalty: float,
    seed: int,
    steps: int = 2000,
    tolerance: float = 1e-10,
) -> TrainedLoRA:
    """Train A, B from small random values with L-BFGS until the gradient norm falls below `tolerance` (or
    `steps`).

    features (fact, feature), changes (fact, entity). Precision follows jax_enable_x64.
    """
    check_rank(rank)
    if not (np.isfinite(penalty) and penalty >= 0):
        raise AdapterError(f"penalty is {penalty}; it must be a finite number >= 0")
    exact = closed_form(features, changes).delta()
    if not exact.any():
        raise AdapterError("the changes of output are all zero; there is nothing to train")
    rng_a, rng_b = jax.random.split(jax.random.key(seed))
    start = (
        0.1 * jax.random.normal(rng_a, (changes.shape[1], rank)),
        0.1 * jax.random.normal(rng_b, (features.shape[1], rank)),
    )
    factors, gradient, taken = _minimise(
        start, jnp.asarray(features), jnp.asarray(changes), penalty, steps, tolerance
    )
    trained = LoRA(np.asarray(factors[0], float), np.asarray(factors[1], float))
    residual = trained.shift(features) - changes
    gap = np.linalg.norm(trained.delta() - exact) / np.linalg.norm(exact)
    return TrainedLoRA(trained, float(gap), float(np.sum(residual**2)), float(gradient), int(taken))


def one_fact_gap(features: np.ndarray, changes: np.ndarray, penalty: float) -> float:
    """penalty / (|w| |v|), the derived relative gap of the minimiser for one fact (1 once the penalty kills
    the update)."""
    return min(1.0, penalty / float(np.linalg.norm(features) * np.linalg.norm(changes)))


Factors = tuple[jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames=("steps",))
def _minimise(
    start: Factors, features: jax.Array, changes: jax.Array, penalty: float, steps: int, tolerance: float
) -> tuple[Factors, jax.Array, int]:
    def objective(factors: Factors) -> jax.Array:
        write, read = factors
        error = (features @ read) @ write.T - changes
        return jnp.sum(error**2) + penalty * (jnp.sum(write**2) + jnp.sum(read**2))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Carry) -> Carry:
        factors, state, _, count = carry
        value, gradient = value_and_grad(factors, state=state)
        updates, state = solver.update(
            gradient, state, factors, value=value, grad=gradient, value_fn=objective
        )
        factors = optax.apply_updates(factors, updates)
        return factors, state, optax.tree.norm(gradient), count + 1

    def unfinished(carry: Carry) -> jax.Array:
        return (carry[3] < steps) & (carry[2] > tolerance)

    infinite = jnp.asarray(jnp.inf, changes.dtype)
    factors, _, gradient, count = jax.lax.while_loop(
        unfinished, step, (start, solver.init(start), infinite, 0)
    )
    return factors, gradient, count
