"""Adapters as everything here sees them, whatever file they came from: one update for each module.

A module's update is the `LoRA` of `toytransformer.adapters` with write = s lora_B (out x rank) and
read = lora_A^T (in x rank), so that Delta W = write @ read.T has one meaning everywhere; it keeps the scale
s, which PEFT's factor-wise rules see apart. An adapter that was opened (`reader.opened`) holds no factors:
each `modules[name]` reads one module from the file, and `shape` reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from toytransformer.adapters import AdapterError, LoRA

#: What a module's update is added to: the output of a linear layer, the rows of an embedding, or one expert's
#: matrix in a parameter that stacks those of all.
KINDS = ("linear", "embedding", "expert")


@dataclass(frozen=True)
class ModuleShape:
    """What is known of a module's update without reading it; (out, inside) is the size of Delta W.

    inside: inputs of a linear layer, tokens of an embedding. scale: s. bias: whether the output is shifted
    too.
    """

    out: int
    inside: int
    rank: int
    scale: float = 1.0
    kind: str = "linear"
    bias: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.out, self.inside


@dataclass(frozen=True)
class ModuleUpdate(LoRA):
    """x -> write read^T x + bias, of one module.

    scale: the s in `write`: PEFT keeps lora_b = write / s and s. bias: (out,) or None, with s in it. kind: as
    in KINDS. lora_b: as it was read, None where it is not known.
    """

    scale: float = 1.0
    bias: torch.Tensor | None = None
    kind: str = "linear"
    lora_b: torch.Tensor | None = None

    def factors(self, dtype: torch.dtype, device: torch.device | None = None) -> LoRA:
        """write and read in `dtype`: from lora_B where it is kept, so that s is multiplied in there."""
        read = self.read.to(device=device, dtype=dtype)
        if self.lora_b is None:
            return LoRA(self.write.to(device=device, dtype=dtype), read)
        b = self.lora_b.to(device=device, dtype=dtype)
        return LoRA(b if self.scale == 1 else b * self.scale, read)


def shape_of(lora: LoRA) -> ModuleShape:
    """The shape of factors at hand."""
    sizes = lora.write.shape[0], lora.read.shape[0], lora.rank
    if isinstance(lora, ModuleUpdate):
        return ModuleShape(*sizes, lora.scale, lora.kind, lora.bias is not None)
    return ModuleShape(*sizes)


class StoredModules(Mapping[str, ModuleUpdate]):
    """Modules that lie in a file; each access reads one and keeps nothing.

    Errors: AdapterError, when a module is read, for numbers that are not finite.
    """

    def __init__(
        self,
        shapes: Mapping[str, ModuleShape],
        load: Callable[[str], ModuleUpdate],
        ahead: Callable[[str], None] = lambda name: None,
    ):
        self.shapes = shapes
        self._load = load
        self._ahead = ahead

    def ahead(self, name: str) -> None:
        """Have the system begin to read a module that is asked for soon; nothing where it is not there."""
        if name in self.shapes:
            self._ahead(name)

    def __getitem__(self, name: str) -> ModuleUpdate:
        if name not in self.shapes:
            raise KeyError(name)
        return self._load(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def only(self, names: Collection[str]) -> StoredModules:
        shapes = {name: self.shapes[name] for name in self.shapes if name in names}
        return StoredModules(shapes, self._load, self._ahead)


@dataclass(frozen=True)
class WholeTensor:
    """A tensor of the base that the file brings along: a head or an embedding beside its LoRA, or in its
    place.

    frozen: a copy of the base's, which PEFT keeps beside factors of that layer; otherwise it may be trained.
    """

    shape: tuple[int, ...]
    frozen: bool
    load: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter: for every module of the base it changes, the update.

    modules: module name in the base model, such as "model.layers.0.mlp.up_proj" -> LoRA of torch tensors,
    sorted by name; opened ones are read one at a time. config: PEFT's settings, as read or as they would be.
    details: what `write` was given besides, such as the digest of the base; empty for foreign folders.
    layout: whose files these were. whole: tensors of the base that come along, by their key in the model.
    """

    name: str
    modules: Mapping[str, LoRA]
    config: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "PEFT"
    whole: Mapping[str, WholeTensor] = field(default_factory=dict)

    def shape(self, name: str) -> ModuleShape:
        """The shape of a module's update, without reading it from a file."""
        if isinstance(self.modules, StoredModules):
            return self.modules.shapes[name]
        return shape_of(self.modules[name])

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(self.shape(name).rank for name in self.modules)

    @property
    def base(self) -> str | None:
        """The base's digest where it is known, else the name PEFT recorded."""
        return self.digest or self.base_name

    @property
    def base_name(self) -> str | None:
        """What the base is called in the settings: a hub id or somebody's path."""
        return self.config.get("base_model_name_or_path")

    @property
    def digest(self) -> str | None:
        """The digest of the base it was trained on; None for foreign folders."""
        return self.details.get("base_digest")

    def loaded(self) -> AdapterWeights:
        """The same with all factors in memory, and so looked at: AdapterError where one is not finite."""
        return replace(self, modules=dict(self.modules.items()))

    def only(self, names: Collection[str]) -> AdapterWeights:
        """The adapter on these modules alone, such as `layers.target_modules(model, "mlp@lower half")`.

        Errors: AdapterError where it changes none of them.
        """
        if not any(name in names for name in self.modules):
            raise AdapterError(
                f"adapter {self.name!r} changes none of the {len(names)} modules chosen, but "
                f"{next(iter(self.modules))} and others; choose layers that it changes"
            )
        if isinstance(self.modules, StoredModules):
            return replace(self, modules=self.modules.only(names))
        return replace(self, modules={name: lora for name, lora in self.modules.items() if name in names})


def distinctly_named(
    adapters: Sequence[AdapterWeights], sources: Sequence[str | Path]
) -> list[AdapterWeights]:
    """The adapters, in which those that share a name are called by their sources, as these were given.

    Every adapter of a run is called "adapter", and a checkpoint by its folder's last name.
    """
    names = [adapter.name for adapter in adapters]
    return [
        replace(adapter, name=str(source)) if names.count(adapter.name) > 1 else adapter
        for adapter, source in zip(adapters, sources, strict=True)
    ]
