"""Variable projection: the best of a few candidates, with linear parameters solved for.

Most models are linear in some parameters (a height, an offset). Given the others these
follow from linear least squares, so that a start needs candidates for the others alone
(Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973, here on a grid). Everything is array
code of fixed shapes, for one curve or, under `vmap`, for a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxfit._numpy.either import (
    Scalar,
    Values,
    array_like,
    is_numpy,
    put,
    repeated,
    xp,
)

# Made once: annotations of inner functions are evaluated at each call.
Rows = Float[Any, "*k q m"]
Columns = Float[Any, "*k l m"]
Coefficients = Float[Any, "*k l"]

IN_CACHE = 2**16  # numbers of candidates' columns at a time, in NumPy


class Remainder(NamedTuple):
    """What is left of the data for one part of a model, and what stands beside it.

    The part's values are multiplied by `factor`. Beside it are the directions of
    `basis`, each with a coefficient of its own, so that the part is judged by what it
    explains of y at right angles to them.
    """

    x: PyTree
    y: Values  # without the other parts, as far as they are known
    basis: Float[Any, "q m"]  # orthonormal rows, or zeros
    factor: Values

    @property
    def orthogonal(self) -> Values:
        """y at right angles to the basis."""
        return without(self.basis, self.y)


def alone(x: PyTree, y: Values) -> Remainder:
    """The data for a model that has nothing beside it."""
    return Remainder(x, y, xp.zeros((0, len(y)), y.dtype), xp.ones_like(y))


# Linear least squares


def orthonormal(columns: Rows) -> Rows:
    """An orthonormal basis of the rows' span: modified Gram-Schmidt, done twice.

    A row that depends on those before it, or is not finite, becomes zero.
    """

    def add(k: Any, basis: Rows) -> Rows:
        # the row, of size one
        column = columns[..., k, :]
        finite = xp.all(xp.isfinite(column), axis=-1, keepdims=True)
        column = xp.where(finite, column, 0)
        size = xp.max(xp.abs(column), axis=-1, keepdims=True)
        column = column / xp.where(size > 0, size, 1)
        before = xp.sqrt(xp.sum(column**2, axis=-1, keepdims=True))

        # less what those before it span
        column = without(basis, without(basis, column[..., None, :]))[..., 0, :]
        length = xp.sqrt(xp.sum(column**2, axis=-1, keepdims=True))
        counts = length > 1e-10 * before
        column = xp.where(counts, column, 0) / xp.where(counts, length, 1)
        return put(basis, (..., k, slice(None)), column)

    number = columns.shape[-2]
    if number == 0:
        return columns
    return repeated(columns, number, add, xp.zeros_like(columns))


def without(
    basis: Float[Any, "*k q m"], values: Float[Any, "*l m"]
) -> Float[Any, "*l m"]:
    """Values less their part in the span of an orthonormal basis."""
    return values - xp.matmul(xp.matmul(values, xp.swapaxes(basis, -1, -2)), basis)


def beside(
    basis: Float[Any, "q m"], columns: Float[Any, "*k l m"]
) -> Float[Any, "*k l m"]:
    """`without`, but zero for what is in the span to within rounding."""
    rest = without(basis, columns)
    before, after = (xp.sum(v**2, axis=-1, keepdims=True) for v in (columns, rest))
    return xp.where(after <= 1e-16 * before, 0, rest)


class Projection(NamedTuple):
    """A linear least-squares solution."""

    coefficients: Coefficients  # zero for a column that depends on those before
    squares: Float[Any, "*k"]  # what remains of y; infinite if a column is not finite


def project(columns: Columns, y: Values) -> Projection:
    """y by columns, in the sense of least squares."""
    finite = xp.all(xp.isfinite(columns), axis=(-2, -1))
    columns = xp.where(xp.isfinite(columns), columns, 0)
    basis, number = orthonormal(columns), columns.shape[-2]
    triangle = xp.matmul(basis, xp.swapaxes(columns, -1, -2))
    images = xp.matmul(basis, y)

    def substitute(back: Any, coefficients: Coefficients) -> Any:
        k = number - 1 - back
        pivot = triangle[..., k, k]
        value = images[..., k] - xp.sum(triangle[..., k, :] * coefficients, axis=-1)
        value = xp.where(pivot == 0, 0, value / xp.where(pivot == 0, 1, pivot))
        return put(coefficients, (..., k), value)

    coefficients = repeated(columns, number, substitute, xp.zeros_like(images))
    along = xp.matmul(images[..., None, :], basis)[..., 0, :]
    squares = xp.sum((y - along) ** 2, axis=-1)
    return Projection(coefficients, xp.where(finite, squares, np.inf))


# Candidates


def with_known(
    candidates: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Candidates in which some parameters have the values that are known."""
    return {
        name: xp.full(xp.shape(values), known[name]) if name in known else values
        for name, values in candidates.items()
    }


class Best(NamedTuple):
    """The best candidate."""

    others: dict[str, Any]  # the candidate
    linear: Float[Any, " l"]  # the coefficients of its columns


def best_of(
    columns_of: Callable[..., Sequence[Values]],
    rest: Remainder,
    candidates: Mapping[str, Any],
    limits: Sequence[tuple[float, float]] = (),
) -> Best:
    """The candidate whose columns leave least of y, and its linear coefficients.

    Args:
        columns_of: (x, **candidate) -> columns (m,).
        candidates: vectors (K,) by name; none for a model that is linear.
        limits: (lower, upper) of each coefficient; a candidate outside is left out.
    """
    y = rest.orthogonal

    def judged(columns: Columns) -> Projection:
        projection = project(beside(rest.basis, columns * rest.factor), y)
        squares = projection.squares
        for k, (lower, upper) in enumerate(limits):
            value = projection.coefficients[..., k]
            squares = xp.where((value < lower) | (value > upper), np.inf, squares)
        squares = xp.where(xp.isfinite(squares), squares, np.inf)
        return projection._replace(squares=squares)

    def columns(candidate: Mapping[str, Any]) -> Columns:
        parts = columns_of(rest.x, **candidate)
        return xp.stack(xp.broadcast_arrays(rest.factor, *parts)[1:], axis=-2)

    if not candidates:
        return Best({}, judged(columns({})).coefficients)
    if is_numpy(y, *candidates.values()):
        # by broadcasting, so many at a time as a cache holds
        along = {name: np.asarray(v)[:, None] for name, v in candidates.items()}
        number = len(next(iter(along.values())))
        size = max(1, IN_CACHE // y.size)
        blocks = [
            judged(columns({name: v[k : k + size] for name, v in along.items()}))
            for k in range(0, number, size)
        ]
        projections = Projection(*map(np.concatenate, zip(*blocks, strict=True)))
    else:
        projections = judged(jax.vmap(columns)(candidates))
    best = xp.argmin(projections.squares)
    others = {name: array_like(y, values)[best] for name, values in candidates.items()}
    return Best(others, projections.coefficients[best])


# What candidates are made of


def grid(**axes: Any) -> dict[str, Float[Any, " k"]]:
    """All combinations of some values, as equally long vectors."""
    mesh = xp.meshgrid(*axes.values(), indexing="ij")
    return {name: m.ravel() for name, m in zip(axes, mesh, strict=True)}


class Extent(NamedTuple):
    """The range of some coordinates."""

    low: Scalar
    span: Scalar  # at least a tiny number


def extent(x: Values) -> Extent:
    """The least x and the range, of at least a tiny number."""
    low, high = xp.min(x), xp.max(x)
    least = 1e-12 * xp.maximum(xp.abs(high), 1e-300)
    return Extent(low, xp.maximum(high - low, least))


def smooth(y: Values, part: int = 24) -> Values:
    """A moving average over a part of the points, of one point at least."""
    half = len(y) // part // 2
    if half == 0:
        return y
    padded = xp.concatenate([xp.full(half, y[0]), y, xp.full(half, y[-1])])
    sums = xp.cumsum(xp.concatenate([xp.zeros_like(y[:1]), padded]))
    return (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)


class Hump(NamedTuple):
    """A peak or dip."""

    center: Scalar
    fwhm: Scalar


def largest_hump(x: Values, y: Values) -> Hump:
    """Centre and full width at half maximum of the largest peak or dip.

    Args:
        x: ascending.
        y: with a baseline of about zero.
    """
    m = len(y)
    smoothed = smooth(y)
    top = xp.argmax(xp.abs(smoothed))
    upright = smoothed * xp.sign(smoothed[top])

    # the points about the top at which half of it is left
    index = xp.arange(m)
    low = upright < 0.5 * upright[top]
    left = xp.max(xp.where(low & (index < top), index, -1))
    right = xp.min(xp.where(low & (index > top), index, m))
    left_half = x[top] - x[xp.maximum(left, 0)]
    right_half = x[xp.minimum(right, m - 1)] - x[top]

    # a flank beyond the data is as wide as the other
    left_half = xp.where(left < 0, xp.maximum(right_half, left_half), left_half)
    right_half = xp.where(right == m, xp.maximum(left_half, right_half), right_half)
    least = extent(x).span / max(m - 1, 1)
    return Hump(x[top], xp.maximum(left_half + right_half - least, least))
