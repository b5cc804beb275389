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

import numpy as np

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

    method: "gradient", or "closed form", one weighted least squares around the base (`gauss_newton`), which
    is for free coefficients, one an adapter, and needs none of the following.
    steps of Adam on batches of `batch` examples. The rate rises over the share `warmup` of the steps and
    falls from learning_rate to zero, in a straight line or by half a cosine (schedule).
    evaluations: how often LoraHub's search may ask for the loss (its code: 40).
    per: what has coefficients of its own: an "expert" (one for all layers), a "layer" (block of the model), a
    "sublayer" (its attention, its MLP), a "module" or a "dimension" (each column of a module's factors, which
    depend on the gauge). start: all coefficients 1/n ("equal"), 0 ("zero") or 1/sqrt(n) ("root").
    objective: what is made small: "answers", mean -log p of their tokens, or "entropy", that of the token
    behind each question, whose answer is not looked at (AdaMerging). factors: whether the adapters' own
    factors are trained too, at the rate factor_rate.
    validation: the share of the examples, drawn by the seed, that is held out; kept is the best of the states
    after every `every` steps on them. 0: the last one.
    """

    method: str = "gradient"
    steps: int = 100
    batch: int = 16
    learning_rate: float = 0.05
    evaluations: int = 40
    per: str = "module"
    start: str = "equal"
    schedule: str = "linear"
    warmup: float = 0.0
    validation: float = 0.0
    every: int = 10
    objective: str = "answers"
    factors: bool = False
    factor_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise RuleError(
                    f"{name} of a fit is {getattr(self, name)!r}; it has to be one of "
                    f"{', '.join(map(str, allowed))}"
                )
        for name in ("warmup", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise RuleError(
                    f"{name} of a fit is {getattr(self, name)!r}; it has to be 0 or more, below 1"
                )
        for name in ("steps", "batch", "evaluations", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RuleError(f"{name} of a fit is {value!r}; it has to be a whole number of at least 1")
        for name in ("learning_rate", "factor_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise RuleError(f"{name} of a fit is {getattr(self, name)!r}; it has to be above 0")
        if self.factors and self.per == "dimension":
            raise RuleError('factors are not trained beside coefficients per "dimension"; use per="module"')

    def rate(self, step: int) -> float:
        """Share of learning_rate in the update number `step`, counted from 0."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / (self.steps - rising)
        return 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def split(self, count: int, seed: int) -> tuple[list[int], list[int]]:
        """Which examples are fitted on, and which are held out. Errors: RuleError where one part is empty."""
        held = round(self.validation * count)
        if self.validation and not 0 < held < count:
            raise RuleError(
                f"a share of {self.validation:g} of {count} examples to hold out leaves one part empty; give "
                "more examples or validation=0"
            )
        order = [int(place) for place in np.random.default_rng([seed, 1]).permutation(count)] if held else []
        return sorted(order[held:]) or list(range(count)), sorted(order[:held])


#: What the words of a Fitting may be.
CHOICES: Mapping[str, tuple[object, ...]] = {
    "method": ("gradient", "closed form"),
    "per": ("expert", "layer", "sublayer", "module", "dimension"),
    "start": ("equal", "zero", "root"),
    "schedule": ("linear", "cosine"),
    "objective": ("answers", "entropy"),
    "factors": (False, True),
}


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
