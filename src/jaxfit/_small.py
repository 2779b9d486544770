"""Kernels on small vectors and matrices, for one fit and for lanes of fits.

Everything between a linearization and the next trial point is written for arrays whose
first axes are the parameters and whose last axis, if there is one more, is the lanes: a
vector is (n, *lanes), a matrix (n, n, *lanes), a number (*lanes), where lanes is () for
one fit and (L,) for a batch. Numbers then broadcast against vectors and matrices by
NumPy's rules, and in lanes every operation is one long vector operation.

Where one matrix and a batch of them want different hardware loops, a kernel is written
twice: plain `jnp.linalg` for one, array code without any library routine for lanes.
Above `LANES_MAX` parameters the unrolled array code would compile slowly, and lanes use
LAPACK one after the other.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, PyTree

LANES_MAX = 12

Scalar = Float[Array, "*lanes"]
Flag = Bool[Array, "*lanes"]
Vector = Float[Array, "n *lanes"]
Matrix = Float[Array, "n n *lanes"]


def is_lanes(vector: Vector) -> bool:
    """Whether a vector belongs to a batch of fits."""
    return vector.ndim > 1


def settled(tree: PyTree) -> PyTree:
    """The same arrays, computed once.

    Compilers fuse what is cheap into everything that uses it; what is broadcast into a
    matrix of lanes is then computed again for each of the matrix's elements, and what
    follows from that again for each of the next. On CPUs no fusion crosses a branch.
    """
    if jax.tree.leaves(tree)[0].ndim == 0:  # one fit
        return tree

    def on_cpu(tree):
        first = jnp.ravel(jax.tree.leaves(tree)[0])[0]
        bits = first.view(f"uint{8 * first.dtype.itemsize}")
        true = (bits | 1) != 0  # which the compiler does not see
        return lax.cond(true, lambda tree: tree, _negated, tree)

    return lax.platform_dependent(tree, cpu=on_cpu, default=lambda tree: tree)


def _negated(tree):
    return jax.tree.map(lambda x: ~x if x.dtype == bool else -x, tree)


def _folded(operation: Callable, reduction: Callable) -> Callable:
    """A reduction over the parameters.

    In lanes it is a chain of vector operations: compiled reductions over a short axis
    are slow.
    """

    def fold(terms):
        if is_lanes(terms) and len(terms) <= LANES_MAX + 1:
            return functools.reduce(operation, list(terms))
        return reduction(terms, axis=0)

    return fold


total = _folded(operator.add, jnp.sum)
largest = _folded(jnp.maximum, jnp.max)
least = _folded(jnp.minimum, jnp.min)
every = _folded(operator.and_, jnp.all)
some = _folded(operator.or_, jnp.any)


def inner(a: Vector, b: Vector) -> Scalar:
    """Inner product."""
    return total(a * b)


def norm(vector: Vector) -> Scalar:
    """Euclidean norm."""
    return jnp.sqrt(inner(vector, vector))


def matvec(matrix: Matrix, vector: Vector) -> Vector:
    """Matrix times vector."""
    if is_lanes(vector):
        return total(transpose(matrix) * vector[:, None])
    return jnp.dot(matrix, vector, precision=lax.Precision.HIGHEST)


def matmul(a: Matrix, b: Matrix) -> Matrix:
    """Matrix times matrix."""
    if a.ndim > 2:
        return total(transpose(a)[:, :, None] * b[:, None])
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def transpose(matrix: Matrix) -> Matrix:
    """The transposed matrix."""
    return jnp.swapaxes(matrix, 0, 1)


def outer(a: Vector, b: Vector) -> Matrix:
    """a bᵀ."""
    return a[:, None] * b[None]


def identity(vector: Vector) -> Matrix:
    """The identity matrix on the space of a vector."""
    n, zero = len(vector), jnp.zeros_like(vector)
    return jnp.where(_on_diagonal(n, vector.ndim), 1, zero[None])


def diagonal(matrix: Matrix) -> Vector:
    """The diagonal of a matrix."""
    if matrix.ndim == 2:
        return jnp.diagonal(matrix)
    return jnp.stack([matrix[i, i] for i in range(len(matrix))])


def add_diagonal(matrix: Matrix, vector: Vector) -> Matrix:
    """A matrix plus a diagonal one."""
    on = _on_diagonal(len(matrix), vector.ndim)
    return matrix + jnp.where(on, vector[None], 0)


def unit_diagonal(matrix: Matrix) -> Matrix:
    """A matrix with its diagonal set to one."""
    return jnp.where(_on_diagonal(len(matrix), matrix.ndim - 1), 1, matrix)


def _on_diagonal(n, ndim):
    return jnp.eye(n, dtype=bool).reshape(n, n, *[1] * (ndim - 1))


def choose(flag: Flag, then: PyTree, otherwise: PyTree) -> PyTree:
    """One of two pytrees, for each fit."""
    return jax.tree.map(functools.partial(jnp.where, flag), then, otherwise)


def where_needed(
    needed: Flag, rare: Callable, usual: Callable, *operands: PyTree
) -> PyTree:
    """`rare(*operands)` where it is needed, `usual(*operands)` elsewhere.

    In lanes the rare case is computed only if some fit needs it, and then for all.
    """

    def corrected(found, *operands):
        return choose(needed, rare(*operands), found)

    return _usual_or(corrected, needed, rare, usual, operands)


def where_needed_one_by_one(
    needed: Flag, rare: Callable, usual: Callable, *operands: PyTree
) -> PyTree:
    """`where_needed` with a rare case for one fit, which calls a library.

    Lanes that need it call it one after the other, and the others not at all. Batched
    LAPACK calls of several devices at once would wait for each other for ever in jaxlib
    0.10. On other devices one batched call serves all.
    """

    def one_by_one(found, *operands):
        (lanes,) = jnp.nonzero(needed, size=len(needed))

        def correct(i, found):
            own = jax.tree.map(lambda x: x[..., lanes[i]], operands)
            return jax.tree.map(
                lambda all, one: all.at[..., lanes[i]].set(one), found, rare(*own)
            )

        return lax.fori_loop(0, jnp.sum(needed), correct, found)

    def at_once(found, *operands):
        return choose(needed, in_turn(rare, *operands), found)

    def corrected(*arguments):
        return lax.platform_dependent(*arguments, cpu=one_by_one, default=at_once)

    return _usual_or(corrected, needed, rare, usual, operands)


def _usual_or(corrected, needed, rare, usual, operands):
    """One of two cases for one fit; for lanes the usual one, corrected if needed."""
    if needed.ndim == 0:
        return lax.cond(needed, rare, usual, *operands)
    found = usual(*operands)
    if needed.size == 0:
        return found
    return lax.cond(
        jnp.any(needed), corrected, lambda found, *_: found, found, *operands
    )


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


def in_turn(kernel: Callable, *operands: PyTree) -> PyTree:
    """A kernel for one fit, on all lanes: on CPUs one library call after the other."""

    def on_cpu(*operands):
        return lax.map(lambda one: kernel(*one), operands)

    first = lanes_first(operands)
    return lanes_last(
        lax.platform_dependent(*first, cpu=on_cpu, default=jax.vmap(kernel))
    )


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
    if k > LANES_MAX + 1:
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


def gram_root(gram: Float[Array, "n n"], rhs: Float[Array, " n"]):
    """A with AᵀA = gram, and y with Aᵀy = rhs, from the matrix scaled to unit diagonal.

    What is rounding in the scaled matrix becomes zero.
    """
    n, eps = len(rhs), jnp.finfo(rhs.dtype).eps
    size = jnp.sqrt(jnp.diagonal(gram))
    divisor = jnp.where(size > 0, size, 1)
    eigenvalues, rotation = jnp.linalg.eigh(
        gram / (divisor[:, None] * divisor), symmetrize_input=False
    )
    kept = eigenvalues > n * eps * eigenvalues[-1]
    root = jnp.sqrt(jnp.where(kept, eigenvalues, 0))
    y = matvec(rotation.T, rhs / divisor) / jnp.where(kept, root, 1)
    return root[:, None] * rotation.T * size, jnp.where(kept, y, 0)


# A square root of a Gram matrix


def square_root(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """R and R⁻ᵀ with RᵀR the matrix, which is of unit diagonal.

    Eigenvalues below rounding are raised to it, so that R has an inverse also where the
    matrix is singular, or has become indefinite by rounding. R⁻¹R is the identity to
    rounding whatever the condition.
    """
    if matrix.ndim > 2:
        return in_turn(square_root, matrix)
    n, eps = len(matrix), jnp.finfo(matrix.dtype).eps
    eigenvalues, rotation = jnp.linalg.eigh(matrix, symmetrize_input=False)
    root = jnp.sqrt(jnp.maximum(eigenvalues, n * eps * eigenvalues[-1]))[:, None]
    return root * rotation.T, rotation.T / root
