"""What a trial decides: whether it is accepted, the region after it, and the status."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.certificate import INCOMPLETE, RUNNING, Status, least_square
from jaxfit._core.rules import (
    INSIDE,
    Region,
    Tried,
    after_refusal,
    after_step,
    first_radius,
    gain_ratio,
)
from jaxfit._core.setting import Setting
from jaxfit._core.state import Point, State
from jaxfit._linalg.branches import branch, choose
from jaxfit._linalg.inverse import is_lossy
from jaxfit._linalg.kernels import Flag, Scalar, inner, norm

# A step whose predicted gain is below so many units of rounding of the cost is wasted.
GAIN_ROUNDING = 4


# Accept


class Verdict(NamedTuple):
    """What becomes of a trial point."""

    is_first: Flag  # it is the start
    is_finite: Flag
    gain: Scalar  # NaN where it is not known
    noise: Scalar  # a gain below it is rounding
    accepted: Flag
    is_step: Flag  # it was reached by a step, which the start was not
    repeated: Flag  # evaluated again without a frame, which does not fit it
    wants_frame: Flag  # it may be accepted, and its model has lost digits
    stays: Flag  # where it is not accepted nothing changes: it was no step


def accept(setting: Setting, state: State, new: Point, resolved: Flag) -> Verdict:
    """Whether a trial point is accepted, refused, or evaluated again.

    Accepted is what lowers the cost; and what changes it by no more than rounding, if
    it is a Newton step after which another one promises less, or one that was cut
    short where what it promised was rounding too. NaN is refused, since every
    comparison with it is false.

    Args:
        new: the trial point, evaluated.
        resolved: the Jacobian's columns have digits in the frame in which it was taken.
    """
    trial, old = state.trial, state.point
    is_first, cost = state.nfev == 0, new.linearization.cost
    is_finite = jnp.isfinite(jnp.sum(new.linearization.normal, axis=(0, 1)) + cost)
    is_usable = is_finite & resolved
    is_known = is_usable | (trial.framed & jnp.isfinite(cost))
    old_cost = jnp.where(is_first, jnp.inf, old.linearization.cost)
    gain = jnp.where(is_known, old_cost - cost, jnp.nan)

    # a change that is rounding, by a Newton step or on the bounds at the end
    noise = setting.rules.noise(old)
    level = gain >= -noise
    is_newton = (trial.length < INSIDE * state.radius) | (trial.predicted <= noise)
    level = level & (state.finishing | is_newton)
    falls = new.model.reduced.decrement < old.model.reduced.decrement
    accepted = is_usable & ((gain > 0) | (level & (falls | state.finishing)))
    accepted = accepted & (new.certified | ~(state.finishing & old.certified))
    repeated = ~is_usable & ((gain > 0) | level)

    is_step, stays = ~is_first, repeated
    if state.search is not None:
        adopts, samples = state.search.adopts, state.search.samples
        accepted, is_step = (accepted | adopts) & ~samples, is_step & ~adopts
        stays = repeated | samples
    lossy = is_lossy(new.model.reduced.pivot)
    return Verdict(
        is_first=is_first,
        is_finite=is_finite,
        gain=gain,
        noise=noise,
        accepted=accepted,
        is_step=is_step,
        repeated=repeated,
        wants_frame=is_usable & ((gain > 0) | level) & lossy,
        stays=stays,
    )


# The region


class Stand(NamedTuple):
    """The place where a fit stands after a trial."""

    point: Point
    region: Region
    steps: Int[Array, "*lanes"]
    tested: Int[Array, "*lanes"]  # a status by the stopping tests, or RUNNING


def new_region(setting: Setting, state: State, new: Point, verdict: Verdict) -> Stand:
    """The point from which the fit goes on, and the region about it."""
    return branch(
        verdict.accepted,
        functools.partial(_moved, setting),
        functools.partial(_stayed, setting),
        state,
        new,
        verdict,
    )


def _moved(setting: Setting, state: State, new: Point, verdict: Verdict) -> Stand:
    """At the trial point, in a region as large as the quadratic was good."""
    trial, rules = state.trial, setting.rules
    gain = _gain_of_slopes(state, new, verdict)
    before = Region(state.radius, state.alpha)
    region = after_step(
        before,
        ratio=gain_ratio(gain, trial.predicted),
        length=trial.length,
        shrinkage=rules.shrinkage(gain, trial.slope),
        poor=setting.poor,
        good=rules.good,
    )
    radius = region.radius
    start = first_radius(new.x, new.model.scaling)
    _, tested = _tested(setting, state, new, verdict, accepted=True)
    counts = verdict.is_step & ~state.finishing
    return Stand(
        point=new,
        region=Region(
            radius=jnp.where(verdict.is_step, radius, start),
            alpha=jnp.where(verdict.is_step, region.alpha, 0),
        ),
        steps=jnp.where(counts, state.steps + 1, state.steps),
        tested=tested,
    )


def _gain_of_slopes(state: State, new: Point, verdict: Verdict) -> Scalar:
    """The gain; where the cost is too coarse for it, by the slopes at both ends.

    Where the curvature is twice that of the quadratic, every step goes as far beyond
    the minimum as it began before it. The cost hardly changes, and near the end not at
    all; that the slope along the step has changed its sign shows it. Half the
    difference of the slopes is the gain, since they change evenly along a short step.
    """
    uphill = inner(new.gradient, new.x - state.point.x)
    return jnp.where(
        verdict.gain > verdict.noise, verdict.gain, (state.trial.slope - uphill) / 2
    )


def _stayed(setting: Setting, state: State, new: Point, verdict: Verdict) -> Stand:
    """At the old point, in a smaller region; or unchanged, where there was no step."""
    trial, old, gain, rules = state.trial, state.point, verdict.gain, setting.rules
    before = Region(state.radius, state.alpha)
    radius = rules.shrinkage(gain, trial.slope) * trial.length
    region = after_refusal(before, gain, radius)
    tried, tested = _tested(setting, state, old, verdict, accepted=False)
    if rules.certifies:
        stalled = _is_hopeless(tried)
        tested = jnp.where(stalled, jnp.int32(Status.STALLED), tested)
    region, tested = choose(
        verdict.stays,
        (before, jnp.full_like(tested, RUNNING)),
        (region, tested),
    )
    return Stand(point=old, region=region, steps=state.steps, tested=tested)


def _tested(
    setting: Setting, state: State, point: Point, verdict: Verdict, accepted: bool
) -> tuple[Tried, Int[Array, "*lanes"]]:
    """What the stopping tests are about, and what they say of the point stood at."""
    rules = setting.rules
    tried = Tried(
        trial=state.trial,
        old=state.point,
        point=point,
        gain=verdict.gain,
        accepted=accepted,
        is_step=verdict.is_step,
        scale=setting.scale(point.largest_norms),
    )
    tested = rules.tests(setting.limits, setting.bounds, tried)
    if rules.certifies:
        tested = jnp.where(point.certified, tested, jnp.int32(RUNNING))
    return tried, tested


def _is_hopeless(tried: Tried) -> Flag:
    """Whether after a refused step a shorter one can gain nothing either.

    A solution whose cost has underflowed is as good as any.
    """
    trial, old = tried.trial, tried.old
    step, length = norm((trial.x - old.x) / tried.scale), norm(old.x / tried.scale)
    eps = jnp.finfo(step.dtype).eps
    wasted = trial.predicted <= GAIN_ROUNDING * eps * old.linearization.cost_scale
    wasted = wasted & jnp.isfinite(tried.gain)
    underflows = old.linearization.cost_scale < least_square(step.dtype)
    return wasted | (old.certified & underflows) | ~(step > 0.5 * eps * length)


# Judge


def judge(
    setting: Setting, state: State, verdict: Verdict, stand: Stand
) -> Int[Array, "*lanes"]:
    """The status after a trip.

    A success needs the certificate; a stalled fit that has it has succeeded.
    """
    status = jnp.where(verdict.repeated, jnp.int32(RUNNING), stand.tested)
    is_full = (status == RUNNING) & (state.nfev + 1 >= setting.limits.max_steps)
    status = jnp.where(is_full, jnp.int32(Status.MAX_STEPS), status)
    start_fails = verdict.is_first & ~verdict.is_finite
    status = jnp.where(start_fails, jnp.int32(Status.NONFINITE_START), status)
    status = jnp.where(state.finishing, state.status, status)
    if setting.rules.certifies:
        certified = stand.point.certified
        lost = (status > 0) & (status != RUNNING) & ~certified
        # what a wall hides from the whole information, the limited one has seen
        before = state.point.certified | ~jnp.asarray(
            state.point.linearization.is_limited
        )
        unhidden = ~state.finishing | before
        won = (status == jnp.int32(Status.STALLED)) & certified & unhidden
        status = jnp.where(lost, jnp.int32(Status.STALLED), status)
        status = jnp.where(won, jnp.int32(Status.STEP), status)
    if setting.is_lean:
        status = jnp.where(verdict.wants_frame, jnp.int32(INCOMPLETE), status)
    return status
