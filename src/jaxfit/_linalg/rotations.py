"""Diagonal forms by Jacobi's rotations, which keep digits that a matrix has lost."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import (
    Flag,
    Matrix,
    Vector,
    diagonal,
    identity,
    is_large,
    largest,
    matmul,
    matvec,
    outer,
    total,
    transpose,
)

SWEEPS = 30  # of rotations, at most; five or so are enough


class Diagonal(NamedTuple):
    """The diagonal form of the inner products of some vectors, by a rotation of them.

    (F V)ᵀ G (F V) = diag(values), Vᵀ V = 1.
    """

    values: Vector
    basis: Matrix  # V
    images: Matrix  # F V
    proper: Flag  # a value is more than the rounding of the sum that it is
    rounding: Vector  # of the values

    @property
    def root(self) -> Vector:
        """The root of the values, or of their rounding where they are that."""
        return jnp.sqrt(jnp.where(self.proper, self.values, self.rounding))


def diagonalised(
    metric: Matrix, vectors: Matrix | None = None, curvature: Vector | None = None
) -> Diagonal:
    """Vᵀ (Fᵀ G F + C) V made diagonal by rotations of the columns of F.

    Jacobi's method with two columns at a time rotated until they are orthogonal, which
    finds the small values of badly scaled columns to as many digits as the columns have
    (Hestenes, J. SIAM 6, 1958; Demmel and Veselić, SIAM J. Matrix Anal. Appl. 13,
    1992).

    Args:
        metric: G, symmetric; positive semidefinite where F is given.
        vectors: F; None: the identity.
        curvature: C >= 0, the diagonal of a matrix; None: zero.
    """
    # G with a diagonal of one, and F to match
    squared, n = diagonal(metric), len(metric)
    size = jnp.sqrt(jnp.where(squared > 0, squared, 1))
    metric = metric / outer(size, size)
    is_definite = vectors is not None
    vectors = size[:, None] * (vectors if is_definite else identity(size))
    curvature = jnp.zeros_like(size) if curvature is None else curvature
    if is_large(size):
        form = _by_lapack(metric, vectors, curvature, is_definite)
    else:
        form = _by_rotations(metric, vectors, curvature)
    values, basis, images = form
    # a value is a sum of squares, or of what cancels: it is known to its rounding
    squares = total(images**2) + matvec(transpose(basis) ** 2, curvature)
    sizes, eps = values if is_definite else jnp.abs(values), jnp.finfo(size.dtype).eps
    rounding = (1 if is_definite else 10) * n * eps * squares
    proper = (sizes > rounding) & (sizes > (10 * n * eps) ** 2 * largest(sizes))
    return Diagonal(values, basis, images / size[:, None], proper, rounding)


def diagonalised_together(
    metric: Matrix, vectors: Sequence[Matrix], curvatures: Sequence[Vector]
) -> list[Diagonal]:
    """`diagonalised` for several vectors and curvatures, side by side as lanes."""
    if is_large(metric[0]):
        pairs = zip(vectors, curvatures, strict=True)
        return [diagonalised(metric, *pair) for pair in pairs]
    number = len(vectors)
    together = diagonalised(
        jnp.stack([metric] * number, axis=-1),
        jnp.stack(vectors, axis=-1),
        jnp.stack(curvatures, axis=-1),
    )
    leaves = [jnp.unstack(leaf, axis=-1) for leaf in together]
    return [Diagonal(*parts) for parts in zip(*leaves, strict=True)]


def _by_rotations(
    metric: Matrix, vectors: Matrix, curvature: Vector
) -> tuple[Vector, Matrix, Matrix]:
    """Values, V and F V, by rotations of rows with a column of F each, and one of V."""
    eye, n = jnp.broadcast_to(identity(curvature), vectors.shape), len(curvature)
    rows = jnp.concatenate([transpose(vectors), eye], axis=1)
    rows = _rotated(rows, metric, curvature)
    values = total(rows * _images(rows, metric, curvature), axis=1)
    return values, transpose(rows[:, n:]), transpose(rows[:, :n])


def _images(
    rows: Array,
    metric: Matrix,
    curvature: Vector,
) -> Array:
    """What the inner product with a row is taken of: those of F by the metric."""
    n = len(metric)
    parts = matmul(rows[:, :n], metric), rows[:, n:] * curvature[None]
    return jnp.concatenate(parts, axis=1)


def _rotated(rows: Array, metric: Matrix, curvature: Vector) -> Array:
    """Rows of which no two have an inner product that is more than rounding.

    Pairs come in turn, until none of a whole round has needed a rotation.
    """
    n = len(rows)
    pairs = [(p, q) for p in range(n) for q in range(p + 1, n)]
    number, rounding = len(pairs), n * jnp.finfo(rows.dtype).eps
    weights = jnp.concatenate([jnp.ones_like(curvature), curvature])
    if number == 0:
        return rows

    def goes_on(carry: tuple) -> Flag:
        _, quiet, turn = carry
        return (quiet < number) & (turn < SWEEPS * number)

    def rotate(carry: tuple) -> tuple:
        rows, quiet, turn = carry
        p, q = jnp.asarray(pairs, jnp.int32)[turn % number]
        pair = [lax.dynamic_index_in_dim(rows, i, keepdims=False) for i in (p, q)]
        # inner products of the pair, and whether that between them is rounding
        images = _images(jnp.stack(pair), metric, curvature)
        a, b = total(pair[0] * images[0]), total(pair[1] * images[1])
        c = total(pair[0] * images[1])
        lengths = [jnp.sqrt(total(row * row * weights)) for row in pair]
        needed = jnp.abs(c) > rounding * lengths[0] * lengths[1]
        # the smaller of the two angles that make it zero (Rutishauser 1966)
        ratio = (b - a) / jnp.where(needed, 2 * c, 1)
        tangent = jnp.abs(ratio) + jnp.sqrt(1 + ratio**2)
        tangent = jnp.where(needed, jnp.where(ratio < 0, -1, 1) / tangent, 0)
        cosine = 1 / jnp.sqrt(1 + tangent**2)
        sine = cosine * tangent
        turned = cosine * pair[0] - sine * pair[1], sine * pair[0] + cosine * pair[1]
        for i, row in zip((p, q), turned, strict=True):
            rows = lax.dynamic_update_index_in_dim(rows, row, i, 0)
        return rows, jnp.where(jnp.any(needed), 0, quiet + 1), turn + 1

    start = rows, jnp.int32(0), jnp.int32(0)
    return lax.while_loop(goes_on, rotate, varying_with(start, (rows, metric)))[0]


def _by_lapack(
    metric: Matrix, vectors: Matrix, curvature: Vector, is_definite: bool
) -> tuple[Vector, Matrix, Matrix]:
    """The diagonal form by LAPACK; for definite G by singular values of root(G) F."""
    if not is_definite:
        matrix = matmul(transpose(vectors), matmul(metric, vectors))
        values, basis = jnp.linalg.eigh(matrix, symmetrize_input=False)
        return values, basis, matmul(vectors, basis)
    n, (values, turn) = len(metric), jnp.linalg.eigh(metric, symmetrize_input=False)
    kept = values > n * jnp.finfo(values.dtype).eps * largest(values)
    root = jnp.sqrt(jnp.where(kept, values, 0))[:, None]
    factor = [matmul(root * turn.T, vectors), jnp.diag(jnp.sqrt(curvature))]
    left_vectors, singular, right = jnp.linalg.svd(
        jnp.concatenate(factor), full_matrices=False
    )
    images = matmul(
        turn, left_vectors[:n] * singular / jnp.where(kept[:, None], root, 1)
    )
    return singular**2, right.T, images


def inverse_of(matrix: Matrix) -> Matrix:
    """The inverse of any square matrix that has one."""
    form = diagonalised(identity(matrix[0]), matrix)
    return matmul(form.basis / form.values[None], transpose(form.images))
