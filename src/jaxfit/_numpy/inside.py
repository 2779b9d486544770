"""The values inside of what a user's function hands to NumPy."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.asked import Asked, Uncounted
from jaxfit._numpy.indices import Index
from jaxfit._numpy.memory import Value
from jaxfit._numpy.needs import NeedsHost
from jaxfit._numpy.tables import SEQUENCES
from jaxfit._numpy.values import alike, is_known, stacked

LONG = 4096  # objects that become an array again


def raw(value: Any) -> Any:
    """The value inside, in lists, tuples and dictionaries too."""
    if isinstance(value, Asked):
        return value._cell.read()
    if isinstance(value, Uncounted):
        value.refuse("uses elements picked by a condition on a parameter as an array")
    if isinstance(value, np.ndarray):
        return _of_objects(value) if _is_of_objects(value) else value
    if isinstance(value, (list, tuple)):
        return alike(value, map(raw, value))
    return {k: raw(v) for k, v in value.items()} if type(value) is dict else value


def as_array(value: Any) -> Any:
    """The value inside, where a list is an array."""
    if not isinstance(value, (list, tuple)):
        return raw(value)
    parts = [as_array(part) for part in value]
    return np.asarray(parts) if is_known(parts) else stacked(parts)


def is_choice(index: Index) -> bool:
    """Whether it picks by a condition that is traced, so how many is not known."""
    if isinstance(index, tuple):
        return any(map(is_choice, index))
    if isinstance(index, Asked):
        value = raw(index)
        return not is_known(value) and value.dtype == bool
    return isinstance(index, Uncounted)


def as_index(index: Index) -> Index:
    """The index with the values inside."""
    if isinstance(index, tuple):
        return tuple(map(as_index, index))
    if isinstance(index, list):
        return as_array(index) if index else np.zeros(0, int)
    return raw(index)


def operand(function: Callable, value: Any) -> Any:
    """The argument of a function: a list is an array, or one of arrays."""
    if not isinstance(value, (list, tuple)) or not has_traced(value):
        return raw(value)
    if function is np.block:
        return raw(value)
    return [*map(as_array, value)] if function in SEQUENCES else as_array(value)


def has_traced(value: Any) -> bool:
    """Whether an array that speaks NumPy is in it, known or not."""
    if isinstance(value, (list, tuple)):
        return any(map(has_traced, value))
    return isinstance(value, Asked) or _is_of_objects(value)


def _is_of_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object


def _of_objects(array: np.ndarray) -> Value:
    """One array of the traced numbers that NumPy keeps as objects."""
    items = array.ravel().tolist()
    if not any(isinstance(thing, Asked) for thing in items):
        return array
    if all(thing is items[0] for thing in items):
        return jnp.broadcast_to(raw(items[0]), array.shape)
    if len(items) > LONG or any(np.ndim(thing) for thing in items):
        raise NeedsHost("it keeps arrays, or very many numbers, as objects of NumPy's")
    return as_array(items).reshape(array.shape)
