"""Merging and routing of adapters: `merge(adapters, spec, context)`, and the registry `RULES` behind it."""

from toytransformer.merging import fitted, pruning, routing, static  # each module registers its rules
from toytransformer.merging.registry import (
    RULES,
    MergeContext,
    Merged,
    MergeRule,
    Option,
    RuleError,
    StaticMerge,
    check,
    merge,
    merge_rule,
    resolve,
)
from toytransformer.merging.routing import RoutedMerge

__all__ = [
    "RULES",
    "MergeContext",
    "MergeRule",
    "Merged",
    "Option",
    "RoutedMerge",
    "RuleError",
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
