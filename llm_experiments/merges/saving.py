"""Static merges as PEFT adapters, of a rank that one can use, layer by layer.

    adapter = static_adapter(library, Merge("ties"), rank=LARGEST)
    adapter.details["rank"], adapter.details["relative_error"], adapter.details["bytes"]
    adapter.write(folder, "merged")

One layer's updates are in memory at a time, beside the factors that are kept of those before it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch

from llm_experiments.adapters.peft_files import inherited, write
from llm_experiments.adapters.weights import AdapterWeights, ModuleUpdate, StoredModules, WholeTensor
from llm_experiments.merges.affine import AffineMerge
from llm_experiments.merges.merging import (
    PRECISION,
    FittedMerge,
    check_merge,
    converted,
    describe,
    merged_layer,
    merged_library,
    module_seed,
)
from llm_experiments.merges.truncation import Cut, cut, distance, norm, norm_and_distance, smallest_rank, wide
from llm_experiments.models.files import markdown
from toytransformer.adapters import AdapterError, LoRA
from toytransformer.arrays import all_finite
from toytransformer.compositions import replace_file
from toytransformer.compositions.spec import Merge
from toytransformer.memory import require_memory
from toytransformer.merging import RuleError, Static, StaticMerge, check

#: The rank of the inputs: the largest of any adapter. A rule that keeps factors is not cut.
LARGEST: Literal["largest"] = "largest"
#: Dense updates with more entries than this are merged in single precision where they are cut afterwards.
MANY = 2**22
#: Matrices of its size that merging a dense layer needs at once.
COPIES = 4
#: What factors are written in.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StaticAdapter:
    """A merge that is ready to be written.

    modules: layer -> factors in the precision that is written. details: what `merging.describe` says, `rank`,
    `dtype`, `bytes`, the size of the weights, and `relative_error`, |Delta - written|_F / |Delta|_F over all
    layers.
    """

    modules: Mapping[str, LoRA]
    details: Mapping[str, Any]
    base: str
    kept: Mapping[str, object]
    settings: Mapping[str, object]
    whole: Mapping[str, WholeTensor]

    def write(self, folder: str | os.PathLike, name: str) -> None:
        """Write a folder that plain PEFT loads, with a card that says how it was made."""
        dtype = DTYPES[self.details["dtype"]]
        details = {**self.kept, "merge": self.details}
        more: dict[str, Any] = {"settings": self.settings, "whole": self.whole}
        write(folder, name, self.modules, self.base, details=details, dtype=dtype, **more)
        replace_file(Path(folder) / "README.md", [card(name, self.base, self.details)])


def static_adapter(
    library: Sequence[AdapterWeights],
    merge: Merge | FittedMerge,
    *,
    seed: int = 0,
    rank: int | Literal["largest"] | None = None,
    loss: float | None = None,
    dtype: torch.dtype = torch.float32,
    tick: Callable[[int, int], None] = lambda done, all: None,
) -> StaticAdapter:
    """A static merge as the factors of one adapter.

    rank: None keeps all there is: factors as they are, dense updates down to rounding. A number keeps that
    many singular directions of every layer, the best approximation of that rank; LARGEST the largest rank of
    the library where the rule leaves a dense matrix, and factors as they are. loss: keep the least rank with
    at most this relative error, in place of `rank`. tick: called with the layers done and all of them.
    Errors: RuleError for a routed rule, whose update differs from token to token, so that no single LoRA has
    it, and for a loss that is not between 0 and 1.
    """
    spec = merge.merge if isinstance(merge, FittedMerge) else merge
    rule, _ = check(spec)
    if rule.routed:
        raise RuleError(
            f"rule {rule.name!r} gives every token its own update, which no single LoRA can hold; "
            "keep the adapters and use `apply`, or choose a static rule"
        )
    if loss is not None and not 0 < loss < 1:
        raise RuleError(f"loss is {loss!r}; give a number above 0 and below 1, such as 0.01")
    library = merged_library(library, merge)
    whole_factors = loss is None and not isinstance(rank, int)
    plain = torch.promote_types(dtype, torch.float32) if whole_factors else PRECISION
    layers = _Layers(library, merge, seed, tick, plain)
    modules, lost, total = {}, 0.0, 0.0
    exact: list[str] = []
    if loss is None:
        for name, update in layers.merged(cut=rank is not None):
            if isinstance(rank, int) and wide(update, rank):
                one = cut(update, rank, module_seed(0, name))
                modules[name] = _rounded(one.to(rank), dtype, name)
                apart = distance(one.to(rank), converted(modules[name], PRECISION))
                lost, total = lost + one.lost(rank) + apart**2, total + one.energy
                continue
            kept = _kept(update, rank, library, name)
            if not modules:
                _require_room(kept, library, dtype)
            modules[name] = rounded = _rounded(kept, dtype, name)
            if isinstance(update, LoRA) and rounded.write is update.write and rounded.read is update.read:
                exact.append(name)
                continue
            size, apart = norm_and_distance(update, converted(modules[name], PRECISION))
            lost, total = lost + apart**2, total + size**2
    else:
        cuts, enough = _by_loss(layers, loss, largest(library))
        for name, one in cuts.items():
            modules[name] = _rounded(one.to(enough), dtype, name)
            rounding = distance(one.to(enough), converted(modules[name], PRECISION))
            lost += one.lost(enough) + rounding**2
            total += one.energy
    if lost:  # else their norms say nothing
        total += sum(norm(modules[name]) ** 2 for name in exact)
    details = describe(library, merge, seed, layers.said)
    written = max(lora.rank for lora in modules.values())
    details["rank"], details["dtype"] = written, str(dtype).removeprefix("torch.")
    details["bytes"] = dtype.itemsize * written * sum(map(_sides, modules.values()))
    details["relative_error"] = math.sqrt(lost / total) if total else 0.0
    first = library[0]
    of_base = {"base_digest": first.details["base_digest"]} if "base_digest" in first.details else {}
    written_modules = {name: layers.whole(name, lora) for name, lora in modules.items()}
    whole = {key: tensor for adapter in library for key, tensor in adapter.whole.items()}
    base = str(first.config.get("base_model_name_or_path") or "")
    return StaticAdapter(written_modules, details, base, of_base, inherited(library), whole)


def save_static(
    library: Sequence[AdapterWeights],
    merge: Merge | FittedMerge,
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    rank: int | Literal["largest"] | None = None,
    name: str = "merged",
) -> dict[str, Any]:
    """Write a static merge as one PEFT adapter; returns (and keeps) its details. See `static_adapter`."""
    adapter = static_adapter(library, merge, seed=seed, rank=rank)
    adapter.write(folder, name)
    return dict(adapter.details)


def largest(library: Sequence[AdapterWeights]) -> int:
    """The largest rank of any adapter in any layer."""
    return max(adapter.rank for adapter in library)


@dataclass
class _Layers:
    """The merged updates of a library, one after another. said: what the rule says of each.

    plain: the precision of rules that are polynomials in the factors. Others choose among entries, and would
    choose otherwise than where the merge is applied.
    """

    library: Sequence[AdapterWeights]
    merge: Merge | FittedMerge
    seed: int
    tick: Callable[[int, int], None]
    plain: torch.dtype = PRECISION
    said: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)

    def whole(self, name: str, lora: LoRA) -> ModuleUpdate:
        """A layer's factors with what else is added there."""
        return ModuleUpdate(lora.write, lora.read, 1.0, self.biases.get(name), self.kinds[name])

    def merged(self, *, cut: bool) -> Iterator[tuple[str, LoRA | torch.Tensor]]:
        """cut: whether the updates are cut to a rank, so that single precision serves large ones."""
        names = check_merge(self.library, self.merge)
        asked = self.merge.merge if isinstance(self.merge, FittedMerge) else self.merge
        self._ahead(names[:1])
        for done, name in enumerate(names, start=1):
            self._ahead(names[done : done + 1])
            spec = self.merge.merges[name] if isinstance(self.merge, FittedMerge) else self.merge
            shape = next(one.shape(name) for one in self.library if name in one.modules)
            rule, ranks = (
                check(spec)[0],
                [one.shape(name).rank for one in self.library if name in one.modules],
            )
            entries = shape.out * shape.inside if rule.dense else (shape.out + shape.inside) * sum(ranks)
            precision = self.plain if rule.sectorwise else PRECISION
            if cut and entries > MANY:
                precision = torch.float32
            if rule.dense or entries > MANY:
                require_memory(COPIES * entries * precision.itemsize, f"merging {name} by {rule.name!r}")
            outcome = merged_layer(self.library, name, spec, self.seed, torch.device("cpu"), precision)
            static = cast(Static, outcome)  # as its rule is not routed
            self.said[name] = static.details
            self.kinds[name] = shape.kind
            if not check(asked)[0].needs_data:  # a fit may find such weights, and means them
                _refuse_squares(spec, static)
            if isinstance(static, AffineMerge) and static.bias is not None:
                self.biases[name] = static.bias
            yield name, static.update if isinstance(static, StaticMerge) else static.factored()
            self.tick(done, len(names))

    def _ahead(self, names: Sequence[str]) -> None:
        """Files are read from while the layer before is merged."""
        for adapter in self.library:
            if isinstance(adapter.modules, StoredModules):
                for name in names:
                    adapter.modules.ahead(name)


def _require_room(first: LoRA, library: Sequence[AdapterWeights], dtype: torch.dtype) -> None:
    """Factors that are kept whole grow with the library: refuse them before many layers are merged."""
    layers = len({name for adapter in library for name in adapter.modules})
    entries = first.rank * _sides(first) * layers
    if entries > MANY:
        needed = dtype.itemsize * entries
        require_memory(needed, f"a merge of rank {first.rank} in {layers} layers (a smaller rank needs less)")


def _refuse_squares(spec: Merge, merged: Static) -> None:
    """RuleError where a weight was negative and the rule squares it, so that nothing is taken away."""
    own = merged.mixing.own if isinstance(merged, StaticMerge) and merged.mixing else ()
    for place, (weight, kept) in enumerate(zip(spec.weights or (), own, strict=False)):
        if weight < 0 < kept:
            raise RuleError(
                f"rule {spec.rule!r} squares its weights: weight {weight:g} of adapter {place + 1} adds "
                f"{kept:g} times its update and takes nothing away; use 'sum', which subtracts"
            )


def _kept(
    update: LoRA | torch.Tensor,
    rank: int | Literal["largest"] | None,
    library: Sequence[AdapterWeights],
    name: str,
) -> LoRA:
    """The update's factors, or its largest singular directions."""
    factored = isinstance(update, LoRA)
    if rank is None or (factored and rank == LARGEST):
        return StaticMerge(update).factored()
    most = largest(library) if rank == LARGEST else rank
    if isinstance(update, LoRA) and most >= update.rank:
        return update
    return cut(update, most, module_seed(0, name)).to(most)


def _by_loss(layers: _Layers, loss: float, rank: int) -> tuple[dict[str, Cut], int]:
    """Every layer's largest directions, and how many of them are enough; twice as many until they are."""
    while True:
        cuts = {name: cut(update, rank, module_seed(0, name)) for name, update in layers.merged(cut=True)}
        if found := smallest_rank(list(cuts.values()), loss):
            return cuts, found
        rank *= 2


def _rounded(lora: LoRA, dtype: torch.dtype, name: str) -> LoRA:
    """The factors in the precision that is written. Errors: AdapterError where that cannot hold them."""
    rounded = converted(lora, dtype)
    if not (all_finite(rounded.write) and all_finite(rounded.read)):
        kind = str(dtype).removeprefix("torch.")
        raise AdapterError(f"the merge holds numbers beyond {kind} at {name}; scale the adapters down")
    return rounded


def _sides(lora: LoRA) -> int:
    return len(lora.write) + len(lora.read)


def card(name: str, base: str, details: Mapping[str, Any]) -> str:
    """A model card: how the adapter was made, and how far it is from the exact merge."""
    names = ", ".join(details["adapters"])
    weights = "the rule's own" if details["weights"] is None else list(details["weights"])
    fitted = details.get("fitted", {})
    parts = fitted.get("layers", {})
    by_layer = "".join(f"- weights of {markdown(where)}: {own}\n" for where, own in parts.items())
    if losses := fitted.get("losses"):
        counts = fitted["questions"]
        one_set = not isinstance(fitted["weights"], Mapping)
        weights = (
            f"{', '.join(f'{w:.4f}' for w in fitted['weights'])}, " if one_set else "of every layer its own, "
        )
        weights += f"fitted on {counts['fitted']} questions; {counts['held_out']} were held out"
        by_layer = "".join(
            f"- mean -log p of an answer's token under {markdown(merge)}, in nats: {on:.4f} on the questions "
            f"fitted on, {off:.4f} on those held out\n"
            for merge, (on, off) in losses.items()
        )
    return f"""---
library_name: peft
base_model: {json.dumps(base)}
tags:
- lora
- merged
---

# {markdown(name)}

A merge of the LoRA adapters {markdown(names)}.

- rule: `{details["rule"]}`, {details["formula"]}
- weights: {weights}
{by_layer}- options: {details["options"]}
- seed: {details["seed"]}
- rank: {details["rank"]}
- relative error against the exact merge (Frobenius norm, all layers): {details["relative_error"]:.1e}
"""
