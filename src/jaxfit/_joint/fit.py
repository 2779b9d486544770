"""A joint fit as a value: what is set up from a request, the loop, what is found."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._core.bounds import Bounds
from jaxfit._core.certificate import Status
from jaxfit._core.derivative import (
    Differentiable,
    Outcome,
    derived_from,
)
from jaxfit._core.fit import Request, set_up, setting_of, solution_of
from jaxfit._core.options import (
    Options,
    without_callable,
)
from jaxfit._core.parameters import Parameters
from jaxfit._core.setting import Setting, initial_state
from jaxfit._core.state import State, is_running, never_left
from jaxfit._core.trip import decide, frame_of
from jaxfit._joint.affine import check_affine
from jaxfit._joint.block import Factors, Local, OwnStarts
from jaxfit._joint.blocks import Blocks
from jaxfit._joint.compress import (
    as_of_all,
    can_be_mixed,
    images,
    local_of,
    mixed,
    units_of,
)
from jaxfit._joint.known import Known
from jaxfit._joint.solution import JointSolution
from jaxfit._linalg.branches import choose, varying_with
from jaxfit._linalg.kernels import MANY, Flags, every, transpose
from jaxfit._linalg.rotations import inverse_of
from jaxfit._programs.call import Static
from jaxfit._programs.memory import Budget, budget
from jaxfit._programs.one_function import is_possible
from jaxfit._rows.linearization import Frame, Linearization
from jaxfit._rows.table import RowTable, Shared, split_rows
from jaxfit._rows.ways import Chunked, Sharded, Whole
from jaxfit.losses import Likelihood, Loss

# Blocks that are worked on at once, by what one of them takes.
CPU, OTHER = Budget(2**22, 64, 4096), Budget(2**28, 1024, 2**20)

# Evaluations of a block at one point x, at most. One that needs more goes on at the
# next point: its minimum may lie at infinity as long as x is not the right one.
OWN_STEPS = 25


class JointRequest(NamedTuple):
    """What is asked of a joint fit, checked; a pytree."""

    fn: Any
    x0: PyTree
    u0: PyTree
    data: PyTree
    bounds: Any
    local_bounds: Any
    weights: PyTree
    loss: Loss | Likelihood | None
    options: Options
    rows: Whole | Chunked | Sharded | None
    is_affine: Static  # a bool: in the local parameters


class JointSetup(NamedTuple):
    """A joint fit before its first trip: a pytree of arrays and of what is none."""

    parameters: Parameters  # of x
    local_parameters: Parameters  # of the u of one block
    setting: Setting
    blocks: Blocks
    start: Float[Array, " n"]
    local_start: Float[Array, "B l"]
    gauss_newton: bool
    is_mixed: bool  # few blocks give the same fit: see `compress.py`

    @property
    def known(self) -> Known:
        """What blocks have for themselves, where they differ in their data alone."""
        return Known(self.blocks, varying_with(self.start, self.blocks.like))

    @property
    def differentiable(self) -> Differentiable:
        """What derivatives are taken of."""
        return Differentiable(self.blocks, self.setting.bounds, self.gauss_newton)


class JointState(NamedTuple):
    """The whole fit between two trips."""

    state: State
    local: Local  # at the point where the fit stands


def set_up_joint(request: JointRequest) -> JointSetup:
    """Trace the residuals of one block, and flatten the parameters."""
    x0, u0, table = tables(request)
    parameters = Parameters(x0)
    start = parameters.ravel(x0, "x0")
    of_one = Parameters(jax.tree.map(lambda leaf: leaf[0], u0))
    local_start = jax.vmap(lambda u: of_one.ravel(u, "u0"))(u0)
    numbers = (table.rows, request.bounds, request.local_bounds, local_start)
    start = varying_with(start, numbers)
    local_start = varying_with(local_start, (numbers, start))
    fn, unravel = request.fn, parameters.unravel

    def residual(u: PyTree, both: tuple) -> PyTree:
        return fn(unravel(both[0]), u, both[1])

    data, weights = table.with_rows([leaf[0] for leaf in table.rows])
    options = request.options
    own_options = dataclasses.replace(options, x_scale="jac", max_steps=OWN_STEPS)
    own_options, jac = without_callable(own_options)
    template = set_up(
        Request(
            fn=residual,
            jac=jac,
            x0=of_one.unravel(local_start[0]),
            data=(start, data),
            bounds=request.local_bounds,
            weights=weights,
            loss=request.loss,
            options=own_options,
        )
    )
    if request.is_affine.value:
        check_affine(template.rows.residuals, template.start, template.rows.table.rows)
    own = dataclasses.replace(template.setting, may_search=False)
    template = template._replace(setting=own)
    if len(start) + of_one.size > MANY:  # products of matrices, from a library
        template = template._replace(is_one_function=False, in_parts=False)
    blocks = _visited_as(
        request.rows,
        Blocks(
            table=table,
            template=template,
            is_affine=request.is_affine.value,
            like=start,
        ),
    )
    return JointSetup(
        parameters=parameters,
        local_parameters=of_one,
        setting=shared_setting(parameters, request),
        blocks=blocks,
        start=start,
        local_start=local_start,
        gauss_newton=options.derivative == "gauss-newton",
        is_mixed=can_be_mixed(blocks, start),
    )


def _visited_as(rows: Whole | Chunked | Sharded | None, blocks: Blocks) -> Blocks:
    """The blocks, visited as they are asked to be; None: as many at once as is good."""
    if isinstance(rows, Whole):
        return blocks
    if rows is None:
        assert blocks.like is not None
        width = len(blocks.like) + len(blocks.template.start) + 2
        each = blocks.template.rows.residuals.number * width
        size = budget(CPU, OTHER).holds(each * blocks.like.dtype.itemsize)
    else:
        size = rows.size
    if size is not None:
        blocks = blocks._replace(size=min(size, blocks.table.number))
    if not isinstance(rows, Sharded):
        return blocks
    valid = None if rows.counts is None else rows.counts[0]
    return blocks._replace(axes=rows.axes, valid=valid)


def tables(request: JointRequest) -> tuple[PyTree, PyTree, RowTable]:
    """The starts, in one dtype, and the data of all blocks."""
    table = split_rows(request.data, request.weights)
    number = table.number
    if number == 0:
        raise ValueError("data has no blocks; a fit needs at least one.")

    def of_blocks(path: Any, leaf: Any) -> Array:
        if isinstance(leaf, Shared):
            whole = jnp.asarray(leaf.leaf)
            return jnp.broadcast_to(whole, (number, *whole.shape))
        if np.shape(leaf)[:1] != (number,):
            raise ValueError(
                f"u0{jax.tree_util.keystr(path)} has the shape {np.shape(leaf)}, and "
                f"data has {number} blocks: give starts with the blocks as their "
                "leading axis, or Shared(start) for one that is the same for all."
            )
        return jnp.asarray(leaf)

    def is_shared(node: Any) -> bool:
        return isinstance(node, Shared)

    u0 = jax.tree.map_with_path(of_blocks, request.u0, is_leaf=is_shared)
    starts = in_one_dtype(request.x0, u0)
    return starts.x0, starts.u0, table


class Starts(NamedTuple):
    """The starts of shared and local parameters."""

    x0: PyTree
    u0: PyTree


def in_one_dtype(x0: PyTree, u0: PyTree) -> Starts:
    """Both starts in the dtype that can hold either."""
    dtype = jnp.promote_types(Parameters(u0).dtype, Parameters(x0).dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), Starts(x0, u0))


def shared_setting(parameters: Parameters, request: JointRequest) -> Setting:
    """What does not change during the fit of x."""
    options = request.options
    of_x = Request(
        fn=None,
        jac=None,
        x0=request.x0,
        data=None,
        bounds=request.bounds,
        weights=None,
        loss=request.loss,
        options=without_callable(options)[0],
    )
    is_few = parameters.size <= MANY
    return dataclasses.replace(
        setting_of(parameters, of_x),
        may_search=False,
        is_swept=True,
        in_one_function=is_possible(options.one_function) and is_few,
    )


def run_joint(setup: JointSetup) -> Outcome:
    """From the start to the end of a joint fit."""
    if not setup.is_mixed:
        return _loop(setup)
    blocks, known = setup.blocks, setup.known
    number = blocks.table.number if blocks.valid is None else blocks.valid
    outcome = run_few(setup, mixed(known), number)
    local = local_of(known, images(known, outcome.x))
    return outcome._replace(local=local.u, local_status=local.status)


def run_few(setup: JointSetup, few: Blocks, number: Any) -> Outcome:
    """The fit of few blocks in the place of all, without their local parameters."""
    start = jnp.zeros((few.table.number, setup.local_start.shape[1]))
    start = varying_with(start.astype(setup.start.dtype), setup.start)
    outcome = _loop(setup._replace(blocks=few, local_start=start))
    return outcome._replace(
        linearization=as_of_all(setup.known, outcome.linearization, number),
        local=None,
        local_status=None,
    )


def _loop(setup: JointSetup) -> Outcome:
    """One trip after the other until the fit ends."""
    blocks = setup.blocks

    def goes_on(joint: JointState) -> Any:
        return is_running(joint.state)

    def after_trip(joint: JointState) -> JointState:
        return blocks.agreed(joint_trip(setup, joint))

    state = initial_state(setup.setting, setup.start)
    first = JointState(state, Local.start(setup.local_start, setup.start))
    first = varying_with(first, setup.start)
    last = lax.while_loop(goes_on, after_trip, blocks.agreed(first))
    return joint_outcome(setup, last)


def joint_trip(setup: JointSetup, joint: JointState) -> JointState:
    """One trip: every block at the trial point, and what follows from their sum."""
    state = joint.state
    starts = starts_of_blocks(setup, joint)
    lin, local = setup.blocks.fitted(state.trial.x, frame_of(state), starts)
    return after_sum(setup.setting, joint, lin, local)


def starts_of_blocks(setup: JointSetup, joint: JointState) -> OwnStarts:
    """Where the local parameters may be at the trial point."""
    step = joint.state.trial.x - joint.state.point.x
    return joint.local.moved(step, setup.blocks.bounds)


def after_sum(
    setting: Setting, joint: JointState, lin: Linearization, local: Local
) -> JointState:
    """What follows from the sum over all blocks; local parameters of what is refused
    are forgotten."""
    turn = decided(setting, joint.state, lin)
    return JointState(turn.state, choose(turn.has_moved, local, joint.local))


class Turn(NamedTuple):
    """The fit of x after a trip."""

    state: State
    has_moved: Bool[Array, ""]  # it stands at the trial point


def decided(setting: Setting, state: State, lin: Linearization) -> Turn:
    """What follows for x from the sum over all blocks."""
    after = decide(setting, state, lin)
    return Turn(after, every(after.point.x == state.trial.x))


def joint_outcome(setup: JointSetup, joint: JointState) -> Outcome:
    """What was found."""
    local = joint.local
    crossed = are_crossed(local.status)
    if setup.blocks.axes is not None:
        crossed = lax.psum(crossed.astype(jnp.int32), setup.blocks.axes) > 0
    outcome = outcome_of(joint.state, crossed)
    return outcome._replace(local=local.u, local_status=local.status)


def are_crossed(local_status: Any) -> Any:
    """Whether the bounds of some block's local parameters leave no room."""
    return (local_status == np.int32(Status.INVALID_BOUNDS)).any()


def outcome_of(state: State, crossed: Bool[Array, ""]) -> Outcome:
    """What was found of x, the bounds of local parameters crossed or not."""
    outcome = Outcome.of(state)
    fails = outcome.status == jnp.int32(Status.NONFINITE_START)
    status = jnp.where(
        crossed & fails, jnp.int32(Status.INVALID_BOUNDS), outcome.status
    )
    return outcome._replace(status=status)


def with_report(outcome: Outcome, lin: Linearization) -> Outcome:
    """The outcome with the linearization of the report, unless it has failed."""
    lin = choose(never_left(outcome.status), outcome.linearization, lin)
    return outcome._replace(linearization=lin)


def frame_from(lin: Linearization) -> Frame:
    """The frame of a linearization at the end of a fit, as a constant."""
    inverse = lax.stop_gradient(lin.frame)
    most = lin.believed(is_last=True)
    return Frame(inverse, transpose(inverse_of(inverse)), most)


def joint_solution(setup: JointSetup, outcome: Outcome) -> JointSolution:
    """The result in the user's structure, with what its errors are made of."""
    blocks, rest = eqx.partition(setup.blocks, eqx.is_array)

    def reported(operands: tuple) -> tuple[Linearization, Factors]:
        blocks, x, u, lin = operands
        blocks, frame = eqx.combine(blocks, rest), frame_from(lin)
        if setup.is_mixed:
            units = units_of(Known(blocks, setup.start), x, frame)
            return lin, units.of_blocks(units.response(u), len(u))
        return blocks.report(x, frame, u)

    def plainly(operands: tuple) -> tuple[Linearization, Factors]:
        blocks, x, u, lin = operands
        frame = frame_from(lin)
        return eqx.combine(blocks, rest).report(x, frame, u, is_plain=True)

    operands = blocks, outcome.x, outcome.local, outcome.linearization
    lin, factors = derived_from(reported, plainly)(operands)
    outcome = with_report(outcome, lin)
    return JointSolution.of(
        solution_of(setup.parameters, setup.setting.bounds, outcome),
        local=jax.vmap(setup.local_parameters.unravel)(outcome.local),
        local_status=outcome.local_status,
        local_free=are_free(setup.local_parameters, setup.blocks.bounds),
        factors=factors,
    )


def are_free(parameters: Parameters, bounds: Bounds | None) -> Flags:
    """Which parameters may move."""
    return jnp.ones(parameters.size, bool) if bounds is None else bounds.free
