"""The model away from the data, and how well it is known there."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from jaxfit._programs.call import Static
from jaxfit._programs.host import computed
from jaxfit._rows.predictions import with_numbers
from jaxfit._rows.residuals import jacobian
from jaxfit._scipy.arguments import coordinates, real_array
from jaxfit.fitting._batch_record import BatchRecord
from jaxfit.fitting._bins import in_bins, is_binned
from jaxfit.fitting._dates import Dated, Dates
from jaxfit.fitting._numbers import AtSolver, Numbers
from jaxfit.fitting._points import Observed
from jaxfit.fitting._problem import Numeric, Problem, traced_function
from jaxfit.fitting._programs import propagated
from jaxfit.fitting._record import Record
from jaxfit.fitting.inference._statistics import check_level, quantile
from jaxfit.losses import Binomial, Gamma, Likelihood, Poisson, Rician
from jaxfit.models import Model

Curve = Inexact[np.ndarray, "..."]
NUMBERS = 2**22  # of curves and their derivatives at a time


class Band(NamedTuple):
    """A curve and its band; all of the shape of x.

    Of a complex curve the real and imaginary parts are the bands of the parts.
    """

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    stderr: np.ndarray


class _Values(NamedTuple):
    """The model at some points, and its standard error there."""

    value: Any
    stderr: Any


def predicted(record: Record, x: PyTree) -> Curve:
    """The model's values, see `Fit.predict`."""
    if x is None and not record.has_errors_in_x:
        return record.best_fit
    return record.observed.shown(_values(record, x).value)


def confidence(record: Record, x: PyTree, level: float) -> Band:
    """The band of the curve, see `Fit.confidence_band`."""
    return _around(record, _values(record, x), level)


def prediction(record: Record, x: PyTree, level: float) -> Band:
    """The band of further observations, see `Fit.prediction_band`."""
    if record.is_judged:
        return _prediction_of_likelihood(record, x, level)
    observed, scatter = record.observed, np.float64(1.0)
    if x is None and observed.sigma is not None:
        scatter = observed.sigma
    elif observed.sigma is not None and np.size(observed.data.sigma) == 1:
        scatter = np.ravel(observed.sigma)[0]
    if not record.absolute_sigma:
        scatter = scatter * np.sqrt(record.reduced_chi_square)
    values = _values(record, x)
    of_points = values._replace(stderr=np.hypot(values.stderr, scatter))
    return _around(record, of_points, level)


def _prediction_of_likelihood(record: Record, x: PyTree, level: float) -> Band:
    """What would be observed, as a likelihood has it, about a mean not quite known.

    Of counts with a mean of some standard error the numbers between two quantiles of
    the negative binomial distribution, which has their mean and variance; of others a
    normal distribution's, within what can be observed.
    """
    import scipy.special
    import scipy.stats

    values, likelihood = _values(record, x), record.observed.likelihood
    numbers = record.observed.data.sigma
    if numbers is not None and x is not None:
        raise ValueError(
            f"{type(likelihood).__name__} has a number for each point of the data, and "
            "none for others. Leave out x for the band at the data."
        )
    assert likelihood is not None
    mean, judge = values.value, with_numbers(likelihood, numbers)
    around = computed(_moments, judge, mean)
    spread = np.sqrt(around.variance + values.stderr**2)
    check_level(level)
    if isinstance(likelihood, Poisson):
        excess = np.maximum(values.stderr, 1e-6 * np.sqrt(mean)) ** 2
        of_mean = mean**2 / excess, mean / (mean + excess)
        ends = scipy.stats.nbinom.ppf(
            np.array([0.5 - level / 2, 0.5 + level / 2])[:, None],
            *(np.ravel(part) for part in of_mean),
        ).reshape(2, *np.shape(mean))
        ends = np.where(mean > 0, ends, 0.0)
    else:
        reach = float(scipy.special.ndtri(0.5 + level / 2))
        ends = around.mean + reach * np.stack([-spread, spread])
        ends = np.clip(ends, *_range_of(judge))
    band = Band(around.mean, ends[0], ends[1], spread)
    return Band(*map(record.observed.shown, band))


class _Range(NamedTuple):
    """What can be observed."""

    least: Any
    most: Any


def _range_of(likelihood: Likelihood) -> _Range:
    if isinstance(likelihood, Binomial):
        return _Range(0.0, np.asarray(likelihood.trials, float))
    is_positive = isinstance(likelihood, (Gamma, Rician))
    return _Range(0.0 if is_positive else -np.inf, np.inf)


class _Moments(NamedTuple):
    """Of what would be observed."""

    mean: Any
    variance: Any


def _moments(likelihood: Likelihood, mean: Float[Array, "..."]) -> _Moments:
    zero = jnp.zeros_like(mean)
    return _Moments(likelihood.expected(mean) + zero, likelihood.variance(mean) + zero)


def components(record: Record, x: PyTree) -> dict[str, Curve]:
    """The parts of a sum at some points, see `Fit.components`."""
    values = computed(
        _components,
        record.problem,
        _points(record, x),
        record.numbers.at_solver.x,
        traced=traced_function(record.model),
    )
    labels = [part.label for part in record.model.parts]
    return dict(zip(labels, values, strict=True))


def curves(record: BatchRecord, x: PyTree) -> Curve:
    """The model's values for each of many fits, see `BatchFit.predict`."""
    values = computed(
        _curves,
        record.problem,
        record.x if x is None else _converted(record.model, x, record.dates),
        record.numbers.at_solver.x,
        traced=traced_function(record.model),
        is_hasty=False,
    )
    return values.reshape(*record.shape, *values.shape[1:])


def errors_at_data(record: Record) -> Float[np.ndarray, "..."]:
    """The standard errors of the curve at the data, in the shape of `observed`."""
    return _values(record, None).stderr


def curves_with_errors(record: BatchRecord) -> _Values:
    """The models at the data and their standard errors, for each of many fits."""
    ends = record.numbers.at_solver
    points = np.size(record.y) // max(len(ends.x), 1)
    number = max(1, NUMBERS // (max(points, 1) * (len(record.problem.varied) + 1)))
    parts = [
        computed(
            _values_of_each,
            record.problem,
            record.x,
            AtSolver(*(part[begin : begin + number] for part in ends)),
            traced=traced_function(record.model),
            is_hasty=False,
        )
        for begin in range(0, len(ends.x), number)
    ]
    return _Values(*map(np.concatenate, zip(*parts, strict=True)))


def at_data(problem: Problem, seen: Observed, numbers: Numbers) -> Curve:
    """The model at the data of one fit, as `Numbers.best`: flat, complex in parts."""
    values = computed(
        _at_data,
        problem,
        numbers.at_solver.x,
        seen.data.x,
        Static(seen.data.y.shape),
        traced=traced_function(problem.model),
    )
    return values.ravel()


def _around(record: Record, values: _Values, level: float) -> Band:
    reach = quantile(level, record.dof, record.absolute_sigma) * values.stderr
    band = Band(
        value=values.value,
        lower=values.value - reach,
        upper=values.value + reach,
        stderr=values.stderr,
    )
    return Band(*map(record.observed.shown, band))


def _values(record: Record, x: PyTree) -> _Values:
    return computed(
        _values_and_errors,
        record.problem,
        _points(record, x),
        record.numbers.at_solver,
        traced=traced_function(record.model),
    )


def _points(record: Record, x: PyTree) -> PyTree:
    observed = record.observed
    if x is None:
        return observed.data.x
    return _converted(record.model, x, observed.dates)


def _converted(model: Model, x: PyTree, dates: Dates | None) -> PyTree:
    """Points of the user's, as numbers; dates if the fit was to dates."""
    if is_binned(model):
        return in_bins(x)
    return coordinates(x if dates is None else Dated.of(x, dates).x, real_array)


# Programs


def _at_data(
    problem: Problem, x: Float[Array, " n"], points: PyTree, shape: Static
) -> Float[Array, "..."]:
    return jnp.asarray(problem.values(x, points, shape.value))


def _values_and_errors(problem: Problem, points: PyTree, solution: AtSolver) -> _Values:
    shape = _shape_of(problem.model, points, problem.about_origin(solution.x))
    if problem.numbers == "complex":
        shape = *shape, 2

    def curve(x: Float[Array, " n"]) -> Float[Numeric, " m"]:
        return problem.values(x, points, shape).ravel()

    value, slope = curve(solution.x), jacobian(curve, solution.x)
    stderr = propagated(slope, solution.covariance)
    return _Values(value.reshape(shape), stderr.reshape(shape))


def _values_of_each(problem: Problem, points: PyTree, ends: AtSolver) -> _Values:
    return jax.vmap(_values_and_errors, (None, None, 0))(problem, points, ends)


def _components(
    problem: Problem, points: PyTree, x: Float[Array, " n"]
) -> list[Inexact[Array, "..."]]:
    points, parameters = problem.points(points), problem.about_origin(x)
    shape = _shape_of(problem.model, points, parameters)
    return [
        jnp.broadcast_to(part.evaluate(points, parameters), shape)
        for part in problem.model.parts
    ]


def _curves(
    problem: Problem, points: PyTree, vectors: Float[Array, "N n"]
) -> Inexact[Array, "N ..."]:

    def one(x: Float[Array, " n"]) -> Any:
        return problem.model.evaluate(problem.points(points), problem.about_origin(x))

    return jax.vmap(one)(vectors)


def _shape_of(
    model: Model, points: PyTree, parameters: dict[str, Any]
) -> tuple[int, ...]:
    """The shape of the model's values, that of x for one that is constant."""
    shape = jnp.shape(model.evaluate(points, parameters))
    if isinstance(points, (tuple, list)):
        common = jnp.broadcast_shapes(*map(jnp.shape, points))
        is_ravelled = shape == (math.prod(common),)
        return shape if is_ravelled else jnp.broadcast_shapes(shape, common)
    return shape if shape else jnp.shape(points)
