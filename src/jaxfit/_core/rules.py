"""The rules of a fit: how its region grows and shrinks, and when it ends.

The constants are those of `scipy.optimize.least_squares(method="trf")`, which follows
Branch, Coleman and Li (1999). Where SciPy and we do not agree, a `Rules` says which it
is: see the three of them at the end.

    ratio = (cost before - cost after) / (reduction that the quadratic promised)

                                      SciPy    ours
    ratio <, step inside              0.25     0.25    radius <- shrinkage · |step|
    ratio <, step at the edge         0.25     0.05    the same
    ratio >, step at the edge         0.75     0.9     radius <- 2 · radius
    else                                               radius stays
    shrinkage                         0.25     0.4 to 0.6, by a parabola

(Moré 1978 has the same shape with other numbers.) Which steps are accepted, `accept` in
`decisions.py` says: SciPy's are all that lower the cost at all.

Our numbers are for canyons: long curved valleys of the cost. Along one the quadratic
errs by the fourth power of the step (half the curvature of the valley, squared), so
that of all lengths the one that gains most has a ratio of about 3/4. A step of that
ratio is to be repeated as it is. If it is doubled, it is refused, and every second
evaluation is lost; and what is shortened to a third after a refusal, or after a step
that gained less than a quarter, goes too slowly from then on. (Where the residuals may
have kinks such a step is shortened here too: along a kink it would go on for ever, from
one side to the other.)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.bounds import Bounds, scaled_gradient_norm
from jaxfit._core.certificate import RUNNING, Status
from jaxfit._core.options import Limits
from jaxfit._core.state import Point, Trial
from jaxfit._linalg.kernels import Flag, Scalar, Vector, first_of, norm
from jaxfit._rows.linearization import Linearization, cost_rounding

# A step shorter than this part of the radius is a Newton step.
INSIDE = 0.95

POOR = 0.25  # a step with less of the reduction that was promised gained too little

# The region


def first_radius(x: Vector, scaling: Vector) -> Scalar:
    """The length of the start in the scaled variables, or 1."""
    movable = scaling > 0
    divisor = jnp.where(movable, scaling, 1)
    length = norm(jnp.where(movable, x / divisor, 0))
    return jnp.where(length > 0, length, 1)


def gain_ratio(gain: Scalar, predicted: Scalar) -> Scalar:
    """Actual over predicted reduction of the cost; NaN where it is not finite."""
    ratio = gain / jnp.where(predicted > 0, predicted, 1)
    ratio = jnp.where(predicted > 0, ratio, jnp.where(gain == predicted, 1, 0))
    return jnp.where(jnp.isfinite(gain), ratio, jnp.nan)


def by_parabola(gain: Scalar, slope: Scalar) -> Scalar:
    """The factor that shortens a step which gained too little: 0.4 to 0.6.

    The minimum of the parabola through both costs with the slope at the old point
    (Moré 1978, section 5, who cuts it to 0.1 and 0.5). SciPy always takes a quarter.
    """
    least, most = 0.4, 0.6
    vertex = slope / (2 * jnp.where(slope > gain, slope - gain, 1))
    vertex = jnp.where(jnp.isfinite(gain) & (slope > gain), vertex, least)
    return jnp.clip(vertex, least, most)


def by_a_quarter(gain: Scalar, slope: Scalar) -> float:
    """The factor by which SciPy shortens such a step."""
    return 0.25


class Region(NamedTuple):
    """The trust region, and the damping to try first in it."""

    radius: Scalar
    alpha: Scalar


def after_step(
    region: Region,
    ratio: Scalar,
    length: Scalar,
    shrinkage: Scalar | float,
    poor: Scalar | float,
    good: float,
) -> Region:
    """The region after a step was accepted.

    Args:
        ratio: of actual to predicted gain.
        length: of the step.
        shrinkage: of a step that gained too little.
        poor: the ratio below which a step at the edge makes the region smaller.
        good: the ratio above which it makes the region larger.
    """
    radius = region.radius
    at_edge = length > INSIDE * radius
    new = jnp.where(at_edge & (ratio > good), 2 * radius, radius)
    is_enough = ratio >= jnp.where(at_edge, poor, POOR)
    new = jnp.where(is_enough, new, shrinkage * length)
    return Region(new, region.alpha * (radius / jnp.where(new > 0, new, 1)))


def after_refusal(region: Region, gain: Scalar, radius: Scalar) -> Region:
    """The region, with this radius, after a step was refused."""
    alpha = region.alpha * (region.radius / jnp.where(radius > 0, radius, 1))
    return Region(radius, jnp.where(jnp.isfinite(gain), alpha, region.alpha))


# When a change of cost is rounding


def cost_noise(point: Point) -> Scalar:
    """A change of cost that is rounding: whether the Newton decrement falls decides.

    The cost cannot resolve the last half of the digits of x; the gradient can.
    """
    size = jnp.sqrt(point.linearization.squared_residual)
    return cost_rounding(point.linearization) + size * point.rounding


def no_noise(point: Point) -> Scalar:
    """No noise: every rise of the cost is one."""
    return jnp.asarray(-jnp.inf, point.x.dtype)


# When to stop


class Tried(NamedTuple):
    """A trial that was accepted or refused."""

    trial: Trial
    old: Point  # where the fit stood before
    point: Point  # where it stands now: the trial point, or the old one
    gain: Scalar  # NaN where it is not known
    accepted: bool
    is_step: Flag  # the trial point was reached by a step
    scale: Vector  # of the parameters


def our_tests(
    limits: Limits, bounds: Bounds | None, tried: Tried
) -> Int[Array, "*lanes"]:
    """The tests of `Options` at a point just accepted: a `Status`, or RUNNING.

    A Newton step that changes the model values by less than the rounding of x does can
    gain nothing. A refused step tells nothing.
    """
    point = tried.point
    if not tried.accepted:
        return jnp.full_like(point.certified, RUNNING, jnp.int32)
    step = norm((point.x - tried.old.x) / tried.scale)
    step = jnp.where(tried.is_step, step, jnp.inf)
    length = norm(point.x / tried.scale)
    little = limits.ftol * point.linearization.cost_scale
    little = jnp.maximum(little, 0.5 * point.rounding**2)
    return _status_of(
        gradient=(point.optimality <= limits.gtol) & (limits.gtol > 0),
        reduction=(point.model.reduced.decrement <= little) & (limits.ftol > 0),
        short=(step <= limits.xtol * length) & (limits.xtol > 0),
    )


def scipy_tests(
    limits: Limits, bounds: Bounds | None, tried: Tried
) -> Int[Array, "*lanes"]:
    """SciPy's tests (`least_squares`) after a trial, accepted or refused."""
    old, point, gain = tried.old, tried.point, tried.gain
    ratio = gain_ratio(gain, tried.trial.predicted)
    step = norm(tried.trial.x - old.x)
    step = jnp.where(jnp.isfinite(gain), step, jnp.inf)
    gradient = scaled_gradient_norm(point.x, point.gradient, bounds)
    return _status_of(
        gradient=gradient < limits.gtol,
        reduction=(gain < limits.ftol * old.linearization.cost_scale) & (ratio > 0.25),
        short=step < limits.xtol * (limits.xtol + norm(old.x)),
    )


def _status_of(gradient: Flag, reduction: Flag, short: Flag) -> Int[Array, "*lanes"]:
    return first_of(
        (gradient, Status.GRADIENT),
        (reduction & short, Status.COST_AND_STEP),
        (reduction, Status.COST),
        (short, Status.STEP),
        otherwise=RUNNING,
    )


# What is reported as optimality


def cosine(
    x: Vector,
    gradient: Vector,
    linearization: Linearization,
    projected: Scalar,
    bounds: Bounds | None,
) -> Scalar:
    """The cosine between residuals and Jacobian columns, projected at bounds."""
    size = jnp.sqrt(linearization.squared_scale)
    return projected / jnp.where(size > 0, size, 1)


def scaled_gradient(
    x: Vector,
    gradient: Vector,
    linearization: Linearization,
    projected: Scalar,
    bounds: Bounds | None,
) -> Scalar:
    """SciPy's optimality: the gradient, scaled by the distance to the bound ahead."""
    return scaled_gradient_norm(x, gradient, bounds)


# The three sets of rules


class Rules(NamedTuple):
    """What a fit does where SciPy and we do not agree."""

    poor: float  # `POOR` of a step at the edge, where the residuals have no kink
    good: float  # the ratio above which a step at the edge makes the region larger
    shrinkage: Callable  # (gain, slope) -> of a step that gained too little
    noise: Callable  # a point -> how large a rise of the cost may be rounding
    tests: Callable  # (limits, bounds, tried) -> a status, or RUNNING
    optimality: Callable  # what is reported of a point
    certifies: bool  # a success is certified, after a last trip on its bounds
    strictly_inside: bool  # parameters stay off their bounds, at the next number


OURS = Rules(
    poor=0.05,
    good=0.9,
    shrinkage=by_parabola,
    noise=cost_noise,
    tests=our_tests,
    optimality=cosine,
    certifies=True,
    strictly_inside=False,
)

# `curve_fit` with a tolerance: SciPy's meaning of it, on our path, certified.
SCIPY_TESTS = OURS._replace(tests=scipy_tests)

# `least_squares`: SciPy's path and end.
SCIPY = Rules(
    poor=POOR,
    good=0.75,
    shrinkage=by_a_quarter,
    noise=no_noise,
    tests=scipy_tests,
    optimality=scaled_gradient,
    certifies=False,
    strictly_inside=True,
)
