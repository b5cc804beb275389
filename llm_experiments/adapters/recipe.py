"""How an adapter is trained, as data: the paper's Table 11 and what it leaves open."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_experiments.models.choice import ChoiceError, LayerChoice


class TrainingError(ValueError):
    """A training that cannot be done as asked; the message says which value and what to do."""


@dataclass(frozen=True)
class Training:
    """How an adapter is trained; by default as in the paper's Table 11, which gives no alpha, warm-up,
    schedule or clipping.

    alpha: Delta W = (alpha / rank) B A. batch: examples a step. steps: overrides epochs. layers: "mlp",
    "attention", "both" or "all", and which blocks: "mlp@0-11", "attention@lower half" (grammar in
    models/choice.py). variant: "lora"; "frozen-a" (LoRI-D), A stays as drawn and B is trained;
    "sparse-b" (LoRI-S), the same, then B is trained anew from 0 on those entries only that were largest in
    magnitude, the share `density` of each module's (LoRI draws one threshold through all modules; one for
    each makes the merge rule lori-s leave such an adapter as it is). initial_a: "independent" draws A for
    each adapter of a library, "shared" once for all. warmup: share of the steps. clip: largest norm of an
    adapter's gradient, 0 for any. base_dtype: None for the model's own; "bfloat16" computes with rounded
    base weights during training only (1.5 times as fast on a CPU that multiplies bfloat16 matrices); the
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

    def __post_init__(self) -> None:
        try:
            LayerChoice.parse(self.layers)
        except ChoiceError as error:
            raise TrainingError(str(error)) from error
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

    def seen(self, examples: int) -> int:
        """How many examples are trained on where there are this many, repeats counted.

        With `steps`, a few less: one batch of an epoch may be smaller.
        """
        passes = 2 if self.variant == "sparse-b" else 1
        return passes * (self.epochs * examples if self.steps is None else self.steps * self.batch)

    def rate(self, step: int, steps: int) -> float:
        """Share of learning_rate in the update number `step`, counted from 0."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return (steps - step) / max(1, steps - rising) if self.schedule == "linear" else 1.0


_CHOICES = {
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
