"""Kernels on small vectors and matrices, for one fit and for lanes of fits.

Everything between a linearization and the next trial point is written for arrays whose
first axes are the parameters and whose last axis, if there is one more, is the lanes: a
vector is (n, *lanes), a matrix (n, n, *lanes), a number (*lanes), where lanes is () for
one fit and (L,) for a batch. Numbers then broadcast against vectors and matrices by
NumPy's rules, and in lanes every operation is one long vector operation.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, PyTree

MANY = 12  # parameters: of more, LAPACK serves one fit

Scalar = Float[Array, "*lanes"]
Flag = Bool[Array, "*lanes"]
Vector = Float[Array, "n *lanes"]
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


def matvec(matrix: Matrix, vector: Vector) -> Vector:
    """Matrix times vector."""
    if is_lanes(vector):
        return total(matrix * vector[None], axis=1)
    return _dot(matrix, vector)


def matmul(a: Matrix, b: Matrix) -> Matrix:
    """Matrix times matrix."""
    if a.ndim == 2 and max(*a.shape, *b.shape) > MANY + 1:
        return _dot(a, b)
    return total(a[:, :, None] * b[None], axis=1)


def _dot(a, b):
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def transpose(matrix: Matrix) -> Matrix:
    """The transposed matrix."""
    return jnp.swapaxes(matrix, 0, 1)


def outer(a: Vector, b: Vector) -> Matrix:
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
    """Where the diagonal of a matrix is."""
    n = len(vector)
    return np.eye(n, dtype=bool).reshape(n, n, *[1] * (vector.ndim - 1))


def bordered(matrix: Matrix, vector: Vector, number: Scalar) -> Matrix:
    """A symmetric matrix with another row and column."""
    rows = jnp.concatenate([matrix, vector[None]])
    column = jnp.concatenate([vector, number[None]])
    return jnp.concatenate([rows, column[:, None]], axis=1)


def choose(flag: Flag, then: PyTree, otherwise: PyTree) -> PyTree:
    """One of two pytrees, for each fit."""
    return jax.tree.map(functools.partial(jnp.where, flag), then, otherwise)


def branch(
    needed: Flag, then: Callable, otherwise: Callable, *operands: PyTree
) -> PyTree:
    """`then(*operands)` where it is needed, `otherwise(*operands)` elsewhere.

    For one fit a real branch: what is decided before is computed once, and no compiler
    draws it into all that depends on it. In lanes `then` is computed only if some fit
    needs it, and then for all.
    """
    if needed.ndim == 0:
        return lax.cond(needed, _varying(then), _varying(otherwise), *operands)
    found = otherwise(*operands)
    if needed.size == 0:
        return found

    def corrected(found, *operands):
        return choose(needed, then(*operands), found)

    return lax.cond(
        jnp.any(needed), corrected, lambda found, *_: found, found, *operands
    )


def _varying(function: Callable) -> Callable:
    """Its results vary over the axes of a mesh that its arguments vary over."""
    return lambda *operands: varying_with(function(*operands), operands)


def for_each(kernel: Callable, is_lanes: bool) -> Callable:
    """A kernel that is written for one fit, for lanes too."""
    return jax.vmap(kernel, in_axes=-1, out_axes=-1) if is_lanes else kernel


def varying_with(tree: PyTree, others: PyTree) -> PyTree:
    """Under `shard_map`: let a tree vary over the mesh axes that others vary over.

    Loops and branches want the same axes on both sides, also of constants.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    for leaf in jax.tree.leaves(others):
        if jnp.size(leaf):
            first = jnp.ravel(jnp.asarray(leaf))[0]
            mark = first == first
            tree = jax.tree.map(functools.partial(_choose_either, mark), tree)
    return tree


def _choose_either(mark, value):
    return jnp.where(mark, value, value)


# From one fit to lanes


def lanes_last(tree: PyTree) -> PyTree:
    """Arrays whose first axis is the lanes, with it as the last."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), tree)


def lanes_first(tree: PyTree) -> PyTree:
    """Arrays whose last axis is the lanes, with it as the first."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), tree)


def batched_in_lanes(kernel: Callable) -> Callable:
    """Let `jax.vmap` run a kernel on lanes: the kernel is written for both."""
    batching = custom_vmap(kernel)

    @batching.def_vmap
    def rule(size, in_batched, *args):
        def to_lanes(x, is_batched):
            if is_batched:
                return jnp.moveaxis(x, 0, -1)
            return jnp.broadcast_to(x[..., None], (*x.shape, size))

        out = lanes_first(kernel(*jax.tree.map(to_lanes, args, tuple(in_batched))))
        return out, jax.tree.map(lambda _: True, out)

    return functools.wraps(kernel)(lambda *args: batching(*args))


# Sizes


class Room(NamedTuple):
    """Memory for what is worked on at once, and limits of how much that may be."""

    bytes: int
    fewest: int
    most: int

    def holds(self, each: int) -> int:
        """The largest power of two of things of so many bytes, within the limits."""
        number = max(self.bytes // max(each, 1), 1)
        return min(max(1 << number.bit_length() - 1, self.fewest), self.most)


def room(cpu: Room, other: Room) -> Room:
    """That of the device that JAX computes on."""
    return cpu if jax.default_backend() == "cpu" else other


# Rows to a Gram matrix


def gram(rows: Sequence[Float[Array, "m *lanes"]]) -> Float[Array, "k k *lanes"]:
    """The inner products of k long vectors.

    For lanes, and on CPUs, all products are one reduction, into which the compiler
    draws the arithmetic that makes the rows: about twice as fast as a product of
    matrices, or as a reduction for each, and the rows are never stored.
    """
    if all(row.ndim == 1 for row in rows):
        return _gram_one(list(rows))
    return _gram_reduced(rows)


def _product(a, b):
    a, b = jnp.stack(a), jnp.stack(b)
    return jnp.dot(a, b.T, precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def _gram_one(rows):
    return _gram_kernel(rows)


@_gram_one.defjvp
def _gram_jvp(primals, tangents):
    """By plain products, which any other derivative can be taken of."""
    half = _product(primals[0], tangents[0])
    return _gram_one(primals[0]), half + half.T


@custom_vmap
def _gram_kernel(rows):
    return lax.platform_dependent(
        rows, cpu=_gram_reduced, default=lambda rows: _product(rows, rows)
    )


@_gram_kernel.def_vmap
def _gram_rule(size, in_batched, rows):
    rows = [
        jnp.moveaxis(row, 0, -1) if is_batched else row[:, None]
        for row, is_batched in zip(rows, in_batched[0], strict=True)
    ]
    matrix = _gram_reduced(rows)
    matrix = jnp.broadcast_to(matrix, (*matrix.shape[:2], size))
    return lanes_first(matrix), True


def _gram_reduced(rows):
    k, rows = len(rows), jnp.broadcast_arrays(*rows)
    if k > MANY + 1:
        rows = jnp.stack(rows)
        return jnp.einsum(
            "im...,jm...->ij...", rows, rows, precision=lax.Precision.HIGHEST
        )
    lower = [(i, j) for i in range(k) for j in range(i + 1)]
    zero = jnp.zeros((), rows[0].dtype)
    sums = lax.reduce(
        tuple(rows[i] * rows[j] for i, j in lower),
        (zero,) * len(lower),
        lambda a, b: jax.tree.map(operator.add, a, b),
        dimensions=(0,),
    )
    entries = dict(zip(lower, sums, strict=True))
    matrix = [entries[max(i, j), min(i, j)] for i in range(k) for j in range(k)]
    return jnp.stack(matrix).reshape(k, k, *matrix[0].shape)
