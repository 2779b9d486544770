"""Fits by name, one or many: where they start, and one program for all of them.

NumPy guesses the starts of few data sets, a program of its own those of many. Then one
program does the fits: `fit` gives it one data set, `fit_batch` many, the bootstrap
resampled ones and the profile likelihood held parameters, and whatever comes first
compiles it. Data whose points are independent are padded by some of weight zero, so
that another number of points is the same program too.
"""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxfit import _host
from jaxfit._batch import batch_of_fits
from jaxfit._compile import Static, bound, compiled, is_eager_on_cpu
from jaxfit._observations import bucket, padded_points
from jaxfit._options import Options, filled
from jaxfit._parts import in_parts, size_on_cpu
from jaxfit._residuals import jacobian
from jaxfit._small import Room, room
from jaxfit._words import what_is_not_finite
from jaxfit.fitting._problem import Data, Problem
from jaxfit.fitting._program import (
    Axes,
    Case,
    Manner,
    ending,
    finished,
    for_solver,
    named,
    sandwich,
    start_vector,
    weights_of,
)
from jaxfit.models import Model

# Numbers of y, all data sets together, up to which a program is compiled in haste; and
# up to which it then serves batches, before one that runs faster pays.
HASTY, HASTY_IN_ALL = 2**19, 2**20
# Data sets of that program, and numbers of their y.
FEW, FEW_NUMBERS = 64, 2**15
# Guesses for a model that NumPy makes before a program is compiled, which takes as
# long; peaks beside each other count more.
GUESSES_IN_NUMPY = 400
# Data for which starts are guessed at a time by a program, on a CPU and elsewhere.
GUESSES = Room(2**17, 1, 2**12), Room(2**25, 1, 2**16)
BLOCK_NUMBERS = 2**24  # of data on an accelerator at a time
FITS_A_DEVICE = 200  # below, more devices do not pay
MODELS = 256  # of which is known how much was done


class Tally:
    """How much was done for each model without a program that costs time first."""

    def __init__(self):
        self._done: dict[Any, int] = {}

    def holds(self, model: Model, amount: int, most: int) -> bool:
        """Whether so much more is not too much in all, and then notes it."""
        try:
            done = self._done.get(model, 0) + amount
        except TypeError:  # a model that holds arrays has no hash
            model = type(model)
            done = self._done.get(model, 0) + amount
        if done <= most:
            while len(self._done) >= MODELS:
                del self._done[next(iter(self._done))]
            self._done[model] = done
        return done <= most


guessed, fitted_in_haste = Tally(), Tally()


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


def of_varied(problem: Problem, x: Float[np.ndarray, "N n"]) -> np.ndarray:
    """The parameters that vary, from the solver's vectors."""
    with _host.double_precision(named(problem.model)), np.errstate(all="ignore"):
        return np.asarray(problem.of_varied(x.T)).T


# Starts


def run_starts(problem: Problem, cases: Case, axes: Axes) -> Float[np.ndarray, "N n"]:
    """Where the fits start: what is given, and guesses for the rest."""
    number = axes.number(cases)
    if all(name in cases.starts for name in problem.varied):
        given = [cases.starts[name] for name in problem.varied]
        return np.stack(np.broadcast_arrays(*given, np.zeros(number))[:-1], axis=1)
    with _host.double_precision(named(problem.model)):
        if _is_for_numpy(problem, number):
            with np.errstate(all="ignore"):
                found = [
                    np.asarray(start_vector(problem, axes.nth(cases, k)))
                    for k in range(number)
                ]
            return np.stack(found) if found else np.zeros((0, len(problem.varied)))
        return _starts_by_program(problem, cases, axes)


def _is_for_numpy(problem: Problem, number: int) -> bool:
    """Whether to guess without a program, as long as so many guesses do not pay one."""
    model = problem.model
    if not (model.starts_from_data and model.starts_in_numpy):
        return not model.starts_from_data
    peaks = sum(part.is_peak for part in model.parts)
    return guessed.holds(model, number * max(3 * peaks - 2, 1), GUESSES_IN_NUMPY)


def _starts_by_program(problem: Problem, cases: Case, axes: Axes) -> np.ndarray:
    number, x, y = axes.number(cases), cases.data.x, cases.data.y
    shape = np.shape(y) if axes.shared else np.shape(y)[1:]
    is_on_cpu = is_eager_on_cpu(cases)
    length = _length(problem, math.prod(shape), is_hasty=False)
    pad = _Padding(problem, shape, length)
    valid = cases.valid
    if valid is None and length != math.prod(shape):
        valid = np.ones(shape, bool)
    is_each = Case(Data(None, not axes.shared, None), axes.valid == 0, True)
    cases = Case(Data(pad.points(x), y, None), valid, cases.starts)
    each, shared = _parted(cases, is_each, pad)
    size = size_on_cpu(length) if is_on_cpu else min(number, BLOCK_NUMBERS // length)

    def arguments(part, idle):
        return pad.each(part), shared, idle

    return in_parts(
        _starts, problem, arguments, each, max(size, 1), is_on_cpu=is_on_cpu
    )


def _starts(problem, arguments):
    """`start_vector` of all cases but idle ones; in chunks, for guesses need memory."""
    each, shared, idle = arguments
    number = len(idle)

    def of_one(k):
        own = jax.tree.map(lambda leaf: leaf[k], each)
        return start_vector(problem, eqx.combine(own, shared))

    points = max(map(np.size, jax.tree.leaves((each, shared)))) // number
    size = max(1, min(number, room(*GUESSES).holds(8 * max(points, 1))))
    chunks = -(-number // size)
    rows = np.minimum(np.arange(chunks * size), number - 1).reshape(chunks, size)
    rows = jnp.asarray(rows)

    def step(k, found):
        return found.at[k].set(jax.vmap(of_one)(rows[k]))

    wanted = -(-jnp.sum(~idle) // size)
    found = jnp.zeros((chunks, size, len(problem.varied)))
    found = jax.lax.fori_loop(0, wanted, step, found)
    return found.reshape(-1, len(problem.varied))[:number]


# Fits


class Task(NamedTuple):
    """What the program of fits is given of each data set; None for nothing."""

    y: Any
    sigma: Any
    weights: Any
    bounds: Any
    x0: Any


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
    points, n = math.prod(shape), len(problem.varied)
    with _host.double_precision(named(problem.model)):
        is_on_cpu = is_eager_on_cpu((cases, x0))
        is_hasty = is_on_cpu and _is_hasty(problem, number, max(points, 1))
        length = _length(problem, points, is_hasty)
        weights = cases.valid
        if weights is not None or length != points or is_hasty:
            weights = np.ones(shape) if weights is None else np.asarray(weights, float)
        bounds = problem.bounds if cases.bounds is None else cases.bounds
        task = Task(y, sigma, weights, bounds, x0)
        is_each = Task(
            not axes.shared, axes.sigma == 0, axes.valid == 0, axes.bounds == 0, True
        )
        if is_hasty:  # the same program for all that may be
            task, is_each = _spread(task, is_each, number, shape), Task(*[True] * 5)
        pad = _Padding(problem, shape, length)
        each, shared = _parted(task, is_each, pad)
        if is_hasty:
            most = max(1, min(FEW, FEW_NUMBERS // max(length, 1)))
            size, mesh = 1 << most.bit_length() - 1, None
        elif is_on_cpu:
            size, mesh = size_on_cpu(max(length, 1)), None
        else:
            size = max(1, min(number, BLOCK_NUMBERS // max(length, 1)))
            mesh = devices_for(size)
        options = _numbers_of(filled(manner.options or Options(), n))
        is_whole = with_values or is_hasty
        place = None if mesh is None else Static(mesh)
        common = pad.points(x), shared, manner._replace(options=options), place

        def fitted(is_lean, each):
            return in_parts(
                bound(_fits, is_lean, is_whole),
                problem,
                lambda part, idle: (*common, pad.each(part), idle),
                each,
                size,
                is_on_cpu=is_on_cpu,
                is_hasty=is_hasty,
                progress=progress,
            )

        if number == 0:
            vectors = np.zeros((0, _width(problem, length, is_whole)))
        elif is_on_cpu:
            vectors, incomplete = fitted(True, each)
            if incomplete.any():
                again = jax.tree.map(lambda leaf: leaf[incomplete], each)
                vectors[incomplete] = fitted(False, again)
        else:
            vectors = fitted(False, each)
    found = _unpacked(problem, vectors, length)
    if with_values:
        found["best"] = found["best"][:, :points].reshape(number, *shape)
    else:
        found.pop("best", None)
    return found


def _fits(is_lean: bool, with_values: bool, problem: Problem, arguments: Any) -> Any:
    """The numbers of fits, (N, k); lean ones with flags of which are incomplete."""
    x, shared, manner, place, each, idle = arguments
    number = len(idle)
    task: Task = eqx.combine(each, shared)
    y_axis, sigma_axis, _, bounds_axis, _ = (
        None if not jax.tree.leaves(own) else 0 for own in each
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
        return _host.pack({name: numbers[name] for name in names})

    weights = task.weights
    if weights is not None and each.weights is None:
        weights = jnp.broadcast_to(weights, (number, *weights.shape))
    found = batch_of_fits(
        problem.function,
        task.x0,
        Data(x, task.y, task.sigma),
        (0, Data(None, y_axis, sigma_axis), bounds_axis),
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
        case = Case(Data(x, y, sigma), weights, {})
        covariance = sandwich(problem, case, end["x"], manner.loss, end["covariance"])
        return packed({**end, "covariance": covariance})

    ends, *incomplete = found if is_lean else (found,)
    weights_axis = None if weights is None else 0
    in_axes = y_axis, sigma_axis, weights_axis, 0
    vectors = jax.vmap(robust, in_axes)(task.y, task.sigma, weights, ends)
    return (vectors, *incomplete) if is_lean else vectors


def _is_hasty(problem: Problem, number: int, points: int) -> bool:
    """Whether fewer fits are to come than pay a program that runs faster."""
    work = number * points
    if number <= FEW or work > HASTY:
        return work <= HASTY
    return fitted_in_haste.holds(problem.model, work, HASTY_IN_ALL)


def _numbers_of(options: Options) -> Options:
    """The same with numbers of NumPy, whatever numbers were given."""
    return jax.tree.map(np.asarray, options)


def _spread(task: Task, is_each: Task, number: int, shape: tuple) -> Task:
    """Everything for each fit, without copies."""

    def wide(leaf, own, tail):
        if leaf is None or own:
            return leaf

        def each(values):
            shape = np.shape(values) if tail is None else tail
            return np.broadcast_to(values, (number, *shape))

        return jax.tree.map(each, leaf)

    tails = shape, shape, shape, None, None
    return Task(*map(wide, task, is_each, tails))


def _width(problem: Problem, length: int, with_values: bool) -> int:
    return sum(map(math.prod, _shapes(problem, length, with_values).values()))


def _unpacked(
    problem: Problem, vectors: Float[np.ndarray, "N k"], length: int
) -> dict[str, np.ndarray]:
    """The numbers by name."""
    types = {"status": int, "nfev": int, "count": int, "active": int}
    types |= {"determined": bool}
    plain = _width(problem, length, False)
    found, start = {}, 0
    shapes = _shapes(problem, length, vectors.shape[1] > plain)
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


# Lengths


def _length(problem: Problem, points: int, is_hasty: bool) -> int:
    """To how many points data are padded: much for few fits, little for many."""
    if not problem.is_pointwise or points == 0:
        return points
    if is_hasty:
        return bucket(points)
    step = 1 << max(points.bit_length() - 4, 0)
    return -(-points // step) * step


class _Padding(NamedTuple):
    """Points of a shape, as so many in a row where each stands for itself."""

    problem: Problem
    shape: tuple[int, ...]
    length: int

    @property
    def is_needed(self) -> bool:
        return self.problem.is_pointwise

    def points(self, x: PyTree) -> PyTree:
        """Coordinates."""
        if not self.is_needed:
            return x
        return padded_points(x, self.shape, self.length)

    def of(self, leaf: Array, fill: Any = None) -> Array:
        """One vector of points for each; the last is repeated, or a number."""
        if not self.is_needed:
            return leaf
        leaf = np.asarray(leaf)
        lead = leaf.shape[: max(leaf.ndim - len(self.shape), 0)]
        points = math.prod(self.shape)
        flat = np.broadcast_to(leaf, (*lead, *self.shape)).reshape(*lead, points)
        extra = self.length - flat.shape[-1]
        if extra == 0:
            return flat
        last = flat[..., -1:] if fill is None else np.full_like(flat[..., :1], fill)
        return np.concatenate([flat, np.repeat(last, extra, axis=-1)], axis=-1)

    def each(self, part: Any) -> Any:
        """The same of a part of the data sets."""
        if isinstance(part, Case):
            y, valid = part.data.y, part.valid
            data = part.data._replace(y=None if y is None else self.of(y))
            return part._replace(
                data=data, valid=None if valid is None else self.of(valid, False)
            )
        return part._replace(
            **{
                name: self.of(value, fill)
                for name, fill in (("y", None), ("sigma", 1), ("weights", 0))
                if (value := getattr(part, name)) is not None
            }
        )


def _parted(whole: Any, is_each: Any, pad: _Padding) -> tuple[Any, Any]:
    """What differs among the fits, and what they share, padded."""

    def of_kind(is_wanted):
        def part(own, subtree):
            chosen = bool(own) is is_wanted
            return jax.tree.map(lambda leaf: leaf if chosen else None, subtree)

        return jax.tree.map(part, is_each, whole, is_leaf=_is_none)

    return of_kind(True), pad.each(of_kind(False))


def _is_none(node: Any) -> bool:
    return node is None


def devices_for(number: int) -> Mesh | None:
    """All devices of this process, where there are several and enough to do."""
    devices = jax.local_devices()
    if len(devices) == 1 or number < FITS_A_DEVICE * len(devices):
        return None
    return Mesh(np.array(devices), ("fits",))


# Failures


def not_finite(problem: Problem, case: Case, numbers: Any) -> str:
    """What is not finite where a fit started, in words."""
    with _host.double_precision(named(problem.model)):
        x = for_solver(numbers, "x")
        residual, slopes = map(np.array, compiled(_rows, problem, (case, x)))
    if case.valid is not None:
        residual[~case.valid] = slopes[~case.valid] = 0
    return what_is_not_finite(residual, slopes)


def _rows(problem, arguments):
    case, x = arguments

    def rows(x):
        return problem.residuals(x, case.data)["data"]

    return rows(x), jacobian(rows, x)
