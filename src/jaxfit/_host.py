"""The core for users of NumPy and SciPy, who pass and receive NumPy arrays.

Everything is computed in double precision whatever the process-wide setting is. A fit
runs as one compiled program or, where somebody watches, as one compiled trip after the
other: the same trips either way.
"""

import contextlib
import functools
import linecache
import math
import sys
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._compile import compiled
from jaxfit._solution import RUNNING
from jaxfit._solve import Setup, run
from jaxfit._trip import State, initial_state, trip

# Programs


def whole_fit(pose: Callable, report: Callable, callables: Any, request: Any) -> Any:
    """A fit and its report as one program.

    Args:
        pose: (callables, request) -> `Setup`.
        report: (setup, state, request) -> what to return.
        callables: the user's functions.
        request: a pytree of everything else.
    """
    return compiled(bound(_whole, pose, report), callables, request)


def report_on(
    pose: Callable, report: Callable, callables: Any, request: Any, state: State
) -> Any:
    """The report of a fit that was run trip by trip."""
    return compiled(bound(_reported, pose, report), callables, (request, state))


def trips(pose: Callable, callables: Any, request: Any) -> Iterator[State]:
    """The states of a fit after each trip."""
    state = compiled(bound(_started, pose), callables, request)
    while state.status == RUNNING or state.finishing:
        state = compiled(bound(_next, pose), callables, (request, state))
        yield state


@functools.cache
def bound(function: Callable, *values: Hashable) -> Callable:
    """A function with its first arguments given: one object for equal values.

    `compiled` knows the functions of this library by their identity.
    """
    return functools.partial(function, *values)


def _whole(pose, report, callables, request):
    setup: Setup = pose(callables, request)
    return report(setup, run(setup), request)


def _started(pose, callables, request):
    setup: Setup = pose(callables, request)
    return initial_state(setup.problem, setup.start)


def _next(pose, callables, arguments):
    request, state = arguments
    setup: Setup = pose(callables, request)
    return trip(setup.rows.linearize, setup.problem, state)


def _reported(pose, report, callables, arguments):
    request, state = arguments
    return report(pose(callables, request), state, request)


def pack(values: Mapping[str, Any]) -> jax.Array:
    """Numbers of all shapes as one vector: every array out of a program costs time."""
    return jnp.concatenate(
        [jnp.ravel(value).astype(jnp.float64) for value in values.values()]
    )


def unpack(vector: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The inverse of `pack`, as NumPy arrays of their own and Python numbers."""
    vector, start, values = np.asarray(vector), 0, {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        part = vector[start : start + size]
        values[name] = part.reshape(shape).copy() if shape else float(part[0])
        start += size
    return values


# A model that JAX cannot trace

_MACHINERY = {"jax", "jaxlib", "numpy", "scipy", "equinox", "jaxfit", "jaxtyping"}
_MACHINERY |= sys.stdlib_module_names - {"__main__"}

_NUMPY = (
    jax.errors.TracerArrayConversionError,
    "it calls NumPy or SciPy. Write jax.numpy instead (`import jax.numpy as jnp` and "
    "`jnp.exp` for `np.exp`), and jax.scipy for scipy.",
)
_BRANCH = (
    (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerBoolConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ),
    "it asks for the value of a number, by `if`, `while`, float(), int(), range(), the "
    "math module or a boolean mask. Write `jnp.where(condition, a, b)`.",
)
_ASSIGNMENT = "it assigns to a part of an array. Write `y = y.at[i].set(value)`."


@contextlib.contextmanager
def double_precision(function: Any) -> Iterator[None]:
    """Trace and compute in float64; explain why a function could not be traced."""
    try:
        with jax.enable_x64(True):
            yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"{name} cannot be traced by JAX{_place(error)}: {reason}"
        ) from error


def _reason(error):
    for kind, reason in (_NUMPY, _BRANCH):
        if isinstance(error, kind):
            return reason
    if isinstance(error, TypeError) and "JAX arrays are immutable" in str(error):
        return _ASSIGNMENT
    return None


def _place(error):
    """The last line of the user's that was running."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _MACHINERY:
            file = frame.f_code.co_filename
            code = linecache.getline(file, line, frame.f_globals).strip()
            return f", {file}:{line}" + (f", `{code}`" if code else "")
    return ""
