"""The rules of `toytransformer.merging` inside a language model: per linear layer, per token.

    with apply(loaded, library, Merge("arrow-products", options={"temperature": 0.1})) as applied:
        ...  # every target layer adds merge(its adapters).shift(x) to its output

There are no formulas here: each target layer's factors (torch tensors) go through the rule that the theory
uses, and a forward hook adds the shift. The base's weights are not touched, so the base may be bf16, float32
or 4-bit. Static merges can also be saved as PEFT adapters (`llm_experiments.merges.saving`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from llm_experiments.adapters.compatible import compatibility
from llm_experiments.adapters.weights import AdapterWeights, ModuleShape, ModuleUpdate
from llm_experiments.merges.affine import AffineMerge, affine
from llm_experiments.merges.hooks import Padding, Routing, Tally, adding, gate_precision, of_tokens, shifter
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.layers import linear_shape
from toytransformer.adapters import LoRA
from toytransformer.compositions.spec import Merge
from toytransformer.memory import require_memory
from toytransformer.merging import (
    MergeContext,
    Merged,
    Routed,
    RuleError,
    Static,
    check,
    resolve,
)
from toytransformer.merging import merge as merge_factors

#: Updates and prototypes are computed in this precision; shifts in the `dtype` of `apply`.
PRECISION = torch.float64
#: Similarities closer than so many units of rounding, times |x|, are a tie. The theory leaves more room, as
#: its ties are exact; among the small cosines of real activations many are as close as that and no tie.
TIED = 16


@dataclass(frozen=True)
class FittedMerge:
    """A merge fitted on examples (`llm_experiments.merges.fitted`): what is merged, and how in each layer.

    merge: the rule asked for. names: the library it was fitted on. library: the adapters to merge, which for
    the controls are other ones. merges: layer -> a rule without data and its fitted weights.
    """

    merge: Merge
    names: tuple[str, ...]
    library: tuple[AdapterWeights, ...]
    merges: Mapping[str, Merge]
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass
class AppliedMerge:
    """A merge in force.

    details: rule, options, seed, adapters; `modules`, what the rule says of each layer; `warnings`; `absent`,
    in how many layers an adapter is taken as zero, where it is in any; for
    Arrow `spectral_gap` with the smallest, its layer, and the quartiles over layers and adapters.
    """

    modules: Mapping[str, Merged]
    details: Mapping[str, Any]
    _tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def routed(self) -> tuple[str, ...]:
        """The layers whose routing is watched: none under a static merge or without `statistics=True`."""
        return tuple(self._tallies)

    def routing(self) -> dict[str, Routing]:
        """The routing of every layer since the start or the last `reset`; needs `statistics=True`."""
        results = {name: tally.result() for name, tally in self._tallies.items()}
        return {name: result for name, result in results.items() if result is not None}

    @contextmanager
    def watched(self) -> Iterator[Mapping[str, torch.Tensor]]:
        """The routing of the last forward pass inside, by layer: weights (row, position, adapter).

        Such passes do not count in `routing`. Empty where the merge does not route; needs `statistics=True`.
        """
        latest: dict[str, torch.Tensor] = {}
        for name, tally in self._tallies.items():
            tally.watch = partial(latest.__setitem__, name)
        try:
            yield latest
        finally:
            for tally in self._tallies.values():
                tally.watch = None

    def reset(self) -> None:
        """Forget the statistics gathered so far."""
        for tally in self._tallies.values():
            tally.sums = None


@contextmanager
def apply(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    merge: Merge | FittedMerge,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    statistics: bool = False,
    own_means: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[AppliedMerge]:
    """Add the merged library to `loaded.model` for the duration of the context.

    Each target layer computes base(x) + shift(x), the shift in `dtype` (sum and rounding as in PEFT), Arrow's
    routing in float32 at least. An empty library is the base. Where an adapter does not change a layer that
    another does, see `merge_modules`. An embedding's rows are shifted by a merge that does not route; the
    output layer that is tied to it is not, as in PEFT. statistics: gather `AppliedMerge.routing`. own_means:
    layer -> (adapter, in), for rules that route by what adapters were trained on (asking.own_prompts). The
    model is as it was afterwards, also after an exception. Errors: RuleError and AdapterError, before any
    change.
    """
    if not dtype.is_floating_point:
        raise RuleError(f"dtype is {dtype}; give a floating point one such as torch.float32")
    if isinstance(merge, Merge):
        check(merge)
    whole, rules = library, [merge.rule] if isinstance(merge, Merge) else []
    if isinstance(merge, FittedMerge):
        whole, rules = merge.library, [one.rule for one in merge.merges.values()]
    layers = target_layers(loaded, whole, embeddings=not any(resolve(rule).routed for rule in rules))
    devices = {name: _device(layer) for name, layer in layers.items()}
    merged = {}
    if layers:
        merged = merge_modules(library, merge, seed, dtype=dtype, devices=devices, own_means=own_means)
    said = {name: outcome.details for name, outcome in merged.items()}
    applied = AppliedMerge(merged, describe(library, merge, seed, said))
    padding = Padding()
    with ExitStack() as stack:
        if statistics:
            before = loaded.model.register_forward_pre_hook(padding.remember, with_kwargs=True)
            stack.callback(before.remove)
        for name, layer in layers.items():
            tally = None
            if statistics and isinstance(merged[name], Routed):
                places = [name in adapter.modules for adapter in library]
                tally = applied._tallies[name] = Tally(padding, places)
            if isinstance(layer, torch.nn.Embedding):
                shift = of_tokens(layer, cast(Static, merged[name]), devices[name])
            else:
                shift = shifter(merged[name], dtype, devices[name], tally)
            stack.callback(layer.register_forward_hook(adding(shift)).remove)
        yield applied


def merge_modules(
    library: Sequence[AdapterWeights],
    merge: Merge | FittedMerge,
    seed: int = 0,
    *,
    dtype: torch.dtype = PRECISION,
    devices: Mapping[str, torch.device] | None = None,
    own_means: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Merged]:
    """The rule applied to each layer's factors: layer -> Merged, in `dtype`, on the layer's device.

    Every layer has its own random numbers, made from `seed` (or the rule's option of that name) and the name
    of the layer. Raw activations are the features, so Arrow's logits are |p . x| / T, and temperature scaling
    "sqrt-width" divides them by sqrt(in) too. Prototypes are kept in float32 at least. Each adapter's own
    scale s is in its write factor, which factor-wise rules see where the scales of a library differ.

    An adapter that does not change a layer has Delta = 0 there, with factors of zeros: a product-wise rule
    keeps its weights (`mean` still divides by the size of the library), a factor-wise one loses its cross
    terms, so that `linear` leaves w_i^2 Delta_i. A rule that routes has no prototype for it and routes among
    the adapters that the layer has: alone there, one has weight 1. Rules that need data are fitted on
    libraries whose adapters change the same layers.
    """
    library = merged_library(library, merge)
    result: dict[str, Merged] = {}
    names = check_merge(library, merge)
    for name in names:
        spec = merge.merges[name] if isinstance(merge, FittedMerge) else merge
        device = (devices or {}).get(name, torch.device("cpu"))
        means = None if own_means is None else own_means[name]
        outcome = merged_layer(library, name, spec, seed, device, own_means=means)
        if not result and outcome.rank is None:
            _require_room(library, names, dtype, device, spec.rule)
        result[name] = outcome.to(casting(dtype, device), casting(gate_precision(dtype), device))
    return result


def check_merge(library: Sequence[AdapterWeights], merge: Merge | FittedMerge) -> tuple[str, ...]:
    """The layers that a library changes, once it can be merged, and by this merge.

    Errors: AdapterError and RuleError.
    """
    together = compatibility(library)
    names = together.require()
    merges = merge.merges.values() if isinstance(merge, FittedMerge) else (merge,)
    for rule in sorted({one.rule for one in merges}):
        if reason := together.undefined(resolve(rule)):
            raise RuleError(reason)
    return names


def merged_library(library: Sequence[AdapterWeights], merge: Merge | FittedMerge) -> Sequence[AdapterWeights]:
    """The adapters to merge: the library, or what a fitted merge has in its place.

    Errors: RuleError on a merge fitted on other adapters, and on a rule that was not fitted.
    """
    if isinstance(merge, FittedMerge):
        if library and tuple(adapter.name for adapter in library) != merge.names:
            raise RuleError(
                f"the merge was fitted on the adapters {merge.names}, given were "
                f"{tuple(adapter.name for adapter in library)}; fit it again"
            )
        return merge.library
    rule, _ = check(merge)
    if rule.needs_data:
        raise RuleError(
            f"rule {rule.name!r} has to be fitted on examples first: apply what "
            "llm_experiments.merges.fitted.fit returns"
        )
    return library


def merged_layer(
    library: Sequence[AdapterWeights],
    name: str,
    spec: Merge,
    seed: int,
    device: torch.device,
    precision: torch.dtype = PRECISION,
    own_means: torch.Tensor | None = None,
) -> Merged:
    """The rule on the factors of one layer; see `merge_modules` for adapters that do not change it.

    own_means: (adapter, in), the mean input of the layer on each adapter's own texts.
    """
    drawn = spec.option_dict.get("seed")
    options = {key: value for key, value in spec.option_dict.items() if key != "seed"}
    given = [adapter if name in adapter.modules else None for adapter in library]
    present = [adapter for adapter in given if adapter is not None]
    if len(present) < len(given) and resolve(spec.rule).routed:
        most = options.get("top_k")
        if isinstance(most, int) and len(present) < most <= len(given):
            options["top_k"] = len(present)
        if own_means is not None:
            own_means = own_means[[adapter is not None for adapter in given]]
        given = list(present)
    first = present[0].shape(name)
    shapes = [replace(first, scale=1.0) if one is None else one.shape(name) for one in given]
    biased = any(adapter.shape(name).bias for adapter in present)
    work = torch.device("cpu") if device.type == "mps" else device  # it has no float64

    def factors_of(adapter: AdapterWeights | None) -> LoRA:
        lora = zeros(first) if adapter is None else adapter.modules[name]
        return converted(affine(lora) if biased else lora, precision, work)

    factors = [factors_of(adapter) for adapter in given]  # one adapter is read after another
    if resolve(spec.rule).factor_wise:
        factors = filled(factors)
    context = MergeContext(
        rng_seed=module_seed(drawn if isinstance(drawn, int) else seed, name),
        logit_scale=1.0,
        width_scale=math.sqrt(len(factors[0].read)),
        tied=TIED,
        scales=tuple(shape.scale for shape in shapes),
        own_means=None if own_means is None else own_means.to(device=work, dtype=precision),
    )
    try:
        merged = merge_factors(factors, replace(spec, options=options), context)
    except RuleError as error:
        raise RuleError(f"{name}: {error}") from error
    return AffineMerge.of(merged) if biased else merged


def filled(adapters: Sequence[LoRA]) -> list[LoRA]:
    """The same updates in factors of one rank: columns of zeros in the smaller ones."""
    rank = max(lora.rank for lora in adapters)
    pad = torch.nn.functional.pad
    return [
        lora
        if lora.rank == rank
        else LoRA(*(pad(part, (0, rank - lora.rank)) for part in (lora.write, lora.read)))
        for lora in adapters
    ]


def zeros(shape: ModuleShape) -> LoRA:
    """Factors of zeros, as an adapter has them that does not change a module of this shape."""
    return LoRA(torch.zeros(shape.out, shape.rank), torch.zeros(shape.inside, shape.rank))


def casting(dtype: torch.dtype, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `Merged.to` takes: tensors to this precision and device."""
    return lambda tensor: tensor.to(device=device, dtype=dtype)


def module_seed(seed: int, name: str) -> int:
    """A seed for one layer, unrelated to those of the others."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint32)[0])


def describe(
    library: Sequence[AdapterWeights],
    merge: Merge | FittedMerge,
    seed: int,
    said: Mapping[str, Mapping[str, Any]],
) -> dict[str, object]:
    """What was merged and what the rule says about it, as plain data; said: `Merged.details` by layer."""
    spec = merge.merge if isinstance(merge, FittedMerge) else merge
    rule, options = check(spec)
    modules = {name: dict(details) for name, details in said.items()}
    gaps = [(gap, name) for name, found in modules.items() for gap in found.get("spectral_gaps", ())]
    details: dict[str, object] = {
        "rule": rule.name,
        "formula": rule.formula,
        "weights": spec.weights,
        "options": options,
        "seed": seed,
        "adapters": [adapter.name for adapter in library],
        "modules": modules,
        "warnings": [f"{name}: {found['warning']}" for name, found in modules.items() if "warning" in found],
    }
    if absent := {a.name: count for a in library if (count := sum(name not in a.modules for name in said))}:
        details["absent"] = absent
    if isinstance(merge, FittedMerge):
        details["fitted"] = dict(merge.details)
    if gaps:
        values = sorted(gap for gap, _ in gaps)
        smallest, where = min(gaps)
        quarter, three = (float(np.quantile(values, q)) for q in (0.25, 0.75))
        details["spectral_gap"] = {
            "smallest": smallest,
            "module": where,
            "quartiles": [quarter, median(values), three],
        }
    return details


def target_layers(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    *,
    same_modules: bool = False,
    embeddings: bool = False,
) -> dict[str, torch.nn.Module]:
    """The layers of the model that the library changes, by name; refuse a library that does not fit it.

    same_modules: also one whose adapters do not all change the same layers. embeddings: whether such may be
    among the layers.
    """
    if not library:
        return {}
    together = compatibility(library, same_modules=same_modules)
    names = together.require()
    digest, wanted = getattr(loaded, "digest", None), library[0].details.get("base_digest")
    if digest and wanted and digest != wanted:
        raise RuleError(
            f"the adapters were trained on the base {wanted}, the model {getattr(loaded, 'id', '')!r} is "
            f"{digest}; load the base they belong to"
        )
    for adapter in library:
        if replaced := next((key for key, tensor in adapter.whole.items() if not tensor.frozen), None):
            raise RuleError(
                f"adapter {adapter.name!r} replaces {replaced} as a whole, and updates are added to the "
                "outputs of linear layers here: merge the adapters into one file and load that with PEFT"
            )
    layers = {}
    for name in names:
        kind = _first_shape(library, name).kind
        if kind != "linear" and not (embeddings and kind == "embedding"):
            raise RuleError(
                f"{name} is of kind {kind}, and updates are added to the outputs of linear layers here, by "
                "rules that neither route nor are fitted also to embeddings: merge the adapters into one "
                "file and load that with PEFT"
            )
        try:
            layer = loaded.model.get_submodule(name)
        except AttributeError:
            raise RuleError(
                f"the model {getattr(loaded, 'id', '')!r} has no layer {name!r}, which the adapters change; "
                "load the base they were trained on, without adapters around it"
            ) from None
        if isinstance(layer, BaseTunerLayer):
            raise RuleError(f"layer {name!r} still carries PEFT's adapters; unload them from the model first")
        shape = _first_shape(library, name).size
        found = linear_shape(layer)
        if kind == "embedding" and isinstance(layer, torch.nn.Embedding):
            found = layer.embedding_dim, layer.num_embeddings
        if found != shape:
            raise RuleError(
                f"layer {name!r} of the model has (out, in) {found} ({type(layer).__name__}), the adapters "
                f"{shape}; they have to belong to one {kind if kind == 'embedding' else 'linear layer'}"
            )
        layers[name] = layer
    return layers


def converted(lora: LoRA, dtype: torch.dtype, device: torch.device | None = None) -> LoRA:
    """Factors in this precision; a scale that was read apart is multiplied in there."""
    if isinstance(lora, ModuleUpdate):
        return lora.factors(dtype, device)
    return LoRA(*(factor.to(device=device, dtype=dtype) for factor in (lora.write, lora.read)))


def _first_shape(library: Sequence[AdapterWeights], name: str) -> ModuleShape:
    """A layer's shape in the first adapter that changes it."""
    return next(adapter.shape(name) for adapter in library if name in adapter.modules)


def _device(layer: torch.nn.Module) -> torch.device:
    """Where the layer's weight lies; the CPU for weights that are moved in for each pass."""
    device = cast(torch.Tensor, layer.weight).device
    return torch.device("cpu") if device.type == "meta" else device


def _require_room(
    library: Sequence[AdapterWeights],
    names: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
    rule: str,
) -> None:
    """Entry-wise rules leave one dense matrix per layer: refuse them where these cannot fit."""
    entries = sum(math.prod(_first_shape(library, name).size) for name in names)
    needed = entries * dtype.itemsize
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free:
            raise MemoryError(
                f"the dense updates of rule {rule!r} need {needed / 2**30:.1f} GiB and the GPU has "
                f"{free / 2**30:.1f} GiB free; give dtype=torch.bfloat16, or save_static(..., rank=...)"
            )
    else:
        require_memory(needed, f"the dense updates of rule {rule!r}")
