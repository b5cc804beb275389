"""What linear layers are given on the texts that each adapter was trained on, as the base sees them.

Routing by mean features takes its prototypes from here (`toytransformer.merging.routing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import torch

from llm_experiments.asking import batches
from llm_experiments.asking.decoding import quiet
from llm_experiments.merges.hooks import Padding
from llm_experiments.merges.loss import encoded
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import Example


def mean_inputs(
    loaded: LoadedModel, layers: Iterable[str], taught: Sequence[Sequence[Example]], *, batch: int = 32
) -> dict[str, torch.Tensor]:
    """layer -> the mean of its inputs (adapter, in) over all tokens of an adapter's texts, in float64.

    taught: the questions and answers of each adapter, in the form in which it was trained on them. A text
    counts by its tokens, padding not at all. The model is asked as it is: without adapters.
    """
    names = tuple(layers)
    found = [_means(loaded, names, examples, batch) for examples in taught]
    return {name: torch.stack([sums[name] for sums in found]) for name in names}


def _means(
    loaded: LoadedModel, layers: Sequence[str], examples: Sequence[Example], batch: int
) -> dict[str, torch.Tensor]:
    """layer -> the mean of its inputs (in,) over the tokens of these texts."""
    rows = [[*prompt, *answer] for prompt, answer in (encoded(loaded, one) for one in examples)]
    rows.sort(key=len)
    padding = Padding()
    sums: dict[str, torch.Tensor] = {}

    def adding(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0]
            kept = x.reshape(-1, x.shape[-1])[padding.tokens(x.shape[:-1], x.device)]
            precision = torch.float32 if x.device.type == "mps" else torch.float64
            part = kept.to(precision).sum(0)
            sums[name] = sums[name] + part if name in sums else part

        return hook

    with ExitStack() as stack:
        before = loaded.model.register_forward_pre_hook(padding.remember, with_kwargs=True)
        stack.callback(before.remove)
        stack.enter_context(quiet(loaded.model))
        for name in layers:
            layer = loaded.model.get_submodule(name)
            stack.callback(layer.register_forward_pre_hook(adding(name)).remove)
        for start in range(0, len(rows), batch):
            batches.start(loaded, None, rows[start : start + batch])
    return {name: total / sum(map(len, rows)) for name, total in sums.items()}
