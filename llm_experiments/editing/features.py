"""What the MLP's down projections see: the model's own features phi, layer by layer.

In a gated MLP, W = `down_proj` maps phi = act(gate h) * (up h) to the residual stream, as the toy's readout
maps relu(U h) to its output. `observe` reads phi, W phi and what the module really puts out (which differs
once adapters, hooks or edits are on it) at the last token of each prompt, or at the last token of an answer
that has been begun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from llm_experiments.asking.decoding import quiet
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import prompt_ids, target_ids

Array = np.ndarray
Inputs: TypeAlias = tuple[torch.Tensor, ...]
Kept: TypeAlias = dict[str, torch.Tensor]

#: In front of a module's name once PEFT has wrapped the model.
PEFT_PREFIX = "base_model.model."


class EditError(ValueError):
    """A layer, feature or fact that cannot be edited or measured; the message says which and what to do."""


@dataclass(frozen=True)
class Observed:
    """One down projection at one position of each prompt: its input, W times it, and the module's output.

    Kept in the model's precision (at least float32), so nothing is rounded; `shift` is taken in float64.
    """

    features: Float[Array, "prompt feature"]
    base: Float[Array, "prompt hidden"]
    output: Float[Array, "prompt hidden"]

    @property
    def shift(self) -> Float[Array, "prompt hidden"]:
        """What is on the module beside W: zero, or what adapters and edits add."""
        return self.output.astype(float) - self.base.astype(float)


@dataclass(frozen=True)
class Down:
    """The down projection of one layer: the module, the Linear that holds W, and its name without PEFT."""

    layer: int
    name: str
    module: nn.Module
    linear: nn.Linear


def down_projections(model: nn.Module) -> dict[int, Down]:
    """The down projection of every layer: `layers[i].mlp.down_proj`, bare or wrapped by PEFT.

    Errors: EditError where the architecture has none (GPT-2's c_proj, mixtures of experts).
    """
    for name, blocks in model.named_modules():
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            continue
        stem, downs = name.removeprefix(PEFT_PREFIX), {}
        for layer, block in enumerate(blocks):
            module = getattr(getattr(block, "mlp", None), "down_proj", None)
            linear = getattr(module, "base_layer", module)
            if isinstance(module, nn.Module) and isinstance(linear, nn.Linear):
                downs[layer] = Down(layer, f"{stem}.{layer}.mlp.down_proj", module, linear)
        if len(downs) == len(blocks):
            return downs
    raise EditError(
        f"architecture {type(model).__name__} has no linear layers[i].mlp.down_proj in every layer; edits "
        "need a dense gated MLP, as in Llama, Qwen2, Mistral or Gemma"
    )


def chosen_layers(model: nn.Module, layers: Sequence[int] | None) -> dict[int, Down]:
    """The down projections of these layers (None: of all). Errors: EditError on a layer the model lacks."""
    every = down_projections(model)
    if layers is None:
        return every
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or layer not in every:
            raise EditError(f"layer {layer!r} does not exist; the model has layers 0 to {len(every) - 1}")
    if not layers:
        raise EditError(f"no layers were given; name some of 0 to {len(every) - 1}, or None for all")
    return {int(layer): every[int(layer)] for layer in layers}


def encode(loaded: LoadedModel, question: str, begun: str = "") -> list[int]:
    """Tokens of a question as the model is asked it, and of the answer as far as it has been `begun`."""
    tokens = prompt_ids(loaded, question)
    if begun:  # without the end of turn that a finished answer has
        ways = [target_ids(loaded, begun + more) for more in ("", " x", " y")]
        apart = (place for place, ids in enumerate(zip(*ways, strict=False)) if len(set(ids)) > 1)
        tokens = [*tokens, *ways[0][: next(apart)]]
    if not tokens:
        raise EditError(f"question {question!r} has no tokens: ask something")
    return list(tokens)


def begun(answer: str, entity: str) -> str:
    """The answer sentence up to its entity; its last token is where the model decides on the entity."""
    before, named, _ = answer.partition(entity)
    if not named:
        raise EditError(f"the answer {answer!r} does not name {entity!r}")
    return before.rstrip()


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Rows of tokens, filled on the right: under causal attention nothing before the filling sees it."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens.to(device)


def observe(
    loaded: LoadedModel,
    questions: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    begun: Sequence[str] | None = None,
    batch: int = 16,
) -> dict[int, Observed]:
    """Down projections at the last token of each prompt, as they are now: under whatever merge is active.

    layers: None for all. begun: for each question, how its answer has been begun; the position is then the
    last token of that, such as the one before the entity. Same arguments, same batches, same rounding.
    Errors: EditError on an unknown architecture, a layer the model lacks, no questions, lists of different
    lengths.
    """
    downs = chosen_layers(loaded.model, layers)
    begun = [""] * len(questions) if begun is None else begun
    if isinstance(questions, str) or not questions or len(begun) != len(questions):
        raise EditError(
            f"{len(questions)} questions and {len(begun)} begun answers: give a non-empty list of questions "
            "and, if any, one beginning for each"
        )
    rows = [encode(loaded, question, start) for question, start in zip(questions, begun, strict=True)]
    parts: dict[int, list[tuple[Array, ...]]] = {layer: [] for layer in downs}
    with recorded(downs) as seen, quiet(loaded.model):
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            last = [len(ids) - 1 for ids in chunk]
            loaded.model(input_ids=padded(chunk, loaded.device), use_cache=False, logits_to_keep=1)
            for layer in downs:
                kept = (seen[layer][what] for what in ("features", "base", "output"))
                parts[layer].append(tuple(_rows(tensor, last) for tensor in kept))
    return {layer: Observed(*map(np.concatenate, zip(*kept, strict=True))) for layer, kept in parts.items()}


def features(
    loaded: LoadedModel, questions: Sequence[str], layer: int, *, begun: Sequence[str] | None = None
) -> Float[Array, "prompt feature"]:
    """phi at one layer, float64; as `observe`."""
    return observe(loaded, questions, [layer], begun=begun)[int(layer)].features.astype(float)


@contextlib.contextmanager
def recorded(downs: Mapping[int, Down]) -> Iterator[dict[int, dict[str, torch.Tensor]]]:
    """For every layer the last call's features, base and output, (row, token, .), while inside.

    The hook on the Linear that reads W phi is put before all others, the one that reads the output behind
    them, so that what other hooks add is in the second and not in the first.
    """
    seen: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in downs}
    with contextlib.ExitStack() as stack:
        for layer, down in downs.items():

            def before(
                module: nn.Module, inputs: Inputs, result: torch.Tensor, kept: Kept = seen[layer]
            ) -> None:
                kept["base"] = result.detach()

            def after(
                module: nn.Module, inputs: Inputs, result: torch.Tensor, kept: Kept = seen[layer]
            ) -> None:
                kept["features"], kept["output"] = inputs[0].detach(), result.detach()

            first = down.linear.register_forward_hook(before, prepend=True)
            stack.callback(first.remove)
            stack.callback(down.module.register_forward_hook(after).remove)
        yield seen


def _rows(tensor: torch.Tensor, last: Sequence[int]) -> Array:
    """(row, token, .) at each row's position, in float32 or better."""
    picked = tensor[torch.arange(len(last), device=tensor.device), torch.tensor(last, device=tensor.device)]
    return picked.to(torch.promote_types(picked.dtype, torch.float32)).cpu().numpy()


@dataclass(frozen=True)
class KeyCovariance:
    """C = (1/N) sum_k key_k key_k^T + ridge I: which directions of phi other prompts use (ROME's C).

    keys: (key, feature); ridge: in the features' own squared units. Kept factored: C is never formed.
    """

    keys: Float[Array, "key feature"]
    ridge: float

    def __post_init__(self) -> None:
        if self.keys.ndim != 2 or not np.all(np.isfinite(self.keys)):
            raise EditError(f"keys of shape {self.keys.shape} must be finite and (key, feature)")
        if not (np.isfinite(self.ridge) and self.ridge > 0):
            raise EditError(
                f"ridge is {self.ridge}; with fewer keys than features C is singular without one: give a "
                "finite number > 0"
            )

    def within(self, basis: Float[Array, "feature direction"]) -> Float[Array, "direction direction"]:
        """C in an orthonormal basis whose span contains the keys, so that C maps it into itself."""
        inner = self.keys @ basis
        return inner.T @ inner / max(len(inner), 1) + self.ridge * np.eye(basis.shape[1])


def key_covariance(reference: Float[Array, "prompt feature"], *, ridge: float = 0.1) -> KeyCovariance:
    """C of the features of unrelated prompts; `ridge` is relative to the mean non-zero eigenvalue.

    The mean is tr / min(N, m), N prompts and m features. The second moment about zero, as in ROME: subtract
    the mean from `reference` before for the covariance proper.
    """
    reference = np.asarray(reference, float)
    if reference.ndim != 2 or len(reference) == 0 or not np.any(reference):
        raise EditError(
            f"reference features of shape {reference.shape} give no covariance; give those of some prompts"
        )
    scale = np.sum(reference**2) / len(reference) / min(reference.shape)
    return KeyCovariance(reference, ridge * float(scale))
