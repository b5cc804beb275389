"""Where an adapter's files are: a folder, a folder in it, a file, or a repository of the hub.

adapters/a          a folder with adapter_config.json, or with one folder of the kind in it
a.safetensors       a file of weights, with or without its settings beside it
org/name            a repository of the hub, also org/name@REVISION and org/name:FOLDER
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from llm_experiments.adapters.tensor_files import shards
from toytransformer.adapters import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What this project knows about an adapter beyond PEFT's own files; other programs do not look at it.
EXTRA = "adapter_details.json"
#: Files that hold weights, where they have a name of their own; the first that is there is read.
NAMED = (
    WEIGHTS,
    "adapter_model.safetensors.index.json",
    "adapters.safetensors",
    "adapter_model.bin",
    "adapter_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
#: How deep folders are searched for the one that holds the adapter, and how many are looked at.
DEPTH, MOST = 2, 1000
Result = TypeVar("Result")
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<folder>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Located:
    """The files of one adapter. config: its settings, where there are any. name: what to call it."""

    name: str
    folder: Path
    weights: tuple[Path, ...]
    config: Path | None

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of its files, by the names that `copy` gives them.

        Errors: AdapterError where one cannot be read.
        """
        whole = hashlib.sha256()
        for name, file in self._files().items():
            whole.update(f"{name}\n{self._reading(_sha256, file)}\n".encode())
        return whole.hexdigest()[:16]

    def copy(self, folder: Path) -> None:
        """Write its files into a folder in which `locate` finds the same adapter. Errors: as digest."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in self._files().items():
            self._reading(partial(shutil.copyfile, dst=folder / name), file)

    def _files(self) -> dict[str, Path]:
        """What belongs to it, by the name that is found in a folder of its own."""
        files = {file.name: file for file in self.weights}
        if len(files) == 1 and self.config and self.weights[0].name not in NAMED:
            named = WEIGHTS if self.weights[0].suffix == ".safetensors" else "adapter_model.bin"
            files = {named: self.weights[0]}
        beside = [self.folder / name for name in (CONFIG, EXTRA) if self.config or name == EXTRA]
        beside += [self.folder / name for name in NAMED if len(files) > 1 and name.endswith(".json")]
        beside += [] if self.config else [self.weights[0].with_suffix(".meta")]
        return dict(sorted({**files, **{file.name: file for file in beside if file.is_file()}}.items()))

    def _reading(self, read: Callable[[Path], Result], file: Path) -> Result:
        try:
            return read(file)
        except OSError as error:
            raise AdapterError(f"{file} cannot be read ({error})") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def locate(source: str | os.PathLike[str]) -> Located:
    """The files that `source` means. Errors: AdapterError saying what is there instead and what opens it."""
    path = _path(source)
    if path.is_file():
        return _in_file(path)
    if path.is_dir():
        return _in_folder(path)
    match = HUB_ID.fullmatch(str(source))
    if match is None or path.exists() or str(source)[0] in ".~/":
        raise AdapterError(
            f"{path / CONFIG} is missing: there is no folder or file {str(source)!r}; give a PEFT folder, a "
            ".safetensors file, or a hub id as org/name, org/name@revision or org/name:folder"
        )
    repo, folder = match["repo"], match["folder"]
    root = fetched(repo, match["revision"], folder)
    found = _in_folder(root / folder if folder else root)
    return Located(str(source), found.folder, found.weights, found.config)


def _path(source: str | os.PathLike[str]) -> Path:
    try:
        path = Path(source).expanduser()
        path.exists()
    except (RuntimeError, OSError, ValueError) as error:  # ~ of nobody, too long, a null byte
        raise AdapterError(f"{str(source)[:200]!r} is no path of an adapter ({error})") from error
    if not str(source).strip():
        raise AdapterError("'' is no path of an adapter; give a folder, a file or a hub id")
    return path


def _in_file(file: Path) -> Located:
    if file.suffix == ".gguf":
        raise AdapterError(
            f"{file} is a GGUF file; adapters are read from safetensors: convert it back with the tool that "
            "wrote it, or give the PEFT folder it was made from"
        )
    if file.suffix not in SUFFIXES:
        raise AdapterError(f"{file} is no file of weights; give a folder, or one of {', '.join(SUFFIXES)}")
    config = file.parent / CONFIG
    return Located(file.stem, file.parent, (file,), config if config.exists() else None)


def _in_folder(folder: Path) -> Located:
    """The adapter in a folder; else in the one folder below that has one."""
    name = folder.resolve().name
    for file in NAMED:
        if (path := folder / file).exists():
            weights = shards(path) if path.suffix == ".json" else (path,)
            config = folder / CONFIG
            return Located(name, folder, weights, config if config.exists() or file == WEIGHTS else None)
    if (folder / CONFIG).exists():
        return Located(name, folder, (folder / WEIGHTS,), folder / CONFIG)
    if (folder / "pytorch_lora_weights.safetensors").exists():
        return _in_file(folder / "pytorch_lora_weights.safetensors")
    if (folder / "config.json").exists():
        raise AdapterError(
            f"{folder / CONFIG} is missing: {folder} holds a model and no adapter; give an adapter's folder, "
            "and the model with --model"
        )
    below = _adapters_below(folder)
    if len(below) == 1:
        return _in_folder(below[0])
    if below:
        shown = ", ".join(str(path.relative_to(folder)) for path in below[:5])
        raise AdapterError(
            f"{folder} holds {len(below)} adapters ({shown}{', ..' if len(below) > 5 else ''}); give the "
            "folder of one of them"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(files) == 1:
        return _in_file(files[0])
    if files:
        raise AdapterError(
            f"{folder} holds {len(files)} files of weights ({files[0].name}, {files[1].name}"
            f"{', ..' if len(files) > 2 else ''}); give one of them"
        )
    raise AdapterError(
        f"{folder / CONFIG} is missing: {folder} holds no PEFT adapter, or its writing was cut short"
    )


def _adapters_below(folder: Path) -> list[Path]:
    """Folders with an adapter's settings, at most DEPTH below; links are not followed."""
    found: list[Path] = []
    level = [folder]
    seen = 0
    for _ in range(DEPTH):
        try:
            level = sorted(
                path for above in level for path in above.iterdir() if path.is_dir() and not path.is_symlink()
            )
        except OSError as error:
            raise AdapterError(f"{folder} cannot be searched for an adapter ({error})") from error
        seen += len(level)
        found += [path for path in level if (path / CONFIG).is_file()]
        if seen > MOST:
            break
    return found


def fetched(repo: str, revision: str | None, folder: str | None) -> Path:
    """A snapshot of what a hub's repository has of an adapter, from the cache where the hub cannot be
    asked."""
    from huggingface_hub import snapshot_download

    if folder and ".." in Path(folder).parts:
        raise AdapterError(f"{repo}:{folder} lies outside the repository; give a folder in it")
    prefix = f"{folder.strip('/')}/" if folder else ""
    patterns = [f"{prefix}{name}" for name in (CONFIG, EXTRA, "adapter_model*", "adapters.safetensors")]
    patterns += [f"{prefix}*.ckpt", f"{prefix}*.meta"] + ([] if folder else ["*/adapter_*"])
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as first:  # the hub's errors share no class: bad names, no network, gated, disk full
        try:
            return Path(
                snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True)
            )
        except Exception:
            reason = (str(first).strip().splitlines() or ["no reason given"])[0]
            raise AdapterError(
                f"{repo!r} is no folder or file here, and as a hub id"
                f"{'' if revision is None else f' at revision {revision!r}'} it could not be fetched "
                f"({type(first).__name__}: {reason[:300]}). Check the spelling; gated repositories need "
                "`hf auth login`"
            ) from first
