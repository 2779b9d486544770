"""Calls of NumPy's functions with values: NumPy's own, where nothing is traced."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.memory import Value
from jaxfit._numpy.needs import NeedsHost
from jaxfit._numpy.tables import SEQUENCES, TWINS
from jaxfit._numpy.ufuncs import accumulate_ufunc, call_ufunc, reduce_ufunc
from jaxfit._numpy.values import WIDE, alike, cast, is_known

NOT_TRACEABLE = (  # what JAX raises where it needs a number
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.UnexpectedTracerError,
)


def call_method(
    ufunc: np.ufunc, method: str, values: Sequence[Any], settings: dict[str, Any]
) -> Any:
    """`ufunc(...)`, `ufunc.reduce`, `accumulate` or `outer` of values."""
    if is_known([list(values), settings]):
        return getattr(ufunc, method)(*values, **settings)
    settings = {k: v for k, v in settings.items() if v is not np._NoValue}
    if method == "reduce":
        return reduce_ufunc(ufunc, *_named(values, settings, "axis dtype"))
    if method == "accumulate":
        return accumulate_ufunc(ufunc, *_named(values, settings, "axis dtype"))
    if method == "outer":
        first, second = values
        axes = tuple(range(np.ndim(first), np.ndim(first) + np.ndim(second)))
        values = [(np if is_known(first) else jnp).expand_dims(first, axes), second]
    elif method != "__call__":
        raise NeedsHost(f"it calls {ufunc.__name__}.{method}")
    settings.pop("where", None)
    return call_ufunc(ufunc, values, settings)


def _named(values: Sequence[Any], settings: dict[str, Any], names: str) -> Any:
    """The first value, and settings with names for what follows it."""
    first, *others = values
    return first, dict(zip(names.split(), others, strict=False)) | settings


def call_where(
    ufunc: np.ufunc,
    values: Sequence[Any],
    before: Sequence[Any],
    settings: dict[str, Any],
) -> tuple[Value, ...]:
    """`ufunc(..., out=before, where=condition)`, without a change of `before`.

    Where the condition does not hold, the operands are replaced by harmless ones, so
    that neither NaN nor an infinite slope comes from there.
    """
    condition = settings.pop("where")
    if any(whole is None for whole in before):
        raise NeedsHost(f"it calls {ufunc.__name__} with where= and without out=")
    if is_known([list(values), list(before), condition]):
        outs = tuple(np.copy(whole) for whole in before)
        ufunc(*values, out=outs, where=condition, **settings)
        return outs
    operands = [
        jnp.where(condition, value, np.asarray(0.5, value.dtype))
        if np.dtype(getattr(value, "dtype", int)).kind in "fc"
        else value
        for value in values
    ]
    results = call_ufunc(ufunc, operands, settings)
    results = results if isinstance(results, tuple) else (results,)
    pairs = zip(results, before, strict=True)
    return tuple(jnp.where(condition, result, whole) for result, whole in pairs)


def call_function(
    function: Callable, arguments: Sequence[Any], keywords: dict[str, Any]
) -> Any:
    """NumPy's function of values, by its twin where some are traced.

    Raises:
        NeedsHost: if there is no twin, or it does not know such arguments. If they
            are wrong, NumPy says so on the host.
    """
    if is_known([list(arguments), keywords]):
        return function(*arguments, **keywords)
    name = f"{function.__module__}.{function.__name__}"
    twin = TWINS.get(function)
    if twin is None:
        raise NeedsHost(f"it calls {name}, which has no counterpart in JAX")
    for kinds in (list, (list, tuple)):  # axes and shapes are tuples, and so is data
        operands = [
            np.asarray(value)
            if isinstance(value, kinds) and function not in SEQUENCES
            else value
            for value in arguments
        ]
        try:
            result = twin(*operands, **keywords)
            return _in_dtypes_of_numpy(function, twin, operands, keywords, result)
        except (*NOT_TRACEABLE, *_REFUSED) as error:
            first = error
    raise NeedsHost(f"it calls {name} with what JAX does not know: {_line(first)}")


def _in_dtypes_of_numpy(
    function: Callable, twin: Callable, operands: list, keywords: dict, result: Any
) -> Any:
    """The result, computed in what NumPy computes in, which a try with NumPy tells.

    In float64, complex128 and int64 JAX has the same rules. Where it has others, and
    the result is inexact, all is computed in float64.
    """
    leaves = jax.tree.leaves((operands, keywords))
    if all(np.dtype(leaf.dtype) in WIDE for leaf in leaves if _is_array(leaf)):
        return result
    with np.errstate(all="ignore"):
        operands_, keywords_ = jax.tree.map(_example, (operands, keywords))
        truth = function(*operands_, **keywords_)
    dtypes = _dtypes(truth)
    if dtypes == _dtypes(result):
        return result
    if any(dtype.kind not in "fc" for dtype in dtypes):
        raise TypeError(f"NumPy returns {dtypes[0]}, and JAX does not")
    wide = twin(*jax.tree.map(_widened, operands), **keywords)
    if isinstance(wide, (list, tuple)):
        return alike(wide, map(cast, wide, dtypes))
    return cast(wide, dtypes[0])


def _dtypes(tree: Any) -> list[np.dtype]:
    leaves = jax.tree.leaves(tree)
    return [np.dtype(getattr(leaf, "dtype", type(leaf))) for leaf in leaves]


def _example(value: Any) -> Any:
    if not isinstance(value, jax.Array):
        return value
    numbers = np.random.default_rng(0).uniform(1, 9, value.shape)
    return numbers.astype(value.dtype)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and not isinstance(value, type)  # as np.float32


def _widened(value: Any) -> Any:
    if not _is_array(value):
        return value
    return cast(value, complex if np.dtype(value.dtype).kind == "c" else float)


_REFUSED = (TypeError, ValueError, NotImplementedError, IndexError)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
