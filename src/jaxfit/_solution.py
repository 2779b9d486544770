"""What a fit returns: the solution, its status, its certificate, its covariance."""

import enum
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._bounds import Bounds
from jaxfit._linearize import Linearization, cost_rounding
from jaxfit._small import gram_root

RUNNING = 9  # not a status: the fit goes on

CERTIFIED_COSINE = 1e-6  # τ of the certificate in float64


class Status(enum.IntEnum):
    """How a fit ended; positive is success. SciPy's numbers where SciPy has one."""

    MAX_STEPS = 0
    GRADIENT = 1
    COST = 2
    STEP = 3
    COST_AND_STEP = 4
    NONFINITE_START = -1
    STOPPED = -2
    STALLED = -3
    INVALID_BOUNDS = -4

    @property
    def message(self) -> str:
        """A sentence for the user: what happened and what to do."""
        return _MESSAGES[self]


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
    Status.NONFINITE_START: (
        "The residuals, their derivatives or the weights are not finite at the start, "
        "or a weight is negative. Check data and weights for NaN, infinity and minus "
        "signs, and start where the model is finite and differentiable."
    ),
    Status.STOPPED: "The fit was stopped by a callback.",
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


# The certificate


def projected_gradient(
    x: Float[Array, " n"],
    gradient: Float[Array, " n"],
    squared_norms: Float[Array, " n"],
    bounds: Bounds | None,
) -> Float[Array, ""]:
    """max_i D_i |P(x_i - g_i / D_i²) - x_i|, with D_i = |J_i|, P the projection.

    Each term is what the best move of one parameter alone changes in the model values;
    without bounds it is |g_i| / |J_i|. Free of the scale of every parameter.
    """
    moves = squared_norms > 0
    divisor = jnp.where(moves, squared_norms, 1)
    if bounds is None:
        return jnp.max(jnp.where(moves, jnp.abs(gradient) / jnp.sqrt(divisor), 0))
    target = bounds.project(x - jnp.where(moves, gradient / divisor, 0))
    return jnp.max(jnp.sqrt(squared_norms) * jnp.abs(target - x))


def model_rounding(
    x: Float[Array, " n"], squared_norms: Float[Array, " n"]
) -> Float[Array, ""]:
    """ε sum_k D_k |x_k|: how far rounding x alone moves the residual vector."""
    eps = jnp.finfo(x.dtype).eps
    return eps * jnp.sum(jnp.sqrt(squared_norms) * jnp.abs(x))


def is_certified(
    x: Float[Array, " n"],
    linearization: Linearization,
    projected: Float[Array, ""],
    rounding: Float[Array, ""],
    start_cost: Float[Array, ""],
    bounds: Bounds | None,
) -> Bool[Array, ""]:
    """Whether a returned point may be called a success; see `Solution`.

    Args:
        projected: from `projected_gradient`.
        rounding: from `model_rounding`.
    """
    tau = CERTIFIED_COSINE if x.dtype == jnp.float64 else 1e-3
    cost = linearization.cost
    limit = tau * jnp.sqrt(linearization.squared_residual) + 8 * rounding
    stationary = projected <= limit
    solved = cost <= jnp.finfo(x.dtype).eps ** 1.5 * start_cost
    not_worse = cost <= start_cost + cost_rounding(linearization)
    certified = (stationary | solved) & not_worse & (linearization.influence > 0)
    if bounds is not None:
        certified = certified & bounds.contains(x)
    return certified


# The result


class Solution(eqx.Module):
    """The result of a fit: a pytree of arrays.

    `success` is a certificate, taken from quantities at the returned point: everything
    is finite, x lies inside its bounds, the cost is not above the start's, some
    residual has influence, and either

        max_i D_i |P(x_i - g_i / D_i²) - x_i|  <=  τ |r| + 8 ε sum_k D_k |x_k|

    with D_i = |J_i| the norms of the Jacobian's columns, g the gradient, P the
    projection on the bounds, and τ = 1e-6 in float64, 1e-3 in float32, or the cost is
    below ε^1.5 of the start's (a problem without residuals).

    Attributes:
        x: the parameters, in the structure of `x0`.
        status: a number of `Status`.
        optimality: the cosine that `gtol` tests.
        steps: accepted steps.
        nfev: evaluations of the residuals.
        linearization: the problem at x, as n x n numbers.
    """

    x: PyTree[Float[Array, "..."]]
    status: Int[Array, "*batch"]
    optimality: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    nfev: Int[Array, "*batch"]
    linearization: Linearization
    bounds_active: Int[Array, "*batch n"] | None  # None: a fit without bounds
    bounds_free: Bool[Array, "*batch n"] | None

    @property
    def cost(self) -> Float[Array, "*batch"]:
        """Half the sum of the loss; infinite if the start could not be evaluated."""
        return self.linearization.cost

    @property
    def count(self) -> Int[Array, "*batch"]:
        """Residuals that count: complex ones twice, those of weight zero not."""
        return self.linearization.count

    @property
    def njev(self) -> Int[Array, "*batch"]:
        """Evaluations of the Jacobian: one with every evaluation of the residuals."""
        return self.nfev

    @property
    def gradient(self) -> PyTree[Float[Array, "..."]]:
        """The gradient of the cost, in the structure of `x0`."""
        return self._like_x(self.linearization.gradient)

    @property
    def active(self) -> PyTree[Int[Array, "..."]]:
        """For each parameter -1 at its lower bound, 1 at its upper bound, else 0."""
        active = self.bounds_active
        if active is None:
            active = jnp.zeros(self.linearization.rhs.shape, jnp.int32)
        return self._like_x(active)

    @property
    def free(self) -> Bool[Array, "*batch n"]:
        """Parameters whose bounds differ, in `ravel` order."""
        if self.bounds_free is None:
            return jnp.ones(self.linearization.rhs.shape, bool)
        return self.bounds_free

    @property
    def success(self) -> Bool[Array, "*batch"]:
        """Whether the fit ended well, `status > 0`: a certificate, see `Solution`."""
        return self.status > 0

    @property
    def message(self) -> Any:
        """How the fit ended, as a sentence; an array of sentences for a batch."""
        if isinstance(self.status, Tracer):
            raise TypeError("Solution.message is for the host: read it outside of jit.")
        messages = np.vectorize(lambda s: Status(s).message, otypes=[object])(
            np.asarray(self.status)
        )
        return messages.item() if messages.ndim == 0 else messages

    def covariance(
        self, absolute: bool | Bool[Array, ""] = False
    ) -> Float[Array, "*batch n n"]:
        """Covariance of the parameters in `ravel` order.

        The inverse of JᵀJ over the free parameters, times the variance of a residual.

        Args:
            absolute: the weights are 1/sigma² of known errors: that variance is 1.
                Otherwise it is estimated, 2 cost / (count - free), and infinite if no
                degree of freedom is left.

        Returns:
            (n, n), with leading axes for a batch. A fixed parameter has zero rows. A
            direction that the data do not determine makes the variance of every
            parameter that takes part in it infinite, and what stands beside it NaN.
        """
        relative, undetermined = _inverse_gram(self.linearization, self.free)
        dof = self.count - jnp.sum(self.free, axis=-1)
        dof = dof.astype(relative.dtype)
        variance = jnp.where(dof > 0, 2 * self.cost / jnp.where(dof > 0, dof, 1), 1)
        variance = jnp.where(absolute, 1, variance)
        unknown_variance = (dof <= 0) & ~jnp.asarray(absolute)
        undetermined = undetermined | (unknown_variance[..., None] & self.free)
        covariance = relative * variance[..., None, None]
        unknown = undetermined[..., :, None] | undetermined[..., None, :]
        fixed = ~(self.free[..., :, None] & self.free[..., None, :])
        n = self.free.shape[-1]
        diagonal = jnp.eye(n, dtype=bool)
        covariance = jnp.where(
            unknown, jnp.where(diagonal, jnp.inf, jnp.nan), covariance
        )
        return jnp.where(fixed, 0, covariance)

    def stderr(self, absolute: bool = False) -> PyTree[Float[Array, "..."]]:
        """Standard errors in the structure of `x`; see `covariance`."""
        covariance = self.covariance(absolute)
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        return self._like_x(jnp.sqrt(variance))

    def correlation(self) -> Float[Array, "*batch n n"]:
        """Correlation of the parameters; NaN where a variance is zero or infinite."""
        covariance = self.covariance()
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        proper = (variance > 0) & jnp.isfinite(variance)
        root = jnp.sqrt(jnp.where(proper, variance, jnp.nan))
        correlation = covariance / (root[..., :, None] * root[..., None, :])
        diagonal = jnp.eye(variance.shape[-1], dtype=bool) & proper[..., None]
        return jnp.where(diagonal, 1, jnp.clip(correlation, -1, 1))

    def _like_x(self, vector):
        """Split (..., n) into the structure and shapes of `x`."""
        leaves, structure = jax.tree.flatten(self.x)
        batch = self.status.shape
        parts, start = [], 0
        for leaf in leaves:
            shape = leaf.shape[len(batch) :]
            size = math.prod(shape)
            part = vector[..., start : start + size]
            parts.append(part.reshape(batch + shape))
            start += size
        return jax.tree.unflatten(structure, parts)


def _inverse_gram(lin, free):
    """(JᵀJ)⁻¹ over the free parameters, and which of them it leaves undetermined.

    From a square root of JᵀJ, its columns scaled to one, by its singular values.
    """
    n, eps = lin.rhs.shape[-1], jnp.finfo(lin.rhs.dtype).eps
    one = jnp.vectorize(gram_root, signature="(n,n),(n)->(n,n),(n)")
    factor = one(lin.gram, lin.rhs)[0] @ lin.frame
    norms = jnp.sqrt(jnp.sum(factor**2, axis=-2))
    norms = jnp.where(norms > 0, norms, 1)
    factor = jnp.where(free[..., None, :], factor / norms[..., None, :], 0)
    _, singular, right = jnp.linalg.svd(factor, full_matrices=False)
    kept = singular > 10 * n * eps * singular[..., :1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)
    half = jnp.swapaxes(right, -1, -2) * inverse[..., None, :] / norms[..., :, None]
    missing = jnp.any(~kept[..., :, None] & (jnp.abs(right) > jnp.sqrt(eps)), axis=-2)
    return half @ jnp.swapaxes(half, -1, -2), missing & free
