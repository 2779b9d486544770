"""What is computed for a fit by name, as functions of arrays: start, end, errors.

`_run.py` has the programs that they are part of.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxfit._core.certificate import Status
from jaxfit._core.solution import Solution
from jaxfit._linalg.seldom import uncertainty_of
from jaxfit._numpy.either import is_numpy, xp
from jaxfit._rows.visit import ResidualModel, Rows, visit
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._points import DataSet
from jaxfit.fitting._problem import Method, Numeric, Problem
from jaxfit.losses import Linear, Loss
from jaxfit.models._guess import start_from

# Shares of the mean size of data by which these are lifted where a start is negative
# and a likelihood has no use for it.
LIFTS = 0.1, 1.0

BLOCK_NUMBERS = 2**24  # of data on an accelerator at a time


def start_vector(problem: Problem, data_set: DataSet) -> Float[Numeric, " n"]:
    """The starts of a data set, and guesses for the others, moved inside bounds."""
    starts, likelihood = data_set.starts, problem.likelihood
    if all(name in starts for name in problem.varied):
        return xp.stack([xp.asarray(starts[name]) for name in problem.varied])
    x0 = _guessed(problem, data_set, 0.0)
    if likelihood is None or not likelihood.has_positive_mean:
        return x0
    for share in LIFTS:
        is_proper = _is_positive(problem, data_set, x0)
        if is_numpy(is_proper) and is_proper:
            break
        x0 = xp.where(is_proper, x0, _guessed(problem, data_set, share))
    return x0


def _is_positive(
    problem: Problem, data_set: DataSet, x: Float[Numeric, " n"]
) -> Bool[Numeric, ""]:
    """Whether the model is positive at all points that count."""
    points, y = problem.points(data_set.data.x), data_set.data.y
    positive = problem.values_about(x, points, y.shape) > 0
    if data_set.valid is not None:
        positive = positive | ~data_set.valid
    return xp.asarray(xp.all(positive))


def _guessed(problem: Problem, data_set: DataSet, share: float) -> Float[Numeric, " n"]:
    """A start from data that are higher by some share of their mean size."""
    starts, data = data_set.starts, data_set.data
    known = {**starts, **problem.counted(problem.fixed)}
    points, y, valid = problem.points(data.x), data.y, data_set.valid
    if problem.numbers == "complex":  # the library's models are real
        y, valid = y[..., 0], None if valid is None else valid[..., 0]
    if share:
        size = xp.abs(y) if valid is None else xp.where(valid, xp.abs(y), 0)
        y = y + share * xp.mean(size)
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


def of_rows(
    problem: Problem,
    data_set: DataSet,
    end: Numbers,
    method: Method,
) -> Float[Array, "n n"]:
    """The covariance that comes from the rows; see `sandwich` and `observed`."""
    x = end.x
    model = ResidualModel(problem.function, None, _same, method.loss)
    weights = weights_of(problem, data_set.valid)
    rows = visit(None, model, data_set.data, weights, x)
    if method.is_sandwich:
        return sandwich(rows, x, end.covariance)
    dof = (end.count - len(x)).astype(x.dtype)
    variance = jnp.where(dof > 0, 2 * end.cost / jnp.where(dof > 0, dof, 1), jnp.inf)
    return observed(rows, x, jnp.where(method.absolute, 1.0, variance))


def _same(x: Any) -> Any:
    return x


_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def observed(
    rows: Rows, x: Float[Array, " n"], variance: Float[Array, ""]
) -> Float[Array, "n n"]:
    """The inverse of the cost's exact Hessian, times the variance of a residual.

    Infinite, NaN off the diagonal, where x is no strict minimum along some direction.
    """
    hessian = jax.jacfwd(rows.slope)(x)
    hessian = 0.5 * (hessian + hessian.T)
    scale = _products_of_sizes(hessian)
    scaled = hessian / scale
    is_minimum = jnp.linalg.eigvalsh(scaled)[0] > len(x) * jnp.finfo(x.dtype).eps
    proper = jnp.where(is_minimum, scaled, jnp.eye(len(x)))
    covariance = variance * jnp.linalg.inv(proper) / scale
    nothing = jnp.where(jnp.eye(len(x), dtype=bool), jnp.inf, jnp.nan)
    return jnp.where(is_minimum, covariance, nothing)


def _products_of_sizes(hessian: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """What makes the diagonal of a Hessian one."""
    size = jnp.sqrt(jnp.abs(jnp.diagonal(hessian)))
    size = jnp.where(size > 0, size, 1)
    return size[:, None] * size


class RowSums(NamedTuple):
    """Sums over rows that a sandwich is made of."""

    hessian: Float[Array, "n n"]  # Jᵀ diag(ψ') J, or the expected information
    filling: Float[Array, "n n"]  # the sum of g gᵀ
    number: Int[Array, ""]  # of rows


def row_sums(rows: Rows, x: Float[Array, " n"]) -> RowSums:
    """Those of the rows whose weights are not zero; how large these are does not count.

    g is the gradient of a row's cost.
    """
    one = rows.evaluated(x, jnp.eye(len(x)))
    counts = jnp.ones(one.residual.shape, bool)
    if one.weights is not None:
        counts = one.weights > 0
    r, slopes = jnp.where(counts, one.residual, 0), jnp.where(counts, one.columns, 0).T
    loss = rows.loss if isinstance(rows.loss, Loss) else Linear()
    z = (r / loss.scale) ** 2
    _, slope, curvature = loss.evaluate(z)
    gradients = (slope * r)[:, None] * slopes
    return RowSums(
        hessian=_dot(slopes.T, (slope + 2 * z * curvature)[:, None] * slopes),
        filling=_dot(gradients.T, gradients),
        number=jnp.sum(counts),
    )


def sandwich(
    rows: Rows, x: Float[Array, " n"], plain: Float[Array, "n n"]
) -> Float[Array, "n n"]:
    """H⁻¹ (sum of g gᵀ) H⁻¹ m / (m - n): right also where errors are not all alike.

    g are the gradients of the single residuals' costs, H = Jᵀ diag(ψ') J with ψ the
    derivative of the loss of a residual, with a likelihood the expected information
    (Huber, Proc. 5th Berkeley Symp. 1, 1967; the factor is that of MacKinnon and White,
    J. Econometrics 29, 1985, HC1). Residuals in units of sigma; neither sigma's scale
    nor a common variance is used.

    Args:
        plain: the inverse Gram; a direction that it does not determine stays so.
    """
    sums = row_sums(rows, x)
    scale = _products_of_sizes(sums.hessian)
    bread, filling = jnp.linalg.inv(sums.hessian / scale), sums.filling / scale
    count, dof = sums.number, sums.number - len(x)
    factor = jnp.where(dof > 0, count / jnp.where(dof > 0, dof, 1), jnp.inf)
    covariance = _dot(_dot(bread, filling), bread.T) * factor / scale
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
