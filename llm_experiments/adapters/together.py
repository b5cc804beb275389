"""Train several adapters of one library at the same time on one frozen model.

Each step puts the next batch of every adapter side by side and goes through the model once; adapter k acts on
its own rows only, y = W x + s B_k A_k d(x). Factors, AdamW's moments, clipping, schedule, order of the data
and dropout masks are each adapter's own, so that an adapter comes out as `training.train` makes it, up to
the rounding of differently shaped products. An adapter whose steps are done leaves the batch.

It pays where a single batch leaves the processor idle: small models, GPUs, few tokens in a batch. It needs
the memory for the activations of all batches at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_experiments.adapters import batches
from llm_experiments.adapters.grouped import Factors, Layers, Pass, adapted, losses
from llm_experiments.adapters.jobs import Progress, TrainingJob, prepared
from llm_experiments.adapters.recipe import Training, TrainingError
from llm_experiments.adapters.trainer import optimizer_of
from llm_experiments.adapters.training import sparse_masks
from llm_experiments.models.handle import embedding
from llm_experiments.models.layers import linear_shape, target_modules
from llm_experiments.models.prompts import Example

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel


def train_together(
    loaded: LoadedModel,
    list_of_examples: Sequence[Sequence[Example]],
    training: Training,
    *,
    seeds: Sequence[int],
    outs: Sequence[str | os.PathLike],
    adapter_indices: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, object]]:
    """`training.train` for each adapter, all at once; returns their metrics in order.

    adapter_indices: as `train`'s adapter_index, by default 0, 1, 2, ... progress: called with (step, steps,
    mean loss of the adapters still trained), steps being those of the longest. The `seconds` of an adapter
    are its share, by examples, of the time that all took. Errors: as `train`.
    """
    indices = range(len(outs)) if adapter_indices is None else adapter_indices
    counts = {len(list_of_examples), len(seeds), len(outs), len(indices)}
    if counts == {0} or len(counts) > 1:
        raise TrainingError(
            f"{len(list_of_examples)} sets of examples, {len(seeds)} seeds, {len(outs)} folders, "
            f"{len(indices)} adapter indices; give one of each for every adapter"
        )
    jobs = [
        TrainingJob(loaded, examples, training, seed, index)
        for examples, seed, index in zip(list_of_examples, seeds, indices, strict=True)
    ]
    if len({job.prefix for job in jobs}) > 1:
        raise TrainingError("the adapters' prompts begin differently; train them one after another")
    with prepared(loaded, training):
        if training.variant == "sparse-b":
            dense = _fit(loaded, jobs, training, progress, half=0)
            for job, factors in zip(jobs, dense, strict=True):
                job.masks = sparse_masks(factors, training)
        half = 1 if training.variant == "sparse-b" else None
        done = _fit(loaded, jobs, training, progress, half=half)
    for job, factors, out in zip(jobs, done, outs, strict=True):
        job.write(loaded, training, factors, out)
    return [job.metrics() for job in jobs]


def _fit(
    loaded: LoadedModel,
    jobs: Sequence[TrainingJob],
    training: Training,
    progress: Progress | None,
    half: int | None,
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """(lora_A, lora_B) of every module, for each adapter. half: which of two trainings of as many steps."""
    start = time.perf_counter()
    model, place = loaded.model, loaded.device
    layers = _layers(model, jobs, training)
    rows = Pass([job.generator(place) for job in jobs], training.dropout)
    updates = [_Updates(adapter, layers, job, training) for adapter, job in enumerate(jobs)]
    steps = max(job.steps for job in jobs)
    before, total = (half or 0) * steps, steps * (1 if half is None else 2)
    with adapted(layers, rows):
        for step in range(steps):
            rows.active = [adapter for adapter, job in enumerate(jobs) if step < job.steps]
            active = [jobs[adapter] for adapter in rows.active]
            batch = batches.collated([job.step(step) for job in active], loaded.tokenizer.pad_token_id)
            each = losses(model, batch.to(place), jobs[0].prefix, rows)
            each.sum().backward()
            for adapter in rows.active:
                updates[adapter].take()
            for job, loss in zip(active, each.tolist(), strict=True):
                job.saw(before + step, total, loss, None)
            if progress is not None:
                progress(before + step + 1, total, each.mean().item())
    spent = time.perf_counter() - start
    share = [sum(map(len, job.order)) for job in jobs]
    for job, examples in zip(jobs, share, strict=True):
        job.seconds += spent * examples / sum(share)
    return [
        {name: (_copied(factors.a[k]), _copied(factors.b[k])) for name, (_, _, factors) in layers.items()}
        for k in range(len(jobs))
    ]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _layers(model: PreTrainedModel, jobs: Sequence[TrainingJob], training: Training) -> Layers:
    """Every target layer with the factors of all adapters, as each job draws them."""
    layers = {}
    precision = torch.promote_types(embedding(model).dtype, torch.float32)
    for name in target_modules(model, training.layers):
        linear = model.get_submodule(name)
        place, shape = next(linear.parameters()).device, linear_shape(linear)
        assert shape is not None, f"{name} is a linear layer"
        height, width = shape
        a = [job.initial_a(training, name, training.rank, width).to(place, precision) for job in jobs]
        b = [torch.zeros(height, training.rank, device=place, dtype=precision) for _ in jobs]
        for job, first, second in zip(jobs, a, b, strict=True):
            first.requires_grad_(training.variant == "lora")
            second.requires_grad_()
            if name in job.masks:
                mask = job.masks[name].to(place)
                second.register_hook(lambda gradient, mask=mask: gradient * mask)
        layers[name] = (linear, linear, Factors(a, b, training.scale()))
    return layers


class _Updates:
    """One adapter's optimiser, schedule and clipping, as Trainer applies them."""

    def __init__(self, adapter: int, layers: Layers, job: TrainingJob, training: Training):
        every = [f for _, _, factors in layers.values() for f in (factors.a[adapter], factors.b[adapter])]
        self.parameters = [factor for factor in every if factor.requires_grad]
        self.optimizer, self.schedule = optimizer_of(self.parameters, training, job.steps)
        self.clip = training.clip

    def take(self) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
