"""A likelihood with a number for each row, or for each row of each fit."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._batch.axes import BatchArguments
from jaxfit._rows.predictions import RowNumbers, is_prediction


def with_row_numbers(
    fits: BatchArguments, own: RowNumbers, fn: Callable
) -> BatchArguments:
    """Fits whose data bring the numbers of a likelihood, as these broadcast to all.

    Args:
        own: the numbers. An array with an axis more than a mean has, of one entry for
            each fit, is cut along it; any other is for all fits.
        fn: what returns the means.
    """
    axes = _axes_of_means(fits, fn)

    def is_of_each(number: Any) -> bool:
        is_of_fits = np.ndim(number) == axes + 1
        if np.ndim(number) > axes + 1 or (is_of_fits and len(number) != fits.number):
            raise ValueError(
                f"The likelihood has numbers of the shape {np.shape(number)}; they "
                f"must broadcast to the means, which have {axes} axes, of one fit or "
                f"of all {fits.number}."
            )
        return is_of_fits

    each, shared = eqx.partition(own.numbers, is_of_each)
    return fits._replace(
        each=_with_data(fits.each, each), shared=_with_data(fits.shared, shared)
    )


def _with_data(arguments: tuple, numbers: PyTree) -> tuple:
    x0, data, *rest = arguments
    return x0, (data, numbers), *rest


def _axes_of_means(fits: BatchArguments, fn: Callable) -> int:
    """How many axes the means of one fit have."""

    def struct(leaf: Any, start: int) -> jax.ShapeDtypeStruct:
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return jax.ShapeDtypeStruct(leaf.shape[start:], leaf.dtype)

    each = jax.tree.map(lambda leaf: struct(leaf, 1), fits.each)
    shared = jax.tree.map(lambda leaf: struct(leaf, 0), fits.shared)
    x0, data, *_ = fits._replace(each=each, shared=shared).one(each)
    output = jax.eval_shape(fn, x0, data)
    predictions = filter(is_prediction, jax.tree.leaves(output, is_leaf=is_prediction))
    numbers = {len(p.mean.shape) for p in predictions if p.likelihood is None}
    if len(numbers) > 1:
        raise ValueError(
            "The likelihood has arrays, and the means differ in their number of axes. "
            "Give each Prediction a likelihood of its own: Prediction(mean, observed, "
            "likelihood)."
        )
    return numbers.pop() if numbers else 0
