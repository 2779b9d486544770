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
    variance, has_errors = variance_of_residuals(lin, free, absolute)
    undetermined = undetermined | (~has_errors & free)
    unknown = undetermined[:, None] | undetermined
    off_diagonal = ~jnp.eye(len(free), dtype=bool)
    covariance = jnp.where(unknown, jnp.inf, relative * variance)
    covariance = jnp.where(unknown & off_diagonal, jnp.nan, covariance)
    return Uncertainty(jnp.where(outer(free, free), covariance, 0), determined)


def variance_of_residuals(
    lin: Linearization, free: Bool[Array, " n"], absolute: ArrayLike
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """2 cost / (count - free), or 1 if it is known, as with a likelihood.

    And whether it can be told.
    """
    dof = degrees_of_freedom(lin, free)
    variance = jnp.where(dof > 0, 2 * lin.cost / jnp.where(dof > 0, dof, 1), 1)
    is_known = jnp.asarray(absolute) | lin.is_likelihood
    return jnp.where(is_known, 1, variance), (dof > 0) | is_known


def degrees_of_freedom(lin: Linearization, free: Bool[Array, " n"]) -> Float[Array, ""]:
    """Residuals that count, less all parameters that are free, local ones too."""
    return lin.count - lin.local_parameters - jnp.sum(free).astype(lin.normal.dtype)
