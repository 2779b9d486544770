"""Fits by name, one or many, by one program for all of them.

Where they start stands in `_guesses.py`. Then one program does the fits: `fit` gives it
one data set, `fit_batch` many, the bootstrap resampled ones and the profile likelihood
held parameters, and whatever comes first compiles it. Data whose points are
independent are padded, so that another number of points is the same program too.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._batch.batch import batch_of_fits
from jaxfit._batch.parts import in_parts, lean_first_in_parts, size_on_cpu
from jaxfit._core.options import Options, filled
from jaxfit._core.solution import Solution
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.call import Static
from jaxfit._programs.compiled import specialised
from jaxfit._programs.errors import what_is_not_finite
from jaxfit._programs.host import computed, double_precision, pack
from jaxfit._programs.memory import Budget
from jaxfit._rows.predictions import means_of
from jaxfit._rows.residuals import jacobian
from jaxfit._scipy.observations import Points
from jaxfit.fitting._guesses import start_vectors
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._orthogonal import effective_sigma, number_of_corrections
from jaxfit.fitting._orthogonal import fits as orthogonal_fits
from jaxfit.fitting._padding import (
    EVERYTHING,
    FitInputs,
    Padding,
    Parted,
    padded_length,
)
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Method, Numeric, Problem, traced_function
from jaxfit.fitting._programs import (
    BLOCK_NUMBERS,
    ending,
    finished,
    of_rows,
    weights_of,
)
from jaxfit.models._guess import Tally

# Numbers of y, all data sets together, up to which a program is compiled in haste; and
# up to which it then serves a model, before one that runs faster pays.
HASTY, HASTY_IN_ALL = 2**19, 2**20
FEW = Budget(2**18, 1, 64)  # data sets of a program for few
FITS_A_DEVICE = 200  # below, more devices do not pay

fitted_in_haste = Tally()


def fit_numbers(problem: Problem, data_set: DataSet, method: Method) -> Numbers:
    """One fit and its numbers, and the model at its points, `best`."""
    only = only_one(data_set)
    numbers = batch_numbers(problem, only, Axes.of(only), method, with_values=True)
    return numbers.nth(0)


def only_one(data_set: DataSet) -> DataSet:
    """One data set as many of which it is the only one."""
    data = data_set.data
    sigma, shape = data.sigma, np.shape(data.y)
    if sigma is not None and np.ndim(sigma) <= len(shape):
        sigma = np.broadcast_to(sigma, shape)
    plain = data_set._replace(data=data._replace(x=None, sigma=sigma), sigma_x=None)
    only = jax.tree.map(lambda leaf: np.asarray(leaf)[None], plain)
    data = only.data._replace(x=data.x)
    return only._replace(data=data, sigma_x=data_set.sigma_x)


def batch_numbers(
    problem: Problem,
    data_sets: DataSet,
    axes: Axes,
    method: Method,
    *,
    progress: bool = False,
    with_values: bool = False,
) -> Numbers:
    """The numbers of many fits, each with a leading axis.

    Args:
        with_values: also the model at the points of the data, `best`.
    """
    x0 = start_vectors(problem, data_sets, axes)
    numbers = numbers_from(
        problem,
        data_sets,
        axes,
        _without_errors_in_x(problem, data_sets, axes, x0, method),
        method,
        progress=progress,
        with_values=with_values,
    )
    return numbers._replace(start=of_varied(problem, x0))


def _without_errors_in_x(
    problem: Problem,
    data_sets: DataSet,
    axes: Axes,
    x0: Float[np.ndarray, "N n"],
    method: Method,
) -> Float[np.ndarray, "N n"]:
    """Where fits with errors in x start: the fit without, and by effective variance."""
    if data_sets.sigma_x is None or not len(x0):
        return x0
    plain = data_sets._replace(sigma_x=None)
    near = _ends(problem, plain, axes, x0, method)
    sigma = effective_sigma(problem, data_sets, axes, near)
    plain = plain._replace(data=plain.data._replace(sigma=sigma))
    return _ends(problem, plain, axes._replace(sigma=0), near, method)


def _ends(
    problem: Problem,
    data_sets: DataSet,
    axes: Axes,
    x0: Float[np.ndarray, "N n"],
    method: Method,
) -> Float[np.ndarray, "N n"]:
    """Where fits end, if that is a number, or else where they start."""
    ends = numbers_from(problem, data_sets, axes, x0, method).at_solver.x
    is_number = np.isfinite(ends).all(axis=1, keepdims=True)
    return np.where(is_number, ends, x0)


def of_varied(
    problem: Problem, x: Float[np.ndarray, "N n"]
) -> Float[np.ndarray, "N n"]:
    """The parameters that vary, from the solver's vectors."""
    with double_precision(traced_function(problem.model)), np.errstate(all="ignore"):
        return np.asarray(problem.of_varied(x.T)).T


# Fits


def numbers_from(
    problem: Problem,
    data_sets: DataSet,
    axes: Axes,
    x0: Float[np.ndarray, "N n"],
    method: Method,
    *,
    progress: bool = False,
    with_values: bool = False,
) -> Numbers:
    """`batch_numbers` from given starts.

    Args:
        data_sets: `valid` may hold weights, of which zero does not count.
    """
    number, shape = len(x0), axes.shape(data_sets)
    points = math.prod(shape)
    with double_precision(traced_function(problem.model)):
        is_on_cpu = is_eager_on_cpu((data_sets, x0))
        way = _Way.of(problem, number, points, is_on_cpu)
        pad = Padding(problem, shape, way.length)
        inputs = _inputs(problem, data_sets, axes, x0, pad, way.is_for_few)
        common = _Common(
            problem=problem,
            x=pad.points(data_sets.data.x),
            shared=inputs.shared,
            method=method._replace(
                options=numbers_in(method.options, len(problem.varied))
            ),
            place=None if way.mesh is None else Static(way.mesh),
            sigma_x=pad.errors(data_sets.sigma_x),
        )
        keeps_values = with_values or way.is_for_few
        corrections = number_of_corrections(data_sets.sigma_x or (), shape)
        shapes = Numbers.shapes(
            problem, way.length if keeps_values else None, corrections
        )

        def arguments(part: FitInputs, idle: np.ndarray) -> tuple:
            return common, pad.each(part), idle

        if number == 0:
            vectors = np.zeros((0, 0))
        else:
            fits = specialised(_fits, keeps_values)
            if data_sets.sigma_x is not None:
                fits = specialised(orthogonal_fits, keeps_values, is_on_cpu)
            vectors = way.run(fits, arguments, inputs.each, progress)
    numbers = Numbers.unpacked(vectors, shapes)
    if not with_values:
        return numbers._replace(best=None, moved=None)
    best, moved = numbers.best[:, :points].reshape(number, *shape), numbers.moved
    if moved is not None:
        moved = moved[..., :points].reshape(number, corrections, *shape)
    return numbers._replace(best=best, moved=moved)


def _inputs(
    problem: Problem,
    data_sets: DataSet,
    axes: Axes,
    x0: Float[np.ndarray, "N n"],
    pad: Padding,
    is_for_few: bool,
) -> Parted:
    """What a program is given of the fits, of few everything for each."""
    weights = data_sets.valid
    if weights is None and (is_for_few or pad.is_longer):
        weights = np.ones(pad.shape)
    inputs = FitInputs(
        y=data_sets.data.y,
        sigma=data_sets.data.sigma,
        weights=weights,
        bounds=problem.bounds if data_sets.bounds is None else data_sets.bounds,
        x0=x0,
    )
    is_each = FitInputs(
        y=not axes.shared,
        sigma=axes.sigma == 0,
        weights=axes.valid == 0,
        bounds=axes.bounds == 0,
        x0=True,
    )
    if is_for_few:  # the same program for all that may be
        inputs, is_each = _for_each(inputs, is_each, len(x0), pad.shape), EVERYTHING
    return Parted.of(inputs, is_each, pad)


def _for_each(
    inputs: FitInputs, is_each: FitInputs, number: int, shape: tuple[int, ...]
) -> FitInputs:
    """Everything for each fit, without copies."""

    def of_points(values: Any, is_own: bool) -> Any:
        if values is None or is_own:
            return values
        own = shape if np.ndim(values) <= len(shape) else np.shape(values)
        return np.broadcast_to(values, (number, *own))

    bounds = inputs.bounds
    if bounds is not None and not is_each.bounds:
        lower, upper = bounds
        whole = number, *np.shape(lower)
        bounds = np.broadcast_to(lower, whole), np.broadcast_to(upper, whole)
    return inputs._replace(
        y=of_points(inputs.y, is_each.y),
        sigma=of_points(inputs.sigma, is_each.sigma),
        weights=of_points(inputs.weights, is_each.weights),
        bounds=bounds,
    )


class _Way(NamedTuple):
    """How many fits are done: the length of the data, and how many at a time."""

    is_on_cpu: bool
    is_for_few: bool  # a program that takes few at a time, everything for each
    is_hasty: bool  # compiled in half the time, and half as fast
    length: int
    size: int
    mesh: Mesh | None

    @classmethod
    def of(cls, problem: Problem, number: int, points: int, is_on_cpu: bool) -> "_Way":
        """The way for so many fits of so many points."""
        work = number * max(points, 1)
        is_hasty = is_on_cpu and work <= HASTY
        is_hasty = is_hasty and fitted_in_haste.holds(problem.model, work, HASTY_IN_ALL)
        is_for_few = is_on_cpu and (is_hasty or number <= FEW.most) and work <= HASTY
        length = padded_length(problem, points, is_for_few)
        numbers, mesh = max(length, 1), None
        if is_for_few:
            size = FEW.holds(8 * numbers)
        elif is_on_cpu:
            size = size_on_cpu(numbers)
        else:
            size = max(1, min(number, BLOCK_NUMBERS // numbers))
            mesh = devices_for(size)
        return cls(
            is_on_cpu=is_on_cpu,
            is_for_few=is_for_few,
            is_hasty=is_hasty,
            length=length,
            size=size,
            mesh=mesh,
        )

    def run(
        self, fits: Callable, arguments: Callable, each: FitInputs, progress: bool
    ) -> Float[np.ndarray, "N k"]:
        """The vectors of numbers of all fits."""
        settings = {"progress": progress}
        if self.is_on_cpu:
            settings["is_hasty"] = self.is_hasty
            return lean_first_in_parts(fits, arguments, each, self.size, **settings)
        whole = specialised(fits, False)
        return in_parts(whole, arguments, each, self.size, is_on_cpu=False, **settings)


class _Common(NamedTuple):
    """What all fits of a program share."""

    problem: Problem
    x: PyTree  # the coordinates, padded
    shared: FitInputs
    method: Method
    place: Static | None  # the devices, if not one
    sigma_x: tuple | None = None  # errors of the coordinates, padded


def _fits(
    with_values: bool,
    is_lean: bool,
    common: _Common,
    each: FitInputs,
    idle: Bool[Array, " N"],
) -> Any:
    """The numbers of fits, (N, k); lean ones with flags of which are incomplete."""
    problem, method, place = common.problem, common.method, common.place
    inputs, axes = Parted(each, common.shared).whole, each.axes
    if inputs.weights is not None and axes.weights is None:
        weights = jnp.broadcast_to(inputs.weights, (len(idle), *inputs.weights.shape))
        inputs, axes = inputs._replace(weights=weights), axes._replace(weights=0)
    shape = inputs.y.shape[1:] if axes.y == 0 else inputs.y.shape

    def kept(solution: Solution) -> Any:
        end = ending(solution, method.absolute)
        if with_values:
            end = end._replace(best=problem.values(solution.x, common.x, shape))
        return end if method.is_of_rows else pack(finished(problem, end))

    weights_of_each = jax.vmap(functools.partial(weights_of, problem))
    fits = batch_of_fits(
        problem.function,
        inputs.x0,
        Points(common.x, inputs.y, inputs.sigma),
        (0, Points(None, axes.y, axes.sigma), axes.bounds),
        idle,
        bounds=inputs.bounds,
        weights=None if inputs.weights is None else weights_of_each(inputs.weights),
        loss=method.loss,
        options=method.options,
        mesh=None if place is None else place.value,
        keep=kept,
        is_lean=is_lean,
    )
    if not method.is_of_rows:
        return fits
    ends, *incomplete = fits if is_lean else (fits,)
    vectors = _with_errors_of_rows(common, inputs, axes, ends)
    return (vectors, *incomplete) if is_lean else vectors


def _with_errors_of_rows(
    common: _Common, inputs: FitInputs, axes: FitInputs, ends: Numbers
) -> Float[Array, "N k"]:
    """The numbers of fits that have ended, with the covariance that rows give."""
    problem, method = common.problem, common.method

    def judged(y: Any, sigma: Any, weights: Any, end: Numbers) -> Float[Array, " k"]:
        data_set = DataSet(Points(common.x, y, sigma), weights)
        covariance = of_rows(problem, data_set, end, method)
        return pack(finished(problem, end._replace(covariance=covariance)))

    in_axes = axes.y, axes.sigma, axes.weights, 0
    return jax.vmap(judged, in_axes)(inputs.y, inputs.sigma, inputs.weights, ends)


def numbers_in(options: Options | None, n: int) -> Options:
    """Options with numbers of NumPy for all, whatever was given: one program."""
    if options is None:
        return _default_numbers(n)
    return jax.tree.map(np.asarray, filled(options, n))


@functools.cache
def _default_numbers(n: int) -> Options:
    """The options of which none is given."""
    return numbers_in(Options(), n)


def devices_for(number: int) -> Mesh | None:
    """All devices of this process, where there are several and enough to do."""
    devices = jax.local_devices()
    if len(devices) == 1 or number < FITS_A_DEVICE * len(devices):
        return None
    return Mesh(np.array(devices), ("fits",))


# Failures


def not_finite(problem: Problem, data_set: DataSet, numbers: Numbers) -> str:
    """What is not finite where a fit started, in words."""
    residual, slopes = computed(
        rows_and_slopes,
        problem,
        data_set,
        numbers.at_solver.x,
        traced=traced_function(problem.model),
        is_hasty=False,
    )
    valid = data_set.valid
    if valid is not None:
        residual = np.where(valid, residual, 0)
        slopes = np.where(valid[..., None], slopes, 0)
    return what_is_not_finite(residual, slopes)


def rows_and_slopes(
    problem: Problem, data_set: DataSet, x: Float[Array, " n"]
) -> tuple[Float[Numeric, "..."], Float[Array, "... n"]]:
    """The residuals of the data, or the model's values, and their derivatives."""

    def rows(x: Float[Array, " n"]) -> Float[Numeric, "..."]:
        return means_of(problem.residuals(x, data_set.data))["data"]

    return rows(x), jacobian(rows, x)
