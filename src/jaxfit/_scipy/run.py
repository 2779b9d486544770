"""The core for users of NumPy and SciPy, who pass and receive NumPy arrays.

Everything is computed in double precision whatever the process-wide setting is. A fit
runs as one compiled program or, where somebody watches, as one compiled trip after the
other: the same trips either way.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._core.derivative import Outcome
from jaxfit._core.solution import RUNNING
from jaxfit._core.solve import Setup, run
from jaxfit._core.trip import State, initial_state, trip
from jaxfit._programs.compiled import bound, compiled, lean_first
from jaxfit._programs.errors import explained, what_is_not_finite

# Programs


def whole_fit(pose: Callable, report: Callable, callables: Any, request: Any) -> Any:
    """A fit and its report as one program.

    Args:
        pose: (callables, request, is_lean=False) -> `Setup`.
        report: (setup, outcome, request) -> what to return.
        callables: the user's functions.
        request: a pytree of everything else.
    """
    return lean_first(bound(_whole, pose, report), callables, request)


def report_on(
    pose: Callable, report: Callable, callables: Any, request: Any, state: State
) -> Any:
    """The report of a fit that was run trip by trip."""
    return compiled(bound(_reported, pose, report), callables, (request, state))


def not_finite(pose: Callable, callables: Any, request: Any, count: int | None) -> str:
    """What is not finite at the start of a fit, in words; of the first residuals."""
    found = compiled(bound(_at_start, pose), callables, request)
    return what_is_not_finite(*(np.asarray(rows)[:count] for rows in found))


def trips(pose: Callable, callables: Any, request: Any) -> Iterator[State]:
    """The states of a fit after each trip."""
    state = compiled(bound(_started, pose), callables, request)
    while state.status == RUNNING or state.finishing:
        state = compiled(bound(_next, pose), callables, (request, state))
        yield state


def _whole(pose, report, is_lean, callables, request):
    setup: Setup = pose(callables, request, is_lean)
    return run(setup, lambda setup, found: report(setup, found, request))


def _at_start(pose, callables, request):
    setup: Setup = pose(callables, request)
    return setup.rows.residual_and_jacobian(setup.start)


def _started(pose, callables, request):
    setup: Setup = pose(callables, request)
    return initial_state(setup.problem, setup.start)


def _next(pose, callables, arguments):
    request, state = arguments
    setup: Setup = pose(callables, request)
    return trip(setup.rows.linearize, setup.problem, state)


def _reported(pose, report, callables, arguments):
    request, state = arguments
    return report(pose(callables, request), Outcome.of(state), request)


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


@contextlib.contextmanager
def double_precision(function: Any) -> Iterator[None]:
    """Trace and compute in float64; explain why a function could not be traced."""
    with explained(function), jax.enable_x64(True):
        yield
