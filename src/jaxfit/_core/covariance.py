"""The covariance of the parameters, from the linearization at the solution."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxfit._linalg.inverse import inverse_gram
from jaxfit._linalg.kernels import outer
from jaxfit._rows.linearization import Linearization


class Uncertainty(NamedTuple):
    """What one fit leaves open."""

    covariance: Float[Array, "*batch n n"]
    determined: Bool[Array, "*batch n"]  # whether the data determine a parameter


def uncertainty(
    lin: Linearization,
    free: Bool[Array, " n"],
    absolute: ArrayLike = False,
) -> Uncertainty:
    """Covariance of one fit; see `Solution.covariance` for its conventions.

    Args:
        lin: the linearization at the solution.
        free: parameters whose bounds differ.
        absolute: a residual has variance 1; otherwise it is estimated.
    """
    relative, undetermined = inverse_gram(lin.gram, lin.frame, free)
    determined = ~free | (~undetermined & jnp.isfinite(jnp.diagonal(relative)))
    dof = lin.count - jnp.sum(free).astype(relative.dtype)
    variance = jnp.where(dof > 0, 2 * lin.cost / jnp.where(dof > 0, dof, 1), 1)
    variance = jnp.where(absolute, 1, variance)
    undetermined = undetermined | ((dof <= 0) & ~jnp.asarray(absolute) & free)
    unknown = undetermined[:, None] | undetermined
    off_diagonal = ~jnp.eye(len(free), dtype=bool)
    covariance = jnp.where(unknown, jnp.inf, relative * variance)
    covariance = jnp.where(unknown & off_diagonal, jnp.nan, covariance)
    return Uncertainty(jnp.where(outer(free, free), covariance, 0), determined)
