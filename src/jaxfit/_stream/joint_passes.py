"""A joint fit as passes over items of blocks: one for every trip, and one to report.

In a pass every item is fitted, or seen at its end, by one program: the sum over its
blocks is added to a running sum, as rows are in `stream.py`, and what it gives of each
block goes to tables of the host. Local parameters of a trial point that is accepted
become those of the fit; others are forgotten.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import solution_of
from jaxfit._core.parameters import Parameters
from jaxfit._core.setting import Setting, initial_state
from jaxfit._core.solution import Solution
from jaxfit._core.state import Point, State, is_running
from jaxfit._core.trip import frame_of
from jaxfit._joint.block import Factors, Local
from jaxfit._joint.blocks import Blocks
from jaxfit._joint.fit import (
    JointRequest,
    JointState,
    are_crossed,
    are_free,
    decided,
    frame_from,
    outcome_of,
    set_up_joint,
    shared_setting,
    starts_of_blocks,
    with_report,
)
from jaxfit._joint.solution import JointSolution
from jaxfit._linalg.kernels import Flags
from jaxfit._programs.compiled import compiled
from jaxfit._rows.linearization import Linearization, RunningSum
from jaxfit._rows.table import unwrap_shared
from jaxfit._stream.feed import Block, Nouns, filled_up
from jaxfit._stream.host import (
    HostStarts,
    Tables,
    check_number,
    cut,
    exchanged,
    filled,
    of_kind,
    split_like,
    with_item,
    without,
)
from jaxfit._stream.passes import Progress
from jaxfit._stream.stream import words_of

ITEMS = Nouns(block="Item", blocks="items", row="block", rows="blocks", can_omit=False)


class Standing(NamedTuple):
    """Where a joint fit stands between two passes."""

    state: State
    report: Linearization  # of the last pass
    is_reported: Bool[Array, ""]


class JointFit(NamedTuple):
    """A joint fit of items of blocks."""

    request: JointRequest  # without data; `u0` is one for all blocks
    starts: HostStarts

    @property
    def nouns(self) -> Nouns:
        """What items and blocks are called."""
        return ITEMS

    @property
    def without_functions(self) -> JointRequest:
        """What does not depend on the user's function."""
        return self.request._replace(fn=None)

    def start(self) -> Progress:
        """Before the first item."""
        first = compiled(_started, self.without_functions)
        return Progress.start(first.standing, first.running)

    def goes_on(self, state: Standing) -> bool:
        """Whether another pass follows."""
        return bool(is_running(state.state)) or not bool(state.is_reported)

    def with_block(self, progress: Progress, block: Block) -> Progress:
        """The sum and the tables with the blocks of another item."""
        check_number(self.starts, int(progress.rows) + block.rows, at_end=False)
        asked, standing = of_item(self.request, block), progress.state
        number, local = np.int32(block.rows), self._local(progress, block)
        if is_running(standing.state):
            kind, program, point = "trial", _fitted, standing.state
        else:
            kind, program, point = "factors", _reported, standing.state.point
        added = compiled(
            program, asked, point, local, number, donate=(progress.running,)
        )
        tables = with_item(progress, self.starts, kind, added.each, block.rows)
        return progress._replace(running=added.running, tables=tables)

    def _local(self, progress: Progress, block: Block) -> Local:
        """What is known of an item's local parameters before it is visited."""
        first = int(progress.rows)
        if "local.u" in progress.tables:
            rows = slice(first, first + block.rows)
            local = of_kind(progress.tables, "local", Local, rows)
        else:
            local = self._start(first, block.rows)
        return jax.tree.map(lambda leaf: filled_up(leaf, block.capacity), local)

    def _start(self, first: int, number: int) -> Local:
        """The start of the local parameters of some blocks."""
        u = jnp.asarray(self.starts.of_blocks(first, number))
        x = jnp.zeros(Parameters(self.request.x0).size, u.dtype)
        return jax.tree.map(np.asarray, Local.start(u, x))

    def decided(self, progress: Progress) -> Progress:
        """What follows from a pass."""
        rows = int(progress.rows)
        check_number(self.starts, rows, at_end=True)
        progress = progress._replace(tables=cut(progress.tables, rows))
        if not is_running(progress.state.state):
            return self._with_report(progress)
        turn = compiled(
            _decided, self.without_functions, progress.state, progress.running
        )
        tables = progress.tables
        if turn.has_moved:
            tables = exchanged(tables, "trial", "local")
        if not is_running(turn.standing.state):
            tables = without(tables, "trial")
        progress = progress._replace(
            state=turn.standing, running=turn.running, tables=tables
        )
        return self._with_start(progress, rows)

    def _with_start(self, progress: Progress, rows: int) -> Progress:
        """With the start of local parameters, where no others were accepted."""
        if "local.u" in progress.tables:
            return progress
        start = self._start(0, rows)
        tables = filled(progress.tables, "local", start, 0, rows, rows)
        return progress._replace(tables=tables)

    def _with_report(self, progress: Progress) -> Progress:
        """After the last pass."""
        progress = self._with_start(progress, int(progress.rows))
        report = compiled(RunningSum.total, progress.running)
        standing = progress.state._replace(report=report, is_reported=np.bool_(True))
        return progress._replace(state=standing)

    def solution(self, progress: Progress) -> JointSolution:
        """The result."""
        tables = progress.tables
        crossed = np.bool_(are_crossed(tables["local.status"]))
        solved = compiled(_solved, self.without_functions, progress.state, crossed)
        factors = of_kind(tables, "factors", Factors)
        return with_blocks(solved, self.starts, tables, factors)

    def words(self, state: Standing) -> list[str]:
        """Which pass this is, and how the fit stands."""
        heading, *parts = words_of(state.state)
        return [heading if is_running(state.state) else "last pass", *parts]


# What both ways of a joint fit have in common


def of_item(request: JointRequest, item: Block) -> JointRequest:
    """What is asked of the blocks of one item."""
    return request._replace(data=item.data, weights=item.weights)


class Solved(NamedTuple):
    """The result of a joint fit but for its blocks."""

    solution: Solution
    local_free: Flags


def solved(request: JointRequest, outcome: Outcome) -> Solved:
    """The result in the user's structure."""
    parameters, local = Parameters(request.x0), parameters_of_blocks(request)
    bounds = parameters.bounds(request.bounds)
    free = are_free(local, local.bounds(request.local_bounds))
    return Solved(solution_of(parameters, bounds, outcome), free)


def parameters_of_blocks(request: JointRequest) -> Parameters:
    """The local parameters of one block."""
    return Parameters(unwrap_shared(request.u0))


def with_blocks(
    solved: Solved, starts: HostStarts, tables: Tables, factors: Factors
) -> JointSolution:
    """The result with that of the blocks, in arrays of the host."""
    return JointSolution.of(
        solved.solution,
        local=split_like(starts.parameters, tables["local.u"]),
        local_status=tables["local.status"],
        local_free=np.asarray(solved.local_free),
        factors=factors,
    )


# Programs


class Turn(NamedTuple):
    """What follows from a pass."""

    standing: Standing
    running: RunningSum  # the empty sum of the next
    has_moved: Bool[Array, ""]  # the trial point was accepted


class Added(NamedTuple):
    """A sum with the blocks of another item, and what was found of each."""

    running: RunningSum
    each: Local | Factors


def _started(request: JointRequest) -> Turn:
    parameters = Parameters(request.x0)
    setting = shared_setting(parameters, request)
    state = initial_state(setting, parameters.ravel(request.x0, "x0"))
    no = jnp.zeros((), bool)
    standing = Standing(state, state.point.linearization, no)
    return Turn(standing, _nothing(setting, state), no)


def _nothing(setting: Setting, state: State) -> RunningSum:
    """The empty sum of a pass at the trial point, or at the end of the fit."""
    last, following = state.point.linearization.frame, frame_of(state).inverse
    frame = jnp.where(is_running(state), following, last)
    return RunningSum.of_nothing(state.trial.x, frame, setting.kind, is_swept=True)


def _fitted(
    request: JointRequest,
    state: State,
    local: Local,
    number: Int[Array, ""],
    running: RunningSum,
) -> Added:
    setup = set_up_joint(request)
    starts = starts_of_blocks(setup, JointState(state, local))
    x, frame = state.trial.x, frame_of(state)
    blocks = _first_of(setup.blocks, number)
    return Added(*blocks.fitted_with(running, x, frame, starts))


def _reported(
    request: JointRequest,
    point: Point,
    local: Local,
    number: Int[Array, ""],
    running: RunningSum,
) -> Added:
    blocks = _first_of(set_up_joint(request).blocks, number)
    frame = frame_from(point.linearization)
    return Added(*blocks.reported_with(running, point.x, frame, local.u))


def _first_of(blocks: Blocks, number: Int[Array, ""]) -> Blocks:
    """Blocks of which only the first count."""
    return blocks._replace(valid=number)


def _decided(request: JointRequest, standing: Standing, running: RunningSum) -> Turn:
    setting = shared_setting(Parameters(request.x0), request)
    turn = decided(setting, standing.state, running.total())
    following = standing._replace(state=turn.state)
    return Turn(following, _nothing(setting, turn.state), turn.has_moved)


def _solved(
    request: JointRequest, standing: Standing, crossed: Bool[Array, ""]
) -> Solved:
    outcome = outcome_of(standing.state, crossed)
    return solved(request, with_report(outcome, standing.report))
