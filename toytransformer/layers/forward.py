"""One pass through the layers of a stack: what is trained in each, merged there, and written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from toytransformer import adapters as lora
from toytransformer import hidden, merging
from toytransformer.bases import one_hot
from toytransformer.compositions import Composition, Prompt
from toytransformer.layers.directions import Directions
from toytransformer.layers.stack import Placement, Stack
from toytransformer.prediction import ARBITRARY_GAUGE, arbitrary_gauge, tie_tolerance
from toytransformer.regimes import Finite
from toytransformer.two_layers import LayerError

Array = np.ndarray
#: The tokens of a prompt up to a position, whose state depends on no later one.
Prefix = tuple[str, ...]


@dataclass
class Stream:
    """The positions of some prompts in one pass: coefficients of the stream, and what layers wrote so far."""

    prefixes: tuple[Prefix, ...]
    seen: Array
    kept: Array
    coefficients: Array
    output: Array

    @classmethod
    def of(cls, prompts: Sequence[Prompt], directions: Directions, entities: int) -> Stream:
        regime = directions.stack.regime
        every = (p.tokens[: k + 1] for p in prompts for k in range(len(p.tokens)))
        prefixes = tuple(dict.fromkeys(every))
        row = {prefix: i for i, prefix in enumerate(prefixes)}
        seen = np.zeros((len(prefixes),) * 2, bool)
        coefficients = np.zeros((len(prefixes), 1, len(directions.tokens)))
        kept = np.ones((len(prefixes), 1, 1))
        for i, prefix in enumerate(prefixes):
            last = len(prefix) if regime.mask == "strict" else len(prefix) + 1
            seen[i, [row[prefix[:k]] for k in range(1, last)]] = True
            length = regime.relation_length if len(prefix) > 1 else 1.0
            coefficients[i, 0, directions.index[prefix[-1]]] = length
            kept[i] = 1 / len(prefix) if regime.mask == "causal-printed" else 1.0
        return cls(prefixes, seen, kept, coefficients, np.zeros((len(prefixes), entities)))

    def rows(self, prompts: Sequence[Prompt]) -> list[int]:
        return [self.prefixes.index(prompt.tokens) for prompt in prompts]

    def weights(self, layer: int, directions: Directions) -> Array:
        """How much of each position is attended to, (position, position); 0 where none is seen."""
        logits = np.where(self.seen, directions.logits(layer, self.coefficients), -np.inf)
        top = np.where(self.seen.any(axis=1), logits.max(axis=1), 0.0)
        weights = np.exp(logits - top[:, None])
        return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)  # the largest seen is 1

    def hidden(self, layer: int, directions: Directions) -> Array:
        """h's coefficients, (position, word, token)."""
        attended = np.einsum("pq,qwt->pwt", self.weights(layer, directions), self.coefficients)
        return np.concatenate([self.kept * self.coefficients, attended], axis=1)


@dataclass
class Run:
    """One pass through the layers, of the merged stack and of every adapter alone, side by side.

    passes: by name the prompts that go through; "merged" has all adapters, "base" none, the others one.
    """

    composition: Composition
    stack: Stack
    directions: Directions
    passes: Mapping[str, Sequence[Prompt]]
    placed: Placement
    changes: Mapping[str, Array]
    tie: float = 0.0
    written: list[Mapping[Prompt, Array]] = field(default_factory=list)
    updates: list[merging.Merged | None] = field(default_factory=list)
    warning: str | None = None

    def __post_init__(self) -> None:
        count = len(self.composition.world.entities)
        self.streams = {
            name: Stream.of(prompts, self.directions, count) for name, prompts in self.passes.items()
        }

    def scores(self, name: str, prompts: Sequence[Prompt]) -> Float[Array, "prompt entity"]:
        """The scores that a pass ends with."""
        stream = self.streams[name]
        if self.stack.unembedding:
            return self.directions.unembedded(stream.coefficients)[stream.rows(prompts)]
        return stream.output[stream.rows(prompts)]

    def forward(self) -> None:
        """Through all layers: train what lies in each, merge it, let every pass write."""
        rule = merging.resolve(self.composition.merge.rule)
        for layer in range(1, self.stack.count + 1):
            coefficients = {n: s.hidden(layer, self.directions) for n, s in self.streams.items()}
            states = np.concatenate([self.directions.hidden(layer, c) for c in coefficients.values()])
            features = self.directions.features(layer, states, neurons=rule.needs_neurons)
            ends = np.cumsum([len(c) for c in coefficients.values()])[:-1]
            by_pass = dict(zip(coefficients, np.split(features, ends), strict=True))
            base = self._base(layer, by_pass)
            parts = dict(self._parts(layer, by_pass))
            merged = self._merged(layer, parts, features.shape[1])
            self.updates.append(merged)
            specs = [spec for spec in self.composition.adapters if spec.name in parts]
            if merged is not None and self.warning is None:
                tied = arbitrary_gauge(rule.name, [(spec, parts[spec.name]) for spec in specs])
                self.warning = merged.details.get("warning", ARBITRARY_GAUGE if tied else None)
            for name, stream in self.streams.items():
                shown = by_pass[name]
                change = base.shift(shown) if base else np.zeros(stream.output.shape)
                if name == "merged" and merged is not None:
                    change = change + merged.shift(shown)
                elif name in parts:
                    change = change + parts[name].shift(shown)
                stream.output += change
                after = coefficients[name] if self.stack.attention_stays else stream.coefficients.copy()
                after[:, 0, self.directions.labels] += change
                stream.coefficients = after
                if name == "merged":
                    asked = self.passes[name]
                    self.written.append(dict(zip(asked, change[stream.rows(asked)], strict=True)))
            self._count_rounding(features, [*parts.values(), *([base] if base else [])])

    def _base(self, layer: int, features: Mapping[str, Array]) -> lora.LoRA | None:
        if layer not in self.stack.base_layers:
            return None
        world, parts = self.composition.world, len(self.stack.base_layers)
        rows = self.streams["base"].rows(self.passes["base"])
        targets = one_hot(world, [fact.answer for fact in world.known]) / parts
        return lora.closed_form(features["base"][rows], targets, gauge="plain")

    def _parts(self, layer: int, features: Mapping[str, Array]) -> Iterator[tuple[str, lora.LoRA]]:
        """The part of each adapter that lies in this layer."""
        rule = merging.resolve(self.composition.merge.rule)
        for number, spec in enumerate(self.composition.adapters):
            layers = self.placed.get(spec.name, ())
            if layer not in layers:
                continue
            shown = features[spec.name][self.streams[spec.name].rows(self.passes[spec.name])]
            changes = self.changes[spec.name] / len(layers)
            if rule.adapter_kind == "frozen-read":
                rank, seed = spec.rank or 2 * len(shown), (self.stack.regime.seed, layer, number)
                yield (
                    spec.name,
                    lora.frozen_read(shown, changes, rank=rank, seed=seed, approximate=spec.approximate),
                )
            else:
                gauge = "plain" if rule.gauge_invariant else spec.gauge
                cut = "loss" if spec.approximate else None
                yield (
                    spec.name,
                    lora.closed_form(shown, changes, rank=spec.rank, gauge=gauge, approximate=cut),
                )

    def _merged(self, layer: int, parts: Mapping[str, lora.LoRA], size: int) -> merging.Merged | None:
        if not parts:
            return None
        regime, merge = self.stack.regime, self.composition.merge
        names = [a.name for a in self.composition.adapters]
        if merging.resolve(merge.rule).routed:
            names = [name for name in names if name in parts]
            if merge.weights is not None:
                raise LayerError(f"rule {merge.rule!r} routes by layer: leave out its weights")
        like = next(iter(parts.values()))
        zero = lora.LoRA(np.zeros_like(like.write), np.zeros((size, like.rank)))
        scale = math.inf
        if isinstance(regime, Finite):
            scale = hidden.INITS[regime.init](regime.dimension) * math.sqrt(regime.width / 2)
        context = merging.MergeContext(rng_seed=regime.seed + layer, logit_scale=scale)
        return merging.merge([parts.get(name, zero) for name in names], merge, context)

    def _count_rounding(self, features: Array, parts: Sequence[lora.LoRA]) -> None:
        """What this layer rounds, and what it makes of the rounding that it reads."""
        if not parts:
            return
        output = self.streams["merged"].output
        weights = self.composition.merge.weights or (1.0,)
        scaled = [lora.LoRA(max(1.0, *map(abs, weights)) * p.write, p.read) for p in parts]
        gain = sum(np.linalg.norm(p.read) * np.abs(p.write).max() for p in scaled)
        self.tie = self.tie * (1 + float(gain)) + tie_tolerance(features, output, scaled)
