"""Guesses for data as they come: in any shape and order, with gaps, one or a batch."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._numpy.either import argsort, is_numpy, xp
from jaxfit._programs.compiled import compiled
from jaxfit._programs.host import double_precision
from jaxfit._scipy.arguments import coordinates, real_points
from jaxfit.models._model import DEFAULT_START, Model

FAR = 10  # times the data's range: from there on x = 0 is far away
# Guesses for a model that NumPy makes before a program is compiled, which takes as
# long; peaks beside each other count more, and so do many points.
GUESSES_IN_NUMPY = 400
MANY_POINTS = 4000
MODELS = 256  # of which is known how much was done


def guessed(model: Model, x: PyTree, y: Any) -> dict[str, Any]:
    """`Model.guess`: a start from data, by name."""
    y, x = jax.tree.map(np.ma.getdata, (real_points(y, "y"), coordinates(x)))
    origin, ones = far_middle(x), dict.fromkeys(model.names, 1.0)
    with double_precision(model):
        if origin is not None and model.moved(ones, origin) is None:
            origin = None
        about = x if origin is None else x - origin
        number = math.prod(batch_shape(x, y))
        if is_for_numpy(model, number, y.size // max(number, 1)):
            start = guess_in_numpy(model, about, y)
        else:
            start = compiled(guess, model, about, y)
        if origin is not None:
            with np.errstate(all="ignore"):
                start = start | (model.moved(start, -origin) or {})
    return {name: np.asarray(start[name])[()] for name in model.names}


def far_middle(x: PyTree) -> np.float64 | None:
    """The middle of the data's x, where x = 0 is far off; else None."""
    if not isinstance(x, np.ndarray) or not (finite := x[np.isfinite(x)]).size:
        return None
    low, high = finite.min(), finite.max()
    middle = 0.5 * low + 0.5 * high
    return np.float64(middle) if abs(middle) > FAR * (high - low) else None


# One data set, or a batch


def start_from(
    model: Model,
    x: PyTree,
    y: Float[Any, "*shape"],
    valid: Bool[Any, "*shape"] | None,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """The start of a model for one data set in the shapes of the user's.

    Args:
        valid: false for points that are to be ignored.
        known: values by name that are given, and need no guess.
    """
    if not model.starts_from_data:
        return model.guessed_start(x, xp.ravel(y), known)
    x, y = flat_coordinates(x, y), xp.ravel(y)
    if valid is not None:
        flags = [xp.ravel(valid), *map(xp.isfinite, jax.tree.leaves(x))]
        counts = functools.reduce(xp.logical_and, flags)
        index = np.flatnonzero(counts) if is_numpy(counts) else _only_valid(counts)
        if not len(index):
            return dict.fromkeys(model.names, np.float64(DEFAULT_START))
        x, y = jax.tree.map(lambda leaf: leaf[index], (x, y))
    if not isinstance(x, tuple):
        order = argsort(x)
        x, y = x[order], y[order]
    return {
        name: xp.where(xp.isfinite(value), value, DEFAULT_START)
        for name, value in model.guessed_start(x, y, known).items()
    }


def flat_coordinates(x: PyTree, y: Float[Any, "..."]) -> Any:
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


def _only_valid(valid: Bool[Any, " m"]) -> Int[Any, " m"]:
    """Indices of as many points, of the valid ones alone and each about as often."""
    number = xp.cumsum(valid)
    turn = xp.arange(len(valid)) * number[-1] // len(valid)
    return xp.minimum(xp.searchsorted(number, turn + 1), len(valid) - 1)


def guess(model: Model, x: PyTree, y: Float[Array, "..."]) -> dict[str, Array]:
    """`Model.guess` of one data set or of a batch; traced."""
    one = functools.partial(start_from, model, known={})
    batch = batch_shape(x, y)
    for _ in batch:
        one = jax.vmap(one, in_axes=(None, 0, 0))
    starts = one(x, y, jnp.isfinite(y))
    return {name: jnp.broadcast_to(value, batch) for name, value in starts.items()}


def guess_in_numpy(
    model: Model, x: PyTree, y: Float[np.ndarray, "..."]
) -> dict[str, np.ndarray]:
    """Guesses one after the other."""
    batch = batch_shape(x, y)
    curves = y.reshape(-1, *y.shape[len(batch) :])
    with np.errstate(all="ignore"):
        starts = [start_from(model, x, one, np.isfinite(one), {}) for one in curves]
    return {
        name: np.array([np.asarray(one[name]) for one in starts]).reshape(batch)
        for name in model.names
    }


def batch_shape(x: PyTree, y: Any) -> tuple[int, ...]:
    """The leading axes of y beyond those of the coordinates."""
    axes = x if isinstance(x, (tuple, list)) else (x,)
    trailing = np.broadcast_shapes(*(np.shape(axis) for axis in axes))
    return y.shape[: max(y.ndim - len(trailing), 0)]


# NumPy or a program


class Tally:
    """How much was done for each model without a program that costs time first."""

    def __init__(self) -> None:
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


guesses_made = Tally()


def is_for_numpy(model: Model, number: int, points: int) -> bool:
    """Whether to guess without a program, as long as so many guesses do not pay one."""
    if not (model.starts_from_data and model.starts_in_numpy):
        return not model.starts_from_data
    peaks = sum(part.is_peak for part in model.parts)
    cost = max(3 * peaks - 2, 1) * (1 + points // MANY_POINTS)
    return guesses_made.holds(model, number * cost, GUESSES_IN_NUMPY)
