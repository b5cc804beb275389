"""What a prediction will cost, said before the work: memory, refused beyond what is free, and time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from toytransformer import merging
from toytransformer.compositions import Composition, Prompt
from toytransformer.memory import require_memory
from toytransformer.regimes import STREAM_ABOVE, Finite, Regime

#: Operations of dense linear algebra per prompt^3: the Gram matrix's root, the adapters and the outputs; with
#: QRs and SVDs on top for rules that read singular vectors or balanced factors.
PLAIN, SPECTRAL = 4, 9
#: Operations' worth of time for an entry of one adapter under a rule that acts entry by entry, a normal
#: number that is drawn, and one trial of a search.
ENTRY, DRAWN, TRIAL = 7_000, 600, 2_000_000
#: Trials of LoraHub's search for each adapter: SciPy's population of 15, mostly for a few hundred rounds.
TRIALS = 5_000
#: Size of the product of matrices by which the speed of this machine is measured.
PROBE = 384


@dataclass(frozen=True)
class Cost:
    """bytes of memory at the peak; operations of linear algebra, or what takes as long."""

    bytes: float
    operations: float
    what: str

    def require(self) -> None:
        """Raise NotEnoughMemoryError if it does not fit into the memory that is free."""
        require_memory(self.bytes, self.what)

    def seconds(self) -> float:
        """About how long it takes on this machine, by the speed of a product of matrices now."""
        square, times = np.ones((PROBE, PROBE)), []
        for _ in range(3):
            begin = time.perf_counter()
            square @ square
            times.append(time.perf_counter() - begin)
        return self.operations / (2 * PROBE**3) * min(times)


def of_prediction(
    composition: Composition, asked: tuple[Prompt, ...], regime: Regime, copies: float = 1.0
) -> Cost:
    """The cost of predicting `composition` on the prompts `asked`, or one with `copies` times as many chains.

    An order of magnitude for the time; the memory errs upwards.
    """
    rule = merging.resolve(composition.merge.rule)
    prompts = copies * len({*composition.prompts, *asked})
    entities = copies * len(composition.world.entities)
    count = len(composition.adapters)
    stored = [copies * len(adapter.stored(composition.world)) for adapter in composition.adapters]
    ranks = [a.rank or n for a, n in zip(composition.adapters, stored, strict=True)]
    width = regime.width if isinstance(regime, Finite) else regime.quadrature
    drawn = width if rule.needs_neurons or isinstance(regime, Finite) else 0
    kept = rule.needs_neurons or (isinstance(regime, Finite) and prompts * width <= STREAM_ABOVE)
    features = width if kept else prompts

    memory = 8 * prompts * (6 * prompts + 2 * entities)
    memory += sum(4 * 8 * rank * (features + entities) for rank in ranks)
    memory += sum(3 * 8 * rank**2 for a, rank in zip(composition.adapters, ranks, strict=True) if a.rank)
    what = f"the prediction of {prompts:.0f} prompts with adapters of rank {max(ranks):.0f}"
    work = (SPECTRAL if rule.spectral or rule.factor_wise else PLAIN) * float(prompts) ** 3
    work += sum(10 * float(rank) ** 2 * (features + entities) for rank in ranks)
    if rule.needs_neurons:
        memory += 8 * entities * width * (2 * count + 2)
        work += ENTRY * entities * width * count
        what = f"rule {rule.name!r} on {entities:.0f} entities x {width} neurons"
    directions = min(prompts, regime.dimension)
    work += drawn * (DRAWN * directions + 2 * prompts * directions + 2 * prompts**2)
    if rule.fitted_by == "search" and composition.examples:
        shown = copies * len(composition.examples)
        work += TRIALS * count * (TRIAL + 4 * shown * entities * max(ranks))
    return Cost(memory, work, what)


def in_words(seconds: float) -> str:
    """A time as a reader wants it: "about 40 s", "about 3 min", "about 2 h"."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * size:
            amount = seconds / size
            return f"about {amount:.0f} {unit}" if amount < 1e4 else f"more than {1e4:.0f} {unit}"
    return f"about {max(1, math.ceil(seconds))} s"
