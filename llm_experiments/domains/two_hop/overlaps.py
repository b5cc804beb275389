"""c1, c2 and the leak of edits in a language model's features, own entity against others (eq. 24, 25).

An edit at a prompt with features v adds c = <v, phi> / <v, v> of its change to a prompt with features phi. Of
chains x_i -> y_i -> z_i there are, on the two-hop prompt of chain j,

    c1[i, j] of the edit at x_i R1,        c2[i, j] of the edit at y_i R2,

and eq. 25 says that c2 does not know which y is the right one: c2[j, j] = c2[i, j]. All of it needs inner
products only, so a layer is kept as the Gram matrix of its prompts, and the toy's kernel goes through the
same functions: `table` puts its prediction beside every measurement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy import linalg, stats

from llm_experiments.editing.features import EditError, observe
from llm_experiments.models.handle import LoadedModel
from toytransformer.compositions import Prompt
from toytransformer.regimes import FullLimit

Array = np.ndarray

#: How inner products are taken: as they are, about the mean of the reference prompts, by C^-1 with C the
#: second moment of the reference prompts (ROME's), or both with C their covariance.
METRICS = ("raw", "centred", "whitened", "centred and whitened")
#: Up to this many chains all relabellings are tried, above it random ones.
EXHAUSTIVE = 7
KINDS = ("hop1", "hop2", "two_hop", "reference", "unrelated")


@dataclass(frozen=True)
class Overlaps:
    """Inner products of the features of one layer, (prompt, prompt), prompts in the order of KINDS.

    chains: number of hop1, of hop2 and of two_hop prompts. reference, unrelated: numbers of prompts that
    share nothing with the chains, the first for the mean and C, the second to measure the leak on. width:
    features.
    """

    gram: Float[Array, "prompt prompt"]
    chains: int
    reference: int
    unrelated: int
    width: float

    def __post_init__(self) -> None:
        if self.chains < 1 or self.reference < 2 or self.unrelated < 1:
            raise EditError(
                f"{self.chains} chains, {self.reference} reference and {self.unrelated} unrelated prompts: "
                "give at least 1, 2 and 1"
            )
        if self.gram.shape != (self._ends[-1],) * 2:
            raise EditError(f"the Gram matrix has shape {self.gram.shape} for {self._ends[-1]} prompts")

    @property
    def _ends(self) -> list[int]:
        sizes = (self.chains,) * 3 + (self.reference, self.unrelated)
        return list(itertools.accumulate(sizes))

    def rows(self, kind: str) -> slice:
        """Where the prompts of one of KINDS are."""
        place = KINDS.index(kind)
        return slice(self._ends[place - 1] if place else 0, self._ends[place])

    def inner(self, metric: str, ridge: float) -> Float[Array, "prompt prompt"]:
        """Inner products under one of METRICS.

        ridge: C = (second moment) + ridge * (mean of its non-zero eigenvalues) I, tr / min(N, width) of them.
        With K the reference features, phi^T C^-1 psi = (phi.psi - phi K^T (N r I + K K^T)^-1 K psi) / r.
        """
        if metric not in METRICS:
            raise EditError(f"metric is {metric!r}; allowed: {', '.join(METRICS)}")
        if not (math.isfinite(ridge) and ridge > 0):
            raise EditError(f"ridge is {ridge!r}; it must be a finite number > 0")
        gram, reference = self.gram, self.rows("reference")
        if "centred" in metric:
            mean = gram[:, reference].mean(axis=1)
            gram = gram - mean[:, None] - mean[None, :] + mean[reference].mean()
        if "whitened" not in metric:
            return gram
        keys = gram[reference, reference]
        strength = ridge * np.trace(keys) / min(len(keys), self.width)  # N r
        solved = linalg.solve(keys + strength * np.eye(len(keys)), gram[reference], assume_a="pos")
        return gram - gram[:, reference] @ solved  # the factor 1/r drops out of every coefficient

    def coefficients(
        self, edited: str, asked: str, *, metric: str = "raw", together: bool = False, ridge: float = 0.1
    ) -> Float[Array, "edit prompt"]:
        """c[i, j] of the edit at prompt i of `edited` ("hop1", "hop2") on prompt j of `asked`.

        together: all edits of the kind are one adapter (eq. 23), not each its own (Prop. 1).
        """
        inner = self.inner(metric, ridge)
        keys, found = self.rows(edited), inner[self.rows(edited), self.rows(asked)]
        if together:
            return linalg.solve(inner[keys, keys], found, assume_a="sym")
        return found / np.diag(inner)[keys, None]


def measured(
    loaded: LoadedModel,
    hop1: Sequence[str],
    hop2: Sequence[str],
    two_hop: Sequence[str],
    reference: Sequence[str],
    unrelated: Sequence[str],
    layers: Sequence[int] | None = None,
) -> dict[int, Overlaps]:
    """The inner products of a model's features at the last token of these questions, layer by layer."""
    if not len(hop1) == len(hop2) == len(two_hop):
        raise EditError(
            f"{len(hop1)}, {len(hop2)} and {len(two_hop)} questions about hop 1, hop 2 and both: "
            "give one of each for every chain, in the same order"
        )
    observed = observe(loaded, [*hop1, *hop2, *two_hop, *reference, *unrelated], layers)
    result = {}
    for layer, seen in observed.items():
        phi = seen.features.astype(float)
        result[layer] = Overlaps(phi @ phi.T, len(hop1), len(reference), len(unrelated), phi.shape[1])
    return result


def predicted(chains: int, reference: int, unrelated: int, regime: FullLimit | None = None) -> Overlaps:
    """The same inner products in the toy model, where the unrelated prompts share no token with any other."""
    prompts = [Prompt(f"x{i}", ("R1",)) for i in range(chains)]
    prompts += [Prompt(f"y{i}", ("R2",)) for i in range(chains)]
    prompts += [Prompt(f"x{i}", ("R1", "R2")) for i in range(chains)]
    prompts += [Prompt(f"u{i}", (f"Q{i}",)) for i in range(reference + unrelated)]
    gram = (regime or FullLimit()).gram(prompts)
    return Overlaps(gram, chains, reference, unrelated, math.inf)


def constants(regime: FullLimit | None = None) -> dict[str, float]:
    """The toy's coefficients of one edit: on x R1 R2 (c1, c2), on the two-hop prompt of another chain
    (c1_other, c2_other), on an unrelated one-hop prompt (leak) and on one that shares a token (shared)."""
    x, y, both = Prompt("x", ("R1",)), Prompt("y", ("R2",)), Prompt("x", ("R1", "R2"))
    far, near, other = Prompt("u", ("Q",)), Prompt("u", ("R1",)), Prompt("u", ("R1", "R2"))
    prompts = [x, y, both, far, near, other]
    gram = (regime or FullLimit()).gram(prompts)

    def coefficient(edited: Prompt, query: Prompt) -> float:
        place = prompts.index(edited)
        return float(gram[place, prompts.index(query)] / gram[place, place])

    return {
        "c1": coefficient(x, both),
        "c2": coefficient(y, both),
        "c1_other": coefficient(x, other),
        "c2_other": coefficient(y, other),
        "leak": coefficient(x, far),
        "shared": coefficient(x, near),
    }


@dataclass(frozen=True)
class Contrast:
    """c[j, j] against c[i, j], i != j, over n chains.

    own, other: their means. gap: own - other. low, high: 95% interval of the gap (Student's t over chains).
    p: of the relabelling test, two-sided. All NaN but `own` where there is one chain only.
    """

    own: float
    other: float
    gap: float
    low: float
    high: float
    p: float
    chains: int


def own_against_other(
    coefficients: Float[Array, "edit prompt"], *, seed: int = 0, draws: int = 9_999
) -> Contrast:
    """Does the edit of chain j do more on the prompt of chain j than the edits of other chains do?

    Some edits and some prompts have larger coefficients whatever they are paired with. So the gap is taken
    from e_ij = c_ij - row mean - column mean + mean: (n/(n-1)) e_jj has the mean own - other over chains and
    no such part, and gives the interval. The p-value needs no model: it is the share of relabellings sigma
    for which the mean of c[sigma(j), j] is as far from the mean over all of them, which is the null
    hypothesis of theory.md, section 5 (all n! of them up to n = 7, else the identity and `draws` random).
    """
    c = _square(coefficients)
    n = len(c)
    own = float(np.diag(c).mean())
    if n == 1:
        nothing = math.nan
        return Contrast(own, nothing, nothing, nothing, nothing, nothing, chains=1)
    other = float((c.sum() - np.trace(c)) / (n * (n - 1)))
    apart = _apart(c)
    each = np.diag(apart) * n / (n - 1)
    half = float(stats.t.ppf(0.975, n - 1) * each.std(ddof=1) / math.sqrt(n))
    gap = own - other
    p = _share_as_far([apart], [8 * n * np.finfo(float).eps * np.abs(c).max()], seed, draws)
    return Contrast(own, other, gap, gap - half, gap + half, p, n)


def over_layers(
    coefficients: Sequence[Float[Array, "edit prompt"]], *, seed: int = 0, draws: int = 9_999
) -> float:
    """The relabelling test for many layers at once: one p-value, whatever ties the layers together.

    Largest over layers of |mean of c[sigma(j), j] - mean over all sigma| / its standard deviation over sigma,
    which is (sum e_ij^2 / (n - 1))^1/2 / n, with the same relabelling sigma in every layer.
    """
    matrices = [_square(c) for c in coefficients]
    if not matrices or len({c.shape for c in matrices}) > 1 or len(matrices[0]) < 2:
        raise EditError("give one or more layers' coefficients, all of the same two or more chains")
    n, apart, slack = len(matrices[0]), [], []
    for c in matrices:
        rounding = 8 * n * np.finfo(float).eps * np.abs(c).max()
        spread = math.sqrt(np.sum(_apart(c) ** 2) / (n - 1)) / n
        if spread > rounding:  # else every pairing has the same coefficient, and the layer says nothing
            apart.append(_apart(c) / spread)
            slack.append(rounding / spread)
    return _share_as_far(apart, slack, seed, draws) if apart else 1.0


def _square(coefficients: Float[Array, "edit prompt"]) -> Array:
    c = np.asarray(coefficients, float)
    if c.ndim != 2 or c.shape[0] != c.shape[1] or not len(c) or not np.all(np.isfinite(c)):
        raise EditError(f"coefficients of shape {c.shape} must be finite, one edit for each prompt")
    return c


def _apart(c: Array) -> Array:
    """What is left of c without what its edits and its prompts have on average."""
    return c - c.mean(axis=0) - c.mean(axis=1, keepdims=True) + c.mean()


def _share_as_far(apart: Sequence[Array], slack: Sequence[float], seed: int, draws: int) -> float:
    """Share of relabellings whose largest |mean of e[sigma(j), j]| is that of the identity or more.

    slack: differences that are rounding.
    """
    n = len(apart[0])
    if n <= EXHAUSTIVE:
        sigmas = np.array(list(itertools.permutations(range(n))))
    else:
        random = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
        sigmas = np.concatenate([np.arange(n)[None], random])
    far = np.max([np.abs(e[sigmas, np.arange(n)].mean(axis=1)) for e in apart], axis=0)
    return float(np.mean(far >= far[0] - max(slack)))  # the identity comes first


def table(
    layers: Mapping[int, Overlaps],
    *,
    metrics: Sequence[str] = METRICS,
    together: Sequence[bool] = (False, True),
    ridge: float = 0.1,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Rows of plain numbers: for every layer, metric and form of the adapters c1, c2 (own, other, gap, its
    interval and p), the mean, least and largest leak of each, and the toy's prediction as toy_...

    The toy has as many chains, reference and unrelated prompts.
    """
    rows = []
    toys: dict[tuple, dict[str, float]] = {}
    for (layer, seen), metric, one in itertools.product(layers.items(), metrics, together):
        key = (seen.chains, seen.reference, seen.unrelated, metric, one)
        if key not in toys:
            toy = predicted(*key[:3])
            toys[key] = _summary(toy, metric, one, ridge, seed)
        row = {"layer": layer, "metric": metric, "facts": "together" if one else "alone"}
        row |= {
            "chains": seen.chains,
            "reference": seen.reference,
            "unrelated": seen.unrelated,
            "ridge": ridge,
        }
        row |= _summary(seen, metric, one, ridge, seed)
        kept = ("own", "other", "gap", "leak1", "leak2")
        row |= {f"toy_{name}": value for name, value in toys[key].items() if name.endswith(kept)}
        rows.append(row)
    return rows


def tests_over_layers(
    layers: Mapping[int, Overlaps],
    *,
    metrics: Sequence[str] = METRICS,
    together: Sequence[bool] = (False, True),
    ridge: float = 0.1,
    seed: int = 0,
) -> list[dict[str, object]]:
    """For every metric and form of the adapters, `over_layers` of c1 and of c2: does anything, in any layer,
    single out the right x or the right y?"""
    rows = []
    for metric, one in itertools.product(metrics, together):
        row: dict[str, object] = {
            "layers": len(layers),
            "metric": metric,
            "facts": "together" if one else "alone",
        }
        for number, kind in ((1, "hop1"), (2, "hop2")):
            by_layer = [
                seen.coefficients(kind, "two_hop", metric=metric, together=one, ridge=ridge)
                for seen in layers.values()
            ]
            row[f"c{number}_p"] = over_layers(by_layer, seed=seed)
        rows.append(row | {"ridge": ridge})
    return rows


def _summary(seen: Overlaps, metric: str, together: bool, ridge: float, seed: int) -> dict[str, float]:
    summary: dict[str, float] = {}
    for number, kind in ((1, "hop1"), (2, "hop2")):
        chosen = partial(seen.coefficients, kind, metric=metric, together=together, ridge=ridge)
        contrast = own_against_other(chosen("two_hop"), seed=seed)
        for name in ("own", "other", "gap", "low", "high", "p"):
            summary[f"c{number}_{name}"] = getattr(contrast, name)
        leak = chosen("unrelated")
        summary |= {
            f"leak{number}": float(leak.mean()),
            f"leak{number}_least": float(leak.min()),
            f"leak{number}_largest": float(leak.max()),
        }
    return summary
