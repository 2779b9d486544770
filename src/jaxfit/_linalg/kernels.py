"""Kernels on small vectors and matrices, for one fit and for lanes of fits.

Everything between a linearization and the next trial point is written for arrays whose
first axes are the parameters and whose last axis, if there is one more, is the lanes: a
vector is (n, *lanes), a matrix (n, n, *lanes), a number (*lanes), where lanes is () for
one fit and (L,) for a batch. Numbers then broadcast against vectors and matrices by
NumPy's rules, and in lanes every operation is one long vector operation.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

MANY = 12  # parameters: of more, LAPACK serves one fit

Scalar = Float[Array, "*lanes"]
Flag = Bool[Array, "*lanes"]
Vector = Float[Array, "n *lanes"]
Flags = Bool[Array, "n *lanes"]  # one for each parameter
Matrix = Float[Array, "n n *lanes"]


def is_lanes(vector: Vector) -> bool:
    """Whether a vector belongs to a batch of fits."""
    return vector.ndim > 1


def is_large(vector: Vector) -> bool:
    """Whether LAPACK is to work on the matrices of one fit with these parameters."""
    return not is_lanes(vector) and len(vector) > MANY


def total(terms: Array, axis: int = 0) -> Array:
    """The sum over the parameters."""
    return jnp.sum(terms, axis)


def largest(terms: Array) -> Array:
    """The largest of the parameters."""
    return jnp.max(terms, 0)


def least(terms: Array) -> Array:
    """The least of the parameters."""
    return jnp.min(terms, 0)


def every(flags: Array) -> Array:
    """Whether it holds for every parameter."""
    return jnp.all(flags, 0)


def some(flags: Array) -> Array:
    """Whether it holds for some parameter."""
    return jnp.any(flags, 0)


def inner(a: Vector, b: Vector) -> Scalar:
    """Inner product."""
    return total(a * b) if is_lanes(a) else _dot(a, b)


def norm(vector: Vector) -> Scalar:
    """Euclidean norm."""
    return jnp.sqrt(inner(vector, vector))


def matvec(
    matrix: Float[Array, "m n *lanes"], vector: Vector
) -> Float[Array, "m *lanes"]:
    """Matrix times vector."""
    if is_lanes(vector):
        return total(matrix * vector[None], axis=1)
    return _dot(matrix, vector)


def matmul(
    a: Float[Array, "m k *lanes"], b: Float[Array, "k n *lanes"]
) -> Float[Array, "m n *lanes"]:
    """Matrix times matrix."""
    if a.ndim == 2 and max(*a.shape, *b.shape) > MANY + 1:
        return _dot(a, b)
    return total(a[:, :, None] * b[None], axis=1)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def transpose(matrix: Float[Array, "m n *lanes"]) -> Float[Array, "n m *lanes"]:
    """The transposed matrix."""
    return jnp.swapaxes(matrix, 0, 1)


def outer(a: Shaped[Array, "m *lanes"], b: Shaped[Array, "n *lanes"]) -> Array:
    """a bᵀ."""
    return a[:, None] * b[None]


def is_framed(frame: Matrix) -> Flag:
    """Whether a frame is not the identity."""
    unit = on_diagonal(frame[0]).astype(frame.dtype)
    return jnp.any(frame != unit, axis=(0, 1))


def identity(vector: Vector) -> Matrix:
    """The identity matrix on the space of a vector."""
    return jnp.where(on_diagonal(vector), 1, jnp.zeros_like(vector)[None])


def diagonal(matrix: Matrix) -> Vector:
    """The diagonal of a matrix."""
    return total(jnp.where(on_diagonal(matrix[0]), matrix, 0))


def add_diagonal(matrix: Matrix, vector: Vector) -> Matrix:
    """A matrix plus a diagonal one."""
    return matrix + jnp.where(on_diagonal(vector), vector[None], 0)


def unit_diagonal(matrix: Matrix) -> Matrix:
    """A matrix with its diagonal set to one."""
    return jnp.where(on_diagonal(matrix[0]), 1, matrix)


def on_diagonal(vector: Vector) -> np.ndarray:
    """Flags of the diagonal of a matrix."""
    n = len(vector)
    return np.eye(n, dtype=bool).reshape(n, n, *[1] * (vector.ndim - 1))


def bordered(
    matrix: Matrix, vector: Vector, number: Scalar
) -> Float[Array, "k k *lanes"]:
    """A symmetric matrix with another row and column."""
    rows = jnp.concatenate([matrix, vector[None]])
    column = jnp.concatenate([vector, number[None]])
    return jnp.concatenate([rows, column[:, None]], axis=1)


# Choices


def first_of(*cases: tuple[Flag, int], otherwise: int) -> Int[Array, "*lanes"]:
    """The first number whose condition holds."""
    number = jnp.asarray(otherwise, jnp.int32)
    for condition, value in reversed(cases):
        number = jnp.where(condition, jnp.int32(value), number)
    return number
