"""PEFT's settings of a LoRA: what they say of each module's scale, and which of them are not supported."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from toytransformer.adapters import AdapterError

Number = TypeVar("Number", int, float)

#: Most that a rank or lora_alpha can be.
LARGEST = 10**9
#: Most repetitions in a pattern of module names, so that matching one takes no longer than reading it.
REPETITIONS = 2

#: Settings of a LoRA that do not change what it adds, or that are taken into account when it is read.
HARMLESS = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "lora_bias"),
    *("init_lora_weights", "eva_config", "corda_config", "loftq_config", "lora_ga_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters"),
    *("fan_in_fan_out", "task_type", "peft_type", "auto_mapping", "peft_version", "inference_mode"),
    *("base_model_name_or_path", "revision", "megatron_config", "megatron_core", "qalora_group_size"),
    *("modules_to_save", "arrow_config"),
)
#: PEFT's default that almost every adapter holds. Of it PEFT is not asked, which takes seconds to import.
USUAL = {"bias": "none"}
#: Starting points of a training that also change the base's weights, so that the factors alone say nothing.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
MERGED = "merge it into its base with PEFT's merge_and_unload and use that as a model"
REASONS = {
    "use_dora": f"DoRA rescales the base's own weights, so its update is no product of two factors: {MERGED}",
    "bias": f"biases of the base are trained beside the factors: {MERGED}",
    "trainable_token_indices": f"rows of the embedding are replaced: {MERGED}",
    "layer_replication": f"layers of the base are repeated: {MERGED}",
    "alora_invocation_tokens": "it adds its update behind some tokens alone, which no merged adapter does",
}


@dataclass(frozen=True)
class Scaling:
    """s of every module: lora_alpha / r, or lora_alpha / sqrt r, with r and lora_alpha by patterns."""

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.ranks, module, self.rank)

    def scale(self, module: str) -> float:
        rank = self.rank_of(module)
        return _by_pattern(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def named(self, module: str) -> bool:
        """Whether a pattern means this module."""
        return any(_by_pattern(patterns, module, 0.0) for patterns in (self.ranks, self.alphas))


def scaling(config: Mapping[str, object], where: Path) -> Scaling:
    """The scales that settings say, once nothing in them is beyond what is read here.

    Errors: AdapterError naming the setting, why it is not read, and the way out.
    """
    _refuse(config, where)
    rank, alpha = (_number(config.get(key), key, where) for key in ("r", "lora_alpha"))
    rslora = config.get("use_rslora") or False
    if not isinstance(rslora, bool):
        raise AdapterError(f"{where}: use_rslora is {config['use_rslora']!r}; it is true or false")
    ranks, alphas = (_patterns(config.get(key), key, where) for key in ("rank_pattern", "alpha_pattern"))
    for value in (rank, *ranks.values()):
        if value != int(value):
            raise AdapterError(f"{where}: a rank is {value}; it must be a whole number")
    whole = {key: int(value) for key, value in ranks.items()}
    return Scaling(int(rank), alpha, rslora, whole, alphas)


@cache
def _defaults() -> dict[str, object]:
    from peft import LoraConfig

    return LoraConfig().to_dict()


def _refuse(config: Mapping[str, object], where: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{where}: peft_type is {kind!r}; only 'LORA' can be read: {MERGED}")
    for key, value in sorted(config.items()):
        if key in HARMLESS or not value or value == USUAL.get(key):
            continue
        if value != _defaults().get(key):
            reason = REASONS.get(key, f"it changes what the adapter adds, or may: {MERGED}")
            raise AdapterError(f"{where}: {key} = {shown(value)} is not supported ({reason})")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise AdapterError(
            f"{where}: init_lora_weights = {start!r} is not supported (it changes the base's weights); "
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )


def _number(value: object, key: str, where: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise AdapterError(
            f"{where}: {key} is {shown(value)}; it must be a number above 0, at most {LARGEST:g}"
        )
    return value


def _patterns(value: object, key: str, where: Path) -> dict[str, float]:
    """Numbers by pattern of module names."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AdapterError(f"{where}: {key} is {shown(value)}; it must be numbers by name of a module")
    checked = {}
    for pattern, number in value.items():
        repeated = re.search(r"\)[*+?{]", pattern) or len(re.findall(r"[*+{]", pattern)) > REPETITIONS
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise AdapterError(
                f"{where}: {key} has {shown(pattern)}, which is no pattern ({error})"
            ) from error
        if repeated or len(pattern) > 1000:
            raise AdapterError(
                f"{where}: {key} has {shown(pattern)}, a pattern with repeated groups or more than "
                f"{REPETITIONS} repetitions; write the names of the modules out"
            )
        checked[pattern] = _number(number, f"{key}[{shown(pattern)}]", where)
    return checked


def _by_pattern(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """PEFT's way (get_pattern_key): the first pattern that is the end of the name, from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def shown(value: object) -> str:
    """A value of unknown size, for a message."""
    text = repr(value)
    return text if len(text) < 50 else f"{text[:50]}.."
