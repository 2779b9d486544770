"""Long vectors to the matrix of their inner products."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, PyTree

from jaxfit._linalg.branches import lanes_first
from jaxfit._linalg.kernels import MANY


class GramAndSums(NamedTuple):
    """The inner products of k long vectors, and the sums of some more."""

    gram: Float[Array, "k k *lanes"]
    sums: list[Array]


def gram(rows: Sequence[Float[Array, "m *lanes"]]) -> Float[Array, "k k *lanes"]:
    """The inner products of k long vectors.

    For lanes, and on CPUs, all products are one reduction, into which the compiler
    draws the arithmetic that makes the rows: about twice as fast as a product of
    matrices, or as a reduction for each, and the rows are never stored.
    """
    return gram_and_sums(rows, []).gram


def gram_and_sums(
    rows: Sequence[Float[Array, "m *lanes"]], values: Sequence[Float[Array, "m *lanes"]]
) -> GramAndSums:
    """`gram`, and the sums of values that are made of the same: in one reduction."""
    if all(row.ndim == 1 for row in rows):
        return _gram_one(list(rows), list(values))
    return _gram_reduced(rows, values)


def _product(a: Sequence[Array], b: Sequence[Array]) -> Array:
    return jnp.dot(jnp.stack(a), jnp.stack(b).T, precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def _gram_one(rows: list, values: list) -> GramAndSums:
    return _gram_kernel(rows, values)


@_gram_one.defjvp
def _gram_jvp(primals: tuple, tangents: tuple) -> tuple[GramAndSums, GramAndSums]:
    """The derivative by plain products, of which any other can be taken."""
    half = _product(primals[0], tangents[0])
    return _gram_one(*primals), GramAndSums(half + half.T, _sums(tangents[1]))


def _sums(values: Sequence[Array]) -> list[Array]:
    return [jnp.sum(value, axis=0) for value in values]


@custom_vmap
def _gram_kernel(rows: list, values: list) -> GramAndSums:
    return lax.platform_dependent(
        rows,
        values,
        cpu=_gram_reduced,
        default=lambda rows, values: GramAndSums(_product(rows, rows), _sums(values)),
    )


@_gram_kernel.def_vmap
def _gram_rule(
    size: int, in_batched: PyTree, rows: list, values: list
) -> tuple[GramAndSums, PyTree]:
    def with_lanes(parts: list, are_batched: list) -> list:
        return [
            jnp.moveaxis(part, 0, -1) if is_batched else part[:, None]
            for part, is_batched in zip(parts, are_batched, strict=True)
        ]

    found = _gram_reduced(*map(with_lanes, (rows, values), in_batched))
    matrix = jnp.broadcast_to(found.gram, (*found.gram.shape[:2], size))
    sums = [jnp.broadcast_to(total, (size,)) for total in found.sums]
    result = GramAndSums(lanes_first(matrix), sums)
    return result, jax.tree.map(lambda _: True, result)


def _gram_reduced(rows: Sequence[Array], values: Sequence[Array]) -> GramAndSums:
    k, rows = len(rows), jnp.broadcast_arrays(*rows)
    if k > MANY + 1:
        stacked = jnp.stack(rows)
        matrix = jnp.einsum(
            "im...,jm...->ij...", stacked, stacked, precision=lax.Precision.HIGHEST
        )
        return GramAndSums(matrix, _sums(values))
    values = [jnp.broadcast_to(value, rows[0].shape) for value in values]
    lower = [(i, j) for i in range(k) for j in range(i + 1)]
    zero = jnp.zeros((), rows[0].dtype)
    terms = (*(rows[i] * rows[j] for i, j in lower), *values)
    totals = lax.reduce(
        terms,
        (zero,) * len(terms),
        lambda a, b: jax.tree.map(operator.add, a, b),
        dimensions=(0,),
    )
    entries = dict(zip(lower, totals[: len(lower)], strict=True))
    matrix = [entries[max(i, j), min(i, j)] for i in range(k) for j in range(k)]
    matrix = jnp.stack(matrix).reshape(k, k, *matrix[0].shape)
    return GramAndSums(matrix, list(totals[len(lower) :]))
