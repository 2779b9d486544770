"""The convex hull of the gradients about a kink, and the point that it is about."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxfit._core.bounds import Bounds, coleman_li
from jaxfit._core.certificate import certificate_limit
from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import (
    Flag,
    Matrix,
    Scalar,
    Vector,
    bordered,
    identity,
    inner,
    matmul,
    matvec,
    norm,
    outer,
    transpose,
)

# Samples are so far away, in units of the certificate's limit, columns scaled to one:
# so near that a smooth gradient is the same, so far that the cost shows its slope.
RADIUS = 0.05
NEARER = 1 / 32  # of it, the second time
RESOLVED = 16  # and not nearer than so many units of rounding of x

KINKED = 4  # times what the radius changes in a smooth gradient: a kink
HULL_TRIPS = 1000


class Vicinity(NamedTuple):
    """A point, with its columns scaled to one."""

    point: Any
    bounds: Bounds | None
    size: Vector  # 1 / |J_i|, less near the bound ahead: as in `scaled_quadratic`
    limit: Scalar  # of the certificate
    radius: Scalar  # of samples
    smooth: Scalar  # the most that a smooth gradient changes in it

    @classmethod
    def of(cls, bounds: Bounds | None, point: Any) -> "Vicinity":
        """The vicinity of an evaluated point."""
        limit = certificate_limit(point.linearization, point.rounding)
        squared = point.largest_norms
        size = jnp.sqrt(jnp.where(squared > 0, 1 / squared, 0))
        if bounds is not None:
            ahead, _ = coleman_li(point.x, point.gradient, bounds)
            size = jnp.sqrt(size * jnp.minimum(ahead, size))
        radius = RADIUS * limit
        return cls(point, bounds, size, limit, radius, KINKED * len(size) * radius)

    def extent(self, corners: Float[Array, "m n"]) -> Scalar:
        """How far the corners of a hull lie from the first."""
        across = self.size * (corners - corners[0])
        return jnp.sqrt(jnp.max(jnp.sum(across**2, axis=1)))

    def at(self, down: Vector, near: Flag) -> Vector:
        """Down a gradient from the point, as far as the sampling radius."""
        down = self.size * down
        length = norm(down)
        radius = jnp.where(near, NEARER * self.radius, self.radius)
        radius = jnp.maximum(radius, RESOLVED * self.point.rounding)
        step = radius / jnp.where(length > 0, length, 1) * self.size * down
        x = self.point.x - step
        return x if self.bounds is None else self.bounds.project(x)


def first_corner(weights: Float[Array, " m"]) -> Float[Array, " m"]:
    """All weight on the first corner."""
    return jnp.where(jnp.arange(len(weights)) == 0, 1, jnp.zeros_like(weights))


def least_norm(gram: Float[Array, "m m"]) -> Float[Array, " m"]:
    """Weights of the point of least norm in the convex hull of m points.

    By pairwise Frank-Wolfe steps (Lacoste-Julien and Jaggi, NeurIPS 2015): weight moves
    from the worst corner that has any to the best, as far as that pays.

    Args:
        gram: inner products of the points.
    """
    m, eps = len(gram), jnp.finfo(gram.dtype).eps
    closeness = m * eps * jnp.max(jnp.abs(gram))

    def unfinished(carry: tuple) -> Flag:
        _, gap, trips = carry
        return (gap > closeness) & (trips < HULL_TRIPS)

    def move(carry: tuple) -> tuple:
        weights, _, trips = carry
        images = matvec(gram, weights)
        most = jnp.max(jnp.where(weights > 0, images, -jnp.inf))
        gap = most - jnp.min(images)
        worst = _shares((images == most) & (weights > 0), weights.dtype)
        best = _shares(images == jnp.min(images), weights.dtype)
        direction = best - worst
        curvature = inner(direction, matvec(gram, direction))
        whole = jnp.min(jnp.where(worst > 0, weights / worst, jnp.inf))
        step = jnp.minimum(gap / jnp.where(curvature > 0, curvature, 1), whole)
        step = jnp.where(curvature > 0, step, 0)
        return jnp.maximum(weights + step * direction, 0), gap, trips + 1

    start = first_corner(gram[0]), jnp.asarray(jnp.inf, gram.dtype), jnp.asarray(0)
    return lax.while_loop(unfinished, move, varying_with(start, gram))[0]


def _shares(flags: Bool[Array, " m"], dtype: Any) -> Float[Array, " m"]:
    """Equal parts of one for those that are true."""
    shares = flags.astype(dtype)
    return shares / jnp.sum(shares)


def along_kink(
    numbers: tuple[Float[Array, "k k"], Matrix], search: Any, point: Any
) -> tuple[Float[Array, "k k"], Matrix]:
    """A linearization with the slope for its gradient, and the Jacobian along the kink.

    Only in directions in which all corners agree has the cost a curvature, and only
    there may a step go; a frame that leaves out the others, which the kink holds, says
    so to all that reads it.

    Args:
        numbers: of the linearization, its `normal` and its frame.
        search: the `Search`, which has the hull.
        point: where the fit has stalled.
    """
    norms, vicinity = point.largest_norms, Vicinity.of(None, point)
    scale = jnp.sqrt(jnp.where(norms > 0, norms, 1))
    across = (search.corners - search.corners[0]) / scale
    rounding = jnp.finfo(scale.dtype).eps ** 0.5

    def without(k: Int[Array, ""], onto: Matrix) -> Matrix:
        rest = matvec(onto, across[k])
        rest = jnp.where(jnp.abs(rest) > vicinity.smooth / KINKED, rest, 0)
        length = norm(rest)
        unit = rest / jnp.where(length > 0, length, 1)
        onto = onto - outer(unit, unit)
        return jnp.where(jnp.abs(onto) > rounding, onto, 0)

    eye = varying_with(identity(scale), across)
    onto = lax.fori_loop(1, len(across), without, eye)
    frame = onto * scale / scale[:, None]
    normal, _ = numbers
    gram = matmul(transpose(frame), matmul(normal[:-1, :-1], frame))
    gram = gram + outer(scale, scale) * (eye - onto)  # which the frame leaves out
    return bordered(gram, search.slope, normal[-1, -1]), frame
