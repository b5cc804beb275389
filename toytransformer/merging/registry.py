"""The registry of merge rules: what a rule declares, is given and returns, and `merge`, which runs one.

Adding a rule is one decorated function. Its docstring holds the formula, the source, what the weights mean
and what the rule does under a change of gauge; the decorator holds what programs ask: flags and checked
options.

    merged = merge(adapters, Merge("ties", options={"density": 0.2}), MergeContext(rng_seed=0))
    outputs = base + merged.shift(features)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from array_api_compat import array_namespace
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.arrays import ROUNDING, Array, all_finite
from toytransformer.merging.merged import Merged

if TYPE_CHECKING:
    from toytransformer.compositions.spec import Merge

Weights = tuple[float, ...] | None
#: Largest size of weights and options: products of a few such numbers do not overflow.
LARGEST = 1e100


class RuleError(ValueError):
    """A rule that does not exist or cannot be applied; the message says what is allowed and what to do."""


@dataclass(frozen=True)
class Option:
    """One option of a rule: its default, the test a value has to pass, and in words what passes."""

    default: object
    check: Callable[[object], bool]
    help: str


def choice(default: str, *others: str) -> Option:
    allowed = (default, *others)
    return Option(
        default, lambda value: isinstance(value, str) and value in allowed, f"one of {list(allowed)}"
    )


def number(default: float, low: float) -> Option:
    return Option(
        default,
        lambda value: _is_real(value) and value >= low,
        f"a number of at least {low} and at most {LARGEST:g}",
    )


def positive(default: float, most: float = LARGEST) -> Option:
    return Option(
        default, lambda value: _is_real(value) and 0 < value <= most, f"a number above 0 and at most {most:g}"
    )


def share(default: float) -> Option:
    return Option(default, lambda value: _is_real(value) and 0 < value <= 1, "a share above 0 and at most 1")


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def whole(low: int, help: str) -> Option:
    """None, the default, or a whole number of at least `low`."""

    def check(value: object) -> bool:
        return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= low)

    return Option(None, check, f"a whole number of at least {low}, or None for {help}")


@dataclass(frozen=True)
class MergeContext:
    """What a rule may need besides the adapters.

    rng_seed: seed of every random choice. logit_scale: Arrow's raw logit is
    |prototype . features| times this: sqrt(m / 2d) where |phi| = |h|, so infinite in a limit of m.
    width_scale: what a temperature that grows with the width divides the raw logit by; None for logit_scale
    itself. Features that are raw activations of width m have logit_scale 1 and width_scale sqrt(m).
    example_features (example, feature) and example_targets (example, entity): the data of the target
    task; a target is the wanted *shift*, that is target minus base output. tied: similarities that differ by
    less than so many units of rounding, times |phi|, are equal to a rule that routes. scales: the s = alpha
    / r in each adapter's write factor, which PEFT keeps apart and its rules on factors move into the
    weights; 1 without.
    """

    rng_seed: int = 0
    logit_scale: float = math.inf
    example_features: Float[Array, "example feature"] | None = None
    example_targets: Float[Array, "example entity"] | None = None
    width_scale: float | None = None
    tied: float = ROUNDING
    scales: tuple[float, ...] | None = None
    own_means: Float[Array, "adapter feature"] | None = None


@dataclass(frozen=True)
class MergeRule:
    """One entry of the registry: what programs ask about a rule, so that none needs a list of names.

    The flags hold for every value of the options.

    gauge_invariant: the result depends on the adapters only through their Delta_i (up to rounding, and where
    `spectral`, up to ties of singular values). needs_neurons: acts on entries of Delta in the basis of the m
    neurons, so it has no meaning in other coordinates. dense: its update is a dense matrix, each entry of
    which depends on the adapters' entries there and on thresholds alone. routed: the update differs from
    prompt to prompt. spectral: reads singular vectors, so it is undetermined where singular values tie.
    sectorwise: polynomial in the factors, so it commutes with the change to the sectors of
    `toytransformer.symmetry`. by_sectors: acts on both sectors together, which is computed there too, where
    it is determined. label_blind: renaming the answers of one adapter moves no row of another's
    (theory.md, section 5). weighted: takes weights. fitted_by: how it is fitted to examples of the target
    task: "products" (by gradient on the coefficients of the Delta_i), "search" (without gradients), "train"
    (a new adapter); None for a rule that needs no data. fits: the weighted rule whose weights it finds, where
    it finds weights. control: merges random updates in place of the adapters, for other rules to beat.
    adapter_kind: how its adapters have to be trained. paper: what the paper's tables call it, if they have
    it. aliases: what PEFT and mergekit call it, where nothing here has that name.
    """

    name: str
    function: Callable[..., Merged]
    gauge_invariant: bool
    needs_neurons: bool = False
    dense: bool = False
    routed: bool = False
    spectral: bool = False
    sectorwise: bool = False
    by_sectors: bool = False
    label_blind: bool = True
    weighted: bool = True
    fitted_by: str | None = None
    fits: str | None = None
    control: bool = False
    adapter_kind: str = "closed-form"
    paper: str | None = None
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def needs_data(self) -> bool:
        """Whether it is fitted on examples of the target task, those of the context."""
        return self.fitted_by is not None

    @property
    def factor_wise(self) -> bool:
        """Whether it works on the factors apart, so that cross terms or masks depend on the gauge."""
        return not self.gauge_invariant

    @property
    def tempered(self) -> bool:
        """Whether it has a temperature, which belongs to the model and is chosen by a sweep."""
        return "temperature" in self.options

    @property
    def seeded(self) -> bool:
        """Whether it draws random numbers."""
        return "seed" in self.options

    @property
    def formula(self) -> str:
        """The first line of the rule's docstring."""
        return (self.function.__doc__ or self.name).strip().splitlines()[0]

    def checked_options(self, given: Mapping[str, object]) -> dict[str, object]:
        """The defaults overridden by `given`; RuleError for an option or a value the rule does not know."""
        for key, value in given.items():
            if key not in self.options:
                raise RuleError(f"rule {self.name!r} has no option {key!r}; allowed: {sorted(self.options)}")
            if not self.options[key].check(value):
                raise RuleError(
                    f"option {key} of rule {self.name!r} is {value!r}; it has to be {self.options[key].help}"
                )
        return {key: given.get(key, option.default) for key, option in self.options.items()}


RULES: dict[str, MergeRule] = {}
#: Names from elsewhere -> the rule they mean.
ALIASES: dict[str, str] = {}


Rule = TypeVar("Rule", bound=Callable[..., Merged])


def merge_rule(
    name: str, *, options: Mapping[str, Option] | None = None, **flags: Any
) -> Callable[[Rule], Rule]:
    """Register a `rule(adapters, weights, context, **options) -> Merged`; flags as in MergeRule."""
    if name in RULES or name in ALIASES:
        raise RuleError(f"rule {name!r} is registered already; give the new one another name")

    def register(function: Rule) -> Rule:
        RULES[name] = MergeRule(name, function, options=MappingProxyType(dict(options or {})), **flags)
        ALIASES.update(dict.fromkeys(RULES[name].aliases, name))
        return function

    return register


def resolve(name: str) -> MergeRule:
    """The rule of that name or alias; RuleError listing the known ones otherwise."""
    name = ALIASES.get(name, name)
    if name not in RULES:
        raise RuleError(f"there is no merge rule {name!r}; allowed: {sorted(RULES)}")
    return RULES[name]


def check(spec: Merge) -> tuple[MergeRule, dict[str, Any]]:
    """The rule and the complete options that a spec names, before there are any adapters to merge."""
    rule = resolve(spec.rule)
    if spec.weights is not None:
        if not rule.weighted:
            raise RuleError(
                f"rule {rule.name!r} sets its own weights, given were {spec.weights}; leave them out"
            )
        if not all(_is_real(weight) for weight in spec.weights):
            raise RuleError(
                f"weights {spec.weights} of rule {rule.name!r} must be finite, at most {LARGEST:g} in size"
            )
    return rule, rule.checked_options(spec.option_dict)


def merge(adapters: Sequence[LoRA], spec: Merge, context: MergeContext | None = None) -> Merged:
    """Merge `adapters` by the rule, weights and options of `spec`; RuleError says what does not fit."""
    rule, options = check(spec)
    context = MergeContext() if context is None else context
    _check_adapters(adapters)
    if spec.weights is not None and len(spec.weights) != len(adapters):
        raise RuleError(
            f"{len(spec.weights)} weights {spec.weights} for {len(adapters)} adapters; give one for each"
        )
    if rule.needs_data:
        _check_examples(rule, adapters[0], context)
    return rule.function(tuple(adapters), spec.weights, context, **options)


def _check_adapters(adapters: Sequence[LoRA]) -> None:
    if not adapters:
        raise RuleError("no adapters were given; a merge needs at least one")
    for index, lora in enumerate(adapters):
        if not isinstance(lora, LoRA):
            raise RuleError(f"adapter {index} is a {type(lora).__name__}; give LoRA(write, read)")
        for name, factor in (("write", lora.write), ("read", lora.read)):
            _check_array(factor, f"the {name} factor of adapter {index}")
    sizes = [(lora.write.shape[0], lora.read.shape[0]) for lora in adapters]
    if len(set(sizes)) > 1:
        raise RuleError(
            f"the adapters have (entity, feature) sizes {sizes}; they have to change the same matrix"
        )
    try:
        array_namespace(*(factor for lora in adapters for factor in (lora.write, lora.read)))
    except TypeError as error:
        raise RuleError(
            f"the adapters are arrays of different libraries ({error}); convert them to one"
        ) from error
    for index, lora in enumerate(adapters):
        if lora.write.shape[1] != lora.read.shape[1] or lora.write.shape[1] == 0:
            raise RuleError(
                f"adapter {index} has a write factor of rank {lora.write.shape[1]} and a read factor of rank "
                f"{lora.read.shape[1]}; they have to agree and be at least 1"
            )
        for name in ("write", "read"):
            if not all_finite(getattr(lora, name)):
                raise RuleError(f"the {name} factor of adapter {index} holds NaN or infinity; train it again")


def _check_array(value: Array, what: str) -> None:
    """Refuse anything but a matrix of real floating-point numbers."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        raise RuleError(f"{what} is a {type(value).__name__}; give an array of NumPy, JAX or torch")
    if len(shape) != 2:
        raise RuleError(f"{what} has shape {tuple(shape)}; give a matrix, (entity or feature, rank)")
    try:
        floating = array_namespace(value).isdtype(dtype, "real floating")
    except TypeError as error:
        raise RuleError(f"{what} is no array of NumPy, JAX or torch ({error})") from error
    if not floating:
        raise RuleError(f"{what} holds numbers of type {dtype}; convert it to floating point")


def _check_examples(rule: MergeRule, lora: LoRA, context: MergeContext) -> None:
    features, targets = context.example_features, context.example_targets
    if features is None or targets is None or len(features) == 0:
        raise RuleError(
            f"rule {rule.name!r} is fitted on examples of the target task and got none; "
            "build the composition with examples, or use a rule that needs no data"
        )
    _check_array(features, "example_features")
    _check_array(targets, "example_targets")
    shapes, wanted = (features.shape, targets.shape), (lora.read.shape[0], lora.write.shape[0])
    if len(features) != len(targets) or (features.shape[1], targets.shape[1]) != wanted:
        raise RuleError(
            f"example features and targets have shapes {shapes}; rule {rule.name!r} needs "
            f"(example, {wanted[0]}) and (example, {wanted[1]})"
        )
    xp = array_namespace(features, targets)
    if not bool(xp.all(xp.isfinite(features))) or not bool(xp.all(xp.isfinite(targets))):
        raise RuleError(f"the examples of rule {rule.name!r} hold NaN or infinity; give finite ones")
