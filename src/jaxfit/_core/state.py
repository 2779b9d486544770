"""What a fit knows between two trips: one immutable pytree."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.bounds import ScaledModel
from jaxfit._core.certificate import RUNNING, Status
from jaxfit._core.kink import Search
from jaxfit._core.quadratic import Reduced
from jaxfit._linalg.branches import choose
from jaxfit._linalg.kernels import Flag, Scalar, Vector, bordered, identity
from jaxfit._rows.linearization import Kind, Linearization, without_rows


class Trial(eqx.Module):
    """A point to evaluate, and what the model expects of it."""

    x: Vector
    framed: Flag  # differentiate in the frame that the last accepted point gives
    predicted: Scalar  # the reduction of the cost
    slope: Scalar  # of the cost along the step, downhill
    length: Scalar  # of the step, in the variables of the model

    @classmethod
    def of_nothing(cls, x: Vector) -> "Trial":
        """A point of which nothing is expected."""
        zero = jnp.zeros_like(x[0])
        return cls(x=x, framed=zero != 0, predicted=zero, slope=zero, length=zero)


class Point(eqx.Module):
    """A point that was evaluated."""

    x: Vector
    linearization: Linearization
    gradient: Vector  # of the cost
    squared_norms: Vector  # of the columns of the Jacobian
    largest_norms: Vector  # the same, the largest so far
    model: ScaledModel
    optimality: Scalar
    certified: Flag
    rounding: Scalar  # how far rounding x alone moves the residual vector

    @classmethod
    def not_evaluated(cls, x: Vector, kind: Kind, is_swept: bool = False) -> "Point":
        """A point that is worse than any other: its cost is infinite."""
        zeros, zero = jnp.zeros_like(x), jnp.zeros_like(x[0])
        nothing = without_rows(zeros, identity(x), kind, is_swept)
        return cls(
            x=x,
            linearization=_infinitely_bad(nothing),
            gradient=zeros,
            squared_norms=zeros,
            largest_norms=zeros,
            model=ScaledModel(Reduced.of_nothing(x), zeros, zeros),
            optimality=zero + jnp.inf,
            certified=zero != 0,
            rounding=zero,
        )


class State(eqx.Module):
    """The whole fit between two trips."""

    # changes on every trip
    trial: Trial
    radius: Scalar
    alpha: Scalar  # damping
    nfev: Int[Array, "*lanes"]
    finishing: Flag  # the next trip is the last
    search: Search | None  # of a kink, where it has stalled
    # changes when the trial point is accepted
    point: Point
    steps: Int[Array, "*lanes"]
    # changes once
    status: Int[Array, "*lanes"]
    start_cost: Scalar


def is_running(state: State) -> Any:
    """Whether another trip follows."""
    return (state.status == RUNNING) | state.finishing


def _infinitely_bad(linearization: Linearization) -> Linearization:
    """A linearization with an infinite cost."""
    normal, terms = linearization.normal, linearization.terms
    infinite = jnp.full_like(normal[0, 0], jnp.inf)
    worst = bordered(normal[:-1, :-1], normal[-1, :-1], infinite)
    if terms is not None:
        terms = dataclasses.replace(terms, cost=infinite)
    return dataclasses.replace(linearization, normal=worst, terms=terms)


def never_left(status: Int[Array, "*lanes"]) -> Flag:
    """Whether a fit has ended where it could not be started."""
    is_nonfinite = status == jnp.int32(Status.NONFINITE_START)
    return is_nonfinite | (status == jnp.int32(Status.INVALID_BOUNDS))


# In lanes


def restarted(state: State, fresh: State, lanes: Int[Array, " K"]) -> State:
    """The state with K fresh fits in some of its lanes.

    Only what a first trip reads is put there: see `reached` for a fit that it ends. A
    lane beyond the last is dropped.
    """

    def read(state: State) -> tuple:
        trial, search = state.trial, state.search
        modes = () if search is None else (search.mode,)
        norms = state.point.largest_norms
        counts = state.nfev, state.steps, state.status
        return trial.x, trial.framed, norms, state.finishing, *counts, *modes

    put = [
        old.at[..., lanes].set(new, mode="drop")
        for old, new in zip(read(state), read(fresh), strict=True)
    ]
    return eqx.tree_at(read, state, put)


def reached(state: State, fresh: State) -> State:
    """The state with the start for its point where no trip has accepted any."""
    point = choose(never_left(state.status), fresh.point, state.point)
    return dataclasses.replace(state, point=point)
