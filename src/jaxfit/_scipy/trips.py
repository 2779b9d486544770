"""A fit one trip at a time: where it is watched, or asks the host in between.

Between two trips a fit is one vector, since every array into and out of a program takes
time: what is looked at from outside first, and then the whole state.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxfit._core.certificate import (
    RUNNING,
    Status,
    is_certified,
    projected_gradient,
)
from jaxfit._core.derivative import Outcome
from jaxfit._core.setting import initial_state
from jaxfit._core.state import State
from jaxfit._core.trip import trip
from jaxfit._linalg.kernels import Flag
from jaxfit._programs.compiled import compiled, prepared, specialised
from jaxfit._programs.host import pack
from jaxfit._programs.one_function import one_function
from jaxfit._rows.linearization import columns_of
from jaxfit._scipy.request import Compared, Door, ScipyRequest, setup_of, told

MOST_NOISE = 1e-3  # of a difference, relative


class Glance(NamedTuple):
    """What is looked at between two trips."""

    status: Any
    finishing: Any
    steps: Any
    nfev: Any
    cost: Any
    optimality: Any
    trial: Any  # where the next trip goes
    x: Any  # where the fit stands

    @classmethod
    def of(cls, state: State) -> "Glance":
        """At a state, in a program."""
        return cls(
            status=state.status,
            finishing=state.finishing,
            steps=state.steps,
            nfev=state.nfev,
            cost=state.point.linearization.cost,
            optimality=state.point.optimality,
            trial=state.trial.x,
            x=state.point.x,
        )

    @classmethod
    def at(cls, vector: np.ndarray, n: int) -> "Glance":
        """On the host, of a fit of n parameters."""
        status, finishing, steps, nfev, cost, optimality = vector[:6].tolist()
        counts = int(status), bool(finishing), int(steps), int(nfev)
        trial, x = np.array(vector[6 : 6 + 2 * n]).reshape(2, n)
        return cls(*counts, cost, optimality, trial, x)

    @property
    def is_running(self) -> bool:
        """Whether another trip follows."""
        return self.status == RUNNING or self.finishing


class Trips:
    """A fit, trip by trip: an iterator over what can be seen after each."""

    def __init__(self, door: Door, request: ScipyRequest):
        self._door, self._request = door, request
        self._n = len(request.x0)
        rest = request._replace(f=None, jac=None, problem=None)
        self._on_device = _on_device(rest)
        start = self._at(request.x0)
        self._vector = np.asarray(compiled(specialised(_started, door), start))
        self._next = prepared(specialised(_next, door), start, self._vector)
        self._is_stopped = False

    def __iter__(self) -> Iterator[Glance]:
        glance = Glance.at(self._vector, self._n)
        while glance.is_running and not self._is_stopped:
            here = self._at(glance.trial)
            self._vector = np.asarray(self._next(here, self._vector))
            glance = Glance.at(self._vector, self._n)
            yield glance

    def _at(self, x: np.ndarray) -> ScipyRequest:
        """The request, with what functions on the host give at a point."""
        here = self._request.at_point(self._door, x)
        return self._on_device._replace(f=here.f, jac=here.jac)

    def finish(self) -> None:
        """All trips."""
        for _ in self:
            pass

    def stop(self) -> None:
        """Let the last trip have been the last."""
        self._is_stopped = True

    def ended(self) -> Any:
        """What is told of the fit."""
        request, glance = self._request, Glance.at(self._vector, self._n)
        here = self._at(glance.x)
        status = np.int32(Status.STOPPED if self._is_stopped else glance.status)
        if status == Status.STALLED and self._is_in_noise(here, glance.x):
            status = np.int32(Status.STEP)
        program = specialised(_ended, self._door, request.compared)
        here = here._replace(problem=request.problem)
        return compiled(program, here, self._vector, status)

    def _is_in_noise(self, here: ScipyRequest, x: np.ndarray) -> bool:
        """Whether the gradient is as small as differences can tell."""
        spread = self._request.spread(self._door, x)
        if spread is None:
            return False
        program = specialised(_is_in_noise, self._door)
        return bool(compiled(program, here, spread, self._vector))


def _on_device(request: ScipyRequest) -> ScipyRequest:
    """Arrays and numbers once and for all where programs want them."""
    leaves, structure = jax.tree.flatten(request)
    kinds = np.ndarray, np.generic, float
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, kinds)]
    moved = jax.device_put([np.asarray(leaves[k]) for k in places])
    for k, array in zip(places, moved, strict=True):
        leaves[k] = array
    return jax.tree.unflatten(structure, leaves)


def _packed(state: State) -> Float[Array, " k"]:
    return jnp.concatenate([pack(Glance.of(state)), pack(state)])


def _unpacked(vector: Float[Array, " k"], like: State) -> State:
    """The state in a vector.

    Args:
        like: has its structure, shapes and dtypes.
    """
    leaves, structure = jax.tree.flatten(like)
    sizes = [leaf.size for leaf in leaves]
    parts = jnp.split(vector[vector.size - sum(sizes) :], np.cumsum(sizes)[:-1])
    pairs = zip(parts, leaves, strict=True)
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in pairs]
    )


def _started(door: Door, request: ScipyRequest) -> Float[Array, " k"]:
    setup = setup_of(door, request)
    return _packed(initial_state(setup.setting, setup.start))


def _next(
    door: Door, request: ScipyRequest, vector: Float[Array, " k"]
) -> Float[Array, " k"]:
    setup = setup_of(door, request)
    arrays, rest = eqx.partition(setup, eqx.is_array)

    def advanced(operands: tuple) -> Float[Array, " k"]:
        arrays, vector = operands
        setup = eqx.combine(arrays, rest)
        state = _unpacked(vector, initial_state(setup.setting, setup.start))
        return _packed(trip(setup.rows.linearize, setup.setting, state))

    operands = arrays, vector
    is_one = setup.is_one_function
    return one_function(advanced, operands) if is_one else advanced(operands)


def _ended(
    door: Door,
    compared: Compared,
    request: ScipyRequest,
    vector: Float[Array, " k"],
    status: Int[Array, ""],
) -> Any:
    setup = setup_of(door, request)
    state = _unpacked(vector, initial_state(setup.setting, setup.start))
    state = dataclasses.replace(state, status=status)
    return told(door, compared, request, setup, Outcome.of(state))


def _is_in_noise(
    door: Door, request: ScipyRequest, spread: ScipyRequest, vector: Float[Array, " k"]
) -> Flag:
    """The certificate, with a limit that grows by max_i |E_i| |r| / |J_i|.

    E is how far forward and backward differences are apart. Where that is much, it is
    no noise.
    """
    setup = setup_of(door, request)
    state = _unpacked(vector, initial_state(setup.setting, setup.start))
    x, bounds = state.point.x, setup.setting.bounds
    lin = state.point.linearization
    _, slopes = setup.rows.residual_and_jacobian(x)
    _, apart = setup_of(door, spread).rows.residual_and_jacobian(x)
    sizes = jnp.linalg.norm(slopes, axis=0)
    share = jnp.max(jnp.where(sizes > 0, jnp.linalg.norm(apart, axis=0) / sizes, 0))
    noise = share * jnp.sqrt(lin.squared_residual)
    projected = projected_gradient(x, columns_of(lin), lin, bounds)
    rounding = state.point.rounding + noise / 8
    start_cost = state.start_cost
    certified = is_certified(x, lin, projected, rounding, start_cost, bounds)
    return certified & (share <= MOST_NOISE)
