"""Merging and routing of adapters: `merge(adapters, spec, context)`, and the registry `RULES` behind it."""

import importlib
import pkgutil

from toytransformer.merging.merged import Merged, Mixing, Routed, RoutedMerge, Static, StaticMerge
from toytransformer.merging.registry import (
    ALIASES,
    RULES,
    MergeContext,
    MergeRule,
    Option,
    RuleError,
    check,
    merge,
    merge_rule,
    resolve,
)

for _module in pkgutil.iter_modules(__path__):  # each module of this folder may enter rules
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ALIASES",
    "RULES",
    "MergeContext",
    "MergeRule",
    "Merged",
    "Mixing",
    "Option",
    "Routed",
    "RoutedMerge",
    "RuleError",
    "Static",
    "StaticMerge",
    "check",
    "merge",
    "merge_rule",
    "resolve",
]
