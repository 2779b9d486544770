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
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit import _bounds, _trust_region
from jaxfit._bounds import Bounds, Hat
from jaxfit._covariance import is_lossy, unit_rcond
from jaxfit._kink import Search, Turn, searched
from jaxfit._linearize import (
    Frame,
    Linearization,
    columns_of,
    cost_rounding,
    sums,
    with_sums,
    without_rows,
)
from jaxfit._model import Reduced, reduce_model, trust_region_step
from jaxfit._options import Limits
from jaxfit._small import (
    Flag,
    Scalar,
    Vector,
    batched_in_lanes,
    choose,
    diagonal,
    every,
    identity,
    norm,
    outer,
    settled,
    some,
    square_root,
    total,
    unit_diagonal,
    varying_with,
    where_needed,
    where_needed_one_by_one,
)
from jaxfit._solution import (
    RUNNING,
    Status,
    is_certified,
    model_rounding,
    projected_gradient,
)

# A ratio of eigenvalues below which the Gram matrix has lost too many digits to find
# the next step, for 64 and 32 bits.
STEP_RCOND = {64: 1e-10, 32: 1e-4}

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
    rcond: Scalar  # of the Gram matrix: how much of its digits are left


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
    search: Search  # of a kink, where it has stalled
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
    reduced = Reduced(
        diagonal=zeros,
        offdiagonal=zeros[1:],
        basis=eye,
        rhs=zeros,
        newton=zeros,
        slope=zero,
        decrement=zero,
        threshold=zero,
        rcond=zero,
        full_rank=no,
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
            rcond=zero,
        ),
        steps=none,
        search=Search.off(x0),
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
        return (
            *(trial.x, trial.framed, state.point.largest_norms, state.nfev),
            *(state.finishing, state.steps, state.search.mode, state.status),
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
    worst = normal.at[-1, -1].set(jnp.inf)
    if rest:
        rest[-1] = rest[-1] + jnp.inf
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
    return decide(problem, state, linearize(state.trial.x, frame_of(state)))


def frame_of(state: State) -> Frame:
    """The directions in which the trial point is to be differentiated."""
    return _frame(state.point.linearization, state.trial.framed)


@batched_in_lanes
def _frame(linearization: Linearization, needed: Flag) -> Frame:
    """Directions in which the Jacobian near a point is nearly orthonormal.

    Needed so seldom that lanes call LAPACK for it.
    """

    def from_hessian(linearization):
        hessian = linearization.hessian
        squared = diagonal(hessian)
        norms = jnp.sqrt(jnp.where(squared > 0, squared, 1))
        root, inverse = square_root(unit_diagonal(hessian / outer(norms, norms)))
        return root * norms[None], inverse / norms[None]

    def unit_directions(linearization):
        eye = varying_with(identity(linearization.rhs), linearization.normal)
        return eye, eye

    inverse, directions = where_needed_one_by_one(
        needed, from_hessian, unit_directions, linearization
    )
    return Frame(inverse, directions, needed)


@batched_in_lanes
def decide(problem: Problem, state: State, linearization: Linearization) -> State:
    """All of a trip that follows from the linearization at the trial point."""
    trial, old, search = state.trial, state.point, state.search
    first, sample = state.nfev == 0, linearization
    linearization = search.adopted(linearization, old)
    cost = linearization.cost
    finite = jnp.isfinite(total(total(linearization.normal)) + cost)
    start_cost = jnp.where(first, cost, state.start_cost)
    columns = search.columns(columns_of(linearization), sample)
    new = _evaluated(
        problem, old.largest_norms, trial.x, linearization, columns, start_cost
    )
    new = varying_with(new, trial.x)
    usable = finite & columns.resolved

    # accept or refuse it, or evaluate it again without a frame that does not fit it
    old_cost = jnp.where(first, jnp.inf, old.linearization.cost)
    known = usable | (trial.framed & jnp.isfinite(cost))
    gain = jnp.where(known, old_cost - cost, jnp.nan)
    level = _is_level(problem, state, gain)
    level = level & (state.finishing | (trial.length < INSIDE * state.radius))
    falls = new.hat.reduced.decrement < old.hat.reduced.decrement
    accepted = usable & ((gain > 0) | (level & (falls | state.finishing)))
    again = settled(~usable & ((gain > 0) | level))
    accepted = accepted & (new.certified | ~(state.finishing & old.certified))
    accepted = settled((accepted | search.adopts) & ~search.samples)
    point = choose(accepted, new, old)
    fresh = first | search.adopts
    moved = accepted & ~fresh & ~state.finishing

    # the radius
    ratio = _trust_region.gain_ratio(gain, trial.predicted)
    shrink = 0.25 if problem.scipy_steps else _trust_region.shrinkage(gain, trial.slope)
    radius, alpha = _trust_region.update_radius(
        state.radius, state.alpha, ratio, shrink * trial.length, trial.length
    )
    radius = jnp.where(accepted & (gain <= 0), state.radius, radius)
    start_radius = _trust_region.first_radius(point.x, point.hat.scaling)
    radius = jnp.where(fresh, start_radius, radius)
    alpha = jnp.where(fresh, 0, alpha)
    radius = jnp.where(search.samples, state.radius, radius)

    # is it over, and if not, where next?
    nfev = state.nfev + 1
    if problem.scipy_steps:
        status = _scipy_status(problem, state, point, gain, ratio)
    else:
        status = _judge(problem, state, point, fresh, accepted, gain, ratio)
    status = jnp.where(again | search.samples, RUNNING, status)
    full = (status == RUNNING) & (nfev >= problem.limits.max_steps)
    status = jnp.where(full, Status.MAX_STEPS, status)
    status = jnp.where(first & ~finite, Status.NONFINITE_START, status)
    status = jnp.where(state.finishing, state.status, status).astype(jnp.int32)
    if not problem.scipy_steps:
        status = _final_status(status, point)
    radius, alpha, status = settled((radius, alpha, status))
    next_trial, alpha = _propose(problem, point, radius, alpha)
    next_trial, finishing = _finish(problem, state, status, point, next_trial)
    plain = dataclasses.replace(trial, framed=jnp.zeros_like(again))
    next_trial, radius, alpha, finishing = choose(
        again & ((status == RUNNING) | state.finishing),
        (plain, state.radius, state.alpha, state.finishing),
        (next_trial, radius, alpha, finishing),
    )
    next_state = State(
        trial=next_trial,
        radius=radius,
        alpha=alpha,
        nfev=nfev,
        finishing=finishing,
        point=point,
        steps=jnp.where(moved, state.steps + 1, state.steps),
        search=search,
        status=status,
        start_cost=start_cost,
    )
    if problem.scipy_steps:
        return next_state
    return _search(problem, state, next_state, sample)


def _search(problem, before, after, sample) -> State:
    """What follows where a fit has stalled, as it does on a kink."""
    bounds = problem.bounds
    if bounds is not None:
        bounds = Bounds(*(jnp.broadcast_to(b, after.trial.x.shape) for b in bounds))
    turn = where_needed_one_by_one(
        before.search.is_wanted(after.status, after.finishing),
        searched,
        lambda bounds, before, after, sample: Turn.of(after),
        *(bounds, before, after, sample),
    )
    return dataclasses.replace(after, **turn._asdict())


def _evaluated(problem, largest_norms, x, linearization, columns, start_cost) -> Point:
    """A trial point with its model, its optimality and its certificate."""
    bounds = problem.bounds
    hessian, gradient = columns.hessian, columns.gradient
    largest_norms = jnp.maximum(largest_norms, columns.squared_norms)
    scale = _scale(problem, largest_norms)
    d, model = _trust_region.hat_model(
        x, linearization, hessian, gradient, scale, bounds
    )
    hat = Hat(reduce_model(model), model.gradient, d)
    projected = projected_gradient(x, columns, linearization, bounds)
    rounding = model_rounding(x, columns.squared_norms)
    certified = is_certified(x, linearization, projected, rounding, start_cost, bounds)
    if problem.scipy_steps:
        optimality = _trust_region.scaled_gradient_norm(x, gradient, bounds)
    else:
        size = jnp.sqrt(linearization.squared_residual)
        optimality = projected / jnp.where(size > 0, size, 1)
    return Point(
        x=x,
        linearization=linearization,
        gradient=gradient,
        squared_norms=columns.squared_norms,
        largest_norms=largest_norms,
        hat=hat,
        optimality=optimality,
        certified=certified,
        rounding=rounding,
        rcond=_rcond(hessian, hat.reduced.rcond),
    )


def _rcond(hessian, rcond):
    """That of columns scaled to one where the model's tells of digits lost.

    Columns of very different length cost a Gram matrix no digits, only columns that
    nearly depend on each other do.
    """
    return where_needed(
        is_lossy(rcond),
        lambda hessian, _: unit_rcond(hessian),
        lambda _, rcond: rcond,
        *(hessian, rcond),
    )


def _scale(problem, largest_norms) -> Vector:
    """Sizes of the parameters: given, or the inverse of the largest column norms."""
    if problem.x_scale is not None:
        return problem.x_scale
    return 1 / jnp.sqrt(jnp.where(largest_norms > 0, largest_norms, 1))


def _is_level(problem, state, gain):
    """A change of cost that is rounding: whether the Newton decrement falls decides.

    The cost cannot resolve the last half of the digits of x; the gradient can.
    """
    if problem.scipy_steps:
        return jnp.zeros_like(state.finishing)
    old = state.point
    noise = cost_rounding(old.linearization)
    noise = noise + jnp.sqrt(old.linearization.squared_residual) * old.rounding
    return gain >= -noise


def _judge(problem, state, point, fresh, accepted, gain, ratio):
    """The status after a trip, by our tests; a fresh point was reached by no step."""
    trial, old = state.trial, state.point
    scale = _scale(problem, point.largest_norms)
    step, length = norm((trial.x - old.x) / scale), norm(point.x / scale)
    if problem.scipy_tests:
        status = _scipy_status(problem, state, point, gain, ratio)
        status = jnp.where(point.certified, status, RUNNING)
    else:
        status = _trust_region.stopping_tests(
            problem.limits, point, jnp.where(accepted & ~fresh, step, jnp.inf), length
        )
    # a refused trial after which a shorter step can gain nothing either
    eps = jnp.finfo(step.dtype).eps
    hopeless = trial.predicted <= GAIN_ROUNDING * eps * old.linearization.cost
    hopeless = (hopeless & jnp.isfinite(gain)) | ~(step > 0.5 * eps * length)
    exhausted = ~accepted & ~fresh & hopeless
    return jnp.where(exhausted, jnp.int32(Status.STALLED), status)


def _scipy_status(problem, state, point, gain, ratio):
    """The status after a trip, by the tests of `scipy.optimize.least_squares`."""
    step = norm(state.trial.x - state.point.x)
    step = jnp.where(jnp.isfinite(gain), step, jnp.inf)
    gradient = _trust_region.scaled_gradient_norm(
        point.x, point.gradient, problem.bounds
    )
    return _trust_region.scipy_tests(
        problem.limits, state.point, gradient, gain, ratio, step
    )


def _propose(problem, point, radius, alpha) -> tuple[Trial, Scalar]:
    """The next trial point, and the damping that gave it."""
    hat, bounds = point.hat, problem.bounds
    step = trust_region_step(hat.reduced, radius, alpha)
    if bounds is None:
        x = point.x + hat.scaling * step.p
    else:
        theta = jnp.maximum(0.995, 1 - point.optimality)
        step = _bounds.select_step(point.x, step, hat, radius, theta, bounds)
        x = point.x + hat.scaling * step.p
        x = _bounds.stay_inside(x, bounds, strictly=problem.scipy_steps)
    framed = ~(point.rcond >= STEP_RCOND[_bits(x)])
    return Trial(x, framed, step.predicted, step.slope, step.length), step.alpha


def _bits(x) -> int:
    return jnp.finfo(x.dtype).bits


def _finish(problem, state, status, point, trial):
    """After the last step: the same point on its bounds and with all its digits.

    A last trip goes there if that is another point, or if the Gram matrix has lost
    digits of the covariance. Returns the next trial, and whether it is the last.
    """
    bounds, x, framed = problem.bounds, point.x, trial.framed
    if problem.scipy_steps:
        return trial, jnp.zeros_like(state.finishing)
    lossy = is_lossy(point.rcond)
    useful = lossy & ~point.linearization.framed
    if bounds is not None:
        reach = SNAP_REACH * jnp.sqrt(point.linearization.squared_residual)
        largest_norms = jnp.sqrt(point.largest_norms)
        reach = jnp.where(largest_norms > 0, reach / largest_norms, 0)
        x = _bounds.snap(x, point.gradient, point.squared_norms, bounds, reach)
        useful = useful | some(x != point.x)
    ended = (status != RUNNING) & ((status > 0) | (status == Status.STALLED))
    finishing = ended & ~state.finishing & useful
    framed = jnp.where(finishing, lossy, framed & (status == RUNNING))
    x = jnp.where(finishing, x, trial.x)
    return dataclasses.replace(trial, x=x, framed=framed), finishing


def _final_status(status, point):
    """A success needs the certificate; a stalled fit that has it succeeded."""
    lost = (status > 0) & (status != RUNNING) & ~point.certified
    won = (status == Status.STALLED) & point.certified
    status = jnp.where(lost, jnp.int32(Status.STALLED), status)
    return jnp.where(won, jnp.int32(Status.STEP), status)
