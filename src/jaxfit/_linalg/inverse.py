"""Inverses of small symmetric matrices: by sweeps and, where these fail, by rotations.

A sweep for each parameter inverts a well-conditioned matrix. What has lost its digits,
or has no inverse, is diagonalised by Jacobi's rotations, which keep digits that the
matrix itself has lost: they turn the vectors of which it is made. Both are loops of a
few operations, the same program for any number of parameters, for one fit and for
lanes of fits. LAPACK does the same for one fit with parameters by the dozens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxfit._linalg.kernels import (
    Flag,
    Matrix,
    Scalar,
    Vector,
    batched_in_lanes,
    branch,
    diagonal,
    identity,
    is_framed,
    is_large,
    largest,
    least,
    matmul,
    matvec,
    norm,
    on_diagonal,
    outer,
    some,
    total,
    transpose,
    unit_diagonal,
    varying_with,
)
from jaxfit._linalg.seldom import is_lean, seldom

# Pivots of a matrix of unit diagonal below which its inverse has lost digits, for 64
# and 32 bits.
RCOND = {64: 1e-8, 32: 1e-3}

SWEEPS = 30  # of rotations, at most; five or so are enough


def is_lossy(pivot: Scalar) -> Flag:
    """Whether a matrix with this least pivot has lost digits of its inverse."""
    return ~(pivot >= RCOND[jnp.finfo(pivot.dtype).bits])


# By sweeps


class Inverse(NamedTuple):
    """The inverse of a matrix, and how far it is from having none."""

    matrix: Matrix
    pivot: Scalar  # the least, of the matrix scaled to unit diagonal


def swept(matrix: Matrix, free: Bool[Array, "n *lanes"]) -> Inverse:
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
    pivot = jnp.where(some(free & ~proper), 0, pivot)
    return Inverse(inverse * size[:, None] * size[None], pivot)


def _by_sweeps(unit):
    n = len(unit)
    place = jnp.arange(n).reshape(n, *[1] * (unit.ndim - 2))
    rounding = n * jnp.finfo(unit.dtype).eps

    def sweep(k, carry):
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


def _by_cholesky(unit):
    root = jnp.linalg.cholesky(unit)
    half = lax.linalg.triangular_solve(
        root, identity(unit[0]), left_side=True, lower=True
    )
    lowest = least(diagonal(root)) ** 2
    return matmul(half.T, half), jnp.where(jnp.isnan(lowest), 0, lowest)


# By rotations


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
        """Of the values, or of their rounding where they are that."""
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
    squares = total(images**2) + matvec(transpose(basis) ** 2, curvature)
    sizes, eps = values if is_definite else jnp.abs(values), jnp.finfo(size.dtype).eps
    rounding = (1 if is_definite else 10) * n * eps * squares
    proper = (sizes > rounding) & (sizes > (10 * n * eps) ** 2 * largest(sizes))
    return Diagonal(values, basis, images / size[:, None], proper, rounding)


def diagonalised_together(
    metric: Matrix, vectors: Sequence[Matrix], curvatures: Sequence[Vector]
) -> list[Diagonal]:
    """The same for several vectors and curvatures, side by side as lanes."""
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
    return [Diagonal(*own) for own in zip(*leaves, strict=True)]


def _by_rotations(metric, vectors, curvature):
    """Values, V and F V, by rotations of rows with a column of F each, and one of V."""
    eye, n = jnp.broadcast_to(identity(curvature), vectors.shape), len(curvature)
    rows = jnp.concatenate([transpose(vectors), eye], axis=1)
    rows = _rotated(rows, metric, curvature)
    values = total(rows * _images(rows, metric, curvature), axis=1)
    return values, transpose(rows[:, n:]), transpose(rows[:, :n])


def _images(rows, metric, curvature):
    """What the inner product with a row is taken of: those of F by the metric."""
    n = len(metric)
    parts = matmul(rows[:, :n], metric), rows[:, n:] * curvature[None]
    return jnp.concatenate(parts, axis=1)


def _rotated(rows, metric, curvature):
    """Rows of which no two have an inner product that is more than rounding.

    Pairs come in turn, until none of a whole round has needed a rotation.
    """
    n = len(rows)
    pairs = [(p, q) for p in range(n) for q in range(p + 1, n)]
    number, rounding = len(pairs), n * jnp.finfo(rows.dtype).eps
    weights = jnp.concatenate([jnp.ones_like(curvature), curvature])
    if number == 0:
        return rows

    def goes_on(carry):
        _, quiet, turn = carry
        return (quiet < number) & (turn < SWEEPS * number)

    def rotate(carry):
        rows, quiet, turn = carry
        p, q = jnp.asarray(pairs, jnp.int32)[turn % number]
        pair = [lax.dynamic_index_in_dim(rows, i, keepdims=False) for i in (p, q)]
        images = _images(jnp.stack(pair), metric, curvature)
        a, b = total(pair[0] * images[0]), total(pair[1] * images[1])
        c = total(pair[0] * images[1])
        lengths = [jnp.sqrt(total(row * row * weights)) for row in pair]
        needed = jnp.abs(c) > rounding * lengths[0] * lengths[1]
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


def _by_lapack(metric, vectors, curvature, is_definite):
    """The same, where G is definite by singular values of a root of it times F."""
    if not is_definite:
        matrix = matmul(transpose(vectors), matmul(metric, vectors))
        values, basis = jnp.linalg.eigh(matrix, symmetrize_input=False)
        return values, basis, matmul(vectors, basis)
    n, (values, turn) = len(metric), jnp.linalg.eigh(metric, symmetrize_input=False)
    kept = values > n * jnp.finfo(values.dtype).eps * largest(values)
    root = jnp.sqrt(jnp.where(kept, values, 0))[:, None]
    factor = [matmul(root * turn.T, vectors), jnp.diag(jnp.sqrt(curvature))]
    left, singular, right = jnp.linalg.svd(jnp.concatenate(factor), full_matrices=False)
    images = matmul(turn, left[:n] * singular / jnp.where(kept[:, None], root, 1))
    return singular**2, right.T, images


def inverse_of(matrix: Matrix) -> Matrix:
    """The inverse of any square matrix that has one."""
    form = diagonalised(identity(matrix[0]), matrix)
    return matmul(form.basis / form.values[None], transpose(form.images))


# The inverse of a Gram matrix in its frame


class GramInverse(NamedTuple):
    """(JᵀJ)⁻¹, and the parameters that it leaves undetermined."""

    matrix: Matrix
    undetermined: Bool[Array, "n *lanes"]


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
def _differentiable(gram, frame, free) -> GramInverse:
    return _kernel(gram, frame, free)


@_differentiable.defjvp  # pyright: ignore[reportArgumentType]
def _inverse_gram_jvp(primals, tangents):
    """dC = -C dB C with B = JᵀJ: plain products, so that reverse mode works too."""
    gram, frame, free = primals
    found = inverse_gram(gram, frame, free)

    def matrix(gram, frame):
        return matmul(transpose(frame), matmul(gram, frame))

    _, change = jax.jvp(matrix, (gram, frame), tangents[:2])
    change = -matmul(found.matrix, matmul(change, found.matrix))
    none: Any = np.zeros(found.undetermined.shape, jax.dtypes.float0)
    return found, GramInverse(change, none)


def _inverse_gram(gram, frame, free):
    inverse, pivot = swept(gram, free)
    return seldom(
        is_lossy(pivot) | is_framed(frame),
        _inverse_by_rotations,
        lambda *_: GramInverse(inverse, jnp.zeros_like(free)),
        *(gram, frame, free),
    )


_kernel = batched_in_lanes(_inverse_gram)  # one function, which JAX knows again


def _inverse_by_rotations(gram, frame, free):
    """The same, the columns scaled to one."""
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
def _pseudo_inverse_jvp(primals, tangents):
    """dK = -K dH K, exact for a Hessian whose rank does not change."""
    hessian, free = primals
    inverse = pseudo_inverse(hessian, free)
    return inverse, -matmul(inverse, matmul(tangents[0], inverse))


@batched_in_lanes
def _pseudo_inverse(hessian: Matrix, free: Flag) -> Matrix:
    inverse, pivot = swept(hessian, free)
    return branch(
        is_lossy(pivot), _pseudo_by_rotations, lambda *_: inverse, hessian, free
    )


def _pseudo_by_rotations(hessian, free):
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
