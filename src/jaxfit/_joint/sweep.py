"""The sweep: what is left of a block's rows when its local parameters follow x.

A block has the residuals r(x, u), with u its own. At the u that minimise its cost,
u(x), the residuals are a function of x alone, whose derivatives are those along x and,
through u, along the block's own columns:

    C = J_x + J_u du/dx,     du/dx = -(J_uᵀ S J_u)⁻¹ J_uᵀ S J_x

with S the weights and the curvature of the loss of each row,
so that J_uᵀ S C = 0. The rows of C and r are reduced like those of any other function:
CᵀSC is the Schur complement of the block's whole Gram matrix, and adds up over blocks;
CᵀWr is the exact gradient of the cost as a function of x, and differs from J_xᵀWr only
by what u is off its minimum, to second order. For linear u these are Kaufman's matrix
and the gradient of the variable projection (Golub and Pereyra, SIAM J. Numer. Anal. 10,
1973; Kaufman, BIT 15, 1975).

C is computed from rows, not by subtraction of Gram matrices, which would square the
condition of J_u: J_u = R T is made orthonormal in the scalar product of S, by modified
Gram-Schmidt, twice (Giraud, Langou and Rozložník, Comput. Math. Appl. 50, 2005).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxfit._linalg.kernels import matmul
from jaxfit._rows.linearization import Frame, Linearization
from jaxfit._rows.reduction import (
    Weighted,
    apply_loss,
    is_linear,
    normal_matrix,
    reduced,
    weighted_rows,
)
from jaxfit._rows.visit import Evaluated
from jaxfit.losses import Loss

DEPENDENT = 16  # units of rounding, at least, by which a column differs from others


class Basis(NamedTuple):
    """An orthonormal basis T of the space of columns A, with A = Rᵀ T.

    A column that depends on those before it is left out: its row of T is zero.
    """

    vectors: Float[Array, "l m"]  # T
    triangle: Float[Array, "l l"]  # R, upper; the column's norm where it is left out
    kept: Bool[Array, " l"]

    def coefficients(self, rows: Float[Array, "k m"]) -> Float[Array, "k l"]:
        """The combinations of columns nearest to some vectors; 0 of those left out."""
        images = _products(rows, self.vectors)  # (k, l)
        size = len(self.kept)

        def solved(step: Array, found: Array) -> Array:
            place = size - 1 - step
            row = lax.dynamic_index_in_dim(self.triangle, place, keepdims=False)
            image = lax.dynamic_index_in_dim(images, place, 1, keepdims=False)
            value = (image - jnp.sum(found * row[None], axis=1)) / row[place]
            value = jnp.where(self.kept[place], value, 0)
            return lax.dynamic_update_index_in_dim(found, value, place, 1)

        return lax.fori_loop(0, size, solved, jnp.zeros_like(images))


def orthonormal(columns: Float[Array, "l m"], free: Bool[Array, " l"]) -> Basis:
    """A basis of the columns that are free, in their order."""
    size = len(columns)
    lengths = jnp.sqrt(jnp.sum(columns**2, axis=1))
    proper = free & (lengths > 0)
    lengths = jnp.where(proper, lengths, 1)
    units = jnp.where(proper[:, None], columns / lengths[:, None], 0)
    least = rounding(columns)

    def added(place: Array, basis: Basis) -> Basis:
        column = lax.dynamic_index_in_dim(units, place, keepdims=False)
        weights = jnp.zeros_like(lengths)
        for _ in range(2):
            more = _products(column[None], basis.vectors)[0]
            column = column - jnp.sum(more[:, None] * basis.vectors, axis=0)
            weights = weights + more
        squared = jnp.sum(column**2)
        kept = squared > least**2
        height = jnp.sqrt(jnp.where(kept, squared, 1))
        column = jnp.where(kept, column / height, 0)
        weights = jnp.where(jnp.arange(size) == place, height, weights)
        put = lax.dynamic_update_index_in_dim
        return Basis(
            vectors=put(basis.vectors, column, place, 0),
            triangle=put(basis.triangle, weights * lengths[place], place, 1),
            kept=put(basis.kept, kept, place, 0),
        )

    none = Basis(
        vectors=jnp.zeros_like(columns),
        triangle=jnp.zeros((size, size), columns.dtype),
        kept=jnp.zeros_like(free),
    )
    return lax.fori_loop(0, size, added, none)


class Sweep(NamedTuple):
    """A block's rows, swept."""

    linearization: Linearization  # of C and r
    held: Float[Array, "k k"]  # its normal matrix with J_x in the place of C
    basis: Basis
    response: Float[Array, "l n"]  # du/dx
    gradient: Float[Array, " l"]  # of the cost along u
    is_used: Bool[Array, ""]  # whether any residual counts


def sweep(
    own: Evaluated,
    across: Evaluated,
    free: Bool[Array, " l"],
    loss: Loss | None,
    frame: Frame,
) -> Sweep:
    """Sweep the local parameters out of a block.

    Args:
        own: the rows and their derivatives along u.
        across: the same along directions of x.
        free: local parameters that follow; the others are held.
        loss: a robust loss, or None.
        frame: the directions of x.
    """
    size = len(free)
    columns = jnp.concatenate([own.columns, across.columns])
    rows = weighted_rows(own.residual, columns, own.weights, None)
    local, shared = rows.columns[:size], rows.columns[size:]
    terms, steep, scaled = None, 1, 1
    if not is_linear(loss):
        terms = apply_loss(loss, rows.residual, rows.counts)
        steep, scaled = terms.gradient, terms.hessian
    basis = orthonormal(scaled * local, free)
    response = -basis.coefficients(scaled * shared)  # (n, l)
    left = shared + jnp.sum(response[:, :, None] * local[None], axis=1)
    # a column that depends on the local ones is nothing, and not its rounding
    whole = jnp.sum((scaled * shared) ** 2, axis=1)
    is_left = jnp.sum((scaled * left) ** 2, axis=1) > rounding(shared) ** 2 * whole
    left = jnp.where(is_left[:, None], left, 0)
    lin = reduced(Weighted(rows.residual, left, rows.counts), terms, frame)
    return Sweep(
        linearization=lin,
        held=normal_matrix(rows._replace(columns=shared), terms),
        basis=basis,
        response=matmul(response.T, frame.inverse),
        gradient=jnp.sum(local * (steep**2 * rows.residual), axis=1),
        is_used=jnp.any(lin.counted > 0),
    )


def linear_minimum(own: Evaluated) -> Float[Array, " l"]:
    """The local parameters of least squares, of rows at u = 0 that are affine in u."""
    rows = weighted_rows(own.residual, own.columns, own.weights, None)
    everything = jnp.ones(len(own.columns), bool)
    basis = orthonormal(rows.columns, everything)
    return -basis.coefficients(rows.residual[None])[0]


def rounding(columns: Float[Array, "l m"]) -> float:
    """What is left of a unit vector of this length where nothing should be."""
    eps = float(jnp.finfo(columns.dtype).eps)
    return eps * (DEPENDENT + columns.shape[1] ** 0.5)


def _products(a: Float[Array, "k m"], b: Float[Array, "l m"]) -> Float[Array, "k l"]:
    """All inner products, as a reduction that may stand in any program."""
    return jnp.sum(a[:, None] * b[None], axis=2)
