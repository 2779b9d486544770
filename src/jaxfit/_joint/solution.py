"""What a joint fit returns: a `Solution` of x, and the local parameters of blocks."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._core.certificate import Status
from jaxfit._core.covariance import variance_of_residuals
from jaxfit._core.solution import (
    Numbers,
    Solution,
    at_once,
    split_like,
    standard_errors,
)
from jaxfit._joint.blocks import Factors
from jaxfit._linalg.inverse import inverse_gram
from jaxfit._programs.exportable import exportable
from jaxfit._rows.linearization import Linearization

# A local parameter that moves the residuals by less than this part of what the others
# do, in answer to a shared one that is not determined, is itself determined.
TAKES_PART = 1e-8


@exportable
class JointSolution(Solution):
    """The result of `solve_joint`: that of a fit of x, and of each block's own.

    The attributes and methods of `Solution` are about the shared parameters x. Their
    covariance is marginal over the local ones, their gradient that along x alone,
    `linearization` what is left when the local parameters are swept out. `success` is a
    certificate as in `Solution`, with |J_i| of all rows before the sweep, and holds
    only if each block's local parameters pass the same test against the block's own
    residuals.

    Attributes:
        local: the local parameters, in the structure of `u0`.
        local_status: how the fit of each block alone, at x, ended.
    """

    local: PyTree[Float[Numbers, "..."]]
    local_status: Int[Numbers, "*batch B"]
    local_free: Bool[Numbers, "*batch l"]
    factors: Factors

    @classmethod
    def of(
        cls,
        shared: Solution,
        *,
        local: PyTree,
        local_status: Numbers,
        local_free: Numbers,
        factors: Factors,
    ) -> "JointSolution":
        """The result of a fit of x, with that of the blocks."""
        return cls(
            **{f.name: getattr(shared, f.name) for f in dataclasses.fields(shared)},
            local=local,
            local_status=local_status,
            local_free=local_free,
            factors=factors,
        )

    @property
    def local_active(self) -> PyTree[Int[Numbers, "..."]]:
        """For each local parameter -1 at its lower bound, 1 at its upper, else 0."""
        return self._like_local(self.factors.active)

    @property
    def message(self) -> Any:
        """How the fit ended, as a sentence, with the blocks that have failed."""
        message = super().message
        if np.ndim(message) or self.success:
            return message
        status = np.asarray(self.local_status)
        is_bad = (status <= 0) & (status != Status.MAX_STEPS)
        is_idle = (status == Status.STALLED) & ~np.asarray(self.factors.is_used)
        failed = np.flatnonzero(is_bad & ~is_idle)
        if failed.size == 0:
            return message
        named = ", ".join(str(block) for block in failed[:8])
        more = f" and {failed.size - 8} more" if failed.size > 8 else ""
        reason = Status(status[failed[0]]).name
        return f"{message} Blocks {named}{more} could not be fitted: {reason}."

    def local_covariance(
        self, absolute: ArrayLike = False
    ) -> Float[Numbers, "*batch B l l"]:
        """Covariance of each block's local parameters, in `ravel` order.

        What x leaves open is part of it. A direction that the data do not determine is
        infinite, as in `covariance`; so is all of a block without weight.
        """
        return self._errors(absolute).local

    def local_stderr(
        self, absolute: ArrayLike = False
    ) -> PyTree[Float[Numbers, "..."]]:
        """Standard errors of the local parameters, in the structure of `u0`."""
        return self._like_local(standard_errors(self.local_covariance(absolute)))

    def cross_covariance(
        self, absolute: ArrayLike = False
    ) -> Float[Numbers, "*batch B l n"]:
        """Covariance of each block's local parameters with x."""
        return self._errors(absolute).cross

    def local_determined(self) -> PyTree[Bool[Numbers, "..."]]:
        """Which local parameters the data determine, in the structure of `u0`."""
        return self._like_local(self._errors(True).determined)

    @at_once
    def _errors(self, absolute: ArrayLike = False) -> "_Errors":
        def of_one(
            lin: Linearization, free: Array, local_free: Array, factors: Factors
        ) -> _Errors:
            return _errors(lin, free, local_free, factors, absolute)

        return self._each(
            of_one, self.linearization, self.free, self.local_free, self.factors
        )

    def _like_local(self, matrix: Numbers) -> PyTree:
        """Split (..., B, l) into the structure and shapes of `local`."""
        return split_like(self.local, matrix, self.local_status.shape)


class _Errors(eqx.Module):
    """What one fit leaves open of its local parameters."""

    local: Float[Array, "*B l l"]
    cross: Float[Array, "*B l n"]
    determined: Bool[Array, "*B l"]


def _errors(
    lin: Linearization,
    free: Bool[Array, " n"],
    local_free: Bool[Array, " l"],
    factors: Factors,
    absolute: ArrayLike,
) -> _Errors:
    """The covariance of local parameters: V⁻¹ + R S⁻¹ Rᵀ with R = du/dx, and R S⁻¹.

    (The inverse of the whole matrix, by blocks; S is the Schur complement.)
    """
    shared = inverse_gram(lin.gram, lin.frame, free)
    unknown = shared.undetermined | (free & ~jnp.isfinite(jnp.diagonal(shared.matrix)))
    known = ~(unknown[:, None] | unknown)
    marginal = jnp.where(known & jnp.outer(free, free), shared.matrix, 0)
    variance, has_errors = variance_of_residuals(lin, free, absolute)

    def of_block(factors: Factors) -> _Errors:
        own = inverse_gram(factors.gram, factors.frame, local_free)
        response = factors.response
        cross = response @ marginal
        matrix = jnp.where(jnp.isfinite(own.matrix), own.matrix, 0)
        matrix = matrix + cross @ response.T
        lengths = jnp.sqrt(jnp.sum(factors.frame**2, axis=0))
        moves = jnp.abs(response) * lengths[:, None]  # of the residuals
        takes_part = moves > TAKES_PART * jnp.max(moves, axis=0)
        open_own = own.undetermined | ~jnp.isfinite(jnp.diagonal(own.matrix))
        open_own = open_own | jnp.any(takes_part & unknown, axis=1)
        undetermined = local_free & (open_own | ~factors.is_used)
        infinite = local_free & (undetermined | ~has_errors)
        either = infinite[:, None] | infinite
        off_diagonal = ~jnp.eye(len(infinite), dtype=bool)
        matrix = jnp.where(either, jnp.inf, variance * matrix)
        matrix = jnp.where(either & off_diagonal, jnp.nan, matrix)
        pairs = infinite[:, None] | (free & (unknown | ~has_errors))
        cross = jnp.where(pairs, jnp.nan, variance * cross)
        return _Errors(
            local=jnp.where(jnp.outer(local_free, local_free), matrix, 0),
            cross=jnp.where(jnp.outer(local_free, free), cross, 0),
            determined=~undetermined,
        )

    return jax.vmap(of_block)(factors)
