"""Starts from data: the best of a few candidates, with linear parameters solved for.

Most models are linear in some parameters (a height, an offset). Given the others these
follow from linear least squares, so that a start needs candidates for the others alone:
the variable projection of Golub and Pereyra (SIAM J. Numer. Anal. 10, 1973), on a grid.
Everything is array code of fixed shapes, for one curve or, under `vmap`, for a batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Remainder(NamedTuple):
    """What is left of the data for one part of a model, and what stands beside it.

    The part's values are multiplied by `factor`. Beside it are the directions of
    `basis`, each with a coefficient of its own, so that the part is judged by what it
    explains of y at right angles to them.
    """

    x: PyTree
    y: Values  # without the other parts, as far as they are known
    basis: Float[Array, "q m"]  # orthonormal rows, or zeros
    factor: Values

    @property
    def orthogonal(self) -> Values:
        """y at right angles to the basis."""
        return without(self.basis, self.y)


def alone(x: PyTree, y: Values) -> Remainder:
    """The data for a model that has nothing beside it."""
    return Remainder(x, y, jnp.zeros((0, len(y)), y.dtype), jnp.ones_like(y))


def orthonormal(columns: Float[Array, "q m"]) -> Float[Array, "q m"]:
    """An orthonormal basis of the rows' span: modified Gram-Schmidt, done twice.

    A row that depends on those before it, or is not finite, becomes zero.
    """

    def add(k, basis):
        column = columns[k]
        column = jnp.where(jnp.all(jnp.isfinite(column)), column, 0)
        size = jnp.max(jnp.abs(column))
        column = column / jnp.where(size > 0, size, 1)
        before = jnp.sqrt(jnp.sum(column**2))
        column = without(basis, without(basis, column))
        length = jnp.sqrt(jnp.sum(column**2))
        counts = length > 1e-10 * before
        return basis.at[k].set(
            jnp.where(counts, column, 0) / jnp.where(counts, length, 1)
        )

    if len(columns) == 0:
        return columns
    return lax.fori_loop(0, len(columns), add, jnp.zeros_like(columns))


def without(basis: Float[Array, "q m"], values: Float[Array, "*k m"]) -> Array:
    """Values less their part in the span of an orthonormal basis."""
    return values - jnp.matmul(jnp.matmul(values, basis.T), basis)


def beside(basis: Float[Array, "q m"], columns: Float[Array, "l m"]) -> Array:
    """`without`, but zero for what is in the span to within rounding."""
    rest = without(basis, columns)
    before, after = (jnp.sum(v**2, axis=1, keepdims=True) for v in (columns, rest))
    return jnp.where(after <= 1e-16 * before, 0, rest)


def project(columns: Float[Array, "l m"], y: Values) -> tuple[Array, Array]:
    """Linear least squares.

    Returns:
        The coefficients of the columns, zero for one that depends on those before it,
        and the sum of squares that remains; infinite if a column is not finite.
    """
    finite = jnp.all(jnp.isfinite(columns))
    columns = jnp.where(jnp.isfinite(columns), columns, 0)
    basis = orthonormal(columns)
    triangle, images = jnp.matmul(basis, columns.T), jnp.matmul(basis, y)

    def substitute(back, coefficients):
        k = len(columns) - 1 - back
        pivot = triangle[k, k]
        value = images[k] - jnp.sum(triangle[k] * coefficients)
        value = jnp.where(pivot == 0, 0, value / jnp.where(pivot == 0, 1, pivot))
        return coefficients.at[k].set(value)

    zeros = jnp.zeros_like(images)
    coefficients = lax.fori_loop(0, len(columns), substitute, zeros)
    left = jnp.sum((y - jnp.matmul(images, basis)) ** 2)
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


def only_valid(valid: Array) -> Array:
    """Indices of as many points, of the valid ones alone and each about as often."""
    number = jnp.cumsum(valid)
    turn = jnp.arange(len(valid)) * number[-1] // len(valid)
    return jnp.minimum(jnp.searchsorted(number, turn + 1), len(valid) - 1)


def with_known(candidates: dict[str, Array], known) -> dict[str, Array]:
    """Candidates in which some parameters have the values that are known."""
    return {
        name: jnp.full(jnp.shape(values), known[name]) if name in known else values
        for name, values in candidates.items()
    }


def best_of(
    columns_of: Callable[..., Sequence[Values]],
    rest: Remainder,
    candidates: Mapping[str, ArrayLike],
    limits: Sequence[tuple[float, float]] = (),
) -> tuple[dict[str, Array], Array]:
    """The candidate whose columns leave least of y, and its linear coefficients.

    Args:
        columns_of: (x, **candidate) -> columns (m,).
        candidates: vectors (K,) by name; none for a model that is linear.
        limits: (lower, upper) of each coefficient; a candidate outside is left out.
    """
    y = rest.orthogonal

    def one(candidate):
        columns = jnp.stack(columns_of(rest.x, **candidate)) * rest.factor
        coefficients, left = project(beside(rest.basis, columns), y)
        for value, (lower, upper) in zip(coefficients, limits, strict=False):
            left = jnp.where((value < lower) | (value > upper), jnp.inf, left)
        return coefficients, left

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
        return model.starts(x, jnp.ravel(y), known)
    x, y = flat_coordinates(x, y), jnp.ravel(y)
    if valid is not None:
        flags = [jnp.ravel(valid), *map(jnp.isfinite, jax.tree.leaves(x))]
        index = only_valid(functools.reduce(jnp.logical_and, flags))
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
