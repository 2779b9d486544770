"""Watching a fit, as SciPy shows it: callbacks, and a line for every iteration."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfit._core.certificate import RUNNING, Status
from jaxfit._core.state import State
from jaxfit._scipy.request import Door, ScipyRequest, report_on, trips, whole_fit


class Watch(NamedTuple):
    """Who wants to see every iteration."""

    callback: Callable | None
    verbose: int

    @property
    def is_needed(self) -> bool:
        return self.callback is not None or self.verbose == 2


def watched_fit(door: Door, request: ScipyRequest, watch: Watch) -> Any:
    """The report of a fit: one program, or one trip after the other if watched."""
    if not watch.is_needed:
        return whole_fit(door, request)

    def residual(x: np.ndarray) -> np.ndarray:
        return np.asarray(door.residual(request.f, jnp.asarray(x), request.data))

    notify = None if watch.callback is None else _notifier(watch.callback, residual)
    state = last_state(trips(door, request), notify, watch.verbose)
    return report_on(door, request, state)


def last_state(
    states: Iterable[State],
    notify: Callable[[int, State], bool] | None,
    verbose: int = 0,
) -> State:
    """Run a fit trip by trip, and show every iteration as SciPy does.

    An iteration ends when a step was accepted, or with the fit.

    Args:
        states: those after each trip.
        notify: is told of each iteration, and says whether the fit is to stop there.
        verbose: SciPy's; 2 for a line for every iteration.
    """
    if verbose == 2:
        print(_HEADER)
    iteration, old, state = 0, None, None
    for state in states:
        if old is not None:
            accepted = state.steps > old.steps
            if (not accepted and state.status == RUNNING) or old.status != RUNNING:
                continue
            iteration += 1
        if verbose == 2:
            print(_row(iteration, state, old))
        if old is not None and notify is not None and notify(iteration, state):
            return stopped(state)
        old = state
    assert state is not None  # the start is a trip
    return state


def stopped(state: State) -> State:
    """The state of a fit that somebody has stopped."""
    return dataclasses.replace(state, status=jnp.int32(Status.STOPPED))


def _notifier(callback: Callable, residual: Callable) -> Callable[[int, State], bool]:
    """SciPy's two kinds of callback; both stop the fit by StopIteration."""
    from scipy.optimize import OptimizeResult

    wants_result = set(inspect.signature(callback).parameters) == {
        "intermediate_result"
    }

    def notify(iteration: int, state: State) -> bool:
        x = np.array(state.point.x)
        try:
            if not wants_result:
                callback(x)
                return False
            result = OptimizeResult(
                x=x,
                fun=residual(x),
                nit=iteration,
                nfev=int(state.nfev),
                cost=float(state.point.linearization.cost),
            )
            callback(intermediate_result=result)
        except StopIteration:
            return True
        return False

    return notify


_TITLES = (
    "Iteration",
    "Total nfev",
    "Cost",
    "Cost reduction",
    "Step norm",
    "Optimality",
)
_HEADER = "".join(f"{title:^15}" for title in _TITLES)


def _row(iteration: int, state: State, old: State | None) -> str:
    cost = float(state.point.linearization.cost)
    reduction = step = " " * 15
    if old is not None:
        moved = np.asarray(state.point.x) - np.asarray(old.point.x)
        gained = float(old.point.linearization.cost) - cost
        reduction, step = f"{gained:^15.2e}", f"{np.linalg.norm(moved):^15.2e}"
    head = f"{iteration:^15}{int(state.nfev):^15}{cost:^15.4e}"
    return f"{head}{reduction}{step}{float(state.point.optimality):^15.2e}"


def print_summary(message: str, numbers: Any) -> None:
    """SciPy's last two lines.

    Args:
        numbers: with `nfev`, `start_cost`, `cost` and `optimality`.
    """
    print(message)
    print(
        f"Function evaluations {numbers.nfev:.0f}, initial cost "
        f"{numbers.start_cost:.4e}, final cost {numbers.cost:.4e}, first-order "
        f"optimality {numbers.optimality:.2e}."
    )
