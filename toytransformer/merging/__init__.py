"""Merging and routing of adapters: `merge(adapters, spec, context)`, and the registry `RULES` behind it."""

from toytransformer.merging import fitted, pruning, routing, static  # each module registers its rules
from toytransformer.merging.merged import Merged, Routed, RoutedMerge, Static, StaticMerge
from toytransformer.merging.registry import (
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

__all__ = [
    "RULES",
    "MergeContext",
    "MergeRule",
    "Merged",
    "Option",
    "Routed",
    "RoutedMerge",
    "RuleError",
    "Static",
    "StaticMerge",
    "check",
    "fitted",
    "merge",
    "merge_rule",
    "pruning",
    "resolve",
    "routing",
    "static",
]
