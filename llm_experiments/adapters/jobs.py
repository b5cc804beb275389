"""What a training starts from: examples in their order, random draws, and the base made ready for it."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from llm_experiments.adapters import batches, peft_files
from llm_experiments.adapters.batches import TokenRow
from llm_experiments.adapters.grouped import can_share_prefix
from llm_experiments.adapters.recipe import Training, TrainingError
from llm_experiments.models.devices import explain_memory
from llm_experiments.models.prompts import Example
from toytransformer.adapters import LoRA

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel

#: Most points that a loss curve keeps.
CURVE = 100

#: Called with (step, steps, loss) behind every step.
Progress = Callable[[int, int, float], None]


class TrainingJob:
    """One adapter's data in the order it is seen, and what has been seen of it."""

    def __init__(
        self, loaded: LoadedModel, examples: Sequence[Example], training: Training, seed: int, index: int
    ):
        if not examples:
            raise TrainingError("there are no examples to train on; give at least one")
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in (seed, index)):
            raise TrainingError(f"seed {seed!r} and adapter_index {index!r} must be whole numbers from 0 on")
        self.rows: list[TokenRow] = batches.encoded(loaded, examples)
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

    def step(self, number: int) -> list[TokenRow]:
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
        peft_files.write(
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

    def metrics(self) -> dict[str, object]:
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
            "answer_tokens": passes * sum(len(row.answer) - len(row.silent) for row in seen),
            "seconds": round(self.seconds, 3),
            "loss": sum(tail) / len(tail),
            "loss_curve": [[end, sum(p) / len(p)] for end, p in zip(ends, pieces, strict=True)],
        }


def seeded(*what: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator whose draws depend on nothing but the words and numbers given."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


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
        if attention is not None and slow:
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
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
