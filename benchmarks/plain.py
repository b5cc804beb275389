"""The model as one writes it down: every matrix of section 3 is built, every step is a line of NumPy.

The other route to the numbers of toytransformer, of which it imports nothing: to compare with in speed and in
value. Prompts are tuples of token names, an entity and its relations; strict mask, uniform attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Prompt = tuple[str, ...]
Precision = type[np.float32]


def hidden_states(prompts: Sequence[Prompt], embeddings: np.ndarray, values: np.ndarray) -> np.ndarray:
    """h = e_last + mean of V e_t over the tokens before it, (prompt, dimension); eq. 5.

    embeddings: (token, dimension), tokens in order of first appearance. values: V, (dimension, dimension).
    """
    index = {token: i for i, token in enumerate(tokens(prompts))}
    states = np.empty((len(prompts), embeddings.shape[1]), embeddings.dtype)
    for row, prompt in enumerate(prompts):
        *before, last = [index[token] for token in prompt]
        states[row] = embeddings[last] + values @ embeddings[before].mean(axis=0)
    return states


def tokens(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The tokens of the prompts, each once, in order of first appearance."""
    return tuple(dict.fromkeys(token for prompt in prompts for token in prompt))


def coefficients(
    keys: Sequence[Prompt],
    query: Prompt,
    dimension: int,
    width: int,
    seed: int,
    dtype: type[np.float32] = np.float32,
) -> np.ndarray:
    """c = phi(key) . phi(query) / |phi(key)|^2, (key,), in one network with E, V and all of U drawn."""
    rng = np.random.default_rng(seed)
    prompts = [*keys, query]
    scale = dtype(dimension**-0.5)
    embeddings = scale * rng.standard_normal((len(tokens(prompts)), dimension), dtype)
    values = scale * rng.standard_normal((dimension, dimension), dtype)
    neurons = rng.standard_normal((width, dimension), dtype)
    neurons *= scale
    features = np.maximum(neurons @ hidden_states(prompts, embeddings, values).T, 0)
    trained, query_features = features[:, :-1], features[:, -1]
    return (trained.T @ query_features) / (trained**2).sum(axis=0)


def coefficient_draws(
    keys: Sequence[Prompt], query: Prompt, dimension: int, width: int, draws: int, seed: int = 0
) -> np.ndarray:
    """The coefficients of `draws` networks, one after the other, (draw, key)."""
    return np.array([coefficients(keys, query, dimension, width, seed + i) for i in range(draws)])


def limit_outputs(
    adapters: Sequence[Sequence[tuple[Prompt, str]]],
    questions: Sequence[Prompt],
    old: dict[Prompt, str],
    answers: Sequence[str],
) -> np.ndarray:
    """Output of the base plus the sum of adapters on the questions for m, d -> infinity, (question, answer).

    adapters: the facts (prompt, new answer) of each. old: the base model's answers. In the limit the tokens'
    embeddings and values are 2 x token orthonormal vectors, and features have the kernel of eq. 13-15.
    """
    trained = [prompt for facts in adapters for prompt, _ in facts]
    prompts = [*trained, *questions]
    count = len(tokens(prompts))
    embeddings = np.eye(count, 2 * count)
    index = {token: i for i, token in enumerate(tokens(prompts))}
    states = np.zeros((len(prompts), 2 * count))
    for row, prompt in enumerate(prompts):
        *before, last = [index[token] for token in prompt]
        states[row] = embeddings[last]
        for token in before:
            states[row, count + token] += 1 / len(before)
    inner = states @ states.T
    norms = np.sqrt(np.diag(inner))
    cosines = np.clip(inner / np.outer(norms, norms), -1, 1)
    kernel = (
        np.outer(norms, norms) * (np.sqrt(1 - cosines**2) + (np.pi - np.arccos(cosines)) * cosines) / np.pi
    )

    place = {answer: i for i, answer in enumerate(answers)}
    output = np.zeros((len(questions), len(answers)))
    for row, prompt in enumerate(questions):
        if prompt in old:
            output[row, place[old[prompt]]] += 1
    start = 0
    for facts in adapters:
        changes = np.zeros((len(facts), len(answers)))
        for row, (prompt, new) in enumerate(facts):
            changes[row, place[new]] += 1
            if prompt in old:
                changes[row, place[old[prompt]]] -= 1
        mine = slice(start, start + len(facts))
        output += kernel[len(trained) :, mine] @ np.linalg.solve(kernel[mine, mine], changes)
        start += len(facts)
    return output
