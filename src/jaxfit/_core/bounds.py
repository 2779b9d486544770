"""Bounds: the scaled quadratic, the three candidate steps, and the interior.

Branch, Coleman and Li, "A subspace, interior, and conjugate gradient method for
large-scale bound-constrained minimization problems", SIAM J. Sci. Comput. 21 (1999), as
SciPy's `trf` has it. Every function here is exact for infinite bounds. Equal bounds fix
a parameter.

**What is solved.** At a minimum of F inside l <= x <= u each component of the gradient
g is zero, or x_i lies on the bound towards which -g_i points. With v_i the distance to
that bound, and 1 where there is none,

    v_i = u_i - x_i  if g_i < 0 and u_i is finite
          x_i - l_i  if g_i > 0 and l_i is finite
          1          else

both cases are one equation, diag(v) g = 0 (eq. 2.2 and 2.3). Newton's method for it has
the matrix diag(v) H + diag(g_i v'_i), with v'_i = -1, 1, 0 in the three cases. Since
g_i v'_i = |g_i| where there is a bound ahead, and 0 elsewhere, this becomes symmetric
in the variables p with x = x_k + D p, D = diag(v)^(1/2):

    B_h = D H D + C,    g_h = D g,    C = diag(g_i v'_i)                      (eq. 2.8)

H is JᵀJ, so that B_h is positive semidefinite, and a parameter near its bound has a
short D: the region |p| <= radius is an ellipsoid that is flat towards the bounds. Our D
also holds the sizes s of the parameters, D_i = s_i (v_i / s_i)^(1/2) where a bound is
ahead and s_i elsewhere, and then C_i = g_i v'_i s_i. A bound so far away that a step of
the scale is rounding beside the way to it, v_i > s_i / eps, counts as none.

**The step.** p minimises q(p) = g_hᵀ p + pᵀ B_h p / 2 in the region (`quadratic.py`).
If x_k + D p lies inside, that is the step. Otherwise it is the best, by q, of three
(section 3; the strides are SciPy's):

    cut         along p, to theta of the way to the bound that it hits first
    reflected   to that bound, and on along p with that component turned round, as far
                as the region, theta of the way to the next bound, or the minimum of q
    descent     down the scaled gradient -g_h, likewise

theta = max(0.995, 1 - optimality) keeps the step off the bound, and lets it come nearer
as the fit converges, which makes the end quadratic (section 4).

**The radius** changes by the ratio of the reduction of F to that of q: `rules.py`.

**What is otherwise than in SciPy.** A parameter that comes within rounding of its bound
is put on it (`stay_inside`), where v_i = 0 holds it until the gradient turns, and what
has come near is put on it exactly at the end (`snap`), so that `active` is a fact and
not a tolerance. A far bound counts as none, and equal bounds fix a parameter, which
SciPy refuses. By our `Rules`, but not by SciPy's, the optimality in theta is the cosine
between residuals and columns, which has no unit, and a step may end on a bound.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.quadratic import Quadratic, Reduced, TrustRegionStep
from jaxfit._linalg.branches import branch
from jaxfit._linalg.kernels import (
    Flag,
    Flags,
    Scalar,
    Vector,
    add_diagonal,
    every,
    inner,
    largest,
    least,
    norm,
    outer,
)
from jaxfit._linalg.precision import precision_of
from jaxfit._rows.linearization import Columns, Linearization


class Faces(NamedTuple):
    """The parameters that are held by a bound; a fixed one is by its lower."""

    lower: Flags
    upper: Flags

    @property
    def free(self) -> Flags:
        """Those that are not held."""
        return ~(self.lower | self.upper)


class Bounds(NamedTuple):
    """Lower and upper bounds of the flat parameters."""

    lower: Vector
    upper: Vector

    @property
    def free(self) -> Flags:
        """Parameters that may move."""
        return self.lower < self.upper

    def contains(self, x: Vector) -> Flag:
        """Whether x lies within the bounds; False for NaN."""
        return every((x >= self.lower) & (x <= self.upper))

    def faces(self, x: Vector, slope: Vector) -> "Faces":
        """The bounds that hold a parameter: it lies there, and the slope pushes out."""
        at_lower = ~self.free | ((x <= self.lower) & (slope > 0))
        return Faces(at_lower, ~at_lower & (x >= self.upper) & (slope < 0))

    def project(self, x: Vector) -> Vector:
        """The nearest point within the bounds."""
        return jnp.clip(x, self.lower, self.upper)


def start_inside(x: Vector, bounds: Bounds) -> Vector:
    """Move a start off its bounds, by 1e-10 max(1, |bound|) in float64 (as SciPy)."""
    step = precision_of(x.dtype).inside
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


# The scaled quadratic


class ScaledModel(NamedTuple):
    """The quadratic model gᵀp + pᵀB p / 2 in scaled variables, x = x_k + d p."""

    reduced: Reduced  # B = d JᵀJ d + C
    gradient: Vector  # g = d Jᵀr
    scaling: Vector  # d


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


def scaled_quadratic(
    x: Vector,
    linearization: Linearization,
    columns: Columns,
    scale: Vector,
    bounds: Bounds | None,
) -> Quadratic:
    """The Gauss-Newton model in Coleman-Li variables (Branch, Coleman, Li, eq. 2.8).

    First the parameters are scaled, then the distance to the bounds is, both in
    x = x_k + d p. A fixed parameter has d = 0 and a unit diagonal. A bound so far away
    that a step of the scale is rounding beside the way to it counts as none: d would
    leave the other parameters no digits, or overflow.
    """
    gradient = columns.gradient
    d, curvature = jnp.broadcast_to(scale, x.shape), jnp.zeros_like(x)
    if bounds is not None:
        v, dv = coleman_li(x, gradient, bounds)
        far = v > scale / jnp.finfo(x.dtype).eps
        v, dv = jnp.where(far, 1, v), jnp.where(far, 0, dv)
        d = jnp.sqrt(jnp.where(dv != 0, v / scale, v)) * scale
        curvature = jnp.where(bounds.free, gradient * dv * scale, 1)
    return Quadratic(
        matrix=add_diagonal(columns.hessian * outer(d, d), curvature),
        gradient=d * gradient,
        gram=linearization.gram,
        rhs=linearization.rhs,
        frame=linearization.frame,
        scaling=d,
        curvature=curvature,
        squared_norms=columns.squared_norms,
        free=None if bounds is None else bounds.free,
    )


def scaled_gradient_norm(x: Vector, gradient: Vector, bounds: Bounds | None) -> Scalar:
    """The largest component of the gradient, scaled by Coleman and Li; SciPy's test."""
    v = 1 if bounds is None else coleman_li(x, gradient, bounds)[0]
    return largest(jnp.abs(gradient * v))


# The step


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


class _Candidate(NamedTuple):
    """A step inside the bounds, and the value of the model there."""

    p: Vector
    value: Scalar


def select_step(
    x: Vector,
    step: TrustRegionStep,
    model: ScaledModel,
    radius: Scalar,
    theta: Scalar,
    bounds: Bounds,
) -> TrustRegionStep:
    """The trust-region step p or, where it leaves the bounds, the best of three.

    They are p cut short of the bound it hits, p reflected at that bound, and the scaled
    gradient (see the head of this file). All steps are in the scaled variables.
    """
    leaves = ~bounds.contains(x + model.scaling * step.p)
    return branch(
        leaves,
        functools.partial(_best_of_three, bounds=bounds),
        lambda x, step, *_: step,
        x,
        step,
        model,
        radius,
        theta,
    )


def _best_of_three(
    x: Vector,
    step: TrustRegionStep,
    model: ScaledModel,
    radius: Scalar,
    theta: Scalar,
    bounds: Bounds,
) -> TrustRegionStep:
    d, g = model.scaling, model.gradient
    stride, hits = _distance_to_bound(x, d * step.p, bounds)
    at_bound = stride * step.p
    turned = jnp.where(hits, -step.p, step.p)

    # the model along p, along its reflection, and down the scaled gradient
    images = model.reduced.images(jnp.stack([at_bound, turned, g], axis=1))
    zero = jnp.zeros_like(stride)
    along = _Line(zero, inner(at_bound, g), inner(at_bound, images[:, 0]))
    beyond = _Line(
        value=along(1),
        slope=inner(turned, g) + inner(at_bound, images[:, 1]),
        curvature=inner(turned, images[:, 1]),
    )
    down = _Line(zero, -inner(g, g), inner(g, images[:, 2]))

    cut = _Candidate(theta * at_bound, along(theta))
    limits = _reflected_limits(x, stride, at_bound, turned, d, radius, theta, bounds)
    reflected = _reflected(at_bound, turned, beyond, limits)
    descent = _descent(x, g, down, d, radius, theta, bounds)

    use_cut = (cut.value < reflected.value) & (cut.value < descent.value)
    use_reflected = (reflected.value < cut.value) & (reflected.value < descent.value)
    p, value = (
        jnp.where(use_cut, a, jnp.where(use_reflected, b, c))
        for a, b, c in zip(cut, reflected, descent, strict=True)
    )
    return TrustRegionStep(
        p=p, alpha=step.alpha, predicted=-value, slope=-inner(g, p), length=norm(p)
    )


class _Limits(NamedTuple):
    """How far a reflected step goes beyond the bound, in units of itself."""

    low: Scalar
    high: Scalar
    possible: Flag


def _reflected_limits(
    x: Vector,
    stride: Scalar,
    at_bound: Vector,
    turned: Vector,
    scaling: Vector,
    radius: Scalar,
    theta: Scalar,
    bounds: Bounds,
) -> _Limits:
    """To the edge of the region, or theta of the way to the next bound."""
    # |at_bound + t turned|² = radius², the root without cancellation
    a = inner(turned, turned)
    b = inner(at_bound, turned)
    c = jnp.minimum(inner(at_bound, at_bound) - radius**2, 0)
    root = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
    q = -(b + jnp.where(b < 0, -root, root))
    other = jnp.where(q != 0, c / jnp.where(q != 0, q, 1), 0)
    to_radius = jnp.maximum(q / jnp.where(a > 0, a, 1), other)
    to_bound, _ = _distance_to_bound(x + scaling * at_bound, scaling * turned, bounds)
    reach = jnp.minimum(to_bound, to_radius)
    low = (1 - theta) * stride / jnp.where(reach > 0, reach, 1)
    high = jnp.where(reach == to_bound, theta * to_bound, to_radius)
    return _Limits(low, high, (reach > 0) & (low <= high))


def _reflected(
    at_bound: Vector, turned: Vector, line: _Line, limits: _Limits
) -> _Candidate:
    """To the bound, and from there along the reflection to the model's minimum."""
    t = line.minimiser(limits.low, limits.high)
    value = jnp.where(limits.possible, line(t), jnp.inf)
    return _Candidate(at_bound + t * turned, value)


def _descent(
    x: Vector,
    gradient: Vector,
    line: _Line,
    scaling: Vector,
    radius: Scalar,
    theta: Scalar,
    bounds: Bounds,
) -> _Candidate:
    """Down the scaled gradient to the model's minimum."""
    length = norm(gradient)
    to_radius = radius / jnp.where(length > 0, length, 1)
    to_bound, _ = _distance_to_bound(x, -scaling * gradient, bounds)
    high = jnp.where(to_bound < to_radius, theta * to_bound, to_radius)
    t = line.minimiser(jnp.zeros_like(high), high)
    return _Candidate(-t * gradient, line(t))


def _distance_to_bound(x: Vector, step: Vector, bounds: Bounds) -> tuple[Scalar, Flags]:
    """The largest t for which x + t step is within bounds, and which bounds it hits."""
    moving = step != 0
    divisor = jnp.where(moving, step, 1)
    distances = jnp.maximum((bounds.lower - x) / divisor, (bounds.upper - x) / divisor)
    distances = jnp.where(moving, distances, jnp.inf)
    nearest = least(distances)
    return nearest, (distances == nearest) & moving
