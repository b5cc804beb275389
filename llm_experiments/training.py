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

import gc
import hashlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from llm_experiments import adapters, batches
from llm_experiments.batches import Row
from llm_experiments.devices import explain_memory
from llm_experiments.grouped import Factors, Pass, adapted, can_share_prefix, losses
from llm_experiments.models import target_modules
from toytransformer.adapters import LoRA

if TYPE_CHECKING:
    from llm_experiments.models import LoadedModel

#: Most points that a loss curve keeps.
CURVE = 100

Progress = Callable[[int, int, float], None]


class TrainingError(ValueError):
    """A training that cannot be done as asked; the message says which value and what to do."""


@dataclass(frozen=True)
class Training:
    """How an adapter is trained. Rank to epochs are the paper's Table 11; the paper does not give alpha.

    alpha: Delta W = (alpha / rank) B A. batch: examples a step. steps: overrides epochs. layers: "mlp",
    "attention" or "both". variant: "lora"; "frozen-a" (LoRI-D), A stays as drawn and B is trained;
    "sparse-b" (LoRI-S), the same, then B is trained anew from 0 on those entries only that were largest in
    magnitude, the share `density` of each module's (LoRI draws one threshold through all modules; one for
    each makes the merge rule lori-s leave such an adapter as it is). initial_a: "independent" draws A for
    each adapter of a library, "shared" once for all. warmup: share of the steps. clip: largest norm of an
    adapter's gradient, 0 for any. base_dtype: None for the model's own; "bfloat16" computes with rounded
    base weights during training only (two to four times as fast on CPUs with bfloat16 matrix products); the
    factors are float32 in either case.
    """

    rank: int = 16
    alpha: float = 16
    dropout: float = 0.05
    learning_rate: float = 1e-4
    batch: int = 16
    epochs: int = 10
    steps: int | None = None
    layers: str = "mlp"
    variant: str = "lora"
    initial_a: str = "independent"
    weight_decay: float = 0.0
    warmup: float = 0.06
    schedule: str = "linear"
    clip: float = 1.0
    density: float = 0.1
    base_dtype: str | None = None

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise TrainingError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(map(repr, allowed))}"
                )
        for name, (kind, least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name == "steps":
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            number = whole or (isinstance(value, float) and kind is float)
            if not number or not math.isfinite(value) or not least <= value <= most:
                what = "a whole number" if kind is int else "a number"
                raise TrainingError(f"{name} is {value!r}; it must be {what} between {least:g} and {most:g}")

    def scale(self) -> float:
        return self.alpha / self.rank

    def rate(self, step: int, steps: int) -> float:
        """Share of learning_rate in the update number `step`, counted from 0."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return (steps - step) / max(1, steps - rising) if self.schedule == "linear" else 1.0


_CHOICES = {
    "layers": ("mlp", "attention", "both"),
    "variant": ("lora", "frozen-a", "sparse-b"),
    "initial_a": ("independent", "shared"),
    "schedule": ("linear", "constant"),
    "base_dtype": (None, "float32", "bfloat16"),
}
_TINY, _LARGE = 1e-12, 10**9
_RANGES = {
    "rank": (int, 1, 4096),
    "alpha": (float, _TINY, _LARGE),
    "dropout": (float, 0, 0.99),
    "learning_rate": (float, _TINY, 10),
    "batch": (int, 1, _LARGE),
    "epochs": (int, 1, _LARGE),
    "steps": (int, 1, _LARGE),
    "weight_decay": (float, 0, 10),
    "warmup": (float, 0, 1),
    "clip": (float, 0, _LARGE),
    "density": (float, _TINY, 1),
}


def train(
    loaded: LoadedModel,
    examples: Sequence[Any],
    training: Training,
    *,
    seed: int,
    adapter_index: int = 0,
    out: str | os.PathLike,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one adapter and write it to the folder `out`; the model is left as it was.

    examples: objects with `question` and `answer`. adapter_index: which adapter of its library this is; the
    order of its data, its dropout and, unless `initial_a` is shared, its A depend on it and on the seed.
    progress: called with (step, steps, loss) after every step.
    Returns steps, examples, tokens and answer_tokens trained on (padding not counted), seconds, loss (mean
    over the last tenth of the steps) and loss_curve, [last step, mean loss] of at most CURVE equal stretches.
    Errors: TrainingError on bad arguments or a loss that is no longer finite; ModelError out of memory.
    """
    job = Job(loaded, examples, training, seed, adapter_index)
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
    given = adapters.read(folder)
    modules = {}
    for name, lora in given.modules.items():
        generator = seeded("random adapter", seed, name)
        write, read = (
            torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            for factor in (lora.write, lora.read)
        )
        size = frobenius(LoRA(lora.write.double(), lora.read.double())) / frobenius(LoRA(write, read))
        modules[name] = LoRA((write * size**0.5).float(), (read * size**0.5).float())
    adapters.write(
        out,
        f"random like {given.name}",
        modules,
        given.config.get("base_model_name_or_path"),
        targets=given.config.get("target_modules"),
        details={"base_digest": given.details.get("base_digest"), "like": given.name, "seed": seed},
    )


def frobenius(lora: LoRA) -> float:
    """|write read^T|_F, without forming the product: tr(write^T write read^T read)."""
    return math.sqrt(max(0.0, float(((lora.write.T @ lora.write) * (lora.read.T @ lora.read)).sum())))


def seeded(*what: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator whose draws depend on nothing but the words and numbers given."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Job:
    """One adapter's data in the order it is seen, and what has been seen of it."""

    def __init__(
        self, loaded: LoadedModel, examples: Sequence[Any], training: Training, seed: int, index: int
    ):
        if not examples:
            raise TrainingError("there are no examples to train on; give at least one")
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in (seed, index)):
            raise TrainingError(f"seed {seed!r} and adapter_index {index!r} must be whole numbers from 0 on")
        self.rows: list[Row] = batches.encoded(loaded, examples)
        longest = max(map(len, self.rows))
        context = getattr(loaded.model.config, "max_position_embeddings", None) or longest
        if longest > context:
            raise TrainingError(f"an example has {longest} tokens, the model reads {context}; shorten it")
        self.seed, self.index = seed, index
        self.prefix: tuple[int, ...] = ()
        if can_share_prefix(loaded.model):
            self.prefix = batches.common_prefix(loaded, self.rows)
        self.rows = batches.without_prefix(self.rows, self.prefix)
        self.order = batches.order(
            [len(row) for row in self.rows],
            training.batch,
            (seed, index),
            epochs=training.epochs,
            steps=training.steps,
        )
        self.masks: Mapping[str, Tensor] = {}
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def steps(self) -> int:
        return len(self.order)

    def step(self, number: int) -> list[Row]:
        return [self.rows[i] for i in self.order[number]]

    def initial_a(self, training: Training, name: str, rank: int, width: int) -> Tensor:
        """lora_A as PEFT draws it, uniform in +-1/sqrt(in)."""
        shared = training.initial_a == "shared"
        generator = seeded("initial A", self.seed, "shared" if shared else self.index, name)
        return torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)

    def generator(self, device: torch.device) -> torch.Generator:
        return seeded("dropout", self.seed, self.index, device=device)

    def saw(self, step: int, steps: int, loss: float, progress: Progress | None) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in step {step + 1} of {steps}; use a smaller learning_rate or float32"
            )
        self.losses.append(loss)
        if progress is not None:
            progress(step + 1, steps, loss)

    def write(
        self,
        loaded: LoadedModel,
        training: Training,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        out: str | os.PathLike,
    ) -> None:
        scale = training.scale()
        adapters.write(
            out,
            Path(out).name,
            {name: LoRA(b * scale, a.T) for name, (a, b) in factors.items()},
            loaded.id,
            alpha=training.alpha,
            dropout=training.dropout,
            targets=suffixes(loaded.model, list(factors)),
            details={
                "base_digest": loaded.digest,
                "training": asdict(training),
                "seed": self.seed,
                "adapter_index": self.index,
            },
        )

    def metrics(self) -> dict[str, Any]:
        seen = [self.rows[i] for chosen in self.order for i in chosen]
        passes = len(self.losses) // self.steps
        tail = self.losses[-math.ceil(self.steps / 10) :]
        stretch = math.ceil(len(self.losses) / CURVE)
        pieces = [self.losses[i : i + stretch] for i in range(0, len(self.losses), stretch)]
        ends = [min((i + 1) * stretch, len(self.losses)) for i in range(len(pieces))]
        return {
            "steps": len(self.losses),
            "examples": passes * len(seen),
            "tokens": passes * sum(len(row) + len(self.prefix) for row in seen),
            "answer_tokens": passes * sum(len(row.answer) for row in seen),
            "seconds": round(self.seconds, 3),
            "loss": sum(tail) / len(tail),
            "loss_curve": [[end, sum(p) / len(p)] for end, p in zip(ends, pieces, strict=True)],
        }


@contextmanager
def prepared(loaded: LoadedModel, training: Training) -> Iterator[None]:
    """The base as a training wants it: in base_dtype, with the attention that is quick; then as it was."""
    model = loaded.model
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise TrainingError("the model carries adapters already; unload them first")
    wanted = None if training.base_dtype is None else getattr(torch, training.base_dtype)
    if wanted is None and loaded.dtype == torch.float16:
        raise TrainingError("float16 gradients underflow; load the model in bfloat16 or float32 to train")
    modes = [(module, module.training) for module in model.modules()]
    kept = [(p, p.data, p.requires_grad) for p in model.parameters()]
    use_cache = getattr(model.config, "use_cache", None)
    attention = getattr(model.config, "_attn_implementation", None)
    # on a CPU the way back through scaled_dot_product_attention costs several times the plain products
    slow = attention == "sdpa" and loaded.device.type == "cpu"
    try:
        if slow:
            model.set_attn_implementation("eager")
        for parameter, data, _ in kept:
            parameter.requires_grad_(False)
            if wanted is not None and data.is_floating_point():
                parameter.data = data.to(wanted)
        with _same_random_state(), explain_memory("training", "take a smaller batch or model"):
            yield
    finally:
        for parameter, data, trained in kept:
            parameter.data = data
            parameter.requires_grad_(trained)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode
        if slow:
            model.set_attn_implementation(attention)
        if use_cache is not None:
            model.config.use_cache = use_cache


def suffixes(model: nn.Module, names: Sequence[str]) -> list[str]:
    """PEFT's target_modules for these modules: last parts of names where they mean no other module."""
    short = sorted({name.rpartition(".")[2] for name in names})
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return short if meant == set(names) else sorted(names)


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Trainer seeds every generator there is; put them back."""
    import random

    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _fit(
    loaded: LoadedModel, job: Job, training: Training, progress: Progress | None, half: int | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """(lora_A, lora_B) of every module after all steps. half: which of two trainings of as many steps."""
    model, names = loaded.model, target_modules(loaded.model, training.layers)
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
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

            def loss_of(batch):
                return losses(model, batch.to(loaded.device), job.prefix, rows)[0]

            def seen(step, loss):
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


def _layers(model: nn.Module, names: Sequence[str], job: Job, training: Training):
    """PEFT's layers with factors drawn by the job's seed, and the parameters that are trained."""
    layers, trained = {}, []
    for name in names:
        layer = model.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
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
        layers[name] = (layer, layer.get_base_layer(), Factors([a], [b], training.scale()))
    return layers, trained


class _Trainer(transformers.Trainer):
    """Trainer over batches made in advance, with a loss of our own."""

    def __init__(self, loss_of: Callable[[batches.Batch], Tensor], **options: Any):
        super().__init__(**options)
        self.loss_of = loss_of

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=None, shuffle=False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.loss_of(inputs["batch"])

    def floating_point_ops(self, inputs) -> int:
        return 0


class _Steps(torch.utils.data.Dataset):
    def __init__(self, job: Job, padding: int):
        self.job, self.padding = job, padding

    def __len__(self) -> int:
        return self.job.steps

    def __getitem__(self, step: int) -> dict[str, batches.Batch]:
        return {"batch": batches.collated([self.job.step(step)], self.padding)}


class _Watch(transformers.TrainerCallback):
    """Clips the gradient before each update and reports the loss behind it."""

    def __init__(self, parameters: Sequence[Tensor], clip: float, latest: list[Tensor], seen):
        self.parameters, self.clip, self.latest, self.seen = parameters, clip, latest, seen

    def on_pre_optimizer_step(self, args, state, control, **_):
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)

    def on_step_end(self, args, state, control, **_):
        self.seen(state.global_step - 1, self.latest.pop().item())


def optimizer_of(parameters: Sequence[Tensor], training: Training, steps: int):
    """AdamW and the schedule of its learning rate."""
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: training.rate(step, steps))


def run(peft_model, loaded: LoadedModel, job: Job, training: Training, trained, loss_of, seen) -> None:
    """All steps of one job through Trainer; `seen(step, loss)` behind each."""
    latest: list[Tensor] = []

    def kept_loss(batch):
        loss = loss_of(batch)
        latest.append(loss.detach())
        return loss

    with tempfile.TemporaryDirectory() as folder:
        known = {field.name for field in fields(transformers.TrainingArguments)}
        options = {
            "output_dir": folder,
            "max_steps": job.steps,
            "max_grad_norm": 0.0,  # done by _Watch
            "save_strategy": "no",
            "logging_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "use_cpu": loaded.device.type == "cpu",
            "seed": job.seed,
        }
        trainer = _Trainer(
            kept_loss,
            model=peft_model,
            args=transformers.TrainingArguments(**{k: v for k, v in options.items() if k in known}),
            train_dataset=_Steps(job, loaded.tokenizer.pad_token_id),
            optimizers=optimizer_of(trained, training, job.steps),
            callbacks=[_Watch(trained, training.clip, latest, seen)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        gc.freeze()  # Trainer collects garbage first, which takes seconds among a large program's objects
        try:
            trainer.train()
        finally:
            gc.unfreeze()
