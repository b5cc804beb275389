"""A routed merge as a folder: its adapters, what routes them, and code that puts both into a model.

    routed.json, prototypes.safetensors, adapters/0, adapters/1, ..    what there is
    routed.py                                                          merges/standalone.py, word for word
    README.md                                                          how to load it, also with PEFT's Arrow

PEFT's Arrow has the formula of the rule on products at a fixed temperature; it finds the prototypes by
fifteen power iterations from a random start, and how far these are from the exact ones is measured here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import ArrowConfig
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from safetensors.torch import save_file

from llm_experiments.adapters.peft_files import inherited, write
from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.merges import standalone
from llm_experiments.merges.merging import PRECISION, check_merge, converted, describe, filled, merged_layer
from llm_experiments.merges.saving import DTYPES
from llm_experiments.models.files import markdown
from llm_experiments.models.shapes import BaseShapes
from toytransformer.adapters import LoRA
from toytransformer.compositions import replace_file
from toytransformer.compositions.io import replacing
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError, check
from toytransformer.merging.routing import ArrowMerge

#: The seed of PEFT's random start.
START = 0
SETTINGS, PROTOTYPES, CODE = "routed.json", "prototypes.safetensors", "routed.py"


@dataclass(frozen=True)
class RoutedAdapters:
    """A routed merge that is ready to be written.

    layers: what routes in each. details: as `merging.describe`, `bytes`, `dtype`. unlike_peft: why PEFT's
    Arrow does not do the same, None where it does. angle: sine of the largest angle between PEFT's prototypes
    and the exact ones, None where it does not.
    """

    library: tuple[AdapterWeights, ...]
    layers: Mapping[str, ArrowMerge]
    details: Mapping[str, Any]
    unlike_peft: str | None
    angle: float | None

    def write(self, folder: str | os.PathLike, name: str) -> None:
        """Write the folder; the prototypes are its last file."""
        folder, dtype = Path(folder), DTYPES[self.details["dtype"]]
        rank = max(adapter.rank for adapter in self.library)
        for place, adapter in enumerate(self.library):
            write(
                folder / _folder(place),
                adapter.name,
                {layer: _of_rank(lora, rank) for layer, lora in adapter.modules.items()},
                self.base,
                details=adapter.details,
                dtype=dtype,
                settings=inherited([adapter]),
                whole=adapter.whole,
            )
        replace_file(folder / SETTINGS, [json.dumps(self._settings(), indent=1, allow_nan=False), "\n"])
        source = Path(standalone.__file__).read_text(encoding="utf-8")
        replace_file(folder / CODE, [source])
        replace_file(folder / "README.md", [self._card(name)])
        prototypes = {
            layer: one.prototypes.to(torch.float32).contiguous() for layer, one in self.layers.items()
        }
        with replacing(folder / PROTOTYPES) as partial:
            save_file(prototypes, partial, metadata={"format": "pt"})

    @property
    def base(self) -> str:
        return str(self.library[0].config.get("base_model_name_or_path") or "")

    def _settings(self) -> dict[str, Any]:
        first = next(iter(self.layers.values()))
        return {
            "rule": self.details["rule"],
            "formula": self.details["formula"],
            "options": self.details["options"],
            "base": self.base,
            "names": [adapter.name for adapter in self.library],
            "adapters": [_folder(place) for place in range(len(self.library))],
            "factor_wise": first.factor_wise,
            "tied": first.tied,
            "layers": {
                name: {
                    "adapters": [n for n, adapter in enumerate(self.library) if name in adapter.modules],
                    "inverse_temperature": None
                    if math.isinf(one.inverse_temperature)
                    else one.inverse_temperature,
                    "top_k": one.top_k,
                }
                for name, one in self.layers.items()
            },
        }

    def _card(self, name: str) -> str:
        names = ", ".join(markdown(adapter.name) for adapter in self.library)
        gap = self.details["spectral_gap"]
        with_peft = f"PEFT's Arrow does not do the same: {self.unlike_peft}.\n"
        if self.unlike_peft is None:
            with_peft = f"""PEFT's Arrow has this formula. Its prototypes come from fifteen power iterations;
here the sine of the largest angle to the exact ones, which `{CODE}` has, is {self.angle:.1e}.

```python
{peft_code(self)}```
"""
        return f"""---
library_name: peft
base_model: {json.dumps(self.base)}
tags:
- lora
- arrow
---

# {markdown(name)}

The LoRA adapters {names}, weighted token by token. No single LoRA does this.

- rule: `{self.details["rule"]}`, {self.details["formula"]}
- options: {self.details["options"]}
- smallest spectral gap (s₁ − s₂) / s₁ of an adapter: {gap["smallest"]:.2g}, at {gap["module"]};
  at 0 its prototype is arbitrary

## With torch and transformers

In this folder:

```python
{own_code(self)}```

## With PEFT

{with_peft}"""


def own_code(routed: RoutedAdapters) -> str:
    """How `routed.py` is used."""
    return f"""from transformers import AutoModelForCausalLM
from routed import attach

model = AutoModelForCausalLM.from_pretrained({routed.base!r}).eval()
attach(model)
"""


def peft_code(routed: RoutedAdapters) -> str:
    """How PEFT loads the folder."""
    options = routed.details["options"]
    top_k = options["top_k"] or len(routed.library)
    return f"""from peft import ArrowConfig, create_arrow_model
from transformers import AutoModelForCausalLM

model = create_arrow_model(
    AutoModelForCausalLM.from_pretrained({routed.base!r}),
    {[_folder(place) for place in range(len(routed.library))]!r},
    ArrowConfig(top_k={top_k}, router_temperature={float(options["temperature"])!r}, rng_seed={START}),
).eval()
"""


def routed_adapters(
    library: Sequence[AdapterWeights],
    merge: Merge,
    *,
    base: BaseShapes | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tick: Callable[[int, int], None] = lambda done, all: None,
) -> RoutedAdapters:
    """A routed merge with its prototypes. base: by names of its layers, where it is known. dtype: of factors.

    Errors: RuleError for a rule that routes by anything else, and for what is no linear layer's update.
    """
    rule, options = check(merge)
    names = check_merge(library, merge)
    for adapter in library:
        others = [name for name in adapter.modules if adapter.shape(name).kind != "linear"]
        others += [key for key, tensor in adapter.whole.items() if not tensor.frozen]
        if others:
            raise RuleError(
                f"adapter {adapter.name!r} changes {others[0]}, which is no linear layer's update"
            )
    layers: dict[str, ArrowMerge] = {}
    said, angles = {}, [0.0]
    unlike = _unlike_peft(library, names, options, base)
    for done, name in enumerate(names, start=1):
        one = merged_layer(library, name, merge, seed, torch.device("cpu"), PRECISION)
        if not isinstance(one, ArrowMerge):
            raise RuleError(f"rule {rule.name!r} routes by more than prototypes, which alone can be written")
        if one.factor_wise:
            unlike = unlike or "it mixes products, and this rule factors"
        if unlike is None:
            angles += [_angle(lora, p) for lora, p in zip(one.adapters, one.prototypes, strict=True)]
        said[name] = one.details
        layers[name] = ArrowMerge(
            (), one.prototypes, one.inverse_temperature, one.top_k, one.tied, factor_wise=one.factor_wise
        )
        tick(done, len(names))
    rank = max(adapter.rank for adapter in library)
    sides = sum(sum(adapter.shape(name).size) for adapter in library for name in adapter.modules)
    details = describe(library, merge, seed, said)
    details |= {"dtype": str(dtype).removeprefix("torch."), "bytes": rank * sides * dtype.itemsize}
    return RoutedAdapters(tuple(library), layers, details, unlike, None if unlike else max(angles))


def _unlike_peft(
    library: Sequence[AdapterWeights],
    names: Sequence[str],
    options: Mapping[str, Any],
    base: BaseShapes | None,
) -> str | None:
    """Why PEFT's Arrow would do something else; None where it would not, as far as can be seen."""
    if options["temperature_scaling"] != "fixed":
        return "it has one temperature for all layers, and here it grows with their width"
    for adapter in library:
        if absent := [name for name in names if name not in adapter.modules]:
            return f"it wants adapters of the same layers, and {adapter.name!r} does not change {absent[0]}"
    if base is not None:
        ends = {name.rpartition(".")[2] for name in names}
        if more := [
            name for name in base.linear if name.rpartition(".")[2] in ends and name not in set(names)
        ]:
            return f"it routes in every layer called {more[0].rpartition('.')[2]}, {more[0]} too"
    return None


def _angle(lora: LoRA, prototype: torch.Tensor) -> float:
    """The sine of the angle between PEFT's prototype and the exact one."""
    config = ArrowConfig(rng_seed=START)
    config.task_adapter_names = []
    found = ArrowLoraLinearLayer(len(prototype), config).top_right_singular_vec_from_BA(
        lora.read.T.float(), lora.write.float()
    )
    found = found.double() / found.double().norm()
    along = prototype.double() @ found
    return float((found - along * prototype.double()).norm())


def _of_rank(lora: LoRA, rank: int) -> LoRA:
    """The same update in factors of this rank, the scale multiplied in: PEFT's Arrow wants equal ranks."""
    plain = converted(lora, torch.float32)
    more = torch.zeros(1, rank)
    return filled([plain, LoRA(more, more)])[0]


def _folder(place: int) -> str:
    return f"adapters/{place}"
