"""Many robust fits, each of which finds the scale of its residuals."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfit._core.auto_scale import Fit, Ways, number_of_free, with_own_scale
from jaxfit._core.solution import Solution


def batch_with_own_scales(
    solve_batch: Callable[..., Solution], fit: Fit, in_axes: Any
) -> Solution:
    """The solutions of fits whose loss has the scale "auto".

    Args:
        solve_batch: what does many fits of a known scale, with axes as in `jax.vmap`.
        fit: with the arguments of all fits.
        in_axes: that of `solve_batch`.
    """
    x0_axes, data_axes, *rest = in_axes
    bounds_axes = rest[0] if rest else None
    weight_axes = data_axes if data_axes is None or isinstance(data_axes, int) else 0
    if fit.weights is None:
        weight_axes = None
    is_pair = isinstance(bounds_axes, (tuple, list))
    each: tuple = tuple(bounds_axes) if is_pair else (bounds_axes, bounds_axes)

    def run(fit: Fit, axes: tuple) -> Solution:
        return solve_batch(
            fit.fn,
            fit.x0,
            fit.data,
            in_axes=axes,
            bounds=fit.bounds,
            weights=fit.weights,
            loss=fit.loss,
            options=fit.options,
        )

    def plain(fit: Fit) -> Solution:
        return run(fit, (x0_axes, data_axes, bounds_axes))

    def with_scale(fit: Fit) -> Solution:
        axes = (x0_axes, None), (data_axes, weight_axes, 0)
        return run(fit, (*axes, ((each[0], None), (each[1], None))))

    def again(fit: Fit) -> Solution:
        return run(fit, (0, data_axes, bounds_axes))

    def number(values: Array) -> Array:
        return values

    def weighted(weights: PyTree, factor: Array) -> PyTree:
        axis = data_axes if isinstance(data_axes, int) else 0
        if weights is None:
            weights = jnp.ones((1,) * (axis + 1), factor.dtype)
        ahead = jnp.expand_dims(factor, tuple(range(axis)))

        def of_each(weight: Any) -> Array:
            weight = jnp.asarray(weight)
            more = weight.ndim - ahead.ndim
            return weight * ahead.reshape(ahead.shape + (1,) * more)

        return jax.tree.map(of_each, weights)

    free = number_of_free(*_of_one(fit, x0_axes, each))
    return with_own_scale(fit, Ways(plain, with_scale, again, number, weighted), free)


def _of_one(fit: Fit, x0_axes: Any, bounds_axes: tuple) -> tuple[PyTree, Any]:
    """Start and bounds of the first fit, by which parameters are counted."""

    def first(axes: Any, tree: PyTree) -> PyTree:
        def part(axis: Any, subtree: PyTree) -> PyTree:
            if axis is None:
                return subtree
            return jax.tree.map(lambda leaf: jnp.take(leaf, 0, axis), subtree)

        return jax.tree.map(part, axes, tree, is_leaf=lambda node: node is None)

    x0 = first(x0_axes, fit.x0)
    if fit.bounds is None:
        return x0, None
    lower, upper = map(first, bounds_axes, fit.bounds)
    return x0, (lower, upper)
