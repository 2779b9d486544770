"""Residuals, weights and a loss to a `Linearization`."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfit._linalg.gram import gram
from jaxfit._linalg.kernels import (
    Scalar,
)
from jaxfit._rows.linearization import (
    COUNT_BASE,
    Frame,
    Linearization,
    Robust,
    carried,
    in_words,
)
from jaxfit.losses import Linear, Loss


def _count(counts: Bool[Array, "m *lanes"]) -> Int[Array, "2 *lanes"]:
    """How many are true; a count of 32 bits is good for so many rows at a time."""
    most = COUNT_BASE << 14
    parts = [counts[start : start + most] for start in range(0, len(counts), most)]
    words = (in_words(jnp.sum(part, axis=0)) for part in parts)
    return carried(functools.reduce(operator.add, words))


def is_linear(loss: Loss | None) -> bool:
    """Whether a loss is plain least squares."""
    return loss is None or type(loss) is Linear


class Weighted(NamedTuple):
    """Rows times the roots of their weights."""

    residual: Float[Array, "m *lanes"]  # √w r
    columns: Any  # √w J
    counts: Bool[Array, "m *lanes"] | None  # which rows count; None: all


def weighted_rows(
    residual: Float[Array, "m *lanes"],
    columns: Any,
    weights: Float[Array, "m *lanes"] | None,
    counts: Bool[Array, "m *lanes"] | None,
) -> Weighted:
    """Rows and their weights; what does not count may be NaN."""
    root = 1
    if weights is not None:
        root = jnp.sqrt(weights)
        counts = weights != 0 if counts is None else counts & (weights != 0)
    if counts is None:
        return Weighted(residual, columns, None)

    def weighted(rows: Array) -> Array:
        return jnp.where(counts, root * rows, 0)

    return Weighted(weighted(residual), jax.tree.map(weighted, columns), counts)


class LossTerms(NamedTuple):
    """Factors of the rows, and the cost, of a robust loss."""

    gradient: Float[Array, "m *lanes"]  # √ρ', with which JᵀWr is the gradient
    hessian: Float[Array, "m *lanes"]  # with which J_sᵀJ_s is the model Hessian
    cost: Scalar  # half the sum of the loss
    influence: Scalar  # the largest ρ'


def apply_loss(
    loss: Loss | None,
    residual: Float[Array, "m *lanes"],
    counts: Bool[Array, "m *lanes"] | None,
) -> LossTerms:
    """What a robust loss makes of weighted residuals.

    The model Hessian is that of Triggs et al., "Bundle adjustment: a modern synthesis"
    (2000), eq. 11, with SciPy's floor where the second derivative of the loss makes it
    indefinite.
    """
    assert loss is not None
    dtype = residual.dtype
    scale = jnp.asarray(loss.scale, dtype)
    z = (residual / scale) ** 2
    rho, slope, curvature = loss.evaluate(z)
    hessian = jnp.maximum(slope + 2 * curvature * z, jnp.finfo(dtype).eps)
    if counts is not None:
        rho, slope = jnp.where(counts, rho, 0), jnp.where(counts, slope, 0)
    return LossTerms(
        gradient=jnp.sqrt(jnp.maximum(slope, 0)),
        hessian=jnp.sqrt(hessian),
        cost=0.5 * scale**2 * jnp.sum(rho, axis=0),
        influence=jnp.max(slope, axis=0),
    )


def reduce_rows(
    residual: Float[Array, "m *lanes"],
    columns: Sequence[Float[Array, "m *lanes"]] | Float[Array, "n m"],
    weights: Float[Array, "m *lanes"] | None,
    loss: Loss | None,
    frame: Frame,
    counts: Bool[Array, " m"] | None = None,
) -> Linearization:
    """Residuals and their derivatives along the frame's directions, as n x n.

    Args:
        residual, columns: from `Residuals.evaluate`.
        weights: of the residuals; None: 1.
        loss: a robust loss, or None.
        frame: the directions.
        counts: which residuals count at all; None: all.
    """
    rows = weighted_rows(residual, columns, weights, counts)
    terms = None if is_linear(loss) else apply_loss(loss, rows.residual, rows.counts)
    return reduced(rows, terms, frame)


def reduced(rows: Weighted, terms: LossTerms | None, frame: Frame) -> Linearization:
    """Weighted rows, and what a robust loss makes of them, as n x n."""
    residual, counts = rows.residual, rows.counts
    if counts is None:
        words = divmod(len(residual), COUNT_BASE)
        counted = jnp.stack([jnp.full(residual.shape[1:], n, jnp.int32) for n in words])
    else:
        counted = _count(counts)
    normal = normal_matrix(rows, terms)
    if terms is None:
        return Linearization(normal, frame.inverse, counted, None)
    columns = [terms.hessian * column for column in rows.columns]
    robust = Robust(gram(columns), terms.cost, terms.influence)
    return Linearization(normal, frame.inverse, counted, robust)


def normal_matrix(
    rows: Weighted, terms: LossTerms | None
) -> Float[Array, "k k *lanes"]:
    """(JP r)ᵀ W (JP r)."""
    whole = [*rows.columns, rows.residual]
    if terms is not None:
        whole = [terms.gradient * row for row in whole]
    return gram(whole)


def robust_cost(
    residual: Float[Array, " m"],
    weights: Float[Array, " m"] | None,
    loss: Loss | None,
    counts: Bool[Array, " m"] | None,
) -> Scalar:
    """Half the sum of the loss."""
    rows = weighted_rows(residual, [], weights, counts)
    if is_linear(loss):
        return 0.5 * jnp.sum(rows.residual**2)
    return apply_loss(loss, rows.residual, rows.counts).cost


def scaled_for_loss(
    residual: Float[Array, " m"],
    columns: Float[Array, "n m"],
    weights: Float[Array, " m"] | None,
    loss: Loss | None,
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """The weighted residuals, and J_s, the Jacobian with rows scaled for the loss."""
    rows = weighted_rows(residual, columns, weights, None)
    columns = rows.columns
    if not is_linear(loss):
        columns = apply_loss(loss, rows.residual, rows.counts).hessian * columns
    return rows.residual, columns.T
