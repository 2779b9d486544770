"""Watching a fit, as SciPy shows it: callbacks, and a line for every iteration."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfit._core.certificate import RUNNING
from jaxfit._scipy.request import Door, ScipyRequest, whole_fit
from jaxfit._scipy.trips import Glance, Trips


class Watch(NamedTuple):
    """Who wants to see every iteration."""

    callback: Callable | None
    verbose: int

    @property
    def is_needed(self) -> bool:
        return self.callback is not None or self.verbose == 2


def watched_fit(door: Door, request: ScipyRequest, watch: Watch) -> Any:
    """A fit: one program, or one trip after the other if watched, or if the host has
    to be asked in between."""
    if not (watch.is_needed or request.is_on_host):
        return whole_fit(door, request)

    def residual(x: np.ndarray) -> np.ndarray:
        return np.asarray(door.residual(request.f, jnp.asarray(x), request.data))

    notify = None if watch.callback is None else _notifier(watch.callback, residual)
    trips = Trips(door, request)
    run_watched(trips, trips, notify, watch.verbose)
    return trips.ended()


def run_watched(
    trips: Trips,
    glances: Iterable[Glance],
    notify: Callable[[int, Glance], bool] | None,
    verbose: int = 0,
) -> None:
    """Run a fit trip by trip, and show every iteration as SciPy does.

    An iteration ends when a step was accepted, or with the fit.

    Args:
        glances: what can be seen after each trip.
        notify: is told of each iteration, and says whether the fit is to stop there.
        verbose: SciPy's; 2 for a line for every iteration.
    """
    if verbose == 2:
        print(_HEADER)
    iteration, old = 0, None
    for new in glances:
        if old is not None:
            accepted = new.steps > old.steps
            if (not accepted and new.status == RUNNING) or old.status != RUNNING:
                continue
            iteration += 1
        if verbose == 2:
            print(_row(iteration, new, old))
        if old is not None and notify is not None and notify(iteration, new):
            trips.stop()
        old = new


def _notifier(callback: Callable, residual: Callable) -> Callable[[int, Glance], bool]:
    """SciPy's two kinds of callback; both stop the fit by StopIteration."""
    from scipy.optimize import OptimizeResult

    wants_result = set(inspect.signature(callback).parameters) == {
        "intermediate_result"
    }

    def notify(iteration: int, now: Glance) -> bool:
        x = now.x.copy()
        try:
            if not wants_result:
                callback(x)
                return False
            result = OptimizeResult(
                x=x,
                fun=residual(x),
                nit=iteration,
                nfev=now.nfev,
                cost=now.cost,
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


def _row(iteration: int, new: Glance, old: Glance | None) -> str:
    reduction = step = " " * 15
    if old is not None:
        moved, gained = new.x - old.x, old.cost - new.cost
        reduction, step = f"{gained:^15.2e}", f"{np.linalg.norm(moved):^15.2e}"
    head = f"{iteration:^15}{new.nfev:^15}{new.cost:^15.4e}"
    return f"{head}{reduction}{step}{new.optimality:^15.2e}"


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
