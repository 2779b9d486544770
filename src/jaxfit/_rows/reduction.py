"""Residuals, weights and a loss to a `Linearization`."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfit._linalg.gram import gram, gram_and_sums
from jaxfit._linalg.kernels import Scalar
from jaxfit._rows.linearization import (
    COUNT_BASE,
    CostTerms,
    Frame,
    Kind,
    Linearization,
    carried,
    in_words,
)
from jaxfit._rows.predictions import kind_of
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
    limited: Bool[Array, "m *lanes"] | None = None  # of `LikelihoodTerms`


def weighted_rows(
    rows: Evaluated, counts: Bool[Array, "m *lanes"] | None = None
) -> Weighted:
    """Rows and their weights; what does not count may be NaN."""
    root, weights = 1, rows.weights
    if weights is not None:
        root = jnp.sqrt(weights)
        counts = weights != 0 if counts is None else counts & (weights != 0)
    if counts is None:
        return Weighted(rows.residual, rows.columns, None, rows.cost, rows.limited)

    def weighted(values: Array, factor: Any = root) -> Array:
        return jnp.where(counts, factor * values, 0)

    return Weighted(
        residual=weighted(rows.residual),
        columns=jax.tree.map(weighted, rows.columns),
        counts=counts,
        cost=None
        if rows.cost is None
        else weighted(rows.cost, 1 if weights is None else weights),
        limited=rows.limited,
    )


class LossTerms(NamedTuple):
    """The cost, and the factors of rows that a robust loss asks for."""

    gradient: Float[Array, "m *lanes"] | None  # √ρ', with which JᵀWr is the gradient
    hessian: Float[Array, "m *lanes"] | None  # with which J_sᵀJ_s is the model Hessian
    cost: Float[Array, "m *lanes"]  # of each row
    influence: Scalar  # the largest ρ'
    limited: Bool[Array, "m *lanes"] | None = None  # of `LikelihoodTerms`
    has_unit: bool = False  # of a likelihood


def terms_of(loss: Loss | Likelihood | None, rows: Weighted) -> LossTerms | None:
    """What a loss makes of weighted rows; None: half their squares are the cost."""
    kind = kind_of(loss)
    if kind is Kind.SQUARES:
        return None
    if kind is Kind.ROBUST:
        return _robust_terms(loss, rows.residual, rows.counts)
    assert rows.cost is not None
    counts = jnp.ones(rows.cost.shape, bool) if rows.counts is None else rows.counts
    return LossTerms(
        gradient=None,
        hessian=None,
        cost=rows.cost,
        influence=jnp.any(counts, axis=0).astype(rows.cost.dtype),
        limited=rows.limited,
        has_unit=kind is Kind.LIKELIHOOD,
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
        cost=0.5 * scale**2 * rho,
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
        words = divmod(residual.shape[0], COUNT_BASE)
        counted = jnp.stack([jnp.full(residual.shape[1:], n, jnp.int32) for n in words])
    else:
        counted = _count(counts)
    if terms is None:
        normal = normal_matrix(rows, terms)
        return Linearization(normal, frame.inverse, counted, None)
    sums = _sums_of(rows, terms)
    matrix = None
    if terms.hessian is not None:
        matrix = gram([terms.hessian * column for column in rows.columns])
    beside = CostTerms(matrix, sums.limited, sums.cost, terms.influence)
    return Linearization(sums.normal, frame.inverse, counted, beside)


class _Sums(NamedTuple):
    """Sums over rows with a loss."""

    normal: Float[Array, "k k *lanes"]
    cost: Scalar
    limited: Scalar | None


def _sums_of(rows: Weighted, terms: LossTerms) -> _Sums:
    """All at once: the compiler then computes a row once."""
    more = [terms.cost]
    if terms.limited is not None:
        more.append(terms.limited.astype(terms.cost.dtype))
    whole, totals = gram_and_sums(_scaled(rows, terms), more)
    limited = totals[1] if terms.limited is not None else None
    if terms.has_unit and limited is None:
        limited = jnp.zeros_like(totals[0])
    return _Sums(whole, totals[0], limited)


def normal_matrix(
    rows: Weighted, terms: LossTerms | None
) -> Float[Array, "k k *lanes"]:
    """(JP r)ᵀ W (JP r)."""
    return gram(_scaled(rows, terms))


def _scaled(rows: Weighted, terms: LossTerms | None) -> list[Array]:
    """The columns of √W (JP r)."""
    whole = [*rows.columns, rows.residual]
    if terms is None or terms.gradient is None:
        return whole
    return [terms.gradient * row for row in whole]


def cost_of(
    rows: Evaluated,
    loss: Loss | Likelihood | None,
    counts: Bool[Array, " m"] | None,
) -> Scalar:
    """Half the sum of the loss, of rows without columns."""
    weighted = weighted_rows(rows, counts)
    terms = terms_of(loss, weighted)
    if terms is None:
        return 0.5 * jnp.sum(weighted.residual**2)
    return jnp.sum(terms.cost)


def scaled_for_loss(
    rows: Evaluated, loss: Loss | Likelihood | None
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """The weighted residuals, and J_s, the Jacobian with rows scaled for the loss."""
    weighted = weighted_rows(rows)
    terms, columns = terms_of(loss, weighted), weighted.columns
    if terms is not None and terms.hessian is not None:
        columns = terms.hessian * columns
    return weighted.residual, columns.T
