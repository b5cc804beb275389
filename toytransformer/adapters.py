"""Low-rank adapters in closed form: Proposition 1, eq. 23, whitened edits, and their gauges.

An adapter changes the readout W (entity x feature) by Delta W = write @ read.T. In the paper's section 3
this is A B^T, in its eq. 26-28 B A^T, in PEFT `lora_B @ lora_A`. `write` says which answers move, `read`
which prompts move them.

All functions take features as rows, `features[i] = phi(h(prompt_i))`, and the wanted changes of output as
rows, `changes[i] = target_i - W phi_i`. They work in any orthonormal coordinates of the features' span, so
the same code serves the sampled network (coordinates = neurons) and its kernel limits (coordinates = a
square root of the Gram matrix).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float
from scipy import linalg, sparse
from scipy.linalg import lapack

from toytransformer.arrays import Array as AnyArray
from toytransformer.arrays import NumpyArray as Array

#: A Gram matrix whose eigenvalue ratio falls below this is singular to float64: solving with it would lose
#: every digit.
SINGULAR = 1e-13
#: Difference of C and C^T, relative to C's largest entry, that counts as rounding (of single precision).
SYMMETRIC = 1e-6
#: Share of non-zero numbers below which a write factor (differences of one-hot answers) is used as sparse.
SPARSE = 0.02


class AdapterError(ValueError):
    """An adapter that cannot be built from what was given; the message says which value and what to do."""


@dataclass(frozen=True)
class LoRA:
    """A factored update Delta W = write @ read.T.

    write: (entity, rank), the directions of output; read: (feature, rank), the directions of input.
    """

    write: Float[AnyArray, "entity rank"]
    read: Float[AnyArray, "feature rank"]

    @property
    def rank(self) -> int:
        return self.write.shape[1]

    def delta(self) -> Float[AnyArray, "entity feature"]:
        """The dense Delta W; costs entity x feature numbers."""
        return self.write @ self.read.T

    def shift(self, features: Float[AnyArray, "prompt feature"]) -> Float[AnyArray, "prompt entity"]:
        """Delta W phi for every prompt, without forming Delta W."""
        return self.written(features @ self.read)

    def written(self, seen: Float[AnyArray, "prompt rank"]) -> Float[AnyArray, "prompt entity"]:
        """write @ seen for every prompt: the second half of `shift`."""
        if isinstance(seen, np.ndarray) and np.count_nonzero(self.write) < SPARSE * self.write.size:
            return seen @ sparse.csr_array(self.write).T
        return seen @ self.write.T

    def regauge(self, transform: Float[AnyArray, "rank rank"]) -> LoRA:
        """(write R, read R^-T): the same Delta W in other factors (merging.md, fact 1)."""
        xp = array_namespace(self.write, transform)
        return LoRA(self.write @ transform, self.read @ xp.linalg.inv(transform).T)

    def penalty(self) -> float:
        """|A|_F^2 + |B|_F^2, the paper's regulariser (section 3.1); its minimum over gauges is twice the
        nuclear norm."""
        return float(np.sum(self.write**2) + np.sum(self.read**2))

    def svd(self) -> tuple[AnyArray, AnyArray, AnyArray]:
        """Delta W = U diag(s) V^T exactly: U (entity, k), s (k,), V (feature, k), k <= rank.

        Two thin QRs and a small SVD: never forms Delta W. Works on arrays of any library.
        """
        xp = array_namespace(self.write, self.read)
        left_q, left_r = xp.linalg.qr(self.write)
        right_q, right_r = xp.linalg.qr(self.read)
        left, values, right_t = xp.linalg.svd(left_r @ right_r.T, full_matrices=False)
        return left_q @ left, values, right_q @ right_t.T


def closed_form(
    features: Float[Array, "fact feature"],
    changes: Float[Array, "fact entity"],
    *,
    rank: int | None = None,
    gauge: str = "svd",
    approximate: str | None = None,
) -> LoRA:
    """The adapter that stores n facts with the least |A|_F^2 + |B|_F^2.

    Delta W = T G^-1 Phi^T with T = changes^T, Phi = features^T, G = Phi^T Phi (eq. 23; n = 1 is Prop. 1,
    eq. 1: Delta W = w v^T / |v|^2). It is the unique minimiser of the nuclear and of the Frobenius norm
    among all D with D Phi = T. It has rank(T), so a smaller `rank` cannot hold the facts and is refused,
    unless `approximate` is
      "loss"     the rank-s update with the least |D Phi - T|_F, then the least norm (what a vanishing
                 penalty tends to), or
      "weights"  the best rank-s approximation of Delta W itself (Eckart-Young).
    Neither is unique when the singular values it cuts between are equal.

    gauge: how the product is factored.
      "plain"          write = T, read = Phi G^-1: one column per fact, not balanced; the cheapest
      "svd"            balanced, A^T A = B^T B diagonal, descending; sign fixed so that each read vector has a
                       positive product with the mean training feature or, where that vanishes (two
                       interchangeable facts), with the first fact's. Does not see the labels of the answers.
      "facts"          balanced, column j belongs to fact j: write = T M, M^2 = C^-1 # G^-1 (geometric mean),
                       C = T^T T, the only symmetric choice; needs linearly independent changes
      "flipped"        "svd" with every sign turned
      "random:<seed>"  "svd" times a random orthogonal matrix

    A `rank` above rank(T) adds zero columns; so do changes that are all zero, which need one.

    Raises AdapterError for non-finite numbers, a zero feature vector, linearly dependent features (a
    singular G), a rank below 1 or below rank(T).
    """
    features, changes = _checked(features, changes)
    if rank is not None:
        check_rank(rank)
    gram = _gram(features)
    if gauge == "plain" and rank is None:
        return LoRA(changes.T, _read(gram, features))
    needed = int(np.linalg.matrix_rank(changes))
    cut = rank is not None and rank < needed
    if cut and approximate is None:
        raise AdapterError(
            f"rank {rank} cannot hold {len(features)} facts whose changes span {needed} dimensions; give "
            f'rank >= {needed}, or ask for the best approximation with approximate="loss" or "weights"'
        )
    if approximate not in (None, "loss", "weights"):
        raise AdapterError(f'approximate is {approximate!r}; allowed: None, "loss", "weights"')
    if cut and approximate == "loss":
        left, values, right_t = np.linalg.svd(changes, full_matrices=False)
        changes = (left[:, :rank] * values[:rank]) @ right_t[:rank]

    plain = LoRA(changes.T, _read(gram, features))
    if gauge == "facts":
        if cut or needed < len(changes):
            raise AdapterError(
                f'gauge "facts" needs one independent change of output per fact, found {needed} for '
                f'{len(changes)} facts; use gauge "svd"'
            )
        return _padded(_facts_gauge(plain, gram, changes), rank)
    if gauge == "plain" and rank is not None and not cut and len(changes) <= rank:
        return _padded(plain, rank)
    kept = rank if rank is not None and cut else needed
    balanced = _padded(_svd_gauge(plain, features, changes, kept), rank)
    if gauge in ("svd", "plain"):
        return balanced
    if gauge == "flipped":
        return LoRA(-balanced.write, -balanced.read)
    if gauge.startswith("random:"):
        seed = gauge.removeprefix("random:")
        if not seed.isdecimal():
            raise AdapterError(
                f'gauge is {gauge!r}; "random:" wants a whole number behind it, such as "random:0"'
            )
        normal = np.random.default_rng(int(seed)).standard_normal((balanced.rank, balanced.rank))
        orthogonal, upper = np.linalg.qr(normal)
        return balanced.regauge(orthogonal * np.sign(np.diag(upper)))
    raise AdapterError(f'gauge is {gauge!r}; allowed: "plain", "svd", "facts", "flipped", "random:<seed>"')


def whitened(
    features: Float[Array, "fact feature"],
    changes: Float[Array, "fact entity"],
    key_covariance: Float[Array, "feature feature"],
    *,
    ridge: float = 0.0,
) -> LoRA:
    """A ROME/MEMIT-style edit: Delta W = T (Phi^T C^-1 Phi + ridge I)^-1 Phi^T C^-1.

    C is the covariance of the keys whose outputs should stay (symmetric positive definite). With ridge = 0
    it stores the facts exactly with the least tr(D C D^T) (ROME); C = I gives Prop. 1 and eq. 23. With
    ridge > 0 it is MEMIT's T Phi^T (Phi Phi^T + ridge C)^-1, which tends to the exact edit as ridge -> 0.
    """
    features, changes = _checked(features, changes)
    covariance = np.asarray(key_covariance, float)
    size = features.shape[1]
    if covariance.shape != (size, size):
        raise AdapterError(f"the key covariance has shape {covariance.shape}; features need ({size}, {size})")
    slack = SYMMETRIC * np.abs(covariance).max()
    if not np.all(np.isfinite(covariance)) or not np.allclose(covariance, covariance.T, rtol=0, atol=slack):
        raise AdapterError("the key covariance must be finite and symmetric")
    if not (np.isfinite(ridge) and ridge >= 0):
        raise AdapterError(f"ridge is {ridge}; it must be a finite number >= 0")
    lowest, highest = linalg.eigvalsh(covariance)[[0, -1]]
    if lowest <= SINGULAR * abs(highest):
        raise AdapterError(
            f"the key covariance is not positive definite (eigenvalues {lowest:.1e} to {highest:.1e}); "
            "add a small multiple of the identity to it"
        )
    keys = linalg.solve(covariance, features.T, assume_a="pos")
    with np.errstate(over="ignore", under="ignore"):
        gram = features @ keys
    _refuse_unsquareable(gram, features)
    gram = gram + ridge * np.eye(len(features))
    _refuse_singular(gram)
    return LoRA(changes.T, linalg.solve(gram, keys.T, assume_a="pos").T)


def frozen_read(
    features: Float[Array, "fact feature"],
    changes: Float[Array, "fact entity"],
    *,
    rank: int,
    seed: int | tuple[int, ...],
    approximate: bool = False,
) -> LoRA:
    """A LoRI-style adapter: `read` is random Gaussian and frozen, only `write` is trained, with the least
    |write|_F.

    write = T K^+ with K = read^T Phi. A Gaussian read factor has the same law in any coordinates, so
    this is the same adapter in the network and in its limits. The facts fit only if rank >= n and their
    features are independent; otherwise AdapterError, or the least-squares fit with `approximate`.
    """
    features, changes = _checked(features, changes)
    check_rank(rank)
    if rank < len(features) and not approximate:
        raise AdapterError(
            f"a frozen read factor of rank {rank} cannot tell {len(features)} facts apart; "
            f"give rank >= {len(features)} or approximate=True"
        )
    if not approximate:
        _gram(features)  # refuses dependent features, which no rank can tell apart
    read = np.random.default_rng(seed).standard_normal((features.shape[1], rank)) / np.sqrt(rank)
    write, *_ = np.linalg.lstsq(features @ read, changes, rcond=None)
    return LoRA(write.T, read)


def _checked(features: Array, changes: Array) -> tuple[Array, Array]:
    features, changes = np.asarray(features, float), np.asarray(changes, float)
    if features.ndim != 2 or changes.ndim != 2 or len(features) != len(changes) or len(features) == 0:
        raise AdapterError(
            f"features {features.shape} and changes {changes.shape} must be (fact, feature), (fact, entity) "
            "with the same, non-zero number of facts"
        )
    for name, rows in (("features", features), ("changes", changes)):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise AdapterError(f"{name} of fact {bad[0]} hold NaN or infinity; every number must be finite")
    zero = np.flatnonzero(~features.any(axis=1))
    if zero.size:
        raise AdapterError(
            f"the feature vector of fact {zero[0]} is zero (no neuron is active on its prompt), so nothing "
            "can be stored on it; use a larger width m"
        )
    return features, changes


def check_rank(rank: object) -> None:
    """Refuse anything but a whole number >= 1 with AdapterError."""
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
        raise AdapterError(f"rank is {rank!r}; it must be a whole number >= 1")


def _gram(features: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        gram = features @ features.T
    _refuse_unsquareable(gram, features)
    _refuse_singular(gram)
    return gram


def _refuse_unsquareable(gram: Array, features: Array) -> None:
    squares = np.diag(gram)
    bad = np.flatnonzero(~np.isfinite(squares) | (squares < np.finfo(float).tiny))
    if bad.size:
        raise AdapterError(
            f"the features of fact {bad[0]} are of size {np.abs(features[bad[0]]).max():.1e}, whose square "
            "float64 cannot hold; rescale them"
        )


def _refuse_singular(gram: Array) -> None:
    norms = np.sqrt(np.diag(gram))
    correlation = gram / np.outer(norms, norms)
    if _conditioning(correlation) > 100 * SINGULAR:
        return
    lowest, highest = linalg.eigvalsh(correlation)[[0, -1]]
    if lowest < SINGULAR * highest:
        raise AdapterError(
            f"the features of the {len(gram)} facts are linearly dependent (smallest to largest eigenvalue "
            f"of their Gram matrix {lowest / highest:.1e}); two facts share a prompt, or the width m is "
            "below the number of facts: remove the duplicates or widen the model"
        )


def _conditioning(gram: Array) -> float:
    """LAPACK's estimate of 1 / (|G|_1 |G^-1|_1), 0 for a G that is not positive definite.

    The number itself is at most the eigenvalue ratio and costs a tenth of it. The estimate errs upwards, by
    far less than a factor of 100 in all but contrived cases.
    """
    factor, failed = lapack.dpotrf(gram, lower=True)
    return 0.0 if failed else float(lapack.dpocon(factor, np.abs(gram).sum(axis=0).max(), uplo="L")[0])


def _read(gram: Array, features: Array) -> Float[Array, "feature fact"]:
    """Phi G^-1; coordinates that are 0 on every fact, as those of later prompts, are not solved for."""
    used = features.any(axis=0)
    read = np.zeros(features.shape[::-1])
    read[used] = linalg.cho_solve(linalg.cho_factor(gram), features[:, used]).T
    return read


def _padded(factors: LoRA, rank: int | None) -> LoRA:
    """Zero columns up to `rank`, or up to one."""
    more = (0, max(rank or 1, factors.rank) - factors.rank)
    return LoRA(np.pad(factors.write, ((0, 0), more)), np.pad(factors.read, ((0, 0), more)))


def _svd_gauge(plain: LoRA, features: Array, changes: Array, rank: int) -> LoRA:
    """Balanced factors from the eigenvectors of Delta W^T Delta W = Q R^-T C R^-1 Q^T, where Phi = Q R, C =
    T^T T.

    C does not change when the answers are renamed, so neither do the read vectors, even where singular
    values tie.
    """
    q, r = np.linalg.qr(features.T)
    inner = linalg.solve_triangular(r, (changes @ changes.T), trans="T")
    core = linalg.solve_triangular(r, inner.T, trans="T")
    values, vectors = linalg.eigh((core + core.T) / 2)
    order = np.argsort(values)[::-1][:rank]
    if rank and values[order[-1]] <= len(values) * np.finfo(float).eps * values[order[0]]:
        raise AdapterError(
            "the singular values of Delta W spread over more than eight digits, so its small ones are lost; "
            'drop nearly dependent facts, give a smaller rank, or use gauge "plain"'
        )
    right = q @ vectors[:, order]
    right = right * _signs(features @ right)
    root = values[order] ** 0.25
    return LoRA(plain.shift(right.T).T / root, right * root)


def _signs(products: Float[Array, "fact rank"]) -> Float[Array, " rank"]:
    """The sign of each column's mean or, where rounding would decide that, of its first non-zero entry."""
    candidates = np.vstack([products.mean(axis=0), products])
    counts = np.abs(candidates) > np.sqrt(np.finfo(float).eps) * np.abs(products).max(axis=0)
    first = np.argmax(counts, axis=0)
    return np.where(candidates[first, np.arange(products.shape[1])] < 0, -1.0, 1.0)


def _facts_gauge(plain: LoRA, gram: Array, changes: Array) -> LoRA:
    c_root, c_inverse_root = _roots(changes @ changes.T)
    middle, _ = _roots(c_root @ linalg.inv(gram) @ c_root)
    square = c_inverse_root @ middle @ c_inverse_root  # C^-1 # G^-1
    root, inverse_root = _roots(square)
    return LoRA(plain.write @ root, plain.read @ inverse_root)


def _roots(matrix: Array) -> tuple[Array, Array]:
    """Symmetric square root of a positive definite matrix, and its inverse."""
    values, vectors = linalg.eigh((matrix + matrix.T) / 2)
    root = np.sqrt(values)
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
