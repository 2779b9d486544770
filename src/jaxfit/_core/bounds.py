"""Bounds: the interior, the Coleman-Li scaling, and the choice of a step.

Branch, Coleman and Li, "A subspace, interior, and conjugate gradient method for
large-scale bound-constrained minimization problems", SIAM J. Sci. Comput. 21 (1999).
Every function here is exact for infinite bounds. Equal bounds fix a parameter.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxfit._core.quadratic import Reduced, Step
from jaxfit._linalg.kernels import (
    Flag,
    Scalar,
    Vector,
    branch,
    every,
    inner,
    least,
    norm,
)


class Bounds(NamedTuple):
    """Lower and upper bounds of the flat parameters."""

    lower: Vector
    upper: Vector

    @property
    def free(self) -> Bool[Array, "n *lanes"]:
        """Parameters that may move."""
        return self.lower < self.upper

    def contains(self, x: Vector) -> Flag:
        """Whether x lies within the bounds; False for NaN."""
        return every((x >= self.lower) & (x <= self.upper))

    def project(self, x: Vector) -> Vector:
        """The nearest point within the bounds."""
        return jnp.clip(x, self.lower, self.upper)


def start_inside(x: Vector, bounds: Bounds) -> Vector:
    """Move a start off its bounds, by 1e-10 max(1, |bound|) in float64 (as SciPy)."""
    step = 1e-10 if x.dtype == jnp.float64 else 4 * float(jnp.finfo(x.dtype).eps)
    lower, upper = bounds
    lower_gap = step * jnp.maximum(1, jnp.abs(lower))
    upper_gap = step * jnp.maximum(1, jnp.abs(upper))
    at_lower = (x - lower <= lower_gap) & (x - lower <= upper - x)
    at_upper = (upper - x <= upper_gap) & (upper - x < x - lower)
    at_lower, at_upper = at_lower & jnp.isfinite(lower), at_upper & jnp.isfinite(upper)
    moved = jnp.where(at_lower, lower + lower_gap, x)
    moved = jnp.where(at_upper, upper - upper_gap, moved)
    moved = jnp.where((moved < lower) | (moved > upper), 0.5 * (lower + upper), moved)
    return jnp.where(bounds.free, moved, lower)


def stay_inside(x: Vector, bounds: Bounds, strictly: bool) -> Vector:
    """Move what a rounded step has put on or beyond a bound.

    SciPy keeps every parameter strictly inside, at the next number. Otherwise that
    number counts as the bound too: a parameter on its bound has no further gain to
    promise, and the Coleman-Li scaling frees it when the gradient turns.
    """
    lower, upper = bounds
    above, below = jnp.nextafter(lower, upper), jnp.nextafter(upper, lower)
    if strictly:
        x = jnp.where(x <= lower, above, jnp.where(x >= upper, below, x))
    else:
        x = jnp.where(x <= above, lower, jnp.where(x >= below, upper, x))
    return jnp.where(bounds.free, x, lower)


def coleman_li(x: Vector, gradient: Vector, bounds: Bounds) -> tuple[Vector, Vector]:
    """The scaling v and its derivative (eq. 2.2): the distance to the bound ahead.

    v is the distance to the bound that a descent step approaches, 1 where there is
    none, and 0 for a fixed parameter.
    """
    to_upper = (gradient < 0) & (bounds.upper < jnp.inf)
    to_lower = (gradient > 0) & (bounds.lower > -jnp.inf)
    v = jnp.where(to_upper, bounds.upper - x, jnp.where(to_lower, x - bounds.lower, 1))
    dv = jnp.where(to_upper, -1, jnp.where(to_lower, 1, 0)).astype(x.dtype)
    return jnp.where(bounds.free, v, 0), dv


def snap(
    x: Vector,
    gradient: Vector,
    squared_norms: Vector,
    bounds: Bounds,
    reach: Vector,
) -> Vector:
    """x with every parameter that has come to its bound put on it exactly.

    That is a parameter whose own minimum, x - g / |J_i|², lies beyond the bound, and
    whose distance from it is below `reach`.
    """
    curvature = jnp.where(squared_norms > 0, squared_norms, jnp.inf)
    reach = jnp.minimum(reach, jnp.abs(gradient) / curvature)
    at_lower = (gradient > 0) & (x - bounds.lower <= reach)
    at_upper = (gradient < 0) & (bounds.upper - x <= reach)
    return jnp.where(at_lower, bounds.lower, jnp.where(at_upper, bounds.upper, x))


def active_set(x: Vector, bounds: Bounds) -> Int[Array, "n *lanes"]:
    """-1 at a lower bound, 1 at an upper bound, 0 between."""
    at_upper = jnp.where(x >= bounds.upper, 1, 0)
    return jnp.where(x <= bounds.lower, -1, at_upper)


# The step


class Hat(NamedTuple):
    """The quadratic model gᵀp + pᵀB p / 2 in scaled variables, x = x_k + d p."""

    reduced: Reduced  # B = d JᵀJ d + C
    gradient: Vector  # g = d Jᵀr
    scaling: Vector  # d


def _distance_to_bound(x, step, bounds):
    """The largest t for which x + t step is within bounds, and which bounds it hits."""
    moving = step != 0
    divisor = jnp.where(moving, step, 1)
    distances = jnp.maximum((bounds.lower - x) / divisor, (bounds.upper - x) / divisor)
    distances = jnp.where(moving, distances, jnp.inf)
    nearest = least(distances)
    return nearest, (distances == nearest) & moving


class _Line(NamedTuple):
    """The model along o + t d, as q(o) + slope t + curvature t² / 2."""

    value: Scalar
    slope: Scalar
    curvature: Scalar

    def __call__(self, t: Scalar | float) -> Scalar:
        return self.value + t * (self.slope + 0.5 * t * self.curvature)

    def minimiser(self, low: Scalar, high: Scalar) -> Scalar:
        """The t in [low, high] at which the model is least."""
        curved = self.curvature > 0
        vertex = -self.slope / jnp.where(curved, self.curvature, 1)
        end = jnp.where(self.slope < 0, high, low)
        return jnp.where(curved, jnp.clip(vertex, low, high), end)


def select_step(
    x: Vector, step: Step, hat: Hat, radius: Scalar, theta: Scalar, bounds: Bounds
) -> Step:
    """The trust-region step p or, where it leaves the bounds, the best of three.

    They are p cut short of the bound it hits, p reflected at that bound, and the scaled
    gradient (sections 3 and 4 of the paper; strides as in SciPy's `trf`). All steps are
    in the scaled variables.
    """
    leaves = ~bounds.contains(x + hat.scaling * step.p)
    return branch(
        leaves,
        functools.partial(_best_of_three, bounds=bounds),
        lambda x, step, *_: step,
        *(x, step, hat, radius, theta),
    )


def _best_of_three(x, step, hat, radius, theta, bounds):
    d, p, g = hat.scaling, step.p, hat.gradient

    # p up to the bound, and reflected there
    stride, hits = _distance_to_bound(x, d * p, bounds)
    reflected = jnp.where(hits, -p, p)
    at_bound = stride * p
    a = inner(reflected, reflected)
    b = inner(at_bound, reflected)
    c = jnp.minimum(inner(at_bound, at_bound) - radius**2, 0)
    root = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
    q = -(b + jnp.where(b < 0, -root, root))
    to_radius = jnp.maximum(
        q / jnp.where(a > 0, a, 1), jnp.where(q != 0, c / jnp.where(q != 0, q, 1), 0)
    )
    to_bound, _ = _distance_to_bound(x + d * at_bound, d * reflected, bounds)
    reach = jnp.minimum(to_bound, to_radius)
    low = (1 - theta) * stride / jnp.where(reach > 0, reach, 1)
    high = jnp.where(reach == to_bound, theta * to_bound, to_radius)

    # the model along p, along its reflection, and down the scaled gradient
    images = hat.reduced.images(jnp.stack([at_bound, reflected, g], axis=1))
    along, on, down = images[:, 0], images[:, 1], images[:, 2]
    zero = jnp.zeros_like(stride)
    cut = _Line(zero, inner(at_bound, g), inner(at_bound, along))
    reflection = _Line(
        cut(1), inner(reflected, g) + inner(at_bound, on), inner(reflected, on)
    )
    descent = _Line(zero, -inner(g, g), inner(g, down))

    t = reflection.minimiser(low, high)
    possible = (reach > 0) & (low <= high)
    reflection_value = jnp.where(possible, reflection(t), jnp.inf)
    cut_value = cut(theta)
    length = norm(g)
    to_radius = radius / jnp.where(length > 0, length, 1)
    to_bound, _ = _distance_to_bound(x, -d * g, bounds)
    high = jnp.where(to_bound < to_radius, theta * to_bound, to_radius)
    s = descent.minimiser(zero, high)
    descent_value = descent(s)

    use_cut = (cut_value < reflection_value) & (cut_value < descent_value)
    use_reflection = (reflection_value < cut_value) & (reflection_value < descent_value)

    def chosen(cut, reflection, descent):
        return jnp.where(use_cut, cut, jnp.where(use_reflection, reflection, descent))

    p = chosen(theta * at_bound, at_bound + t * reflected, -s * g)
    value = chosen(cut_value, reflection_value, descent_value)
    return Step(p, step.alpha, -value, -inner(g, p), norm(p))
