"""By gradient: coefficients of the products Delta_i, for each layer its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import cast

import numpy as np
import torch

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.merges.fitters import Fit, Fitting, FittingJob, fitter
from llm_experiments.merges.hooks import Shifter, adding
from llm_experiments.merges.loss import frozen, mean_loss, summed_loss
from llm_experiments.merges.merging import converted, module_seed, target_layers
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError
from toytransformer.merging.fitted import form_of, random_twin
from toytransformer.merging.merged import concatenated

#: f in sum_i f(w)_i Delta_i, over the last axis, and its inverse at n equal values.
FORMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[float], float]]] = {
    "identity": (lambda w: w, lambda a: a),
    "tanh": (torch.tanh, math.atanh),
    "sigmoid": (torch.sigmoid, lambda a: math.log(a / (1 - a))),
    "softmax": (lambda w: torch.softmax(w, dim=-1), lambda a: 0.0),
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
    return Fit(library, {layer: Merge(job.fits, w) for layer, w in weights.items()}, details)


def _batches(count: int, fitting: Fitting, seed: int) -> Iterator[np.ndarray]:
    """`fitting.steps` batches: one shuffled pass through the examples after another."""
    rng, queue = np.random.default_rng(seed), np.empty(0, int)
    for _ in range(fitting.steps):
        while len(queue) < min(fitting.batch, count):
            queue = np.concatenate([queue, rng.permutation(count)])
        chosen, queue = np.split(queue, [min(fitting.batch, count)])
        yield chosen
