"""Kernels on one n x n matrix that batch without LAPACK.

Each public kernel is written twice, for two kinds of hardware loop. For a single
matrix it is plain `jnp.linalg`. Under `jax.vmap` its batching rule takes over: array
code in which the batch is the last axis, (n, n, batch), so that every operation is one
long vector operation and no library routine loops over the batch. Above `LANES_MAX`
parameters the unrolled array code would compile slowly, and LAPACK is used for batches
too.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, PyTree

LANES_MAX = 12


def matvec(matrix: Float[Array, "n n"], vector: Float[Array, " n"]):
    """Matrix times vector."""
    return jnp.dot(matrix, vector, precision=lax.Precision.HIGHEST)


def norm(vector: Float[Array, " n"]) -> Float[Array, ""]:
    """Euclidean norm."""
    return jnp.sqrt(jnp.sum(vector * vector))


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


def batched_by(lanes: Callable) -> Callable:
    """Give a kernel a batching rule: `lanes`, the same with the batch as last axis."""

    def decorate(kernel):
        batching = custom_vmap(kernel)

        @batching.def_vmap
        def rule(size, in_batched, *args):
            def batch_last(x, is_batched):
                if is_batched:
                    return jnp.moveaxis(x, 0, -1)
                return jnp.broadcast_to(x[..., None], (*x.shape, size))

            args = jax.tree.map(batch_last, args, tuple(in_batched))
            out = lanes(*args)
            out = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), out)
            return out, jax.tree.map(lambda _: True, out)

        return functools.wraps(kernel)(lambda *args: batching(*args))

    return decorate


# Rows to a Gram matrix


def _gram_lanes(rows):
    return jnp.sum(rows[:, None] * rows[None, :], axis=2)


@batched_by(_gram_lanes)
def gram(rows: Float[Array, "k m"]) -> Float[Array, "k k"]:
    """The inner products of k long vectors."""
    return jnp.dot(rows, rows.T, precision=lax.Precision.HIGHEST)


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
    y = matvec(rhs / divisor, rotation) / jnp.where(kept, root, 1)
    return root[:, None] * rotation.T * size, jnp.where(kept, y, 0)


def by_lapack(kernel: Callable, batch_last: PyTree) -> PyTree:
    """A kernel over a batch whose axis is the last, one matrix after the other."""
    out = jax.vmap(kernel)(jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), batch_last))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), out)


# A frame in which an ill-conditioned Jacobian is nearly orthonormal


def _identities(matrix):
    """I and I, as large and as varying as the matrix, (n, n) or (n, n, batch)."""
    n = len(matrix)
    identity = jnp.eye(n, dtype=matrix.dtype).reshape(n, n, *[1] * (matrix.ndim - 2))
    identity = varying_with(jnp.broadcast_to(identity, matrix.shape), matrix)
    return identity, identity


def _factor(matrix):
    n, eps = len(matrix), jnp.finfo(matrix.dtype).eps
    eigenvalues, rotation = jnp.linalg.eigh(matrix, symmetrize_input=False)
    root = jnp.sqrt(jnp.maximum(eigenvalues, n * eps * eigenvalues[-1]))[:, None]
    return root * rotation.T, rotation.T / root


def _frame_lanes(matrix, needed):
    def build(matrix):
        choose = functools.partial(jnp.where, needed)
        return jax.tree.map(choose, by_lapack(_factor, matrix), _identities(matrix))

    return lax.cond(jnp.any(needed), build, _identities, matrix)


@batched_by(_frame_lanes)
def orthonormal_frame(
    matrix: Float[Array, "n n"], needed: Bool[Array, ""]
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """R and R⁻ᵀ with RᵀR the matrix, whose diagonal is one; I and I if not needed.

    Eigenvalues below rounding are raised to it, so that R has an inverse also where the
    matrix is singular, or has become indefinite by rounding. R⁻¹R is the identity to
    rounding whatever the condition. It is needed so seldom that lanes use LAPACK too,
    all of them as soon as one of them needs it.
    """
    return lax.cond(needed, _factor, _identities, matrix)
