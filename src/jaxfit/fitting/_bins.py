"""Data that are counts of bins: from the edges of bins to coordinates, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from jaxfit._scipy.arguments import real_array
from jaxfit.models import Model
from jaxfit.models._binned import Binned

Edges = tuple[Float[np.ndarray, " _"], ...]


class Bins(NamedTuple):
    """A model over bins, and their coordinates."""

    model: Binned
    x: tuple[np.ndarray, ...]  # lower and upper edges, for each coordinate


def bins_of(model: Model, x: Any, y: Any, edges: Any, sigma_x: Any) -> Bins:
    """The model over the bins of y, checked.

    Args:
        y: data, with the bins as their last axes.
    """
    if y is None:
        raise TypeError("y is missing. Give fit(model, y=counts, edges=edges).")
    if x is not None:
        raise TypeError(
            "x is given beside edges, which say where the bins are. Leave x out: "
            "fit(model, y=counts, edges=edges)."
        )
    if sigma_x is not None:
        raise ValueError(
            "sigma_x is given beside edges, which are exact. Give x for points that "
            "may move."
        )
    sides = checked_edges(edges)
    shape, bins = _shape(y), tuple(len(side) - 1 for side in sides)
    if shape[max(len(shape) - len(bins), 0) :] != bins:
        raise ValueError(
            f"edges are of {_product(bins)} bins, and y has the shape {shape}. Give "
            "one edge more than there are values, for several coordinates a tuple of "
            "edges, one for each axis of y."
        )
    return Bins(Binned(model), coordinates_of(sides))


def _shape(y: Any) -> tuple[int, ...]:
    try:
        return np.shape(y)
    except ValueError as error:
        raise ValueError(
            "y is a list of arrays of different shapes, and edges are those of one "
            "data set. Fit the model to each, or sum up bins that are the same."
        ) from error


def checked_edges(edges: Any) -> Edges:
    """Vectors of edges, one for each coordinate."""
    is_several = isinstance(edges, (tuple, list)) and all(
        np.ndim(side) == 1 for side in edges
    )
    sides = tuple(edges) if is_several and len(edges) else (edges,)
    return tuple(_checked(side) for side in sides)


def _checked(side: Any) -> Float[np.ndarray, " _"]:
    if np.asarray(side).dtype.kind in "mM":
        raise TypeError("edges are dates; give numbers, such as days since a date.")
    edges = np.asarray(real_array(side, "edges"), float)
    if edges.ndim != 1 or len(edges) < 2:
        raise ValueError(
            f"edges have the shape {edges.shape}; give a vector of at least two, or a "
            "tuple of such, one for each axis of y."
        )
    if not np.isfinite(edges).all():
        raise ValueError("edges have NaN or infinite values; give finite numbers.")
    steps = np.diff(edges)
    if not (steps > 0).all():
        k = int(np.argmin(steps > 0))
        raise ValueError(
            f"edges do not increase: {edges[k]:g} comes before {edges[k + 1]:g}, at "
            f"index {k}. Sort the bins, and their values likewise."
        )
    return edges


def _product(bins: Sequence[int]) -> str:
    return " x ".join(map(str, bins))


def coordinates_of(sides: Edges) -> tuple[np.ndarray, ...]:
    """The lower and upper edges of bins, which broadcast to their shape."""
    x = []
    for k, side in enumerate(sides):
        shape = [-1 if axis == k else 1 for axis in range(len(sides))]
        x += [side[:-1].reshape(shape), side[1:].reshape(shape)]
    return tuple(x)


def edges_of(x: Sequence[np.ndarray]) -> Edges:
    """`coordinates_of` undone."""
    pairs = zip(x[::2], x[1::2], strict=True)
    return tuple(np.append(np.ravel(lo), np.ravel(up)[-1]) for lo, up in pairs)


def middles(model: Model, x: PyTree) -> Any:
    """Where points are drawn: x, or the middles of bins."""
    if not is_binned(model):
        return x
    each = tuple(0.5 * (lo + up) for lo, up in zip(x[::2], x[1::2], strict=True))
    return each[0] if len(each) == 1 else each


def is_binned(model: Model) -> bool:
    """Whether a model's x is that of bins."""
    return isinstance(model, Binned)


def in_bins(edges: Any) -> tuple[np.ndarray, ...]:
    """Edges of the user's as coordinates."""
    return coordinates_of(checked_edges(edges))
