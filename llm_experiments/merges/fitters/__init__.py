"""How a rule that needs data is fitted through a language model: one fitter for each value of `fitted_by`.

    @fitter("products")
    def by_gradient(job: FittingJob) -> Fit: ...

in a file of this folder. A rule says by its flags which fitter fits it, and which weighted rule its weights
are those of (`fits`), so a rule added to `toytransformer.merging` is fitted here as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.adapters.recipe import Training
from llm_experiments.merges.loss import Example, Tokens
from llm_experiments.models.handle import LoadedModel
from llm_experiments.registry import Registry
from toytransformer.compositions.spec import Merge
from toytransformer.merging import MergeRule, RuleError


@dataclass(frozen=True)
class Fitting:
    """How to fit.

    steps of Adam on batches of `batch` examples, the rate falling from learning_rate to zero in a straight
    line. evaluations: how often LoraHub's search may ask for the loss (its code: 40).
    """

    steps: int = 100
    batch: int = 16
    learning_rate: float = 0.05
    evaluations: int = 40

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RuleError(f"{name} of a fit is {value!r}; it has to be a whole number of at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise RuleError(f"learning_rate of a fit is {self.learning_rate!r}; it has to be above 0")


@dataclass(frozen=True)
class FittingJob:
    """What a fitter is given. tokens: the examples in the model's tokens. options: complete and checked.

    training: the recipe of a new adapter, None for the class's own at the library's rank and layers.
    """

    loaded: LoadedModel
    library: tuple[AdapterWeights, ...]
    rule: MergeRule
    options: Mapping[str, Any]
    examples: Sequence[Example]
    tokens: Sequence[Tokens]
    seed: int
    fitting: Fitting
    training: Training | None = None

    @property
    def fits(self) -> str:
        """The rule whose weights are fitted. Errors: RuleError where the rule does not say."""
        if self.rule.fits is None:
            raise RuleError(
                f"rule {self.rule.name!r} does not say whose weights it fits; register it with fits=.."
            )
        return self.rule.fits


@dataclass(frozen=True)
class Fit:
    """What a fitter returns: the adapters to merge, layer -> a rule without data and its weights, details.

    details has at least `loss`, the mean over the examples after the fit.
    """

    library: tuple[AdapterWeights, ...]
    merges: Mapping[str, Merge]
    details: Mapping[str, object]


Fitter: TypeAlias = Callable[[FittingJob], Fit]
FITTERS: Registry[Fitter] = Registry("fitter", "llm_experiments.merges.fitters")


def fitter(name: str) -> Callable[[Fitter], Fitter]:
    """Enter the fitter of the rules whose `fitted_by` is `name`."""

    def enter(function: Fitter) -> Fitter:
        FITTERS.add(name, function)
        return function

    return enter
