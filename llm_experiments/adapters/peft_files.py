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

from llm_experiments.adapters import layouts
from llm_experiments.adapters.compatible import check_library
from llm_experiments.adapters.layouts import PREFIX
from llm_experiments.adapters.locate import CONFIG, WEIGHTS
from llm_experiments.adapters.reader import EXTRA, opened, read
from llm_experiments.adapters.weights import (
    AdapterWeights,
    ModuleUpdate,
    WholeTensor,
    distinctly_named,
    shape_of,
)
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
    "inherited",
    "opened",
    "read",
    "write",
]


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
    settings: Mapping[str, object] | None = None,
    whole: Mapping[str, WholeTensor] | None = None,
) -> None:
    """Write factors as a PEFT adapter that adds exactly write @ read.T to every module.

    modules: as in AdapterWeights. Where ranks differ, zeros fill the smaller ones up to the largest, so that
    one rank and one scale hold for the whole folder. base: recorded as PEFT's base_model_name_or_path.
    alpha: recorded as lora_alpha; `write` is divided by alpha / rank (default: by 1, so that nothing is
    rounded). targets: PEFT's target_modules, the full names of the modules by default. details: any more to
    keep, as JSON. dtype: of the tensors. settings: more of PEFT's, such as `inherited` gives. whole: tensors
    of the base that come along. Same input, same bytes. The weights are the last file to appear.
    """
    folder = Path(folder)
    if not modules:
        raise AdapterError(f"adapter {name!r} changes no module; give it at least one")
    rank = max(lora.rank for lora in modules.values())
    scale = 1.0 if alpha is None else alpha / rank
    factors = {}
    for module, lora in sorted(modules.items()):
        _check_factors(f"adapter {name!r}, {module}", lora)
        more = (0, rank - lora.rank)
        a = torch.nn.functional.pad(lora.read, more).T
        b = torch.nn.functional.pad(lora.write if scale == 1 else lora.write / scale, more)
        shift = lora.bias if isinstance(lora, ModuleUpdate) else None
        given = (a, b) if shift is None else (a, b, shift / scale)
        parts = [part.detach().to("cpu", dtype) for part in given]
        if not all(torch.isfinite(part).all() for part in parts):
            kind = str(dtype).removeprefix("torch.")
            raise AdapterError(f"adapter {name!r}, {module} holds numbers beyond {kind}; scale it down")
        factors[module] = parts
    kinds = {module: shape_of(lora).kind for module, lora in modules.items()}
    biased = any(len(parts) > 2 for parts in factors.values())
    config = {  # the settings every version of PEFT knows; the others are at their defaults
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(targets or layouts.targets(kinds)),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_rslora": False,
        **({"lora_bias": True} if biased else {}),
        **(settings or {}),
    }
    tensors = layouts.peft_tensors(factors, kinds, biased)
    tensors |= {PREFIX + key: tensor.load().cpu() for key, tensor in (whole or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, config)
    _write_json(folder / EXTRA, {"name": name, **(details or {})})
    with replacing(folder / WEIGHTS) as partial:
        save_file(
            {key: tensor.contiguous().clone() for key, tensor in tensors.items()},
            partial,
            metadata={"format": "pt"},
        )
        partial.chmod((folder / CONFIG).stat().st_mode)  # safetensors lets the owner alone read it


def inherited(library: Sequence[AdapterWeights]) -> dict[str, object]:
    """PEFT's settings that a merge of a library has from it: what loads the result as its parts are
    loaded."""
    configs = [adapter.config for adapter in library if adapter.layout == "PEFT" and adapter.config]
    settings: dict[str, object] = {}
    if configs:
        settings["task_type"] = next((one["task_type"] for one in configs if one.get("task_type")), None)
        settings["fan_in_fan_out"] = any(one.get("fan_in_fan_out") is True for one in configs)
    if revision := next((one["revision"] for one in configs if one.get("revision")), None):
        settings["revision"] = revision
    for key in ("modules_to_save", "target_parameters"):
        if named := sorted({name for one in configs for name in one.get(key) or ()}):
            settings[key] = named
    return settings


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
