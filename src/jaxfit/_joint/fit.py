"""A joint fit as a value: what is set up from a request, the loop, what is found."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

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
from jaxfit._core.state import State, is_running
from jaxfit._core.trip import decide, frame_of
from jaxfit._joint.affine import check_affine
from jaxfit._joint.block import Factors, Local, Starts
from jaxfit._joint.blocks import Blocks
from jaxfit._joint.compress import Mixture, can_be_mixed
from jaxfit._joint.solution import JointSolution
from jaxfit._linalg.branches import choose, varying_with
from jaxfit._linalg.kernels import MANY, Matrix, every, is_large, transpose
from jaxfit._linalg.rotations import inverse_of
from jaxfit._programs.call import Static
from jaxfit._programs.memory import Budget, budget
from jaxfit._programs.one_function import is_possible
from jaxfit._rows.linearization import Frame, Linearization
from jaxfit._rows.table import RowTable, Shared, split_rows
from jaxfit._rows.ways import Chunked, Sharded, Whole
from jaxfit.losses import Loss

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
    loss: Loss | None
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
    own = dataclasses.replace(template.setting, is_smooth=True)
    template = template._replace(setting=own)
    if len(start) + of_one.size > MANY:  # products of matrices, from a library
        template = template._replace(is_one_function=False, in_parts=False)
    setting = dataclasses.replace(
        setting_of(parameters, _of_shared(request)),
        is_smooth=True,
        is_swept=True,
        in_one_function=is_possible(options.one_function) and not is_large(start),
    )
    rows, size, valid = request.rows, None, None
    if rows is None:
        each = template.rows.residuals.number * (len(start) + of_one.size + 2)
        size = budget(CPU, OTHER).holds(each * start.dtype.itemsize)
    elif not isinstance(rows, Whole):
        size = rows.size
    if isinstance(rows, Sharded) and rows.counts is not None:
        valid = rows.counts[0]
    blocks = Blocks(
        table=table,
        template=template,
        is_affine=request.is_affine.value,
        size=None if size is None else min(size, table.number),
        valid=valid,
        axes=rows.axes if isinstance(rows, Sharded) else None,
        like=start,
    )
    return JointSetup(
        parameters=parameters,
        local_parameters=of_one,
        setting=setting,
        blocks=blocks,
        start=start,
        local_start=local_start,
        gauss_newton=options.derivative == "gauss-newton",
        is_mixed=can_be_mixed(blocks, start),
    )


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
    first = Parameters(jax.tree.map(lambda leaf: leaf[0], u0)).dtype
    dtype = jnp.promote_types(first, Parameters(request.x0).dtype)
    x0, u0 = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
        for tree in (request.x0, u0)
    )
    return x0, u0, table


def _of_shared(request: JointRequest) -> Request:
    """What is asked of the fit of x."""
    return Request(
        fn=None,
        jac=None,
        x0=request.x0,
        data=None,
        bounds=request.bounds,
        weights=None,
        loss=request.loss,
        options=without_callable(request.options)[0],
    )


def run_joint(setup: JointSetup) -> Outcome:
    """From the start to the end of a joint fit."""
    if not setup.is_mixed:
        return _loop(setup)
    mixture = Mixture.of(setup.blocks, setup.start)
    start = jnp.zeros((mixture.few.table.number, setup.local_start.shape[1]))
    start = varying_with(start.astype(setup.start.dtype), setup.start)
    few = setup._replace(blocks=mixture.few, local_start=start)
    outcome = _loop(few)
    local = mixture.local(outcome.x)
    return outcome._replace(
        linearization=mixture.whole(outcome.linearization),
        local=local.u,
        local_status=local.status,
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


def starts_of_blocks(setup: JointSetup, joint: JointState) -> Starts:
    """Where the local parameters may be at the trial point."""
    step = joint.state.trial.x - joint.state.point.x
    return joint.local.moved(step, setup.blocks.template.setting.bounds)


def after_sum(
    setting: Setting, joint: JointState, lin: Linearization, local: Local
) -> JointState:
    """What follows from the sum over all blocks; local parameters of what is refused
    are forgotten."""
    after = decide(setting, joint.state, lin)
    moved = every(after.point.x == joint.state.trial.x)
    return JointState(after, choose(moved, local, joint.local))


def joint_outcome(setup: JointSetup, joint: JointState) -> Outcome:
    """What was found."""
    outcome, local = Outcome.of(joint.state), joint.local
    crossed = jnp.any(local.status == jnp.int32(Status.INVALID_BOUNDS))
    if setup.blocks.axes is not None:
        crossed = lax.psum(crossed.astype(jnp.int32), setup.blocks.axes) > 0
    fails = outcome.status == jnp.int32(Status.NONFINITE_START)
    status = jnp.where(
        crossed & fails, jnp.int32(Status.INVALID_BOUNDS), outcome.status
    )
    return outcome._replace(status=status, local=local.u, local_status=local.status)


def joint_solution(setup: JointSetup, outcome: Outcome) -> JointSolution:
    """The result in the user's structure, with what its errors are made of."""
    blocks, rest = eqx.partition(setup.blocks, eqx.is_array)

    def frame_from(inverse: Matrix) -> Frame:
        return Frame(inverse, transpose(inverse_of(inverse)))

    def reported(operands: tuple) -> tuple[Linearization, Factors]:
        blocks, x, u, lin = operands
        blocks, frame = eqx.combine(blocks, rest), frame_from(lin.frame)
        if setup.is_mixed:
            return lin, Mixture(blocks, blocks, setup.start).factors(x, frame, u)
        return blocks.report(x, frame, u)

    def plainly(operands: tuple) -> tuple[Linearization, Factors]:
        blocks, x, u, lin = operands
        frame = frame_from(lax.stop_gradient(lin.frame))
        return eqx.combine(blocks, rest).report(x, frame, u, is_plain=True)

    operands = blocks, outcome.x, outcome.local, outcome.linearization
    lin, factors = derived_from(reported, plainly)(operands)
    failed = outcome.status <= jnp.int32(Status.NONFINITE_START)
    failed = failed & (outcome.status != jnp.int32(Status.STALLED))
    lin = choose(failed, outcome.linearization, lin)
    return whole_solution(setup, outcome._replace(linearization=lin), factors)


def whole_solution(
    setup: JointSetup, outcome: Outcome, factors: Factors
) -> JointSolution:
    """A `JointSolution` of what is known."""
    shared = solution_of(setup.parameters, setup.setting.bounds, outcome)
    bounds = setup.blocks.template.setting.bounds
    number = setup.local_parameters.size
    return JointSolution(
        **{f.name: getattr(shared, f.name) for f in dataclasses.fields(shared)},
        local=jax.vmap(setup.local_parameters.unravel)(outcome.local),
        local_status=outcome.local_status,
        local_free=jnp.ones(number, bool) if bounds is None else bounds.free,
        factors=factors,
    )
