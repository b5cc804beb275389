"""What merged adapters of a pool have to beat: the same fit with something taken away.

    recycled        the selected adapters, the target's own adapter first where it is known
    drawn           the others replaced by random ones, the target's own real: the control of arXiv 2602.12323
    drawn-alone     all replaced: without what the paper leaves in
    norms           the others replaced by random directions of the same singular values, module by module
    norms-alone     all replaced by such
    shuffled        the selected adapters, fitted on examples whose answers are exchanged
    base            no adapter
    target-alone    the target's own adapter with weight 1
    new             one adapter trained on the examples

Each makes a library, examples and a merge of those that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch

from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.merges.fitters.products import random_adapter
from llm_experiments.merges.merging import converted, module_seed
from llm_experiments.models.prompts import Example
from llm_experiments.registry import Registry
from toytransformer.adapters import LoRA
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError


@dataclass(frozen=True)
class Pair:
    """A question with an answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Setting:
    """What is fitted: adapters, examples and the rule. target: the place in the library of the target's own
    adapter, None where it is not there.
    """

    library: tuple[AdapterWeights, ...]
    examples: tuple[Example, ...]
    merge: Merge
    target: int | None = None


Control: TypeAlias = Callable[[Setting, int], Setting]
CONTROLS: Registry[Control] = Registry("control")


def control(name: str) -> Callable[[Control], Control]:
    """Enter a control: from a setting and a seed to another one."""

    def enter(function: Control) -> Control:
        CONTROLS.add(name, function)
        return function

    return enter


@control("recycled")
def recycled(setting: Setting, seed: int) -> Setting:
    """As it is."""
    return setting


@control("drawn")
def drawn(setting: Setting, seed: int) -> Setting:
    """All but the target's own adapter drawn by `drawn_like`; errors: RuleError where it is not there."""
    return _others(setting, lambda others: drawn_like(others, seed))


@control("drawn-alone")
def drawn_alone(setting: Setting, seed: int) -> Setting:
    """All adapters drawn by `drawn_like`, of the sizes of all."""
    return replace(setting, library=drawn_like(setting.library, seed), target=None)


@control("norms")
def norms(setting: Setting, seed: int) -> Setting:
    """All but the target's own adapter with random singular vectors and their own singular values."""
    return _others(setting, lambda others: tuple(random_adapter(one, seed) for one in others))


@control("norms-alone")
def norms_alone(setting: Setting, seed: int) -> Setting:
    """All adapters with random singular vectors and their own singular values."""
    return replace(setting, library=tuple(random_adapter(one, seed) for one in setting.library), target=None)


@control("shuffled")
def shuffled(setting: Setting, seed: int) -> Setting:
    """No example keeps its answer: the answers move around one cycle, in an order drawn by the seed.

    Equal answers may come back. Errors: RuleError for one example.
    """
    if len(setting.examples) < 2:
        raise RuleError(f"{len(setting.examples)} examples have no answers to exchange; give two at least")
    order = np.random.default_rng(seed).permutation(len(setting.examples))
    answers = {int(place): setting.examples[order[at - 1]].answer for at, place in enumerate(order)}
    examples = tuple(Pair(one.question, answers[place]) for place, one in enumerate(setting.examples))
    return replace(setting, examples=examples)


@control("base")
def base(setting: Setting, seed: int) -> Setting:
    """No adapter: the sum of none."""
    return replace(setting, library=(), merge=Merge("sum"), target=None)


@control("target-alone")
def target_alone(setting: Setting, seed: int) -> Setting:
    """The target's own adapter with weight 1; errors: RuleError where it is not there."""
    return replace(setting, library=(_target(setting),), merge=Merge("sum"), target=0)


@control("new")
def new(setting: Setting, seed: int) -> Setting:
    """One adapter trained on the examples; the library says rank and layers alone."""
    return replace(setting, merge=Merge("new-adapter"))


def drawn_like(library: Sequence[AdapterWeights], seed: int) -> tuple[AdapterWeights, ...]:
    """As many adapters of normal entries: in every module the standard deviations of all factors together.

    lora_A of N(0, std of all lora_A of the module), lora_B likewise, the scale of each kept: reinit_case
    "non_target_experts" of the code of arXiv 2602.12323. |Delta| is not kept.
    """
    names = sorted({name for adapter in library for name in adapter.modules})
    modules: list[dict[str, LoRA]] = [{} for _ in library]
    for name in names:
        having = [place for place, adapter in enumerate(library) if name in adapter.modules]
        scales = [library[place].shape(name).scale for place in having]
        factors = [converted(library[place].modules[name], torch.float32) for place in having]
        read = torch.cat([lora.read.flatten() for lora in factors]).std()
        write = torch.cat([lora.write.flatten() / s for lora, s in zip(factors, scales, strict=True)]).std()
        for place, lora, scale in zip(having, factors, scales, strict=True):
            called = f"{library[place].name} {place} {name}"
            generator = torch.Generator().manual_seed(module_seed(seed, called))
            modules[place][name] = LoRA(
                scale * write * torch.randn(lora.write.shape, generator=generator),
                read * torch.randn(lora.read.shape, generator=generator),
            )
    return tuple(
        AdapterWeights(f"drawn-{adapter.name}", own, adapter.config, adapter.details)
        for adapter, own in zip(library, modules, strict=True)
    )


def _target(setting: Setting) -> AdapterWeights:
    if setting.target is None:
        raise RuleError("this control keeps the target's own adapter, and there is none: say which one it is")
    return setting.library[setting.target]


def _others(
    setting: Setting, change: Callable[[tuple[AdapterWeights, ...]], tuple[AdapterWeights, ...]]
) -> Setting:
    """The target's own adapter, and the others changed, in their places."""
    target = _target(setting)
    others = tuple(one for place, one in enumerate(setting.library) if place != setting.target)
    changed = list(change(others)) if others else []
    assert setting.target is not None
    return replace(setting, library=tuple([*changed[: setting.target], target, *changed[setting.target :]]))
