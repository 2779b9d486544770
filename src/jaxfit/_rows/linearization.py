"""The `Linearization`: all that a fit keeps of its data.

The m residuals and their (m, n) Jacobian are reduced to n x n: trust region, bounds,
scaling and covariance read nothing else. Linearizations of different rows of the same
problem `merge` by addition, so that it does not matter in how many pieces the rows were
visited. `reduction.py` makes them of rows, and `visit.py` visits the rows.
"""

import enum
import operator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxfit._linalg.branches import branch
from jaxfit._linalg.kernels import (
    Flag,
    Flags,
    Matrix,
    Scalar,
    Vector,
    diagonal,
    every,
    is_framed,
    matmul,
    matvec,
    total,
    transpose,
)
from jaxfit._linalg.precision import precision_of
from jaxfit._programs.exportable import exportable
from jaxfit.losses._likelihood import MOST

# A cost is known to so many units of rounding for each residual.
COST_ROUNDING = 4

COUNT_BASE = 2**16


class Frame(NamedTuple):
    """The basis P of directions in which a Jacobian is taken; see `Linearization`."""

    inverse: Matrix  # P⁻¹
    directions: Matrix  # Pᵀ, a direction in each row
    most: Scalar | None = None  # of a likelihood: see `Linearization.believed`


class Kind(enum.Enum):
    """What a cost is made of."""

    SQUARES = "squares"
    ROBUST = "robust"  # a loss of each residual
    LIKELIHOOD = "likelihood"
    PLAIN = "plain"  # that of a likelihood without its unit


@exportable
class CostTerms(eqx.Module):
    """What a cost that is no sum of squares adds to a linearization."""

    gram: Matrix | None  # (J_s P)ᵀ J_s P of a robust loss
    limited: Scalar | None  # rows of a likelihood whose curvature is limited
    cost: Scalar
    influence: Scalar


@exportable
class Swept(eqx.Module):
    """What a linearization keeps of local parameters that were swept out of it.

    Each row then moves with the local parameters of its block, which follow x: J in
    `normal` and in `CostTerms` is that total derivative (`_joint/sweep.py`).
    """

    held: Float[Array, "k k *lanes"]  # `normal`, the local parameters held
    parameters: Int[Array, "2 *lanes"]  # local ones that are free, in blocks that count
    uncertified: Int[Array, "2 *lanes"]  # blocks whose local ones fail the certificate


@exportable
class Linearization(eqx.Module):
    """The robust least-squares problem near one point, as n x n numbers.

    With r the weighted residuals, J their Jacobian and W = diag(ρ') of the loss (1
    without one), J_s is J with rows scaled for the loss as in
    `scipy.optimize.least_squares`. P = frame⁻¹ is the identity while a fit searches a
    well-conditioned problem. Otherwise the frame is a square root of an earlier Gram
    matrix, so that JP is nearly orthonormal and the Gram matrix keeps the digits
    that squaring the condition number would cost.

    With a likelihood r = slope / √h and J = √h ∂mean/∂x of each row, h the expected
    curvature of its cost: Jᵀr is the gradient, JᵀJ the expected information, and one is
    the natural size of a residual. At the edge of its range a mean can have an expected
    curvature without end where the cost has none, as a Poisson mean near zero where
    nothing was counted. There h is limited while a fit is under way, so that it and its
    certificate see no such wall; the last trip has the whole information.

    The properties are those of one fit. (Inside a fit, lanes of a batch are the last
    axis of everything; in a batched `Solution` the batch comes first, and its methods
    take one fit after the other.)
    """

    normal: Float[Array, "k k *lanes"]  # (JP r)ᵀ W (JP r), k = n + 1
    frame: Matrix  # P⁻¹
    counted: Int[Array, "2 *lanes"]  # residuals that count; see `in_words`
    terms: CostTerms | None  # None for plain least squares
    swept: Swept | None = None  # None without local parameters

    @property
    def cost(self) -> Scalar:
        """Half the sum of the loss."""
        if self.terms is None:
            return 0.5 * self.squared_residual
        return self.terms.cost

    @property
    def is_likelihood(self) -> bool:
        """Whether the cost is that of a likelihood."""
        return self.terms is not None and self.terms.limited is not None

    @property
    def cost_scale(self) -> Scalar:
        """What a change of the cost is compared with.

        Of a likelihood, whose cost has a unit and no natural zero, at least that unit.
        """
        if self.is_likelihood:
            return jnp.abs(self.cost) + 0.5 * self.squared_scale
        return self.cost

    @property
    def squared_scale(self) -> Scalar:
        """What squares of moves in the space of residuals are compared with.

        Of a likelihood at least its unit, and no more than its deviance and count: a
        mean that comes to zero where something was counted has a residual without end,
        and a cost that grows as a logarithm.
        """
        if not self.is_likelihood:
            return self.squared_residual
        most = self.count + 2 * jnp.abs(self.cost)
        return 1 + jnp.minimum(self.squared_residual, most)

    @property
    def influence(self) -> Scalar:
        """The largest ρ' of a residual that counts."""
        if self.terms is None:
            return jnp.any(self.counted > 0, axis=0).astype(self.normal.dtype)
        return self.terms.influence

    @property
    def count(self) -> Scalar:
        """Residuals that count, as a number of the fit's dtype."""
        return self._number(self.counted)

    @property
    def local_parameters(self) -> Scalar | int:
        """Local parameters that are free, in blocks that count."""
        return 0 if self.swept is None else self._number(self.swept.parameters)

    @property
    def is_certified_locally(self) -> Flag | bool:
        """Whether the local parameters of every block pass the certificate."""
        return self.swept is None or jnp.all(self.swept.uncertified == 0, axis=0)

    def _number(self, words: Int[Array, "2 *lanes"]) -> Scalar:
        floating = words.astype(self.normal.dtype)
        return floating[0] * COUNT_BASE + floating[1]

    @property
    def held(self) -> Float[Array, "k k *lanes"]:
        """`normal`, any local parameters held."""
        return self.normal if self.swept is None else self.swept.held

    @property
    def framed(self) -> Flag:
        """Whether the frame is not the identity."""
        return is_framed(self.frame)

    @property
    def gram(self) -> Matrix:
        """The model's Hessian in the frame, (J_s P)ᵀ J_s P."""
        if self.terms is None or self.terms.gram is None:
            return self.normal[:-1, :-1]
        return self.terms.gram

    @property
    def is_limited(self) -> Flag | bool:
        """Whether the curvature of some row is, and the last trip would have more."""
        if self.terms is None or self.terms.limited is None:
            return False
        return self.terms.limited > 0

    def believed(self, is_last: Any) -> Scalar | None:
        """`times_believed`, of a likelihood."""
        return times_believed(self.count, is_last) if self.is_likelihood else None

    @property
    def rhs(self) -> Vector:
        """The gradient in the frame, (JP)ᵀ W r."""
        return self.normal[:-1, -1]

    @property
    def squared_residual(self) -> Scalar:
        """The sum of ρ' r²; without a loss, |r|²."""
        return self.normal[-1, -1]

    @property
    def hessian(self) -> Matrix:
        """The Gauss-Newton Hessian of the cost, J_sᵀ J_s."""
        return _out_of(self.frame, self.gram)

    @property
    def gradient(self) -> Vector:
        """The gradient of the cost, local parameters held."""
        return matvec(transpose(self.frame), self.held[:-1, -1])

    @property
    def squared_norms(self) -> Vector:
        """|J_i|² of the columns of √W J, local parameters held."""
        return diagonal(_out_of(self.frame, self.held[:-1, :-1]))


class Columns(NamedTuple):
    """What is known of the Jacobian's columns by themselves, out of their frame."""

    hessian: Matrix  # J_sᵀ J_s
    gradient: Vector
    held_gradient: Vector  # any local parameters held, as in what follows
    squared_norms: Vector
    moves: Flags  # not all is zero, also where its square underflows
    resolved: Flag  # they have the digits that a certificate needs


def columns_of(linearization: Linearization) -> Columns:
    """The columns, as far as rounding lets them come out of their frame.

    J_i is a sum over the directions of the frame. Its squared norm loses what is
    rounding beside the square of the sum of their lengths: all of it, where a frame
    that fitted one point meets another at which some column is longer by orders.
    """
    return branch(linearization.framed, _out_of_frame, _without_frame, linearization)


def _without_frame(lin: Linearization) -> Columns:
    return Columns(
        hessian=lin.gram,
        gradient=lin.rhs,
        held_gradient=lin.held[:-1, -1],
        squared_norms=diagonal(lin.held)[:-1],
        moves=_touched(lin) > 0,
        resolved=jnp.isfinite(lin.cost),
    )


def _out_of_frame(lin: Linearization) -> Columns:
    parts = transpose(jnp.abs(lin.frame))
    lengths = matvec(parts, jnp.sqrt(diagonal(lin.held)[:-1]))
    squared, eps = jnp.maximum(lin.squared_norms, 0), jnp.finfo(lengths.dtype).eps
    most = precision_of(lengths.dtype).resolved
    resolved = every(eps * lengths**2 <= most * squared)
    return Columns(
        hessian=lin.hessian,
        gradient=matvec(transpose(lin.frame), lin.rhs),
        held_gradient=lin.gradient,
        squared_norms=squared,
        moves=matvec(parts, _touched(lin)) > 0,
        resolved=resolved,
    )


def _touched(lin: Linearization) -> Vector:
    """Zero for columns without any product, of all there are, that is not zero."""
    return total(jnp.abs(lin.held[:, :-1]))


def _out_of(frame: Matrix, matrix: Matrix) -> Matrix:
    """frameᵀ matrix frame."""
    return matmul(transpose(frame), matmul(matrix, frame))


# Sums over rows


def in_words(counts: Int[Array, "*lanes"]) -> Int[Array, "2 *lanes"]:
    """Counts as multiples of `COUNT_BASE` and what is left.

    Without x64 JAX has no integers beyond 2^31, and a fit may have more rows.
    """
    return jnp.stack([counts // COUNT_BASE, counts % COUNT_BASE]).astype(jnp.int32)


def carried(words: Int[Array, "2 *lanes"]) -> Int[Array, "2 *lanes"]:
    """Sums of up to 2^15 words, each again below `COUNT_BASE`."""
    return jnp.stack([words[0] + words[1] // COUNT_BASE, words[1] % COUNT_BASE])


class Sums(NamedTuple):
    """What adds up over rows."""

    numbers: tuple[Array, ...]
    counts: tuple[Int[Array, "2 *lanes"], ...]  # in words

    def plus(self, other: "Sums") -> "Sums":
        """The sums of both."""
        counts = map(operator.add, self.counts, other.counts)
        return Sums(
            tuple(map(operator.add, self.numbers, other.numbers)),
            tuple(map(carried, counts)),
        )


def sums(linearization: Linearization) -> Sums:
    """What adds up over rows."""
    lin = linearization
    numbers, counts = [lin.normal], [lin.counted]
    if lin.terms is not None:
        beside = lin.terms.gram, lin.terms.limited, lin.terms.cost
        numbers += [part for part in beside if part is not None]
    if lin.swept is not None:
        numbers += [lin.swept.held]
        counts += [lin.swept.parameters, lin.swept.uncertified]
    return Sums(tuple(numbers), tuple(counts))


def with_sums(
    linearization: Linearization, sums: Sums, influence: Scalar
) -> Linearization:
    """The inverse of `sums`, with what else depends on the rows."""
    numbers, counts = list(sums.numbers), list(sums.counts)
    normal, counted = numbers.pop(0), counts.pop(0)
    terms, swept = linearization.terms, None
    if terms is not None:
        matrix = None if terms.gram is None else numbers.pop(0)
        limited = None if terms.limited is None else numbers.pop(0)
        terms = CostTerms(matrix, limited, numbers.pop(0), influence)
    if linearization.swept is not None:
        swept = Swept(numbers.pop(0), *counts)
    return Linearization(normal, linearization.frame, counted, terms, swept)


def merge(a: Linearization, b: Linearization) -> Linearization:
    """The linearization of the rows of `a` and `b` together, taken in one frame."""
    return _merged(a, b, sums(a).plus(sums(b)))


def _merged(a: Linearization, b: Linearization, sums: Sums) -> Linearization:
    return with_sums(a, sums, jnp.maximum(a.influence, b.influence))


def without_rows(
    x: Vector, inverse: Matrix, kind: Kind, is_swept: bool = False
) -> Linearization:
    """The linearization of no rows at points like x.

    Args:
        inverse: P⁻¹, its frame.
        kind: of the cost.
        is_swept: with local parameters.
    """
    zeros = jnp.zeros_like(x)
    size, zero = len(x) + 1, zeros[0]
    normal = jnp.zeros((size, size, *zero.shape), x.dtype) + zero
    counted = jnp.zeros((2, *zero.shape), jnp.int32) + zero.astype(jnp.int32)
    terms = None
    if kind is not Kind.SQUARES:
        matrix = jnp.zeros_like(inverse) if kind is Kind.ROBUST else None
        limited = zero if kind is Kind.LIKELIHOOD else None
        terms = CostTerms(matrix, limited, zero, zero)
    swept = Swept(normal, counted, counted) if is_swept else None
    return Linearization(normal, inverse, counted, terms, swept)


class RunningSum(NamedTuple):
    """Linearizations added up without loss: Neumaier's compensated summation.

    A plain sum of K terms may lose log2(K) bits, and in float32 a fit of 1e9 rows
    cannot spare them. (Neumaier, ZAMM 54 (1974); the error of an addition is Knuth's.)
    """

    linearization: Linearization
    lost: tuple[Array, ...]  # what rounding took from its sums

    @classmethod
    def of_nothing(
        cls, x: Vector, inverse: Matrix, kind: Kind, is_swept: bool = False
    ) -> "RunningSum":
        """The sum of no terms, in one frame."""
        nothing = without_rows(x, inverse, kind, is_swept)
        return cls(nothing, jax.tree.map(jnp.zeros_like, sums(nothing).numbers))

    def plus(self, more: Linearization) -> "RunningSum":
        """The sum with another term."""
        old, new = sums(self.linearization), sums(more)
        added = old.plus(new)
        lost = tuple(
            map(lost_in_sum, self.lost, old.numbers, new.numbers, added.numbers)
        )
        return RunningSum(_merged(self.linearization, more, added), lost)

    def total(self) -> Linearization:
        """The sum."""
        lin = self.linearization
        rounded = sums(lin)
        exact = tuple(map(operator.add, rounded.numbers, self.lost))
        return with_sums(lin, rounded._replace(numbers=exact), lin.influence)


def lost_in_sum(so_far: Array, a: Array, b: Array, added: Array) -> Array:
    """What rounding took from a running sum, after another addition."""
    from_b = added - a
    return so_far + ((a - (added - from_b)) + (b - from_b))


def times_believed(count: Scalar, is_last: Any) -> Scalar:
    """How many times what a row of a likelihood shows of its curvature is believed.

    `MOST` times, or as often as there are rows; in the last trip whatever it is.
    """
    return jnp.where(is_last, jnp.inf, jnp.maximum(count, MOST)).astype(count.dtype)


def cost_rounding(linearization: Linearization) -> Scalar:
    """How large a change of the cost may be rounding alone."""
    scale = linearization.cost_scale
    return COST_ROUNDING * jnp.finfo(scale.dtype).eps * linearization.count * scale
