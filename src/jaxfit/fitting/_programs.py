"""What is computed for a fit by name, as functions of arrays: start, end, errors.

`_run.py` has the programs that they are part of.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxfit._core.certificate import Status
from jaxfit._core.solution import Solution
from jaxfit._linalg.seldom import uncertainty_of
from jaxfit._numpy.either import xp
from jaxfit._rows.residuals import jacobian
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._points import DataSet
from jaxfit.fitting._problem import Numeric, Problem
from jaxfit.losses import Linear, Loss
from jaxfit.models._guess import start_from

BLOCK_NUMBERS = 2**24  # of data on an accelerator at a time


def start_vector(problem: Problem, data_set: DataSet) -> Float[Numeric, " n"]:
    """The starts of a data set, and guesses for the others, moved inside bounds."""
    starts, data = data_set.starts, data_set.data
    if all(name in starts for name in problem.varied):
        return xp.stack([xp.asarray(starts[name]) for name in problem.varied])
    known = {**starts, **problem.counted(problem.fixed)}
    points, y, valid = problem.points(data.x), data.y, data_set.valid
    if problem.numbers == "complex":  # the library's models are real
        y, valid = y[..., 0], None if valid is None else valid[..., 0]
    guess = start_from(problem.model, points, y, valid, known)
    x0 = xp.stack([guess[name] for name in problem.varied])
    if problem.bounds is not None:
        lower, upper = problem.bounds
        width = xp.where(xp.isfinite(upper - lower), upper - lower, 0)
        x0 = xp.clip(x0, lower + 0.01 * width, upper - 0.01 * width)
    chosen = [
        xp.asarray(starts.get(n, x)) for n, x in zip(problem.varied, x0, strict=True)
    ]
    return xp.stack(chosen)


def weights_of(
    problem: Problem, valid: Numeric | None
) -> dict[str, Float[Array, "..."]] | None:
    """The weights of a fit's residuals: zero for points that do not count."""
    if valid is None:
        return None
    weights = {"data": jnp.asarray(valid, float)}
    if problem.prior:
        weights["prior"] = jnp.ones(problem.rows_of_priors, float)
    return weights


def ending(solution: Solution, absolute: Any) -> Numbers:
    """What is kept of a solution; of the varied parameters alone."""
    uncertainty = uncertainty_of(solution, absolute)
    return Numbers(
        x=solution.x,
        covariance=uncertainty.covariance,
        determined=uncertainty.determined,
        active=jnp.asarray(solution.active),
        cost=solution.cost,
        optimality=solution.optimality,
        status=solution.status,
        nfev=solution.nfev,
        count=jnp.asarray(solution.count),
        gradient=solution.gradient,
    )


def finished(problem: Problem, end: Numbers) -> Numbers:
    """All that a result is made of: what follows from an ending, too."""
    return described(problem, end)._replace(
        status=status_within(problem, end.x, end.status)
    )


def status_within(
    problem: Problem, x: Float[Array, " n"], status: Int[Array, ""]
) -> Int[Array, ""]:
    """How a fit ended: no success where a tied parameter has left its bounds."""
    is_outside = (status > 0) & ~problem.ties_hold(x)
    return jnp.where(is_outside, Status.INVALID_BOUNDS, status)


def sandwich(
    problem: Problem,
    data_set: DataSet,
    x: Float[Array, " n"],
    loss: Loss | None,
    plain: Float[Array, "n n"],
) -> Float[Array, "n n"]:
    """H⁻¹ (sum of g gᵀ) H⁻¹ m / (m - n): right also where errors are not all alike.

    g are the gradients of the single residuals' costs, H = Jᵀ diag(ψ') J with ψ the
    derivative of the loss of a residual (Huber, Proc. 5th Berkeley Symp. 1, 1967; the
    factor is that of MacKinnon and White, J. Econometrics 29, 1985, HC1). Residuals in
    units of sigma; neither sigma's scale nor a common variance is used.

    Args:
        plain: the inverse Gram; a direction that it does not determine stays so.
    """

    def residuals(x: Float[Array, " n"]) -> Float[Array, " m"]:
        parts = problem.residuals(x, data_set.data)
        weights = weights_of(problem, data_set.valid)
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
    bread, filling = jnp.linalg.inv(hessian), dot(gradients.T, gradients)
    count = r.size
    if data_set.valid is not None:
        count = jnp.sum(data_set.valid) + problem.rows_of_priors
    dof = count - len(x)
    factor = jnp.where(dof > 0, count / jnp.where(dof > 0, dof, 1), jnp.inf)
    covariance = dot(dot(bread, filling), bread.T) * factor
    covariance = covariance / jnp.where(size > 0, size[:, None] * size, 1)
    unknown = ~jnp.isfinite(jnp.diagonal(plain))
    return jnp.where(unknown[:, None] | unknown, plain, covariance)


def described(problem: Problem, end: Numbers) -> Numbers:
    """An ending with values and errors of all parameters and of what is derived.

    Errors of what depends on several parameters by its derivative. What depends on one
    that the data do not determine is not determined, and has an infinite error.
    """
    values = everything(problem, end.x)
    slope = jax.jacfwd(everything, 1)(problem, end.x)
    whole = end._replace(
        values=values,
        errors=propagated(slope, end.covariance),
        determined=~jnp.any((slope != 0) & ~end.determined, axis=1),
    )
    if problem.origin is None:
        return whole
    names = [*problem.names, *problem.derived_names]
    varied = np.array([names.index(name) for name in problem.varied])
    # an amplitude at x = 0 may be beyond any number, or below
    beyond = ~jnp.all(jnp.isfinite(slope), axis=1)
    beyond = beyond.at[varied].set(beyond[varied] | ~jnp.any(slope[varied], axis=1))
    return whole._replace(
        errors=jnp.where(beyond, jnp.inf, whole.errors),
        determined=whole.determined & ~beyond,
        x=values[varied],
        covariance=carried(slope[varied], end.covariance, beyond[varied]),
        solver_x=end.x,
        solver_covariance=end.covariance,
    )


def everything(problem: Problem, x: Float[Array, " n"]) -> Float[Array, " k"]:
    """The values of all parameters, and then of what is derived from them."""
    parameters = problem.parameters(x)
    derived = problem.derived(x)
    return jnp.stack([*parameters.values(), *map(jnp.asarray, derived.values())])


def propagated(
    slope: Float[Array, "k n"], covariance: Float[Array, "n n"]
) -> Float[Array, " k"]:
    """Standard errors of k functions with these derivatives."""
    unknown = ~jnp.isfinite(jnp.diagonal(covariance))
    finite = jnp.where(unknown[:, None] | unknown, 0, covariance)
    images = jnp.sum(slope[:, None, :] * finite, axis=2)
    variance = jnp.sum(images * slope, axis=1)
    uses_unknown = jnp.any((slope != 0) & unknown, axis=1)
    return jnp.where(uses_unknown, jnp.inf, jnp.sqrt(jnp.maximum(variance, 0)))


def carried(
    slope: Float[Array, "k n"],
    covariance: Float[Array, "n n"],
    beyond: Bool[Array, " k"],
) -> Float[Array, "k k"]:
    """The covariance of k functions with these derivatives; see `propagated`."""
    unknown = ~jnp.isfinite(jnp.diagonal(covariance))
    finite = jnp.where(unknown[:, None] | unknown, 0, covariance)
    images = jnp.einsum("ik,kl,jl->ij", slope, finite, slope, precision="highest")
    lost = beyond | jnp.any((slope != 0) & unknown, axis=1)
    nothing = jnp.where(jnp.eye(len(lost), dtype=bool), jnp.inf, jnp.nan)
    return jnp.where(lost[:, None] | lost, nothing, images)
