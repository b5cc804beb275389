"""Which modules of a model the words of `choice` mean, read off the path of each: `layers.3.mlp.up_proj`.

The first number in a path is the block; a part of the path such as `mlp` or `self_attn` says the kind. So
models of most architectures need no entry here: EXCEPTIONS holds those whose paths do not say it. The
embedding and the output layer lie in no block and are never meant, nor are routers of mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from llm_experiments.models.choice import ChoiceError, LayerChoice
from llm_experiments.models.sources import ModelError

#: Parts of a module's path that say what it belongs to.
PATHS = {
    **dict.fromkeys(("mlp", "ffn", "feed_forward", "mlp_block", "block_sparse_moe"), "mlp"),
    **dict.fromkeys(("self_attn", "attn", "attention", "self_attention", "linear_attn"), "attention"),
}
#: Kinds by a module's own name, where its path does not say them: config.model_type -> {name: kind}.
EXCEPTIONS = {name: {"fc1": "mlp", "fc2": "mlp"} for name in ("opt", "xglm", "biogpt")}
#: Linear layers that choose experts and compute nothing else.
ROUTERS = ("gate", "router", "shared_expert_gate")


@dataclass(frozen=True)
class Place:
    """Where a linear layer is: the number of its block, and "mlp", "attention" or "other"."""

    block: int
    kind: str

    def is_of(self, kind: str) -> bool:
        return kind == "all" or self.kind == kind or (kind == "both" and self.kind != "other")


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer, GPT-2's transposed ones included; None for any other module."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    # transformers takes seconds to import, and what asks no model does without it
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return None


def places(model: nn.Module) -> dict[str, Place]:
    """Every linear layer in the blocks of a language model, by full name, in the model's order."""
    by_name = EXCEPTIONS.get(architecture(model) or "", {})
    linear = (name for name, module in model.named_modules() if linear_shape(module) is not None)
    return {name: place for name in linear if (place := place_of(name, by_name)) is not None}


def place_of(name: str, by_name: Mapping[str, str] | None = None) -> Place | None:
    """Where a linear layer of this name is; None outside the blocks, in towers that see or hear, and for
    routers.

    by_name: kinds by the last part of a name whose path does not say them.
    """
    path = name.split(".")
    block = next((int(part) for part in path if part.isdecimal()), None)
    seeing = any("vision" in part or "audio" in part for part in path)
    if block is None or seeing or path[-1] in ROUTERS:
        return None
    kind = next((PATHS[part] for part in path if part in PATHS), (by_name or {}).get(path[-1], "other"))
    return Place(block, kind)


def target_modules(model: nn.Module, layers: str = "mlp") -> tuple[str, ...]:
    """Full names of the linear layers that `layers` means, in the model's order; see `choice`.

    ModelError where the model has none, or where the matrices of experts are one tensor of three axes, which
    the LoRA of a linear layer cannot change.
    """
    placed, kind = places(model), architecture(model)
    try:
        choice = LayerChoice.parse(layers)
        blocks = choice.blocks(max((place.block for place in placed.values()), default=-1) + 1)
    except ChoiceError as error:
        raise ModelError(f"architecture {kind!r}: {error}") from error
    if choice.kind in ("mlp", "both") and (fused := fused_experts(model)):
        raise ModelError(
            f"architecture {kind!r}: layers={layers!r} takes the MLPs, and {fused} keeps the matrices of all "
            "its experts in one tensor, which is no linear layer; choose 'attention', or 'all' for every "
            "layer that is"
        )
    chosen = tuple(
        name for name, place in placed.items() if place.block in blocks and place.is_of(choice.kind)
    )
    if not chosen:
        there = sorted({".".join(name.split(".")[-2:]) for name in placed})
        raise ModelError(
            f"architecture {kind!r}: layers={layers!r} means no linear layer of it "
            f"(its blocks have {', '.join(there) or 'none'}); choose other layers, or tell their kind by an "
            "entry of EXCEPTIONS in llm_experiments/models/layers.py"
        )
    return chosen


def covering(model: nn.Module, names: Iterable[str]) -> str:
    """The narrowest choice that holds all these linear layers: what else to train beside a given adapter.

    It says of the adapter of a choice that very choice, a half of the blocks by its numbers; of every second
    block the range they lie in.
    ModelError for a name that is no linear layer of a block.
    """
    placed, names = places(model), list(names)
    if absent := [name for name in names if name not in placed]:
        raise ModelError(
            f"architecture {architecture(model)!r} has no linear layer {absent[0]!r} in its blocks"
        )
    kinds, blocks = ({getattr(placed[name], what) for name in names} for what in ("kind", "block"))
    kind = "all" if "other" in kinds else "both" if len(kinds) > 1 else next(iter(kinds))
    there = {place.block for place in placed.values() if place.is_of(kind)}
    everywhere = (min(blocks), max(blocks)) == (min(there), max(there))
    return str(LayerChoice(kind, "" if everywhere else f"{min(blocks)}-{max(blocks)}"))


def architecture(model: nn.Module) -> str | None:
    """config.model_type; None for what is no language model."""
    return getattr(getattr(model, "config", None), "model_type", None)


def fused_experts(model: nn.Module) -> str | None:
    """The first module under an MLP's path that holds matrices of several experts in one tensor."""
    for name, module in model.named_modules():
        stacked = any(parameter.ndim > 2 for parameter in module.parameters(recurse=False))
        if stacked and any(PATHS.get(part) == "mlp" for part in name.split(".")):
            return name
    return None
