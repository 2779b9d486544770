"""Residuals, weights and a loss to a `Linearization`."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfit._linalg.branches import branch
from jaxfit._linalg.gram import gram
from jaxfit._linalg.kernels import Matrix, Scalar
from jaxfit._rows.linearization import (
    COUNT_BASE,
    CostTerms,
    Frame,
    Kind,
    Linearization,
    carried,
    in_words,
)
from jaxfit._rows.predictions import Edge, kind_of
from jaxfit._rows.residuals import Evaluated
from jaxfit.losses import Likelihood, Loss


def _count(counts: Bool[Array, "m *lanes"]) -> Int[Array, "2 *lanes"]:
    """How many are true; a count of 32 bits is good for so many rows at a time."""
    most = COUNT_BASE << 14
    parts = [counts[start : start + most] for start in range(0, len(counts), most)]
    words = (in_words(jnp.sum(part, axis=0)) for part in parts)
    return carried(functools.reduce(operator.add, words))


class Weighted(NamedTuple):
    """Rows times the roots of their weights."""

    residual: Float[Array, "m *lanes"]  # √w r
    columns: Any  # √w J
    counts: Bool[Array, "m *lanes"] | None  # which rows count; None: all
    cost: Float[Array, "m *lanes"] | None = None  # w c, of a likelihood
    edge: Edge | None = None  # of `Evaluated`


def weighted_rows(
    rows: Evaluated, counts: Bool[Array, "m *lanes"] | None = None
) -> Weighted:
    """Rows and their weights; what does not count may be NaN."""
    root, weights = 1, rows.weights
    if weights is not None:
        root = jnp.sqrt(weights)
        counts = weights != 0 if counts is None else counts & (weights != 0)
    if counts is None:
        return Weighted(rows.residual, rows.columns, None, rows.cost, rows.edge)

    def weighted(values: Array, factor: Any = root) -> Array:
        return jnp.where(counts, factor * values, 0)

    return Weighted(
        residual=weighted(rows.residual),
        columns=jax.tree.map(weighted, rows.columns),
        counts=counts,
        cost=None
        if rows.cost is None
        else weighted(rows.cost, 1 if weights is None else weights),
        edge=rows.edge,
    )


class LossTerms(NamedTuple):
    """The cost, and the factors of rows that a robust loss or a likelihood asks for."""

    gradient: Float[Array, "m *lanes"] | None  # √ρ', with which JᵀWr is the gradient
    hessian: Float[Array, "m *lanes"] | None  # with which J_sᵀJ_s is the model Hessian
    edge: Edge | None  # of `Evaluated`
    cost: Scalar  # half the sum of the loss
    influence: Scalar  # the largest ρ'

    @property
    def kind(self) -> Kind:
        """Of the cost."""
        return Kind.LIKELIHOOD if self.hessian is None else Kind.ROBUST


def terms_of(loss: Loss | Likelihood | None, rows: Weighted) -> LossTerms | None:
    """What a loss makes of weighted rows; None: half their squares are the cost."""
    kind = kind_of(loss)
    if kind is Kind.SQUARES:
        return None
    if kind is Kind.ROBUST:
        return _robust_terms(loss, rows.residual, rows.counts)
    assert rows.cost is not None
    counts = jnp.ones(rows.cost.shape, bool) if rows.counts is None else rows.counts
    influence = jnp.any(counts, axis=0).astype(rows.cost.dtype)
    return LossTerms(
        gradient=None,
        hessian=None,
        edge=rows.edge,
        cost=jnp.sum(rows.cost, axis=0),
        influence=influence,
    )


def _robust_terms(
    loss: Any,
    residual: Float[Array, "m *lanes"],
    counts: Bool[Array, "m *lanes"] | None,
) -> LossTerms:
    """What a robust loss makes of weighted residuals.

    The model Hessian is that of Triggs et al., "Bundle adjustment: a modern synthesis"
    (2000), eq. 11, with SciPy's floor where the second derivative of the loss makes it
    indefinite.
    """
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
        edge=None,
        cost=0.5 * scale**2 * jnp.sum(rho, axis=0),
        influence=jnp.max(slope, axis=0),
    )


def reduce_rows(
    rows: Evaluated,
    loss: Loss | Likelihood | None,
    frame: Frame,
    counts: Bool[Array, " m"] | None = None,
) -> Linearization:
    """Residuals and their derivatives along the frame's directions, as n x n.

    Args:
        rows: what was evaluated.
        loss: a robust loss, a likelihood, or None.
        frame: the directions.
        counts: which residuals count at all; None: all.
    """
    weighted = weighted_rows(rows, counts)
    return reduced(weighted, terms_of(loss, weighted), frame)


def reduced(rows: Weighted, terms: LossTerms | None, frame: Frame) -> Linearization:
    """Weighted rows, and what a loss makes of them, as n x n."""
    residual, counts = rows.residual, rows.counts
    if counts is None:
        words = divmod(len(residual), COUNT_BASE)
        counted = jnp.stack([jnp.full(residual.shape[1:], n, jnp.int32) for n in words])
    else:
        counted = _count(counts)
    normal = normal_matrix(rows, terms)
    if terms is None:
        return Linearization(normal, frame.inverse, counted, None)
    matrix = _matrix_beside(rows, terms, frame)
    beside = CostTerms(matrix, terms.cost, terms.influence, terms.kind)
    return Linearization(normal, frame.inverse, counted, beside)


def _matrix_beside(rows: Weighted, terms: LossTerms, frame: Frame) -> Matrix:
    """That of `CostTerms`."""

    def of_scaled(factor: Array) -> Matrix:
        return gram([factor * column for column in rows.columns])

    if terms.hessian is not None:
        return of_scaled(terms.hessian)
    if terms.edge is None:
        return jnp.zeros_like(frame.inverse)
    return branch(
        jnp.any(terms.edge.flags, axis=0),
        lambda edge: of_scaled(edge.factors),
        lambda edge: jnp.zeros_like(frame.inverse),
        terms.edge,
    )


def normal_matrix(
    rows: Weighted, terms: LossTerms | None
) -> Float[Array, "k k *lanes"]:
    """(JP r)ᵀ W (JP r)."""
    whole = [*rows.columns, rows.residual]
    if terms is not None and terms.gradient is not None:
        whole = [terms.gradient * row for row in whole]
    return gram(whole)


def cost_of(
    rows: Evaluated,
    loss: Loss | Likelihood | None,
    counts: Bool[Array, " m"] | None,
) -> Scalar:
    """Half the sum of the loss, of rows without columns."""
    weighted = weighted_rows(rows, counts)
    terms = terms_of(loss, weighted)
    return 0.5 * jnp.sum(weighted.residual**2) if terms is None else terms.cost


def scaled_for_loss(
    rows: Evaluated, loss: Loss | Likelihood | None
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """The weighted residuals, and J_s, the Jacobian with rows scaled for the loss."""
    weighted = weighted_rows(rows)
    terms, columns = terms_of(loss, weighted), weighted.columns
    if terms is not None and terms.hessian is not None:
        columns = terms.hessian * columns
    return weighted.residual, columns.T
