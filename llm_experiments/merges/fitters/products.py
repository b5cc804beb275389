"""By gradient: coefficients of the products Delta_i, by default for each layer its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.merges.fitters import Fit, Fitting, FittingJob, fitter
from llm_experiments.merges.fitters.gauss_newton import by_least_squares
from llm_experiments.merges.hooks import Shifter, adding
from llm_experiments.merges.loss import frozen, mean_loss, summed_entropy, summed_loss
from llm_experiments.merges.merging import converted, module_seed, target_layers
from toytransformer.adapters import LoRA
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError
from toytransformer.merging.fitted import form_of, random_twin
from toytransformer.merging.merged import concatenated

#: The slope of the leaky ReLU where it is below zero, as in torch and arXiv 2602.12323.
SLOPE = 0.01
#: f in sum_i f(w)_i Delta_i, over the last axis, and its inverse at n equal values.
FORMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[float], float]]] = {
    "identity": (lambda w: w, lambda a: a),
    "tanh": (torch.tanh, math.atanh),
    "sigmoid": (torch.sigmoid, lambda a: math.log(a / (1 - a))),
    "softmax": (lambda w: torch.softmax(w, dim=-1), lambda a: 0.0),
    "leaky-relu": (lambda w: torch.nn.functional.leaky_relu(w, SLOPE), lambda a: a if a > 0 else a / SLOPE),
    "squared": (torch.square, math.sqrt),
}


def random_adapter(adapter: AdapterWeights, seed: int) -> AdapterWeights:
    """The control of arXiv 2602.12323: in every layer, the singular values of Delta and random vectors."""
    modules = {}
    for layer, lora in adapter.modules.items():
        rng = np.random.default_rng(module_seed(seed, f"{adapter.name} {layer}"))
        modules[layer] = random_twin(converted(lora, lora.write.dtype, torch.device("cpu")), rng)
    return AdapterWeights(f"random-{adapter.name}", modules, adapter.config, adapter.details)


@fitter("products")
def by_gradient(job: FittingJob) -> Fit:
    """f(w)_i of every layer in sum_i f(w)_i Delta_i, by Adam on w, as the job's `Fitting` says.

    From equal parts 1/n by default (from 1/2 for one adapter if f < 1). A control fits random twins of the
    adapters. With `factors` the factors of all Delta_i move too, each from where it is, and the library that
    comes out is another one.
    """
    library, fitting = job.library, job.fitting
    if job.rule.control:
        library = tuple(random_adapter(adapter, job.seed) for adapter in library)
    form = form_of(job.options)
    if fitting.method == "closed form":
        if form != "identity":
            raise RuleError(f"in closed form coefficients are free, and f = {form} is not; fit by gradient")
        return by_least_squares(replace(job, library=library))
    function, _ = FORMS[form]
    layers = target_layers(job.loaded, library)
    ranks = {name: [adapter.shape(name).rank for adapter in library] for name in layers}
    group = {name: _group(name, fitting.per) for name in layers}
    begin = _begin(form, fitting.start, len(library))
    w = {
        called: torch.full((sum(ranks[name]) if fitting.per == "dimension" else len(library),), begin,
                           dtype=torch.float32, requires_grad=True)
        for name, called in group.items()
    }  # fmt: skip
    owner = {
        name: torch.arange(sum(several))
        if fitting.per == "dimension"
        else torch.repeat_interleave(torch.arange(len(library)), torch.tensor(several))
        for name, several in ranks.items()
    }
    coefficients = {called: function(values) for called, values in w.items()}

    objective = summed_entropy if fitting.objective == "entropy" else summed_loss
    factors: dict[str, LoRA] = {}

    def shifter(name: str, layer: torch.nn.Module) -> Shifter:
        device = cast(torch.Tensor, layer.weight).device
        parts = [converted(adapter.modules[name], torch.float32, device) for adapter in library]
        together = concatenated(parts, (1,) * len(parts))
        if fitting.factors:
            together = LoRA(
                *(side.detach().clone().requires_grad_() for side in (together.write, together.read))
            )
        factors[name] = together

        def shift(x: torch.Tensor) -> torch.Tensor:
            scale = coefficients[group[name]][owner[name]].to(device)
            return together.written(scale * (x.to(device, torch.float32) @ together.read))

        return shift

    losses: list[float] = []
    inside, held = fitting.split(len(job.tokens), job.seed)
    kept: list[tuple[float, int, list[torch.Tensor]]] = []

    def keep(step: int) -> None:
        """The state after `step` steps, and its loss on what is held out."""
        loss = mean_loss(job.loaded, [job.tokens[place] for place in held], fitting.batch, objective)
        kept.append((loss, step, [values.detach().clone() for values in trained]))

    with frozen(job.loaded.model), ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(adding(shifter(name, layer))).remove)
        moved = (
            [side for lora in factors.values() for side in (lora.write, lora.read)] if fitting.factors else []
        )
        trained = [*w.values(), *moved]
        groups = [{"params": list(w.values()), "lr": fitting.learning_rate}]
        groups += [{"params": moved, "lr": fitting.factor_rate}] if moved else []
        optimiser = torch.optim.Adam(groups)
        decay = torch.optim.lr_scheduler.LambdaLR(optimiser, fitting.rate)
        start = mean_loss(job.loaded, job.tokens, fitting.batch)
        if held:
            keep(0)
        for chosen in _batches(len(inside), fitting, job.seed):
            coefficients = {called: function(values) for called, values in w.items()}
            loss, tokens = objective(job.loaded, [job.tokens[inside[index]] for index in chosen])
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
            if held and (len(losses) % fitting.every == 0 or len(losses) == fitting.steps):
                coefficients = {called: function(values) for called, values in w.items()}
                keep(len(losses))
        if held:
            for values, best in zip(trained, min(kept, key=lambda state: state[:2])[2], strict=True):
                values.data.copy_(best)
        coefficients = {called: function(values).detach() for called, values in w.items()}
        end = mean_loss(job.loaded, job.tokens, fitting.batch)
    found = {name: tuple(coefficients[called].tolist()) for name, called in group.items()}
    details: dict[str, object] = {"weights": found, "loss_start": start, "loss": end, "loss_curve": losses}
    if held:
        details["validation"] = {"examples": len(held), "losses": [[step, loss] for loss, step, _ in kept],
                                 "step": min(kept, key=lambda state: state[:2])[1]}  # fmt: skip
    if fitting.factors:
        library = tuple(_moved(one, place, factors, ranks) for place, one in enumerate(library))
    if fitting.per == "dimension":
        scaled = tuple(_scaled(one, place, coefficients, ranks) for place, one in enumerate(library))
        return Fit(scaled, {name: Merge("sum", (1.0,) * len(library)) for name in layers}, details)
    return Fit(library, {name: Merge(job.fits, weights) for name, weights in found.items()}, details)


def _moved(
    adapter: AdapterWeights, place: int, factors: Mapping[str, LoRA], ranks: Mapping[str, list[int]]
) -> AdapterWeights:
    """The adapter's share of the trained factors."""
    modules = {}
    for name, lora in factors.items():
        first = sum(ranks[name][:place])
        own = slice(first, first + ranks[name][place])
        modules[name] = LoRA(lora.write[:, own].detach().cpu(), lora.read[:, own].detach().cpu())
    return AdapterWeights(f"tuned-{adapter.name}", modules, adapter.config, adapter.details)


def _begin(form: str, start: str, count: int) -> float:
    """The w at which all coefficients are those of the start. Errors: RuleError where f is never there."""
    part = {"equal": 1 / count, "zero": 0.0, "root": 1 / math.sqrt(count)}[start]
    if start == "equal" and count == 1 and form in ("tanh", "sigmoid"):
        part = 0.5
    stuck = form == "squared" and part == 0  # where its slope is zero too
    if (
        stuck
        or (form == "softmax" and start != "equal")
        or (form in ("tanh", "sigmoid") and not 0 < part < 1)
    ):
        raise RuleError(f"f = {form} cannot start from coefficients of {part:g}; use another f or 'equal'")
    return FORMS[form][1](part)


def _group(name: str, per: str) -> str:
    """What the module shares its coefficients with: an empty name, its block, its sublayer, or itself."""
    if per == "expert":
        return ""
    parts = name.split(".")
    if per in ("layer", "sublayer"):
        number = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
        return ".".join(parts[: number + 1] if per == "layer" else parts[:-1])
    return name


def _scaled(
    adapter: AdapterWeights,
    place: int,
    coefficients: dict[str, torch.Tensor],
    ranks: dict[str, list[int]],
) -> AdapterWeights:
    """The adapter with every column of its write factors times its coefficient."""
    modules = {}
    for name, several in ranks.items():
        first = sum(several[:place])
        own = coefficients[name][first : first + several[place]]
        lora = converted(adapter.modules[name], torch.float32, torch.device("cpu"))
        modules[name] = LoRA(lora.write * own, lora.read)
    return AdapterWeights(f"scaled-{adapter.name}", modules, adapter.config, adapter.details)


def _batches(count: int, fitting: Fitting, seed: int) -> Iterator[np.ndarray]:
    """`fitting.steps` batches: one shuffled pass through the examples after another."""
    rng, queue = np.random.default_rng(seed), np.empty(0, int)
    for _ in range(fitting.steps):
        while len(queue) < min(fitting.batch, count):
            queue = np.concatenate([queue, rng.permutation(count)])
        chosen, queue = np.split(queue, [min(fitting.batch, count)])
        yield chosen
