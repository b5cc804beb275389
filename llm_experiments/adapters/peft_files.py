"""Adapters as PEFT folders: `write` one that plain PEFT loads; `read` and `opened` take any layout.

PEFT keeps lora_A (rank x in) and lora_B (out x rank) and adds s lora_B lora_A x, s = alpha / r (rsLoRA:
alpha / sqrt r). Here a module's update is a `LoRA` with write = s lora_B and read = lora_A^T.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from llm_experiments.adapters.compatible import check_library
from llm_experiments.adapters.locate import CONFIG, WEIGHTS
from llm_experiments.adapters.reader import EXTRA, opened, read
from llm_experiments.adapters.weights import AdapterWeights, distinctly_named
from toytransformer.adapters import AdapterError, LoRA
from toytransformer.compositions import replace_file
from toytransformer.compositions.io import replacing

__all__ = [
    "CONFIG",
    "EXTRA",
    "WEIGHTS",
    "AdapterError",
    "AdapterWeights",
    "check_library",
    "distinctly_named",
    "opened",
    "read",
    "write",
]

PREFIX, SUFFIX_A, SUFFIX_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def write(
    folder: str | os.PathLike,
    name: str,
    modules: Mapping[str, LoRA],
    base: str,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    details: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write factors as a PEFT adapter that adds exactly write @ read.T to every module.

    modules: as in AdapterWeights. Where ranks differ, zeros fill the smaller ones up to the largest, so that
    one rank and one scale hold for the whole folder. base: recorded as PEFT's base_model_name_or_path.
    alpha: recorded as lora_alpha; `write` is divided by alpha / rank (default: by 1, so that nothing is
    rounded). targets: PEFT's target_modules, the full names of the modules by default. details: any more to
    keep, as JSON. dtype: of the tensors. Same input, same bytes. The weights are the last file to appear.
    """
    folder = Path(folder)
    if not modules:
        raise AdapterError(f"adapter {name!r} changes no module; give it at least one")
    rank = max(lora.rank for lora in modules.values())
    scale = 1.0 if alpha is None else alpha / rank
    tensors = {}
    for module, lora in sorted(modules.items()):
        _check_factors(f"adapter {name!r}, {module}", lora)
        more = (0, rank - lora.rank)
        factor_a = torch.nn.functional.pad(lora.read, more).T
        factor_b = torch.nn.functional.pad(lora.write if scale == 1 else lora.write / scale, more)
        for suffix, tensor in ((SUFFIX_A, factor_a), (SUFFIX_B, factor_b)):
            single = tensor.detach().to("cpu", dtype).contiguous().clone()
            if not torch.isfinite(single).all():
                kind = str(dtype).removeprefix("torch.")
                raise AdapterError(f"adapter {name!r}, {module} holds numbers beyond {kind}; scale it down")
            tensors[PREFIX + module + suffix] = single
    config = {  # the settings every version of PEFT knows; the others are at their defaults
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(targets or modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_rslora": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, config)
    _write_json(folder / EXTRA, {"name": name, **(details or {})})
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def _check_factors(what: str, lora: LoRA) -> None:
    if lora.write.ndim != 2 or lora.read.ndim != 2 or lora.write.shape[1] != lora.read.shape[1]:
        raise AdapterError(
            f"{what}: write {tuple(lora.write.shape)} and read {tuple(lora.read.shape)} must be "
            "(out, rank) and (in, rank) with one rank"
        )
    if lora.rank < 1:
        raise AdapterError(f"{what} has rank 0; fill it with one column of zeros")
    if not (torch.isfinite(lora.write).all() and torch.isfinite(lora.read).all()):
        raise AdapterError(f"{what} holds NaN or infinity; every number must be finite")


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    replace_file(path, [json.dumps(content, indent=2, sort_keys=True) + "\n"])
