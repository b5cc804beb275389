"""Tensors in files of unknown origin, looked up without being read: safetensors, shards, torch's pickles.

Nothing is unpickled but tensors and plain data (torch.load's `weights_only`), and no tensor is larger than
the file it lies in.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors

from llm_experiments.models.files import FileError, read_object
from toytransformer.adapters import AdapterError
from toytransformer.arrays import all_finite

#: First bytes of what Git leaves in place of a large file that was not fetched.
POINTER = b"version https://git-lfs"
#: What torch's own files may begin with: a zip archive or, before torch 1.6, a pickle.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".meta")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. load: reads it, as it is there. place: its first byte and how many, where known."""

    key: str
    file: Path
    shape: tuple[int, ...]
    floating: bool
    load: Callable[[], torch.Tensor]
    place: tuple[int, int] | None = None

    def ahead(self) -> None:
        """Have the system begin to read it: many are then read at once, and while something is computed."""
        if self.place is None or not hasattr(os, "posix_fadvise"):
            return
        with suppress(OSError), self.file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), *self.place, os.POSIX_FADV_WILLNEED)

    def read(self, device: str = "cpu") -> torch.Tensor:
        """The numbers in float32. Errors: AdapterError where they are none, or not finite there."""
        tensor = self.load()
        if not tensor.is_floating_point():
            raise AdapterError(
                f"{self.file}: {self.key} is of {tensor.dtype}; floating point numbers are needed"
            )
        try:
            single = tensor.to(device, torch.float32)  # first: 8-bit floats know no isfinite
        except RuntimeError as error:  # kinds of 4 bits
            raise AdapterError(
                f"{self.file}: {self.key} of {tensor.dtype} cannot be read ({error})"
            ) from error
        if not all_finite(single):
            raise AdapterError(
                f"{self.file}: {self.key} holds NaN, infinity or numbers beyond float32; finite ones are "
                "needed"
            )
        return single


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of one adapter's files, by key. Errors: AdapterError naming the file."""
    found: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():  # a pipe would be waited at for ever
            raise AdapterError(
                f"{file} is missing; the writing of the adapter was cut short, or it was moved in part: "
                "write it anew"
            )
        refuse_pointer(file)
        here = _pickled(file) if file.suffix in PICKLES else _safe(file)
        if twice := sorted(found.keys() & here.keys()):
            raise AdapterError(f"{file} holds {twice[0]}, which another of its files holds too; keep one")
        found |= here
    return found


def shards(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards names. Errors: AdapterError."""
    try:
        named = read_object(index).get("weight_map")
    except FileError as error:
        raise AdapterError(f"{error}; write the adapter anew") from error
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()) or not named:
        raise AdapterError(f"{index} is no index of shards (weight_map); write the adapter anew")
    files = sorted(set(named.values()))
    if not all(file == Path(file).name and file not in ("", "..") for file in files):
        raise AdapterError(f"{index} names files outside its folder; do not use this adapter")
    return tuple(index.parent / file for file in files)


def refuse_pointer(file: Path) -> None:
    """AdapterError where Git's large file storage left a pointer in place of the file."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(POINTER))
    except OSError as error:
        raise AdapterError(f"{file} cannot be read ({error})") from error
    if start == POINTER:
        raise AdapterError(
            f"{file} is a pointer of Git LFS and not the file itself: run `git lfs pull` in its folder, or "
            "download the file from the hub"
        )


def _safe(file: Path) -> dict[str, StoredTensor]:
    """The tensors that a header names. The library checks it; no file stays open or mapped."""
    try:
        with safe_open(file, "pt", device="cpu"):
            pass
        start, header = safe_header(file)
        return {
            key: StoredTensor(
                key,
                file,
                tuple(entry["shape"]),
                floating(entry["dtype"]),
                partial(_read_safe, file, start, key, entry),
                (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]),
            )
            for key, entry in header.items()
        }
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} is damaged ({error}); write the adapter anew") from error


def safe_header(file: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where the numbers of a safetensors file begin, and by key dtype, shape and data_offsets from there."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


def floating(kind: str) -> bool:
    """Whether safetensors' name of a type is one of floating point numbers."""
    return kind.startswith(("BF", "F8", "F16", "F32", "F64"))


def _read_safe(file: Path, start: int, key: str, entry: Mapping[str, Any]) -> torch.Tensor:
    """One tensor, as the only one of a file made in memory.

    A mapped file would count as memory of the process from the first read of a page on, and those of a
    thousand adapters together are more than there is.
    """
    begin, end = entry["data_offsets"]
    try:
        with file.open("rb") as opened:
            opened.seek(start + begin)
            numbers = opened.read(end - begin)
        alone = json.dumps({key: {**entry, "data_offsets": [0, end - begin]}}).encode()
        return load_safetensors(len(alone).to_bytes(8, "little") + alone + numbers)[key]
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(f"{file} is damaged at {key} ({error}); write the adapter anew") from error


def _pickled(file: Path) -> dict[str, StoredTensor]:
    content = plain_pickle(file)
    if isinstance(content, Mapping) and isinstance(content.get("expert_weights"), Mapping):
        content = content["expert_weights"]  # mttl's own dump of an expert
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # Lightning's
    if not isinstance(content, Mapping) or not content:
        raise AdapterError(f"{file} holds {type(content).__name__} and no tensors by name")
    size, found = file.stat().st_size, {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise AdapterError(f"{file}: {str(key)[:80]!r} is a {type(tensor).__name__}; tensors are needed")
        strided = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not strided or tensor.numel() * tensor.element_size() > size:
            raise AdapterError(f"{file}: {key} is no plain tensor, or larger than the file; write it anew")
        found[key] = StoredTensor(
            key, file, tuple(tensor.shape), tensor.is_floating_point(), partial(tensor.detach)
        )
    return found


def plain_pickle(file: Path) -> Any:
    """What torch saved, if it is tensors and plain data; anything else in a pickle could run code.

    Errors: AdapterError.
    """
    refuse_pointer(file)
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # the format before torch 1.6 cannot be mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise AdapterError(
            f"{file} is a pickle that holds {named[1] if named else 'more than tensors and plain data'}, "
            "and opening it could run code; where you trust it, open its tensors with torch.load and "
            "convert them to safetensors"
        ) from error
    except Exception as error:  # of a damaged archive, anything
        raise AdapterError(f"{file} is damaged ({type(error).__name__}: {str(error)[:200]})") from error
