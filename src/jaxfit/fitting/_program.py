"""What is computed for a fit by name, as functions of arrays: start, fit, errors.

`fit` runs them for one data set in one program, `fit_batch` for many.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxfit import _host
from jaxfit._batch import batch_of_fits
from jaxfit._compile import Static, compiled, is_eager_on_cpu
from jaxfit._options import Options, limited
from jaxfit._parts import in_parts, numbers_of_one, size_on_cpu
from jaxfit._residuals import jacobian
from jaxfit._small import Room, room
from jaxfit._solution import Solution, Status
from jaxfit._solve import solve
from jaxfit._words import what_is_not_finite
from jaxfit.fitting._problem import Data, Problem
from jaxfit.losses import Linear, Loss
from jaxfit.models._start import start_from

# Data for which starts are guessed at a time, on a CPU and elsewhere.
GUESSES = Room(2**17, 1, 2**12), Room(2**25, 1, 2**16)
BLOCK_NUMBERS = 2**24  # of data on an accelerator at a time
FITS_A_DEVICE = 200  # below, more devices do not pay


class Manner(NamedTuple):
    """How a fit is done, and what its errors mean; a pytree."""

    loss: Loss | None
    options: Options | None
    absolute: Any  # sigma is known, and not only up to a factor
    covariance: Static  # "gram" or "sandwich"


class Case(NamedTuple):
    """One data set: its points, which of them count, and where the fit starts."""

    data: Data
    valid: Any  # of the shape of y; None: all count
    starts: Any  # by name, of parameters that are not to be guessed
    bounds: Any = None  # (lower, upper) in place of the problem's


# One data set


def start_vector(problem: Problem, case: Case) -> Float[Array, " n"]:
    """Given starts, and guesses for the others, moved inside their bounds."""
    given = case.starts
    if all(name in given for name in problem.varied):
        return jnp.stack([jnp.asarray(given[name]) for name in problem.varied])
    data = case.data
    known = {**given, **problem.counted(problem.fixed)}
    points = problem.points(data.x)
    guess = start_from(problem.model, points, data.y, case.valid, known)
    x0 = jnp.stack([guess[name] for name in problem.varied])
    bounds = bounds_of(problem, case)
    if bounds is not None:
        lower, upper = bounds
        width = jnp.where(jnp.isfinite(upper - lower), upper - lower, 0)
        x0 = jnp.clip(x0, lower + 0.01 * width, upper - 0.01 * width)
    chosen = [
        jnp.asarray(given.get(n, x)) for n, x in zip(problem.varied, x0, strict=True)
    ]
    return jnp.stack(chosen)


def solved(problem: Problem, case: Case, x0, manner: Manner) -> Solution:
    """The fit of one data set."""
    return solve(
        problem.function,
        x0,
        case.data,
        bounds=bounds_of(problem, case),
        weights=weights_of(problem, case.valid),
        loss=manner.loss,
        options=manner.options,
    )


def bounds_of(problem: Problem, case: Case) -> tuple | None:
    """Those of the case, or else those of the problem."""
    return problem.bounds if case.bounds is None else case.bounds


def weights_of(problem: Problem, valid) -> dict[str, Array] | None:
    """Zero for points that do not count."""
    if valid is None:
        return None
    weights = {"data": jnp.asarray(valid, float)}
    if problem.prior:
        weights["prior"] = jnp.ones(len(problem.prior), float)
    return weights


def shared_weights(problem: Problem, valid, number: int) -> dict[str, Array] | None:
    """`weights_of` for a number of fits that share them, with a leading axis."""
    weights = weights_of(problem, valid)
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (number, *leaf.shape)), weights
    )


def ending(solution: Solution, absolute) -> dict[str, Array]:
    """What is kept of a solution."""
    uncertainty = solution.uncertainty(absolute)
    return {
        "x": solution.x,
        "covariance": uncertainty.covariance,
        "determined": uncertainty.determined,
        "active": jnp.asarray(solution.active),
        "cost": solution.cost,
        "optimality": solution.optimality,
        "status": solution.status,
        "nfev": solution.nfev,
        "count": jnp.asarray(solution.count),
    }


def finished(
    problem: Problem, case: Case, end: dict[str, Array], manner: Manner
) -> dict[str, Array]:
    """All that a result is made of, but for the points."""
    x, covariance = end["x"], end["covariance"]
    if manner.covariance.value == "sandwich":
        covariance = sandwich(problem, case, x, manner.loss, covariance)
    return {
        **end,
        "covariance": covariance,
        **described(problem, x, covariance, end["determined"]),
        "status": status_within(problem, x, end["status"]),
    }


def status_within(problem: Problem, x, status: Int[Array, ""]) -> Int[Array, ""]:
    """How a fit ended: no success where a tied parameter has left its bounds."""
    left = (status > 0) & ~problem.ties_hold(x)
    return jnp.where(left, Status.INVALID_BOUNDS, status)


def sandwich(problem: Problem, case: Case, x, loss: Loss | None, plain) -> Array:
    """H⁻¹ (sum of g gᵀ) H⁻¹ m / (m - n): right also where errors are not all alike.

    g are the gradients of the single residuals' costs, H = Jᵀ diag(ψ') J with ψ the
    derivative of the loss of a residual (Huber, Proc. 5th Berkeley Symp. 1, 1967; the
    factor is that of MacKinnon and White, J. Econometrics 29, 1985, HC1). Residuals in
    units of sigma; neither sigma's scale nor a common variance is used.

    Args:
        plain: the inverse Gram; a direction that it does not determine stays so.
    """

    def residuals(x):
        parts = problem.residuals(x, case.data)
        weights = weights_of(problem, case.valid)
        if weights is not None:
            parts = {k: jnp.where(weights[k] > 0, part, 0) for k, part in parts.items()}
        return jnp.concatenate([jnp.ravel(part) for part in parts.values()])

    loss = Linear() if loss is None else loss
    r, slopes = residuals(x), jacobian(residuals, x)
    z = (r / loss.scale) ** 2
    _, slope, curvature = loss.evaluate(z)
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    size = jnp.sqrt(jnp.sum(slopes**2, axis=0))
    scaled = slopes / jnp.where(size > 0, size, 1)
    hessian = dot(scaled.T, (slope + 2 * z * curvature)[:, None] * scaled)
    gradients = (slope * r)[:, None] * scaled
    bread = jnp.linalg.inv(hessian)
    count = r.size
    if case.valid is not None:
        count = jnp.sum(case.valid) + len(problem.prior)
    left = count - len(x)
    factor = jnp.where(left > 0, count / jnp.where(left > 0, left, 1), jnp.inf)
    found = dot(dot(bread, dot(gradients.T, gradients)), bread.T) * factor
    found = found / jnp.where(size > 0, size[:, None] * size, 1)
    unknown = ~jnp.isfinite(jnp.diagonal(plain))
    return jnp.where(unknown[:, None] | unknown, plain, found)


def described(problem: Problem, x, covariance, determined) -> dict[str, Array]:
    """Values and errors of all parameters and of what is derived from them.

    Errors of what depends on several parameters by its derivative. What depends on one
    that the data do not determine is not determined, and has an infinite error.
    """
    values, slope = everything(problem, x), jax.jacfwd(everything, 1)(problem, x)
    found = {
        "values": values,
        "errors": propagated(slope, covariance),
        "determined": ~jnp.any((slope != 0) & ~determined, axis=1),
    }
    if problem.origin is None:
        return found
    names = [*problem.names, *problem.derived_names]
    varied = np.array([names.index(name) for name in problem.varied])
    # an amplitude at x = 0 may be beyond any number, or below
    beyond = ~jnp.all(jnp.isfinite(slope), axis=1)
    beyond = beyond.at[varied].set(beyond[varied] | ~jnp.any(slope[varied], axis=1))
    return {
        "values": values,
        "errors": jnp.where(beyond, jnp.inf, found["errors"]),
        "determined": found["determined"] & ~beyond,
        "x": values[varied],
        "covariance": carried(slope[varied], covariance, beyond[varied]),
        "solver_x": x,
        "solver_covariance": covariance,
    }


def everything(problem: Problem, x: Float[Array, " n"]) -> Float[Array, " k"]:
    """The values of all parameters, and then of what is derived from them."""
    parameters = problem.parameters(x)
    derived = problem.derived(x)
    return jnp.stack([*parameters.values(), *map(jnp.asarray, derived.values())])


def propagated(slope: Float[Array, "k n"], covariance: Float[Array, "n n"]) -> Array:
    """Standard errors of k functions with these derivatives."""
    unknown = ~jnp.isfinite(jnp.diagonal(covariance))
    known = jnp.where(unknown[:, None] | unknown, 0, covariance)
    images = jnp.sum(slope[:, None, :] * known, axis=2)
    variance = jnp.sum(images * slope, axis=1)
    uses_unknown = jnp.any((slope != 0) & unknown, axis=1)
    return jnp.where(uses_unknown, jnp.inf, jnp.sqrt(jnp.maximum(variance, 0)))


def carried(slope, covariance, beyond) -> Float[Array, "k k"]:
    """The covariance of k functions with these derivatives; see `propagated`."""
    unknown = ~jnp.isfinite(jnp.diagonal(covariance))
    known = jnp.where(unknown[:, None] | unknown, 0, covariance)
    found = jnp.einsum("ik,kl,jl->ij", slope, known, slope, precision="highest")
    lost = beyond | jnp.any((slope != 0) & unknown, axis=1)
    nothing = jnp.where(jnp.eye(len(lost), dtype=bool), jnp.inf, jnp.nan)
    return jnp.where(lost[:, None] | lost, nothing, found)


def shapes_of(problem: Problem, m: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what `_fit` returns, in order."""
    n, k = len(problem.varied), len(problem.names) + len(problem.derived_names)
    own = {"solver_x": (n,), "solver_covariance": (n, n)}
    return {
        "x": (n,),
        "covariance": (n, n),
        "determined": (k,),
        "active": (n,),
        **dict.fromkeys(("cost", "optimality", "status", "nfev", "count"), ()),
        "values": (k,),
        "errors": (k,),
        **({} if problem.origin is None else own),
        "start": (n,),
        "best": (m,),
    }


def for_solver(numbers: Any, what: str) -> Any:
    """What the solver calls "x" and "covariance": see `Problem.origin`."""
    return numbers.get(f"solver_{what}", numbers[what])


def run_fit(problem: Problem, case: Case, manner: Manner) -> dict[str, np.ndarray]:
    """One fit and its numbers, compiled once for what is alike, whatever its limit."""
    options = limited(manner.options or Options(), len(problem.varied))
    manner = manner._replace(options=options)
    with _host.double_precision(named(problem.model)):
        vector = compiled(_fit, problem, (case, manner))
        shapes = shapes_of(problem, int(np.size(case.data.y)))
    return _host.unpack(vector, shapes)


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


def run_starts(problem: Problem, case: Case, valid: np.ndarray) -> np.ndarray:
    """Where the fit of a case starts, (number, n), guessed from these of its points."""
    with _host.double_precision(named(problem.model)):
        return np.asarray(compiled(_starts, problem, (case, valid)))


def _starts(problem, arguments):
    case, valid = arguments
    axes = Case(data=None, valid=0, starts=None)
    idle = np.zeros(len(valid), bool)
    return _start_vectors(problem, case._replace(valid=valid), axes, idle)


def _fit(problem, arguments):
    case, manner = arguments
    x0 = start_vector(problem, case)
    end = ending(solved(problem, case, x0, manner), manner.absolute)
    found = finished(problem, case, end, manner)
    y = case.data.y
    best = problem.values(end["x"], case.data.x, y.shape)
    start = problem.of_varied(x0)
    return _host.pack({**found, "start": start, "best": best})


def named(model):
    """What an error about tracing should name."""
    return getattr(model, "plain", model)


# Many data sets


class Axes(NamedTuple):
    """The batch axes of what need not have one: 0, or None where all fits share it."""

    sigma: int | None
    valid: int | None
    bounds: int | None = None
    shared: bool = False  # one data set for all

    @property
    def case(self) -> Case:
        """Of a whole `Case`."""
        y = None if self.shared else 0
        return Case(Data(None, y, self.sigma), self.valid, 0, self.bounds)


def run_batch(
    problem: Problem, cases: Case, axes: Axes, manner: Manner, progress: bool = False
) -> dict[str, np.ndarray]:
    """`run_fit` for many data sets, without their points, so many at a time."""
    mark = jax.tree.map(
        lambda axis, part: jax.tree.map(lambda _: axis == 0, part),
        axes.case,
        cases,
        is_leaf=lambda axis: axis is None,
    )
    each, shared = eqx.partition(cases, mark)
    number = len(jax.tree.leaves(each)[0])
    if number == 0:
        return no_fits(problem, cases)
    with _host.double_precision(named(problem.model)):
        is_on_cpu = is_eager_on_cpu(cases)
        if is_on_cpu:
            size, mesh = size_on_cpu(numbers_of_one(each)), None
        else:
            points = max(1, cases.data.y.size // (1 if axes.shared else number))
            size = min(number, max(1, BLOCK_NUMBERS // points))
            mesh = devices_for(size)

        def arguments(part, idle):
            whole = eqx.combine(part, shared)
            return whole, manner, Static((axes, mesh)), idle

        return in_parts(
            _fit_batch,
            problem,
            arguments,
            each,
            size,
            is_on_cpu=is_on_cpu,
            progress=progress,
        )


def no_fits(problem: Problem, cases: Case) -> dict[str, np.ndarray]:
    """What `run_batch` gives for no data set."""
    whole = {"status": int, "nfev": int, "active": int, "determined": bool}
    shapes = shapes_of(problem, int(np.prod(cases.data.y.shape[1:])))
    del shapes["best"]
    return {k: np.zeros((0, *v), whole.get(k, float)) for k, v in shapes.items()}


def _fit_batch(problem, arguments):
    cases, manner, static, idle = arguments
    axes, mesh = static.value

    def of_each(function, *more):
        own = (axes.case, *(0 for _ in more))
        return jax.vmap(functools.partial(function, problem), in_axes=own)

    x0 = _start_vectors(problem, cases, axes.case, idle)
    ends = solve_cases(problem, x0, cases, axes, manner, mesh, idle)

    def finish(problem, case, end):
        return finished(problem, case, end, manner)

    start = jax.vmap(problem.of_varied)(x0)
    return {**of_each(finish, ends)(cases, ends), "start": start}


def _start_vectors(problem: Problem, cases: Case, axes: Case, idle):
    """`start_vector` of all cases but idle ones, by chunks: a guess needs much memory.

    Args:
        axes: what has a leading axis.
        idle: marks what fills up the end.
    """
    number = len(idle)

    def of_one(k):
        case = jax.tree.map(
            lambda axis, part: (
                part if axis is None else jax.tree.map(lambda leaf: leaf[k], part)
            ),
            axes,
            cases,
            is_leaf=lambda axis: axis is None,
        )
        return start_vector(problem, case)

    points = max(1, np.size(cases.data.y) // (1 if axes.data is None else number))
    size = max(1, min(number, room(*GUESSES).holds(8 * points)))
    chunks = -(-number // size)
    rows = np.minimum(np.arange(chunks * size), number - 1).reshape(chunks, size)
    rows = jnp.asarray(rows)

    def step(k, found):
        return found.at[k].set(jax.vmap(of_one)(rows[k]))

    wanted = -(-jnp.sum(~idle) // size)
    found = jnp.zeros((chunks, size, len(problem.varied)))
    found = jax.lax.fori_loop(0, wanted, step, found)
    return found.reshape(-1, len(problem.varied))[:number]


def devices_for(number: int) -> Mesh | None:
    """All devices of this process, where there are several and enough to do."""
    devices = jax.local_devices()
    if len(devices) == 1 or number < FITS_A_DEVICE * len(devices):
        return None
    return Mesh(np.array(devices), ("fits",))


def solve_cases(
    problem: Problem, x0, cases: Case, axes: Axes, manner: Manner, mesh, idle
):
    """The ends of the fits of many data sets, but of idle ones."""
    if axes.valid is None:
        weights = shared_weights(problem, cases.valid, len(x0))
    else:
        weights = jax.vmap(functools.partial(weights_of, problem))(cases.valid)
    return batch_of_fits(
        problem.function,
        x0,
        cases.data,
        (0, axes.case.data, axes.bounds),
        idle,
        bounds=bounds_of(problem, cases),
        weights=weights,
        loss=manner.loss,
        options=manner.options,
        mesh=mesh,
        keep=lambda solution: ending(solution, manner.absolute),
    )
