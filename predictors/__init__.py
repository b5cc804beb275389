"""Predictions of measured cells by tier, from a composition and what was measured of the base alone."""

import importlib

from predictors.registry import PREDICTORS, BaseModel, NoPredictionError, Predictor, Shares, predictor

for _name in ("limit", "typed", "kernel", "curves"):  # in the order of the tiers
    importlib.import_module(f"{__name__}.{_name}")

__all__ = ["PREDICTORS", "BaseModel", "NoPredictionError", "Predictor", "Shares", "predictor"]
