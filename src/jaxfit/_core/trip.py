"""One trip of the loop: evaluate a trial point and decide all that follows from it.

    linearize -> accept -> new_region -> judge -> propose

    accept      whether the trial point is better than the point where the fit stands
    new_region  where it stands now, and how far its quadratic may be trusted
    judge       whether it has ended, and how: a success needs the certificate
    propose     the next trial point, the minimum of the quadratic inside the region

The start is the first trial point, accepted because the cost before it is infinite.
When a stopping test has passed, a last trip may visit the same solution with parameters
put exactly on their bounds, and in a frame in which an ill-conditioned Jacobian keeps
its digits. A point that would be accepted, and whose Jacobian the frame of the point
before does not fit, is evaluated again without a frame: nothing is decided by what is
rounding.

The quadratic, the region and the step inside of bounds are derived in `bounds.py`; what
SciPy does otherwise stands in `rules.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.bounds import (
    Bounds,
    ScaledModel,
    scaled_quadratic,
    select_step,
    snap,
    stay_inside,
)
from jaxfit._core.certificate import (
    INCOMPLETE,
    RUNNING,
    Status,
    is_certified,
    model_rounding,
    projected_gradient,
)
from jaxfit._core.kink import Turn, searched
from jaxfit._core.quadratic import reduce_quadratic, trust_region_step
from jaxfit._core.rules import (
    Region,
    Tried,
    after_refusal,
    after_step,
    first_radius,
    gain_ratio,
)
from jaxfit._core.setting import Setting
from jaxfit._core.state import Point, State, Trial
from jaxfit._linalg.branches import (
    batched_in_lanes,
    branch,
    choose,
    for_each,
    varying_with,
)
from jaxfit._linalg.inverse import is_lossy
from jaxfit._linalg.kernels import Flag, Scalar, Vector, identity, is_lanes, norm, some
from jaxfit._linalg.precision import precision_of
from jaxfit._programs.one_function import one_function
from jaxfit._rows.linearization import Columns, Frame, Linearization, columns_of

# A parameter nearer to its bound than this times |r| / |J_i|, with the largest |J_i| so
# far, is put on it at the end.
SNAP_REACH = 1e-4

# A step shorter than this part of the radius is a Newton step.
INSIDE = 0.95

# A step whose predicted gain is below so many units of rounding of the cost is wasted.
GAIN_ROUNDING = 4


def trip(linearize: Callable, setting: Setting, state: State) -> State:
    """Evaluate one trial point and decide all that follows from it.

    Args:
        linearize: (x, frame) -> `Linearization`.
        setting: what does not change.
        state: of one fit, or of lanes of fits.
    """
    frame = no_frame(state.trial.x) if setting.is_lean else frame_of(state)
    return decide(setting, state, linearize(state.trial.x, frame))


def frame_of(state: State) -> Frame:
    """The directions in which the trial point is to be differentiated."""
    return _frame(state.point.model.reduced.frame, state.trial.framed)


def no_frame(x: Vector) -> Frame:
    """Those of the parameters."""
    eye = varying_with(identity(x), x)
    return Frame(eye, eye)


@batched_in_lanes
def _frame(frame: Frame, needed: Flag) -> Frame:
    return choose(needed, frame, no_frame(frame.inverse[0]))


@batched_in_lanes
def decide(setting: Setting, state: State, linearization: Linearization) -> State:
    """All of a trip that follows from the linearization at the trial point."""
    if setting.in_one_function and not is_lanes(state.trial.x):
        operands = setting, state, linearization
        return one_function(lambda operands: _decide(*operands), operands)
    return _decide(setting, state, linearization)


def _decide(setting: Setting, state: State, sample: Linearization) -> State:
    search = state.search
    if search is None:
        linearization, columns = sample, columns_of(sample)
    else:
        linearization, columns = search.seen(sample, state.point)
    start_cost = jnp.where(state.nfev == 0, linearization.cost, state.start_cost)
    new = evaluated(setting, state, linearization, columns, start_cost)
    new = varying_with(new, state.trial.x)

    verdict = accept(setting, state, new, columns.resolved)
    stand = new_region(setting, state, new, verdict)
    status = judge(setting, state, verdict, stand)
    following = propose(setting, state, verdict, stand, status)

    after = State(
        trial=following.trial,
        radius=stand.region.radius,
        alpha=following.alpha,
        nfev=state.nfev + 1,
        finishing=following.finishing,
        point=stand.point,
        steps=stand.steps,
        search=search,
        status=status,
        start_cost=start_cost,
    )
    return after if search is None else _search(setting, state, after, sample)


def evaluated(
    setting: Setting,
    state: State,
    linearization: Linearization,
    columns: Columns,
    start_cost: Scalar,
) -> Point:
    """The trial point with its model, its optimality and its certificate."""
    x, bounds = state.trial.x, setting.bounds
    squared = columns.squared_norms
    largest_norms = jnp.maximum(state.point.largest_norms, squared)
    scale = setting.scale(largest_norms)
    quadratic = scaled_quadratic(x, linearization, columns, scale, bounds)
    projected = projected_gradient(x, columns, linearization, bounds)
    rounding = model_rounding(x, squared)
    return Point(
        x=x,
        linearization=linearization,
        gradient=columns.gradient,
        squared_norms=squared,
        largest_norms=largest_norms,
        model=ScaledModel(
            reduced=reduce_quadratic(quadratic, setting.is_lean),
            gradient=quadratic.gradient,
            scaling=quadratic.scaling,
        ),
        optimality=setting.rules.optimality(
            x, columns.gradient, linearization, projected, bounds
        ),
        certified=is_certified(
            x, linearization, projected, rounding, start_cost, bounds
        ),
        rounding=rounding,
    )


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
    it is a Newton step after which another one promises less. NaN is refused, since
    every comparison with it is false.

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
    level = level & (state.finishing | (trial.length < INSIDE * state.radius))
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
    """Where a fit stands after a trial."""

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
        *(state, new, verdict),
    )


def _moved(setting: Setting, state: State, new: Point, verdict: Verdict) -> Stand:
    """At the trial point, in a region as large as the quadratic was good."""
    trial, gain, rules = state.trial, verdict.gain, setting.rules
    before = Region(state.radius, state.alpha)
    region = after_step(
        before,
        ratio=gain_ratio(gain, trial.predicted),
        length=trial.length,
        shrinkage=rules.shrinkage(gain, trial.slope),
    )
    # no region is made smaller for what is rounding
    larger = jnp.maximum(region.radius, state.radius)
    radius = jnp.where(gain > verdict.noise, region.radius, larger)
    start = first_radius(new.x, new.model.scaling)
    tried = Tried(
        trial=trial,
        old=state.point,
        point=new,
        gain=gain,
        accepted=True,
        is_step=verdict.is_step,
        scale=setting.scale(new.largest_norms),
    )
    tested = rules.tests(setting.limits, setting.bounds, tried)
    if rules.certifies:
        tested = jnp.where(new.certified, tested, jnp.int32(RUNNING))
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


def _stayed(setting: Setting, state: State, new: Point, verdict: Verdict) -> Stand:
    """At the old point, in a smaller region; or unchanged, where there was no step."""
    trial, old, gain, rules = state.trial, state.point, verdict.gain, setting.rules
    before = Region(state.radius, state.alpha)
    radius = rules.shrinkage(gain, trial.slope) * trial.length
    region = after_refusal(before, gain, radius)
    tried = Tried(
        trial=trial,
        old=old,
        point=old,
        gain=gain,
        accepted=False,
        is_step=verdict.is_step,
        scale=setting.scale(old.largest_norms),
    )
    tested = rules.tests(setting.limits, setting.bounds, tried)
    if rules.certifies:
        tested = jnp.where(old.certified, tested, jnp.int32(RUNNING))
        stalled = _is_hopeless(tried)
        tested = jnp.where(stalled, jnp.int32(Status.STALLED), tested)
    region, tested = choose(
        verdict.stays,
        (before, jnp.full_like(tested, RUNNING)),
        (region, tested),
    )
    return Stand(point=old, region=region, steps=state.steps, tested=tested)


def _is_hopeless(tried: Tried) -> Flag:
    """Whether after a refused step a shorter one can gain nothing either."""
    trial, old = tried.trial, tried.old
    step, length = norm((trial.x - old.x) / tried.scale), norm(old.x / tried.scale)
    eps = jnp.finfo(step.dtype).eps
    wasted = trial.predicted <= GAIN_ROUNDING * eps * old.linearization.cost
    return (wasted & jnp.isfinite(tried.gain)) | ~(step > 0.5 * eps * length)


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
        won = (status == jnp.int32(Status.STALLED)) & certified
        status = jnp.where(lost, jnp.int32(Status.STALLED), status)
        status = jnp.where(won, jnp.int32(Status.STEP), status)
    if setting.is_lean:
        status = jnp.where(verdict.wants_frame, jnp.int32(INCOMPLETE), status)
    return status


# Propose


class Following(NamedTuple):
    """Where the next trip goes, and whether it is the last."""

    trial: Trial
    alpha: Scalar
    finishing: Flag


def propose(
    setting: Setting,
    state: State,
    verdict: Verdict,
    stand: Stand,
    status: Int[Array, "*lanes"],
) -> Following:
    """The next trial point: a step, the same point again, or the last one."""
    go_on = functools.partial(_go_on, setting)
    if setting.is_lean:
        return go_on(state, stand, status)
    goes_on = (status == RUNNING) | state.finishing
    return branch(verdict.repeated & goes_on, _repeat, go_on, state, stand, status)


def _repeat(state: State, stand: Stand, status: Int[Array, "*lanes"]) -> Following:
    """The same point once more, without a frame."""
    trial = dataclasses.replace(state.trial, framed=jnp.zeros_like(state.finishing))
    return Following(trial, state.alpha, state.finishing)


def _go_on(
    setting: Setting, state: State, stand: Stand, status: Int[Array, "*lanes"]
) -> Following:
    """A step, or the end."""
    return branch(
        status == RUNNING,
        functools.partial(_step, setting),
        functools.partial(_finish, setting),
        *(state, stand, status),
    )


def _step(
    setting: Setting, state: State, stand: Stand, status: Int[Array, "*lanes"]
) -> Following:
    """The minimum of the quadratic in its region and inside the bounds."""
    point, radius, bounds = stand.point, stand.region.radius, setting.bounds
    model = point.model
    step = trust_region_step(model.reduced, radius, stand.region.alpha)
    if bounds is not None:
        theta = jnp.maximum(0.995, 1 - point.optimality)
        step = select_step(point.x, step, model, radius, theta, bounds)
    x = point.x + model.scaling * step.p
    if bounds is not None:
        x = stay_inside(x, bounds, strictly=setting.rules.strictly_inside)
    trial = Trial(
        x=x,
        framed=~(model.reduced.pivot >= precision_of(x.dtype).step_pivot),
        predicted=step.predicted,
        slope=step.slope,
        length=step.length,
    )
    return Following(trial, step.alpha, jnp.zeros_like(trial.framed))


def _finish(
    setting: Setting, state: State, stand: Stand, status: Int[Array, "*lanes"]
) -> Following:
    """After the last step: the same point on its bounds and with all its digits.

    A last trip goes there if that is another point, or if the Gram matrix has lost
    digits of the covariance.
    """
    point, bounds = stand.point, setting.bounds
    if not setting.rules.certifies:
        ended = jnp.zeros_like(state.finishing)
        return Following(state.trial, stand.region.alpha, ended)
    x, linearization = point.x, point.linearization
    lossy = is_lossy(point.model.reduced.pivot)
    is_useful = lossy & ~linearization.framed
    if bounds is not None:
        reach = SNAP_REACH * jnp.sqrt(linearization.squared_residual)
        largest_norms = jnp.sqrt(point.largest_norms)
        reach = jnp.where(largest_norms > 0, reach / largest_norms, 0)
        x = snap(x, point.gradient, point.squared_norms, bounds, reach)
        is_useful = is_useful | some(x != point.x)
    ended = (status > 0) | (status == jnp.int32(Status.STALLED))
    finishing = ended & ~state.finishing & is_useful
    trial = dataclasses.replace(state.trial, x=x, framed=finishing & lossy)
    return Following(trial, stand.region.alpha, finishing)


# On a kink


def _search(
    setting: Setting, before: State, after: State, sample: Linearization
) -> State:
    """What follows where a fit has stalled, as it does on a kink."""
    assert before.search is not None
    bounds = setting.bounds
    if bounds is not None:
        bounds = Bounds(*(jnp.broadcast_to(b, after.trial.x.shape) for b in bounds))
    turn = branch(
        before.search.is_wanted(after.status, after.finishing),
        for_each(searched, is_lanes(after.trial.x)),
        lambda bounds, before, after, sample: Turn.of(after),
        *(bounds, before, after, sample),
    )
    return dataclasses.replace(after, **turn._asdict())
