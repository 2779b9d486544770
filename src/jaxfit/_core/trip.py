"""One trip of the loop: evaluate a trial point and decide all that follows from it.

    linearize -> accept -> new_region -> judge -> propose

    accept      whether the trial point is better than the point where the fit stands
    new_region  where it stands now, and how far its quadratic may be trusted
    judge       whether it has ended, and how: a success needs the certificate
    propose     the next trial point, the minimum of the quadratic inside the region

The first three stand in `decisions.py`, the last in `proposal.py`. Where a fit has
stalled, `kink.py` may replace what they decided.

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
from collections.abc import Callable

import jax.numpy as jnp

from jaxfit._core.bounds import (
    Bounds,
    ScaledModel,
    scaled_quadratic,
)
from jaxfit._core.certificate import (
    is_certified,
    model_rounding,
    projected_gradient,
)
from jaxfit._core.decisions import accept, judge, new_region
from jaxfit._core.kink import Turn, searched
from jaxfit._core.proposal import propose
from jaxfit._core.quadratic import reduce_quadratic
from jaxfit._core.setting import Setting
from jaxfit._core.state import Point, State
from jaxfit._linalg.branches import (
    batched_in_lanes,
    branch,
    choose,
    for_each,
    varying_with,
)
from jaxfit._linalg.kernels import Flag, Scalar, Vector, identity, is_lanes
from jaxfit._programs.one_function import one_function
from jaxfit._rows.linearization import Columns, Frame, Linearization, columns_of


def trip(linearize: Callable, setting: Setting, state: State) -> State:
    """Evaluate one trial point and decide all that follows from it.

    Args:
        linearize: (x, frame) -> `Linearization`.
        setting: what does not change.
        state: of one fit, or of lanes of fits.
    """
    x = state.trial.x
    frame = _marked(no_frame(x), state) if setting.is_lean else frame_of(state)
    return decide(setting, state, linearize(x, frame))


def frame_of(state: State) -> Frame:
    """The directions in which the trial point is to be differentiated."""
    frame = _frame(state.point.model.reduced.frame, state.trial.framed)
    return _marked(frame, state)


def _marked(frame: Frame, state: State) -> Frame:
    """A frame that says how much of the curvature of a row is believed."""
    return frame._replace(most=state.point.linearization.believed(state.finishing))


def no_frame(x: Vector) -> Frame:
    """The frame of the parameters themselves."""
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
    if setting.rounding is not None:
        rounding = rounding + setting.rounding
    certified = is_certified(x, linearization, projected, rounding, start_cost, bounds)
    return Point(
        x=x,
        linearization=linearization,
        gradient=columns.gradient,
        squared_norms=squared,
        largest_norms=largest_norms,
        model=ScaledModel(
            reduced=reduce_quadratic(quadratic, setting.is_lean, certified),
            gradient=quadratic.gradient,
            scaling=quadratic.scaling,
        ),
        optimality=setting.rules.optimality(
            x, columns.gradient, linearization, projected, bounds
        ),
        certified=certified,
        rounding=rounding,
    )


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
        bounds,
        before,
        after,
        sample,
    )
    return dataclasses.replace(after, **turn._asdict())
