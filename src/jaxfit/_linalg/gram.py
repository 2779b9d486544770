"""Long vectors to the matrix of their inner products."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, PyTree

from jaxfit._linalg.branches import lanes_first
from jaxfit._linalg.kernels import MANY


def gram(rows: Sequence[Float[Array, "m *lanes"]]) -> Float[Array, "k k *lanes"]:
    """The inner products of k long vectors.

    For lanes, and on CPUs, all products are one reduction, into which the compiler
    draws the arithmetic that makes the rows: about twice as fast as a product of
    matrices, or as a reduction for each, and the rows are never stored.
    """
    if all(row.ndim == 1 for row in rows):
        return _gram_one(list(rows))
    return _gram_reduced(rows)


def _product(a: Sequence[Array], b: Sequence[Array]) -> Array:
    return jnp.dot(jnp.stack(a), jnp.stack(b).T, precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def _gram_one(rows: list) -> Array:
    return _gram_kernel(rows)


@_gram_one.defjvp
def _gram_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The derivative by plain products, of which any other can be taken."""
    half = _product(primals[0], tangents[0])
    return _gram_one(primals[0]), half + half.T


@custom_vmap
def _gram_kernel(rows: list) -> Array:
    return lax.platform_dependent(
        rows, cpu=_gram_reduced, default=lambda rows: _product(rows, rows)
    )


@_gram_kernel.def_vmap
def _gram_rule(size: int, in_batched: PyTree, rows: list) -> tuple[Array, bool]:
    rows = [
        jnp.moveaxis(row, 0, -1) if is_batched else row[:, None]
        for row, is_batched in zip(rows, in_batched[0], strict=True)
    ]
    matrix = _gram_reduced(rows)
    matrix = jnp.broadcast_to(matrix, (*matrix.shape[:2], size))
    return lanes_first(matrix), True


def _gram_reduced(rows: Sequence[Array]) -> Array:
    k, rows = len(rows), jnp.broadcast_arrays(*rows)
    if k > MANY + 1:
        stacked = jnp.stack(rows)
        return jnp.einsum(
            "im...,jm...->ij...", stacked, stacked, precision=lax.Precision.HIGHEST
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
