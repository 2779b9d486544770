"""The quadratic model of one step, reduced once so that every damped step is cheap.

    q(p) = gᵀp + pᵀB p / 2,     B symmetric, positive semidefinite, g in its range

Brought to the form B = Q T Qᵀ with T tridiagonal, a step for any damping costs O(n).
For a single model T is the diagonal matrix of eigenvalues; in lanes, where an
eigenvalue routine would be slow, it comes from Householder reflections.
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxfit._small import (
    LANES_MAX,
    Flag,
    Matrix,
    Scalar,
    Vector,
    diagonal,
    gram_root,
    identity,
    in_turn,
    inner,
    is_lanes,
    largest,
    least,
    matmul,
    matvec,
    norm,
    outer,
    settled,
    transpose,
    where_needed,
    where_needed_one_by_one,
)

SECULAR_MAX_TRIPS = 10
SECULAR_RTOL = 0.01


class Model(NamedTuple):
    """The quadratic model, as a matrix and in factors.

    B = frameᵀ gram frame + diag(curvature) and g = frameᵀ rhs. Where `factored`, the
    small singular values are taken from the factors, which have digits that B lacks.
    """

    matrix: Matrix  # B
    gradient: Vector  # g
    gram: Matrix
    rhs: Vector
    frame: Matrix
    curvature: Vector
    factored: Flag


class Reduced(eqx.Module):
    """B = Q T Qᵀ with T tridiagonal, and what follows from it at damping zero."""

    diagonal: Vector
    offdiagonal: Float[Array, "n-1 *lanes"]  # zero where T is that of eigenvalues
    basis: Matrix  # Q
    rhs: Vector  # Qᵀg
    newton: Vector  # z = T⁺ Qᵀg: the Newton step is -Qz, of least norm
    slope: Scalar  # zᵀ T⁺ z = -|z| d|z|/dα at α = 0
    decrement: Scalar  # what the Newton step gains, gᵀ B⁺ g / 2
    threshold: Scalar  # pivots of T below it are rounding
    rcond: Scalar  # about the least over the largest eigenvalue
    full_rank: Flag

    def images(self, vectors: Float[Array, "n k *lanes"]) -> Array:
        """B times k vectors, accurate along the directions of small eigenvalues."""
        z = matmul(transpose(self.basis), vectors)
        return matmul(self.basis, _tridiagonal_product(self, z))


def _tridiagonal_product(reduced, z):
    """T z, for a vector or for several, (n, k, *lanes)."""
    diagonal, offdiagonal = reduced.diagonal, reduced.offdiagonal
    if z.ndim > diagonal.ndim:
        diagonal, offdiagonal = diagonal[:, None], offdiagonal[:, None]
    zero = jnp.zeros_like(z[:1])
    above = jnp.concatenate([offdiagonal * z[1:], zero])
    below = jnp.concatenate([zero, offdiagonal * z[:-1]])
    return diagonal * z + above + below


def _rank_threshold(n: int, largest, dtype):
    return n * jnp.finfo(dtype).eps * largest


def _tridiagonal(matrix, g):
    """Householder tridiagonalisation whose Q has the direction of g as first column.

    The leading k columns of Q then span the Krylov space of (B, g), which lies in the
    range of B: a solution that is cut off where T loses rank is the one of least norm,
    without any eigenvalue (the property that LSQR has: Paige and Saunders, ACM TOMS 8,
    1982, section 2).
    """
    n = len(g)
    basis = jnp.broadcast_to(identity(g), matrix.shape)
    for k in range(n - 1):
        v, tau = _reflection(g if k == 0 else matrix[k:, k - 1])
        v = settled(jnp.concatenate([jnp.zeros_like(g[:k]), v]))
        product = settled(tau * matvec(matrix, v))
        w = settled(product - 0.5 * tau * inner(product, v) * v)
        image = settled(tau * matvec(basis, v))
        matrix = matrix - outer(v, w) - outer(w, v)
        basis = basis - outer(image, v)
    below = diagonal(matrix[1:, :-1]) if n > 1 else g[:0]
    return diagonal(matrix), below, basis


def _reflection(vector):
    """Householder vector v and factor τ: (I - τvvᵀ) maps `vector` on its first axis."""
    squared, head = inner(vector, vector), vector[0]
    length = jnp.sqrt(squared)
    shifted = jnp.where(head < 0, head - length, head + length)
    size = 2 * (squared + jnp.abs(head) * length)
    tau = jnp.where(size > 0, 2 / jnp.where(size > 0, size, 1), 0)
    return jnp.concatenate([shifted[None], vector[1:]]), tau


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
    rhs = matvec(basis.T, model.gradient)
    rounding = _rank_threshold(len(rhs), jnp.ones_like(rhs[0]), rhs.dtype)
    return eigenvalues, basis, rhs, rounding


def _svd_factors(model):
    """The same from a square root of the Gram matrix, times the frame."""
    n, eps = len(model.rhs), jnp.finfo(model.rhs.dtype).eps
    root, y = gram_root(model.gram, model.rhs)
    factor = matmul(root, model.frame)
    factor = jnp.concatenate([factor, jnp.diag(jnp.sqrt(model.curvature))])
    left, singular, right = jnp.linalg.svd(factor, full_matrices=False)
    left, singular, right = left[:n, ::-1], singular[::-1], right[::-1]
    rounding = jnp.full_like(singular[0], (10 * n * eps) ** 2)
    return singular**2, right.T, singular * matvec(left.T, y), rounding


def _from_eigenvalues(eigenvalues, basis, rhs, rounding):
    """`Reduced` from eigenvalues in ascending order."""
    lowest, highest = eigenvalues[0], eigenvalues[-1]
    threshold = rounding * highest
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
        rcond=lowest / jnp.where(highest > 0, highest, 1),
        full_rank=lowest > threshold,
    )


def _reduce_plain(model):
    return _from_eigenvalues(*_eigh_factors(model))


def _reduce_factored(model):
    return _from_eigenvalues(*_svd_factors(model))


def _reduce_factored_lane(model):
    """The same in the descending order that a cut-off solve needs."""
    reduced = _reduce_factored(model)
    turned = {
        name: getattr(reduced, name)[::-1] for name in ("diagonal", "rhs", "newton")
    }
    return dataclasses.replace(reduced, basis=reduced.basis[:, ::-1], **turned)


def _reduce_lanes(model):
    g = model.gradient
    diagonal, offdiagonal, basis = _tridiagonal(model.matrix, g)
    rhs = matvec(transpose(basis), g)
    size = largest(jnp.abs(diagonal))
    threshold = _rank_threshold(len(g), size, g.dtype)
    z, slope, pivots, full = _solve_tridiagonal(
        diagonal, offdiagonal, rhs, jnp.zeros_like(size), threshold
    )
    return Reduced(
        diagonal=diagonal,
        offdiagonal=offdiagonal,
        basis=basis,
        rhs=rhs,
        newton=z,
        slope=slope,
        decrement=0.5 * inner(rhs, z),
        threshold=threshold,
        rcond=least(pivots) / jnp.where(size > 0, size, 1),
        full_rank=full,
    )


def reduce_model(model: Model) -> Reduced:
    """Bring the model to the form in which every damped step costs O(n)."""
    if not is_lanes(model.gradient):
        return where_needed(model.factored, _reduce_factored, _reduce_plain, model)
    if len(model.gradient) > LANES_MAX:
        return in_turn(_reduce_plain, model)
    return where_needed_one_by_one(
        model.factored, _reduce_factored_lane, _reduce_lanes, model
    )


# The damped step


def _damp(solve, reduced, radius, alpha):
    """The root α of 1/|z(α)| = 1/radius by safeguarded Newton steps (Moré 1978, 5.5).

    Moré, "The Levenberg-Marquardt algorithm: implementation and theory", Lecture Notes
    in Mathematics 630, 1978. As in SciPy, the root is wanted to 1 % in at most ten
    steps and the step is then stretched to the radius.
    """
    newton_norm = norm(reduced.newton)
    inside = newton_norm <= radius
    upper = norm(reduced.rhs) / radius
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
        length = norm(z)
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
    length = norm(z)
    stretch = jnp.where(inside, 1, radius / jnp.where(inside, 1, length))
    alpha, z = jnp.where(inside, 0, alpha), z * stretch
    slope = inner(reduced.rhs, z)
    curvature = inner(z, _tridiagonal_product(reduced, z))
    return z, (alpha, slope - 0.5 * curvature, slope, norm(z))


def _solve_diagonal(reduced):
    def solve(alpha):
        shifted = reduced.diagonal + alpha
        inverse = jnp.where(shifted > 0, 1 / jnp.where(shifted > 0, shifted, 1), 0)
        z = reduced.rhs * inverse
        return z, inner(z * z, inverse)

    return solve


def _solve_lanes(reduced):
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

    p: Vector
    alpha: Scalar  # damping
    predicted: Scalar  # reduction of the model, -q(p)
    slope: Scalar  # -gᵀp
    length: Scalar  # |p|


def trust_region_step(reduced: Reduced, radius: Scalar, alpha: Scalar) -> Step:
    """The minimiser p of q(p) over |p| <= radius.

    The step solves (B + αI) p = -g with α = 0 where the Newton step is short enough,
    and otherwise with the α >= 0 for which |p| = radius. `alpha` is the first guess.
    """
    tridiagonal = is_lanes(reduced.rhs) and len(reduced.rhs) <= LANES_MAX
    solve = _solve_lanes(reduced) if tridiagonal else _solve_diagonal(reduced)
    z, numbers = _damp(solve, reduced, radius, alpha)
    return Step(-matvec(reduced.basis, z), *numbers)
