"""What an index means to NumPy: which part of an array, and whether it is a view."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.memory import Value
from jaxfit._numpy.needs import NeedsHost, require
from jaxfit._numpy.values import fitted, is_known, put, stand_in

Index = Any


def is_view(index: Index) -> bool:
    """Whether NumPy gives a view: of whole numbers, slices, None and `...` alone."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None
        or part is Ellipsis
        or isinstance(part, slice)
        or (hasattr(part, "__index__") and not isinstance(part, (bool, np.ndarray)))
        for part in parts
    )


def is_number(index: Index, shape: tuple[int, ...]) -> bool:
    """Whether NumPy gives a number, and not an array.

    Raises:
        IndexError: if there is nothing in an array of this shape.
    """
    parts = index if isinstance(index, tuple) else (index,)
    has_ellipsis = any(part is Ellipsis for part in parts)
    return np.ndim(stand_in(shape)[index]) == 0 and not has_ellipsis


def at_traced(value: Value, index: Index) -> jax.Array:
    """What is at places that are traced; NaN at places outside, an error to NumPy."""
    if np.dtype(value.dtype).kind not in "fc":  # which have no NaN
        places = np.arange(value.size).reshape(value.shape)
        inside = jnp.asarray(places).at[index].get(mode="fill", fill_value=-1) >= 0
        require(jnp.all(inside))
    return jnp.asarray(value).at[index].get(mode="fill")


def written(whole: Value, index: Index, part: Value) -> Value:
    """The array after `whole[index] = part`.

    Raises:
        IndexError, ValueError: as NumPy does.
        NeedsHost: if what NumPy would write where cannot be told.
    """
    if not is_known(index):
        raise NeedsHost("it writes to places that are computed from a parameter")
    target = stand_in(whole.shape)[index]
    fit = fitted(part, np.shape(target), whole.dtype)
    if not is_known([whole, fit]) and np.size(part) > 1 and not is_view(index):
        places = np.arange(whole.size).reshape(whole.shape)[index]
        if np.unique(places).size < places.size:
            raise NeedsHost("it writes to the same place twice, `y[[0, 0]] = a, b`")
    return put(whole, fit, index)
