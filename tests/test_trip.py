"""The four functions of a trip, each by itself, on points that are made by hand.

Nothing is compiled: branches and loops are Python's.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfit._core.bounds import Bounds, ScaledModel
from jaxfit._core.certificate import RUNNING, Status
from jaxfit._core.decisions import Stand, Verdict, accept, judge, new_region
from jaxfit._core.options import Limits
from jaxfit._core.proposal import propose
from jaxfit._core.quadratic import Quadratic, reduce_quadratic
from jaxfit._core.rules import OURS, SCIPY, Region
from jaxfit._core.setting import Setting, initial_state
from jaxfit._core.state import Point
from jaxfit._rows.linearization import Kind, Linearization

EYE, X = jnp.eye(2), jnp.array([1.0, 2.0])
HESSIAN = jnp.array([[2.0, 0.5], [0.5, 1.0]])


@pytest.fixture(autouse=True)
def _eagerly():
    with jax.disable_jit():
        yield


YES, NO = jnp.array(True), jnp.array(False)
NUMBER = jnp.int32


def setting(rules=OURS, bounds=None, max_steps=100):
    tolerances = [jnp.asarray(1e-10)] * 3
    return Setting(
        limits=Limits(*tolerances, jnp.int32(max_steps)),
        bounds=bounds,
        x_scale=jnp.ones(2),
        kind=Kind.SQUARES,
        rules=rules,
        is_smooth=True,
    )


def point(x=X, cost=1.0, gradient=(1.0, -1.0), certified=False):
    """A point whose quadratic has this gradient."""
    gradient = jnp.asarray(gradient)
    normal = jnp.block([[HESSIAN, gradient[:, None]], [gradient, 2 * cost]])
    linearization = Linearization(normal, EYE, jnp.array([0, 30], jnp.int32), None)
    quadratic = Quadratic(
        matrix=HESSIAN,
        gradient=gradient,
        gram=HESSIAN,
        rhs=gradient,
        frame=EYE,
        scaling=jnp.ones(2),
        curvature=jnp.zeros(2),
        squared_norms=jnp.diagonal(HESSIAN),
        free=None,
    )
    return Point(
        x=x,
        linearization=linearization,
        gradient=gradient,
        squared_norms=jnp.diagonal(HESSIAN),
        largest_norms=jnp.diagonal(HESSIAN),
        model=ScaledModel(reduce_quadratic(quadratic), gradient, jnp.ones(2)),
        optimality=jnp.asarray(0.1),
        certified=jnp.asarray(certified),
        rounding=jnp.asarray(1e-15),
    )


def state(old=None, length=0.5, radius=1.0, predicted=0.5, slope=1.0, **changes):
    """A state after some trips, with a step on trial."""
    start = initial_state(setting(), X)
    numbers = {"predicted": predicted, "slope": slope, "length": length}
    numbers = {name: jnp.asarray(value) for name, value in numbers.items()}
    trial = dataclasses.replace(start.trial, x=X + 0.1, **numbers)
    own = {
        "trial": trial,
        "point": point() if old is None else old,
        "radius": jnp.asarray(radius),
        "alpha": jnp.asarray(0.1),
        "nfev": NUMBER(3),
        "steps": NUMBER(2),
        "start_cost": jnp.asarray(10.0),
    }
    return dataclasses.replace(start, **(own | changes))


# Accept


SMALLER = (0.5, -0.5)  # a gradient after which the next step promises less
LARGER = (3.0, -3.0)
NEWTON = {"length": 0.5, "radius": 1.0}
AT_THE_EDGE = {"length": 1.0, "radius": 1.0}


@pytest.mark.parametrize(
    ("rules", "cost", "gradient", "step", "accepted"),
    [
        (OURS, 0.9, LARGER, AT_THE_EDGE, True),  # what lowers the cost
        (OURS, 1.1, SMALLER, NEWTON, False),
        (OURS, np.nan, SMALLER, NEWTON, False),
        (OURS, np.inf, SMALLER, NEWTON, False),
        (OURS, 1 + 1e-15, SMALLER, NEWTON, True),  # rounding, and nearer
        (OURS, 1 + 1e-15, LARGER, NEWTON, False),
        (OURS, 1 + 1e-15, SMALLER, AT_THE_EDGE, False),  # no Newton step
        (SCIPY, 0.9, LARGER, AT_THE_EDGE, True),
        (SCIPY, 1.0, SMALLER, NEWTON, False),  # SciPy knows no rounding
    ],
)
def test_accept(rules, cost, gradient, step, accepted):
    new = point(cost=cost, gradient=gradient)
    verdict = accept(setting(rules), state(**step), new, YES)
    assert bool(verdict.accepted) is accepted
    assert bool(verdict.is_step)
    assert bool(jnp.isnan(verdict.gain)) is not bool(np.isfinite(cost))


@pytest.mark.parametrize(("cost", "accepted"), [(1e300, True), (np.nan, False)])
def test_the_start_is_accepted_if_it_is_finite(cost, accepted):
    before = state(nfev=NUMBER(0))
    verdict = accept(setting(), before, point(cost=cost), YES)
    assert bool(verdict.accepted) is bool(verdict.is_finite) is accepted
    assert bool(verdict.is_first)
    assert not bool(verdict.is_step)


def test_what_a_frame_does_not_resolve_is_evaluated_again():
    framed = state()
    framed = dataclasses.replace(
        framed, trial=dataclasses.replace(framed.trial, framed=YES)
    )
    better, worse = point(cost=0.5), point(cost=2.0)
    assert bool(accept(setting(), framed, better, NO).repeated)
    for new in (better, worse):
        assert not bool(accept(setting(), framed, new, NO).accepted)
    assert not bool(accept(setting(), framed, worse, NO).repeated)


# The region


def verdict_of(gain, accepted, stays=False, is_step=True):
    flags = {
        "is_first": NO,
        "is_finite": YES,
        "accepted": jnp.asarray(accepted),
        "is_step": jnp.asarray(is_step),
        "repeated": jnp.asarray(stays),
        "wants_frame": NO,
        "stays": jnp.asarray(stays),
    }
    return Verdict(gain=jnp.asarray(gain), noise=jnp.asarray(1e-14), **flags)


@pytest.mark.parametrize(
    ("rules", "gain", "length", "radius"),
    [
        (OURS, 0.46, 1.0, 2.0),  # 92 % of what was promised, at the edge
        (OURS, 0.46, 0.5, 1.0),  # inside
        (OURS, 0.44, 1.0, 1.0),  # 88 %
        (OURS, 0.026, 1.0, 1.0),  # 5.2 %
        (OURS, 0.024, 1.0, 0.5 / 0.976),  # 4.8 %: the parabola's minimum
        (OURS, 0.12, 0.5, 0.25 / 0.88),  # 24 %, inside
        (SCIPY, 0.06, 1.0, 0.25),
        (SCIPY, 0.12, 1.0, 0.25),
        (SCIPY, 0.13, 1.0, 1.0),
        (SCIPY, 0.44, 1.0, 2.0),
    ],
)
def test_region_after_a_step(rules, gain, length, radius):
    before = state(length=length, predicted=0.5, slope=1.0)
    new = point(cost=0.5)
    stand = new_region(setting(rules), before, new, verdict_of(gain, True))
    np.testing.assert_allclose(stand.region.radius, radius, rtol=1e-12)
    np.testing.assert_allclose(stand.region.alpha * radius, 0.1)
    assert float(stand.point.linearization.cost) == 0.5
    assert int(stand.steps) == 3


@pytest.mark.parametrize(
    ("rules", "gain", "shrinkage"),
    [(OURS, -1.0, 0.4), (OURS, np.nan, 0.4), (OURS, 0.1, 0.5 / 0.9)]
    + [(SCIPY, gain, 0.25) for gain in (-1.0, np.nan)],
)
def test_region_after_a_refusal(rules, gain, shrinkage):
    before = state(length=0.5)
    stand = new_region(setting(rules), before, point(), verdict_of(gain, False))
    np.testing.assert_allclose(stand.region.radius, 0.5 * shrinkage, rtol=1e-12)
    assert int(stand.steps) == 2
    assert int(stand.tested) == RUNNING
    np.testing.assert_array_equal(stand.point.x, before.point.x)


def test_region_stays_where_there_was_no_step():
    stand = new_region(setting(), state(), point(), verdict_of(-1.0, False, stays=True))
    assert (float(stand.region.radius), float(stand.region.alpha)) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("predicted", "tested"), [(1e-20, Status.STALLED), (0.1, RUNNING)]
)
def test_a_refused_step_that_promised_but_rounding_stalls(predicted, tested):
    before = state(predicted=predicted, slope=predicted)
    stand = new_region(setting(), before, point(), verdict_of(-1e-18, False))
    assert int(stand.tested) == tested


# Judge


def judged(rules, tested, certified, verdict=None, **changes):
    stand = Stand(
        point=point(certified=certified),
        region=Region(jnp.asarray(1.0), jnp.asarray(0.0)),
        steps=NUMBER(3),
        tested=NUMBER(tested),
    )
    max_steps = changes.pop("max_steps", 100)
    verdict = verdict_of(0.1, True) if verdict is None else verdict
    status = judge(
        setting(rules, max_steps=max_steps), state(**changes), verdict, stand
    )
    return int(status)


@pytest.mark.parametrize(
    ("tested", "certified", "ours", "scipy"),
    [
        (Status.COST, True, Status.COST, Status.COST),
        (Status.COST, False, Status.STALLED, Status.COST),  # no certificate, no success
        (Status.STALLED, True, Status.STEP, Status.STALLED),
        (Status.STALLED, False, Status.STALLED, Status.STALLED),
        (RUNNING, True, RUNNING, RUNNING),
    ],
)
def test_a_success_is_certified(tested, certified, ours, scipy):
    assert judged(OURS, tested, certified) == ours
    assert judged(SCIPY, tested, certified) == scipy


def test_judge_limits_and_starts():
    assert judged(OURS, RUNNING, False, max_steps=4) == Status.MAX_STEPS
    assert judged(OURS, Status.GRADIENT, True, max_steps=4) == Status.GRADIENT
    nowhere = verdict_of(np.nan, False)._replace(is_first=YES, is_finite=NO)
    assert judged(OURS, RUNNING, False, nowhere) == Status.NONFINITE_START
    again = verdict_of(0.1, False, stays=True)
    assert judged(OURS, Status.STALLED, False, again) == RUNNING
    last = {"finishing": YES, "status": NUMBER(Status.STEP)}
    assert judged(OURS, RUNNING, True, **last) == Status.STEP


# Propose


def proposed(status, bounds=None, rules=OURS, radius=10.0, verdict=None, **own):
    stand = Stand(
        point=point(**own),
        region=Region(jnp.asarray(radius), jnp.asarray(0.0)),
        steps=NUMBER(3),
        tested=NUMBER(status),
    )
    verdict = verdict_of(0.1, True) if verdict is None else verdict
    return propose(
        setting(rules, bounds), state(), verdict, stand, NUMBER(status)
    ), stand.point


def test_propose_newton_step_inside_the_region():
    following, here = proposed(RUNNING)
    newton = -np.linalg.solve(HESSIAN, here.gradient)
    np.testing.assert_allclose(following.trial.x, here.x + newton, rtol=1e-12)
    np.testing.assert_allclose(
        following.trial.predicted, -0.5 * here.gradient @ newton, rtol=1e-12
    )
    assert float(following.alpha) == 0
    assert not bool(following.finishing)


def test_propose_damped_step_at_the_edge():
    following, here = proposed(RUNNING, radius=0.5)
    step = following.trial.x - here.x
    np.testing.assert_allclose(np.linalg.norm(step), 0.5, rtol=1e-12)
    damped = -np.linalg.solve(HESSIAN + following.alpha * np.eye(2), here.gradient)
    np.testing.assert_allclose(
        step / np.linalg.norm(step), damped / np.linalg.norm(damped), rtol=1e-2
    )


@pytest.mark.parametrize("rules", [OURS, SCIPY])
def test_propose_stays_inside_the_bounds(rules):
    bounds = Bounds(jnp.array([0.5, 0.0]), jnp.array([3.0, 2.5]))
    following, _here = proposed(RUNNING, bounds, rules)
    x = np.asarray(following.trial.x)
    assert np.all((x >= bounds.lower) & (x <= bounds.upper))
    assert float(following.trial.predicted) > 0
    if rules is SCIPY:
        assert np.all((x > bounds.lower) & (x < bounds.upper))


@pytest.mark.parametrize(("rules", "visits"), [(OURS, True), (SCIPY, False)])
def test_propose_a_last_trip_on_the_bound(rules, visits):
    """Near enough, and pushed there by the gradient; SciPy has no such trip."""
    bounds = Bounds(jnp.array([1.0 - 1e-9, 0.0]), jnp.array([3.0, 2.5]))
    following, _ = proposed(Status.COST, bounds, rules, certified=True)
    assert bool(following.finishing) is visits
    if visits:
        assert float(following.trial.x[0]) == float(bounds.lower[0])
        assert float(following.trial.x[1]) == 2.0


def test_propose_the_same_point_again():
    following, _ = proposed(RUNNING, verdict=verdict_of(0.1, False, stays=True))
    np.testing.assert_array_equal(following.trial.x, X + 0.1)
    assert not bool(following.trial.framed)
