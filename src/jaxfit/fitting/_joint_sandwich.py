"""The sandwich of data sets that share parameters, swept as their fit is."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxfit._core.covariance import degrees_of_freedom
from jaxfit._joint.solution import JointSolution
from jaxfit._rows.reduction import cost_of
from jaxfit._rows.visit import Rows
from jaxfit.fitting._programs import RowSums, row_sums

_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Covariances(NamedTuple):
    """The covariances of shared and local parameters; of one data set or of all."""

    shared: Float[Array, "s s"]
    cross: Float[Array, "*B l s"]
    local: Float[Array, "*B l l"]

    @property
    def whole(self) -> Float[Array, "n n"]:
        """The covariance of one data set's parameters, the shared ones first."""
        return jnp.block([[self.shared, self.cross.T], [self.cross, self.local]])

    @property
    def unknown(self) -> "Covariances":
        """Where there is no finite number, as flags."""
        shared = ~jnp.isfinite(jnp.diagonal(self.shared))
        local = ~jnp.isfinite(jnp.diagonal(self.local, axis1=-2, axis2=-1))
        return Covariances(
            shared[:, None] | shared,
            local[..., :, None] | shared,
            local[..., :, None] | local[..., None, :],
        )


class Part(NamedTuple):
    """Some of the residuals of a data set."""

    number: Int[Array, ""]  # that count
    cost: Float[Array, ""]


class RowsAt(NamedTuple):
    """The rows of a data set as a function of its parameters, and a point."""

    rows: Rows
    x: Float[Array, " n"]  # the shared parameters first

    def part(self, is_own: Bool[np.ndarray, " m"]) -> Part:
        """How many of some rows count, and their cost."""
        pieces = self.rows.chunks.whole.rows
        weights = self.rows.weights(pieces, self.x.dtype)
        counts = jnp.asarray(is_own) if weights is None else is_own & (weights > 0)
        costs = self.rows.residuals.costs(self.x, counts, pieces)
        return Part(jnp.sum(counts), cost_of(costs, self.rows.loss, counts))

    def sums(self) -> RowSums:
        """What they add to the sandwich."""
        return row_sums(self.rows, self.x)


def joint_sandwich(
    sums: RowSums, plain: Covariances, solution: JointSolution
) -> Covariances:
    """H⁻¹ (sum of g gᵀ) H⁻¹ m / (m - n) of all parameters, see `sandwich`.

    H is an arrow: V of the local parameters of each data set, W between these and the
    shared ones. With R = -V⁻¹ W, T = [1; R] and F the filling of a data set,

        S = sum of Tᵀ H T        x:  A = S⁻¹ (sum of Tᵀ F T) S⁻¹
        M = V⁻¹ F_u T S⁻¹        u with x:  R A + M
                                 u:  V⁻¹ F_uu V⁻¹ + R A Rᵀ + M Rᵀ + R Mᵀ

    since a data set's u = -V⁻¹ g_u + R x, and x = -S⁻¹ times the sum of Tᵀ g.

    Args:
        sums: those of each data set.
        plain: covariances from the inverse Gram matrix; what is unknown stays so.
        solution: of the fit.
    """
    number, lin = len(plain.shared), solution.linearization
    local_bread = jax.vmap(_inverse)(sums.hessian[:, number:, number:])
    response = -_dot(local_bread, sums.hessian[:, number:, :number])
    eyes = jnp.broadcast_to(jnp.eye(number), (len(response), number, number))
    ways = jnp.concatenate([eyes, response], axis=1)  # T

    def swept(whole: Float[Array, "B n n"]) -> Float[Array, "s s"]:
        return jnp.sum(_dot(_transposed(ways), _dot(whole, ways)), axis=0)

    bread = _inverse(swept(sums.hessian))
    shared = _dot(bread, _dot(swept(sums.filling), bread))
    own = _dot(local_bread, sums.filling[:, number:])
    mixed = _dot(_dot(own, ways), bread)  # M
    onward = _dot(mixed, _transposed(response))
    local = _dot(own[..., number:], local_bread) + onward + _transposed(onward)
    local = local + _dot(_dot(response, shared), _transposed(response))
    dof = degrees_of_freedom(lin, jnp.asarray(solution.free))
    factor = jnp.where(dof > 0, lin.count / jnp.where(dof > 0, dof, 1), jnp.inf)
    found = Covariances(shared, _dot(response, shared) + mixed, local)
    return Covariances(
        *(
            jnp.where(is_unknown, before, factor * value)
            for is_unknown, before, value in zip(
                plain.unknown, plain, found, strict=True
            )
        )
    )


def _transposed(matrices: Float[Array, "B k l"]) -> Float[Array, "B l k"]:
    return jnp.swapaxes(matrices, -1, -2)


def _inverse(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The inverse of a symmetric matrix, scaled; 0 along what it does not determine."""
    size = jnp.sqrt(jnp.abs(jnp.diagonal(matrix)))
    size = jnp.where(size > 0, size, 1)
    scaled = matrix / (size[:, None] * size)
    return jnp.linalg.pinv(scaled, hermitian=True) / (size[:, None] * size)
