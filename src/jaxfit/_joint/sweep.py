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

C is computed from rows, not by subtraction of Gram matrices: an error of du/dx then
changes CᵀSC to second order only, so that the normal equations of J_u do. Where these
have lost their digits J_u is made orthonormal in the scalar product of S, J_u = Rᵀ T,
by modified Gram-Schmidt, twice (Giraud, Langou and Rozložník, Comput. Math. Appl. 50,
2005), and what depends on other columns is left out.
"""

import dataclasses
import functools
import operator
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxfit._linalg.branches import branch
from jaxfit._linalg.gram import gram
from jaxfit._linalg.inverse import is_lossy, swept
from jaxfit._linalg.kernels import diagonal, identity, matmul, outer
from jaxfit._rows.linearization import Frame, Linearization
from jaxfit._rows.reduction import (
    normal_matrix,
    reduced,
    terms_of,
    weighted_rows,
)
from jaxfit._rows.residuals import Evaluated
from jaxfit.losses import Likelihood, Loss

DEPENDENT = 16  # units of rounding, at least, by which a column differs from others


class Projection(NamedTuple):
    """Vectors, projected on the space of a block's local columns.

    The columns are J_u = F (J_u F⁻¹), as in `Linearization`: the identity and the Gram
    matrix of the columns, or R and that of an orthonormal basis.
    """

    coefficients: Float[Array, "k l"]  # the combinations of columns that are nearest
    gram: Float[Array, "l l"]
    frame: Float[Array, "l l"]  # F
    rounding: Float[Array, ""]  # what may be left of a unit vector in that space


def projection(
    columns: Float[Array, "l m"],
    targets: Float[Array, "k m"],
    products: Float[Array, "j j"],
    free: Bool[Array, " l"],
) -> Projection:
    """Project some vectors on the columns that are free.

    Args:
        products: the inner products of columns and targets, as they follow each other.
    """
    size, number = len(columns), len(targets)
    metric = products[:size, :size]
    inverse = swept(metric, free & (diagonal(metric) > 0))
    least = _rounding(columns)
    usual = Projection(
        coefficients=matmul(products[size : size + number, :size], inverse.matrix),
        gram=jnp.where(outer(free, free), metric, 0),
        frame=identity(diagonal(metric)),
        rounding=least / inverse.pivot,
    )

    def lossy(columns: Array, targets: Array, _: Projection) -> Projection:
        basis = _orthonormal(columns, free, least)
        return Projection(
            coefficients=basis.coefficients(targets),
            gram=jnp.where(basis.kept, identity(diagonal(metric)), 0),
            frame=basis.triangle,
            rounding=jnp.full_like(inverse.pivot, least),
        )

    return branch(
        is_lossy(inverse.pivot),
        lossy,
        lambda columns, targets, usual: usual,
        columns,
        targets,
        usual,
    )


class _Basis(NamedTuple):
    """An orthonormal basis T of the space of columns A, with A = Rᵀ T.

    A column that depends on those before it is left out: its row of T is zero.
    """

    vectors: Float[Array, "l m"]  # T
    triangle: Float[Array, "l l"]  # R, upper; the column's norm where it is left out
    kept: Bool[Array, " l"]

    def coefficients(self, rows: Float[Array, "k m"]) -> Float[Array, "k l"]:
        """The combinations of columns nearest to some vectors; 0 of those left out."""
        size = len(self.kept)
        images = jnp.stack([_products(row, self.vectors) for row in rows])  # (k, l)

        def solved(step: Array, found: Array) -> Array:
            place = size - 1 - step
            row = lax.dynamic_index_in_dim(self.triangle, place, keepdims=False)
            image = lax.dynamic_index_in_dim(images, place, 1, keepdims=False)
            value = (image - jnp.sum(found * row[None], axis=1)) / row[place]
            value = jnp.where(self.kept[place], value, 0)
            return lax.dynamic_update_index_in_dim(found, value, place, 1)

        return lax.fori_loop(0, size, solved, jnp.zeros_like(images))


def _orthonormal(
    columns: Float[Array, "l m"], free: Bool[Array, " l"], least: float
) -> _Basis:
    """A basis of the columns that are free, in their order.

    Args:
        least: what is left of a unit vector where nothing should be.
    """
    size = len(columns)
    lengths = jnp.sqrt(jnp.stack([_product(column, column) for column in columns]))
    proper = free & (lengths > 0)
    lengths = jnp.where(proper, lengths, 1)
    units = jnp.where(proper[:, None], columns / lengths[:, None], 0)

    def added(place: Array, basis: _Basis) -> _Basis:
        column = lax.dynamic_index_in_dim(units, place, keepdims=False)
        weights = jnp.zeros_like(lengths)
        for _ in range(2):
            more = _products(column, basis.vectors)
            column = column - _combined(more[None], basis.vectors)[0]
            weights = weights + more
        squared = _product(column, column)
        kept = squared > least**2
        height = jnp.sqrt(jnp.where(kept, squared, 1))
        column = jnp.where(kept, column / height, 0)
        weights = jnp.where(jnp.arange(size) == place, height, weights)
        put = lax.dynamic_update_index_in_dim
        return _Basis(
            vectors=put(basis.vectors, column, place, 0),
            triangle=put(basis.triangle, weights * lengths[place], place, 1),
            kept=put(basis.kept, kept, place, 0),
        )

    none = _Basis(
        vectors=jnp.zeros_like(columns),
        triangle=jnp.zeros((size, size), columns.dtype),
        kept=jnp.zeros_like(free),
    )
    return lax.fori_loop(0, size, added, none)


def _rounding(columns: Float[Array, "l m"]) -> float:
    """What is left of a unit vector of this length where nothing should be."""
    eps = float(jnp.finfo(columns.dtype).eps)
    return eps * (DEPENDENT + columns.shape[1] ** 0.5)


def _products(
    vector: Float[Array, " m"], others: Float[Array, "l m"]
) -> Float[Array, " l"]:
    return jnp.stack([_product(vector, other) for other in others])


def _product(a: Float[Array, " m"], b: Float[Array, " m"]) -> Float[Array, ""]:
    """The inner product, as a reduction that may stand in any program."""
    return gram([a, b])[0, 1]


def _combined(
    coefficients: Float[Array, "k l"], vectors: Float[Array, "l m"]
) -> Float[Array, "k m"]:
    """Sums of vectors, term by term: likewise."""
    columns = coefficients.T[:, :, None]
    terms = (c * vector for c, vector in zip(columns, vectors, strict=True))
    return functools.reduce(operator.add, terms)


class Sweep(NamedTuple):
    """A block's rows, swept."""

    linearization: Linearization  # of C and r
    held: Float[Array, "k k"]  # its normal matrix with J_x in the place of C
    local: Projection  # of J_x on J_u
    response: Float[Array, "l n"]  # du/dx
    is_used: Bool[Array, ""]  # whether any residual counts


def sweep(
    own: Evaluated,
    across: Evaluated,
    free: Bool[Array, " l"],
    loss: Loss | Likelihood | None,
    frame: Frame,
) -> Sweep:
    """Sweep the local parameters out of a block.

    Args:
        own: the rows and their derivatives along u.
        across: the same along directions of x.
        free: local parameters that follow; the others are held.
        loss: a robust loss, a likelihood, or None.
        frame: the directions of x.
    """
    size = len(free)
    columns = jnp.concatenate([own.columns, across.columns])
    rows = weighted_rows(own._replace(columns=columns))
    terms = terms_of(loss, rows)
    scaled = None if terms is None else terms.hessian
    local, shared = rows.columns[:size], rows.columns[size:]
    whole = normal_matrix(rows, terms)
    products, factor = whole, 1
    if scaled is not None:
        products, factor = gram([*(scaled * rows.columns)]), scaled
    onto = projection(factor * local, factor * shared, products, free)
    response = -onto.coefficients  # (n, l)
    left = shared + _combined(response, local)
    # a column that depends on the local ones is nothing, and not its rounding
    lin = reduced(rows._replace(columns=left), terms, frame)
    squared = diagonal(products)[size : size + len(shared)]
    is_left = diagonal(lin.gram) > onto.rounding**2 * squared
    return Sweep(
        linearization=_without_columns(lin, ~is_left),
        held=whole[size:, size:],
        local=onto,
        response=matmul(response.T, frame.inverse),
        is_used=jnp.any(lin.counted > 0),
    )


def _without_columns(lin: Linearization, gone: Bool[Array, " n"]) -> Linearization:
    """The linearization with some columns put to zero."""
    kept = jnp.append(~gone, True)
    normal = jnp.where(outer(kept, kept), lin.normal, 0)
    terms = lin.terms
    if terms is not None and terms.gram is not None:
        matrix = jnp.where(outer(~gone, ~gone), terms.gram, 0)
        terms = dataclasses.replace(terms, gram=matrix)
    return dataclasses.replace(lin, normal=normal, terms=terms)


def newton_step(own: Evaluated) -> Float[Array, " l"]:
    """To the minimum over u of least squares that are affine in u."""
    rows = weighted_rows(own)
    everything = jnp.ones(len(own.columns), bool)
    residual = rows.residual[None]
    products = normal_matrix(rows, None)
    return -projection(rows.columns, residual, products, everything).coefficients[0]
