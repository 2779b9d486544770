"""Values: arrays of JAX, or of NumPy where they depend on nothing that is traced."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.memory import Value
from jaxfit._numpy.needs import NeedsHost


def is_known(values: Any) -> bool:
    """Whether no array of JAX is among them, in lists and dictionaries neither."""
    if isinstance(values, jax.Array):
        return False
    if isinstance(values, (list, tuple)):
        return all(map(is_known, values))
    return all(map(is_known, values.values())) if isinstance(values, dict) else True


WIDE = {np.dtype(kind) for kind in (float, complex, np.int64)}  # JAX agrees with NumPy


def alike(value: Any, parts: Any) -> Any:
    """A list or tuple of its kind, with other parts."""
    return value._make(parts) if hasattr(value, "_make") else type(value)(parts)


def cast(value: Value, dtype: Any) -> Value:
    """The value in another dtype, by NumPy's rules: what does not fit is cut off."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufc" or dtype.char in "gG":
        raise NeedsHost(f"it computes with numbers of the dtype {dtype}")
    if is_known(value):
        value = np.asarray(value)
        if value.dtype.kind == "c" and dtype.kind in "iuf":
            value = value.real
        return value if value.dtype == dtype else value.astype(dtype)
    if value.dtype == dtype:
        return value
    if np.dtype(value.dtype).kind == "c" and dtype.kind in "iuf":
        value = jnp.real(value)
    return value.astype(dtype)


def put(whole: Value, part: Value, index: Any) -> Value:
    """The whole with another part at an index."""
    if not is_known([whole, part]):
        return jnp.asarray(whole).at[index].set(part)
    whole = whole.copy()
    whole[index] = part
    return whole


def stacked(parts: list[Value]) -> Value:
    """Arrays and numbers of one shape as one array, in NumPy's dtype."""
    arrays = [np.asarray(part) if is_known(part) else part for part in parts]
    dtype = np.result_type(*(np.dtype(array.dtype) for array in arrays))
    return jnp.stack([cast(array, dtype) for array in arrays])


def stand_in(shape: Iterable[int]) -> np.ndarray:
    """An array of this shape without memory, to ask NumPy what an index does."""
    return np.broadcast_to(np.False_, tuple(shape))


def fitted(value: Value, shape: tuple[int, ...], dtype: Any) -> Value:
    """The value as NumPy puts it into an array of this shape and dtype.

    Raises:
        ValueError: if it does not fit.
    """
    value = cast(value, dtype)
    extra = value.ndim - len(shape)
    if extra > 0 and all(size == 1 for size in value.shape[:extra]):
        value = value.reshape(value.shape[extra:])
    if value.shape == shape:
        return value
    return (np if is_known(value) else jnp).broadcast_to(value, shape)
