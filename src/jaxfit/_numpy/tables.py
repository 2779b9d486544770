"""NumPy's functions in JAX: most have a twin of the same name."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.asked import Uncounted
from jaxfit._numpy.memory import Value
from jaxfit._numpy.needs import NeedsHost
from jaxfit._numpy.values import is_known, stand_in

# Twins, of values

_WITHOUT_TWIN = set(
    # they write into their argument
    "copyto fill_diagonal place put put_along_axis putmask "
    # they call a function with arrays of JAX
    "apply_along_axis apply_over_axes piecewise choose "
    # they ask for numbers or text
    "array2string array_repr array_str save savez savez_compressed savetxt "
    # other rules for dtypes, or for what a result means
    "astype can_cast result_type common_type min_scalar_type packbits unpackbits "
    # other arguments, below
    "clip nan_to_num einsum_path".split()
)


def _twins() -> dict[Any, Callable]:
    """From a function of NumPy to that of JAX with the same name."""
    pairs = ((np, jnp), (np.linalg, jnp.linalg), (np.fft, jnp.fft))
    return {
        function: getattr(of_jax, name)
        for of_numpy, of_jax in pairs
        for name, function in vars(of_numpy).items()
        if hasattr(function, "_implementation")  # NumPy dispatches it
        and hasattr(of_jax, name)
        and name not in _WITHOUT_TWIN
    }


def _clip(a: Value, *bounds: Any, **named: Any) -> Value:
    names = zip(("a_min", "a_max"), bounds, strict=False)
    named = {name.removeprefix("a_"): bound for name, bound in names} | {
        name.removeprefix("a_"): bound for name, bound in named.items()
    }
    if named.get("min") is not None:
        a = jnp.maximum(a, named["min"])
    return a if named.get("max") is None else jnp.minimum(a, named["max"])


def _nan_to_num(
    x: Value, copy: bool = True, nan: Any = 0.0, posinf: Any = None, neginf: Any = None
) -> Value:
    if not copy:
        raise NeedsHost("it calls np.nan_to_num with copy=False")
    return jnp.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf)


def _of_symmetric(twin: Callable) -> Callable:
    """The twin, which like NumPy's looks at one triangle of the matrix only."""

    def of_triangle(a: Value, UPLO: str | None = None, *, upper: bool = False) -> Any:
        if upper or (UPLO or "L").upper() == "U":
            a = jnp.conj(jnp.swapaxes(a, -1, -2))
        below = jnp.tril(a, -1)
        diagonal = jnp.real(jnp.diagonal(a, axis1=-2, axis2=-1))
        full = below + jnp.conj(jnp.swapaxes(below, -1, -2))
        full = full + diagonal[..., None] * jnp.eye(a.shape[-1], dtype=a.dtype)
        return twin(full, **({"upper": True} if upper else {}))

    return of_triangle


def _in_range(function: Callable, twin: Callable) -> Callable:
    """The twin, where an index that is known and outside is an error as in NumPy."""

    def checked(a: Value, indices: Any, *others: Any, **settings: Any) -> Value:
        if is_known(indices):
            function(stand_in(a.shape), indices, *others, **settings)
        return twin(a, indices, *others, **settings)

    return checked


TWINS: dict[Any, Callable] = _twins() | {
    np.take: _in_range(np.take, jnp.take),
    np.take_along_axis: _in_range(np.take_along_axis, jnp.take_along_axis),
    np.linalg.cholesky: _of_symmetric(jnp.linalg.cholesky),
    np.linalg.eigh: _of_symmetric(jnp.linalg.eigh),
    np.linalg.eigvalsh: _of_symmetric(jnp.linalg.eigvalsh),
    np.clip: _clip,
    np.nan_to_num: _nan_to_num,
}
for _name, _twin in {"trapz": jnp.trapezoid, "fix": jnp.trunc}.items():
    if hasattr(np, _name):  # old names, which NumPy gives up
        TWINS[getattr(np, _name)] = _twin

SEQUENCES = {  # take a list of arrays
    *(np.concatenate, np.stack, np.hstack, np.vstack, np.dstack, np.column_stack),
    *(np.block, np.select, np.lexsort, np.linalg.multi_dot),
}
PERHAPS_VIEWS = {  # of their first argument, at times or for reading only
    *(np.flip, np.fliplr, np.flipud, np.rot90, np.diagonal, np.diag, np.broadcast_to),
    *(np.split, np.array_split, np.hsplit, np.vsplit, np.dsplit, np.rollaxis),
    *(np.trim_zeros, np.linalg.diagonal),
} | ({np.unstack} if hasattr(np, "unstack") else set())
FRESH = {np.zeros_like, np.ones_like, np.full_like, np.empty_like, np.copy}  # arrays


# Written in NumPy, and called with what the user's function gave


def _piecewise(
    x: Any, condlist: Any, funclist: Sequence[Any], *args: Any, **kw: Any
) -> Any:
    """np.piecewise: each function of the elements for which it is.

    The last condition that holds decides; one more function than conditions is for
    where none does.
    """
    is_one = isinstance(condlist, (bool, np.bool_))
    if is_one or (np.ndim(x) and not np.ndim(condlist[0])):
        condlist = [condlist]
    conditions = list(condlist)
    if len(funclist) not in (len(conditions), len(conditions) + 1):
        raise ValueError(
            f"with {len(conditions)} condition(s), either {len(conditions)} or "
            f"{len(conditions) + 1} functions are expected"
        )
    if len(funclist) > len(conditions):
        conditions.append(~functools.reduce(operator.or_, conditions))
    if type(x) is np.ndarray:  # of NumPy's own, which knows no traced conditions
        x = np.where(conditions[0] | True, x, x)
    result = np.zeros_like(x)
    for condition, function in zip(conditions, funclist, strict=True):
        if callable(function):
            result[condition] = function(x[condition], *args, **kw)
        else:
            result[condition] = function
    return result


def _reshape(a: Any, shape: Any, order: str = "C", *, copy: Any = None) -> Any:
    result = a.reshape(shape, order=order)
    return result.copy() if copy else result


def _expand_dims(a: Any, axis: Any) -> Any:
    axes = (axis,) if np.ndim(axis) == 0 else tuple(axis)
    rank = a.ndim + len(axes)
    places = {operator.index(k) % rank for k in axes}
    sizes = iter(a.shape)
    return a.reshape(tuple(1 if k in places else next(sizes) for k in range(rank)))


def _moveaxis(a: Any, source: Any, destination: Any) -> Any:
    return a.transpose(np.moveaxis(stand_in(range(a.ndim)), source, destination).shape)


def _broadcast_arrays(*arrays: Any, subok: bool = False) -> tuple[Any, ...]:
    shape = np.broadcast_shapes(*map(np.shape, arrays))
    return tuple(np.broadcast_to(array, shape) for array in arrays)


def _at_least(expanded: Callable[[Any], Any]) -> Callable:
    """np.atleast_1d and its like, of how one array is expanded."""

    def of_each(*arrays: Any) -> Any:
        results = [
            expanded(array if hasattr(array, "ndim") else np.asarray(array))
            for array in arrays
        ]
        return tuple(results) if len(results) > 1 else results[0]

    return of_each


def _to_1d(array: Any) -> Any:
    return array if array.ndim else array.reshape(1)


def _to_2d(array: Any) -> Any:
    return array if array.ndim > 1 else _to_1d(array)[None]


def _to_3d(array: Any) -> Any:
    return array if array.ndim > 2 else _to_2d(array)[..., None]


def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    if where is True:
        dst[...] = src
    else:
        dst[...] = np.where(where, src, dst)


def _putmask(a: Any, mask: Any, values: Any) -> None:
    if np.shape(values) != np.shape(a) and np.size(values) != 1:
        raise NeedsHost("it calls np.putmask with values of another shape")
    _copyto(a, values, where=mask)


def _place(arr: Any, mask: Any, vals: Any) -> None:
    if not isinstance(vals, Uncounted) and np.size(vals) != 1:
        raise NeedsHost("it calls np.place with more than one value")
    arr[mask] = vals


SPOKEN: dict[Any, Callable] = {
    np.piecewise: _piecewise,
    np.copyto: _copyto,
    np.putmask: _putmask,
    np.place: _place,
    np.extract: lambda condition, arr: np.ravel(arr)[np.ravel(condition)],
    np.nonzero: lambda a: a.nonzero(),
    np.flatnonzero: lambda a: np.ravel(a).nonzero()[0],
    np.reshape: _reshape,
    np.ravel: lambda a, order="C": a.ravel(order),
    np.squeeze: lambda a, axis=None: a.squeeze(axis),
    np.expand_dims: _expand_dims,
    np.transpose: lambda a, axes=None: a.transpose(axes),
    np.swapaxes: lambda a, axis1, axis2: a.swapaxes(axis1, axis2),
    np.moveaxis: _moveaxis,
    np.matrix_transpose: lambda x: x.swapaxes(-1, -2),
    np.linalg.matrix_transpose: lambda x: x.swapaxes(-1, -2),
    np.broadcast_arrays: _broadcast_arrays,
    np.atleast_1d: _at_least(_to_1d),
    np.atleast_2d: _at_least(_to_2d),
    np.atleast_3d: _at_least(_to_3d),
    np.real: lambda val: val.real,
    np.imag: lambda val: val.imag,
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
}
