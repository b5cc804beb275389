"""Adapters routed token by token, in any model of transformers: base + sum_i gate_i(x) LoRA_i.

    from transformers import AutoModelForCausalLM
    from routed import attach

    model = AutoModelForCausalLM.from_pretrained(BASE).eval()
    attach(model)                      # in place, until detach(model)

A layer with input x, prototypes p_i and factors A_i (rank x in), B_i (out x rank), s = lora_alpha / r, adds

    sum_i g_i s B_i A_i x                     or, "factor_wise", (sum_i g_i s B_i)(sum_j g_j A_j) x
    g = softmax over the top_k of |p_i . x| / T

to its output, in float32. Adapters that are tied with the k-th all take part. This file is all there is to
it beside the folder it was written into: routed.json, prototypes.safetensors, adapters/. It needs torch,
safetensors and a model, and nothing of the project that wrote it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

#: Where PEFT's names of tensors put a module of the base.
PREFIX = "base_model.model."


@dataclass
class Routed:
    """One layer's adapters: write (out, rank) with the scale in it, read (in, rank).

    prototypes: (adapter, in). inverse_temperature: 1 / T, infinite for a hard choice. tied: similarities
    closer than so many units of rounding, times |x|, are equal.
    """

    write: list[torch.Tensor]
    read: list[torch.Tensor]
    prototypes: torch.Tensor
    inverse_temperature: float
    top_k: int
    tied: float
    factor_wise: bool

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """(token, in) -> (token, adapter): not negative, of sum 1."""
        similarity = (x @ self.prototypes.T).abs()
        hard = math.isinf(self.inverse_temperature)
        ranked = similarity.sort(dim=1, descending=True).values
        last = ranked[:, 0 if hard else self.top_k - 1, None]
        slack = self.tied * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dim=1, keepdim=True)
        above = similarity - ranked[:, :1]
        scores = torch.ones_like(above) if hard else torch.exp(above * self.inverse_temperature)
        scores = torch.where(similarity >= last - slack, scores, torch.zeros_like(scores))
        return scores / scores.sum(dim=1, keepdim=True)

    def shift(self, x: torch.Tensor) -> torch.Tensor:
        """(token, in) -> (token, out): what is added to the layer's output."""
        gates = self.gates(x)
        seen = [x @ read for read in self.read]
        if self.factor_wise:
            mean = sum(gate[:, None] * one for gate, one in zip(gates.T, seen, strict=True))
            seen = [mean] * len(seen)
        parts = zip(gates.T, seen, self.write, strict=True)
        return torch.stack([gate[:, None] * (one @ write.T) for gate, one, write in parts]).sum(dim=0)

    def hook(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """Added to a layer by torch's register_forward_hook."""
        x = inputs[0].to(self.prototypes)
        shift = self.shift(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
        return (output + shift.to(output.device)).to(output.dtype)


def attach(model: torch.nn.Module, folder: str | Path = Path(__file__).parent) -> torch.nn.Module:
    """Add the folder's adapters to the layers they change; the weights of the model stay as they are."""
    detach(model)
    folder = Path(folder)
    said = json.loads((folder / "routed.json").read_text(encoding="utf-8"))
    prototypes = load_file(folder / "prototypes.safetensors")
    adapters = [_factors(folder / name) for name in said["adapters"]]
    handles = []
    for name, own in said["layers"].items():
        layer = model.get_submodule(name)
        device = next(layer.parameters()).device
        pairs = [tuple(part.to(device) for part in adapters[place][name]) for place in own["adapters"]]
        inverse = own["inverse_temperature"]
        routed = Routed(
            write=[write for write, _ in pairs],
            read=[read for _, read in pairs],
            prototypes=prototypes[name].to(device, torch.float32),
            inverse_temperature=math.inf if inverse is None else inverse,
            top_k=own["top_k"],
            tied=said["tied"],
            factor_wise=said["factor_wise"],
        )
        handles.append(layer.register_forward_hook(routed.hook))
    vars(model)["_routed_handles"] = handles
    return model


def detach(model: torch.nn.Module) -> None:
    """Take the adapters off again."""
    for handle in vars(model).pop("_routed_handles", ()):
        handle.remove()


def _factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By layer: s lora_B (out, rank) and lora_A^T (in, rank), in float32."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale, tensors = config["lora_alpha"] / config["r"], load_file(folder / "adapter_model.safetensors")
    end = ".lora_A.weight"
    return {
        key.removeprefix(PREFIX).removesuffix(end): (
            scale * tensors[key.removesuffix(end) + ".lora_B.weight"].float(),
            tensors[key].float().T,
        )
        for key in tensors
        if key.endswith(end)
    }
