"""Adapters side by side in a model, with weights that a routed merge gives them as it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from llm_experiments.adapters.weights import AdapterWeights, shape_of
from llm_experiments.merges.hooks import adding, shifter
from llm_experiments.merges.merging import converted, target_layers, zeros
from llm_experiments.models.handle import LoadedModel
from toytransformer.adapters import LoRA
from toytransformer.merging import RoutedMerge


@contextmanager
def routed(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    merge: Callable[[tuple[LoRA, ...]], RoutedMerge],
    dtype: torch.dtype,
) -> Iterator[None]:
    """The library in the model until the block ends, each layer merged by `merge` of its factors.

    An adapter without a layer is an update of zero there. Errors: as merging.target_layers.
    """
    with ExitStack() as stack:
        for name, layer in target_layers(loaded, library).items():
            given = [adapter.modules.get(name) for adapter in library]
            present = next(lora for lora in given if lora is not None)
            device = next(layer.parameters()).device
            factors = tuple(
                converted(zeros(shape_of(present)) if lora is None else lora, dtype, device) for lora in given
            )
            hook = adding(shifter(merge(factors), dtype, device))
            stack.callback(layer.register_forward_hook(hook).remove)
        yield
