"""What is computed for a fit by name, as functions of arrays: start, end, errors.

`_run.py` has the programs that they are part of.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxfit._core.certificate import Status
from jaxfit._core.options import Options
from jaxfit._core.solution import Solution
from jaxfit._linalg.seldom import uncertainty_of
from jaxfit._programs.call import Static
from jaxfit._rows.residuals import jacobian
from jaxfit._scipy.observations import Points
from jaxfit.fitting._problem import Problem
from jaxfit.losses import Linear, Loss
from jaxfit.models._either import xp
from jaxfit.models._guess import start_from

BLOCK_NUMBERS = 2**24  # of data on an accelerator at a time


class Manner(NamedTuple):
    """How a fit is done, and what its errors mean; a pytree."""

    loss: Loss | None
    options: Options | None
    absolute: Any  # sigma is known, and not only up to a factor
    covariance: Static  # "gram" or "sandwich"


class Case(NamedTuple):
    """One data set: its points, which of them count, and where the fit starts."""

    data: Points
    valid: Any  # of the shape of y; None: all count
    starts: Any  # by name, of parameters that are not to be guessed
    bounds: Any = None  # (lower, upper) in place of the problem's


# One data set


def start_vector(problem: Problem, case: Case) -> Float[Array, " n"]:
    """Given starts, and guesses for the others, moved inside their bounds."""
    given = case.starts
    if all(name in given for name in problem.varied):
        return xp.stack([xp.asarray(given[name]) for name in problem.varied])
    data = case.data
    known = {**given, **problem.counted(problem.fixed)}
    points = problem.points(data.x)
    guess = start_from(problem.model, points, data.y, case.valid, known)
    x0 = xp.stack([guess[name] for name in problem.varied])
    if problem.bounds is not None:
        lower, upper = problem.bounds
        width = xp.where(xp.isfinite(upper - lower), upper - lower, 0)
        x0 = xp.clip(x0, lower + 0.01 * width, upper - 0.01 * width)
    chosen = [
        xp.asarray(given.get(n, x)) for n, x in zip(problem.varied, x0, strict=True)
    ]
    return xp.stack(chosen)


def weights_of(problem: Problem, valid) -> dict[str, Array] | None:
    """Zero for points that do not count."""
    if valid is None:
        return None
    weights = {"data": jnp.asarray(valid, float)}
    if problem.prior:
        weights["prior"] = jnp.ones(len(problem.prior), float)
    return weights


def ending(solution: Solution, absolute) -> dict[str, Array]:
    """What is kept of a solution."""
    uncertainty = uncertainty_of(solution, absolute)
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
        "gradient": solution.gradient,
    }


def finished(problem: Problem, end: dict[str, Array]) -> dict[str, Array]:
    """All that a result is made of, but for the points."""
    x = end["x"]
    return {
        **end,
        **described(problem, x, end["covariance"], end["determined"]),
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


def for_solver(numbers: Any, what: str) -> Any:
    """What the solver calls "x" and "covariance": see `Problem.origin`."""
    return numbers.get(f"solver_{what}", numbers[what])


def named(model):
    """What an error about tracing should name."""
    return getattr(model, "plain", model)


class Axes(NamedTuple):
    """The batch axes of what need not have one: 0, or None where all fits share it."""

    sigma: int | None
    valid: int | None
    bounds: int | None = None
    shared: bool = False  # one data set for all

    @classmethod
    def of(cls, cases: Case) -> "Axes":
        """Where everything has one."""
        own = cases.data.sigma, cases.valid, cases.bounds
        return cls(*(None if part is None else 0 for part in own))

    @property
    def case(self) -> Case:
        """Of a whole `Case`."""
        y = None if self.shared else 0
        return Case(Points(None, y, self.sigma), self.valid, 0, self.bounds)

    def number(self, cases: Case) -> int:
        """Of the data sets."""
        if not self.shared:
            return len(cases.data.y)
        each = cases.starts, cases.valid if self.valid == 0 else None
        return len(jax.tree.leaves(each)[0])

    def nth(self, cases: Case, k: int) -> Case:
        """One of them."""
        return jax.tree.map(
            lambda axis, part: (
                part if axis is None else jax.tree.map(lambda leaf: leaf[k], part)
            ),
            self.case,
            cases,
            is_leaf=lambda axis: axis is None,
        )
