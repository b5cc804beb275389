"""Types of arrays: those of NumPy, and those of any library, as rules also run on JAX and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array
from numpy.typing import ArrayLike

#: An array of a library that follows the array API (NumPy, JAX, torch). The standard has no static type yet.
Array: TypeAlias = Any
#: An array of NumPy.
NumpyArray: TypeAlias = np.ndarray
#: What moves an array to another device or precision.
Convert: TypeAlias = Callable[[Array], Array]

#: Numbers below this many units of rounding, relative to their scale, count as zero, and as equal.
ROUNDING = 1024


def epsilon(x: Array) -> float:
    """The unit of rounding of x's precision."""
    return float(array_namespace(x).finfo(x.dtype).eps)


def all_finite(x: Array) -> bool:
    """Whether no entry is NaN or infinite; torch's sum says so in one pass, unless it overflows."""
    if is_torch_array(x) and bool(x.sum().isfinite()):
        return True
    xp = array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def rounding(x: Array) -> float:
    """The relative size below which a number of x's precision counts as zero."""
    return ROUNDING * epsilon(x)


def like(reference: Array, values: ArrayLike) -> Array:
    """The `values` as an array of the library, precision and device of `reference`."""
    xp = array_namespace(reference)
    return xp.asarray(values, dtype=reference.dtype, device=device(reference))
