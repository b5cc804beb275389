"""Closed-form edits of one layer: Prop. 1 and eq. 23 with a language model's own features.

An edit at layer L stores facts i by  Delta W = sum_i w_i read_i^T  on `down_proj`, where phi_i are the
features at the last token of the questions, w_i the change of output that makes the model write the answer,
and

    read = Phi G^-1                    (eq. 23; one fact: Delta W = w v^T / |v|^2, Prop. 1)
    read = C^-1 Phi (Phi^T C^-1 Phi)^-1        (whitened by the covariance C of other keys: ROME)

both from `toytransformer.adapters`. On any prompt the edit adds sum_i c_i w_i, c_i = <read_i, phi>, wherever
phi comes from: `check_shift` holds that against the model to rounding. Features at layer L depend on lower
layers only, so edits of one layer add; edits below move the features, and the identity then holds with phi
as it is under the merge.

Edits are handed on as `AdapterWeights`, so merging, saving and plain PEFT see ordinary adapters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.asking import decoding
from llm_experiments.editing.features import (
    EditError,
    KeyCovariance,
    Observed,
    chosen_layers,
    observe,
)
from llm_experiments.editing.values import Values, value_vectors
from llm_experiments.merges import merging
from llm_experiments.models.handle import LoadedModel
from llm_experiments.scoring.words import contains
from toytransformer.adapters import LoRA, closed_form, whitened
from toytransformer.compositions import Merge

Array = np.ndarray

GAUGES = ("plain", "svd")


@dataclass(frozen=True)
class Edit:
    """An edit of one layer's down projection: Delta W = changes^T read^T.

    lora: write = changes^T, one column per fact, and read with <read_i, key_j> = [i = j]; float64. values:
    how the changes were found, None where they were given. base, digest: the model's.
    """

    layer: int
    module: str
    keys: Float[Array, "fact feature"]
    lora: LoRA
    base: str
    digest: str | None
    values: Values | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def coefficients(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt fact"]:
        """c_i = <read_i, phi>: how much of each fact's w the edit adds to a prompt."""
        return np.asarray(features, float) @ self.lora.read

    def factors(self, gauge: str = "svd") -> LoRA:
        """The update in the gauge "plain" (a column per fact) or "svd" (balanced, each read vector with a
        positive product with the mean key, as in toytransformer.adapters)."""
        if gauge == "plain":
            return self.lora
        if gauge != "svd":
            raise EditError(f"gauge is {gauge!r}; allowed: {', '.join(GAUGES)}")
        left, values, right = self.lora.svd()
        sign = np.where(self.keys.mean(axis=0) @ right < 0, -1.0, 1.0)
        root = np.sqrt(values) * sign
        return LoRA(left * root, right * root)


def readout(
    keys: Float[Array, "fact feature"], covariance: KeyCovariance | None = None
) -> Float[Array, "feature fact"]:
    """The vectors with <read_i, key_j> = [i = j]: Phi G^-1, or whitened by a covariance of other keys.

    C maps the span of its keys and `keys` into itself, so the dense solve is done there and not in all of
    feature space. Errors: AdapterError on a zero feature vector and on linearly dependent ones.
    """
    keys = np.asarray(keys, float)
    unit = np.eye(len(keys))
    if covariance is None:
        return closed_form(keys, unit, gauge="plain").read
    basis, _ = np.linalg.qr(np.concatenate([covariance.keys, keys]).T)
    return basis @ whitened(keys @ basis, unit, covariance.within(basis)).read


def edit(
    loaded: LoadedModel,
    layer: int,
    keys: Float[Array, "fact feature"],
    changes: Float[Array, "fact hidden"] | Values,
    *,
    covariance: KeyCovariance | None = None,
) -> Edit:
    """The edit that adds change i to the output of a layer whose features are key i.

    Errors: EditError on a layer the model lacks or sizes that are not its; AdapterError on a zero feature
    vector, linearly dependent ones, or numbers that are not finite.
    """
    down = chosen_layers(loaded.model, [layer])[layer]
    values = changes if isinstance(changes, Values) else None
    keys, changes = np.asarray(keys, float), np.asarray(values.changes if values else changes, float)
    wanted = (down.linear.in_features, down.linear.out_features)
    found = tuple(each.shape[-1] if each.ndim == 2 else each.shape for each in (keys, changes))
    if found != wanted or len(keys) != len(changes):
        raise EditError(
            f"keys {keys.shape} and changes {changes.shape} do not fit {down.name}; give (fact, {wanted[0]}) "
            f"and (fact, {wanted[1]}) with one row for each fact"
        )
    lora = LoRA(changes.T, readout(keys, covariance))
    digest = getattr(loaded, "digest", None)
    details = {"whitened": covariance is not None, "ridge": covariance.ridge if covariance else None}
    return Edit(layer, down.name, keys, lora, str(loaded.id), digest, values, details)


def write_facts(
    loaded: LoadedModel,
    questions: Sequence[str],
    answers: Sequence[str],
    layer: int,
    *,
    begun: Sequence[str] | None = None,
    covariance: KeyCovariance | None = None,
    **search: Any,
) -> Edit:
    """Make the model answer these questions so, by an edit of one layer: keys, values, then eq. 23.

    begun: how each answer is begun where the key is to be taken behind that and not at the question's last
    token. search: as in `value_vectors`. The answers may be whole sentences.
    """
    keys = observe(loaded, questions, [layer], begun=begun)[layer].features
    read = readout(keys, covariance)
    values = value_vectors(loaded, questions, answers, layer, read, begun=begun, **search)
    return edit(loaded, layer, keys, values, covariance=covariance)


# --- edits as adapters --------------------------------------------------------------------------------------


def library(
    edits: Sequence[Edit], names: Sequence[str] | None = None, *, gauge: str = "svd"
) -> list[AdapterWeights]:
    """One adapter for each edit, to merge or to save; names: edit1, edit2, .. if not given.

    The adapters of a library change the same layers, so each is zero where only others edit. gauge: of
    factor-wise rules, see `Edit.factors`. Factors are float64; `adapters.write` keeps float32.
    """
    names = [f"edit{i + 1}" for i in range(len(edits))] if names is None else list(names)
    if not edits or len(names) != len(edits):
        raise EditError(
            f"{len(edits)} edits and {len(names)} names: give at least one edit, one name for each"
        )
    shapes = {each.module: (len(each.lora.write), len(each.lora.read)) for each in edits}
    result = []
    for own, name in zip(edits, names, strict=True):
        modules = {
            module: LoRA(
                torch.zeros(rows, 1, dtype=torch.float64), torch.zeros(columns, 1, dtype=torch.float64)
            )
            for module, (rows, columns) in shapes.items()
        }
        factors = own.factors(gauge)
        modules[own.module] = LoRA(torch.tensor(factors.write), torch.tensor(factors.read))
        details = {"base_digest": own.digest} if own.digest else {}
        config = {"base_model_name_or_path": own.base}
        result.append(AdapterWeights(name, dict(sorted(modules.items())), config, details))
    return result


@contextlib.contextmanager
def applied(
    loaded: LoadedModel,
    edits: Sequence[Edit],
    weights: Sequence[float] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Iterator[merging.AppliedMerge]:
    """The weighted sum of the edits in force: `merging.apply` with the rule "sum"."""
    merge = Merge("sum", None if weights is None else tuple(weights))
    with merging.apply(loaded, library(edits), merge, dtype=dtype) as merged:
        yield merged


# --- what an edit does --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shift:
    """What edits add to one layer's output on each prompt, against sum_j weight_j c_j w_j.

    error: largest |measured - predicted| of an entry. ratio: the largest quotient of such an error and its
    rounding bound, so the identity holds where it is at most 1. moved: |phi - phi of the base| / |phi of the
    base|, the largest over prompts; 0 where no layer below is edited. size: mean |shift|.
    """

    layer: int
    error: float
    ratio: float
    moved: float
    size: float
    coefficients: tuple[Float[Array, "prompt fact"], ...]

    @property
    def holds(self) -> bool:
        return self.ratio <= 1

    def row(self) -> dict[str, Any]:
        """Everything but the coefficients, as plain data."""
        kept = ("layer", "error", "ratio", "holds", "moved", "size")
        return {name: getattr(self, name) for name in kept}


def check_shift(
    loaded: LoadedModel,
    edits: Sequence[Edit],
    questions: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    begun: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Shift]:
    """The identity shift = sum_j weight_j c_j w_j in every edited layer, under the merge of all the edits.

    dtype: in which the shift is computed; the bound follows it.
    """
    layers = sorted({one.layer for one in edits})
    base = observe(loaded, questions, layers, begun=begun)
    with applied(loaded, edits, weights, dtype=dtype):
        merged = observe(loaded, questions, layers, begun=begun)
    weights = [1.0] * len(edits) if weights is None else list(weights)
    shifts = []
    for layer in layers:
        own = [(one, weight) for one, weight in zip(edits, weights, strict=True) if one.layer == layer]
        shifts.append(compare_shift(layer, base[layer], merged[layer], own, loaded.model.dtype, dtype))
    return shifts


def compare_shift(
    layer: int,
    base: Observed,
    merged: Observed,
    edits: Sequence[tuple[Edit, float]],
    model_dtype: torch.dtype,
    dtype: torch.dtype,
    gauge: str = "svd",
) -> Shift:
    """One layer's shift against the edits that are on it, each with its weight.

    The bound of one entry, from the standard model of rounding: with u the unit roundoff of `dtype`, m
    features and rank r, |error| <= gamma_k (|phi| |read|) |write|^T for the products, gamma_k = k u/(1 - k u)
    with k = m + r + 4 (factors, weight and scale are rounded too), and eps (|output| + |shift|) of the
    model's precision for the sum.
    """
    phi = merged.features.astype(float)
    predicted, terms = np.zeros(merged.output.shape), np.zeros(merged.output.shape)
    coefficients = []
    for one, weight in edits:
        coefficients.append(one.coefficients(phi))
        predicted += weight * coefficients[-1] @ one.lora.write.T
        factors = one.factors(gauge)
        terms += abs(weight) * (np.abs(phi) @ np.abs(factors.read)) @ np.abs(factors.write).T
    unit = torch.finfo(dtype).eps / 2
    count = (phi.shape[1] + sum(one.lora.rank for one, _ in edits) + 4) * unit
    rounding = torch.finfo(model_dtype).eps * (np.abs(merged.output) + np.abs(predicted))
    bound = count / (1 - count) * terms + rounding
    error = np.abs(merged.shift - predicted)
    ratio = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
    before = base.features.astype(float)
    moved = np.linalg.norm(phi - before, axis=1) / np.linalg.norm(before, axis=1)
    size = float(np.linalg.norm(predicted, axis=1).mean())
    return Shift(layer, float(error.max()), float(ratio.max()), float(moved.max()), size, tuple(coefficients))


@dataclass(frozen=True)
class Recall:
    """What the model wrote, and whether the entity is in it as a word of its own."""

    question: str
    entity: str
    text: str
    contains: bool


def recalled(
    loaded: LoadedModel, questions: Sequence[str], entities: Sequence[str], *, max_new_tokens: int = 32
) -> tuple[Recall, ...]:
    """The greedy answers, under whatever merge is active, and whether each contains its entity."""
    if len(questions) != len(entities):
        raise EditError(f"{len(questions)} questions and {len(entities)} entities: give one entity for each")
    texts = decoding.answers(loaded, questions, max_new_tokens=max_new_tokens)
    return tuple(
        Recall(question, entity, text, contains(text, entity))
        for question, entity, text in zip(questions, entities, texts, strict=True)
    )
