"""Train LoRA adapters on questions and answers, with the paper's settings (its Table 11) as defaults.

`transformers.Trainer` runs the steps and PEFT puts the adapter into the model; what differs from their
defaults is how a step is computed, not what: the loss is the mean of -log p over the tokens of the answers
in the batch (end token included), the vocabulary is computed there only, rows of like length share a batch,
tokens that all prompts begin with are computed once a batch, and each layer's LoRA is one autograd function
(`grouped`). The optimiser is AdamW (betas .9, .999), gradients are clipped to norm 1, the learning rate
rises linearly over the first 6% of the steps and falls linearly to 0 behind them; on clipping and schedule
the paper is silent. Same seed, same adapter: bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from llm_experiments.adapters import batches, peft_files
from llm_experiments.adapters.grouped import Factors, Layers, Pass, adapted, losses
from llm_experiments.adapters.jobs import Progress, TrainingJob, prepared, seeded, suffixes
from llm_experiments.adapters.recipe import Training, TrainingError
from llm_experiments.adapters.trainer import run
from llm_experiments.adapters.weights import ModuleUpdate
from llm_experiments.models.layers import target_modules
from llm_experiments.models.prompts import Example
from toytransformer.adapters import LoRA

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel

__all__ = ["Training", "TrainingError", "random_like", "train"]


def train(
    loaded: LoadedModel,
    examples: Sequence[Example],
    training: Training,
    *,
    seed: int,
    adapter_index: int = 0,
    out: str | os.PathLike,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Train one adapter and write it to the folder `out`; the model is left as it was.

    examples: objects with `question` and `answer`. adapter_index: which adapter of its library this is; the
    order of its data, its dropout and, unless `initial_a` is shared, its A depend on it and on the seed.
    progress: called with (step, steps, loss) after every step.
    Returns steps, examples, tokens and answer_tokens trained on (padding not counted), seconds, loss (mean
    over the last tenth of the steps) and loss_curve, [last step, mean loss] of at most CURVE equal stretches.
    Errors: TrainingError on bad arguments or a loss that is no longer finite; ModelError out of memory.
    """
    job = TrainingJob(loaded, examples, training, seed, adapter_index)
    with prepared(loaded, training):
        if training.variant == "sparse-b":
            dense = _fit(loaded, job, training, progress, half=0)
            job.masks = sparse_masks(dense, training)
        factors = _fit(loaded, job, training, progress, half=1 if training.variant == "sparse-b" else None)
    job.write(loaded, training, factors, out)
    return job.metrics()


def sparse_masks(factors: Mapping[str, tuple[Tensor, Tensor]], training: Training) -> dict[str, Tensor]:
    """Which entries of B the variant "sparse-b" trains: int(density size) of each module, the largest first.

    Of equal ones the first, so that there are never more than the merge rule lori-s keeps.
    """
    masks = {}
    for name, (_, b) in factors.items():
        order = b.abs().flatten().sort(descending=True, stable=True).indices
        mask = torch.zeros(b.numel(), dtype=torch.bool)
        mask[order[: int(training.density * b.numel())]] = True
        masks[name] = mask.view(b.shape)
    return masks


def random_like(folder: str | os.PathLike, *, seed: int, out: str | os.PathLike) -> None:
    """Write an adapter of Gaussian factors, of the shapes of the one in `folder`, to `out`.

    In every module |Delta W|_F is the given adapter's: a control for what any change of that size does.
    """
    given = peft_files.read(folder)
    modules = {}
    for name, lora in given.modules.items():
        generator = seeded("random adapter", seed, name)
        write, read = (
            torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            for factor in (lora.write, lora.read)
        )
        size = frobenius(LoRA(lora.write.double(), lora.read.double())) / frobenius(LoRA(write, read))
        factors = (write * size**0.5).float(), (read * size**0.5).float()
        modules[name] = ModuleUpdate(*factors, kind=given.shape(name).kind)
    peft_files.write(
        out,
        f"random like {given.name}",
        modules,
        given.config.get("base_model_name_or_path") or "",
        targets=named if isinstance(named := given.config.get("target_modules"), list) else None,
        details={"base_digest": given.details.get("base_digest"), "like": given.name, "seed": seed},
    )


def frobenius(lora: LoRA) -> float:
    """|write read^T|_F, without forming the product: tr(write^T write read^T read)."""
    return math.sqrt(max(0.0, float(((lora.write.T @ lora.write) * (lora.read.T @ lora.read)).sum())))


def _fit(
    loaded: LoadedModel, job: TrainingJob, training: Training, progress: Progress | None, half: int | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """(lora_A, lora_B) of every module after all steps. half: which of two trainings of as many steps."""
    model, names = loaded.model, target_modules(loaded.model, training.layers)
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,  # type: ignore[arg-type]  # a number that PEFT divides by r
        lora_dropout=training.dropout,
        target_modules=suffixes(model, names),
        task_type="CAUSAL_LM",
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT and transformers warn of what they changed themselves
        peft_model = get_peft_model(model, config)
        try:
            layers, trained = _layers(model, names, job, training)
            rows = Pass([job.generator(loaded.device)], training.dropout)
            steps = job.steps

            def loss_of(batch: batches.TrainingBatch) -> Tensor:
                return losses(model, batch.to(loaded.device), job.prefix, rows)[0]

            def seen(step: int, loss: float) -> None:
                job.saw(step + (half or 0) * steps, steps * (1 if half is None else 2), loss, progress)

            with adapted(layers, rows):
                run(peft_model, loaded, job, training, trained, loss_of, seen)
            return {
                name: (factors.a[0].detach().cpu().clone(), factors.b[0].detach().cpu().clone())
                for name, (_, _, factors) in layers.items()
            }
        finally:
            peft_model.unload()
            vars(model).pop("peft_config", None)
            job.seconds += time.perf_counter() - start


def _layers(
    model: nn.Module, names: Sequence[str], job: TrainingJob, training: Training
) -> tuple[Layers, list[Tensor]]:
    """PEFT's layers with factors drawn by the job's seed, and the parameters that are trained."""
    layers: dict[str, tuple[nn.Module, nn.Module, Factors]] = {}
    trained: list[Tensor] = []
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, LoraLayer) and isinstance(layer, nn.Module)
        linear = layer.get_base_layer()
        a, b = (factor["default"].get_parameter("weight") for factor in (layer.lora_A, layer.lora_B))
        with torch.no_grad():
            a.copy_(job.initial_a(training, name, *a.shape))
            b.zero_()
        if training.variant == "lora":
            trained.append(a)
        else:
            a.requires_grad_(False)
        if name in job.masks:
            mask = job.masks[name].to(b.device)
            b.register_hook(lambda gradient, mask=mask: gradient * mask)
        trained.append(b)
        layers[name] = (layer, linear, Factors([a], [b], training.scale()))
    return layers, trained
