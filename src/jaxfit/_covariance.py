"""The covariance of the parameters, from the linearization at the solution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfit._linearize import Linearization
from jaxfit._small import (
    LANES_MAX,
    Flag,
    Matrix,
    batched_in_lanes,
    diagonal,
    gram_root,
    identity,
    in_turn,
    is_lanes,
    least,
    matmul,
    norm,
    outer,
    some,
    transpose,
    unit_diagonal,
    where_needed_one_by_one,
)

# Pivots of the scaled Gram matrix below which it has lost digits of its inverse, for 64
# and 32 bits.
RCOND = {64: 1e-8, 32: 1e-3}


def is_lossy(rcond: Float[Array, "*lanes"]) -> Flag:
    """Whether a Gram matrix of this conditioning has lost digits of the covariance."""
    return ~(rcond >= RCOND[jnp.finfo(rcond.dtype).bits])


def unit_rcond(gram: Matrix) -> Float[Array, "*lanes"]:
    """How near to singular a Gram matrix is whose columns are scaled to one.

    The least eigenvalue, in lanes the least pivot. Columns of zeros do not count.
    """
    squared = diagonal(gram)
    if is_lanes(squared):
        if len(squared) <= LANES_MAX:
            return swept(gram, squared > 0)[1]
        return in_turn(unit_rcond, gram)
    size = jnp.sqrt(jnp.where(squared > 0, squared, 1))
    unit = unit_diagonal(gram / outer(size, size))
    return jnp.linalg.eigvalsh(unit, symmetrize_input=False)[0]


class Uncertainty(NamedTuple):
    """What one fit leaves open."""

    covariance: Float[Array, "*batch n n"]
    determined: Bool[Array, "*batch n"]  # whether the data determine a parameter


def uncertainty(
    lin: Linearization,
    free: Bool[Array, " n"],
    absolute: bool | Bool[Array, ""] = False,
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


@jax.custom_jvp
def inverse_gram(
    gram: Float[Array, "n n"], frame: Float[Array, "n n"], free: Bool[Array, " n"]
) -> tuple[Float[Array, "n n"], Bool[Array, " n"]]:
    """(JᵀJ)⁻¹ over the free parameters, and which of them it leaves undetermined.

    Args:
        gram: (JP)ᵀ JP.
        frame: P⁻¹.
        free: parameters that take part.
    """
    return _inverse(gram, frame, free)


@inverse_gram.defjvp  # pyright: ignore[reportArgumentType]
def _inverse_gram_jvp(primals, tangents):
    """dC = -C dB C with B = JᵀJ: plain products, so that reverse mode works too."""
    gram, frame, free = primals
    inverse, undetermined = inverse_gram(gram, frame, free)

    def matrix(gram, frame):
        return matmul(transpose(frame), matmul(gram, frame))

    _, change = jax.jvp(matrix, (gram, frame), tangents[:2])
    change = -matmul(inverse, matmul(change, inverse))
    none = np.zeros(undetermined.shape, jax.dtypes.float0)
    return (inverse, undetermined), (change, none)


@batched_in_lanes
def _inverse(gram, frame, free):
    if not is_lanes(free):
        return _inverse_by_svd(gram, frame, free)

    if len(free) > LANES_MAX:
        return in_turn(_inverse_by_svd, gram, frame, free)
    inverse, pivot = swept(gram, free)
    lossy = is_lossy(pivot) | some(some(frame != identity(gram[0])))

    def by_sweeps(*_):
        return inverse, jnp.zeros_like(free)

    return where_needed_one_by_one(lossy, _inverse_by_svd, by_sweeps, gram, frame, free)


def swept(
    matrix: Matrix, free: Bool[Array, "n *lanes"]
) -> tuple[Matrix, Float[Array, "*lanes"]]:
    """The inverse over the free parameters, and the least pivot at unit diagonal.

    By one sweep for each parameter: Goodnight, "A tutorial on the SWEEP operator", The
    American Statistician 33 (1979).
    """
    size = jnp.sqrt(diagonal(matrix))
    proper = size > 0
    divisor = jnp.where(free & proper, size, 1)
    both_free = outer(free, free)
    a = unit_diagonal(jnp.where(both_free, matrix / outer(divisor, divisor), 0))
    n, pivots = len(free), [least(jnp.where(proper | ~free, 1, 0 * size))]
    for k in range(n):
        pivots.append(a[k, k])
        inverse = 1 / jnp.where(pivots[-1] > 0, pivots[-1], 1)
        row, column = a[k] * inverse, a[:, k]
        here = (jnp.arange(n) == k)[:, None]
        rest = a - outer(column, row)
        rest = jnp.where(here[None], (-column * inverse)[:, None], rest)
        row = jnp.where(here, inverse, row)
        a = jnp.where(here[:, None], row[None], rest)
    inverse = jnp.where(both_free, a / outer(divisor, divisor), 0)
    return inverse, least(jnp.stack(pivots))


def _inverse_by_svd(gram, frame, free):
    """From a square root of JᵀJ, its columns scaled to one, by its singular values."""
    n, eps = len(free), jnp.finfo(gram.dtype).eps
    factor = matmul(gram_root(gram, gram[0])[0], frame)
    norms = norm(factor)
    norms = jnp.where(norms > 0, norms, 1)
    factor = jnp.where(free, factor / norms, 0)
    _, singular, right = jnp.linalg.svd(factor, full_matrices=False)
    kept = singular > 10 * n * eps * singular[0]
    inverse = jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)
    half = right.T * inverse / norms[:, None]
    missing = jnp.any(~kept[:, None] & (jnp.abs(right) > jnp.sqrt(eps)), axis=0)
    return matmul(half, half.T), missing & free
