"""The model in four regimes behind one interface: prompts in, features out.

    Finite(dimension=d, width=m)   sample embeddings, values and neurons
    WidthLimit(dimension=d)        m -> infinity: the kernel of eq. 13-15 on sampled embeddings
    FullLimit()                    m, d -> infinity: inner products count shared tokens: no randomness
    Measured(model=..)             what was read off a language model (toytransformer.model_features)

`regime.features(prompts)` returns features in coordinates whose inner products are those of the regime.
Adapters, merges and predictions only use inner products, so they cannot tell neurons from a square root of
the Gram matrix. Rules that act on single entries of Delta W (TIES, DARE, ...) can: they ask for
`neurons=True`. In the limits these are a Monte-Carlo quadrature of `quadrature` neurons with the exact Gram
matrix, so such a prediction carries sampling noise of order quadrature^-1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import jax
import numpy as np
from scipy import linalg

from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.memory import require_memory
from toytransformer.model_features import FORMS, ModelFeatures, Row


class RegimeError(ValueError):
    """A size or option the model does not have; the message says what is allowed."""


@dataclass(frozen=True)
class Features:
    """Features of n prompts, `values` (prompt, feature), and how their scale relates to raw activations.

    logit_scale: raw <p, phi(h)> of a unit prototype p divided by the normalised one: sqrt(m / 2) times the
    spread of U's entries, so sqrt(m / (2 d)); infinite in a width limit, NaN where d is infinite at finite m
    (the two limits do not commute there).
    neurons: whether the coordinates are single neurons. trained: features of the same prompts as adapters
    are trained on them, in other words than they are asked in; None where the two are the same.
    """

    values: np.ndarray
    logit_scale: float
    neurons: bool
    trained: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class _Regime:
    mask: str = "strict"
    attention: str = "uniform"
    init: str = "standard-deviation"
    seed: int = 0
    #: |e_R| / |e_x|: how long the embeddings of relations are, relative to those of entities.
    relation_length: float = 1.0
    #: Of each regime: its name, and d, which may be infinite.
    name: ClassVar[str]
    if TYPE_CHECKING:

        @property
        def dimension(self) -> float: ...

    def __post_init__(self) -> None:
        _one_of("mask", self.mask, hidden.MASKS)
        _one_of("attention", self.attention, hidden.ATTENTIONS)
        _one_of("init", self.init, tuple(hidden.INITS))
        _whole("seed", self.seed, 0, MOST)
        length = self.relation_length
        if isinstance(length, bool) or not isinstance(length, int | float) or not 1e-6 <= length <= 1e6:
            raise RegimeError(
                f"relation_length is {length!r}; it must be a number from 1e-6 to 1e6 (|e_R| / |e_x|)"
            )
        object.__setattr__(self, "relation_length", float(length))

    def describe(self) -> dict:
        """The regime as plain data, for records; a relation_length of 1 is not mentioned."""
        fields = {name: int(v) if isinstance(v, np.integer) else v for name, v in self.__dict__.items()}
        if self.relation_length == 1:
            del fields["relation_length"]
        return {"name": self.name, **fields}

    def coefficients(self, prompts: Sequence[Prompt]) -> hidden.TokenCoefficients:
        """The prompts' coefficients on their tokens, under this regime's mask and lengths."""
        return hidden.token_coefficients(prompts, self.mask, self.relation_length)

    def hidden_gram(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """<h(p), h(p')>, (prompt, prompt), float64."""
        states = self._states(prompts)
        return states @ states.T

    def _states(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Hidden states up to a common rotation, (prompt, direction), float64."""
        return np.asarray(self.draw_states(streams(self.seed)[0], prompts), float)

    def draw_states(self, rng: jax.Array, prompts: Sequence[Prompt]) -> jax.Array | np.ndarray:
        """Hidden states up to a common rotation, (prompt, direction), drawn from `rng` (also in jit)."""
        coefficients = self.coefficients(prompts)
        if math.isinf(self.dimension):
            return square_root(coefficients.full_limit_gram())
        tokens = len(coefficients.tokens)
        require_memory(
            8 * self.dimension * (4 * tokens + 2 * len(prompts)),
            f"embeddings of {tokens} tokens at d = {self.dimension}",
        )
        if self.attention == "softmax":
            ids, present = hidden.padded_token_ids(prompts, coefficients.tokens)
            lengths = None if self.relation_length == 1 else coefficients.lengths
            return hidden.sample_softmax_states(
                rng,
                ids,
                present,
                lengths,
                tokens=tokens,
                dimension=self.dimension,
                init=self.init,
                mask=self.mask,
            )
        return hidden.sample_states(
            rng,
            coefficients.residual.toarray(),
            coefficients.attention.toarray(),
            dimension=self.dimension,
            init=self.init,
        )

    def _sampled(self, prompts: Sequence[Prompt], width: int) -> np.ndarray:
        require_memory(3 * 8 * len(prompts) * width, f"features of {len(prompts)} prompts at m = {width}")
        _, rng = streams(self.seed)
        return np.asarray(hidden.sample_features(rng, self._states(prompts), width=width), float)


@dataclass(frozen=True, kw_only=True)
class _KernelLimit(_Regime):
    quadrature: int = 2**14

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole("quadrature", self.quadrature, 1)

    def gram(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """<phi(p), phi(p')>, (prompt, prompt): the kernel on the hidden Gram matrix."""
        return kernel.relu_gram(self.hidden_gram(prompts))

    def features(self, prompts: Sequence[Prompt], *, neurons: bool = False) -> Features:
        """Coordinates of the kernel's features, (prompt, prompt), or neurons, (prompt, quadrature)."""
        require_memory(6 * 8 * len(prompts) ** 2, f"the Gram matrix of {len(prompts)} prompts")
        if neurons:
            return Features(self._sampled(prompts, self.quadrature), math.inf, True)
        return Features(square_root(self.gram(prompts)), math.inf, False)


@dataclass(frozen=True, kw_only=True)
class FullLimit(_KernelLimit):
    """m, d -> infinity. Deterministic but for rules that need neurons; softmax attention is uniform there
    (R1)."""

    name = "limit"
    dimension = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init != "standard-deviation":
            raise RegimeError(
                'init="variance" has no limit: the attention logits grow like sqrt(d) (theory.md, R1)'
            )

    def hidden_gram(self, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.coefficients(prompts).full_limit_gram()


@dataclass(frozen=True, kw_only=True)
class WidthLimit(_KernelLimit):
    """m -> infinity at embedding dimension d = `dimension`."""

    name = "width"
    dimension: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole("dimension (-d)", self.dimension, 1)


@dataclass(frozen=True, kw_only=True)
class Finite(_Regime):
    """The sampled network: d = `dimension` (math.inf for the exact hidden Gram matrix), m = `width`
    neurons."""

    name = "finite"
    dimension: float
    width: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension != math.inf:
            _whole("dimension (-d)", self.dimension, 1)
        elif self.attention == "softmax" or self.init != "standard-deviation":
            raise RegimeError("dimension = infinity has uniform attention and variance-1/d entries only")
        _whole("width (-m)", self.width, 1, MOST, "; for wider models use the width limit (--regime width)")

    def gram(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """<phi(p), phi(p')>, (prompt, prompt), streamed over neurons: memory does not grow with m."""
        _, rng = streams(self.seed)
        return np.asarray(hidden.sample_feature_gram(rng, self._states(prompts), width=self.width), float)

    def features(self, prompts: Sequence[Prompt], *, neurons: bool = False) -> Features:
        """The neurons, (prompt, m), where asked for or small; else a square root of their Gram matrix."""
        entry = math.nan if math.isinf(self.dimension) else hidden.INITS[self.init](self.dimension)
        scale = entry * math.sqrt(self.width / 2)
        if neurons or len(prompts) * self.width <= STREAM_ABOVE:
            return Features(self._sampled(prompts, self.width), scale, True)
        return Features(square_root(self.gram(prompts)), scale, False)

    def thinned(self, width: int) -> Finite:
        """The same embeddings with at most `width` neurons."""
        return replace(self, width=min(self.width, width))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A language model's own features instead of random ones: the kernel is measured.

    model: what was read off it. form, wording: in which the prompts are asked ("direct" or "steps"; None: as
    adapters are trained on them, which then hold their facts exactly). layers: groups of the file's layers
    (None: all); the kernel is the sum of theirs, as for adapters on all of them at first order, or with
    `alike` of kernels of equal size. own_wording: adapters are trained on prompts in the wording they are
    asked in, where the file has it, and hold their facts in it exactly; else on the mean over training ones.
    A prompt that is not asked in this form (a bridge's, say) has the features it is trained with, and one
    that is not trained those it is asked with. Errors: RegimeError on a form or wording that the file lacks,
    on a prompt it lacks altogether, and by rules that need single neurons.
    """

    model: ModelFeatures
    form: str = "direct"
    wording: int | None = None
    layers: tuple[str, ...] | None = None
    alike: bool = False
    own_wording: bool = False
    seed: ClassVar[int] = 0
    name: ClassVar[str] = "measured"
    dimension: ClassVar[float] = math.inf
    quadrature: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _one_of("form", self.form, FORMS[1:])
        object.__setattr__(self, "layers", self.model.chosen(self.layers))
        if self.wording is not None and self.wording not in self.model.wordings:
            raise RegimeError(
                f"wording is {self.wording!r}; {self.model.name} was asked in "
                f"{', '.join(map(str, self.model.wordings))} (None: as adapters are trained)"
            )

    def describe(self) -> dict:
        """The regime as plain data, for records."""
        about = {key: self.model.about.get(key) for key in ("model", "digest", "dataset", "names")}
        return {
            "name": self.name,
            **{key: value for key, value in about.items() if value is not None},
            "form": self.form,
            "wording": self.wording,
            "layers": ",".join(self.layers or ()),
            "alike": self.alike,
            "own_wording": self.own_wording,
        }

    def gram(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """<phi(p), phi(p')> of the prompts as they are asked, (prompt, prompt)."""
        asked, _ = self._rows(prompts)
        return self.model.gram(asked, self.layers, alike=self.alike)

    def features(self, prompts: Sequence[Prompt], *, neurons: bool = False) -> Features:
        """Coordinates of the features as they are asked and, beside them, as they are trained."""
        if neurons:
            raise RegimeError(
                "the measured regime keeps inner products, no single neurons, so it does not predict rules "
                "that act on entries of Delta W (TIES, DARE, pruning, ..): use the finite regime for them"
            )
        asked, trained = self._rows(prompts)
        root = square_root(self.model.gram([*asked, *trained], self.layers, alike=self.alike))
        size = self.model.size(self.layers, alike=self.alike)
        values = root[: len(asked)]
        return Features(values, size, False, None if asked == trained else root[len(asked) :])

    def _rows(self, prompts: Sequence[Prompt]) -> tuple[list[Row], list[Row]]:
        """Each prompt as it is asked and as adapters are trained on it."""
        asked: list[Row] = []
        trained: list[Row] = []
        for prompt in prompts:
            own: Row = (str(prompt), self.form, self.wording)
            stored: Row = (str(prompt), "stored", None)
            there = [row for row in (own, stored) if row in self.model]
            if not there:
                raise RegimeError(
                    f"'{prompt}' was not read off {self.model.name}, neither in form {self.form!r}, wording "
                    f"{self.wording}, nor as adapters are trained: read it by `lora-limits features`, or ask "
                    "about its prompts"
                )
            asked.append(there[0])
            spoken: Row = (str(prompt), "direct", self.wording)
            trained.append(spoken if self.own_wording and spoken in self.model else there[-1])
        return asked, trained


Regime = FullLimit | WidthLimit | Finite | Measured

#: Largest seed and width: what JAX's 32-bit counters hold whether or not x64 is on.
MOST = 2**31 - 1

#: prompt x neuron numbers above which a finite network's features are streamed into their Gram matrix (32
#: MB of float64).
STREAM_ABOVE = 2**22


def streams(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """The random keys that a seed gives to the embeddings and to the neurons."""
    rng = jax.random.key(seed)
    return jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)


def square_root(gram: np.ndarray) -> np.ndarray:
    """A matrix with rows whose inner products are `gram`: Cholesky, or eigenvectors where the matrix is
    singular."""
    try:
        return linalg.cholesky(gram, lower=True)
    except linalg.LinAlgError:
        values, vectors = linalg.eigh(gram)
        return vectors * np.sqrt(np.clip(values, 0.0, None))


def _whole(name: str, value: object, least: int, most: float = math.inf, instead: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        allowed = f">= {least}" if most == math.inf else f"from {least} to {most}"
        raise RegimeError(f"{name} is {value!r}; it must be a whole number {allowed}{instead}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RegimeError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
