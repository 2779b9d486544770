"""NumPy's functions that make arrays, of which a traced value can be a part.

`np.zeros(n)` is not dispatched: NumPy makes memory of its own, into which nothing that
is traced can be written. These make the same array, known, which can become traced.
"""

import functools
import itertools
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxfit._numpy.asked import Uncounted
from jaxfit._numpy.inside import as_array, has_traced
from jaxfit._numpy.memory import Owner, Value
from jaxfit._numpy.needs import NeedsHost, step
from jaxfit._numpy.traced import Traced, wrapped
from jaxfit._numpy.values import cast, fitted, is_known


def _writable(function: Callable) -> Callable:
    """The function, which returns an array that can become traced."""

    @functools.wraps(function)
    def made(*arguments: Any, **keywords: Any) -> Any:
        array = function(*arguments, **keywords)
        return wrapped(array) if type(array) is np.ndarray else array

    return made


def _owned(value: Value, dtype: Any) -> Any:
    """An array of its own, with this value in a dtype."""
    if is_known(value):
        return wrapped(np.array(value, dtype))
    dtype = np.dtype(value.dtype if dtype is None else dtype)
    is_cut = np.dtype(value.dtype).kind == "f" and dtype.kind in "iu"
    if not (is_cut or np.can_cast(value.dtype, dtype, "same_kind")):
        raise NeedsHost(f"it makes an array of the dtype {dtype} of {value.dtype}")
    return Traced(Owner(cast(value, dtype)))


def _array(
    given: Any,
    dtype: Any = None,
    *,
    copy: bool | None = True,
    order: Any = "K",
    ndmin: int = 0,
    **settings: Any,
) -> Any:
    """np.array."""
    if isinstance(given, Uncounted):
        kept: Any = given
        return kept.astype(kept.dtype if dtype is None else dtype, copy=bool(copy))
    if not has_traced(given):
        array = np.array(given, dtype, copy=copy, order=order, ndmin=ndmin, **settings)
        is_window = type(given) is np.ndarray and np.may_share_memory(array, given)
        return array if is_window or type(array) is not np.ndarray else wrapped(array)
    if isinstance(given, (list, tuple)):
        step(len(given))
    value = as_array(given)
    extra = (1,) * (ndmin - np.ndim(value))
    if type(given) is Traced and not (copy or given._is_scalar or extra):
        if dtype is None or np.dtype(dtype) == value.dtype:
            return given
    return _owned(value.reshape(extra + np.shape(value)), dtype)


def _as_array(a: Any, dtype: Any = None, order: Any = "K", **settings: Any) -> Any:
    """np.asarray."""
    return _array(a, dtype, **{"copy": None, "order": order or "K"} | settings)


def _contiguous(a: Any, dtype: Any = None, **_: Any) -> Any:
    """np.ascontiguousarray."""
    return _array(a, dtype, copy=None, order="C", ndmin=1)


def _full(
    shape: Any, fill_value: Any, dtype: Any = None, order: Any = "C", **_: Any
) -> Any:
    """np.full."""
    value = as_array(fill_value)
    if is_known(value):
        return wrapped(np.full(shape, value, dtype))
    whole = _owned(value, dtype)
    return Traced(Owner(fitted(whole._cell.read(), np.empty(shape).shape, whole.dtype)))


def _full_like(
    a: Any,
    fill_value: Any,
    dtype: Any = None,
    order: Any = "K",
    subok: bool = True,
    shape: Any = None,
) -> Any:
    """np.full_like."""
    like = _array(a, copy=None)
    shape = like.shape if shape is None else shape
    return _full(shape, fill_value, like.dtype if dtype is None else dtype)


def _from_iter(items: Iterable, dtype: Any, count: int = -1, **_: Any) -> Any:
    """np.fromiter."""
    return _array([*itertools.islice(items, None if count < 0 else count)], dtype)


_NAMES = (  # of those that return memory of their own
    "zeros ones eye identity tri arange linspace logspace geomspace zeros_like "
    "ones_like copy concatenate stack hstack vstack column_stack tile repeat outer"
)
CREATORS: dict[str, Callable] = {
    **{name: _writable(getattr(np, name)) for name in _NAMES.split()},
    "empty": _writable(np.zeros),  # what is in it is the same in each trace
    "empty_like": _writable(np.zeros_like),
    "array": _array,
    "asarray": _as_array,
    "asanyarray": _as_array,
    "ascontiguousarray": _contiguous,
    "full": _full,
    "full_like": _full_like,
    "fromiter": _from_iter,
}
NUMPY = types.ModuleType(np.__name__)  # with these in place of NumPy's own
vars(NUMPY).update({**vars(np), **CREATORS})
