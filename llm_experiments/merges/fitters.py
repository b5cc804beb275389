"""How a rule that needs data is fitted through a language model: one fitter for each value of `fitted_by`.

    @fitter("products")
    def by_gradient(job: Job) -> Fit: ...

A rule says by its flags which fitter fits it, and which weighted rule its weights are those of (`fits`), so a
rule added to `toytransformer.merging` is fitted here as it is.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import minimize

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.adapters.recipe import Training
from llm_experiments.merges.hooks import Shifter, adding
from llm_experiments.merges.loss import Example, Tokens, frozen, mean_loss, summed_loss
from llm_experiments.merges.merging import apply, converted, module_seed, target_layers
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.layers import covering
from toytransformer.compositions.spec import Merge
from toytransformer.merging import MergeRule, RuleError
from toytransformer.merging.fitted import form_of, random_twin
from toytransformer.merging.merged import concatenated

#: f in sum_i f(w)_i Delta_i, over the last axis, and its inverse at n equal values.
FORMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[float], float]]] = {
    "identity": (lambda w: w, lambda a: a),
    "tanh": (torch.tanh, math.atanh),
    "sigmoid": (torch.sigmoid, lambda a: math.log(a / (1 - a))),
    "softmax": (lambda w: torch.softmax(w, dim=-1), lambda a: 0.0),
}


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
class Job:
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


@dataclass(frozen=True)
class Fit:
    """What a fitter returns: the adapters to merge, layer -> a rule without data and its weights, details.

    details has at least `loss`, the mean over the examples after the fit.
    """

    library: tuple[AdapterWeights, ...]
    merges: Mapping[str, Merge]
    details: Mapping[str, Any]


Fitter = Callable[[Job], Fit]
FITTERS: dict[str, Fitter] = {}


def fitter(name: str) -> Callable[[Fitter], Fitter]:
    """Register the fitter of the rules whose `fitted_by` is `name`."""
    if name in FITTERS:
        raise RuleError(f"a fitter {name!r} is registered already; give the new one another name")

    def register(function: Fitter) -> Fitter:
        FITTERS[name] = function
        return function

    return register


def random_adapter(adapter: AdapterWeights, seed: int) -> AdapterWeights:
    """The control of arXiv 2602.12323: in every layer, the singular values of Delta and random vectors."""
    modules = {}
    for layer, lora in adapter.modules.items():
        rng = np.random.default_rng(module_seed(seed, f"{adapter.name} {layer}"))
        modules[layer] = random_twin(converted(lora, lora.write.dtype, torch.device("cpu")), rng)
    return AdapterWeights(f"random-{adapter.name}", modules, adapter.config, adapter.details)


# --- by gradient --------------------------------------------------------------------------------------------


@fitter("products")
def by_gradient(job: Job) -> Fit:
    """f(w)_i of every layer in sum_i f(w)_i Delta_i, by Adam on w.

    From equal parts 1/n (from 1/2 for one adapter if f < 1). A control fits random twins of the adapters.
    """
    library, fitting = job.library, job.fitting
    if job.rule.control:
        library = tuple(random_adapter(adapter, job.seed) for adapter in library)
    form = form_of(job.options)
    function, inverse = FORMS[form]
    count, layers = len(library), target_layers(job.loaded, library)
    begin = inverse(1 / count if count > 1 or form in ("identity", "softmax") else 0.5)
    w = torch.full((len(layers), count), begin, dtype=torch.float32, requires_grad=True)
    owner = [index for index, adapter in enumerate(library) for _ in range(adapter.rank)]
    coefficients = function(w)

    def shifter(row: int, name: str, layer: torch.nn.Module) -> Shifter:
        device = cast(torch.Tensor, layer.weight).device
        parts = [converted(adapter.modules[name], torch.float32, device) for adapter in library]
        together = concatenated(parts, (1,) * count)

        def shift(x: torch.Tensor) -> torch.Tensor:
            scale = coefficients[row, owner].to(device)
            return together.written(scale * (x.to(device, torch.float32) @ together.read))

        return shift

    optimiser = torch.optim.Adam([w], lr=fitting.learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / fitting.steps)
    losses: list[float] = []
    with frozen(job.loaded.model), ExitStack() as stack:
        for row, (name, layer) in enumerate(layers.items()):
            stack.callback(layer.register_forward_hook(adding(shifter(row, name, layer))).remove)
        start = mean_loss(job.loaded, job.tokens, fitting.batch)
        for chosen in _batches(len(job.tokens), fitting, job.seed):
            coefficients = function(w)
            loss, tokens = summed_loss(job.loaded, [job.tokens[index] for index in chosen])
            loss = loss / tokens
            if not bool(torch.isfinite(loss)):
                raise RuleError(
                    f"the loss became {float(loss)} after {len(losses)} steps; fit with a learning_rate "
                    f"below {fitting.learning_rate}"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
            losses.append(float(loss.detach()))
        coefficients = function(w).detach()
        end = mean_loss(job.loaded, job.tokens, fitting.batch)
    weights = {name: tuple(coefficients[row].tolist()) for row, name in enumerate(layers)}
    details = {"weights": weights, "loss_start": start, "loss": end, "loss_curve": losses}
    return Fit(library, {layer: Merge(_inner(job.rule), w) for layer, w in weights.items()}, details)


def _batches(count: int, fitting: Fitting, seed: int) -> Iterator[np.ndarray]:
    """`fitting.steps` batches: one shuffled pass through the examples after another."""
    rng, queue = np.random.default_rng(seed), np.empty(0, int)
    for _ in range(fitting.steps):
        while len(queue) < min(fitting.batch, count):
            queue = np.concatenate([queue, rng.permutation(count)])
        chosen, queue = np.split(queue, [min(fitting.batch, count)])
        yield chosen


# --- without gradients --------------------------------------------------------------------------------------


@fitter("search")
def by_search(job: Job) -> Fit:
    """One w for all layers: argmin L(w) + penalty mean|w_i| over |w_i| <= bound, by SciPy's COBYLA.

    From equal parts: at LoraHub's own start, zero, L is stationary where L(w) = L(-w). Of two such minima the
    one with the larger sum is returned, as in the toy. Nothing is drawn at random.
    """
    seen: list[tuple[float, float, tuple[float, ...]]] = []
    inner, bound = _inner(job.rule), job.options["bound"]

    def objective(values: np.ndarray) -> float:
        w = tuple(float(value) for value in np.clip(values, -bound, bound))
        with apply(job.loaded, job.library, Merge(inner, w)):
            loss = mean_loss(job.loaded, job.tokens, job.fitting.batch)
        loss = loss if math.isfinite(loss) else 1e6  # far worse than any answer, and COBYLA can still compare
        total = loss + job.options["penalty"] * float(np.mean(np.abs(w)))
        seen.append((total, loss, w))
        return total

    count = len(job.library)
    with frozen(job.loaded.model):
        minimize(
            objective,
            np.full(count, min(1 / count, bound)),
            method="COBYLA",
            bounds=[(-bound, bound)] * count,
            options={"maxiter": job.fitting.evaluations, "rhobeg": min(0.4, bound / 2), "tol": 1e-4},
        )
    _, loss, w = min(seen)
    w = w if sum(w) >= 0 else tuple(-value for value in w)
    details = {"weights": w, "loss_start": seen[0][1], "loss": loss, "evaluations": len(seen)}
    return Fit(job.library, {layer: Merge(inner, w) for layer in job.library[0].modules}, details)


def _inner(rule: MergeRule) -> str:
    """The rule whose weights are fitted."""
    if rule.fits is None:
        raise RuleError(f"rule {rule.name!r} does not say whose weights it fits; register it with fits=..")
    return rule.fits


# --- a new adapter ------------------------------------------------------------------------------------------


@fitter("train")
def by_training(job: Job) -> Fit:
    """One new adapter trained on the examples, none of the library."""
    from llm_experiments.adapters.training import train  # the only fitter that trains factors

    training = job.training
    if training is None:
        own, rank = job.library[0].modules.keys(), job.library[0].rank
        training = Training(rank=rank, alpha=rank, layers=covering(job.loaded.model, own))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, job.rule.name)
        metrics = train(
            job.loaded,
            job.examples,
            training,
            seed=job.seed,
            adapter_index=len(job.library),
            out=folder,
        )
        del metrics["seconds"]  # details are the same for the same seed
        new = peft_files.read(folder, name=job.rule.name)
    with frozen(job.loaded.model), apply(job.loaded, (new,), Merge("sum")):
        details = {"loss": mean_loss(job.loaded, job.tokens, job.fitting.batch), "training": metrics}
    return Fit((new,), {layer: Merge("sum") for layer in new.modules}, details)
