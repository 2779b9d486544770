"""Decisions of the trust-region method: acceptance, radius, and when to stop.

The constants are those of `scipy.optimize.least_squares(method="trf")`, which follows
Branch, Coleman and Li (1999); what is done otherwise, and why, stands where it is done.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.bounds import Bounds, coleman_li
from jaxfit._core.options import Limits
from jaxfit._core.quadratic import Model
from jaxfit._core.solution import RUNNING, Status
from jaxfit._linalg.kernels import Scalar, Vector, add_diagonal, largest, norm, outer
from jaxfit._rows.linearization import Columns, Linearization


def hat_model(
    x: Vector,
    linearization: Linearization,
    columns: Columns,
    scale: Vector,
    bounds: Bounds | None,
) -> Model:
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
    return Model(
        matrix=add_diagonal(columns.hessian * outer(d, d), curvature),
        gradient=d * gradient,
        gram=linearization.gram,
        rhs=linearization.rhs,
        frame=linearization.frame,
        scaling=d,
        curvature=curvature,
        squared_norms=columns.squared_norms,
    )


def scaled_gradient_norm(x: Vector, gradient: Vector, bounds: Bounds | None) -> Scalar:
    """The largest component of the gradient, scaled by Coleman and Li; SciPy's test."""
    v = 1 if bounds is None else coleman_li(x, gradient, bounds)[0]
    return largest(jnp.abs(gradient * v))


def first_radius(x: Vector, d: Vector) -> Scalar:
    """The length of the start in the scaled variables, or 1."""
    movable = d > 0
    divisor = jnp.where(movable, d, 1)
    length = norm(jnp.where(movable, x / divisor, 0))
    return jnp.where(length > 0, length, 1)


def gain_ratio(gain: Scalar, predicted: Scalar) -> Scalar:
    """Actual over predicted reduction of the cost; NaN where it is not finite."""
    ratio = gain / jnp.where(predicted > 0, predicted, 1)
    ratio = jnp.where(predicted > 0, ratio, jnp.where(gain == predicted, 1, 0))
    return jnp.where(jnp.isfinite(gain), ratio, jnp.nan)


def shrinkage(gain: Scalar, slope: Scalar) -> Scalar:
    """By how much to shorten a step that gained too little: 0.3 to 0.6.

    The minimum of the parabola through both costs with the slope at the old point
    (Moré 1978, section 5, who cuts it to 0.1 and 0.5). SciPy always takes a quarter,
    which costs a third more evaluations in long curved valleys.
    """
    vertex = slope / (2 * jnp.where(slope > gain, slope - gain, 1))
    vertex = jnp.where(jnp.isfinite(gain) & (slope > gain), vertex, 0.25)
    return jnp.clip(vertex, 0.3, 0.6)


def update_radius(
    radius: Scalar, alpha: Scalar, ratio: Scalar, length: Scalar, shrinkage: Scalar
) -> tuple[Scalar, Scalar]:
    """The radius after a step was accepted, and the damping to try first in it.

    Args:
        ratio: of actual to predicted gain.
        length: of the step.
        shrinkage: of a step that gained too little.
    """
    longer = (ratio > 0.75) & (length > 0.95 * radius)
    new = jnp.where(longer, 2 * radius, radius)
    new = jnp.where(ratio >= 0.25, new, shrinkage * length)
    return new, alpha * (radius / jnp.where(new > 0, new, 1))


def stopping_tests(
    limits: Limits, point, step: Scalar, length: Scalar
) -> Int[Array, "*lanes"]:
    """The tests of `Options` at a point just accepted: a `Status`, or RUNNING.

    A Newton step that changes the model
    values by less than the rounding of x does can gain nothing. `step` is infinite if
    the point was not reached by an accepted step.
    """
    cost = point.linearization.cost
    gradient = (point.optimality <= limits.gtol) & (limits.gtol > 0)
    little = jnp.maximum(limits.ftol * cost, 0.5 * point.rounding**2)
    reduction = (point.hat.reduced.decrement <= little) & (limits.ftol > 0)
    short = (step <= limits.xtol * length) & (limits.xtol > 0)
    status = _first_of(
        (gradient, Status.GRADIENT),
        (reduction & short, Status.COST_AND_STEP),
        (reduction, Status.COST),
        (short, Status.STEP),
    )
    return status


def scipy_tests(
    limits: Limits,
    old,
    gradient_norm: Scalar,
    gain: Scalar,
    ratio: Scalar,
    step: Scalar,
) -> Int[Array, "*lanes"]:
    """The tests of `scipy.optimize.least_squares` after a trial: status or RUNNING."""
    gradient = gradient_norm < limits.gtol
    reduction = (gain < limits.ftol * old.linearization.cost) & (ratio > 0.25)
    short = step < limits.xtol * (limits.xtol + norm(old.x))
    return _first_of(
        (gradient, Status.GRADIENT),
        (reduction & short, Status.COST_AND_STEP),
        (reduction, Status.COST),
        (short, Status.STEP),
    )


def _first_of(*cases) -> Int[Array, "*lanes"]:
    status = jnp.asarray(RUNNING, jnp.int32)
    for condition, value in reversed(cases):
        status = jnp.where(condition, jnp.int32(value), status)
    return status
