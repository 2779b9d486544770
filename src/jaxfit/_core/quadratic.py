"""The quadratic model of one step, reduced once so that every damped step is cheap.

    q(p) = gᵀp + pᵀB p / 2,     B symmetric, positive semidefinite, g in its range

A damped step is a sweep of B + αI. Where B has lost the digits of its small
eigenvalues, or has none, it is brought to B = Q T Qᵀ with T diagonal and without them,
and the same sweep of T + αI leaves them out.
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxfit._linalg.branches import branch, choose
from jaxfit._linalg.inverse import is_lossy, swept
from jaxfit._linalg.kernels import (
    Flag,
    Flags,
    Matrix,
    Scalar,
    Vector,
    add_diagonal,
    diagonal,
    every,
    identity,
    inner,
    is_framed,
    largest,
    least,
    matmul,
    matvec,
    norm,
    transpose,
)
from jaxfit._linalg.rotations import diagonalised_together
from jaxfit._rows.linearization import Frame

SECULAR_MAX_TRIPS = 10
SECULAR_RTOL = 0.01


class Quadratic(NamedTuple):
    """The quadratic model, as a matrix and in factors.

    B = d frameᵀ gram frame d + diag(curvature) and g = d frameᵀ rhs.
    """

    matrix: Matrix  # B
    gradient: Vector  # g
    gram: Matrix
    rhs: Vector
    frame: Matrix
    scaling: Vector  # d
    curvature: Vector
    squared_norms: Vector  # of the columns of the Jacobian
    free: Flags | None = None  # parameters that bounds do not fix; None: no bounds


class Reduced(eqx.Module):
    """B = Q T Qᵀ, and what follows from it at damping zero."""

    matrix: Matrix  # T: B itself, or diagonal
    basis: Matrix  # Q
    rhs: Vector  # Qᵀg
    newton: Vector  # z = T⁺ Qᵀg: the Newton step is -Qz, of least norm
    slope: Scalar  # zᵀ T⁺ z = -|z| d|z|/dα at α = 0
    decrement: Scalar  # what the Newton step gains, gᵀ B⁺ g / 2
    pivot: Scalar  # the least of B, or eigenvalue of JᵀJ, scaled to unit diagonal
    full_rank: Flag
    frame: Frame  # in which a Jacobian near by is nearly orthonormal, if B is lossy

    @classmethod
    def of_nothing(cls, x: Vector) -> "Reduced":
        """The reduction of a model that expects nothing."""
        zeros, eye = jnp.zeros_like(x), identity(x)
        zero = jnp.zeros_like(x[0])
        return cls(
            matrix=eye,
            basis=eye,
            rhs=zeros,
            newton=zeros,
            slope=zero,
            decrement=zero,
            pivot=zero,
            full_rank=zero != 0,
            frame=Frame(eye, eye),
        )

    def images(self, vectors: Float[Array, "n k *lanes"]) -> Array:
        """B times k vectors, accurate along the directions of small eigenvalues."""
        z = matmul(transpose(self.basis), vectors)
        return matmul(self.basis, matmul(self.matrix, z))


def reduce_quadratic(
    quadratic: Quadratic, is_lean: bool = False, is_certified: Flag | None = None
) -> Reduced:
    """What every damped step needs: B itself where it has all its digits.

    Args:
        is_lean: B itself in any case; whoever reads it looks at the pivot.
        is_certified: the fit may end here.
    """
    squared, framed = diagonal(quadratic.matrix), is_framed(quadratic.frame)
    inverse, pivot = swept(quadratic.matrix, squared != 0)
    newton, eye = matvec(inverse, quadratic.gradient), identity(quadratic.gradient)
    reduced = Reduced(
        matrix=quadratic.matrix,
        basis=eye,
        rhs=quadratic.gradient,
        newton=newton,
        slope=inner(newton, matvec(inverse, newton)),
        decrement=0.5 * inner(quadratic.gradient, newton),
        pivot=pivot,
        full_rank=every(squared > 0),
        frame=Frame(eye, eye),
    )
    if quadratic.free is not None and is_certified is not None:
        pivot = branch(
            is_certified, _unhidden, lambda _, pivot: pivot, quadratic, pivot
        )
        reduced = dataclasses.replace(reduced, pivot=pivot)
    if is_lean:
        return reduced
    return branch(
        framed | is_lossy(reduced.pivot),
        _reduced_by_rotations,
        lambda _, reduced: reduced,
        quadratic,
        reduced,
    )


def _unhidden(quadratic: Quadratic, pivot: Scalar) -> Scalar:
    """The least pivot of JᵀJ: what bounds add to B may hide that it lost its digits."""
    assert quadratic.free is not None
    moving = quadratic.free & (quadratic.squared_norms > 0)
    return jnp.minimum(pivot, swept(quadratic.gram, moving).pivot)


def _reduced_by_rotations(quadratic: Quadratic, reduced: Reduced) -> Reduced:
    """The reduction from the factors, without what is rounding.

    And a frame, from the same rotations of the columns alone.
    """
    moves = quadratic.squared_norms > 0
    norms = jnp.sqrt(jnp.where(moves, quadratic.squared_norms, 1))
    units = jnp.where(moves[None], quadratic.frame / norms[None], 0)
    step, columns = diagonalised_together(
        quadratic.gram,
        [quadratic.frame * quadratic.scaling[None], units],
        [quadratic.curvature, jnp.zeros_like(norms)],
    )
    values = jnp.where(step.proper, step.values, 0)
    rhs = jnp.where(step.proper, matvec(transpose(step.images), quadratic.rhs), 0)
    newton = rhs / jnp.where(step.proper, values, 1)
    pivot = least(jnp.where(moves, columns.values, jnp.inf)) / largest(columns.values)
    root = jnp.where(moves, columns.root, 1)[:, None]
    rotation = transpose(columns.basis)
    return Reduced(
        matrix=identity(rhs) * values[None],
        basis=step.basis,
        rhs=rhs,
        newton=newton,
        slope=inner(newton, newton / jnp.where(step.proper, values, 1)),
        decrement=0.5 * inner(rhs, newton),
        pivot=pivot,
        full_rank=every(step.proper),
        frame=Frame(
            inverse=root * rotation * norms[None],
            directions=rotation / root / norms[None],
        ),
    )


# The damped step


class TrustRegionStep(NamedTuple):
    """A step of the trust-region method in the variables of the model."""

    p: Vector
    alpha: Scalar  # damping
    predicted: Scalar  # reduction of the model, -q(p)
    slope: Scalar  # -gᵀp
    length: Scalar  # |p|


def trust_region_step(
    reduced: Reduced, radius: Scalar, alpha: Scalar
) -> TrustRegionStep:
    """The minimiser p of q(p) over |p| <= radius.

    The step solves (B + αI) p = -g with α = 0 where the Newton step is short enough,
    and otherwise with the α >= 0 for which |p| = radius: the root of 1/|p(α)| =
    1/radius by safeguarded Newton steps (Moré 1978, eq. 5.5, "The Levenberg-Marquardt
    algorithm: implementation and theory", Lecture Notes in Mathematics 630). As in
    SciPy, the root is wanted to 1 % in at most ten steps, and the step is then
    stretched to the radius.

    Args:
        alpha: the first guess.
    """
    root = _Root.about(reduced, radius, alpha)
    is_inside = root.is_settled  # already: the Newton step is short enough
    root = lax.while_loop(
        _Root.is_unfinished,
        lambda root: root.after_newton_step(reduced, radius),
        root,
    )
    # onto the edge, but for the Newton step
    length = norm(root.z)
    stretch = jnp.where(is_inside, 1, radius / jnp.where(is_inside, 1, length))
    z = root.z * stretch
    slope = inner(reduced.rhs, z)
    curvature = inner(z, matvec(reduced.matrix, z))
    return TrustRegionStep(
        p=-matvec(reduced.basis, z),
        alpha=jnp.where(is_inside, 0, root.alpha),
        predicted=slope - 0.5 * curvature,
        slope=slope,
        length=norm(z),
    )


class _Root(NamedTuple):
    """The search for the α at which |z| = radius, z = (T + αI)⁻¹ Qᵀg.

    With φ(α) = |z| - radius, Newton's method for 1/|z| - 1/radius, which is nearly
    linear in α, goes from α to α - |z| φ / (φ' radius), φ' = -zᵀ (T + αI)⁻¹ z / |z|.
    """

    alpha: Scalar
    lower: Scalar  # of the root
    upper: Scalar
    z: Vector  # of the α before
    is_settled: Flag  # α is good enough; z is still to be that of it
    is_done: Flag
    trips: Int[Array, ""]

    @classmethod
    def about(cls, reduced: Reduced, radius: Scalar, alpha: Scalar) -> "_Root":
        """Before the first Newton step."""
        newton_norm = norm(reduced.newton)
        is_inside = newton_norm <= radius
        # Newton's step from α = 0 never passes the root, since |z| is convex in α
        lower = (newton_norm - radius) * newton_norm
        lower = jnp.where(
            reduced.full_rank & ~is_inside,
            lower / jnp.where(reduced.slope > 0, reduced.slope, 1),
            0,
        )
        return cls(
            alpha=alpha,
            lower=lower,
            upper=norm(reduced.rhs) / radius,
            z=reduced.newton,
            is_settled=is_inside,
            is_done=is_inside,
            trips=jnp.int32(0),
        )

    def is_unfinished(self) -> Bool[Array, ""]:
        """Whether some fit goes on."""
        return jnp.any(~self.is_done) & (self.trips <= SECULAR_MAX_TRIPS)

    def after_newton_step(self, reduced: Reduced, radius: Scalar) -> "_Root":
        """The next α; or, where it is settled, the z of the last one."""
        # inside its limits, or else between them
        is_outside = (self.alpha < self.lower) | (self.alpha > self.upper)
        is_outside = is_outside | (self.alpha == 0)
        between = jnp.maximum(0.001 * self.upper, jnp.sqrt(self.lower * self.upper))
        at = jnp.where(is_outside & ~self.is_settled, between, self.alpha)

        # |z| and its derivative
        damping = jnp.broadcast_to(at, reduced.rhs.shape)
        everywhere = reduced.rhs == reduced.rhs
        inverse, _ = swept(add_diagonal(reduced.matrix, damping), everywhere)
        z = matvec(inverse, reduced.rhs)
        slope, length = inner(z, matvec(inverse, z)), norm(z)

        phi = length - radius
        ratio = -phi * length / jnp.where(slope > 0, slope, 1)
        is_near = jnp.abs(phi) < SECULAR_RTOL * radius
        trips = self.trips + 1
        new = _Root(
            alpha=jnp.where(self.is_settled, self.alpha, at - length * ratio / radius),
            lower=jnp.maximum(self.lower, at - ratio),
            upper=jnp.where(phi < 0, at, self.upper),
            z=z,
            is_settled=is_near | (trips >= SECULAR_MAX_TRIPS),
            is_done=self.is_settled,
            trips=trips,
        )
        return choose(self.is_done, self, new)._replace(trips=trips)
