"""An adapter set against its base: names and shapes of modules, the digest, names that a layout cut short."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llm_experiments.adapters.layouts import EXPERT
from llm_experiments.adapters.reader import opened
from llm_experiments.adapters.weights import AdapterWeights, ModuleUpdate, StoredModules, distinctly_named
from llm_experiments.models.shapes import BaseShapes
from toytransformer.adapters import AdapterError

#: What kohya puts before a module's name.
KOHYA = re.compile(r"lora_(te\d?_|unet_|)")


def opened_library(sources: Sequence[str], base: BaseShapes | None) -> list[AdapterWeights]:
    """The adapters that `sources` name (see `locate`), each with a name of its own and the base's modules.

    Errors: AdapterError as `opened` and `resolved`.
    """
    return distinctly_named([resolved(opened(source), base) for source in sources], sources)


def require_base(library: Sequence[AdapterWeights], base: BaseShapes | None) -> None:
    """AdapterError with the first adapter that does not fit the base, where there is one to fit."""
    for adapter in library:
        if base and (problems := against(adapter, base)):
            raise AdapterError(f"{adapter.name}: {problems[0]}")


def base_here(adapter: AdapterWeights) -> str | None:
    """The base as the adapter's settings name it, where that is a model on this machine: a folder, a file.

    None for a hub id, which would have to be asked for, and for a path of somebody else's.
    """
    name = adapter.base_name
    if not name:
        return None
    try:
        path = Path(name).expanduser()
        here = (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file())
    except (RuntimeError, OSError, ValueError):  # ~ of nobody, too long, a null byte
        return None
    return name if here or name == "embedded" else None


def against(adapter: AdapterWeights, base: BaseShapes) -> list[str]:
    """What of an adapter does not fit the base, in words; empty where it is the adapter's base."""
    problems = []
    if adapter.digest and adapter.digest != base.digest:
        problems.append(f"it was trained on the base {adapter.digest}, and {base.id!r} is {base.digest}")
    unknown, unfit = [], []
    for name in adapter.modules:
        shape = adapter.shape(name)
        stacks = name.partition("[")[0].replace(".base_layer", "") if shape.kind == "expert" else None
        expert = EXPERT.fullmatch(name)
        stacks = expert["experts"] if expert and base.size(name, shape.kind) is None else stacks
        if stacks is not None:
            if not any(path.startswith(f"{stacks}.") for path in base.stacked):
                unknown.append(name)
        elif (found := base.size(name, shape.kind)) is None:
            unknown.append(name)
        elif found != shape.size:
            unfit.append(f"{name}: (out, in) is {shape.size} and in the base {found}")
    if unknown:
        near = _nearest(unknown[0], base)
        problems.append(
            f"{len(unknown)} of {len(adapter.modules)} modules are not in the base {base.id!r}, such as "
            f"{unknown[0]}{f'; it has {near}' if near else ''}"
        )
    if unfit:
        more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
        problems.append(f"the base {base.id!r} has other shapes: {unfit[0]}{more}")
    return problems


def _nearest(name: str, base: BaseShapes) -> str | None:
    """A module of the base that ends as this one does."""
    parts = name.split(".")
    for first in range(1, len(parts)):
        end = "." + ".".join(parts[first:])
        if found := next((known for known in base.linear if f".{known}".endswith(end)), None):
            return found
    return None


def resolved(adapter: AdapterWeights, base: BaseShapes | None) -> AdapterWeights:
    """The adapter with the base's names of modules, where its layout wrote _ for every dot (kohya).

    Errors: AdapterError without a base, or for a name that is not one module's.
    """
    if adapter.layout != "kohya":
        return adapter
    if base is None:
        raise AdapterError(
            f"{adapter.name}: kohya's layout writes _ for the dots in names of modules, so these can be "
            "told from the base alone: name it with --model"
        )
    flat = Counter(name.replace(".", "_") for name in base.linear)
    known = {name.replace(".", "_"): name for name in base.linear}
    names: dict[str, str] = {}
    for name in adapter.modules:
        short = KOHYA.sub("", name, count=1)
        if flat[short] != 1:
            raise AdapterError(
                f"{adapter.name}: {name} is "
                f"{'no module' if short not in flat else 'the name of several modules'} of the base "
                f"{base.id!r}"
            )
        names[known[short]] = name
    return replace(adapter, modules=_renamed(adapter, names))


def _renamed(adapter: AdapterWeights, names: Mapping[str, str]) -> StoredModules:
    given = adapter.modules

    def load(name: str) -> ModuleUpdate:
        update = given[names[name]]
        assert isinstance(update, ModuleUpdate)  # as layouts give it
        return update

    return StoredModules({name: adapter.shape(names[name]) for name in sorted(names)}, load)
