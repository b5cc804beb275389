"""Adapters as files: ordinary PEFT LoRA folders in, the theory's factors out, and back.

PEFT keeps lora_A (rank x in) and lora_B (out x rank) and adds s lora_B lora_A x, s = alpha / r (rsLoRA:
alpha / sqrt r). Here a module's update is the `LoRA` of `toytransformer.adapters` with write = s lora_B
(out x rank) and read = lora_A^T (in x rank), so that Delta W = write @ read.T has one meaning everywhere.
What PEFT adds in any other way (DoRA, biases, whole modules, ranks by pattern) is refused by name.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llm_experiments.models.files import FileError, read_object
from toytransformer.adapters import AdapterError, LoRA
from toytransformer.compositions import replace_file
from toytransformer.compositions.io import replacing

__all__ = ["AdapterError", "AdapterWeights", "check_library", "read", "write"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What this project knows about an adapter beyond PEFT's own files; other programs do not look at it.
EXTRA = "adapter_details.json"
#: Most that a rank or lora_alpha can be.
LARGEST = 10**9
PREFIX, SUFFIX_A, SUFFIX_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

#: Settings of a LoRA that do not change what it adds, or that are taken into account when it is read.
HARMLESS = (
    *("r", "lora_alpha", "use_rslora", "lora_dropout", "init_lora_weights", "qalora_group_size"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "task_type", "peft_type", "auto_mapping", "peft_version", "inference_mode"),
    *("base_model_name_or_path", "revision", "megatron_config", "megatron_core"),
)
#: Starting points of a training that also change the base's weights, so that the factors alone say nothing.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
REASONS = {
    "use_dora": "DoRA rescales the base's own weights",
    "bias": "biases of the base are trained beside the factors",
    "lora_bias": "lora_B has a bias",
    "modules_to_save": "whole modules are replaced",
    "trainable_token_indices": "rows of the embedding are replaced",
    "rank_pattern": "its modules have different ranks",
    "alpha_pattern": "its modules have different scales",
}


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter: for every module of the base it changes, the factors of its Delta W.

    modules: module name in the base model, such as "model.layers.0.mlp.up_proj" -> LoRA of torch tensors,
    write (out, rank) with the scale in it and read (in, rank); sorted by name. config: PEFT's settings as
    read. details: what `write` was given besides, such as the digest of the base; empty for foreign folders.
    """

    name: str
    modules: Mapping[str, LoRA]
    config: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return next(iter(self.modules.values())).rank

    @property
    def base(self) -> str | None:
        """The base's digest where it is known, else the name PEFT recorded."""
        return self.details.get("base_digest") or self.config.get("base_model_name_or_path")

    def only(self, names: Collection[str]) -> AdapterWeights:
        """The adapter on these modules alone, such as `layers.target_modules(model, "mlp@lower half")`.

        Errors: AdapterError where it changes none of them.
        """
        modules = {name: lora for name, lora in self.modules.items() if name in names}
        if not modules:
            raise AdapterError(
                f"adapter {self.name!r} changes none of the {len(names)} modules chosen, but "
                f"{next(iter(self.modules))} and others; choose layers that it changes"
            )
        return replace(self, modules=modules)


def read(folder: str | os.PathLike, *, name: str | None = None, device: str = "cpu") -> AdapterWeights:
    """The adapter in a PEFT folder, factors in float32 on `device`, the scale s multiplied into `write`.

    name: defaults to the one it was written under, else the folder's.
    Errors: AdapterError for a missing, damaged or unsafe file, numbers that are not finite, factors that do
    not fit each other, and every setting of PEFT under which Delta W is not s lora_B lora_A alone.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG, needed=True)
    _refuse_settings(config, folder)
    details = _read_json(folder / EXTRA, needed=False)
    _require_text(folder / CONFIG, config, ("base_model_name_or_path",))
    _require_text(folder / EXTRA, details, ("name", "base_digest"))
    factors = _paired(_read_tensors(folder, device), folder)
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    modules = {}
    for module, (a, b) in sorted(factors.items()):
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise AdapterError(
                f"{folder}: the factors of {module} have shapes {tuple(b.shape)} and {tuple(a.shape)}; "
                "lora_B (out, rank) and lora_A (rank, in) of a linear layer are needed"
            )
        if len(a) != rank:
            raise AdapterError(f"{folder}: {module} has rank {len(a)}, {CONFIG} says r = {rank}")
        modules[module] = LoRA(b if scale == 1 else b * scale, a.T)
        if not torch.isfinite(modules[module].write).all():
            raise AdapterError(
                f"{folder}: lora_B of {module} times its scale {scale:g} is beyond float32; scale it down"
            )
    return AdapterWeights(name or details.get("name") or folder.resolve().name, modules, config, details)


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
) -> None:
    """Write factors as a PEFT adapter that adds exactly write @ read.T to every module.

    modules: as in AdapterWeights. Where ranks differ, zeros fill the smaller ones up to the largest, so that
    one rank and one scale hold for the whole folder. base: recorded as PEFT's base_model_name_or_path.
    alpha: recorded as lora_alpha; `write` is divided by alpha / rank (default: by 1, so that nothing is
    rounded). targets: PEFT's target_modules, the full names of the modules by default. details: any more to
    keep, as JSON. Same input, same bytes. The weights are the last file to appear.
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
            single = tensor.detach().to("cpu", torch.float32).contiguous().clone()
            if not torch.isfinite(single).all():
                raise AdapterError(f"adapter {name!r}, {module} holds numbers beyond float32; scale it down")
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


def distinctly_named(adapters: Sequence[AdapterWeights], folders: Sequence[Path]) -> list[AdapterWeights]:
    """The adapters, in which those that share a name are called by their folders, as these were given.

    Every adapter of a run is called "adapter", and a checkpoint by its folder's last name.
    """
    names = [adapter.name for adapter in adapters]
    return [
        replace(adapter, name=str(folder)) if names.count(adapter.name) > 1 else adapter
        for adapter, folder in zip(adapters, folders, strict=True)
    ]


def check_library(
    adapters: Sequence[AdapterWeights], *, equal_ranks: bool = True, same_modules: bool = True
) -> tuple[str, ...]:
    """The modules that the adapters of a library change, in order; refuse those that cannot be merged.

    One base, one shape per module, names that differ; with `equal_ranks` (rules that add factors) one rank,
    with `same_modules` one set of modules, without it those that any of them changes.
    Errors: AdapterError naming the adapters and what differs.
    """
    if not adapters:
        raise AdapterError("a library needs at least one adapter, got none")
    names = [adapter.name for adapter in adapters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AdapterError(f"two adapters are called {twice[0]!r}; give them different names")
    changed: dict[str, AdapterWeights] = {}
    for other in adapters:
        if (first := adapters[0]).base != other.base:
            raise AdapterError(
                f"{_pair(first, other)} are for different bases, {first.base!r} and {other.base!r}"
            )
        if same_modules and (apart := sorted(first.modules.keys() ^ other.modules.keys())):
            raise AdapterError(
                f"{_pair(first, other)} change different modules: only one has {apart[0]}; train both on the "
                "same layers"
            )
        for module, lora in other.modules.items():
            before = changed.setdefault(module, other)
            ours, theirs = _shape(before.modules[module]), _shape(lora)
            if ours[:2] != theirs[:2]:
                raise AdapterError(
                    f"{_pair(before, other)} disagree on {module}: (out, in) is {ours[:2]} and {theirs[:2]}; "
                    "they belong to different bases"
                )
            if equal_ranks and ours[2] != theirs[2]:
                raise AdapterError(
                    f"{_pair(before, other)} have ranks {ours[2]} and {theirs[2]} on {module}; this rule adds"
                    " their factors and needs one rank: train them with the same, or use a rule on products"
                )
    return tuple(changed)


def _pair(first: AdapterWeights, other: AdapterWeights) -> str:
    return f"adapters {first.name!r} and {other.name!r}"


def _shape(lora: LoRA) -> tuple[int, int, int]:
    return lora.write.shape[0], lora.read.shape[0], lora.rank


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


def _refuse_settings(config: Mapping[str, object], folder: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{folder}: peft_type is {kind!r}; only 'LORA' can be read")
    normal = LoraConfig().to_dict()
    for key, value in sorted(config.items()):
        if key not in HARMLESS and value and value != normal.get(key):
            reason = REASONS.get(key, "it changes what the adapter adds, or may")
            raise AdapterError(
                f"{folder}: {key} = {value!r} is not supported ({reason}); train the adapter without it"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise AdapterError(
            f"{folder}: init_lora_weights = {start!r} is not supported (it changes the base's weights); "
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
            shown = repr(value) if len(repr(value)) < 50 else f"{repr(value)[:50]}.."
            raise AdapterError(
                f"{folder}: {key} is {shown}; it must be a number above 0, at most {LARGEST:g}"
            )
    if not isinstance(config.get("use_rslora", False), bool):
        raise AdapterError(f"{folder}: use_rslora is {config['use_rslora']!r}; it is true or false")


def _require_text(file: Path, content: Mapping[str, object], keys: Sequence[str]) -> None:
    for key in keys:
        value = content.get(key)
        if not isinstance(value, str | None):
            raise AdapterError(f"{file}: {key} is {value!r}; it must be text")


def _read_json(path: Path, *, needed: bool) -> dict[str, Any]:
    if not path.exists():
        if not needed:
            return {}
        raise AdapterError(
            f"{path} is missing: {path.parent} holds no PEFT adapter, or its writing was cut short"
        )
    try:
        return read_object(path)
    except FileError as error:
        raise AdapterError(f"{error}; write the adapter anew") from error


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    replace_file(path, [json.dumps(content, indent=2, sort_keys=True) + "\n"])


def _read_tensors(folder: Path, device: str) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = folder / "adapter_model.bin"
        hint = (
            "its pickled weights are not opened: convert them to safetensors"
            if pickled.exists()
            else ("the writing of the adapter was cut short, or it was moved in part: write it anew")
        )
        raise AdapterError(f"{path} is missing; {hint}")
    try:
        with safe_open(path, "pt", device=device) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(f"{path} is damaged ({error}); write the adapter anew") from error
    single = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise AdapterError(f"{path}: {key} is of {tensor.dtype}; floating point numbers are needed")
        try:
            single[key] = tensor.to(torch.float32)  # first: 8-bit floats know no isfinite
        except RuntimeError as error:  # kinds of 4 bits
            raise AdapterError(f"{path}: {key} of {tensor.dtype} cannot be read ({error})") from error
        if not torch.isfinite(single[key]).all():
            raise AdapterError(
                f"{path}: {key} holds NaN, infinity or numbers beyond float32; finite ones are needed"
            )
    return single


def _paired(
    tensors: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        suffix = next((s for s in (SUFFIX_A, SUFFIX_B) if key.endswith(s)), None)
        if suffix is None or not key.startswith(PREFIX):
            raise AdapterError(
                f"{folder}: {key} is no factor of a linear layer (…lora_A.weight, …lora_B.weight); "
                "embeddings, DoRA magnitudes, biases and replaced modules are not supported"
            )
        pairs.setdefault(key[len(PREFIX) : -len(suffix)], {})[suffix] = tensor
    if not pairs:
        raise AdapterError(f"{folder}: {WEIGHTS} holds no tensors")
    for module, pair in pairs.items():
        if len(pair) == 1:
            missing = SUFFIX_B if SUFFIX_A in pair else SUFFIX_A
            raise AdapterError(f"{folder}: {module}{missing} is not in {WEIGHTS}; write the adapter anew")
    return {module: (pair[SUFFIX_A], pair[SUFFIX_B]) for module, pair in pairs.items()}
