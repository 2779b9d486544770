"""What is asked of SciPy's front doors, and how it becomes a fit."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Request, Setup, run, set_up
from jaxfit._core.options import Options
from jaxfit._core.rules import Rules
from jaxfit._core.setting import initial_state
from jaxfit._core.state import State, is_running
from jaxfit._core.trip import trip
from jaxfit._programs.compiled import compiled, lean_first, specialised
from jaxfit._programs.errors import what_is_not_finite
from jaxfit.losses import Loss


class Door(NamedTuple):
    """A front door: what its users' functions mean, and what it reports; static."""

    residual: Callable  # (f, x, data) -> residuals
    jacobian: Callable  # (jac, x, data) -> their derivatives
    report: Callable  # (setup, outcome, request) -> what is reported of a fit
    rules: Rules


class ScipyRequest(NamedTuple):
    """What is asked of a fit, checked and in double precision; a pytree."""

    f: Callable
    jac: Callable | None
    x0: np.ndarray
    data: PyTree
    bounds: tuple[np.ndarray, np.ndarray] | None
    weights: PyTree
    loss: Loss | None
    options: Options
    x_scale: np.ndarray | None  # None: 'jac'
    absolute_sigma: np.bool_ | bool = False


def setup_of(door: Door, request: ScipyRequest, is_lean: bool = False) -> Setup:
    """The fit that is asked for."""
    jac, options = request.jac, request.options
    if jac is not None:
        jac = functools.partial(door.jacobian, jac)
    if request.x_scale is not None:
        options = options.scaled(request.x_scale)
    asked = Request(
        fn=functools.partial(door.residual, request.f),
        jac=jac,
        x0=request.x0,
        data=request.data,
        bounds=request.bounds,
        weights=request.weights,
        loss=request.loss,
        options=options,
    )
    return set_up(asked, door.rules, is_lean)


# Programs


def whole_fit(door: Door, request: ScipyRequest) -> Any:
    """The report of a fit, as one program."""
    return lean_first(specialised(_whole, door), request)


def report_on(door: Door, request: ScipyRequest, state: State) -> Any:
    """The report of a fit that was run trip by trip."""
    return compiled(specialised(_reported, door), request, state)


def trips(door: Door, request: ScipyRequest) -> Iterator[State]:
    """The states of a fit after each trip."""
    state = compiled(specialised(_started, door), request)
    while is_running(state):
        state = compiled(specialised(_next, door), request, state)
        yield state


def not_finite(door: Door, request: ScipyRequest, count: int | None) -> str:
    """What is not finite at the start of a fit, in words; of the first residuals."""
    residual, jacobian = compiled(specialised(_at_start, door), request)
    return what_is_not_finite(
        np.asarray(residual)[:count], np.asarray(jacobian)[:count]
    )


def _whole(door: Door, is_lean: bool, request: ScipyRequest) -> Any:
    def report(setup: Setup, outcome: Outcome) -> Any:
        return door.report(setup, outcome, request)

    return run(setup_of(door, request, is_lean), report)


def _reported(door: Door, request: ScipyRequest, state: State) -> Any:
    return door.report(setup_of(door, request), Outcome.of(state), request)


def _started(door: Door, request: ScipyRequest) -> State:
    setup = setup_of(door, request)
    return initial_state(setup.setting, setup.start)


def _next(door: Door, request: ScipyRequest, state: State) -> State:
    setup = setup_of(door, request)
    return trip(setup.rows.linearize, setup.setting, state)


def _at_start(door: Door, request: ScipyRequest) -> tuple[jax.Array, jax.Array]:
    setup = setup_of(door, request)
    return setup.rows.residual_and_jacobian(setup.start)
