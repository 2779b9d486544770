"""What functions of NumPy do with elements that a traced condition picks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.calls import call_function
from jaxfit._numpy.inside import as_array
from jaxfit._numpy.memory import Value
from jaxfit._numpy.needs import require
from jaxfit._numpy.picked import Picked, beside, operand, shielded
from jaxfit._numpy.tables import SPOKEN
from jaxfit._numpy.traced import Traced, wrapped

# One element after the other


def _elementwise(function: Callable, *arguments: Any, **keywords: Any) -> Picked:
    values = [*arguments, *keywords.values()]
    like = next(value for value in values if isinstance(value, Picked))
    if keywords.pop("out", None) is not None or "shape" in keywords:
        raise TypeError("an array of another shape")

    def raw_of(value: Any) -> Any:
        is_array = isinstance(value, (Picked, Traced, np.ndarray, list))
        return operand(value, like) if is_array else value

    named = {name: raw_of(value) for name, value in keywords.items()}
    with np.errstate(all="ignore"):  # of elements that are dropped
        result = call_function(function, [*map(raw_of, arguments)], named)
    return like.with_value(result)


def _of_one(place: int, function: Callable, *arguments: Any, **keywords: Any) -> Picked:
    """The function of one array of points, where the other arrays are not theirs."""
    like = arguments[place]
    if not isinstance(like, Picked):
        raise TypeError("picked elements in another place")
    mask = beside(like.mask, like.ndim)
    points = jnp.where(mask, like.whole, jnp.zeros((), like.dtype))  # harmless
    operands = [
        points if k == place else as_array(value) for k, value in enumerate(arguments)
    ]
    named = {name: as_array(value) for name, value in keywords.items()}
    result = call_function(function, operands, named)
    return like.with_value(shielded(result, like.mask, like.ndim))


def _select(condlist: Sequence, choicelist: Sequence, default: Any = 0) -> Any:
    result = default
    for condition, choice in zip(condlist[::-1], choicelist[::-1], strict=True):
        result = np.where(condition, choice, result)
    return result


# All elements together


def _reduced(function: Callable, a: Picked, axis: Any = None, **settings: Any) -> Any:
    """A reduction, for which what is not picked is an element that changes nothing."""
    settings = {k: v for k, v in settings.items() if v is not None and v is not False}
    if settings.keys() - {"dtype"}:
        raise TypeError("settings for the whole array")
    named = {"axis": axis, **settings}
    axes = range(a.ndim) if axis is None else np.atleast_1d(axis) % a.ndim
    if 0 not in axes:
        return a.with_value(call_function(function, [a.whole], named))
    if function in (np.max, np.min):
        require(jnp.any(a.mask))  # NumPy's error
    neutral = _neutral(function, a.dtype)
    filled = jnp.where(beside(a.mask, a.ndim), a.whole, neutral)
    return wrapped(call_function(function, [filled], named))


def _neutral(function: Callable, dtype: np.dtype) -> Value:
    if function not in (np.max, np.min):
        return np.asarray(function in (np.prod, np.all)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(function is np.min)
    if dtype.kind == "f":
        return np.asarray(-np.inf if function is np.max else np.inf, dtype)
    if dtype.kind == "c":
        raise TypeError("no order")
    info = np.iinfo(dtype)
    return np.asarray(info.min if function is np.max else info.max, dtype)


def _mean(a: Any, axis: Any = None, dtype: Any = None) -> Any:
    dtype = np.dtype(dtype or (float if a.dtype.kind in "biu" else a.dtype))
    count = np.count_nonzero(np.ones_like(a, dtype=bool), axis=axis)
    return (np.sum(a, axis=axis, dtype=dtype) / count).astype(dtype)


def _var(a: Any, axis: Any = None, dtype: Any = None, ddof: Any = 0) -> Any:
    if a.ndim > 1:
        raise TypeError("several axes")
    mean = _mean(a, axis, dtype)
    apart = a - mean
    squares = np.sum(np.real(apart * np.conj(apart)))
    return (squares / np.maximum(a.size - ddof, 0)).astype(mean.real.dtype)


def _std(a: Any, axis: Any = None, dtype: Any = None, ddof: Any = 0) -> Any:
    return np.sqrt(_var(a, axis, dtype, ddof))


def _ptp(a: Any, axis: Any = None) -> Any:
    return np.max(a, axis=axis) - np.min(a, axis=axis)


def _average(a: Any, axis: Any = None, weights: Any = None) -> Any:
    if weights is None:
        return _mean(a, axis)
    if np.ndim(a) > 1 or np.ndim(weights) > 1:
        raise TypeError("several axes")
    return np.sum(a * weights) / np.sum(weights * np.ones_like(a))


def _dot(a: Any, b: Any) -> Any:
    if not (isinstance(a, Picked) and isinstance(b, Picked) and a.ndim == b.ndim == 1):
        raise TypeError("a whole array")
    return np.sum(a * b)


def _norm(x: Any) -> Any:
    if x.ndim > 1:
        raise TypeError("several axes")
    return np.sqrt(np.sum(np.real(x * np.conj(x))))


def _cumulated(function: Callable, a: Picked, axis: Any = 0) -> Picked:
    """Partial results, which pass over what is not picked."""
    if a.ndim > 1:
        raise TypeError("several axes")
    neutral = _neutral(np.prod if function is np.cumprod else np.sum, a.dtype)
    filled = jnp.where(a.mask, a.whole, neutral)
    result = call_function(function, [filled], {"axis": 0})
    return a.with_value(shielded(result, a.mask, 1))


_SPOKEN_TOO = (np.piecewise, np.copyto, np.putmask, np.place, np.real, np.imag, np.ndim)
_ELEMENTWISE = [
    getattr(np, name)
    for name in (
        *("where", "clip", "nan_to_num", "angle", "sinc", "i0", "round", "around"),
        *("fix", "isclose", "isreal", "iscomplex", "isposinf", "isneginf", "copy"),
        *("zeros_like", "ones_like", "full_like", "empty_like"),
    )
    if hasattr(np, name)  # NumPy gives up np.fix
]
_REDUCTIONS = (np.sum, np.prod, np.max, np.min, np.any, np.all, np.count_nonzero)

OF_PICKED: dict[Any, Callable] = (
    {function: SPOKEN[function] for function in _SPOKEN_TOO}
    | {function: partial(_elementwise, function) for function in _ELEMENTWISE}
    | {function: partial(_reduced, function) for function in _REDUCTIONS}
    | {function: partial(_cumulated, function) for function in (np.cumsum, np.cumprod)}
    | {
        np.interp: partial(_of_one, 0, np.interp),
        np.polyval: partial(_of_one, 1, np.polyval),
        np.select: _select,
        np.amax: partial(_reduced, np.max),
        np.amin: partial(_reduced, np.min),
        np.mean: _mean,
        np.var: _var,
        np.std: _std,
        np.ptp: _ptp,
        np.average: _average,
        np.dot: _dot,
        np.inner: _dot,
        np.linalg.norm: _norm,
        np.size: lambda a: a.size,
    }
)
