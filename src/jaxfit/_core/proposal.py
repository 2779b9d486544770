"""Where the next trip goes: a step, the same point again, or the last one."""

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.bounds import (
    select_step,
    snap,
    stay_inside,
)
from jaxfit._core.certificate import (
    RUNNING,
    Status,
)
from jaxfit._core.decisions import Stand, Verdict
from jaxfit._core.quadratic import trust_region_step
from jaxfit._core.setting import Setting
from jaxfit._core.state import State, Trial
from jaxfit._linalg.branches import (
    branch,
)
from jaxfit._linalg.inverse import is_lossy
from jaxfit._linalg.kernels import Flag, Scalar, some
from jaxfit._linalg.precision import precision_of

# A parameter nearer to its bound than this times |r| / |J_i|, with the largest |J_i| so
# far, is put on it at the end.
SNAP_REACH = 1e-4


class Following(NamedTuple):
    """The trial point of the next trip, and whether it is the last."""

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
        state,
        stand,
        status,
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
    is_useful = (lossy & ~linearization.framed) | linearization.is_limited
    if bounds is not None:
        reach = SNAP_REACH * jnp.sqrt(linearization.squared_scale)
        largest_norms = jnp.sqrt(point.largest_norms)
        reach = jnp.where(largest_norms > 0, reach / largest_norms, 0)
        x = snap(x, point.gradient, point.squared_norms, bounds, reach)
        is_useful = is_useful | some(x != point.x)
    ended = (status > 0) | (status == jnp.int32(Status.STALLED))
    finishing = ended & ~state.finishing & is_useful
    trial = dataclasses.replace(state.trial, x=x, framed=finishing & lossy)
    return Following(trial, stand.region.alpha, finishing)
