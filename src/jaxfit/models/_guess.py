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
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxfit.models._either import argsort, array_like, is_numpy, put, repeated, xp

if TYPE_CHECKING:
    from jaxfit.models._model import Model

Values = Float[Array, " m"]

FAR = 10  # times the data's range: from there on x = 0 is far away
# Guesses for a model that NumPy makes before a program is compiled, which takes as
# long; peaks beside each other count more, and so do many points.
GUESSES_IN_NUMPY = 400
MANY_POINTS = 4000
MODELS = 256  # of which is known how much was done
IN_CACHE = 2**16  # numbers of candidates' columns at a time, in NumPy
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
    return Remainder(x, y, xp.zeros((0, len(y)), y.dtype), xp.ones_like(y))


def orthonormal(columns: Float[Array, "*k q m"]) -> Float[Array, "*k q m"]:
    """An orthonormal basis of the rows' span: modified Gram-Schmidt, done twice.

    A row that depends on those before it, or is not finite, becomes zero.
    """

    def add(k, basis):
        column = columns[..., k, :]
        finite = xp.all(xp.isfinite(column), axis=-1, keepdims=True)
        column = xp.where(finite, column, 0)
        size = xp.max(xp.abs(column), axis=-1, keepdims=True)
        column = column / xp.where(size > 0, size, 1)
        before = xp.sqrt(xp.sum(column**2, axis=-1, keepdims=True))
        column = without(basis, without(basis, column[..., None, :]))[..., 0, :]
        length = xp.sqrt(xp.sum(column**2, axis=-1, keepdims=True))
        counts = length > 1e-10 * before
        column = xp.where(counts, column, 0) / xp.where(counts, length, 1)
        return put(basis, (..., k, slice(None)), column)

    number = columns.shape[-2]
    if number == 0:
        return columns
    return repeated(columns, number, add, xp.zeros_like(columns))


def without(basis: Float[Array, "*k q m"], values: Float[Array, "*k l m"]) -> Array:
    """Values less their part in the span of an orthonormal basis."""
    return values - xp.matmul(xp.matmul(values, xp.swapaxes(basis, -1, -2)), basis)


def beside(basis: Float[Array, "q m"], columns: Float[Array, "*k l m"]) -> Array:
    """`without`, but zero for what is in the span to within rounding."""
    rest = without(basis, columns)
    before, after = (xp.sum(v**2, axis=-1, keepdims=True) for v in (columns, rest))
    return xp.where(after <= 1e-16 * before, 0, rest)


def project(columns: Float[Array, "*k l m"], y: Values) -> tuple[Array, Array]:
    """Linear least squares.

    Returns:
        The coefficients of the columns, zero for one that depends on those before it,
        and the sum of squares that remains; infinite if a column is not finite.
    """
    finite = xp.all(xp.isfinite(columns), axis=(-2, -1))
    columns = xp.where(xp.isfinite(columns), columns, 0)
    basis, number = orthonormal(columns), columns.shape[-2]
    triangle = xp.matmul(basis, xp.swapaxes(columns, -1, -2))
    images = xp.matmul(basis, y)

    def substitute(back, coefficients):
        k = number - 1 - back
        pivot = triangle[..., k, k]
        value = images[..., k] - xp.sum(triangle[..., k, :] * coefficients, axis=-1)
        value = xp.where(pivot == 0, 0, value / xp.where(pivot == 0, 1, pivot))
        return put(coefficients, (..., k), value)

    zeros = xp.zeros_like(images)
    coefficients = repeated(columns, number, substitute, zeros)
    along = xp.matmul(images[..., None, :], basis)[..., 0, :]
    left = xp.sum((y - along) ** 2, axis=-1)
    return coefficients, xp.where(finite, left, np.inf)


def grid(**axes: ArrayLike) -> dict[str, Array]:
    """All combinations of some values, as equally long vectors."""
    mesh = xp.meshgrid(*axes.values(), indexing="ij")
    return {name: m.ravel() for name, m in zip(axes, mesh, strict=True)}


def extent(x: Values) -> tuple[Array, Array]:
    """The least x and the range, of at least a tiny number."""
    low, high = xp.min(x), xp.max(x)
    return low, xp.maximum(high - low, 1e-12 * xp.maximum(xp.abs(high), 1e-300))


def smooth(y: Values, part: int = 24) -> Values:
    """A moving average over a part of the points, of one point at least."""
    half = len(y) // part // 2
    if half == 0:
        return y
    padded = xp.concatenate([xp.full(half, y[0]), y, xp.full(half, y[-1])])
    sums = xp.cumsum(xp.concatenate([xp.zeros_like(y[:1]), padded]))
    return (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)


def peak(x: Values, y: Values) -> tuple[Array, Array]:
    """Centre and full width at half maximum of the largest peak or dip.

    Args:
        x: ascending.
        y: with a baseline of about zero.
    """
    m = len(y)
    smoothed = smooth(y)
    top = xp.argmax(xp.abs(smoothed))
    upright = smoothed * xp.sign(smoothed[top])
    index = xp.arange(m)
    low = upright < 0.5 * upright[top]
    left = xp.max(xp.where(low & (index < top), index, -1))
    right = xp.min(xp.where(low & (index > top), index, m))
    left_half = x[top] - x[xp.maximum(left, 0)]
    right_half = x[xp.minimum(right, m - 1)] - x[top]
    # a flank beyond the data is as wide as the other
    left_half = xp.where(left < 0, xp.maximum(right_half, left_half), left_half)
    right_half = xp.where(right == m, xp.maximum(left_half, right_half), right_half)
    least = extent(x)[1] / max(m - 1, 1)
    return x[top], xp.maximum(left_half + right_half - least, least)


def only_valid(valid: Array) -> Array:
    """Indices of as many points, of the valid ones alone and each about as often."""
    number = xp.cumsum(valid)
    turn = xp.arange(len(valid)) * number[-1] // len(valid)
    return xp.minimum(xp.searchsorted(number, turn + 1), len(valid) - 1)


def with_known(candidates: dict[str, Array], known) -> dict[str, Array]:
    """Candidates in which some parameters have the values that are known."""
    return {
        name: xp.full(xp.shape(values), known[name]) if name in known else values
        for name, values in candidates.items()
    }


def best_of(
    columns_of: Callable[..., Sequence[Values]],
    rest: Remainder,
    candidates: Mapping[str, ArrayLike],
    limits: Sequence[tuple[float, float]] = (),
) -> tuple[dict[str, Any], Any]:
    """The candidate whose columns leave least of y, and its linear coefficients.

    Args:
        columns_of: (x, **candidate) -> columns (m,).
        candidates: vectors (K,) by name; none for a model that is linear.
        limits: (lower, upper) of each coefficient; a candidate outside is left out.
    """
    y = rest.orthogonal

    def judged(columns):
        columns = columns * rest.factor
        coefficients, left = project(beside(rest.basis, columns), y)
        for k, (lower, upper) in enumerate(limits):
            value = coefficients[..., k]
            left = xp.where((value < lower) | (value > upper), np.inf, left)
        return coefficients, xp.where(xp.isfinite(left), left, np.inf)

    def columns(candidate):
        own = xp.broadcast_arrays(rest.factor, *columns_of(rest.x, **candidate))
        return xp.stack(own[1:], axis=-2)

    if not candidates:
        return {}, judged(columns({}))[0]
    if is_numpy(y, *candidates.values()):
        # by broadcasting, so many at a time as a cache holds
        along = {name: np.asarray(v)[:, None] for name, v in candidates.items()}
        number = len(next(iter(along.values())))
        size = max(1, IN_CACHE // y.size)
        found = [
            judged(columns({name: v[k : k + size] for name, v in along.items()}))
            for k in range(0, number, size)
        ]
        coefficients, left = map(np.concatenate, zip(*found, strict=True))
    else:
        coefficients, left = judged(jax.vmap(columns)(candidates))
    best = xp.argmin(left)
    chosen = {name: array_like(y, values)[best] for name, values in candidates.items()}
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
) -> dict[str, Any]:
    """`starts` for one data set in the shapes of the user's.

    Args:
        valid: of the shape of y, false for points that are to be ignored.
        known: values by name that are given, and need no guess.
    """
    if not model.starts_from_data:
        return model.starts(x, xp.ravel(y), known)
    x, y = flat_coordinates(x, y), xp.ravel(y)
    if valid is not None:
        flags = [xp.ravel(valid), *map(xp.isfinite, jax.tree.leaves(x))]
        counts = functools.reduce(xp.logical_and, flags)
        index = np.flatnonzero(counts) if is_numpy(counts) else only_valid(counts)
        if not len(index):
            return dict.fromkeys(model.names, np.float64(DEFAULT_START))
        x, y = jax.tree.map(lambda leaf: leaf[index], (x, y))
    if not isinstance(x, tuple):
        order = argsort(x)
        x, y = x[order], y[order]
    return {
        name: xp.where(xp.isfinite(value), value, DEFAULT_START)
        for name, value in model.starts(x, y, known).items()
    }


class Tally:
    """How much was done for each model without a program that costs time first."""

    def __init__(self):
        self._done: dict[Any, int] = {}

    def holds(self, model: Any, amount: int, most: int) -> bool:
        """Whether so much more is not too much in all, and then notes it."""
        try:
            done = self._done.get(model, 0) + amount
        except TypeError:  # a model that holds arrays has no hash
            model = type(model)
            done = self._done.get(model, 0) + amount
        if done <= most:
            while len(self._done) >= MODELS:
                del self._done[next(iter(self._done))]
            self._done[model] = done
        return done <= most


guessed = Tally()


def is_for_numpy(model: "Model", number: int, points: int) -> bool:
    """Whether to guess without a program, as long as so many guesses do not pay one."""
    if not (model.starts_from_data and model.starts_in_numpy):
        return not model.starts_from_data
    peaks = sum(part.is_peak for part in model.parts)
    each = max(3 * peaks - 2, 1) * (1 + points // MANY_POINTS)
    return guessed.holds(model, number * each, GUESSES_IN_NUMPY)


def flat_coordinates(x: PyTree, y: Array) -> Any:
    """One vector for each coordinate, each as long as y."""
    if isinstance(x, (tuple, list)):
        return tuple(xp.ravel(xp.broadcast_to(axis, y.shape)) for axis in x)
    if not hasattr(x, "shape") or x.shape == y.shape:
        return xp.ravel(x)
    if x.shape[1:] == y.shape:
        return tuple(xp.ravel(axis) for axis in x)
    raise ValueError(
        f"x has the shape {x.shape} and y {y.shape}; give x of the shape of y, or a "
        "tuple of arrays that broadcast to it, one for each coordinate."
    )


def guess(model: "Model", x: PyTree, y: Array) -> dict[str, Array]:
    """`Model.guess` of one data set or of a batch; traced."""
    one = functools.partial(start_from, model, known={})
    batch = batch_shape(x, y)
    for _ in batch:
        one = jax.vmap(one, in_axes=(None, 0, 0))
    found = one(x, y, jnp.isfinite(y))
    return {k: jnp.broadcast_to(v, batch) for k, v in found.items()}


def guess_in_numpy(model: "Model", x: PyTree, y: np.ndarray) -> dict[str, np.ndarray]:
    """The same, one after the other."""
    batch = batch_shape(x, y)
    curves = y.reshape(-1, *y.shape[len(batch) :])
    with np.errstate(all="ignore"):
        found = [start_from(model, x, one, np.isfinite(one), {}) for one in curves]
    return {
        name: np.array([np.asarray(one[name]) for one in found]).reshape(batch)
        for name in model.names
    }


def batch_shape(x: PyTree, y: Any) -> tuple[int, ...]:
    """The leading axes of y beyond those of the coordinates."""
    axes = x if isinstance(x, (tuple, list)) else (x,)
    trailing = np.broadcast_shapes(*(np.shape(axis) for axis in axes))
    return y.shape[: max(y.ndim - len(trailing), 0)]
