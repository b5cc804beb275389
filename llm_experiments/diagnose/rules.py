"""What a merge rule keeps of each adapter in one module, and how far it moves with the gauge.

Kept is the coefficient of the projection of the merged update M on the adapter's,

    keeps_i = <M, Delta_i> / |Delta_i|^2,

and `own`, the share of |M|^2 inside the span of the adapters' updates: the rest is what no adapter has, such
as cross terms. Rules run as they are, on factors in as few coordinates as hold them; those that leave a dense
matrix, on a random sample of its entries, as each entry depends on the adapters' entries there and on a
threshold alone. A factor-wise rule depends on the gauge: the same updates are merged in other factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from llm_experiments.diagnose.geometry import Spectrum, gram, padded
from toytransformer.adapters import LoRA
from toytransformer.arrays import NumpyArray as Array
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RULES, MergeContext, MergeRule, StaticMerge, merge

#: Entries of a module that rules on entries are tried on, in so many groups for the standard error.
ENTRIES, GROUPS = 2**14, 8
#: Other factors of the same updates: the balanced ones of their singular vectors, every second adapter's with
#: the other sign, and each turned at random.
GAUGES = ("balanced", "flipped", "turned")


def static_rules() -> list[MergeRule]:
    """The rules that give one update to all prompts and need neither data nor adapters of their own kind."""
    return [
        rule
        for rule in RULES.values()
        if not (rule.routed or rule.needs_data or rule.control) and rule.adapter_kind == "closed-form"
    ]


@dataclass(frozen=True)
class Kept:
    """What one rule makes of one module.

    products: <M, Delta_i>. errors: their standard errors, 0 where nothing was sampled. energy: |M|^2. moved:
    |M' - M|^2 for each of GAUGES; empty for a rule that no gauge moves, and where it was not tried.
    """

    products: Float[Array, " adapter"]
    errors: Float[Array, " adapter"]
    energy: float
    moved: tuple[float, ...] = ()


def kept(
    rule: MergeRule,
    adapters: Sequence[LoRA],
    small: Sequence[LoRA],
    updates: Float[Array, "adapter adapter"],
    seed: int,
    *,
    gauges: bool = True,
) -> Kept:
    """adapters: the factors; small: `geometry.reduced` of them; updates: their `geometry.gram`.

    gauges: whether to try other factors, which takes a merge for each.
    """
    if rule.dense:
        return _sampled(rule, adapters, updates, seed)
    factors = padded(adapters if rule.needs_neurons else small)
    merged = _merged(rule, factors, seed)
    inner = gram([merged, *factors])
    moved: list[float] = []
    if gauges and rule.factor_wise:
        for changed in _regauged(factors, padded(small), seed):
            pair = gram([merged, _merged(rule, changed, seed)])
            moved.append(max(0.0, pair[0, 0] + pair[1, 1] - 2 * pair[0, 1]))
    return Kept(inner[0, 1:], np.zeros(len(adapters)), float(inner[0, 0]), tuple(moved))


def _merged(rule: MergeRule, factors: Sequence[LoRA], seed: int) -> LoRA:
    merged = merge(factors, Merge(rule.name), MergeContext(rng_seed=seed))
    assert isinstance(merged, StaticMerge), f"{rule.name} is not static"
    return merged.factored()


def _regauged(factors: Sequence[LoRA], small: Sequence[LoRA], seed: int) -> list[list[LoRA]]:
    """The updates in the factors of GAUGES. The changes of factors are found in few coordinates."""
    rng = np.random.default_rng(seed)
    balanced, turned = [], []
    for lora, few in zip(factors, small, strict=True):
        spectrum = Spectrum.of(few)
        root = np.sqrt(spectrum.values)
        # U sqrt(s) = write (read^T V / sqrt(s)), as write read^T V = U s
        write = lora.write @ (few.read.T @ spectrum.right / root)
        read = lora.read @ (few.write.T @ spectrum.left / root)
        rest = ((0, 0), (0, lora.rank - len(root)))
        balanced.append(LoRA(np.pad(write, rest), np.pad(read, rest)))
        rotation = np.linalg.qr(rng.standard_normal((lora.rank, lora.rank)))[0]
        turned.append(LoRA(lora.write @ rotation, lora.read @ rotation))
    flipped = [LoRA(-lora.write, -lora.read) if index % 2 else lora for index, lora in enumerate(factors)]
    return [balanced, flipped, turned]


def _sampled(
    rule: MergeRule, adapters: Sequence[LoRA], updates: Float[Array, "adapter adapter"], seed: int
) -> Kept:
    """The rule on entries alone: all of a small module, else GROUPS samples of ENTRIES / GROUPS each.

    A ratio in each group, <M, Delta_i> / |Delta_i|^2 over its entries; the standard error is that of the mean
    of the groups, so it covers the thresholds, which each group has of its own.
    """
    out, inside = len(adapters[0].write), len(adapters[0].read)
    rng = np.random.default_rng(seed)
    if out * inside <= ENTRIES:
        rows, columns = (axis.reshape(1, -1) for axis in np.indices((out, inside)))
    else:
        shape = (GROUPS, ENTRIES // GROUPS)
        rows, columns = rng.integers(out, size=shape), rng.integers(inside, size=shape)
    norms = np.diag(updates)
    ratios, energies = [], []
    for group in range(len(rows)):
        entries = np.stack(
            [np.einsum("er,er->e", lora.write[rows[group]], lora.read[columns[group]]) for lora in adapters]
        )
        one = np.ones((1, 1))
        merged = merge(
            [LoRA(column[:, None], one) for column in entries],
            Merge(rule.name),
            MergeContext(rng_seed=seed + group),
        )
        assert isinstance(merged, StaticMerge)
        shift = merged.delta()[:, 0]
        squares = np.sum(entries**2, axis=1)
        ratios.append(np.divide(entries @ shift, squares, out=np.zeros(len(entries)), where=squares > 0))
        energies.append(out * inside * float(np.mean(shift**2)))
    several = np.array(ratios)
    errors = several.std(axis=0, ddof=1) / np.sqrt(len(several)) if len(several) > 1 else np.zeros(len(norms))
    return Kept(several.mean(axis=0) * norms, errors * norms, float(np.mean(energies)))
