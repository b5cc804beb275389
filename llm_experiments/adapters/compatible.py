"""Whether adapters can be merged: what they share, what a missing module means, which rules are defined.

An adapter that does not change a module has Delta = 0 there. Of two adapters for one base the shapes agree on
every module that both change, and so do the digests of their bases, where both are known; how the base is
called decides nothing, as one base has many names (a hub id, somebody's path, a 4-bit copy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from llm_experiments.adapters.of_base import against
from llm_experiments.adapters.weights import AdapterWeights, ModuleShape
from llm_experiments.models.shapes import BaseShapes
from toytransformer.adapters import AdapterError
from toytransformer.merging import RULES, MergeRule


@dataclass(frozen=True)
class Compatibility:
    """What is known of a library before anything is merged.

    modules: every module that an adapter changes -> whether each one does. problems: why these cannot be
    merged at all, in full; empty where they can. notes: what a merge makes of the differences that are
    allowed.
    """

    library: tuple[AdapterWeights, ...]
    modules: Mapping[str, tuple[bool, ...]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def require(self) -> tuple[str, ...]:
        """The modules. Errors: AdapterError with the first problem and the number of others."""
        if self.problems:
            more = f" ({len(self.problems) - 1} more: see check)" if len(self.problems) > 1 else ""
            raise AdapterError(self.problems[0] + more)
        return tuple(self.modules)

    def undefined(self, rule: MergeRule) -> str | None:
        """Why this rule has no meaning for these adapters; None where it has one."""
        shapes = {name: self._shape(name) for name in self.modules}
        others = [name for name, shape in shapes.items() if shape.kind != "linear"]
        if others and (shifted := next((n for n, s in shapes.items() if s.bias), None)):
            return (
                f"lora_B of {shifted} has a bias, and {others[0]} is no linear layer: PEFT has no adapter "
                "with both, so merge without one of them"
            )
        if not sums_updates(rule) and (shifted := next((n for n, s in shapes.items() if s.bias), None)):
            allowed = ", ".join(sorted(name for name, one in RULES.items() if sums_updates(one)))
            return f"lora_B of {shifted} has a bias, which rule {rule.name!r} cannot merge: use {allowed}"
        return None

    def _shape(self, name: str) -> ModuleShape:
        """A module's shape in the first adapter with a bias there, else in the first that has it."""
        here = [one.shape(name) for one, has in zip(self.library, self.modules[name], strict=True) if has]
        return next((shape for shape in here if shape.bias), here[0])


def sums_updates(rule: MergeRule) -> bool:
    """Whether a rule is a sum of the updates with weights given before: then biases are summed with them."""
    return rule.gauge_invariant and rule.sectorwise and not rule.routed and not rule.needs_data


def compatibility(
    adapters: Sequence[AdapterWeights], *, same_modules: bool = False, same_base: bool = False
) -> Compatibility:
    """What a library shares and what stands against merging it; nothing but saved heads is read for it.

    same_modules: for rules that are fitted on all adapters in each module. same_base: the bases must have one
    name too.
    """
    library = tuple(adapters)
    if not library:
        return Compatibility((), {}, ("a library needs at least one adapter, got none",), ())
    names = [adapter.name for adapter in library]
    problems = [
        f"two adapters are called {name!r}; give them different names"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    changed: dict[str, AdapterWeights] = {}
    for adapter in library:
        for name in adapter.modules:
            changed.setdefault(name, adapter)
    modules = {name: tuple(name in adapter.modules for adapter in library) for name in changed}
    problems += _bases(library, same_base) + _shapes(library, changed) + _whole(library)
    if same_modules:
        problems += _absent(library, modules)
    return Compatibility(library, modules, tuple(problems), () if problems else _notes(library, modules))


def of_one_base(
    adapters: Sequence[AdapterWeights], base: BaseShapes | None = None
) -> tuple[tuple[AdapterWeights, ...], dict[str, str]]:
    """The most adapters that can be merged with one another, in order, and by name why each other one cannot.

    base: their base, where it is known: what does not fit it is left out first. Of as large sets the one with
    the first adapter. Errors: AdapterError where fewer than two of several are left.
    """
    apart: dict[str, str] = {}
    groups: list[list[AdapterWeights]] = []
    for adapter in adapters:
        if base and (problems := against(adapter, base)):
            apart[adapter.name] = problems[0]
            continue
        fitting = (group for group in groups if not compatibility([*group, adapter]).problems)
        if (group := next(fitting, None)) is None:
            groups.append([adapter])
        else:
            group.append(adapter)
    kept = max(groups, key=len, default=[])
    inside = {id(adapter) for adapter in kept}  # arrays are not compared: the same adapter may be given twice
    for adapter in adapters:
        if id(adapter) not in inside and adapter.name not in apart:
            apart[adapter.name] = compatibility([kept[0], adapter]).problems[0]
    if apart and len(kept) < 2:
        raise AdapterError("; ".join(f"{name}: {reason}" for name, reason in list(apart.items())[:2]))
    return tuple(kept), apart


def check_library(adapters: Sequence[AdapterWeights], *, same_modules: bool = True) -> tuple[str, ...]:
    """The modules that the adapters of a library change, in order; AdapterError where it cannot be merged."""
    return compatibility(adapters, same_modules=same_modules).require()


def _bases(library: Sequence[AdapterWeights], same_base: bool) -> list[str]:
    problems = []
    known = [adapter for adapter in library if adapter.digest]
    for other in known[1:]:
        if known[0].digest != other.digest:
            problems.append(
                f"{_pair(known[0], other)} are for different bases, {known[0].digest!r} and {other.digest!r}"
            )
    if same_base:
        for other in library[1:]:
            if library[0].base_name != other.base_name:
                problems.append(
                    f"{_pair(library[0], other)} name different bases, {library[0].base_name!r} and "
                    f"{other.base_name!r}, and one name was asked for"
                )
    return problems


def _shapes(library: Sequence[AdapterWeights], changed: Mapping[str, AdapterWeights]) -> list[str]:
    """One line for each pair of adapters: their first disagreement and how many more there are."""
    apart: dict[tuple[str, str], list[str]] = {}
    for other in library:
        for name in other.modules:
            before = changed[name]
            ours, theirs = before.shape(name), other.shape(name)
            if ours.size != theirs.size or ours.kind != theirs.kind:
                what = f"(out, in) is {ours.size} and {theirs.size}"
                if ours.kind != theirs.kind:
                    what = f"one takes it for {ours.kind}, one for {theirs.kind}"
                apart.setdefault((before.name, other.name), []).append(f"{name}: {what}")
    stacked = {
        tuple(sorted(one.config.get("target_parameters") or ()))
        for one in library
        if any(one.shape(name).kind == "expert" for name in one.modules)
    }
    problems = [
        f"adapters {first!r} and {other!r} disagree on {lines[0]}; they belong to different bases"
        + (f" (and on {len(lines) - 1} more modules)" if len(lines) > 1 else "")
        for (first, other), lines in apart.items()
    ]
    if len(stacked) > 1:
        problems.append(
            f"target_parameters are {' and '.join(map(str, sorted(stacked)))}: their factors lie in one "
            "another, and which is which can be told only where all adapters name the same"
        )
    return problems


def _whole(library: Sequence[AdapterWeights]) -> list[str]:
    """Heads and embeddings that come along: the same from all, as there is no rule for them."""
    problems = []
    for key in sorted({key for adapter in library for key in adapter.whole}):
        having = [adapter for adapter in library if key in adapter.whole]
        first = having[0].whole[key]
        for other in having[1:]:
            theirs = other.whole[key]
            if first.shape != theirs.shape or not torch.equal(first.load().float(), theirs.load().float()):
                problems.append(
                    f"{_pair(having[0], other)} bring different {key}, which is replaced as a whole and is "
                    "no LoRA: no rule merges it. Take it out of one file, or train both on one head"
                )
        if not first.frozen and len(having) < len(library):
            lacking = next(adapter for adapter in library if key not in adapter.whole)
            problems.append(
                f"{_pair(having[0], lacking)}: only the first replaces {key} as a whole, so the merge would "
                "need the base's; take it out of that file, or give the other the base's"
            )
    return problems


def _absent(library: Sequence[AdapterWeights], modules: Mapping[str, tuple[bool, ...]]) -> list[str]:
    return [
        f"{_pair(library[0], other)} change different modules: only one has {apart[0]}; train both on the "
        "same layers"
        for index, other in enumerate(library[1:], start=1)
        if (apart := sorted(name for name, has in modules.items() if has[0] != has[index]))
    ]


def _notes(library: Sequence[AdapterWeights], modules: Mapping[str, tuple[bool, ...]]) -> tuple[str, ...]:
    notes = []
    if len(called := sorted({str(adapter.base_name) for adapter in library})) > 1:
        proof = "shapes agree where modules are shared"
        if not any(sum(has) > 1 for has in modules.values()):
            proof = "no module is shared, so nothing says that they belong together: check them with --model"
        notes.append(f"their base has {len(called)} names ({', '.join(called)}); {proof}")
    for what in ("task_type", "revision"):
        if len(said := sorted({str(one.config[what]) for one in library if one.config.get(what)})) > 1:
            notes.append(f"{what} differs ({', '.join(said)}); the merge has that of the first")
    for index, adapter in enumerate(library):
        if absent := sum(not has[index] for has in modules.values()):
            notes.append(f"{adapter.name} does not change {absent} of {len(modules)} modules: zero there")
    ranks = {adapter.name: adapter.rank for adapter in library}
    if len(set(ranks.values())) > 1:
        shown = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        notes.append(f"ranks differ ({shown}); rules on factors fill the smaller ones with zeros")
    if shifted := [one.name for one in library if any(one.shape(name).bias for name in one.modules)]:
        allowed = " and ".join(sorted(name for name, rule in RULES.items() if sums_updates(rule)))
        notes.append(f"lora_B of {shifted[0]} has biases: {allowed} alone are defined")
    for key in sorted({key for adapter in library for key in adapter.whole}):
        notes.append(f"{key} comes along as it is, whatever the weights")
    return tuple(notes)


def _pair(first: AdapterWeights, other: AdapterWeights) -> str:
    return f"adapters {first.name!r} and {other.name!r}"
