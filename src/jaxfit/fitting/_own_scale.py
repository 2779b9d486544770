"""Fits by name whose robust loss finds its scale: see `_core/auto_scale.py`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxfit._batch.batch import solve_batch
from jaxfit._programs.host import double_precision
from jaxfit._scipy.observations import Points
from jaxfit.fitting._guesses import start_vectors
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Method, Problem, traced_function
from jaxfit.fitting._programs import weights_of
from jaxfit.fitting._run import batch_numbers, numbers_in, only_one


def with_found_scale(problem: Problem, data_set: DataSet, method: Method) -> Method:
    """The method of one fit, its loss with the scale that is found."""
    kind: Any = type(method.loss)
    only = only_one(data_set)
    scale = float(own_scales(problem, only, Axes.of(only), method)[0])
    if not 0 < scale < math.inf:
        raise ValueError(
            f"loss={type(method.loss).__name__}('auto') found no scale: the model, its "
            "derivatives or the data are not finite at the start, or the start lies "
            "outside the bounds. Give another p0, or a number for the scale."
        )
    return method._replace(loss=kind(scale))


def check_scale_can_be_found(is_on_host: bool) -> None:
    """Refuse a model that only NumPy can compute."""
    if is_on_host:
        raise ValueError(
            "The scale 'auto' of a loss is found by a compiled program, and the model "
            "runs on the host. Give a number for the scale, such as losses.Huber(1.0)."
        )


def own_scales(
    problem: Problem, data_sets: DataSet, axes: Axes, method: Method
) -> Float[np.ndarray, " N"]:
    """The scales of the losses of many fits."""
    x0, data = start_vectors(problem, data_sets, axes), data_sets.data
    weights = None
    with double_precision(traced_function(problem.model)):
        if data_sets.valid is not None:
            valid = jnp.asarray(data_sets.valid, float)
            weights = jax.vmap(lambda one: weights_of(problem, one))(valid)
        solution = solve_batch(
            problem.function,
            x0,
            Points(data.x, data.y, data.sigma),
            in_axes=(0, Points(None, 0, axes.sigma)),
            bounds=problem.bounds,
            weights=weights,
            loss=method.loss,
            options=numbers_in(method.options, len(problem.varied)),
        )
        return np.asarray(solution.loss_scale)


def batch_with_own_scales(
    problem: Problem, data_sets: DataSet, axes: Axes, method: Method, progress: bool
) -> Numbers:
    """The numbers of many fits, each in units of its own scale."""
    if problem.prior:
        raise ValueError(
            f"loss={type(method.loss).__name__}('auto') has a scale for each data set, "
            "and a prior is in units of sigma. Give a number for the scale."
        )
    kind: Any = type(method.loss)
    scales = own_scales(problem, data_sets, axes, method)
    scales = np.where((scales > 0) & np.isfinite(scales), scales, 1.0)
    shape = axes.shape(data_sets)
    sigma = data_sets.data.sigma
    sigma = np.ones(shape) if sigma is None else sigma
    own = sigma * scales.reshape(-1, *[1] * len(shape))
    data = data_sets.data._replace(sigma=np.broadcast_to(own, (len(scales), *shape)))
    numbers = batch_numbers(
        problem,
        data_sets._replace(data=data),
        axes._replace(sigma=0),
        method._replace(loss=kind(1.0)),
        progress=progress,
    )
    return _in_units(numbers, scales, method)


def _in_units(
    numbers: Numbers, scales: Float[np.ndarray, " N"], method: Method
) -> Numbers:
    """Numbers in units of sigma, of fits in units of their scales."""

    def times(values: Any, power: int) -> Any:
        if values is None:
            return None
        factors = scales**power
        return values * factors.reshape(-1, *[1] * (np.ndim(values) - 1))

    numbers = numbers._replace(
        cost=times(numbers.cost, 2), gradient=times(numbers.gradient, 2)
    )
    if method.is_sandwich or not method.absolute:
        return numbers
    return numbers._replace(
        covariance=times(numbers.covariance, -2),
        errors=times(numbers.errors, -1),
        solver_covariance=times(numbers.solver_covariance, -2),
    )
