"""Fits by name, one or many, by one program for all of them.

Where they start stands in `_guesses.py`. Then one program does the fits: `fit` gives it
one data set, `fit_batch` many, the bootstrap resampled ones and the profile likelihood
held parameters, and whatever comes first compiles it. Data whose points are
independent are padded, so that another number of points is the same program too.
"""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxfit._batch.batch import batch_of_fits
from jaxfit._batch.parts import in_parts, lean_first_in_parts, size_on_cpu
from jaxfit._core.options import Options, filled
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.call import Static
from jaxfit._programs.compiled import specialised
from jaxfit._programs.errors import what_is_not_finite
from jaxfit._programs.host import computed, double_precision, pack
from jaxfit._programs.memory import Budget
from jaxfit._rows.residuals import jacobian
from jaxfit._scipy.observations import Points
from jaxfit.fitting._guesses import run_starts
from jaxfit.fitting._padding import Padding, Task, padded_length, parted
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._programs import (
    BLOCK_NUMBERS,
    Axes,
    Case,
    Manner,
    ending,
    finished,
    for_solver,
    named,
    sandwich,
    weights_of,
)
from jaxfit.models._guess import Tally

# Numbers of y, all data sets together, up to which a program is compiled in haste; and
# up to which it then serves a model, before one that runs faster pays.
HASTY, HASTY_IN_ALL = 2**19, 2**20
FEW = Budget(2**18, 1, 64)  # data sets of a program for few
FITS_A_DEVICE = 200  # below, more devices do not pay

fitted_in_haste = Tally()


def run_fit(problem: Problem, case: Case, manner: Manner) -> dict[str, Any]:
    """One fit and its numbers, and the model at its points, `best`."""
    data = case.data
    sigma = None if data.sigma is None else np.broadcast_to(data.sigma, data.y.shape)
    plain = case._replace(data=data._replace(x=None, sigma=sigma))
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], plain)
    one = one._replace(data=one.data._replace(x=data.x))
    found = run_batch(problem, one, Axes.of(one), manner, with_values=True)
    return {k: v[0] if v.ndim > 1 else float(v[0]) for k, v in found.items()}


def run_batch(
    problem: Problem,
    cases: Case,
    axes: Axes,
    manner: Manner,
    progress: bool = False,
    with_values: bool = False,
) -> dict[str, np.ndarray]:
    """The numbers of many fits, by name, each with a leading axis.

    Args:
        with_values: also the model at the points of the data, `best`.
    """
    x0 = run_starts(problem, cases, axes)
    found = run_fits(problem, cases, axes, x0, manner, progress, with_values)
    return {**found, "start": of_varied(problem, x0)}


def of_varied(problem: Problem, x: Any) -> np.ndarray:
    """The parameters that vary, from the solver's vectors."""
    with double_precision(named(problem.model)), np.errstate(all="ignore"):
        return np.asarray(problem.of_varied(x.T)).T


# Fits


def run_fits(
    problem: Problem,
    cases: Case,
    axes: Axes,
    x0: Float[np.ndarray, "N n"],
    manner: Manner,
    progress: bool = False,
    with_values: bool = False,
) -> dict[str, np.ndarray]:
    """`run_batch` from given starts.

    Args:
        cases: `valid` may hold weights, of which zero does not count.
    """
    number, (x, y, sigma) = len(x0), cases.data
    shape = np.shape(y) if axes.shared else np.shape(y)[1:]
    points = math.prod(shape)
    with double_precision(named(problem.model)):
        way = _Way.of(problem, number, points, is_eager_on_cpu((cases, x0)))
        weights = cases.valid
        if weights is None and (way.is_for_few or way.length != points):
            weights = np.ones(shape)
        bounds = problem.bounds if cases.bounds is None else cases.bounds
        task = Task(y, sigma, weights, bounds, x0)
        is_each = Task(
            y=not axes.shared,
            sigma=axes.sigma == 0,
            weights=axes.valid == 0,
            bounds=axes.bounds == 0,
            x0=True,
        )
        if way.is_for_few:  # the same program for all that may be
            task, is_each = _spread(task, is_each, number, shape), Task(*[True] * 6)
        pad = Padding(problem, shape, way.length)
        each, shared = parted(task, is_each, pad)
        n, options = len(problem.varied), manner.options
        options = _numbers_of(options, n) if options else _default_numbers(n)
        manner = manner._replace(options=options)
        place = None if way.mesh is None else Static(way.mesh)
        common = problem, pad.points(x), shared, manner, place
        keeps_values = with_values or way.is_for_few

        def arguments(part, idle):
            return *common, pad.each(part), idle

        fits, own = specialised(_fits, keeps_values), (arguments, each, way.size)
        shapes = _shapes(problem, way.length, keeps_values)
        if number == 0:
            vectors = np.zeros((0, sum(map(math.prod, shapes.values()))))
        elif way.is_on_cpu:
            setting = {"is_hasty": way.is_hasty, "progress": progress}
            vectors = lean_first_in_parts(fits, *own, **setting)
        else:
            whole = specialised(fits, False)
            vectors = in_parts(whole, *own, is_on_cpu=False, progress=progress)
    found = _unpacked(vectors, shapes)
    best = found.pop("best", None)
    if with_values and best is not None:
        found["best"] = best[:, :points].reshape(number, *shape)
    return found


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
        """That for so many fits of so many points."""
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
        return cls(is_on_cpu, is_for_few, is_hasty, length, size, mesh)


def _fits(
    with_values: bool,
    is_lean: bool,
    problem: Problem,
    x,
    shared,
    manner,
    place,
    each,
    idle,
) -> Any:
    """The numbers of fits, (N, k); lean ones with flags of which are incomplete."""
    number = len(idle)
    task: Task = eqx.combine(each, shared)
    y_axis, sigma_axis, bounds_axis = (
        0 if jax.tree.leaves(own) else None for own in (each.y, each.sigma, each.bounds)
    )
    is_robust = manner.covariance.value == "sandwich"
    names = _shapes(problem, 0, with_values)

    def kept(solution):
        end = ending(solution, manner.absolute)
        if with_values:
            shape = task.y.shape[1:] if y_axis == 0 else task.y.shape
            end["best"] = problem.values(solution.x, x, shape)
        return end if is_robust else packed(end)

    def packed(end):
        numbers = finished(problem, end)
        return pack([numbers[name] for name in names])

    weights = task.weights
    if weights is not None and each.weights is None:
        weights = jnp.broadcast_to(weights, (number, *weights.shape))
    found = batch_of_fits(
        problem.function,
        task.x0,
        Points(x, task.y, task.sigma),
        (0, Points(None, y_axis, sigma_axis), bounds_axis),
        idle,
        bounds=task.bounds,
        weights=None
        if weights is None
        else jax.vmap(functools.partial(weights_of, problem))(weights),
        loss=manner.loss,
        options=manner.options,
        mesh=None if place is None else place.value,
        keep=kept,
        is_lean=is_lean,
    )
    if not is_robust:
        return found

    def robust(y, sigma, weights, end):
        case = Case(Points(x, y, sigma), weights, {})
        covariance = sandwich(problem, case, end["x"], manner.loss, end["covariance"])
        return packed({**end, "covariance": covariance})

    ends, *incomplete = found if is_lean else (found,)
    weights_axis = None if weights is None else 0
    in_axes = y_axis, sigma_axis, weights_axis, 0
    vectors = jax.vmap(robust, in_axes)(task.y, task.sigma, weights, ends)
    return (vectors, *incomplete) if is_lean else vectors


def _numbers_of(options: Options, n: int) -> Options:
    """With numbers of NumPy for all, whatever was given: one program."""
    return jax.tree.map(np.asarray, filled(options, n))


@functools.cache
def _default_numbers(n: int) -> Options:
    """Those of which none is given."""
    return _numbers_of(Options(), n)


def _spread(task: Task, is_each: Task, number: int, shape: tuple) -> Task:
    """Everything for each fit, without copies."""

    def wide(leaf, own, tail):
        if leaf is None or own:
            return leaf

        def each(values):
            shape = np.shape(values) if tail is None else tail
            return np.broadcast_to(values, (number, *shape))

        return jax.tree.map(each, leaf)

    tails = shape, shape, shape, None, None, None
    return Task(*map(wide, task, is_each, tails))


def _unpacked(
    vectors: Float[np.ndarray, "N k"], shapes: dict[str, tuple]
) -> dict[str, np.ndarray]:
    """The numbers by name."""
    types = {"status": int, "nfev": int, "count": int, "active": int}
    types |= {"determined": bool}
    found, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        part = vectors[:, start : start + size].reshape(-1, *shape)
        found[name] = part.astype(types.get(name, float))
        start += size
    return found


def _shapes(problem: Problem, length: int, with_values: bool) -> dict[str, tuple]:
    """The shapes of what a fit gives, in order."""
    n, k = len(problem.varied), len(problem.names) + len(problem.derived_names)
    own = {"solver_x": (n,), "solver_covariance": (n, n)}
    return {
        "x": (n,),
        "covariance": (n, n),
        "determined": (k,),
        "active": (n,),
        **dict.fromkeys(("cost", "optimality", "status", "nfev", "count"), ()),
        "gradient": (n,),
        **({"best": (length,)} if with_values else {}),
        "values": (k,),
        "errors": (k,),
        **({} if problem.origin is None else own),
    }


def devices_for(number: int) -> Mesh | None:
    """All devices of this process, where there are several and enough to do."""
    devices = jax.local_devices()
    if len(devices) == 1 or number < FITS_A_DEVICE * len(devices):
        return None
    return Mesh(np.array(devices), ("fits",))


# Failures


def not_finite(problem: Problem, case: Case, numbers: Any) -> str:
    """What is not finite where a fit started, in words."""
    residual, slopes = computed(
        _rows,
        problem,
        case,
        for_solver(numbers, "x"),
        traced=named(problem.model),
        is_hasty=False,
    )
    if case.valid is not None:
        residual = np.where(case.valid, residual, 0)
        slopes = np.where(case.valid[..., None], slopes, 0)
    return what_is_not_finite(residual, slopes)


def _rows(problem, case, x):

    def rows(x):
        return problem.residuals(x, case.data)["data"]

    return rows(x), jacobian(rows, x)
