"""The model away from the data, and how well it is known there."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxfit._programs.host import computed
from jaxfit._rows.residuals import jacobian
from jaxfit._scipy.arguments import coordinates, real_array
from jaxfit.fitting._programs import for_solver, named, propagated
from jaxfit.fitting.inference._statistics import quantile

if TYPE_CHECKING:
    from jaxfit.fitting._result import Fit


class Band(NamedTuple):
    """A curve and its band; all of the shape of x."""

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    stderr: np.ndarray


def confidence(fit: "Fit", x: PyTree, level: float) -> Band:
    """See `Fit.confidence_band`."""
    value, stderr = band(fit, x)
    return _around(fit, value, stderr, level)


def prediction(fit: "Fit", x: PyTree, level: float) -> Band:
    """See `Fit.prediction_band`."""
    value, stderr = band(fit, x)
    scatter: Any = 1.0
    if x is None and fit.observed.sigma is not None:
        scatter = fit.observed.sigma
    elif fit.observed.data.sigma is not None and np.size(fit.observed.data.sigma) == 1:
        scatter = np.ravel(fit.observed.data.sigma)[0]
    if not fit.absolute_sigma:
        scatter = scatter * np.sqrt(fit.reduced_chi_square)
    return _around(fit, value, np.hypot(stderr, scatter), level)


def _around(fit, value, stderr, level) -> Band:
    reach = quantile(level, fit.dof, fit.absolute_sigma) * stderr
    return Band(value, value - reach, value + reach, stderr)


def band(fit: "Fit", x: PyTree) -> tuple[np.ndarray, np.ndarray]:
    """The model at some points and its standard error there."""
    value, stderr = computed(
        _band, fit.problem, _points(fit, x), *_at(fit), traced=named(fit.model)
    )
    return value, stderr


def components(fit: "Fit", x: PyTree) -> dict[str, np.ndarray]:
    """The parts of a sum at some points."""
    found = computed(
        _components, fit.problem, _points(fit, x), *_at(fit), traced=named(fit.model)
    )
    labels = [part.label for part in fit.model.parts]
    return dict(zip(labels, found, strict=True))


def _points(fit, x):
    if x is None:
        return fit.observed.data.x
    return coordinates(x, real_array)


def _at(fit):
    return for_solver(fit.numbers, "x"), for_solver(fit.numbers, "covariance")


def _shape_of(model, points, parameters):
    """The shape of the model's values, that of x for one that is constant."""
    shape = jnp.shape(model.evaluate(points, parameters))
    if isinstance(points, (tuple, list)):
        return jnp.broadcast_shapes(shape, *map(jnp.shape, points))
    return shape if shape else jnp.shape(points)


def _band(problem, points, x, covariance):
    shape = _shape_of(problem.model, points, problem.about_origin(x))

    def curve(x):
        return problem.values(x, points, shape).ravel()

    value, slope = curve(x), jacobian(curve, x)
    stderr = propagated(slope, covariance)
    return value.reshape(shape), stderr.reshape(shape)


def _components(problem, points, x, covariance):
    points, parameters = problem.points(points), problem.about_origin(x)
    shape = _shape_of(problem.model, points, parameters)
    return [
        jnp.broadcast_to(part.evaluate(points, parameters), shape)
        for part in problem.model.parts
    ]
