"""Which modules of a model an adapter changes."""

from __future__ import annotations

from torch import nn

from llm_experiments.models.sources import ModelError

_GATED = ("gate_proj", "up_proj", "down_proj")
_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
#: Names of the Linears that adapters may change, by architecture (config.model_type) and kind of layer.
LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    **{
        name: {"mlp": _GATED, "attention": _QKVO}
        for name in ("gemma2", "llama", "mistral", "qwen2", "qwen3", "smollm3")
    },
    "gpt_neox": {"mlp": ("dense_h_to_4h", "dense_4h_to_h"), "attention": ("query_key_value", "dense")},
    "phi3": {"mlp": ("gate_up_proj", "down_proj"), "attention": ("qkv_proj", "o_proj")},
}


def target_modules(model: nn.Module, layers: str = "mlp") -> tuple[str, ...]:
    """Full names of the Linears of `layers` ("mlp", "attention" or "both"), in the model's order.

    ModelError for an architecture that is not in `LAYERS`.
    """
    if layers not in ("mlp", "attention", "both"):
        raise ModelError(f"layers={layers!r}: choose mlp, attention or both")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in LAYERS:
        raise ModelError(
            f"architecture {kind!r}: which of its modules are MLP and attention is not known here (known: "
            f"{', '.join(sorted(LAYERS))}); add its names to LAYERS in llm_experiments/models/models.py"
        )
    parts = ("mlp", "attention") if layers == "both" else (layers,)
    wanted = {name for part in parts for name in LAYERS[kind][part]}
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    found = tuple(name for name in linears if name.rpartition(".")[2] in wanted)
    if absent := wanted - {name.rpartition(".")[2] for name in found}:
        raise ModelError(f"architecture {kind!r}: this model has no Linear named {', '.join(sorted(absent))}")
    return found
