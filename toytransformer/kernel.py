"""The ReLU random-features kernel of eq. 13-15, its constants, and the derived spread of its estimates.

Everything here is stated per hidden states x, x' with the normalisation

    k(x, x') = |x| |x'| kappa(cos),    kappa(c) = (sqrt(1 - c^2) + (pi - arccos c) c) / pi,    kappa(1) = 1,

which is 2 d times the paper's k (U has entries of variance 1/d). All predictions are ratios and do not see
the factor; it is the limit of features phi(h) = sqrt(2 / m) relu(z), z_i ~ N(0, h h'). Functions accept
NumPy, JAX or other array-API arrays.
"""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from toytransformer.arrays import Array

#: Rows of a Gram matrix evaluated at a time: the intermediate results then stay in the processor's cache.
BLOCK = 256


def kappa(cosine: Array) -> Array:
    """kappa(c) = (sqrt(1 - c^2) + (pi - arccos c) c) / pi, the arc-cosine kernel of degree 1."""
    xp = array_namespace(cosine)
    cosine = xp.clip(cosine, -1.0, 1.0)
    sine = xp.sqrt((1.0 - cosine) * (1.0 + cosine))  # 1 - c^2 would round to sqrt(eps) near c = 1
    return (sine + (math.pi - xp.acos(cosine)) * cosine) / math.pi


def relu_kernel(inner: Array, norm: Array, other_norm: Array) -> Array:
    """k(x, x') from x.x', |x| and |x'| (broadcast together)."""
    scale = norm * other_norm
    return scale * kappa(inner / scale)


def relu_gram(hidden_gram: Array) -> Array:
    """The Gram matrix of features from that of hidden states, both (..., prompt, prompt)."""
    xp = array_namespace(hidden_gram)
    norms = xp.sqrt(xp.linalg.diagonal(hidden_gram))
    blocks = [
        relu_kernel(hidden_gram[..., rows, :], norms[..., rows, None], norms[..., None, :])
        for rows in (slice(start, start + BLOCK) for start in range(0, norms.shape[-1], BLOCK))
    ]
    return xp.concat(blocks, axis=-2) if len(blocks) > 1 else blocks[0]


def overlap(key_gram: Array, inner: Array, query_gram: Array) -> Array:
    """c = k(key, query) / k(key, key): what a one-fact edit at `key` contributes at `query`.

    key_gram = |key|^2, inner = key.query, query_gram = |query|^2.
    """
    xp = array_namespace(inner)
    key_norm, query_norm = xp.sqrt(key_gram), xp.sqrt(query_gram)
    return relu_kernel(inner, key_norm, query_norm) / key_gram


# Moments of relu(a), relu(b) for unit Gaussians a, b at angle t.


def moment_11(angle: Array) -> Array:
    """E[relu(a) relu(b)] = (sin t + (pi - t) cos t) / (2 pi)."""
    xp = array_namespace(angle)
    return (xp.sin(angle) + (math.pi - angle) * xp.cos(angle)) / (2 * math.pi)


def moment_22(angle: Array) -> Array:
    """E[relu(a)^2 relu(b)^2] = J2(t) / (2 pi), J2 = 3 sin t cos t + (pi - t)(1 + 2 cos^2 t)."""
    xp = array_namespace(angle)
    sine, cosine = xp.sin(angle), xp.cos(angle)
    return (3 * sine * cosine + (math.pi - angle) * (1 + 2 * cosine**2)) / (2 * math.pi)


def moment_31(angle: Array) -> Array:
    """E[relu(a)^3 relu(b)] = (4/pi) (cos t (3 (pi - t)/8 + sin 2t/4 - sin 4t/32) + sin^5 t/4).

    In polar coordinates a = r cos s, b = r cos(s - t) with E r^4 = 8; the angle s runs over (t - pi/2, pi/2).
    """
    xp = array_namespace(angle)
    bulk = 3 * (math.pi - angle) / 8 + xp.sin(2 * angle) / 4 - xp.sin(4 * angle) / 32
    return (4 / math.pi) * (xp.cos(angle) * bulk + xp.sin(angle) ** 5 / 4)


def kernel_standard_error(gram: Array, inner: Array, other_gram: Array, width: float) -> Array:
    """Standard error of (2/m) sum_r relu(u_r.x) relu(u_r.x') over m = `width` neurons; its mean is k.

    Var = 4 |x|^2 |x'|^2 (E[relu(a)^2 relu(b)^2] - E[relu(a) relu(b)]^2) / m, for gram = |x|^2 and
    other_gram = |x'|^2.
    """
    xp = array_namespace(inner)
    scale = xp.sqrt(gram * other_gram)
    angle = xp.acos(xp.clip(inner / scale, -1.0, 1.0))
    return 2 * scale * xp.sqrt((moment_22(angle) - moment_11(angle) ** 2) / width)


def overlap_gradient(key_gram: Array, inner: Array, query_gram: Array) -> tuple[Array, Array, Array]:
    """Slopes of c in (key_gram, inner, query_gram), with kappa'(r) = (pi - arccos r) / pi at r = cos.

    With s = sqrt(query_gram / key_gram), c = s kappa(r), and they are -(c + s kappa'(r) r) / (2 key_gram),
    kappa'(r) / key_gram and (c - s kappa'(r) r) / (2 query_gram).
    """
    xp = array_namespace(inner)
    c = overlap(key_gram, inner, query_gram)
    cosine = xp.clip(inner / xp.sqrt(key_gram * query_gram), -1.0, 1.0)
    slope = (math.pi - xp.acos(cosine)) / math.pi
    along = slope * inner / key_gram
    return -(c + along) / (2 * key_gram), slope / key_gram, (c - along) / (2 * query_gram)


def overlap_standard_error(key_gram: Array, inner: Array, query_gram: Array, width: float) -> Array:
    """Standard error of the estimate of c = k12/k11 from m = `width` neurons, hidden states held fixed.

    Delta method, with a = relu(u.key) and b = relu(u.query):
    Var c = (Var[ab] - 2 c Cov[ab, a^2] + c^2 Var[a^2]) / (m E[a^2]^2).
    For c1 in the full limit it is 0.9019 / sqrt(m).
    """
    xp = array_namespace(inner)
    key_norm, query_norm = xp.sqrt(key_gram), xp.sqrt(query_gram)
    angle = xp.acos(xp.clip(inner / (key_norm * query_norm), -1.0, 1.0))
    ratio = query_norm / key_norm
    product = moment_11(angle)
    c = 2 * product * ratio
    variance = (
        ratio**2 * (moment_22(angle) - product**2)
        - 2 * c * ratio * (moment_31(angle) - product / 2)
        + c**2 * (3 / 2 - 1 / 4)
    )
    return xp.sqrt(xp.clip(variance, 0.0, math.inf) / width) * 2
