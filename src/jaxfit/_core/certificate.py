"""The certificate: whether a point may be called a solution."""

import enum
from typing import Any

import jax.numpy as jnp

from jaxfit._core.bounds import Bounds
from jaxfit._linalg.kernels import Flag, Scalar, Vector, diagonal, inner, largest
from jaxfit._linalg.precision import precision_of
from jaxfit._rows.linearization import Columns, Linearization, cost_rounding

RUNNING = 9  # not a status: the fit goes on


INCOMPLETE = -9  # neither: it needs what its program leaves out


class Status(enum.IntEnum):
    """How a fit ended; positive is success. SciPy's numbers where SciPy has one."""

    MAX_STEPS = 0
    GRADIENT = 1
    COST = 2
    STEP = 3
    COST_AND_STEP = 4
    KINK = 5
    NONFINITE_START = -1
    STOPPED = -2
    STALLED = -3
    INVALID_BOUNDS = -4

    @property
    def message(self) -> str:
        """A sentence for the user: what happened and what to do."""
        return _MESSAGES[self]

    @property
    def message_of_likelihood(self) -> str:
        """The same about a fit with a likelihood."""
        return _MESSAGES_OF_LIKELIHOOD.get(self, self.message)


_MESSAGES = {
    Status.MAX_STEPS: (
        "The limit of function evaluations was reached before any stopping test "
        "passed. Start nearer to the solution, or raise max_steps."
    ),
    Status.GRADIENT: (
        "Converged: the residuals are orthogonal to every column of the Jacobian."
    ),
    Status.COST: "Converged: another step would not lower the cost noticeably.",
    Status.STEP: "Converged: the last step was too short to matter.",
    Status.COST_AND_STEP: (
        "Converged: another step would not lower the cost noticeably, and the last "
        "one was too short to matter."
    ),
    Status.KINK: (
        "Converged on a kink: the residuals are not differentiable there, and no "
        "direction lowers the cost. What the kink holds has no standard error."
    ),
    Status.NONFINITE_START: (
        "The residuals, their derivatives or the weights are not finite at the start, "
        "or a weight is negative. Check data and weights for NaN, infinity and minus "
        "signs, and start where the model is finite and differentiable."
    ),
    Status.STOPPED: "The fit was stopped by its callback or its time limit.",
    Status.STALLED: (
        "No step lowers the cost any more, and yet the gradient is not small. The "
        "function may be discontinuous or not differentiable there, its derivative "
        "wrong, or every residual beyond the scale of the loss."
    ),
    Status.INVALID_BOUNDS: (
        "A lower bound exceeds its upper bound, a bound or a start is NaN, or the "
        "start lies outside the bounds."
    ),
}


_MESSAGES_OF_LIKELIHOOD = {
    Status.STALLED: (
        "No step lowers the cost any more, and yet the gradient is not small. A mean "
        "may have come to the edge of its range, such as zero where nothing was "
        "counted: bound the parameters so that the means stay inside, as in "
        "bounds=(0, inf) for amplitudes and background. Otherwise the function may be "
        "discontinuous or not differentiable there, or its derivative wrong."
    ),
    Status.GRADIENT: (
        "Converged: the gradient of the likelihood is zero, but for what bounds hold."
    ),
    Status.NONFINITE_START: (
        "The likelihood or its derivatives are not finite at the start: a mean lies "
        "outside its range there (Poisson: positive, or zero where nothing was "
        "counted; binomial: from 0 to trials; gamma: positive), what was observed is "
        "negative, NaN or beyond its range, or a weight is negative. Check data and "
        "weights, and start where every mean is in range; bounds keep it there."
    ),
}


def least_square(dtype: Any) -> float:
    """The least square with all digits: below it what has underflowed may count."""
    kind = jnp.finfo(dtype)
    return float(kind.tiny) / float(kind.eps)


def projected_gradient(
    x: Vector, columns: Columns, linearization: Linearization, bounds: Bounds | None
) -> Scalar:
    """`_largest_move` down the gradient; where local parameters were swept out, both
    with these held and as they follow."""
    move = _largest_move(x, columns.gradient, columns, linearization, bounds)
    if linearization.swept is None:
        return move
    held = _largest_move(x, columns.held_gradient, columns, linearization, bounds)
    return jnp.maximum(move, held)


def _largest_move(
    x: Vector,
    gradient: Vector,
    columns: Columns,
    linearization: Linearization,
    bounds: Bounds | None,
) -> Scalar:
    """max_i D_i |P(x_i - g_i / D_i²) - x_i|, with D_i = |J_i|, P the projection.

    Each term is what the best move of one parameter alone changes in the model values:
    |g_i| / |J_i|, or D_i times the way to the bound ahead if that is less. Free of the
    scale of every parameter. Where squares underflow, it is the most that it can be.
    """
    squared = columns.squared_norms
    size = jnp.abs(gradient)
    lost = linearization.count * jnp.finfo(x.dtype).tiny  # at most, by each sum
    tiny = squared < least_square(x.dtype)
    terms = jnp.where(tiny, size + lost, size) / jnp.sqrt(squared)
    largest_term = jnp.sqrt(linearization.squared_residual + lost)
    terms = jnp.where(tiny, jnp.minimum(terms, largest_term), terms)
    if bounds is not None:
        ahead = jnp.where(gradient > 0, x - bounds.lower, bounds.upper - x)
        terms = jnp.minimum(terms, jnp.sqrt(squared + lost) * ahead)
    return largest(jnp.where(columns.moves, terms, 0))


def model_rounding(x: Vector, squared_norms: Vector) -> Scalar:
    """ε sum_k D_k |x_k|: how far rounding x alone moves the residual vector."""
    return jnp.finfo(x.dtype).eps * inner(jnp.sqrt(squared_norms), jnp.abs(x))


def certificate_limit(linearization: Linearization, rounding: Scalar) -> Scalar:
    """τ |r| + 8 ε sum_k D_k |x_k|: see `Solution`."""
    size = jnp.sqrt(linearization.squared_scale)
    return precision_of(size.dtype).cosine * size + 8 * rounding


def is_certified(
    x: Vector,
    linearization: Linearization,
    projected: Scalar,
    rounding: Scalar,
    start_cost: Scalar,
    bounds: Bounds | None,
) -> Flag:
    """Whether a returned point may be called a success; see `Solution`.

    Args:
        projected: from `projected_gradient`.
        rounding: from `model_rounding`.
    """
    cost, limit = linearization.cost, certificate_limit(linearization, rounding)
    seen = largest(diagonal(linearization.held)) >= least_square(x.dtype)
    stationary = (projected <= limit) & seen
    solved = cost < jnp.finfo(x.dtype).eps ** 1.5 * start_cost
    if linearization.is_likelihood:  # whose cost may have no zero
        solved = jnp.zeros_like(solved)
    noise = jnp.sqrt(linearization.squared_residual) * rounding
    not_worse = cost <= start_cost + cost_rounding(linearization) + noise
    certified = (stationary | solved) & not_worse & (linearization.influence > 0)
    certified = certified & linearization.is_certified_locally
    if bounds is not None:
        certified = certified & bounds.contains(x)
    return certified
