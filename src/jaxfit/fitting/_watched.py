"""A fit that is watched: a callback after each step, and a limit of time.

The trips are those of `fit`'s program, one call for each.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Setup, solution
from jaxfit._core.options import check_callable, without_callable
from jaxfit._core.rules import OURS
from jaxfit._numpy.host import OnHost
from jaxfit._numpy.out_shape import OutShape
from jaxfit._programs.compiled import specialised
from jaxfit._programs.host import double_precision, pack
from jaxfit._scipy.observations import Points
from jaxfit._scipy.request import Door, ScipyRequest
from jaxfit._scipy.trips import Glance, Trips
from jaxfit._scipy.watch import run_watched
from jaxfit.fitting._arguments import COVARIANCES
from jaxfit.fitting._functions import Asked
from jaxfit.fitting._guesses import start_vectors
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._padding import FitInputs, Padding, padded_length
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Method, Problem, traced_function
from jaxfit.fitting._programs import ending, finished, of_rows, weights_of
from jaxfit.fitting._run import numbers_in, of_varied, only_one


class Step(NamedTuple):
    """Where a fit stands after a step, as a callback sees it."""

    number: int  # of the step, from 1
    values: Mapping[str, float]  # of all parameters, by name
    chi_square: float
    nfev: int


class Watch(NamedTuple):
    """Who wants to see every step, and for how long."""

    callback: Callable[[Step], Any] | None
    time_limit: float | None  # in seconds, from the first evaluation

    @classmethod
    def of(cls, callback: Any, time_limit: Any, starts: int) -> "Watch | None":
        """The arguments of `fit`, checked; None where nobody watches."""
        if callback is None and time_limit is None:
            return None
        if callback is not None:
            check_callable(callback, "callback", "a function of a step")
        if time_limit is not None:
            is_number = isinstance(time_limit, (int, float, np.number))
            if isinstance(time_limit, bool) or not (is_number and time_limit > 0):
                raise ValueError(
                    f"time_limit is {time_limit!r}; give a positive number of seconds."
                )
            time_limit = float(time_limit)
        if starts != 1:
            raise ValueError(
                f"callback and time_limit watch one fit, and starts is {starts!r}; "
                "leave out one or the other."
            )
        return cls(callback, time_limit)


class Watched(NamedTuple):
    """The numbers of a fit, and sentences about how it came to its end."""

    numbers: Numbers
    remarks: tuple[str, ...]


def watched_numbers(
    asked: Asked, problem: Problem, data_set: DataSet, method: Method, watch: Watch
) -> Watched:
    """The numbers of one fit that is run trip by trip, and the model at its points."""
    only = only_one(data_set)
    x0 = start_vectors(problem, only, Axes.of(only))
    points, shape = np.size(data_set.data.y), np.shape(data_set.data.y)
    length = padded_length(problem, points, is_for_few=True)
    door, clock = _DOORS[method.covariance.value], _Clock(watch.time_limit)
    with double_precision(traced_function(problem.model)):
        request = _request(problem, data_set, method, x0[0], length)
        if asked.is_on_host:
            request = request._replace(f=_on_host(asked, problem, x0[0]))
        notify = None if watch.callback is None else _notifier(problem, watch.callback)
        trips = Trips(door, request)
        run_watched(trips, clock.until(trips), notify)
        vector = np.asarray(trips.ended())
    numbers = Numbers.unpacked(vector[None], Numbers.shapes(problem, length))
    best = numbers.best[:, :points].reshape(1, *shape)
    numbers = numbers._replace(best=best, start=of_varied(problem, x0)).nth(0)
    if clock.has_run_out:
        limit = f"The time limit of {watch.time_limit:g} s was reached."
        return Watched(numbers, (limit,))
    return Watched(numbers, ())


def _on_host(asked: Asked, problem: Problem, x0: Float[np.ndarray, " n"]) -> OnHost:
    """All residuals, which NumPy computes."""
    plain = dataclasses.replace(problem, model=asked.in_numpy.model)
    differences = asked.differences._replace(typical=np.abs(x0))
    return OnHost(plain.residuals, OutShape.of(np.zeros(()), ()), differences)


class _Clock:
    """A limit of time, from the first evaluation: compiling does not count."""

    def __init__(self, limit: float | None):
        self.limit = limit
        self.has_run_out = False

    def until(self, trips: Trips) -> Iterator[Glance]:
        """The trips of a fit until its time has run out, and it is stopped."""
        begin = None
        for glance in trips:
            begin = time.monotonic() if begin is None else begin
            if self.limit is not None and glance.is_running:
                self.has_run_out = time.monotonic() - begin > self.limit
            if self.has_run_out:
                trips.stop()
            yield glance


def _notifier(
    problem: Problem, callback: Callable[[Step], Any]
) -> Callable[[int, Glance], bool]:
    """What tells the callback of a step; True or StopIteration stops the fit."""

    def notify(iteration: int, now: Glance) -> bool:
        with np.errstate(all="ignore"):
            values = problem.parameters(now.x[:, None])
        step = Step(
            number=iteration,
            values={name: float(np.ravel(value)[0]) for name, value in values.items()},
            chi_square=2 * now.cost,
            nfev=now.nfev,
        )
        try:
            return callback(step) is True
        except StopIteration:
            return True

    return notify


def _request(
    problem: Problem,
    data_set: DataSet,
    method: Method,
    x0: Float[np.ndarray, " n"],
    length: int,
) -> ScipyRequest:
    data, shape = data_set.data, np.shape(data_set.data.y)
    pad = Padding(problem, shape, length)
    valid = np.ones(shape) if data_set.valid is None else data_set.valid
    padded = pad.each(FitInputs(y=data.y, sigma=data.sigma, weights=valid))
    options, jac = without_callable(numbers_in(method.options, len(x0)))
    return ScipyRequest(
        f=problem.function,
        jac=jac,
        x0=x0,
        data=Points(pad.points(data.x), padded.y, padded.sigma),
        bounds=problem.bounds,
        weights=weights_of(problem, padded.weights),
        loss=method.loss,
        options=options,
        x_scale=None,
        absolute_sigma=method.absolute,
        problem=problem,
    )


# The program


def _report(
    kind: str, setup: Setup, outcome: Outcome, request: ScipyRequest
) -> Float[Array, " k"]:
    """All numbers of the fit, as one vector."""
    problem, data = request.problem, request.data
    end = ending(solution(setup, outcome), request.absolute_sigma)
    end = end._replace(best=problem.values(end.x, data.x, data.y.shape))
    method = Method(
        loss=request.loss,
        options=None,
        absolute=request.absolute_sigma,
        covariance=COVARIANCES[kind],
    )
    if method.is_of_rows:
        seen = DataSet(data, request.weights["data"])
        end = end._replace(covariance=of_rows(problem, seen, end, method))
    return pack(finished(problem, end))


def _residuals(f: Callable, x: Any, data: Points) -> Any:
    return f(x, data)


_DOORS = {
    kind: Door(
        call=_residuals,
        form="vector",
        residual=_residuals,
        jacobian=_residuals,
        report=specialised(_report, kind),
        rules=OURS,
    )
    for kind in COVARIANCES
}
