"""The quadratic model of one step, reduced once so that every damped step is cheap.

    q(p) = gᵀp + pᵀB p / 2,     B symmetric, positive semidefinite, g in its range

Brought to the form B = Q T Qᵀ with T tridiagonal, a step for any damping costs O(n).
For a single model T is the diagonal matrix of eigenvalues; in lanes, where an
eigenvalue routine would be slow, it comes from Householder reflections.
"""

import dataclasses
import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxfit._small import LANES_MAX, batched_by, by_lapack, gram_root, matvec

SECULAR_MAX_TRIPS = 10
SECULAR_RTOL = 0.01


class Model(NamedTuple):
    """The quadratic model, as a matrix and in factors.

    B = frameᵀ gram frame + diag(curvature) and g = frameᵀ rhs. Where `factored`, the
    small singular values are taken from the factors, which have digits that B lacks.
    """

    matrix: Float[Array, "n n"]  # B
    gradient: Float[Array, " n"]  # g
    gram: Float[Array, "n n"]
    rhs: Float[Array, " n"]
    frame: Float[Array, "n n"]
    curvature: Float[Array, " n"]
    factored: Bool[Array, ""]


class Reduced(eqx.Module):
    """B = Q T Qᵀ with T tridiagonal, and what follows from it at damping zero."""

    diagonal: Float[Array, " n"]
    offdiagonal: Float[Array, " n-1"]  # zero where T is the matrix of eigenvalues
    basis: Float[Array, "n n"]  # Q
    rhs: Float[Array, " n"]  # Qᵀg
    newton: Float[Array, " n"]  # z = T⁺ Qᵀg: the Newton step is -Qz, of least norm
    slope: Float[Array, ""]  # zᵀ T⁺ z = -|z| d|z|/dα at α = 0
    decrement: Float[Array, ""]  # what the Newton step gains, gᵀ B⁺ g / 2
    threshold: Float[Array, ""]  # pivots of T below it are rounding
    rcond: Float[Array, ""]  # about the least over the largest eigenvalue
    full_rank: Bool[Array, ""]

    def image(self, p: Float[Array, " n"]) -> Float[Array, " n"]:
        """B p, accurate along the directions of small eigenvalues."""
        q = _tridiagonal_product(self, jnp.sum(self.basis * p[:, None], axis=0))
        return jnp.sum(self.basis * q, axis=1)


def _tridiagonal_product(reduced, z):
    """T z."""
    zero = jnp.zeros_like(z[:1])
    above = jnp.concatenate([reduced.offdiagonal * z[1:], zero])
    below = jnp.concatenate([zero, reduced.offdiagonal * z[:-1]])
    return reduced.diagonal * z + above + below


def _rank_threshold(n: int, largest, dtype):
    return n * jnp.finfo(dtype).eps * largest


def _reflect(vector):
    """Householder vector v and factor τ: (I - τvvᵀ) maps `vector` on its first axis."""
    squared = jnp.sum(vector * vector, axis=0)
    head = vector[0]
    length = jnp.sqrt(squared)
    shifted = jnp.where(head < 0, head - length, head + length)
    v = jnp.concatenate([shifted[None], vector[1:]])
    size = 2 * (squared + jnp.abs(head) * length)
    return v, jnp.where(size > 0, 2 / jnp.where(size > 0, size, 1), 0)


def _tridiagonal(matrix, g):
    """Householder tridiagonalisation whose Q has the direction of g as first column.

    The leading k columns of Q then span the Krylov space of (B, g), which lies in the
    range of B: a solution that is cut off where T loses rank is the one of least norm,
    without any eigenvalue (the property that LSQR has: Paige and Saunders, ACM TOMS 8,
    1982, section 2).
    """
    n = len(g)
    basis = jnp.broadcast_to(
        jnp.eye(n, dtype=g.dtype).reshape(n, n, *([1] * (g.ndim - 1))), matrix.shape
    )
    for k in range(n - 1):
        v, tau = _reflect(g if k == 0 else matrix[k:, k - 1])
        v = jnp.concatenate([jnp.zeros((k, *v.shape[1:]), v.dtype), v])
        product = tau * jnp.sum(matrix * v, axis=1)
        w = product - 0.5 * tau * jnp.sum(product * v, axis=0) * v
        matrix = matrix - v[:, None] * w[None, :] - w[:, None] * v[None, :]
        image = tau * jnp.sum(basis * v[None, :], axis=1)
        basis = basis - image[:, None] * v[None, :]
    diagonal = jnp.stack([matrix[k, k] for k in range(n)])
    below = [matrix[k + 1, k] for k in range(n - 1)]
    offdiagonal = jnp.stack(below) if below else diagonal[:0]
    return diagonal, offdiagonal, basis


def _solve_tridiagonal(diagonal, offdiagonal, rhs, alpha, threshold):
    """(T + αI) z = rhs by LDLᵀ, cut off at the first pivot below the threshold.

    Returns z, zᵀ(T + αI)⁻¹z and the pivots.
    """
    n = len(diagonal)
    pivots, factors, forward, kept = [diagonal[0] + alpha], [], [rhs[0]], []
    for k in range(n):
        kept.append((pivots[k] > threshold) & (kept[-1] if k else True))
        if k < n - 1:
            factors.append(offdiagonal[k] / jnp.where(kept[k], pivots[k], 1))
            pivots.append(diagonal[k + 1] + alpha - factors[k] * offdiagonal[k])
            forward.append(rhs[k + 1] - factors[k] * forward[k])
    inverse = [
        jnp.where(k, 1 / jnp.where(k, p, 1), 0)
        for k, p in zip(kept, pivots, strict=True)
    ]
    z = [forward[-1] * inverse[-1]]
    for k in range(n - 2, -1, -1):
        z.insert(0, jnp.where(kept[k], forward[k] * inverse[k] - factors[k] * z[0], 0))
    slope, u = z[0] ** 2 * inverse[0], z[0]
    for k in range(1, n):
        u = z[k] - factors[k - 1] * u
        slope = slope + u**2 * inverse[k]
    return jnp.stack(z), slope, jnp.stack(pivots), kept[-1]


def _eigh_factors(model):
    """Eigenvalues, eigenvectors Q, Qᵀg, and the relative size of rounding."""
    eigenvalues, basis = jnp.linalg.eigh(model.matrix, symmetrize_input=False)
    rhs = matvec(model.gradient, basis)
    rounding = _rank_threshold(len(rhs), jnp.ones_like(rhs[0]), rhs.dtype)
    return eigenvalues, basis, rhs, rounding


def _svd_factors(model):
    """The same from a square root of the Gram matrix, times the frame."""
    n, eps = len(model.rhs), jnp.finfo(model.rhs.dtype).eps
    root, y = gram_root(model.gram, model.rhs)
    factor = jnp.dot(root, model.frame, precision=lax.Precision.HIGHEST)
    factor = jnp.concatenate([factor, jnp.diag(jnp.sqrt(model.curvature))])
    left, singular, right = jnp.linalg.svd(factor, full_matrices=False)
    left, singular, right = left[:n, ::-1], singular[::-1], right[::-1]
    rounding = jnp.full_like(singular[0], (10 * n * eps) ** 2)
    return singular**2, right.T, singular * matvec(y, left), rounding


def _from_eigenvalues(eigenvalues, basis, rhs, rounding):
    """`Reduced` from eigenvalues in ascending order."""
    least, largest = eigenvalues[0], eigenvalues[-1]
    threshold = rounding * largest
    kept = eigenvalues > threshold
    inverse = jnp.where(kept, 1 / eigenvalues, 0)
    z = rhs * inverse
    sums = jnp.sum(jnp.stack([z * z * inverse, 0.5 * rhs * z]), axis=1)
    return Reduced(
        diagonal=eigenvalues,
        offdiagonal=jnp.zeros_like(rhs[1:]),
        basis=basis,
        rhs=jnp.where(kept, rhs, 0),
        newton=z,
        slope=sums[0],
        decrement=sums[1],
        threshold=threshold,
        rcond=least / jnp.where(largest > 0, largest, 1),
        full_rank=least > threshold,
    )


def _reduce_one(model):
    factors = lax.cond(model.factored, _svd_factors, _eigh_factors, model)
    return _from_eigenvalues(*factors)


def _reduce_lanes(model):
    if len(model.gradient) > LANES_MAX:
        return by_lapack(lambda m: _from_eigenvalues(*_eigh_factors(m)), model)
    reduced = _reduce_tridiagonal(model.matrix, model.gradient)
    return lax.cond(
        jnp.any(model.factored),
        lambda: jax.tree.map(
            functools.partial(jnp.where, model.factored),
            by_lapack(_reduce_factored, model),
            reduced,
        ),
        lambda: reduced,
    )


def _reduce_factored(model):
    """As `_from_eigenvalues`, in the descending order that a cut-off solve needs."""
    reduced = _from_eigenvalues(*_svd_factors(model))
    turned = {
        name: getattr(reduced, name)[::-1] for name in ("diagonal", "rhs", "newton")
    }
    return dataclasses.replace(reduced, basis=reduced.basis[:, ::-1], **turned)


def _reduce_tridiagonal(matrix, g):
    diagonal, offdiagonal, basis = _tridiagonal(matrix, g)
    rhs = jnp.sum(basis * g[:, None], axis=0)
    largest = jnp.max(jnp.abs(diagonal), axis=0)
    threshold = _rank_threshold(len(g), largest, g.dtype)
    z, slope, pivots, full = _solve_tridiagonal(
        diagonal, offdiagonal, rhs, jnp.zeros_like(largest), threshold
    )
    return Reduced(
        diagonal=diagonal,
        offdiagonal=offdiagonal,
        basis=basis,
        rhs=rhs,
        newton=z,
        slope=slope,
        decrement=0.5 * jnp.sum(rhs * z, axis=0),
        threshold=threshold,
        rcond=jnp.min(pivots, axis=0) / jnp.where(largest > 0, largest, 1),
        full_rank=full,
    )


@batched_by(_reduce_lanes)
def reduce_model(model: Model) -> Reduced:
    """Bring the model to the form in which every damped step costs O(n)."""
    return _reduce_one(model)


# The damped step


def _damp(solve, reduced, radius, alpha):
    """The root α of 1/|z(α)| = 1/radius by safeguarded Newton steps (Moré 1978, 5.5).

    Moré, "The Levenberg-Marquardt algorithm: implementation and theory", Lecture Notes
    in Mathematics 630, 1978. As in SciPy, the root is wanted to 1 % in at most ten
    steps and the step is then stretched to the radius.
    """
    newton_norm = jnp.sqrt(jnp.sum(reduced.newton**2, axis=0))
    inside = newton_norm <= radius
    upper = jnp.sqrt(jnp.sum(reduced.rhs**2, axis=0)) / radius
    # Newton's step from α = 0 never passes the root, since |z| is convex in α
    lower = (newton_norm - radius) * newton_norm
    lower = jnp.where(
        reduced.full_rank & ~inside,
        lower / jnp.where(reduced.slope > 0, reduced.slope, 1),
        0,
    )

    def unfinished(carry):
        *_, done, trips = carry
        return jnp.any(~done) & (trips <= SECULAR_MAX_TRIPS)

    def newton_step(carry):
        alpha, lower, upper, _, settled, done, trips = carry
        outside = (alpha < lower) | (alpha > upper) | (alpha == 0)
        restart = jnp.maximum(0.001 * upper, jnp.sqrt(lower * upper))
        at = jnp.where(outside & ~settled, restart, alpha)
        z, slope = solve(at)
        length = jnp.sqrt(jnp.sum(z * z, axis=0))
        phi = length - radius
        ratio = -phi * length / jnp.where(slope > 0, slope, 1)
        near = jnp.abs(phi) < SECULAR_RTOL * radius
        new = (
            jnp.where(settled, alpha, at - length * ratio / radius),
            jnp.maximum(lower, at - ratio),
            jnp.where(phi < 0, at, upper),
            z,
            near | (trips + 1 >= SECULAR_MAX_TRIPS),
            settled,  # z is that of the last α: done
        )
        new = (jnp.where(done, b, a) for a, b in zip(new, carry[:-1], strict=True))
        return *new, trips + 1

    # the trip after the last Newton step evaluates z at its α
    start = alpha, lower, upper, reduced.newton, jnp.zeros_like(inside), inside, 0
    alpha, _, _, z, *_ = lax.while_loop(unfinished, newton_step, start)
    length = jnp.sqrt(jnp.sum(z * z, axis=0))
    stretch = jnp.where(inside, 1, radius / jnp.where(inside, 1, length))
    alpha, z = jnp.where(inside, 0, alpha), z * stretch
    sums = jnp.stack(
        [reduced.rhs * z, 0.5 * z * _tridiagonal_product(reduced, z), z * z]
    )
    slope, curvature, squared = jnp.sum(sums, axis=1)
    return z, (alpha, slope - curvature, slope, jnp.sqrt(squared))


def _solve_diagonal(reduced):
    def solve(alpha):
        shifted = reduced.diagonal + alpha
        inverse = jnp.where(shifted > 0, 1 / jnp.where(shifted > 0, shifted, 1), 0)
        z = reduced.rhs * inverse
        return z, jnp.sum(z * z * inverse, axis=0)

    return solve


def _solve_lanes(reduced):
    if len(reduced.rhs) > LANES_MAX:
        return _solve_diagonal(reduced)

    def solve(alpha):
        return _solve_tridiagonal(
            reduced.diagonal,
            reduced.offdiagonal,
            reduced.rhs,
            alpha,
            reduced.threshold,
        )[:2]

    return solve


class Step(NamedTuple):
    """A step of the trust-region method in the variables of the model."""

    p: Float[Array, " n"]
    alpha: Float[Array, ""]  # damping
    predicted: Float[Array, ""]  # reduction of the model, -q(p)
    slope: Float[Array, ""]  # -gᵀp
    length: Float[Array, ""]  # |p|


def _step_lanes(reduced, radius, alpha):
    z, numbers = _damp(_solve_lanes(reduced), reduced, radius, alpha)
    return Step(-jnp.sum(reduced.basis * z, axis=1), *numbers)


@batched_by(_step_lanes)
def trust_region_step(
    reduced: Reduced, radius: Float[Array, ""], alpha: Float[Array, ""]
) -> Step:
    """The minimiser p of q(p) over |p| <= radius.

    The step solves (B + αI) p = -g with α = 0 where the Newton step is short enough,
    and otherwise with the α >= 0 for which |p| = radius. `alpha` is the first guess.
    """
    z, numbers = _damp(_solve_diagonal(reduced), reduced, radius, alpha)
    return Step(-matvec(reduced.basis, z), *numbers)
