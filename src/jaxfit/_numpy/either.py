"""NumPy or JAX: the namespace of the arrays that come.

What a model computes, and where it starts, is written once, as array code. Of one data
set NumPy computes a start without a compiler, in less time than it takes to trace it;
of many a program of JAX does, where the same code meets tracers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special
from jax.scipy.linalg import cho_solve
from jaxtyping import Complex, Float, Int, Num

# Arrays of NumPy or JAX, which differ in too much to be one type; shapes are checked.
Scalar = Float[Any, ""]
Values = Float[Any, " m"]  # of one curve, at its points
Real = Num[Any, "..."] | float | int  # a number or an array
Reals = dict[str, Real]  # by name
Coordinates = Num[Any, "..."] | tuple[Real, ...] | list[Real]

_PLAIN = {np.ndarray, np.float64, np.int64, np.bool_, float, int, type(None)}


def is_numpy(*values: Any) -> bool:
    """Whether none of them is an array of JAX; lists and tuples are looked into."""
    for value in values:
        if isinstance(value, jax.Array):
            return False
        if isinstance(value, (list, tuple)) and not is_numpy(*value):
            return False
    return True


class _Namespace:
    """The functions of two modules, chosen by their arguments."""

    def __init__(self, of_numpy: Any, of_jax: Any) -> None:
        self._modules = of_numpy, of_jax

    def __getattr__(self, name: str) -> Any:
        of_numpy, of_jax = (getattr(module, name) for module in self._modules)

        @functools.wraps(of_jax)
        def either(*values: Any, **settings: Any) -> Any:
            is_plain = _PLAIN.issuperset(map(type, values)) or is_numpy(*values)
            return (of_numpy if is_plain else of_jax)(*values, **settings)

        setattr(self, name, either)
        return either


xp: Any = _Namespace(np, jnp)


def argsort(values: Any) -> Any:
    """The order of the values, equal ones as they are."""
    if is_numpy(values):
        return np.argsort(values, kind="stable")
    return jnp.argsort(values)


def put(array: Any, index: Any, value: Any) -> Any:
    """The array with another value at a place."""
    if not is_numpy(array, index, value):
        return jnp.asarray(array).at[index].set(value)
    array = np.array(array)
    array[index] = value
    return array


def sums_at(
    places: Int[Any, " m"], rows: Float[Any, "q m"], length: int
) -> Float[Any, "q length"]:
    """Rows of so many zeros, to which these are added at some places."""
    if not is_numpy(places, rows):
        zeros = jnp.zeros((len(rows), length), rows.dtype)
        return zeros.at[:, places].add(rows)
    return np.stack([np.bincount(places, row, length) for row in rows])


def rfft(rows: Any) -> Any:
    """The Fourier transform of real rows."""
    return (np if is_numpy(rows) else jnp).fft.rfft(rows)


def solved(matrix: Float[Any, "n n"], right: Float[Any, "n *k"]) -> Any:
    """The solution of a positive definite system; NaN where the matrix is none."""
    if not is_numpy(matrix, right):
        return cho_solve((jnp.linalg.cholesky(matrix), True), right)
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return np.full_like(right, np.nan)


def array_like(like: Any, values: Any) -> Any:
    """Values as an array of that kind."""
    return (np if is_numpy(like, values) else jnp).asarray(values)


def complex_of(
    real: Float[Any, "*shape"], imaginary: Float[Any, "*shape"]
) -> Complex[Any, "*shape"]:
    """A complex array of two real ones."""
    if is_numpy(real, imaginary):
        return real + 1j * imaginary
    return lax.complex(*map(jnp.asarray, (real, imaginary)))


def _for_either(function: Callable) -> Callable:
    """A special function of JAX, of arrays of NumPy too: of few lengths."""
    program = jax.jit(function)

    @functools.wraps(function)
    def either(values: Real) -> Any:
        if not is_numpy(values):
            return function(values)
        values = np.asarray(values, float)
        length = 1 << max(values.size - 1, 15).bit_length()
        padded = np.zeros(length)
        padded[: values.size] = values.ravel()
        with jax.enable_x64(True):
            results = np.asarray(program(padded))
        return results[: values.size].reshape(values.shape)

    return either


erf = _for_either(special.erf)
erfc = _for_either(special.erfc)
gammaln = _for_either(special.gammaln)
log_ndtr = _for_either(special.log_ndtr)


# Loops, of whatever the array `like` is


def repeated(like: Any, number: Any, step: Callable, start: Any) -> Any:
    """step(k, state), so many times."""
    if not is_numpy(like):
        return lax.fori_loop(0, number, step, start)
    for k in range(number):
        start = step(k, start)
    return start


def repeated_while(like: Any, goes_on: Callable, step: Callable, start: Any) -> Any:
    """step(state), as long as it goes on."""
    if not is_numpy(like):
        return lax.while_loop(goes_on, step, start)
    while goes_on(start):
        start = step(start)
    return start


def one_of(like: Any, index: Any, functions: Sequence[Callable]) -> Any:
    """The result of one of some functions."""
    if not is_numpy(like):
        return lax.switch(index, functions)
    return functions[int(index)]()


def chosen(like: Any, flag: Any, then: Any, otherwise: Any) -> Any:
    """One of two pytrees."""
    if is_numpy(like):
        return then if flag else otherwise
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), then, otherwise)


def each(like: Any, function: Callable, values: Any) -> Any:
    """The results for all values, one after the other."""
    if not is_numpy(like):
        return lax.map(function, values)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(function, values))
