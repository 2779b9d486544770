"""A joint fit of blocks that differ in their data alone, in two passes over items.

The first adds up what a fit sees of the blocks (`_joint/known.py`); few blocks are made
of it, and fitted in memory. The last gives the local parameters of all. Between both
lies another where the sums have lost digits: a triangle is made of the blocks.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxfit._core.derivative import Outcome
from jaxfit._core.parameters import Parameters
from jaxfit._core.setting import initial_state
from jaxfit._joint.block import Factors, Local
from jaxfit._joint.compress import (
    Units,
    are_alike,
    few_blocks,
    images,
    is_worth_it,
    local_of,
    units_of,
)
from jaxfit._joint.fit import (
    JointRequest,
    frame_from,
    run_few,
    set_up_joint,
    shared_setting,
)
from jaxfit._joint.known import Known, Moments, Root
from jaxfit._joint.solution import JointSolution
from jaxfit._programs.call import Static
from jaxfit._programs.compiled import compiled
from jaxfit._rows.table import split_rows
from jaxfit._stream.feed import Block, Feed
from jaxfit._stream.host import HostStarts, check_number, cut, with_item
from jaxfit._stream.joint_passes import (
    ITEMS,
    Solved,
    of_item,
    parameters_of_blocks,
    solved,
    with_blocks,
)
from jaxfit._stream.passes import Progress

LARGEST = 2**27  # bytes of the matrix of products


class Stage(IntEnum):
    """Which pass is next."""

    SUMS = 0
    TRIANGLES = 1
    LOCAL = 2
    DONE = 3


class Sums(NamedTuple):
    """What is added up over items."""

    moments: Moments
    triangle: Float[Array, "m m"]  # R of the blocks about their mean


class Mixed(NamedTuple):
    """What is known between two passes: nothing of a fit before it is made."""

    stage: Any  # of `Stage`
    outcome: Outcome
    images: Float[Array, "k l"]  # from the residuals of a block to its u
    units: Units


class MixedFit:
    """A joint fit of items of blocks that differ in their data alone.

    Args:
        request: without data; `u0` is one for all blocks.
        starts: their numbers do not matter.
        size: residuals of a block.
        feed: has a first item.
        example: its first block, if it was read already.
    """

    def __init__(
        self,
        request: JointRequest,
        starts: HostStarts,
        size: int,
        feed: Feed,
        example: Block | None,
    ):
        self.request, self.starts, self.size, self.feed = request, starts, size, feed
        self.example, self.nouns = example, ITEMS

    def start(self) -> Progress:
        """Before the first item."""
        without_functions = self.request._replace(fn=None)
        first = compiled(_started, without_functions, Static(self.size))
        return Progress.start(
            first.mixed._replace(stage=np.int32(Stage.SUMS)), first.sums
        )

    def goes_on(self, state: Mixed) -> bool:
        """Whether another pass follows."""
        return int(state.stage) != Stage.DONE

    def with_block(self, progress: Progress, block: Block) -> Progress:
        """The sums, or the tables, with the blocks of another item."""
        check_number(self.starts, int(progress.rows) + block.rows, at_end=False)
        asked, number = of_item(self.request, block), np.int32(block.rows)
        state, sums = progress.state, progress.running
        if state.stage == Stage.SUMS:
            moments = compiled(_added_up, asked, number, donate=(sums.moments,))
            return progress._replace(running=sums._replace(moments=moments))
        if state.stage == Stage.TRIANGLES:
            triangle = compiled(
                _triangle, asked, number, sums.moments, donate=(sums.triangle,)
            )
            return progress._replace(running=sums._replace(triangle=triangle))
        local = compiled(_local, asked, number, state.images, state.units)
        tables = with_item(progress, self.starts, "local", local, block.rows)
        return progress._replace(tables=tables)

    def decided(self, progress: Progress) -> Progress:
        """What follows from a pass."""
        rows = int(progress.rows)
        check_number(self.starts, rows, at_end=True)
        state, sums = progress.state, progress.running
        if state.stage == Stage.LOCAL:
            state = state._replace(stage=np.int32(Stage.DONE))
            return progress._replace(state=state, tables=cut(progress.tables, rows))
        matrix = sums.triangle
        if state.stage == Stage.SUMS:
            number = self.starts.parameters.size
            root = compiled(_root, sums.moments, Static(number))
            matrix = root.matrix
            if not root.has_digits:
                state = state._replace(stage=np.int32(Stage.TRIANGLES))
                return progress._replace(state=state)
        example = self.example or first_block(self.feed.first())
        one = of_item(self.request, example)
        mixed = compiled(_few_fitted, one, sums.moments, matrix, np.int32(rows))
        return progress._replace(state=mixed._replace(stage=np.int32(Stage.LOCAL)))

    def solution(self, progress: Progress) -> JointSolution:
        """The result."""
        tables, state = progress.tables, progress.state
        without_functions = self.request._replace(fn=None)
        shared = compiled(_solved, without_functions, state.outcome)
        units = jax.tree.map(np.asarray, state.units)
        factors = units.of_blocks(
            tables["local.response"], int(progress.all_rows), np.broadcast_to
        )
        return with_blocks(shared, self.starts, tables, factors)

    def words(self, state: Mixed) -> list[str]:
        """Which pass this is, and how the fit stands."""
        heading = ("sums", "triangles", "local parameters", "")[int(state.stage)]
        if state.stage < Stage.LOCAL:
            return [heading]
        return [heading, f"cost {float(state.outcome.linearization.cost):.6g}"]


def mixed_size(request: JointRequest, example: Block, number: int | None) -> int:
    """The residuals of a block, if blocks differ in their data alone; else 0.

    Args:
        example: one of them, as an item.
        number: of all blocks, if it is known; otherwise they are taken to be many.
    """
    one = of_item(request, example)
    arrays, rest = eqx.partition(one, eqx.is_array)
    sizes: list[int] = []

    def look(arrays: PyTree) -> None:
        setup = set_up_joint(eqx.combine(arrays, rest))
        blocks, size = setup.blocks, setup.blocks.template.rows.residuals.number
        is_small = size**2 * setup.start.dtype.itemsize <= LARGEST
        is_worth = number is None or is_worth_it(blocks, number)
        if is_small and is_worth and are_alike(blocks, setup.start):
            sizes.append(size)

    jax.eval_shape(look, arrays)
    return sizes[0] if sizes else 0


def first_block(item: Block) -> Block:
    """An item of the first block alone."""
    table = split_rows(item.data, item.weights)
    data, weights = table.marked([leaf[:1] for leaf in table.rows], table.shared)
    return item._replace(data=data, weights=weights, rows=1, capacity=1)


# Programs


class _Start(NamedTuple):
    """What there is before the first item."""

    mixed: Mixed
    sums: Sums


def _started(request: JointRequest, size: Static) -> _Start:
    parameters, m = Parameters(request.x0), size.value
    setting = shared_setting(parameters, request)
    x = parameters.ravel(request.x0, "x0")
    n, number = len(x), parameters_of_blocks(request).size
    moments = Moments.of_nothing(m, 0 * x[0])

    def zeros(*shape: int) -> Array:
        return jnp.zeros((number + 1, *shape), x.dtype)

    factors = Factors(
        gram=zeros(number, number),
        frame=zeros(number, number),
        response=zeros(number, n),
        is_used=jnp.zeros(number + 1, bool),
        active=jnp.zeros((number + 1, number), jnp.int32),
    )
    mixed = Mixed(
        stage=np.int32(Stage.SUMS),
        outcome=Outcome.of(initial_state(setting, x)),
        images=jnp.zeros((m + 1, number), x.dtype),
        units=Units(factors),
    )
    return _Start(mixed, Sums(moments, jnp.zeros((m, m), x.dtype)))


def _known(request: JointRequest, number: Int[Array, ""]) -> Known:
    """An item of which only the first blocks count."""
    setup = set_up_joint(request)
    return Known(setup.blocks._replace(valid=number), setup.start)


def _added_up(
    request: JointRequest, number: Int[Array, ""], moments: Moments
) -> Moments:
    return _known(request, number).added_to(moments)


def _triangle(
    request: JointRequest,
    number: Int[Array, ""],
    moments: Moments,
    triangle: Float[Array, "m m"],
) -> Float[Array, "m m"]:
    return _known(request, number).triangle(triangle, moments.middle)


def _root(moments: Moments, local_parameters: Static) -> Root:
    return moments.root(local_parameters.value)


def _few_fitted(
    request: JointRequest,
    moments: Moments,
    root: Float[Array, "m m"],
    number: Int[Array, ""],
) -> Mixed:
    setup = set_up_joint(request)
    outcome = run_few(setup, few_blocks(setup.known, moments, root), number)
    frame = frame_from(outcome.linearization)
    return Mixed(
        stage=jnp.int32(Stage.LOCAL),
        outcome=outcome,
        images=images(setup.known, outcome.x),
        units=units_of(setup.known, outcome.x, frame),
    )


def _local(
    request: JointRequest,
    number: Int[Array, ""],
    images_at_x: Float[Array, "k l"],
    units: Units,
) -> Local:
    local = local_of(_known(request, number), images_at_x)
    return local._replace(response=units.response(local.u))


def _solved(request: JointRequest, outcome: Outcome) -> Solved:
    return solved(request, outcome)
