"""Lanes at work: the queue of a batch of fits, and one fit among the lanes.

    put the first problems into the lanes
    while a lane holds a problem:
        while few lanes wait: one trip for every lane
        take the results out of lanes that have finished, and put new problems in

A trip is that of a single fit, on arrays whose last axis is the lanes. A lane that has
finished is frozen until it is refilled, so that its answer does not depend on its
neighbours, and nothing waits for the slowest fit but the end of the batch. The state of
the lanes stays in cache; memory grows with the number of problems only by their data
and their results.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Int, PyTree

from jaxfit._bounds import Bounds
from jaxfit._fits import Fits, is_none
from jaxfit._implicit import Outcome, Posed
from jaxfit._linearize import reduce_rows
from jaxfit._observed import whole_rows
from jaxfit._parameters import Parameters
from jaxfit._rows import Rows, Task, visit
from jaxfit._small import Room, choose, lanes_last, room, varying_with
from jaxfit._solution import Solution
from jaxfit._solve import is_running, problem_of, solution_of
from jaxfit._trip import Problem, State, initial_state, reached, restarted, trip

# Lanes wait until this part of them has finished.
REFILL = 8

# The rows and columns of all lanes together should take no more memory than this.
CPU, OTHER = Room(2**21, 64, 512), Room(2**29, 1024, 65536)


# One fit among the lanes


class Model(NamedTuple):
    """What is the same for all fits: a pytree of arrays and of what is none."""

    rows: Rows  # the residual function, traced; data and weights differ
    keep: Callable | None  # (solution, *keep_constants) -> what is kept
    keep_constants: list
    parameters: Parameters
    shared: PyTree  # of `Fits`
    problem: Problem  # bounds None: they differ from fit to fit
    gauss_newton: bool  # derivatives

    def start(self, each):
        """The flat start of one fit, and its own bounds."""
        x0, _, bounds, _ = Fits(each, self.shared).one(each)
        own = None
        if self.problem.bounds is None:
            own = self.parameters.bounds(bounds)
        return self.parameters.ravel(x0, "x0"), own

    def of_one(self, each) -> Rows:
        """The rows of one fit."""
        _, data, _, weights = Fits(each, self.shared).one(each)
        return self.rows._replace(observed=whole_rows(data, weights))

    def evaluate(self, x, directions, each):
        """Residuals, columns and weights of one fit."""
        return self.of_one(each).evaluated(x, directions)

    def bounds(self, own: Bounds | None) -> Bounds | None:
        """Of one fit."""
        bounds = self.problem.bounds
        if bounds is None:
            return own
        return Bounds(bounds.lower[:, 0], bounds.upper[:, 0])

    def posed(self, each) -> Posed:
        """One fit, for its derivatives."""
        bounds = self.bounds(self.start(each)[1])
        return Posed(self.of_one(each), bounds, self.gauss_newton)

    def report(self, found: Outcome, own: Bounds | None, trips) -> Any:
        """What is kept of one fit."""
        solution = solution_of(self.parameters, self.bounds(own), found, trips)
        if self.keep is None:
            return solution
        return self.keep(solution, *self.keep_constants)

    def of_lanes(self, own_bounds) -> Problem:
        """The problem of the lanes."""
        if own_bounds is None:
            return self.problem
        return eqx.tree_at(
            lambda p: p.bounds, self.problem, own_bounds, is_leaf=is_none
        )

    def linearize(self, each, x, frame):
        """The linearizations of the lanes."""
        evaluate = jax.vmap(self.evaluate, in_axes=(-1, -1, 0), out_axes=(0, 1, 0))
        residual, columns, weights = evaluate(x, frame.directions, each)
        # in memory the rows of a fit lie side by side: they are summed one by one
        residual, columns, weights = lanes_last((residual, list(columns), weights))
        return reduce_rows(residual, columns, weights, self.rows.loss, frame)


def model_of(fn, jac, keep, fits: Fits, loss, options) -> Model:
    first = jax.tree.map(_first, fits.each)
    x0, data, _, weights = fits.one(first)
    parameters = Parameters(x0)
    shared_bounds = None
    if not jax.tree.leaves(fits.each[2]):
        shared_bounds = parameters.bounds(fits.shared[2])
    if shared_bounds is not None:
        lower, upper = shared_bounds
        shared_bounds = Bounds(lower[:, None], upper[:, None])
    problem = problem_of(parameters, None, loss, options)
    if problem.x_scale is not None:
        problem = dataclasses.replace(problem, x_scale=problem.x_scale[:, None])
    problem = dataclasses.replace(problem, bounds=shared_bounds)
    x = varying_with(parameters.ravel(x0, "x0"), (first, fits.shared))
    rows = visit(None, Task(fn, jac, parameters.unravel, loss), data, weights, x)
    problem = dataclasses.replace(problem, is_smooth=rows.is_smooth)
    gauss_newton = options.derivative == "gauss-newton"
    model = Model(rows, None, [], parameters, fits.shared, problem, gauss_newton)
    if keep is None:
        return model
    example = jax.eval_shape(lambda: _example(model, first))
    keep, constants = jax.closure_convert(keep, example)
    return model._replace(keep=keep, keep_constants=constants)


def _first(leaf):
    """What one fit looks like: the first, if it can be had."""
    if len(leaf) and not is_explicit(leaf):
        return leaf[0]
    return jnp.zeros(leaf.shape[1:], leaf.dtype)


def _example(model: Model, each) -> Solution:
    """A solution of one fit, for its structure."""
    each = jax.tree.map(lambda leaf: leaf[None], each)
    state, own = _started(model, each)
    trips = jnp.zeros(1, jnp.int32)
    reports = jax.vmap(model.report, in_axes=(-1, -1, 0))(Outcome.of(state), own, trips)
    return jax.tree.map(lambda leaf: leaf[0], reports)


# The queue


class _Queue(eqx.Module):
    """Lanes at work, and what they have done."""

    state: State
    each: PyTree  # data and weights of the lanes, (L, ...)
    bounds: Bounds | None  # of the lanes, where they differ
    index: Int[Array, " L"]  # the fit in each lane; the number of fits where none is
    entered: Int[Array, " L"]  # the trip before which it came
    trips: Int[Array, ""]
    taken: Int[Array, ""]  # fits that have entered
    results: PyTree


def worked_through(model: Model, each: PyTree, count, lanes, report: Callable):
    """What is reported of the first `count` fits."""
    number = len(jax.tree.leaves(each)[0])
    if number == 0:
        each = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), each)
        out = worked_through(model, each, 0, 1, report)
        return jax.tree.map(lambda leaf: leaf[:0], out)
    if lanes is None:
        n, dtype = model.parameters.size, model.parameters.dtype
        lanes = default_lanes(model.rows.residuals.number, n, dtype)
    if number + lanes > np.iinfo(np.int32).max:
        raise ValueError(
            f"There are {number} fits, more than 32 bits count; give them to "
            "solve_blocks, or to more devices."
        )
    refill = max(1, lanes // REFILL)
    queue = _filled(model, each, number, count, lanes, report)
    queue = varying_with(queue, each)

    def is_unfinished(queue):
        return jnp.any(queue.index < number)

    def work(queue):
        queue = _until_refill(model, count, refill, queue)
        return _refilled(model, each, number, count, refill, report, queue)

    return lax.while_loop(is_unfinished, work, queue).results


def default_lanes(rows: int, n: int, dtype) -> int:
    """So many lanes that their residuals and columns stay in cache: a power of two."""
    return room(CPU, OTHER).holds(rows * (n + 2) * np.dtype(dtype).itemsize)


def _filled(model: Model, each, number: int, count, lanes: int, report) -> _Queue:
    """The first fits in the lanes."""
    index = jnp.arange(lanes, dtype=jnp.int32)
    enters = index < count
    come = jax.tree.map(lambda leaf: leaf.at[index].get(mode="clip"), each)
    state, bounds = _started(model, come)
    resting = jnp.zeros_like(state.status)
    state = dataclasses.replace(state, status=jnp.where(enters, state.status, resting))
    queue = _Queue(
        state=state,
        each=come,
        bounds=bounds,
        index=jnp.where(enters, index, number),
        entered=jnp.zeros(lanes, jnp.int32),
        trips=jnp.zeros((), jnp.int32),
        taken=jnp.sum(enters, dtype=jnp.int32),
        results=None,
    )
    first = jnp.zeros(1, jnp.int32)
    kept = jax.eval_shape(lambda: _reported(model, queue, first, report))
    results = jax.tree.map(lambda x: jnp.zeros((number, *x.shape[1:]), x.dtype), kept)
    return dataclasses.replace(queue, results=results)


def _refilled(model, each, number, count, refill, report, queue) -> _Queue:
    """Take results out of lanes that are at rest, and put new fits into them."""
    lanes = len(queue.index)
    resting = ~is_running(queue.state)
    resting = resting & ((queue.index < number) | (queue.taken < count))
    (place,) = jnp.nonzero(resting, size=refill, fill_value=lanes)

    # what has ended
    ended = queue.index.at[place].get(mode="fill", fill_value=number)
    found = _reported(model, queue, place, report)
    results = jax.tree.map(
        lambda all, some: all.at[ended].set(some, mode="drop"), queue.results, found
    )

    # what comes in
    new = queue.taken + jnp.arange(refill, dtype=jnp.int32)
    enters = (place < lanes) & (new < count)
    new = jnp.where(enters, new, number)
    come = jax.tree.map(lambda leaf: leaf.at[new].get(mode="clip"), each)
    fresh, bounds = _started(model, come)
    filled = jnp.where(enters, place, lanes)

    def put(old, new):
        return old.at[filled].set(new, mode="drop")

    return _Queue(
        state=restarted(queue.state, fresh, filled),
        each=jax.tree.map(put, queue.each, come),
        bounds=jax.tree.map(
            lambda old, new: old.at[:, filled].set(new, mode="drop"),
            *(queue.bounds, bounds),
        ),
        index=queue.index.at[place].set(new, mode="drop"),
        entered=put(queue.entered, queue.trips),
        trips=queue.trips,
        taken=queue.taken + jnp.sum(enters, dtype=jnp.int32),
        results=results,
    )


def _started(model, each) -> tuple[State, Bounds | None]:
    """States of some fits before their first trip, and their own bounds."""
    x0, bounds = jax.vmap(model.start, out_axes=-1)(each)
    return initial_state(model.of_lanes(bounds), x0), bounds


def _reported(model, queue, place, report) -> PyTree:
    """What is kept of the fits in some of the lanes."""

    def some(leaf):
        return leaf.at[..., place].get(mode="clip")

    here = jax.tree.map(lambda leaf: leaf.at[place].get(mode="clip"), queue.each)
    fresh, bounds = _started(model, here)
    state = reached(jax.tree.map(some, queue.state), fresh)
    trips = queue.trips - some(queue.entered)
    report = functools.partial(report, model)
    axes = -1, -1, 0
    return jax.vmap(report, in_axes=axes)(Outcome.of(state), bounds, trips)


def _until_refill(model, count, refill, queue) -> _Queue:
    """Trips of all lanes until enough of them wait for another fit.

    When no fit is left to enter, until all have finished.
    """
    problem = model.of_lanes(queue.bounds)
    linearize = functools.partial(model.linearize, queue.each)
    lanes = len(queue.index)

    def goes_on(carry):
        state, _ = carry
        running = is_running(state)
        resting = lanes - jnp.sum(running, dtype=jnp.int32)
        return jnp.any(running) & ((resting < refill) | (queue.taken >= count))

    def one_trip(carry):
        state, trips = carry
        running = is_running(state)
        new = trip(linearize, problem, state)
        return choose(running, new, state), trips + 1

    state, trips = lax.while_loop(goes_on, one_trip, (queue.state, queue.trips))
    return dataclasses.replace(queue, state=state, trips=trips)


def is_explicit(leaf) -> bool:
    """Whether the type of an array says how it lies on a mesh."""
    return AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types
