"""Inverses of small symmetric matrices: by sweeps and, where these fail, by rotations.

A sweep for each parameter inverts a well-conditioned matrix. What has lost its digits,
or has no inverse, is diagonalised by Jacobi's rotations, which keep digits that the
matrix itself has lost: they turn the vectors of which it is made. Both are loops of a
few operations, the same program for any number of parameters, for one fit and for
lanes of fits. LAPACK does the same for one fit with parameters by the dozens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxfit._linalg.branches import batched_in_lanes, branch
from jaxfit._linalg.kernels import (
    Flag,
    Flags,
    Matrix,
    Scalar,
    Vector,
    diagonal,
    identity,
    is_framed,
    is_large,
    largest,
    least,
    matmul,
    norm,
    on_diagonal,
    outer,
    some,
    transpose,
    unit_diagonal,
)
from jaxfit._linalg.precision import precision_of
from jaxfit._linalg.rotations import Diagonal, diagonalised
from jaxfit._linalg.seldom import is_lean, seldom


def is_lossy(pivot: Scalar) -> Flag:
    """Whether a matrix with this least pivot has lost digits of its inverse."""
    return ~(pivot >= precision_of(pivot.dtype).lossy_pivot)


# By sweeps


class Inverse(NamedTuple):
    """The inverse of a matrix, and how far it is from having none."""

    matrix: Matrix
    pivot: Scalar  # the least in any order, of the matrix scaled to unit diagonal


def swept(matrix: Matrix, free: Flags) -> Inverse:
    """The inverse of a positive definite matrix over the free parameters.

    By one sweep for each parameter: Goodnight, "A tutorial on the SWEEP operator", The
    American Statistician 33 (1979). Scaled to a diagonal of one, it does not depend on
    the units of the parameters. A pivot that is rounding is passed over.

    Args:
        free: parameters that take part. Without a positive diagonal for each of them
            the pivot is zero.
    """
    squared = diagonal(matrix)
    proper = free & (squared > 0)
    size = jnp.where(proper, 1 / jnp.sqrt(jnp.where(proper, squared, 1)), 0)
    unit = unit_diagonal(matrix * size[:, None] * size[None])
    if is_large(squared):
        inverse, pivot = _by_cholesky(unit)
    else:
        inverse, pivot = _by_sweeps(unit)
    # the order of the sweeps can hide how little of a column is not that of the others
    pivot = jnp.minimum(pivot, 1 / largest(diagonal(inverse)))
    pivot = jnp.where(some(free & ~proper), 0, pivot)
    return Inverse(inverse * size[:, None] * size[None], pivot)


def _by_sweeps(unit: Matrix) -> tuple[Matrix, Scalar]:
    n = len(unit)
    place = jnp.arange(n).reshape(n, *[1] * (unit.ndim - 2))
    rounding = n * jnp.finfo(unit.dtype).eps

    def sweep(k: Any, carry: tuple) -> tuple:
        # a - u uᵀ / pivot, with the pivot's own entry of u less by one, is a sweep but
        # for 2 on the diagonal
        a, lowest = carry
        row = lax.dynamic_index_in_dim(a, k, keepdims=False)
        pivot = lax.dynamic_index_in_dim(row, k, keepdims=False)
        proper = pivot > rounding
        inverse = jnp.where(proper, 1 / jnp.where(proper, pivot, 1), 0)
        u = jnp.where(place == k, row - 1, row)
        return a - outer(u, u * inverse), jnp.minimum(lowest, pivot)

    a, lowest = lax.fori_loop(0, n, sweep, (unit, unit[0, 0]))  # which is one
    return jnp.where(on_diagonal(unit[0]), 2 - a, -a), lowest


def _by_cholesky(unit: Matrix) -> tuple[Matrix, Scalar]:
    root = jnp.linalg.cholesky(unit)
    half = lax.linalg.triangular_solve(
        root, identity(unit[0]), left_side=True, lower=True
    )
    lowest = least(diagonal(root)) ** 2
    return matmul(half.T, half), jnp.where(jnp.isnan(lowest), 0, lowest)


# The inverse of a Gram matrix in its frame


class GramInverse(NamedTuple):
    """(JᵀJ)⁻¹, and the parameters that it leaves undetermined."""

    matrix: Matrix
    undetermined: Flags


def inverse_gram(
    gram: Float[Array, "n n"], frame: Float[Array, "n n"], free: Bool[Array, " n"]
) -> GramInverse:
    """(JᵀJ)⁻¹ over the free parameters, and which of them it leaves undetermined.

    Args:
        gram: (JP)ᵀ JP.
        frame: P⁻¹.
        free: parameters that take part.
    """
    if is_lean():
        return _inverse_gram(gram, frame, free)
    return _differentiable(gram, frame, free)


@jax.custom_jvp
def _differentiable(gram: Matrix, frame: Matrix, free: Any) -> GramInverse:
    return _kernel(gram, frame, free)


@_differentiable.defjvp  # pyright: ignore[reportArgumentType]
def _inverse_gram_jvp(
    primals: tuple, tangents: tuple
) -> tuple[GramInverse, GramInverse]:
    """dC = -C dB C with B = JᵀJ: plain products, so that reverse mode works too."""
    gram, frame, free = primals
    inverse = inverse_gram(gram, frame, free)

    def matrix(gram: Matrix, frame: Matrix) -> Matrix:
        return matmul(transpose(frame), matmul(gram, frame))

    _, change = jax.jvp(matrix, (gram, frame), tangents[:2])
    change = -matmul(inverse.matrix, matmul(change, inverse.matrix))
    no_tangent: Any = np.zeros(inverse.undetermined.shape, jax.dtypes.float0)
    return inverse, GramInverse(change, no_tangent)


def _inverse_gram(gram: Matrix, frame: Matrix, free: Any) -> GramInverse:
    inverse, pivot = swept(gram, free)
    return seldom(
        is_lossy(pivot) | is_framed(frame),
        _inverse_by_rotations,
        lambda *_: GramInverse(inverse, jnp.zeros_like(free)),
        gram,
        frame,
        free,
    )


_kernel = batched_in_lanes(_inverse_gram)  # one function, which JAX knows again


def _inverse_by_rotations(gram: Matrix, frame: Matrix, free: Any) -> GramInverse:
    """The inverse by rotations, the columns scaled to one."""
    norms = jnp.sqrt(diagonal(matmul(transpose(frame), matmul(gram, frame))))
    norms = jnp.where(norms > 0, norms, 1)
    form = diagonalised(gram, jnp.where(free[None], frame / norms[None], 0))
    half = form.basis / norms[:, None]
    inverse = matmul(half * _reciprocal(form)[None], transpose(half))
    rounding = jnp.finfo(gram.dtype).eps ** 0.5
    missing = ~form.proper[None] & (jnp.abs(form.basis) > rounding)
    return GramInverse(inverse, jnp.any(missing, axis=1) & free)


def _reciprocal(form: Diagonal) -> Vector:
    """One over the values that are more than rounding; zero for the others."""
    return jnp.where(form.proper, 1 / jnp.where(form.proper, form.values, 1), 0)


# The inverse of a Hessian


@jax.custom_jvp
def pseudo_inverse(
    hessian: Float[Array, "n n"], free: Bool[Array, " n"]
) -> Float[Array, "n n"]:
    """The Moore-Penrose inverse over the free parameters; zero for the others.

    Which directions are determined is decided where the diagonal is one, so that it
    does not depend on the units of the parameters.
    """
    return _pseudo_inverse(hessian, free)


@pseudo_inverse.defjvp
def _pseudo_inverse_jvp(primals: tuple, tangents: tuple) -> tuple[Matrix, Matrix]:
    """dK = -K dH K, exact for a Hessian whose rank does not change."""
    hessian, free = primals
    inverse = pseudo_inverse(hessian, free)
    return inverse, -matmul(inverse, matmul(tangents[0], inverse))


@batched_in_lanes
def _pseudo_inverse(hessian: Matrix, free: Flags) -> Matrix:
    inverse, pivot = swept(hessian, free)
    return branch(
        is_lossy(pivot), _pseudo_by_rotations, lambda *_: inverse, hessian, free
    )


def _pseudo_by_rotations(hessian: Matrix, free: Any) -> Matrix:
    """From the eigenvalues of the matrix scaled to a diagonal of one.

    Its inverse on the range, brought back to the units of the parameters, is a
    generalised inverse; projected on both sides onto the complement of the null space
    it is the one of minimum norm.
    """
    hessian = jnp.where(outer(free, free), hessian, 0)
    size = jnp.sqrt(jnp.abs(diagonal(hessian)))
    size = jnp.where(size > 0, size, 1)
    form = diagonalised(hessian / outer(size, size))
    half = form.basis / size[:, None]
    inverse = matmul(half * _reciprocal(form)[None], transpose(half))
    lost = jnp.where(form.proper[None], 0, half / norm(half)[None])
    null = diagonalised(identity(size), lost)
    onto = null.images * jnp.sqrt(_reciprocal(null))[None]
    onto = identity(size) - matmul(onto, transpose(onto))
    return matmul(onto, matmul(inverse, onto))
