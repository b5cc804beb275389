"""The plain form of numbers and regimes in rows that are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toytransformer.regimes import Regime

Row = dict[str, Any]


def short(value: float) -> float:
    """Six significant digits, and zero for rounding error: enough to draw, the same on every machine."""
    return 0.0 if abs(value) < 1e-9 else float(f"{value:.6g}")


def described(regime: Regime) -> Row:
    """The regime as JSON: infinity as text."""
    described = {"dimension": regime.dimension, **regime.describe()}
    return {key: "infinity" if value == math.inf else value for key, value in described.items()}
