"""Whether a compiled function gives what NumPy itself computes."""

from typing import Any

import numpy as np

AGREEMENT = 1e-9  # of the largest value


def agree(truth: Any, compiled: Any, size: float = 0.0) -> bool:
    """Whether numbers do, and NaN and infinities are in the same places.

    Args:
        truth, compiled: arrays of the same shape, floating.
        size: of what they may be small differences of.
    """
    if not truth.size:
        return True
    apart, largest = np.abs(truth - compiled).max(), np.abs(truth).max()
    if largest < np.inf and apart <= AGREEMENT * max(largest, size):
        return True
    is_finite = np.isfinite(truth)
    if not np.array_equal(truth[~is_finite], compiled[~is_finite], equal_nan=True):
        return False
    largest = np.max(np.abs(truth), where=is_finite, initial=0.0)
    apart = np.abs(truth[is_finite] - compiled[is_finite])
    return bool(np.all(apart <= AGREEMENT * max(largest, size)))
