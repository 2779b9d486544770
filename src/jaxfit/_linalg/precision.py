"""The numbers that depend on how many digits a fit has, in one table."""

from typing import Any, NamedTuple

import numpy as np


class Precision(NamedTuple):
    """What counts as lost, near or solved."""

    lossy_pivot: float  # of a matrix of unit diagonal: below, digits of its inverse go
    step_pivot: float  # and below this one too many to find the next step
    resolved: float  # rounding of a column that comes out of its frame, squared
    cosine: float  # τ of the certificate
    inside: float  # how far a start is moved off its bounds, relative
    ftol: float
    xtol: float
    gtol: float


DOUBLE = Precision(
    lossy_pivot=1e-8,
    step_pivot=1e-10,
    resolved=1e-8,
    cosine=1e-6,
    inside=1e-10,
    ftol=1e-19,
    xtol=1e-12,
    gtol=1e-14,
)
SINGLE = Precision(
    lossy_pivot=1e-3,
    step_pivot=1e-4,
    resolved=1e-4,
    cosine=1e-3,
    inside=4 * float(np.finfo(np.float32).eps),
    ftol=1e-9,
    xtol=1e-6,
    gtol=1e-6,
)


def precision_of(dtype: Any) -> Precision:
    """The numbers of a dtype, float64 or float32."""
    return DOUBLE if np.dtype(dtype) == np.float64 else SINGLE
