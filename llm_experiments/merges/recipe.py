"""A merge written down in a small TOML file, with weights by layer where they differ.

    rule = "ties"
    weights = [1.0, 0.5]              # of every layer that no part below names
    options = { density = 0.3 }

    [[layers]]
    where = "mlp@0-13"                # words of `models.choice`, or a pattern of names such as "*.q_proj"
    weights = [1.0, 0.0]

Of several parts that name a layer the last one counts. Blocks are counted up to the last that an adapter
changes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llm_experiments.adapters.peft_files import AdapterWeights, check_library
from llm_experiments.merges.merging import FittedMerge
from llm_experiments.models.choice import KINDS, LayerChoice
from llm_experiments.models.layers import place_of
from toytransformer.compositions.io import read_plain
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError, check


class RecipeError(ValueError):
    """A recipe that cannot be read or used; the message names the file and what to change."""


@dataclass(frozen=True)
class Part:
    """Layers with weights of their own."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    where: str
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """What a recipe says; weights None: the rule's own."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    rule: str
    weights: tuple[float, ...] | None = None
    options: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    layers: tuple[Part, ...] = ()

    @classmethod
    def read(cls, file: Path) -> Recipe:
        """Errors: RecipeError naming what is wrong in the file; OSError where there is none."""
        try:
            content = tomllib.loads(read_plain(file).decode("utf-8"))
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise RecipeError(
                f"{file}: {where}: {first['msg']}; a recipe has rule, weights, options and [[layers]] with "
                "where and weights"
            ) from error
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{file} is not TOML ({error})") from error

    def merge(self, library: Sequence[AdapterWeights]) -> Merge | FittedMerge:
        """The merge of this library: one for all layers, or one for each.

        Errors: RecipeError for a part that names no layer, RuleError for a rule or weights that do not fit.
        """
        whole = self._checked(self.weights, library)
        if not self.layers:
            return whole
        names = check_library(library, same_modules=False)
        merges = dict.fromkeys(names, whole)
        for part in self.layers:
            named = layers_named(part.where, names)
            if not named:
                raise RecipeError(
                    f"{part.where!r} names none of the {len(names)} layers, such as {names[0]}; use words "
                    "such as 'mlp@0-13', or a pattern of names such as '*.q_proj'"
                )
            merges |= dict.fromkeys(named, self._checked(part.weights, library))
        parts = {part.where: list(part.weights) for part in self.layers}
        return FittedMerge(
            whole, tuple(adapter.name for adapter in library), tuple(library), merges, {"layers": parts}
        )

    def _checked(self, weights: tuple[float, ...] | None, library: Sequence[AdapterWeights]) -> Merge:
        spec = Merge(self.rule, weights, self.options)
        rule, _ = check(spec)
        if rule.needs_data:
            raise RuleError(f"rule {rule.name!r} is fitted on examples; a recipe names one that needs none")
        if weights is not None and len(weights) != len(library):
            raise RuleError(
                f"{len(weights)} weights {weights} for {len(library)} adapters; give one for each"
            )
        return spec


def layers_named(where: str, names: Sequence[str]) -> list[str]:
    """The layers that a choice such as "mlp@0-13" or a pattern such as "*.q_proj" means."""
    if where.partition("@")[0] not in KINDS:
        return [name for name in names if fnmatchcase(name, where)]
    choice, places = LayerChoice.parse(where), {name: place_of(name) for name in names}
    count = max((place.block for place in places.values() if place), default=-1) + 1
    blocks = choice.blocks(count)
    return [
        name for name, place in places.items() if place and place.block in blocks and place.is_of(choice.kind)
    ]
