"""One trip of the loop: evaluate a trial point and decide all that follows from it.

    linearize -> accept or refuse -> radius -> stopping tests -> propose

The state between two trips is one immutable pytree. The start is the first trial point,
accepted because the cost before it is infinite. When a stopping test has passed, a last
trip may visit the same solution with parameters put exactly on their bounds, and in a
frame in which an ill-conditioned Jacobian keeps its digits. A point that would be
accepted, and whose Jacobian the frame of the point before does not fit, is evaluated
again without a frame: nothing is decided by what is rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core import bounds as _bounds
from jaxfit._core import rules as _trust_region
from jaxfit._core.bounds import Bounds, Hat
from jaxfit._core.kink import Search, Turn, searched
from jaxfit._core.options import Limits
from jaxfit._core.quadratic import Reduced, reduce_model, trust_region_step
from jaxfit._core.solution import (
    INCOMPLETE,
    RUNNING,
    Status,
    is_certified,
    model_rounding,
    projected_gradient,
)
from jaxfit._linalg.inverse import is_lossy
from jaxfit._linalg.kernels import (
    Flag,
    Scalar,
    Vector,
    batched_in_lanes,
    bordered,
    branch,
    choose,
    every,
    for_each,
    identity,
    is_lanes,
    norm,
    some,
    varying_with,
)
from jaxfit._programs.one_function import one_function
from jaxfit._rows.linearization import (
    Frame,
    Linearization,
    columns_of,
    cost_rounding,
    sums,
    with_sums,
    without_rows,
)

# A pivot of the Gram matrix, scaled to unit diagonal, below which it has lost too many
# digits to find the next step, for 64 and 32 bits.
STEP_PIVOT = {64: 1e-10, 32: 1e-4}

# A parameter nearer to its bound than this times |r| / |J_i|, with the largest |J_i| so
# far, is put on it at the end.
SNAP_REACH = 1e-4

# A step shorter than this part of the radius is a Newton step.
INSIDE = 0.95

# A step whose predicted gain is below so many units of rounding of the cost is wasted.
GAIN_ROUNDING = 4


class Trial(eqx.Module):
    """A point to evaluate, and what the model expects of it."""

    x: Vector
    framed: Flag  # differentiate in the frame that the last accepted point gives
    predicted: Scalar  # the reduction of the cost
    slope: Scalar  # of the cost along the step, downhill
    length: Scalar  # of the step, in the variables of the model


class Point(eqx.Module):
    """A point that was evaluated."""

    x: Vector
    linearization: Linearization
    gradient: Vector  # of the cost
    squared_norms: Vector  # of the columns of the Jacobian
    largest_norms: Vector  # the same, the largest so far
    hat: Hat
    optimality: Scalar
    certified: Flag
    rounding: Scalar  # how far rounding x alone moves the residual vector


class State(eqx.Module):
    """The whole fit between two trips."""

    # changes on every trip
    trial: Trial
    radius: Scalar
    alpha: Scalar  # damping
    nfev: Int[Array, "*lanes"]
    finishing: Flag  # the next trip is the last
    # changes when the trial point is accepted
    point: Point
    steps: Int[Array, "*lanes"]
    search: Search | None  # of a kink, where it has stalled
    # changes once
    status: Int[Array, "*lanes"]
    start_cost: Scalar


class Problem(eqx.Module):
    """What does not change during a fit, besides the residual function."""

    limits: Limits
    bounds: Bounds | None
    x_scale: Vector | None  # None: the inverse of the Jacobian's column norms
    is_linear: bool = eqx.field(static=True)  # plain least squares, without a loss
    # SciPy's path and end: its steps, no certificate
    scipy_steps: bool = eqx.field(static=True, default=False)
    # SciPy's meaning of the tolerances
    scipy_tests: bool = eqx.field(static=True, default=False)
    # the residuals can have no kink
    is_smooth: bool = eqx.field(static=True, default=False)
    # what is decided in a trip is one function, on CPUs, where the whole fit is none
    in_one_function: bool = eqx.field(static=True, default=False)
    # what is seldom needed is left out, and a fit that needs it ends: see `seldom.py`
    is_lean: bool = eqx.field(static=True, default=False)

    @property
    def can_have_kinks(self) -> bool:
        """Whether a fit that stalls may have stalled on a kink."""
        return not (self.scipy_steps or self.is_smooth)

    @property
    def looks_for_kinks(self) -> bool:
        """Whether it looks for one."""
        return self.can_have_kinks and not self.is_lean


def is_incomplete(problem: Problem, status: Int[Array, "*lanes"]) -> Flag:
    """Whether a lean fit that ended so needs what was left out."""
    incomplete = status == INCOMPLETE
    if problem.can_have_kinks:
        incomplete = incomplete | (status == Status.STALLED)
    return incomplete


def is_running(state: State) -> Flag:
    """Whether another trip follows."""
    return (state.status == RUNNING) | state.finishing


def initial_state(problem: Problem, x0: Vector) -> State:
    """The state in which the start is the first trial point."""
    zeros, eye = jnp.zeros_like(x0), identity(x0)
    zero = zeros[0]
    infinite, none = zero + jnp.inf, zero.astype(jnp.int32)
    no = none != 0
    bounds, status, start = problem.bounds, none + RUNNING, x0
    if bounds is not None:
        x0 = jnp.where(bounds.free, x0, bounds.lower)
        valid = bounds.contains(x0) & every(bounds.lower <= bounds.upper)
        status = jnp.where(valid, status, jnp.int32(Status.INVALID_BOUNDS))
        start = _bounds.start_inside(x0, bounds)
    nothing = _infinitely_bad(without_rows(zeros, eye, problem.is_linear))
    frame = Frame(eye, eye)
    reduced = Reduced(
        matrix=eye,
        basis=eye,
        rhs=zeros,
        newton=zeros,
        slope=zero,
        decrement=zero,
        pivot=zero,
        full_rank=no,
        frame=frame,
    )
    state = State(
        trial=Trial(start, no, zero, zero, zero),
        radius=zero + 1,
        alpha=zero,
        nfev=none,
        finishing=no,
        point=Point(
            x=x0,
            linearization=nothing,
            gradient=zeros,
            squared_norms=zeros,
            largest_norms=zeros,
            hat=Hat(reduced, zeros, zeros),
            optimality=infinite,
            certified=no,
            rounding=zero,
        ),
        steps=none,
        search=Search.off(x0) if problem.looks_for_kinks else None,
        status=status,
        start_cost=infinite,
    )
    return varying_with(state, x0)


def restarted(state: State, fresh: State, lanes: Int[Array, " K"]) -> State:
    """The state with K fresh fits in some of its lanes.

    Only what a first trip reads is put there: see `reached` for a fit that it ends. A
    lane beyond the last is dropped.
    """

    def read(state):
        trial = state.trial
        modes = [] if state.search is None else [state.search.mode]
        return (
            *(trial.x, trial.framed, state.point.largest_norms, state.nfev),
            *(state.finishing, state.steps, *modes, state.status),
        )

    put = [
        old.at[..., lanes].set(new, mode="drop")
        for old, new in zip(read(state), read(fresh), strict=True)
    ]
    return eqx.tree_at(read, state, put)


def reached(state: State, fresh: State) -> State:
    """The state with the start for its point where no trip has accepted any."""
    none = (state.status == Status.NONFINITE_START) | (
        state.status == Status.INVALID_BOUNDS
    )
    point = choose(none, fresh.point, state.point)
    return dataclasses.replace(state, point=point)


def _infinitely_bad(linearization: Linearization) -> Linearization:
    """A linearization with an infinite cost."""
    normal, *rest = sums(linearization)
    infinite = jnp.full_like(normal[0, 0], jnp.inf)
    worst = bordered(normal[:-1, :-1], normal[-1, :-1], infinite)
    if rest:
        rest[-1] = infinite
    return with_sums(
        linearization, (worst, *rest), linearization.counted, linearization.influence
    )


def trip(linearize: Callable, problem: Problem, state: State) -> State:
    """Evaluate one trial point and decide all that follows from it.

    Args:
        linearize: (x, frame) -> `Linearization`.
        problem: what does not change.
        state: for one fit, or for lanes of fits.
    """
    frame = no_frame(state.trial.x) if problem.is_lean else frame_of(state)
    return decide(problem, state, linearize(state.trial.x, frame))


def frame_of(state: State) -> Frame:
    """The directions in which the trial point is to be differentiated."""
    return _frame(state.point.hat.reduced.frame, state.trial.framed)


def no_frame(x: Vector) -> Frame:
    """Those of the parameters."""
    eye = varying_with(identity(x), x)
    return Frame(eye, eye)


@batched_in_lanes
def _frame(frame: Frame, needed: Flag) -> Frame:
    return choose(needed, frame, no_frame(frame.inverse[0]))


class _Verdict(NamedTuple):
    """What becomes of a trial point."""

    first: Flag
    finite: Flag
    gain: Scalar  # NaN where it is not known
    noise: Scalar  # a gain below it is rounding
    accepted: Flag
    fresh: Flag  # reached by no step
    repeated: Flag  # evaluated again without a frame, which does not fit it
    wants_frame: Flag  # it may be accepted, and its model has lost digits
    stays: Flag  # where it is not accepted nothing changes: it was no step


class _Decided(NamedTuple):
    """What the verdict decides."""

    point: Point
    radius: Scalar
    alpha: Scalar
    steps: Int[Array, "*lanes"]
    status: Int[Array, "*lanes"]


class _Next(NamedTuple):
    """Where the next trip goes, and whether it is the last."""

    trial: Trial
    alpha: Scalar
    finishing: Flag


@batched_in_lanes
def decide(problem: Problem, state: State, linearization: Linearization) -> State:
    """All of a trip that follows from the linearization at the trial point."""
    if problem.in_one_function and not is_lanes(state.trial.x):
        operands = problem, state, linearization
        return one_function(lambda operands: _decide(*operands), operands)
    return _decide(problem, state, linearization)


def _decide(problem, state, linearization) -> State:
    sample = linearization
    search = state.search
    if search is None:
        columns = columns_of(linearization)
    else:
        linearization, columns = search.seen(sample, state.point)
    start_cost = jnp.where(state.nfev == 0, linearization.cost, state.start_cost)
    new = _evaluated(problem, state, linearization, columns, start_cost)
    new = varying_with(new, state.trial.x)
    verdict = _verdict(problem, state, new, columns.resolved)
    decided = branch(
        verdict.accepted,
        functools.partial(_accept, problem),
        functools.partial(_refuse, problem),
        *(state, new, verdict),
    )
    point, nfev = decided.point, state.nfev + 1
    status = _status(problem, state, verdict, decided, nfev)
    if problem.is_lean:
        status = jnp.where(verdict.wants_frame, jnp.int32(INCOMPLETE), status)
        following = _go_on(problem, state, decided, status)
    else:
        following = branch(
            verdict.repeated & ((status == RUNNING) | state.finishing),
            _repeat,
            functools.partial(_go_on, problem),
            *(state, decided, status),
        )
    after = State(
        trial=following.trial,
        radius=decided.radius,
        alpha=following.alpha,
        nfev=nfev,
        finishing=following.finishing,
        point=point,
        steps=decided.steps,
        search=search,
        status=status,
        start_cost=start_cost,
    )
    return after if search is None else _search(problem, state, after, sample)


def _verdict(problem, state, new, resolved) -> _Verdict:
    """Whether a trial point is accepted, refused, or evaluated again."""
    trial, old = state.trial, state.point
    first, cost = state.nfev == 0, new.linearization.cost
    finite = jnp.isfinite(jnp.sum(new.linearization.normal, axis=(0, 1)) + cost)
    usable = finite & resolved
    known = usable | (trial.framed & jnp.isfinite(cost))
    old_cost = jnp.where(first, jnp.inf, old.linearization.cost)
    gain = jnp.where(known, old_cost - cost, jnp.nan)
    noise = _noise(problem, old)
    level = gain >= -noise
    level = level & (state.finishing | (trial.length < INSIDE * state.radius))
    falls = new.hat.reduced.decrement < old.hat.reduced.decrement
    accepted = usable & ((gain > 0) | (level & (falls | state.finishing)))
    accepted = accepted & (new.certified | ~(state.finishing & old.certified))
    repeated = ~usable & ((gain > 0) | level)
    fresh, stays = first, repeated
    if state.search is not None:
        adopts, samples = state.search.adopts, state.search.samples
        accepted, fresh = (accepted | adopts) & ~samples, first | adopts
        stays = repeated | samples
    return _Verdict(
        first=first,
        finite=finite,
        gain=gain,
        noise=noise,
        accepted=accepted,
        fresh=fresh,
        repeated=repeated,
        wants_frame=usable & ((gain > 0) | level) & is_lossy(new.hat.reduced.pivot),
        stays=stays,
    )


def _accept(problem, state, new, verdict) -> _Decided:
    """Go on from the trial point, in a region as large as the model was good."""
    trial, old = state.trial, state.point
    fresh = verdict.fresh
    ratio = _trust_region.gain_ratio(verdict.gain, trial.predicted)
    radius, alpha = _trust_region.update_radius(
        *(state.radius, state.alpha, ratio, trial.length),
        _shrinkage(problem, trial, verdict.gain),
    )
    # no region is made smaller for what is rounding
    larger = jnp.maximum(radius, state.radius)
    radius = jnp.where(verdict.gain > verdict.noise, radius, larger)
    start = _trust_region.first_radius(new.x, new.hat.scaling)
    status = _scipy_status(problem, state, new, verdict.gain)
    if not problem.scipy_steps:
        scale = _scale(problem, new.largest_norms)
        step, length = norm((new.x - old.x) / scale), norm(new.x / scale)
        if not problem.scipy_tests:
            step = jnp.where(fresh, jnp.inf, step)
            limits = problem.limits
            status = _trust_region.stopping_tests(limits, new, step, length)
        status = jnp.where(new.certified, status, RUNNING)
    moved = ~fresh & ~state.finishing
    return _Decided(
        point=new,
        radius=jnp.where(fresh, start, radius),
        alpha=jnp.where(fresh, 0, alpha),
        steps=jnp.where(moved, state.steps + 1, state.steps),
        status=status,
    )


def _refuse(problem, state, new, verdict) -> _Decided:
    """Stay, in a smaller region; or unchanged, where the trial was no step."""
    trial, old, gain = state.trial, state.point, verdict.gain
    radius = _shrinkage(problem, trial, gain) * trial.length
    rescaled = state.alpha * (state.radius / jnp.where(radius > 0, radius, 1))
    alpha = jnp.where(jnp.isfinite(gain), rescaled, state.alpha)
    status = _scipy_status(problem, state, old, gain)
    if not problem.scipy_steps:
        status = jnp.where(old.certified, status, RUNNING)
        scale = _scale(problem, old.largest_norms)
        step, length = norm((trial.x - old.x) / scale), norm(old.x / scale)
        # after which a shorter step can gain nothing either
        eps = jnp.finfo(step.dtype).eps
        hopeless = trial.predicted <= GAIN_ROUNDING * eps * old.linearization.cost
        hopeless = (hopeless & jnp.isfinite(gain)) | ~(step > 0.5 * eps * length)
        status = jnp.where(hopeless, jnp.int32(Status.STALLED), status)
    radius, alpha, status = choose(
        verdict.stays,
        (state.radius, state.alpha, jnp.full_like(status, RUNNING)),
        (radius, alpha, status),
    )
    return _Decided(old, radius, alpha, state.steps, status)


def _shrinkage(problem, trial, gain):
    """By how much to shorten a step that gained too little."""
    return 0.25 if problem.scipy_steps else _trust_region.shrinkage(gain, trial.slope)


def _status(problem, state, verdict, decided, nfev) -> Int[Array, "*lanes"]:
    """The status after a trip. A success needs the certificate; a stalled fit that has
    it succeeded."""
    status = decided.status
    status = jnp.where(verdict.repeated, RUNNING, status)
    full = (status == RUNNING) & (nfev >= problem.limits.max_steps)
    status = jnp.where(full, Status.MAX_STEPS, status)
    start_fails = verdict.first & ~verdict.finite
    status = jnp.where(start_fails, Status.NONFINITE_START, status)
    status = jnp.where(state.finishing, state.status, status).astype(jnp.int32)
    if problem.scipy_steps:
        return status
    certified = decided.point.certified
    lost = (status > 0) & (status != RUNNING) & ~certified
    won = (status == Status.STALLED) & certified
    status = jnp.where(lost, jnp.int32(Status.STALLED), status)
    return jnp.where(won, jnp.int32(Status.STEP), status)


def _repeat(state, decided, status) -> _Next:
    """The same point once more, without a frame."""
    trial = dataclasses.replace(state.trial, framed=jnp.zeros_like(state.finishing))
    return _Next(trial, state.alpha, state.finishing)


def _go_on(problem, state, decided, status) -> _Next:
    """A step, or the end."""
    return branch(
        status == RUNNING,
        functools.partial(_propose, problem),
        functools.partial(_finish, problem),
        *(state, decided, status),
    )


def _search(problem, before, after, sample) -> State:
    """What follows where a fit has stalled, as it does on a kink."""
    bounds = problem.bounds
    if bounds is not None:
        bounds = Bounds(*(jnp.broadcast_to(b, after.trial.x.shape) for b in bounds))
    turn = branch(
        before.search.is_wanted(after.status, after.finishing),
        for_each(searched, is_lanes(after.trial.x)),
        lambda bounds, before, after, sample: Turn.of(after),
        *(bounds, before, after, sample),
    )
    return dataclasses.replace(after, **turn._asdict())


def _evaluated(problem, state, linearization, columns, start_cost) -> Point:
    """The trial point with its model, its optimality and its certificate."""
    x, bounds = state.trial.x, problem.bounds
    squared = columns.squared_norms
    largest_norms = jnp.maximum(state.point.largest_norms, squared)
    scale = _scale(problem, largest_norms)
    model = _trust_region.hat_model(x, linearization, columns, scale, bounds)
    projected = projected_gradient(x, columns, linearization, bounds)
    rounding = model_rounding(x, squared)
    certified = is_certified(x, linearization, projected, rounding, start_cost, bounds)
    if problem.scipy_steps:
        gradient = columns.gradient
        optimality = _trust_region.scaled_gradient_norm(x, gradient, bounds)
    else:
        size = jnp.sqrt(linearization.squared_residual)
        optimality = projected / jnp.where(size > 0, size, 1)
    return Point(
        x=x,
        linearization=linearization,
        gradient=columns.gradient,
        squared_norms=squared,
        largest_norms=largest_norms,
        hat=Hat(reduce_model(model, problem.is_lean), model.gradient, model.scaling),
        optimality=optimality,
        certified=certified,
        rounding=rounding,
    )


def _scale(problem, largest_norms) -> Vector:
    """Sizes of the parameters: given, or the inverse of the largest column norms."""
    if problem.x_scale is not None:
        return problem.x_scale
    return 1 / jnp.sqrt(jnp.where(largest_norms > 0, largest_norms, 1))


def _noise(problem, point):
    """A change of cost that is rounding: whether the Newton decrement falls decides.

    The cost cannot resolve the last half of the digits of x; the gradient can.
    """
    if problem.scipy_steps:
        return jnp.asarray(-jnp.inf, point.x.dtype)
    size = jnp.sqrt(point.linearization.squared_residual)
    return cost_rounding(point.linearization) + size * point.rounding


def _scipy_status(problem, state, point, gain):
    """The status after a trip, by the tests of `scipy.optimize.least_squares`."""
    if not (problem.scipy_steps or problem.scipy_tests):
        return jnp.full_like(state.status, RUNNING)
    ratio = _trust_region.gain_ratio(gain, state.trial.predicted)
    step = norm(state.trial.x - state.point.x)
    step = jnp.where(jnp.isfinite(gain), step, jnp.inf)
    gradient = _trust_region.scaled_gradient_norm(
        point.x, point.gradient, problem.bounds
    )
    return _trust_region.scipy_tests(
        problem.limits, state.point, gradient, gain, ratio, step
    )


def _propose(problem, state, decided, status) -> _Next:
    """The next trial point, and the damping that gave it."""
    point, radius = decided.point, decided.radius
    hat, bounds = point.hat, problem.bounds
    step = trust_region_step(hat.reduced, radius, decided.alpha)
    if bounds is not None:
        theta = jnp.maximum(0.995, 1 - point.optimality)
        step = _bounds.select_step(point.x, step, hat, radius, theta, bounds)
    x = point.x + hat.scaling * step.p
    if bounds is not None:
        x = _bounds.stay_inside(x, bounds, strictly=problem.scipy_steps)
    framed = ~(hat.reduced.pivot >= STEP_PIVOT[jnp.finfo(x.dtype).bits])
    trial = Trial(x, framed, step.predicted, step.slope, step.length)
    return _Next(trial, step.alpha, jnp.zeros_like(framed))


def _finish(problem, state, decided, status) -> _Next:
    """After the last step: the same point on its bounds and with all its digits.

    A last trip goes there if that is another point, or if the Gram matrix has lost
    digits of the covariance.
    """
    point, bounds = decided.point, problem.bounds
    if problem.scipy_steps:
        return _Next(state.trial, decided.alpha, jnp.zeros_like(state.finishing))
    x, linearization = point.x, point.linearization
    lossy = is_lossy(point.hat.reduced.pivot)
    useful = lossy & ~linearization.framed
    if bounds is not None:
        reach = SNAP_REACH * jnp.sqrt(linearization.squared_residual)
        largest_norms = jnp.sqrt(point.largest_norms)
        reach = jnp.where(largest_norms > 0, reach / largest_norms, 0)
        x = _bounds.snap(x, point.gradient, point.squared_norms, bounds, reach)
        useful = useful | some(x != point.x)
    ended = (status > 0) | (status == Status.STALLED)
    finishing = ended & ~state.finishing & useful
    trial = dataclasses.replace(state.trial, x=x, framed=finishing & lossy)
    return _Next(trial, decided.alpha, finishing)
