"""Predictors: from a composition, and what was measured of a base model, to the outcomes of every question.

    @predictor("T1", "the typed toy with a trained base", needs="a few numbers of the base")
    def typed(spec, base): ..    -> {"hop1/direct": {"correct": 0.9, "old": 0.1}, ..}

A predictor sees no answer of a merged model: a specification and a `BaseModel` are all it is given. Tiers
have names (T0, T1, ..) in the order of what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toytransformer.compositions import Composition
from toytransformer.model_features import ModelFeatures

#: By "group/ask" the share of each outcome.
Shares = Mapping[str, Mapping[str, float]]


class NoPredictionError(ValueError):
    """A composition that a predictor does not speak of; the message says why."""


class Alone:
    """What was measured of single adapters; predictors.curves says what."""


@dataclass(frozen=True)
class BaseModel:
    """What was measured of a base model, without any adapter or with one alone.

    features: of one draw of names (toytransformer.model_features). alone: of single adapters, None where
    nothing was measured.
    """

    features: ModelFeatures
    alone: Alone | None = None

    @classmethod
    def read(cls, folders: Iterable[Path], dataset: str, names: int) -> BaseModel | None:
        """What is kept of one dataset and draw of names, in the first folder that has it; else None."""
        for folder in folders:
            if (path := folder / f"features-{dataset}-{names}.npz").is_file():
                return cls(ModelFeatures.read(path))
        return None


Predict = Callable[[Composition, BaseModel | None], Shares]


@dataclass(frozen=True)
class Predictor:
    """A registered predictor.

    about: one line. needs: what it is given beside the composition. lasts: whether what it says stays
    as it is when more rows are measured.
    """

    name: str
    about: str
    needs: str
    predict: Predict
    lasts: bool = True


PREDICTORS: dict[str, Predictor] = {}


def predictor(name: str, about: str, *, needs: str, lasts: bool = True) -> Callable[[Predict], Predict]:
    """Enter a function (spec, base) -> shares under a tier's name."""

    def enter(predict: Predict) -> Predict:
        if name in PREDICTORS:
            raise ValueError(f"predictor {name!r} is there already: give another name")
        PREDICTORS[name] = Predictor(name, about, needs, predict, lasts)
        return predict

    return enter


def needed(base: BaseModel | None, name: str) -> BaseModel:
    """The base. Errors: NoPredictionError where there is none."""
    if base is None:
        raise NoPredictionError(
            f"{name} needs what was measured of the base: write it by `lora-limits features`"
        )
    return base
