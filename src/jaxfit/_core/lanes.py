"""Lanes at work: many fits at once, in vectors; see `many.py`.

    put the first fits into the lanes
    while a lane holds a fit:
        while few lanes wait: one trip for every lane
        take the results out of lanes that have finished, and put new fits in

A trip is that of a single fit, on arrays whose last axis is the lanes. A lane that has
finished is frozen until it is refilled, so that its answer does not depend on its
neighbours, and nothing waits for the slowest fit but the end of the batch. Memory grows
with the number of fits only by their data and their results.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from jaxfit._core.certificate import Status
from jaxfit._core.derivative import Outcome
from jaxfit._core.setting import Setting, initial_state
from jaxfit._core.state import State, is_running, reached, restarted
from jaxfit._core.trip import trip
from jaxfit._linalg.branches import choose, varying_with
from jaxfit._programs.memory import Budget
from jaxfit._rows.linearization import Frame, Linearization

# Lanes wait until this part of them has finished.
REFILL = 8

# The rows and columns of all lanes together should take no more memory than this.
LANES = Budget(2**29, 1024, 65536)


class Many(NamedTuple):
    """All fits: what differs among them, and how the arrays of one make a fit."""

    number: int
    each: PyTree  # leaves with a leading axis; None for those that all share
    shared: PyTree  # the others
    idle: Bool[Array, " N"] | None  # not fitted
    rebuild: Callable  # from the arrays of one fit to its setup and its report

    def setup(self, arrays: PyTree) -> Any:
        """One fit."""
        return self.rebuild(eqx.combine(arrays, self.shared))[0]

    def some(self, places: Int[Array, " K"]) -> PyTree:
        """The arrays of some fits."""
        return _some(self.each, places)

    def started(self, arrays: PyTree) -> tuple[State, Setting]:
        """States of some fits before their first trip, and their settings."""

        def of_one(arrays: PyTree) -> tuple[Setting, Array]:
            setup = self.setup(arrays)
            return setup.setting, setup.start

        setting, start = jax.vmap(of_one, out_axes=-1)(arrays)
        return initial_state(setting, start), setting

    def entered(
        self, places: Int[Array, " K"], arrays: PyTree
    ) -> tuple[State, Setting]:
        """`started` of the fits in some places; what is not fitted rests."""
        state, setting = self.started(arrays)
        idle = places >= self.number
        if self.idle is not None:
            idle = idle | self.idle.at[places].get(mode="clip")
        status = jnp.where(idle, jnp.int32(Status.MAX_STEPS), state.status)
        return dataclasses.replace(state, status=status), setting

    @property
    def rows(self) -> Any:
        """The rows of one fit, whichever."""
        return self.setup(_some(self.each, 0)).rows

    def linearize(self, arrays: PyTree) -> Callable:
        """The linearizations of some fits."""

        def of_one(arrays: PyTree, x: Array, frame: Frame) -> Linearization:
            return self.setup(arrays).rows.in_columns(False).linearize(x, frame)

        in_lanes = jax.vmap(of_one, in_axes=(0, -1, -1), out_axes=-1)
        return lambda x, frame: in_lanes(arrays, x, frame)

    def reports(self, arrays: PyTree, state: State) -> PyTree:
        """What is reported of some fits."""

        def of_one(arrays: PyTree, outcome: Outcome) -> Any:
            setup, report = self.rebuild(eqx.combine(arrays, self.shared))
            return report(setup, outcome)

        return jax.vmap(of_one, in_axes=(0, -1))(arrays, Outcome.of(state))


class Queue(eqx.Module):
    """Lanes at work, and what they have done."""

    state: State
    setting: Setting  # of the lanes
    arrays: PyTree  # of `Many.each`, those in the lanes
    index: Int[Array, " L"]  # the fit in each lane; the number of fits where none is
    taken: Int[Array, ""]  # fits that have entered
    results: PyTree


def worked_through(
    rebuild: Callable,
    lanes: int | None,
    each: PyTree,
    shared: PyTree,
    idle: Bool[Array, " N"] | None,
    number: int,
) -> PyTree:
    """What is reported of each of so many fits.

    Args:
        rebuild: from the arrays of one fit to its setup and its report.
        lanes: fits in flight; None: so many that they keep the device busy.
        each: the arrays that differ among the fits; None for others.
        shared: those that all share.
        idle: marks what is not fitted; None: nothing.
        number: of fits.
    """
    many = Many(number, each, shared, idle, rebuild)
    if lanes is None:
        lanes = _default_lanes(many)
    if number + lanes > np.iinfo(np.int32).max:
        raise ValueError(
            f"There are {number} fits, more than 32 bits count; give them to "
            "solve_blocks, or to more devices."
        )
    refill = max(1, lanes // REFILL)
    queue = varying_with(_filled(many, lanes), each)

    def is_unfinished(queue: Queue) -> Bool[Array, ""]:
        return jnp.any(queue.index < number)

    def work(queue: Queue) -> Queue:
        queue = _until_refill(many, refill, queue)
        return _refilled(many, refill, queue)

    return lax.while_loop(is_unfinished, work, queue).results


def _default_lanes(many: Many) -> int:
    """A power of two."""
    setup = many.setup(_some(many.each, 0))
    n, dtype = len(setup.start), setup.start.dtype
    rows = setup.rows.residuals.number
    return LANES.holds(rows * (n + 2) * np.dtype(dtype).itemsize)


def _some(tree: PyTree, places: Any) -> PyTree:
    """The arrays of some fits."""
    return jax.tree.map(lambda leaf: leaf.at[places].get(mode="clip"), tree)


def _filled(many: Many, lanes: int) -> Queue:
    """The first fits in the lanes."""
    index = jnp.arange(lanes, dtype=jnp.int32)
    arrays = many.some(index)
    state, setting = many.entered(index, arrays)
    number = many.number
    kept = jax.eval_shape(many.reports, arrays, state)
    results = jax.tree.map(lambda x: jnp.zeros((number, *x.shape[1:]), x.dtype), kept)
    return Queue(
        state=state,
        setting=setting,
        arrays=arrays,
        index=jnp.minimum(index, number),
        taken=jnp.int32(min(lanes, number)),
        results=results,
    )


def _until_refill(many: Many, refill: int, queue: Queue) -> Queue:
    """Trips of all lanes until enough of them wait for another fit.

    When no fit is left to enter, until all have finished.
    """
    linearize, agreed = many.linearize(queue.arrays), many.rows.agreed
    lanes = len(queue.index)

    def goes_on(state: State) -> Bool[Array, ""]:
        running = is_running(state)
        resting = lanes - jnp.sum(running, dtype=jnp.int32)
        return jnp.any(running) & ((resting < refill) | (queue.taken >= many.number))

    def one_trip(state: State) -> State:
        new = agreed(trip(linearize, queue.setting, state))
        return choose(is_running(state), new, state)

    state = lax.while_loop(goes_on, one_trip, queue.state)
    return dataclasses.replace(queue, state=state)


def _refilled(many: Many, refill: int, queue: Queue) -> Queue:
    """Take results out of lanes that are at rest, and put new fits into them."""
    # which lanes are at rest
    lanes, number = len(queue.index), many.number
    resting = ~is_running(queue.state)
    resting = resting & ((queue.index < number) | (queue.taken < number))
    (place,) = jnp.nonzero(resting, size=refill, fill_value=lanes)

    # the results of what has ended
    ended = queue.index.at[place].get(mode="fill", fill_value=number)
    arrays = _some(queue.arrays, place)
    state = jax.tree.map(lambda x: x.at[..., place].get(mode="clip"), queue.state)
    state = reached(state, many.started(arrays)[0])
    results = jax.tree.map(
        lambda whole, part: whole.at[ended].set(part, mode="drop"),
        queue.results,
        many.reports(arrays, state),
    )

    # new fits in their places, as long as there are any
    new = queue.taken + jnp.arange(refill, dtype=jnp.int32)
    enters = (place < lanes) & (new < number)
    new = jnp.where(enters, new, number)
    arrays = many.some(new)
    fresh, setting = many.entered(new, arrays)
    filled = jnp.where(enters, place, lanes)
    return Queue(
        state=restarted(queue.state, fresh, filled),
        setting=jax.tree.map(
            lambda old, new: old.at[..., filled].set(new, mode="drop"),
            queue.setting,
            setting,
        ),
        arrays=jax.tree.map(
            lambda old, new: old.at[filled].set(new, mode="drop"), queue.arrays, arrays
        ),
        index=queue.index.at[place].set(new, mode="drop"),
        taken=queue.taken + jnp.sum(enters, dtype=jnp.int32),
        results=results,
    )
