"""A function written in NumPy as a function of JAX arrays."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxfit._numpy.calls import NOT_TRACEABLE
from jaxfit._numpy.copies import copied
from jaxfit._numpy.inside import as_array
from jaxfit._numpy.needs import Call, NeedsHost, call
from jaxfit._numpy.picked import Picked
from jaxfit._numpy.traced import Traced, wrapped
from jaxfit._numpy.values import alike
from jaxfit._programs.errors import place_of

# Operations of a function, and of its copy: loops of many more take minutes to compile.
MOST_STEPS, STEPS_OF_COPY = 640, 128


def speaking_numpy(
    function: Callable, on_jax: Callable[[], None] | None = None
) -> Callable:
    """The function of JAX arrays that does what this one does with NumPy's.

    Arrays of JAX among the arguments are traced. Arrays of NumPy stay known: only what
    is known can be a condition of `if`, a length, or a mask that picks elements. x64
    has to be on, since NumPy computes in float64.

    Args:
        function: written in NumPy and scipy.special.
        on_jax: called where it hands something to JAX itself.

    Returns:
        A function of the same arguments. It gives arrays, one for a list, and tuples
        and dictionaries of them, and raises `NeedsHost` with the user's line where it
        cannot be traced.
    """

    @functools.wraps(function)
    def traced(*arguments: Any, **keywords: Any) -> PyTree:
        result = functools.partial(_traced, arguments, keywords, on_jax, function)
        try:
            return result()
        except NeedsHost as refusal:
            try:
                return result(copied, STEPS_OF_COPY)
            except NeedsHost:
                raise
            except Exception:  # there is no copy that does the same
                raise refusal from None

    return traced


def _traced(
    arguments: tuple,
    keywords: dict[str, Any],
    on_jax: Callable[[], None] | None,
    function: Callable,
    change: Callable[[Callable], Callable] = lambda function: function,
    steps: int = MOST_STEPS,
) -> PyTree:
    """The result of what `change` makes of a function written in NumPy."""
    with jax.numpy_dtype_promotion("standard"), call(steps) as going_on:
        try:
            positional, named = jax.tree.map(wrapped, (arguments, keywords))
            result = _unwrapped(change(function)(*positional, **named))
        except Exception as error:
            refused = going_on.refused
            reason = refused[0].reason if refused else _reason(error)
            if reason is None:
                raise
            place = _first_place(function, [*refused[:1], error])
            raise NeedsHost(reason, place) from error
        if going_on.refused:  # and somebody took it for another error
            first = going_on.refused[0]
            raise NeedsHost(first.reason, _first_place(function, [first]))
        if going_on.uses_jax and on_jax is not None:
            on_jax()
        return _where_required(result, going_on)


def _first_place(function: Callable, errors: Sequence[Exception]) -> str:
    """The user's line in the first error that knows it, or where the function is."""
    code = getattr(function, "__code__", None)
    places = [str(place_of(error)) for error in errors]
    if code is not None:
        places.append(f", {code.co_filename}:{code.co_firstlineno}")
    return next(filter(None, places), "")


def _unwrapped(result: Any) -> PyTree:
    if isinstance(result, dict):
        return {name: _unwrapped(value) for name, value in result.items()}
    if isinstance(result, tuple):
        return alike(result, map(_unwrapped, result))
    value = as_array(result)
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        raise NeedsHost(f"it returns an array of the dtype {value.dtype}")
    return value if value is None else jnp.asarray(value)


def _where_required(result: PyTree, finished: Call) -> PyTree:
    """The result, or NaN where NumPy may give something else."""
    if not finished.required:
        return result
    holds = jnp.all(jnp.stack(finished.required))

    def checked(value: jax.Array) -> jax.Array:
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            raise NeedsHost(
                "it returns integers of elements that it picks by a condition"
            )
        return jnp.where(holds, value, jnp.asarray(jnp.nan, value.dtype))

    return jax.tree.map(checked, result)


def _reason(error: Exception) -> str | None:
    """Why a function cannot be traced, or None if it is at fault itself."""
    text = str(error).partition("\n")[0]
    if isinstance(error, NOT_TRACEABLE):
        return f"it asks for what is not known before the program runs: {text}"
    names = Traced.__name__, Picked.__name__
    is_ours = any(name in text for name in names)
    if isinstance(error, (TypeError, AttributeError)) and is_ours:
        return f"it does with a computed array what JAX cannot: {text}"
    if re.search(_SIGNS, text):
        return f"it does with an array of NumPy's own what JAX cannot: {text}"
    return None


_SIGNS = (  # of an array of objects, or of one that must not change
    r"dtype\('O'\)|(: |dtype )object\b|not supported for the input types|read-only|"
    "object arrays?|"
    "arrays used as indices must be of integer|no loop with signature|dtype=object|"
    "loop of ufunc does not support|only length-1 arrays|array element with a sequence|"
    "NoneType|NPY_ITER_REFS_OK|__jax_array__"
)
