"""NumPy's universal functions in JAX, with NumPy's rules for dtypes.

NumPy itself says what an operation on these dtypes computes in, and what it returns: an
integer divided by an integer is a float64, also an int32 beside a float32. A twin gets
its arguments in those dtypes and so has nothing to promote.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit._numpy.memory import Value
from jaxfit._numpy.needs import NeedsHost, once, step
from jaxfit._numpy.special import special_twins
from jaxfit._numpy.values import cast, is_known

_WITHOUT_TWIN = {"isnat", "frexp", "bitwise_count", "spacing", "nextafter", "ldexp"}
_TWINS: dict[Any, Callable] = {
    function: getattr(jnp, name)
    for name, function in vars(np).items()
    # some packages put ufuncs of their own into NumPy
    if isinstance(function, np.ufunc)
    and name not in _WITHOUT_TWIN
    and hasattr(jnp, name)
}


def _of_integers(twin: Callable) -> Callable:
    """The twin, where an integer divided by zero is zero."""

    def divided(a: Value, b: Value) -> Any:
        if np.dtype(a.dtype).kind not in "iub":
            return twin(a, b)
        results = twin(a, jnp.where(b == 0, 1, b))
        return jax.tree.map(lambda result: jnp.where(b == 0, 0, result), results)

    return divided


def _hypot(x: Value, y: Value) -> Value:
    """The distance, of slope zero at the origin."""
    is_zero = (x == 0) & (y == 0)
    return jnp.where(is_zero, 0, jnp.hypot(jnp.where(is_zero, 1, x), y))


for _ufunc in (np.floor_divide, np.remainder, np.fmod, np.divmod):
    _TWINS[_ufunc] = _of_integers(_TWINS[_ufunc])
_TWINS[np.hypot] = _hypot


def twin_of(ufunc: np.ufunc) -> Callable:
    """The function of JAX for one of NumPy or SciPy.

    Raises:
        NeedsHost: if there is none.
    """
    twin = _TWINS.get(ufunc) or special_twins().get(ufunc)
    if twin is None:
        raise NeedsHost(f"it calls {ufunc.__name__}, which has no counterpart in JAX")
    return twin


def call_ufunc(ufunc: np.ufunc, values: Sequence[Any], settings: dict[str, Any]) -> Any:
    """What the ufunc returns of values, some of which are traced."""
    settings = {k: v for k, v in settings.items() if k not in _IGNORED}
    if settings:
        return _called(ufunc, values, settings)
    return once(ufunc, values, lambda: _called(ufunc, values, settings))


def _called(ufunc: np.ufunc, values: Sequence[Any], settings: dict[str, Any]) -> Any:
    step()
    result_dtype = settings.pop("dtype", None)
    if settings:
        raise NeedsHost(f"it calls {ufunc.__name__} with {', '.join(settings)}=")
    twin = twin_of(ufunc)
    dtypes = _dtypes(ufunc, values, result_dtype)
    operands = [
        cast(value, dtype)
        for value, dtype in zip(values, dtypes[: ufunc.nin], strict=True)
    ]
    if ufunc is np.power:
        operands[1] = _exponent(operands[1], values[1], operands[0].dtype)
    try:
        results = twin(*operands)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise NeedsHost(f"it calls {ufunc.__name__} with what JAX refuses") from error
    if ufunc.nout == 1:
        return cast(results, dtypes[-1])
    return tuple(
        cast(result, dtype)
        for result, dtype in zip(results, dtypes[ufunc.nin :], strict=True)
    )


_IGNORED = {"order", "subok", "casting"}


def _dtypes(ufunc: np.ufunc, values: Sequence[Any], result: Any) -> Sequence[np.dtype]:
    """The dtypes that NumPy computes in, and those that it returns."""
    kinds = [_kind(value) for value in values] + [None] * ufunc.nout
    if result is None:
        return ufunc.resolve_dtypes(tuple(kinds))
    signature = (None,) * ufunc.nin + (np.dtype(result),) * ufunc.nout
    return ufunc.resolve_dtypes(tuple(kinds), signature=signature)


def _kind(value: Any) -> Any:
    """The dtype, or Python's type, whose width gives way to that of arrays."""
    if type(value) in (int, float, complex):
        return type(value)
    return np.asarray(value).dtype if is_known(value) else np.dtype(value.dtype)


def _exponent(operand: Value, given: Any, base: Any) -> Any:
    """A whole number as Python's: then a power is a product, as for NumPy."""
    if np.dtype(base).kind not in "fc" or not is_known(given) or np.ndim(given):
        return operand
    number = np.asarray(given)[()]
    is_whole = np.isreal(number) and np.isfinite(number) and number.real % 1 == 0
    return int(number.real) if is_whole and abs(number) < 1000 else operand


# Their methods


def reduce_ufunc(ufunc: np.ufunc, value: Value, settings: dict[str, Any]) -> Value:
    """What the ufunc makes of all elements along axes."""
    return _method(ufunc, "reduce")(_summand(ufunc, value, settings), **settings)


def accumulate_ufunc(ufunc: np.ufunc, value: Value, settings: dict[str, Any]) -> Value:
    """The partial results along an axis."""
    value = _summand(ufunc, value, settings)
    axis = int(settings.get("axis", 0)) % max(value.ndim, 1)
    if ufunc is np.maximum or ufunc is np.minimum:
        return (lax.cummax if ufunc is np.maximum else lax.cummin)(value, axis)
    if ufunc is np.add or ufunc is np.multiply:
        return (jnp.cumsum if ufunc is np.add else jnp.cumprod)(value, axis)
    return _method(ufunc, "accumulate")(value, axis=axis)


def _summand(ufunc: np.ufunc, value: Value, settings: dict[str, Any]) -> Value:
    """The elements in the dtype in which NumPy adds them up."""
    dtype = settings.pop("dtype", None)
    if dtype is None:
        kinds = (None, np.dtype(value.dtype), None)
        dtype = ufunc.resolve_dtypes(kinds, reduction=True)[1]
    return cast(value, dtype)


def add_at(ufunc: np.ufunc, whole: Value, index: Any, other: Sequence[Value]) -> Value:
    """The array after the ufunc has acted at an index, repeated ones too."""
    if is_known([whole, index, list(other)]):
        whole = whole.copy()
        ufunc.at(whole, index, *other)
        return whole
    name = _AT.get(ufunc)
    if name is None or not is_known(index):
        raise NeedsHost(f"it calls {ufunc.__name__}.at")
    places = jnp.asarray(whole).at[index]
    dtype = whole.dtype
    return getattr(places, name)(*(cast(value, dtype) for value in other))


_AT = {
    np.add: "add",
    np.subtract: "subtract",
    np.multiply: "multiply",
    np.maximum: "max",
    np.minimum: "min",
}


def _method(ufunc: np.ufunc, name: str) -> Callable:
    method = getattr(twin_of(ufunc), name, None)
    if method is None:
        raise NeedsHost(
            f"it calls {ufunc.__name__}.{name}, which has no counterpart in JAX"
        )
    return method
