"""Whether a compiled model gives what NumPy itself computes, in trees of any kind."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxfit._numpy.agreement import agree


def same_as_numpy(
    function: Callable, x: Any, parameters: Sequence[Any], result: Any
) -> bool:
    """Whether a compiled model gave what NumPy itself computes.

    Args:
        function: `f(x, *parameters)`, written in NumPy.
        x: arrays of NumPy; the function gets a copy, which it may write to.
        parameters: numbers or arrays.
        result: what the compiled model gave, an array or a pytree of arrays.

    Returns:
        Whether shapes are the same, and values to 1e-9 of the largest, and NaN and
        infinity where NumPy has them.
    """
    x, parameters = jax.tree.map(np.array, (x, tuple(parameters)))
    with np.errstate(all="ignore"):
        truth = function(x, *(value[()] for value in parameters))
    if isinstance(truth, dict):
        names = truth.keys() == result.keys()
        return names and all(_agree(value, result[k]) for k, value in truth.items())
    if isinstance(truth, tuple) and isinstance(result, tuple):
        return len(truth) == len(result) and all(map(_agree, truth, result))
    return _agree(truth, result)


def _agree(truth: Any, result: Any) -> bool:
    truth, result = np.asarray(truth), np.asarray(result)
    if truth.shape != result.shape or truth.dtype.kind not in "biufc":
        return False
    with np.errstate(all="ignore"):
        return agree(np.asarray(1.0 * truth), np.asarray(1.0 * result))
