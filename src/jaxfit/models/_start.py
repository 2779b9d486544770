"""Starts from data: the best of a few candidates, with linear parameters solved for.

Most models are linear in some parameters (a height, an offset). Given the others these
follow from linear least squares, so that a start needs candidates for the others alone:
the variable projection of Golub and Pereyra (SIAM J. Numer. Anal. 10, 1973), on a grid.
Everything is array code of fixed shapes, for one curve or, under `vmap`, for a batch.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree

if TYPE_CHECKING:
    from jaxfit.models._model import Model

Values = Float[Array, " m"]

FAR = 10  # times the data's range: from there on x = 0 is far away
DEFAULT_START = 1.0  # of a parameter of which nothing is known, as in curve_fit


def project(columns: Sequence[Values], y: Values) -> tuple[list[Array], Array]:
    """Linear least squares by modified Gram-Schmidt.

    Returns:
        The coefficients of the columns, zero for one that depends on those before it,
        and the sum of squares that remains; infinite if a column is not finite.
    """
    finite = jnp.array(True)
    basis: list[Array] = []
    triangle: list[list[Array]] = []
    remaining, images = y, []
    for column in columns:
        finite = finite & jnp.all(jnp.isfinite(column))
        column = jnp.where(jnp.isfinite(column), column, 0)
        size = jnp.sqrt(jnp.sum(column**2))
        overlaps = []
        for q in basis:
            overlaps.append(jnp.sum(q * column))
            column = column - overlaps[-1] * q
        length = jnp.sqrt(jnp.sum(column**2))
        counts = length > 1e-10 * size
        q = jnp.where(counts, column / jnp.where(counts, length, 1), 0)
        images.append(jnp.sum(q * remaining))
        remaining = remaining - images[-1] * q
        basis.append(q)
        triangle.append([*overlaps, jnp.where(counts, length, jnp.inf)])
    coefficients = images
    for k in range(len(columns) - 1, -1, -1):
        value = coefficients[k] / triangle[k][k]
        coefficients[k] = value
        for i in range(k):
            coefficients[i] = coefficients[i] - triangle[k][i] * value
    left = jnp.sum(remaining**2)
    return coefficients, jnp.where(finite, left, jnp.inf)


def grid(**axes: ArrayLike) -> dict[str, Array]:
    """All combinations of some values, as equally long vectors."""
    mesh = jnp.meshgrid(*axes.values(), indexing="ij")
    return {name: m.ravel() for name, m in zip(axes, mesh, strict=True)}


def extent(x: Values) -> tuple[Array, Array]:
    """The least x and the range, of at least a tiny number."""
    low, high = jnp.min(x), jnp.max(x)
    return low, jnp.maximum(high - low, 1e-12 * jnp.maximum(jnp.abs(high), 1e-300))


def smooth(y: Values, part: int = 24) -> Values:
    """A moving average over a part of the points, of one point at least."""
    half = len(y) // part // 2
    if half == 0:
        return y
    padded = jnp.concatenate([jnp.full(half, y[0]), y, jnp.full(half, y[-1])])
    sums = jnp.cumsum(jnp.concatenate([jnp.zeros_like(y[:1]), padded]))
    return (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)


def peak(x: Values, y: Values) -> tuple[Array, Array]:
    """Centre and full width at half maximum of the largest peak or dip.

    Args:
        x: ascending.
        y: with a baseline of about zero.
    """
    m = len(y)
    smoothed = smooth(y)
    top = jnp.argmax(jnp.abs(smoothed))
    upright = smoothed * jnp.sign(smoothed[top])
    index = jnp.arange(m)
    low = upright < 0.5 * upright[top]
    left = jnp.max(jnp.where(low & (index < top), index, -1))
    right = jnp.min(jnp.where(low & (index > top), index, m))
    left_half = x[top] - x[jnp.maximum(left, 0)]
    right_half = x[jnp.minimum(right, m - 1)] - x[top]
    # a flank beyond the data is as wide as the other
    left_half = jnp.where(left < 0, jnp.maximum(right_half, left_half), left_half)
    right_half = jnp.where(right == m, jnp.maximum(left_half, right_half), right_half)
    least = extent(x)[1] / max(m - 1, 1)
    return x[top], jnp.maximum(left_half + right_half - least, least)


def frequency(x: Values, y: Values) -> Array:
    """The strongest frequency above zero, in cycles per unit of x.

    The spectrum of the data on an even grid, four times finer than the data resolve.
    """
    m = len(y)
    low, span = extent(x)
    even = jnp.interp(low + span * np.linspace(0, 1, m), x, y - jnp.mean(y))
    power = jnp.abs(jnp.fft.rfft(even, 4 * m)) ** 2
    power = jnp.where(jnp.arange(len(power)) < 2, 0, power)  # less than half a cycle
    strongest = jnp.argmax(power).astype(y.dtype)
    return strongest * (max(m - 1, 1) / (4 * m)) / span


def away_from_middle(x: tuple[Values, ...], part: float = 0.3) -> Array:
    """Indices of the points that lie at the edge of the data, a part of them all."""
    distance = jnp.zeros_like(x[0])
    for axis in x:
        low, span = extent(axis)
        distance = jnp.maximum(distance, jnp.abs(2 * (axis - low) / span - 1))
    number = max(1, min(len(distance), max(int(part * len(distance)), 4)))
    return lax.top_k(distance, number)[1]


def last_valid(valid: Array) -> Array:
    """For each point the nearest valid one before it, or else the first valid one."""
    index = jnp.arange(len(valid))
    before = lax.cummax(jnp.where(valid, index, -1))
    return jnp.where(before < 0, jnp.argmax(valid), before)


def with_known(candidates: dict[str, Array], known) -> dict[str, Array]:
    """Candidates in which some parameters have the values that are known."""
    return {
        name: jnp.full(jnp.shape(values), known[name]) if name in known else values
        for name, values in candidates.items()
    }


def best_of(columns_of, x, y, candidates: dict[str, Array], limits=()):
    """The candidate whose columns leave least of y, and its linear coefficients.

    Args:
        columns_of: (x, **candidate) -> a list of columns (m,).
        candidates: vectors (K,) by name; none for a model that is linear.
        limits: (lower, upper) of each coefficient; a candidate outside is left out.
    """

    def one(candidate):
        columns = columns_of(x, **candidate)
        coefficients, left = project(columns, y)
        for value, (lower, upper) in zip(coefficients, limits, strict=False):
            left = jnp.where((value < lower) | (value > upper), jnp.inf, left)
        return jnp.stack(coefficients), left

    if not candidates:
        return {}, one({})[0]
    coefficients, left = jax.vmap(one)(candidates)
    best = jnp.argmin(jnp.where(jnp.isfinite(left), left, jnp.inf))
    chosen = {name: jnp.asarray(values)[best] for name, values in candidates.items()}
    return chosen, coefficients[best]


# Data as they come


def far_middle(x: PyTree) -> np.float64 | None:
    """The middle of the data's x, where x = 0 is far off; else None."""
    if not isinstance(x, np.ndarray) or not (finite := x[np.isfinite(x)]).size:
        return None
    low, high = finite.min(), finite.max()
    middle = 0.5 * low + 0.5 * high
    return np.float64(middle) if abs(middle) > FAR * (high - low) else None


def start_from(
    model: "Model",
    x: PyTree,
    y: Float[Array, "..."],
    valid: Array | None,
    known: Mapping[str, Any],
) -> dict[str, Array]:
    """`starts` for one data set in the shapes of the user's; traced.

    Args:
        valid: of the shape of y, false for points that are to be ignored.
        known: values by name that are given, and need no guess.
    """
    if not model.starts_from_data:
        return model.starts(x, y, known)
    x, y = flat_coordinates(x, y), jnp.ravel(y)
    if valid is not None:
        flags = [jnp.ravel(valid), *map(jnp.isfinite, jax.tree.leaves(x))]
        index = last_valid(functools.reduce(jnp.logical_and, flags))
        x, y = jax.tree.map(lambda leaf: leaf[index], (x, y))
    if not isinstance(x, tuple):
        order = jnp.argsort(x)
        x, y = x[order], y[order]
    return {
        name: jnp.where(jnp.isfinite(value), value, DEFAULT_START)
        for name, value in model.starts(x, y, known).items()
    }


def flat_coordinates(x: PyTree, y: Array) -> Any:
    """One vector for each coordinate, each as long as y."""
    if isinstance(x, (tuple, list)):
        return tuple(jnp.ravel(jnp.broadcast_to(axis, y.shape)) for axis in x)
    if not hasattr(x, "shape") or x.shape == y.shape:
        return jnp.ravel(x)
    if x.shape[1:] == y.shape:
        return tuple(jnp.ravel(axis) for axis in x)
    raise ValueError(
        f"x has the shape {x.shape} and y {y.shape}; give x of the shape of y, or a "
        "tuple of arrays that broadcast to it, one for each coordinate."
    )


def guess(model: "Model", arguments: tuple[PyTree, Array]) -> dict[str, Array]:
    """`Model.guess`, traced, for one data set or for a batch."""
    x, y = arguments
    axes = x if isinstance(x, (tuple, list)) else (x,)
    trailing = jnp.broadcast_shapes(*(np.shape(axis) for axis in axes))
    valid = jnp.isfinite(y)
    one = functools.partial(start_from, model, known={})
    batch = y.shape[: max(y.ndim - len(trailing), 0)]
    for _ in batch:
        one = jax.vmap(one, in_axes=(None, 0, 0))
    found = one(x, y, valid)
    return {k: jnp.broadcast_to(v, batch) for k, v in found.items()}
